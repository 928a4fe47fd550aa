"""SIGKILL at random moments, then the same command again: the same bits, no process left behind, no temporary file.

DILO_FAULTS says how often each command is killed: `make faults` 30 times, `make test` once."""

import hashlib
import json
import os
import random
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from commands import running
from PIL import Image

from dilo.data import render_world
from dilo.training import Encoder, save_encoder

KILLS = int(os.environ.get("DILO_FAULTS", 1))
SMALL = [f"--set={s}" for s in ("model.width=8", "data.size=40", "train.precision=fp32", "saliency.size=64")]
SMALL += ["--size", "32", "--epochs", "4", "--batch", "16", "--jobs", "1", "--quiet"]
PRETRAIN = ["pretrain", "photos/train", "--out", "out", *SMALL, "--recipe"]
COMMANDS = {
    "saliency": "saliency photos/train --out out --jobs 1 --quiet".split(),
    "saliency, two jobs": "saliency photos/train --out out --jobs 2 --quiet".split(),
    "network": "saliency-train photos/train --out out/net.safetensors --epochs 3 --jobs 1 --quiet".split(),
    "moco": [*PRETRAIN, "dilo"],
    "byol": [*PRETRAIN, "byol", "--set=byol.hidden=32"],
    "lewel": [*PRETRAIN, "lewel_m_dilo"],
    "scene": [*PRETRAIN, "scene_m", "--set=scene_m.warmup=1", "--set=scene_m.every=1"],
    "evaluate": "evaluate e.safetensors photos --json out/e.json".split(),
    "embed": "embed photos/train --weights e.safetensors --out out/f.npy --jobs 1 --quiet".split(),
    "export": "export run --out out/export".split(),
    "transfer": "transfer classify e.safetensors photos --layout folders --length 2 --batch 16 --out out --quiet".split(),
}


@pytest.fixture(scope="module")
def run():
    with running() as ask:
        yield ask


@pytest.fixture(scope="module")
def place(tmp_path_factory, run):
    "Photos of the world in classes, an encoder and a finished run, in a folder; nothing in it changes."
    folder = tmp_path_factory.mktemp("kills")
    world = render_world(96, size=48)
    for number, (image, label) in enumerate(zip(world.images, world.labels)):
        part = folder / "photos" / ("train" if number < 64 else "val") / f"class{label % 2}"
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.moveaxis(image, 0, 2)).save(part / f"{number:02}.png")
    torch.manual_seed(8)
    save_encoder(Encoder("resnet18", 8, "small"), folder / "e.safetensors", backbone="resnet18", width=8, stem="small")
    done = run([*PRETRAIN[:3], "run", *PRETRAIN[4:], "moco"], folder)
    assert done["status"] == 0, done["said"]
    return folder


def inputs(place, folder):
    "A new folder with links to what the commands read."
    folder.mkdir()
    for name in ("photos", "e.safetensors", "run"):
        (folder / name).symlink_to(place / name)
    (folder / "out").mkdir()
    return folder


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


@pytest.mark.parametrize("name", COMMANDS)
def test_a_kill_costs_nothing(place, run, tmp_path, name):
    arguments = COMMANDS[name]
    whole = inputs(place, tmp_path / "whole")
    done = run(arguments, whole)
    assert done["status"] == 0, done["said"]
    expected, seconds = contents(whole), done["seconds"]
    assert expected
    moments = random.Random(f"{name} {KILLS}")
    killed = 0
    for number in range(KILLS):
        folder = inputs(place, tmp_path / str(number))
        after = moments.uniform(0, 0.8 * seconds)  # a second run may be faster
        first = run(arguments, folder, after)
        killed += first["status"] == -9
        deadline = time.monotonic() + 10
        while of(first["session"]):
            assert time.monotonic() < deadline, f"killed after {after:.3f} s: processes {of(first['session'])} are left"
            time.sleep(0.1)
        again = run(arguments, folder)
        assert again["status"] == 0, f"killed after {after:.3f} s:\n{again['said']}"
        found = contents(folder)
        assert set(found) == set(expected), f"killed after {after:.3f} s: {set(found) ^ set(expected)}"
        assert found == expected, f"killed after {after:.3f} s: {[n for n in found if found[n] != expected[n]]} differ"
    print(f"{name}: {killed} of {KILLS} runs of {seconds:.1f} s were killed before their end")
    assert killed >= KILLS // 2
