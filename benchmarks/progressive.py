"""Fewer multiplications for the same encoder: `python benchmarks/progressive.py [--photos FOLDER] [--csv FILE]`.

MoCo v2 as the default study has it, in fp32 on all cores, against the same with views that grow (train.sizes), with a
smaller second view (second), with both, and against lightly's modules with the same network, batch, epochs and rates. On
the embedded world, or on photos: a folder with train/<class>/, for which the network is that of the profile imagenette.

The encoder learns from four fifths of the training images. Nearest neighbours and a linear probe are fitted on their labels
and measured on the last fifth, which nothing else sees. Held-out images of the study take no part. `seconds` are those of
the training loop, views included, without evaluation. Cases run seed by seed, one after the other, each in a process of
its own. Rows that are in the CSV file are kept, so an interrupted call goes on. Without lightly that case is left out.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

GROWING = [dict(until=0.4, side=32), dict(until=0.75, side=48)]
STEEP = [dict(until=0.6, side=32), dict(until=0.85, side=48)]
CASES = {
    "plain": {},
    "growing": dict(train=dict(sizes=GROWING)),
    "steep": dict(train=dict(sizes=STEEP)),
    "small keys": dict(second=0.5),
    "growing, small keys": dict(second=0.75, train=dict(sizes=GROWING)),
    "steep, longer": dict(train=dict(sizes=STEEP)),
    "steep, rate x 1.5": dict(train=dict(sizes=STEEP, lr=0.09)),
    "lightly": {},
}
LONGER = 13 / 12  # epochs of the case that says so


def settings_of(photos, epochs, case):
    from dilo.config import merge, parse_settings

    epochs = round(epochs * LONGER) if case.endswith("longer") else epochs
    world = dict(
        views=dict(size=64),
        model=dict(backbone="resnet18", width=16, stem="small"),
        moco_v2=dict(queue=512, momentum=0.99),
        train=dict(epochs=epochs, batch=64, lr=0.06, weight_decay=0.0005, warmup=1, precision="fp32"),
        recipes=dict(case=dict(method="moco_v2") | CASES[case]),
        study=dict(recipes=["case"], seeds=[0]),
    )
    other = dict(model=dict(width=32, stem="imagenet"), moco_v2=dict(queue=2048), train=dict(batch=128))
    return parse_settings(merge(world, other) if photos else world)


def data_of(photos, work):
    "Images and labels of the training set."
    from dilo.data import open_arrays, pack, render_world, write_photos_index

    if photos is None:
        world = render_world(4000)
        return world.images, world.labels
    if not (work / "arrays/images.npy").is_file():
        write_photos_index(work / "index", photos / "train", [work])
        pack(work / "index", work / "arrays", size=96, storage="packed", jobs=2, progress=False)
    arrays = open_arrays(work / "arrays")
    return np.asarray(arrays.images), arrays.index.path.str.split("/").str[-2].astype("category").cat.codes.to_numpy()


def learn(settings, images, rows, seed):
    "dilo's encoder and the seconds it took."
    from dilo.training import Run

    run = Run(settings, "case", seed, images, rows, tempfile.mkdtemp(), None, False)
    run.learn(steps=1)  # compiles the kernels of the views; this step is learned, and not timed
    started = perf_counter()
    while run.at.epoch < run.train.epochs:
        run.learn()
    return run.learner.bare.encoder, perf_counter() - started


def learn_lightly(settings, images, rows, seed):
    "The encoder by lightly's modules as its documentation combines them, and the seconds it took."
    import copy

    import PIL.Image
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms.moco_transform import MoCoV2Transform

    from dilo.training import Encoder, learning_rate

    torch.manual_seed(seed)
    train, model, size = settings.train, settings.model, settings.views.size
    pictures = [PIL.Image.fromarray(images[n].transpose(1, 2, 0)) for n in rows]
    # the encoder normalises by itself
    transform = MoCoV2Transform(input_size=size, normalize=dict(mean=[0.0] * 3, std=[1.0] * 3))

    class Pictures(torch.utils.data.Dataset):
        def __len__(self):
            return len(pictures)

        def __getitem__(self, i):
            return transform(pictures[i])

    encoder = Encoder(**model.model_dump())
    head = MoCoProjectionHead(encoder.features, encoder.features, settings.moco_v2.dim)
    key_encoder, key_head = copy.deepcopy(encoder), copy.deepcopy(head)
    deactivate_requires_grad(key_encoder)
    deactivate_requires_grad(key_head)
    criterion = NTXentLoss(settings.moco_v2.temperature, memory_bank_size=(settings.moco_v2.queue, settings.moco_v2.dim))
    optimiser = torch.optim.SGD(
        [*encoder.parameters(), *head.parameters()], train.lr, train.momentum, weight_decay=train.weight_decay
    )
    loader = torch.utils.data.DataLoader(Pictures(), train.batch, shuffle=True, drop_last=True)
    steps, done, started = len(loader) * train.epochs, 0, perf_counter()
    for _ in range(train.epochs):
        for query, key in loader:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(done, steps, len(loader) * train.warmup, train.lr)
            update_momentum(encoder, key_encoder, m=settings.moco_v2.momentum)
            update_momentum(head, key_head, m=settings.moco_v2.momentum)
            q = head(encoder(query))
            with torch.no_grad():
                k = key_head(key_encoder(key))
            loss = criterion(q, k)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            done += 1
    return encoder, perf_counter() - started


def one(case, seed, photos, epochs, work):
    "Runs a case in this process and prints a line of JSON."
    from dilo.evaluation import LinearProbe, features, knn

    images, labels = data_of(photos, work)
    settings = settings_of(photos, epochs, case)
    held = np.random.Generator(np.random.Philox(0)).permutation(len(images)) % 5 == 0  # the same for every case and seed
    rows, test = np.flatnonzero(~held), np.flatnonzero(held)
    encoder, seconds = (learn_lightly if case == "lightly" else learn)(settings, images, rows, seed)
    fitted, measured = (features(encoder.eval(), images[part], settings.views.size) for part in (rows, test))
    known, wanted = (torch.from_numpy(labels[part].astype(np.int64)) for part in (rows, test))
    probe = LinearProbe(fitted, known, penalties=[1e-4, 1e-3, 1e-2, 1e-1, 1.0], holdout=0.2)
    right = [(told == wanted).double().mean().item() for told in (knn(fitted, known, measured), probe(measured))]
    print(json.dumps(dict(seconds=seconds, knn=right[0], linear=right[1])))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="a folder with train/<class>/ (default: the world)")
    parser.add_argument("--epochs", type=int, default=12, help="of each run (default: 12)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="(default: all)")
    parser.add_argument("--csv", type=Path, help="a row for each run is kept there")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    work = ROOT / "build/progressive"
    if args.one:
        return one(args.one, args.seeds[0], args.photos, args.epochs, work)
    data = "photos" if args.photos else "world"
    found = pd.read_csv(args.csv) if args.csv and args.csv.is_file() else pd.DataFrame()
    cases = [c for c in args.cases if c != "lightly" or importlib.util.find_spec("lightly") is not None]
    if cases != args.cases:
        print("lightly is not installed, so there is no comparison with it")
    for seed in args.seeds:
        for case in cases:
            key = dict(data=data, epochs=args.epochs, case=case, seed=seed)
            if len(found) and (found[list(key)] == pd.Series(key)).all(axis=1).any():
                continue
            command = [sys.executable, __file__, "--one", case, "--seeds", str(seed), "--epochs", str(args.epochs)]
            command += ["--photos", str(args.photos)] if args.photos else []
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{case}:\n{done.stderr[-3000:]}")
            row = key | json.loads(done.stdout.splitlines()[-1])
            print(row, flush=True)
            found = pd.concat([found, pd.DataFrame([row])], ignore_index=True)
            if args.csv:
                found.to_csv(args.csv, index=False, float_format="%.5g")
    own = found[(found.data == data) & (found.epochs == args.epochs)]
    table = own.groupby("case")[["seconds", "knn", "linear"]].agg(["mean", "std", "count"])
    plain = table["seconds", "mean"].get("plain", float("nan"))
    table["time over plain", ""] = table["seconds", "mean"] / plain
    print(table.round(4).to_string())


if __name__ == "__main__":
    main()
