"Two processes that share a batch learn what one process learns from the whole of it, also after a stop."

import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from dilo.augmentation import Views
from dilo.config import parse_settings
from dilo.data import render_world
from dilo.training import METHODS, Run
from dilo.training.models import processes, shuffle, synchronise, unshuffle

BATCH = 8
OPTIONS = {
    "instdisc": dict(size=20, dim=8, negatives=16),
    "moco_v1": dict(dim=8, queue=24),
    "moco_v2": dict(dim=8, queue=24),
    "simclr": dict(dim=8),
    "lewel_m": dict(dim=8, queue=24),
    "byol": dict(dim=8, hidden=16),
    "lewel_b": dict(dim=8, hidden=16, eman=False),
    "scene": dict(dim=8, hidden=16),
    "scene_m": dict(dim=8, queue=24),
    "lewel_m, given maps": dict(dim=8, queue=24, maps="saliency"),  # they go where their images are encoded
    "lewel_b, given maps": dict(dim=8, hidden=16, eman=False, maps="saliency"),
}


class SmallEncoder(nn.Module):
    "An encoder with BatchNorm, which two processes synchronise."

    def __init__(self):
        super().__init__()
        self.features = 12
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Tanh(), nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12)
        )

    def feature_map(self, images):
        return self.layers(images)

    def forward(self, images):
        return self.layers(images).mean((2, 3))


def views_of(step, rows):
    "The views of some rows of a step's batch."
    generator = torch.Generator().manual_seed(step)
    images = [torch.rand(BATCH, 3, 12, 12, generator=generator)[rows] for _ in range(2)]
    index = torch.randperm(20, generator=generator)[:BATCH][rows]
    none = torch.zeros(2, len(index), dtype=torch.bool)
    saliency = torch.rand(2, BATCH, generator=generator)[:, rows]
    maps = [torch.rand(BATCH, 1, 12, 12, generator=generator)[rows] for _ in range(2)]
    return Views(images, torch.zeros(2, len(index), 4), none, none, index=index, saliency=saliency, maps=maps)


def learn(name, rows):
    "Losses, the first gradients and the state after three steps; gradients are averaged over the processes, as DDP does."
    torch.manual_seed(0)
    method = METHODS[name.split(",")[0]](SmallEncoder(), **OPTIONS[name])
    if processes() > 1:
        method = synchronise(method, torch.device("cpu"))
    optimiser = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    together, losses, gradients = dist.is_initialized(), [], []
    for step in range(3):
        optimiser.zero_grad()
        loss, _ = method(views_of(step, rows))
        loss.backward()
        value = loss.detach().clone()
        for x in (value, *(p.grad for p in method.parameters() if p.grad is not None)):
            if together:
                dist.all_reduce(x)
                x /= dist.get_world_size()
        losses.append(value.item())
        gradients = gradients or [p.grad.clone() for p in method.parameters() if p.grad is not None]
        optimiser.step()
        method.after_step((step + 1) / 3)
    return losses, gradients, method.state_dict()


def process(rank, name, folder):
    torch.set_num_threads(1)  # two processes would fight for the cores
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    half = BATCH // 2
    torch.save(learn(name, slice(rank * half, (rank + 1) * half)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("name", OPTIONS)
def test_two_processes_learn_as_one(name, tmp_path):
    """To 1e-5: losses, gradients, weights, statistics, and the queue or bank, key by key in the same order on
    both; keys are shuffled between the two on their way, and one BatchNorm is over both."""
    losses, gradients, state = learn(name, slice(None))
    mp.spawn(process, (name, str(tmp_path)), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for their_losses, their_gradients, their_state in results:
        assert np.allclose(their_losses, losses, atol=1e-5)
        for ours, theirs in zip(gradients, their_gradients, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)
        assert list(state) == list(their_state)
        for key in state:
            assert torch.allclose(state[key].float(), their_state[key].float(), atol=1e-5), key
    assert sum(g.abs().sum() for g in gradients) > 0.01


def shuffling(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    images = torch.arange(6.0)[rank * 3 : rank * 3 + 3, None]
    share, order = shuffle(images, images[:, 0].long(), step=1)
    torch.save((share, order, unshuffle(share * 10, order)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_keys_are_encoded_elsewhere_and_come_home(tmp_path):
    "Real shuffle-BN: the two shares are a mixture of both batches, and each process gets its own keys back in order."
    mp.spawn(shuffling, (str(tmp_path),), nprocs=2)
    shares, orders, home = zip(*(torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)))
    assert torch.equal(*orders) and sorted(torch.cat(shares)[:, 0].tolist()) == list(range(6))
    assert {0.0, 1.0, 2.0} != set(shares[0][:, 0].tolist()) != {3.0, 4.0, 5.0}
    assert torch.cat(home)[:, 0].tolist() == [0, 10, 20, 30, 40, 50]


def resuming(rank, folder):
    place = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, LOCAL_WORLD_SIZE=2, ACCELERATE_USE_CPU="true")
    os.environ |= {name: str(value) for name, value in place.items()}  # as `accelerate launch` sets them
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    world = render_world(32, size=32)
    settings = parse_settings(
        dict(
            views=dict(size=32),
            model=dict(backbone="resnet18", width=8, stem="small"),
            lewel_b=dict(dim=8, hidden=16, eman=True, momentum=0.5),
            train=dict(epochs=2, batch=16, lr=0.05, precision="fp32", workers=0),
            recipes=dict(lewel_b=dict(method="lewel_b", views="lewel")),
            study=dict(recipes=["lewel_b"], seeds=[0]),
        )
    )

    def run(name):
        return Run(settings, "lewel_b", 0, world.images, np.arange(32), f"{folder}/{name}", None, False)

    whole, stopped = run("whole"), run("stopped")
    for _ in range(2):
        whole.learn()
    stopped.files.begin(stopped.made | stopped.machine)
    stopped.learn()
    stopped.files.save(stopped.state())
    resumed = run("stopped")
    assert resumed.at.epoch == 1
    resumed.learn()
    with pytest.raises(RuntimeError, match=r"epoch 0, step 0; epoch 1, step 0\); .* a disk that all machines share"):
        run(("stopped", "not shared")[rank])
    torch.save([r.learner.bare.state_dict() for r in (whole, resumed)], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_each_process_goes_on_with_its_own_statistics(tmp_path):
    """To the bit: LEWEL's target normalises with the running statistics of its process (EMAN), which no other process has.

    And a process that does not see the others' checkpoint is told so."""
    mp.spawn(resuming, (str(tmp_path),), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for whole, resumed in results:
        assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == []
    assert not torch.equal(*(whole["encoder.bn1.running_mean"] for whole, _ in results)), "they were to differ"
