"The commands of the campaign, what they read, and what they leave."

import hashlib
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from running import runner

from dilo.data import render_world
from dilo.training import Encoder, save_encoder

MANY = int(os.environ.get("DILO_FAULTS", 1)) > 1  # `make faults`, not `make test`
SMALL = [f"--set={s}" for s in ("model.width=8", "data.size=40", "data.storage=packed", "saliency.size=64")]
SMALL += ["--set=train.precision=fp32", "--size", "40", "--epochs", "4", "--batch", "16", "--jobs", "1", "--quiet"]
PRETRAIN = ["pretrain", "photos/train", "--out", "out", *SMALL, "--recipe"]
COMMANDS = {
    "saliency": "saliency photos/train --out out --jobs 1 --quiet".split(),
    "saliency, two jobs": "saliency photos/train --out out --jobs 2 --quiet".split(),
    "network": "saliency-train photos/train --out out/net.safetensors --epochs 3 --jobs 1 --quiet".split(),
    "packing": [w.replace("photos/train", "large") for w in [*PRETRAIN, "moco", "--epochs", "1"]],
    "moco": [*PRETRAIN, "dilo"],
    "byol": [*PRETRAIN, "byol", "--set=byol.hidden=32"],
    "lewel": [*PRETRAIN, "lewel_m_dilo"],
    "scene": [*PRETRAIN, "scene_m", "--set=scene_m.warmup=1", "--set=scene_m.every=1"],
    "evaluate": "evaluate e.safetensors photos --json out/e.json".split(),
    "embed": "embed photos/train --weights e.safetensors --out out/f.npy --jobs 1 --quiet".split(),
    "export": "export run --out out/export".split(),
    "transfer": "transfer classify e.safetensors photos --layout folders --length 2 --batch 16 --out out --quiet".split(),
}


def write_photos(folder, count, size, photos="photos", classes=("class0", "class1")):
    "Photos of the world in two classes, two thirds of them in train/, and an encoder, e.safetensors."
    world = render_world(count, size=size)
    for number, (image, label) in enumerate(zip(world.images, world.labels)):
        part = folder / photos / ("train" if number < 2 * count // 3 else "val") / classes[label % 2]
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.moveaxis(image, 0, 2)).save(part / f"{number:02}.png", compress_level=1)
    torch.manual_seed(8)
    save_encoder(Encoder("resnet18", 8, "small"), folder / "e.safetensors", backbone="resnet18", width=8, stem="small")


@pytest.fixture
def mounted():
    "A function that gives a folder a disk of its own, of some bytes, or changes its size; read-only or not."
    there = []

    def mount(folder, size, mode="rw"):
        options = f"{'remount,' if folder in there else ''}size={size},{mode}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            assert folder not in there, "a disk that is there can change"
            pytest.skip("needs to be allowed to mount a small disk")
        there.append(folder)

    yield mount
    for folder in set(there):
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture(scope="module")
def run():
    return runner()


@pytest.fixture(scope="module")
def place(tmp_path_factory, run):
    "A folder with photos, an encoder and a finished run; nothing in it changes, and the modules share it."
    folder = tmp_path_factory.getbasetemp() / "faults"
    if folder.exists():
        return folder
    new = tmp_path_factory.mktemp("new")
    write_photos(new, 96, 48)
    if MANY:
        write_photos(new, 160, 800, "large")  # whose reading takes longer than learning from them
    done = run([*PRETRAIN[:3], "run", *PRETRAIN[4:], "moco"], new)
    assert done["status"] == 0, done["said"]
    return new.rename(folder)


def inputs(place, folder, names=("photos", "large", "many", "e.safetensors", "run")):
    "A new folder with links to what the commands read."
    folder.mkdir()
    for name in names:
        if (place / name).exists():
            (folder / name).symlink_to(place / name)
    (folder / "out").mkdir()
    return folder


def plain(value):
    "What a checkpoint holds, as bytes: tensors by their numbers; without the speeds of its history."
    if isinstance(value, torch.Tensor):
        return value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
    if isinstance(value, dict):
        return b"".join(str(key).encode() + plain(one) for key, one in value.items() if key != "images_per_second")
    if isinstance(value, (list, tuple)):
        return b"".join(map(plain, value))
    return repr(value).encode()


def content(file, place):
    "The digest of what a file holds; without the speeds of a history, the number of the process, and the folder it ran in."
    if file.name == "history.csv":
        history = pd.read_csv(file)
        return history.drop(columns=[c for c in history if "second" in c]).to_csv()
    if file.name == "last.pt":
        return hashlib.sha256(plain(torch.load(file, weights_only=True))).hexdigest()
    if file.name == ".dilo":
        return {key: value for key, value in json.loads(file.read_text()).items() if key != "process"}
    return hashlib.sha256(file.read_bytes().replace(str(place).encode(), b"")).hexdigest()


def contents(place):
    "By its name, the digest of every file that a command left in place/out."
    out = place / "out"
    return {str(file.relative_to(out)): content(file, place) for file in sorted(out.rglob("*")) if file.is_file()}


def of(session):
    "The processes of a session that still run."
    alive = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, told = stat.read_text().rpartition(")")
        except OSError:
            continue  # it has just ended
        state, _, _, own = told.split()[:4]
        if int(own) == session and state not in "ZX":
            alive.append(int(stat.parent.name))
    return alive
