"""Speed of pre-training: `python benchmarks/train.py [--csv FILE]`, on all cores (or the GPU) of this machine.

ResNet-18 of torchvision's width and stem, 64 px, batch 128, from 1,280 images of the embedded world in memory:

- MoCo v2 against MoCo v2 built from lightly's modules as its documentation combines them (PIL images, its transform in 0
  or 2 DataLoader workers, NTXentLoss with a memory bank of 4,096, fp32), in the same run, on the same images; dilo in the
  precision that it chooses (bf16 where the machine computes in it) and in fp32;
- whole epochs of MoCo v2 against two forwards and a backward of the same network on a tensor in memory, in the same
  precision ("bare"): what is left outside the network;
- the share of a step outside forward, backward and optimiser: views, momentum, queue, numbers for the log;
- what DiLo's paste and LEWEL cost over MoCo v2, LEWEL and scene over BYOL (scene with one refresh of its maps in three
  epochs).

`--profile FILE` writes where the time of five steps of "moco_v2 fp32" goes instead (torch.profiler), operation by operation.

Each case runs in a process of its own: an epoch of ten steps for warming up, then three that are timed. All cases run
twice, turn by turn, and the better run of each counts, since the speed of a shared machine changes. Ratios are of whole
epochs. Memory is the highest resident memory of the process (on a GPU, its memory). Without lightly that case is left
out, saying so: pip install lightly.
"""

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import pandas as pd
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SIZE, BATCH, IMAGES, STEPS, EPOCHS = 64, 128, 1280, 10, 4
PASTE = dict(saliency="true_mask", probability=0.3)
CASES = {
    "moco_v2": dict(method="moco_v2"),
    "moco_v2 fp32": dict(method="moco_v2", train=dict(precision="fp32")),
    "moco_v2 + dilo": dict(method="moco_v2", **PASTE),
    "lewel_m": dict(method="lewel_m"),
    "byol": dict(method="byol", views="byol"),
    "lewel_b": dict(method="lewel_b", views="lewel"),
    "byol fp32": dict(method="byol", views="byol", train=dict(precision="fp32")),
    "lewel_b fp32": dict(method="lewel_b", views="lewel", train=dict(precision="fp32")),
    "scene": dict(method="scene", views="scene", options=dict(warmup=0, every=3)),
}


class Timer:
    "Seconds spent in calls, the end of which waits for the device."

    def __init__(self):
        self.seconds = 0.0

    def around(self, function):
        def timed(*args, **kwargs):
            started = now()
            out = function(*args, **kwargs)
            self.seconds += now() - started
            return out

        return timed


def now():
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter()


def settings_of(case):
    from dilo.config import parse_settings

    heads = dict(hidden=1024, dim=128)
    return parse_settings(
        dict(
            views=dict(size=SIZE),
            model=dict(backbone="resnet18", width=64, stem="imagenet"),
            moco_v2=dict(queue=4096),
            lewel_m=dict(queue=4096),
            byol=heads,
            lewel_b=heads,
            scene=heads,
            train=dict(epochs=EPOCHS, batch=BATCH, lr=0.06),
            recipes=dict(case=CASES[case]),
            study=dict(recipes=["case"], seeds=[0]),
        )
    )


def run_dilo(case):
    "Images a second, share of a step outside forward, backward and optimiser."
    from dilo.data import render_world
    from dilo.training import Run

    world = render_world(IMAGES, size=SIZE)
    folder = Path(tempfile.mkdtemp())
    run = Run(settings_of(case), "case", 0, world.images, np.arange(IMAGES), folder, world.masks, False)
    network, steps = Timer(), []
    run.learner.method.forward = network.around(run.learner.method.forward)
    run.accelerator.backward = network.around(run.accelerator.backward)
    run.learner.optimiser.step = network.around(run.learner.optimiser.step)
    take_step = run.take_step

    def timed_step(parts):
        started, before = now(), network.seconds
        out = take_step(parts)
        steps.append((now() - started, network.seconds - before))
        return out

    run.take_step = timed_step
    run.learn()
    steps.clear()
    started = now()
    for _ in range(EPOCHS - 1):
        run.learn()
    whole = now() - started
    shares = [1 - inside / outside for outside, inside in steps]
    return {
        "images_per_second": BATCH / median(s for s, _ in steps),
        "images_per_second_of_epochs": (EPOCHS - 1) * STEPS * BATCH / whole,
        "share_outside": median(shares),
    }


def profile(file):
    "Writes the operations of five steps of MoCo v2 in fp32 with their own time, the longest first."
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    from dilo.data import render_world
    from dilo.training import Run

    world, gpu = render_world(IMAGES, size=SIZE), torch.cuda.is_available()
    folder = Path(tempfile.mkdtemp())
    run = Run(settings_of("moco_v2 fp32"), "case", 0, world.images, np.arange(IMAGES), folder, None, False)
    run.learn(steps=5)
    with profiler(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as found:
        started = now()
        run.learn()
        whole = now() - started
    key = "self_device_time_total" if gpu else "self_cpu_time_total"
    rows = [(e.key, e.count, getattr(e, key) / 1000) for e in found.key_averages()]
    table = pd.DataFrame(rows, columns=["operation", "calls", "ms"]).sort_values("ms", ascending=False)
    table["share"] = table.ms / (1000 * whole)
    print(table.head(15).round(3).to_string(index=False))
    table.head(40).to_csv(file, index=False, float_format="%.4g")


def run_lightly(workers):
    "Images a second of MoCo v2 as lightly's documentation builds it."
    import copy

    import PIL.Image
    import torchvision
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms.moco_transform import MoCoV2Transform

    from dilo.data import render_world

    pictures = [PIL.Image.fromarray(x.transpose(1, 2, 0)) for x in render_world(IMAGES, size=SIZE).images]
    transform = MoCoV2Transform(input_size=SIZE)

    class Pictures(torch.utils.data.Dataset):
        def __len__(self):
            return IMAGES

        def __getitem__(self, i):
            return transform(pictures[i])

    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone = torch.nn.Sequential(*list(torchvision.models.resnet18().children())[:-1]).to(device)
    head = MoCoProjectionHead(512, 512, 128).to(device)
    key_backbone, key_head = copy.deepcopy(backbone), copy.deepcopy(head)
    deactivate_requires_grad(key_backbone)
    deactivate_requires_grad(key_head)
    criterion = NTXentLoss(memory_bank_size=(4096, 128)).to(device)
    optimiser = torch.optim.SGD([*backbone.parameters(), *head.parameters()], lr=0.06)
    loader = torch.utils.data.DataLoader(
        Pictures(), BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    steps, total = [], []
    for epoch in range(EPOCHS):
        started, first = now(), now()
        for query, key in loader:
            update_momentum(backbone, key_backbone, m=0.99)
            update_momentum(head, key_head, m=0.99)
            query, key = query.to(device), key.to(device)
            q = head(backbone(query).flatten(1))
            with torch.no_grad():
                k = key_head(key_backbone(key).flatten(1))
            loss = criterion(q, k)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            if epoch > 0:
                steps.append(now() - started)
            started = now()
        if epoch > 0:
            total.append(now() - first)
    return {
        "images_per_second": BATCH / median(steps),
        "images_per_second_of_epochs": len(total) * STEPS * BATCH / sum(total),
        "share_outside": float("nan"),
    }


def run_bare(precision):
    "Images a second of two forwards and a backward of the network alone, the key's forward without gradients."
    from dilo.training import Encoder

    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder, key = (Encoder("resnet18").to(device, memory_format=torch.channels_last).train() for _ in range(2))
    x = torch.rand(BATCH, 3, SIZE, SIZE, device=device).to(memory_format=torch.channels_last)
    steps = []
    for _ in range(EPOCHS * STEPS):
        started = now()
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            with torch.no_grad():
                key(x)
            out = encoder(x)
        out.float().square().mean().backward()
        encoder.zero_grad(set_to_none=True)
        steps.append(now() - started)
    speed = BATCH / median(steps[STEPS:])
    whole = (EPOCHS - 1) * STEPS * BATCH / sum(steps[STEPS:])
    return {"images_per_second": speed, "images_per_second_of_epochs": whole, "share_outside": 0.0}


def one(case):
    "Runs a case in this process and prints a line of JSON."
    torch.manual_seed(0)
    kind = case.split()[0]
    if kind == "lightly":
        out = run_lightly(int(case.split()[1]))
    else:
        out = run_bare(case.split()[1]) if kind == "bare" else run_dilo(case)
    if torch.cuda.is_available():
        out["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
    else:
        out["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps(out))


def measure(case):
    "The numbers of a case that ran in a process of its own."
    done = subprocess.run([sys.executable, __file__, "--one", case], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{case}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", help="write the table there")
    parser.add_argument("--cases", nargs="+", help="to run, as in the table (default: all)")
    parser.add_argument("--profile", help="write the operations of a step there, and measure nothing else")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return one(args.one)
    if args.profile:
        return profile(args.profile)
    from dilo.training.optimisation import machine_precision

    precision = machine_precision()
    cases = [*CASES, *dict.fromkeys(("bare fp32", f"bare {precision}"))]
    if importlib.util.find_spec("lightly") is None:
        print("lightly is not installed, so there is no comparison with it")
    else:
        cases = ["lightly 0 workers", "lightly 2 workers", *cases]
    if args.cases:
        if unknown := set(args.cases) - set(cases):
            sys.exit(f"{', '.join(sorted(unknown))}: no such case here; there are: {', '.join(cases)}")
        cases = [case for case in cases if case in args.cases]
    found = {case: [] for case in cases}
    for turn in (1, 2):
        for case in cases:
            found[case].append(measure(case))
            print(f"{case}, turn {turn}: {found[case][-1]['images_per_second']:.1f} images/s", flush=True)
    speed = "images_per_second_of_epochs"
    best = {case: max(runs, key=lambda r: r[speed]) for case, runs in found.items()}
    table = pd.DataFrame(best).T.rename_axis("case")
    print(table.round(3).to_string())
    peers = [best[c][speed] for c in cases if c.startswith("lightly")]
    for case in ("moco_v2", "moco_v2 fp32"):
        if peers and case in best:
            peer = max(peers)
            print(f"{case} against lightly, whole epochs: {best[case][speed] / peer:.2f}x")
    for case, bare in (("moco_v2", f"bare {precision}"), ("moco_v2 fp32", "bare fp32")):
        if {case, bare} <= set(best):
            print(f"{case} over two forwards and a backward ({bare}): {best[case][speed] / best[bare][speed]:.1%}")
    if "moco_v2" in best:
        print(f"share of a MoCo v2 step outside forward, backward and optimiser: {best['moco_v2']['share_outside']:.1%}")
    pairs = [("moco_v2 + dilo", "moco_v2"), ("lewel_m", "moco_v2"), ("lewel_b", "byol"), ("lewel_b fp32", "byol fp32")]
    for case, base in (*pairs, ("scene", "byol")):
        if not {case, base} <= set(best):
            continue
        extra = best[base][speed] / best[case][speed] - 1
        memory = best[case]["peak_mib"] / best[base]["peak_mib"] - 1
        print(f"{case} over {base}: {extra:+.1%} time, {memory:+.1%} peak memory")
    if args.csv:
        table.to_csv(args.csv, float_format="%.4g")


if __name__ == "__main__":
    main()
