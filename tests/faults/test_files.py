"""Broken settings, weights and tables: each costs a message that names the file, and nothing else.

DILO_FAULTS says how many of each kind: `make faults` many, `make test` a few. Harmless damage may be read over."""

import io
import json
import shutil
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import MANY, write_photos
from safetensors.torch import load_file, save_file

from dilo.cli import main
from dilo.config import SettingsError, load_settings

WORDS = [b"nan", b"-1", b"0", b"1e999", b"null", b"''", b"[]", b"{}", b"true", b"9" * 400, b"*a", b"&a", b"\xff"]
WORDS += [b"!!python/object:os"]


def damaged(content, rng):
    "A copy of some bytes with a fault: cut, with flipped bits, with a part missing, doubled or replaced, or other bytes."
    content = bytearray(content)
    kind, at = rng.integers(8), int(rng.integers(len(content)))
    until = min(len(content), at + int(rng.integers(1, 200)))
    if kind == 0:
        return bytes(content[:at])
    if kind == 1:
        for place in rng.integers(0, len(content), rng.integers(1, 20)):
            content[place] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        del content[at:until]
    elif kind == 3:
        content[at:at] = content[at:until]
    elif kind == 4:
        content[at:until] = rng.bytes(until - at)
    elif kind == 5:
        return rng.bytes(int(rng.integers(300)))
    else:  # a word of a text
        ends = [p for p in range(at, len(content)) if content[p : p + 1] in b" ,:\n\t]}"]
        content[at : ends[0] if ends else at + 1] = WORDS[int(rng.integers(len(WORDS)))]
    return bytes(content)


class Runs:
    "Unpickled, it writes a file."

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "Photos in classes and an encoder's weights."
    folder = tmp_path_factory.mktemp("files")
    write_photos(folder, 24, 40)
    return folder


def told(capfd, command, allowed=(0, 2)):
    "What a command says of its fault, a line without a traceback, within ten seconds; empty where there is none."
    begun = time.monotonic()
    try:
        status = main([str(word) for word in command])
    except SystemExit as end:
        status = end.code
    error = capfd.readouterr().err
    assert time.monotonic() - begun < 10, command
    assert status in allowed and "Traceback" not in error and "did not foresee" not in error, (command, status, error)
    if status == 0:
        return ""
    assert error.strip(), command
    return error


def test_settings(tmp_path, monkeypatch, place, capfd):
    rng, root = np.random.default_rng(0), Path(__file__).resolve().parents[2]
    file = tmp_path / "params.yaml"
    shutil.copytree(root / "profiles", tmp_path / "profiles")
    refused = 0
    for number in range(200 if MANY else 40):
        file.write_bytes(damaged((root / "params.yaml").read_bytes(), rng))
        try:
            load_settings(file)
        except SettingsError as error:
            assert "params.yaml" in str(error), (number, error)
            refused += 1
            if number % 10 == 0:
                command = ["pretrain", place / "photos/train", "--out", tmp_path / "run", "--settings", file, "--dry-run"]
                assert "params.yaml" in told(capfd, command, (2,))
        assert not (tmp_path / "run").exists()
    assert refused > 10


def wrong_weights(whole, mark, rng):
    "Names and contents of files of weights with a fault, without end."
    tensors = load_file(whole)
    first = next(name for name in tensors if tensors[name].ndim == 4)
    some = io.BytesIO()
    torch.save(tensors, some)
    others = [
        {first: tensors[first][:1]}, {first: tensors[first].to(torch.int64)}, {first: tensors[first].to(torch.complex64)},
        {first: tensors[first].to(torch.float8_e4m3fn)}, {first: torch.full_like(tensors[first], float("nan"))},
        {first: torch.zeros(0)}, {first: torch.zeros(())},
    ]  # fmt: skip
    for change in others:
        file = whole.with_name("changed.safetensors")
        save_file({name: value.contiguous() for name, value in (tensors | change).items()}, file)
        yield "shape.safetensors", file.read_bytes()
        content = io.BytesIO()
        torch.save(tensors | change, content)
        yield "shape.pth", content.getvalue()
    for harm in (Runs(mark), {"state_dict": Runs(mark)}, {"a": tensors, "b": [Runs(mark)]}):
        content = io.BytesIO()
        torch.save(harm, content)
        yield "code.pth", content.getvalue()
    for length in (2**62, 2**32, 10**8, 0):
        yield "header.safetensors", struct.pack("<Q", length) + whole.read_bytes()[8:]
    header = json.dumps({first: dict(dtype="F32", shape=[2**40], data_offsets=[0, 2**42])}).encode()
    yield "header.safetensors", struct.pack("<Q", len(header)) + header
    while True:
        yield "damaged.safetensors", damaged(whole.read_bytes(), rng)
        yield "damaged.pth", damaged(some.getvalue(), rng)


def test_weights(tmp_path, place, capfd):
    rng, mark = np.random.default_rng(1), tmp_path / "it ran"
    refused = 0
    for number, (name, content) in zip(range(100 if MANY else 36), wrong_weights(place / "e.safetensors", mark, rng)):
        file, out = tmp_path / f"{number}-{name}", tmp_path / f"{number}.npy"
        file.write_bytes(content)
        error = told(
            capfd,
            ["embed", place / "photos/val", "--weights", file, "--out", out, "--size", 32, "--jobs", 1, "--quiet"],
        )
        assert not mark.exists(), name
        assert (file.name in error and not out.exists()) if error else out.exists(), (name, error)
        refused += bool(error)
    assert refused > 15


def test_checkpoints(tmp_path, place, capfd):
    "A damaged checkpoint is named; nothing wrong is learned from it, and what the run has finished stays."
    rng, run = np.random.default_rng(3), tmp_path / "run"
    small = ["--set=model.width=8", "--set=data.size=40", "--set=train.precision=fp32", "--size", 32, "--epochs", 2]
    command = ["pretrain", place / "photos/train", "--out", run, "--recipe", "moco", *small, "--batch", 8, "--jobs", 1]
    assert not told(capfd, [*command, "--quiet"])
    whole = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
    refused = 0
    for _ in range(60 if MANY else 12):
        for name, content in whole.items():
            (run / name).write_bytes(content)
        (run / "encoder.safetensors").unlink()
        (run / "last.pt").write_bytes(damaged(whole["last.pt"], rng))
        error = told(capfd, [*command, "--quiet"])
        if error:
            refused += 1
            assert "last.pt" in error and not (run / "encoder.safetensors").exists(), error
        else:
            assert (run / "encoder.safetensors").read_bytes() == whole["encoder.safetensors"]
    print(f"{refused} damaged checkpoints were refused")


def test_tables(tmp_path, place, capfd):
    "Lists of photos, boxes and class maps."
    rng, photos = np.random.default_rng(2), place / "photos"
    names = sorted(file.relative_to(photos).as_posix() for file in photos.rglob("*.png"))
    boxes = "path,x0,y0,x1,y1\n" + "".join(f"{name},2,3,30,31\n" for name in names)
    listed = "path\n" + "".join(f"{photos / name}\n" for name in names)
    weights = place / "e.safetensors"
    small = ["--set=model.width=8", "--set=data.size=40", "--size", 32, "--epochs", 1, "--dry-run", "--quiet", "--jobs", 1]
    kinds = {
        "boxes.csv": (boxes, lambda file: ["evaluate", weights, photos, "--size", 32, "--boxes", file]),
        "list.csv": (listed, lambda file: ["pretrain", file, "--out", tmp_path / "run", *small]),
        "list.txt": (listed[5:], lambda file: ["pretrain", file, "--out", tmp_path / "run", *small]),
    }
    refused = 0
    for number in range(51 if MANY else 12):
        name = list(kinds)[number % 3]
        content, command = kinds[name]
        file = tmp_path / f"{number}-{name}"
        file.write_bytes(damaged(content.encode(), rng))
        error = told(capfd, command(file))
        assert not error or str(file) in error or str(photos) in error, error
        assert not (tmp_path / "run").exists()
        refused += bool(error)
    assert refused
