"`dilo embed` as a user types it: a file of features, interrupted, shared among processes, loaded by others."

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_cli import ENV, dilo

from dilo.data import render_world
from dilo.training import Encoder, save_encoder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "Three pieces of small photos in photos/, and an encoder, e.safetensors."
    folder = tmp_path_factory.mktemp("embed")
    (folder / "photos/c").mkdir(parents=True)
    for i, image in enumerate(render_world(600, size=32).images):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"photos/{'c/' if i % 3 else ''}{i:03}.png")
    torch.manual_seed(0)
    save_encoder(Encoder("resnet18", 8, "small"), folder / "e.safetensors", backbone="resnet18", width=8, stem="small")
    dilo("embed", "photos", "--weights", "e.safetensors", "--size", 32, "--out", "whole.npy", "--quiet", cwd=folder)
    return folder


def test_a_row_for_each_photo(place):
    said, _ = dilo("embed", "photos", "--weights", "e.safetensors", "--size", 32, "--out", "rows.parquet", cwd=place)
    assert "rows.parquet: a row for each photo" in said
    rows, table = np.load(place / "whole.npy"), pd.read_parquet(place / "rows.parquet")
    assert rows.shape == (600, 64) and np.array_equal(table.drop(columns="photo").to_numpy(), rows)
    assert list(table.photo) == list(pd.read_csv(place / "whole.photos.csv").photo) and len(set(table.photo)) == 600
    again, _ = dilo("embed", "photos", "--weights", "e.safetensors", "--size", 32, "--out", "whole.npy", cwd=place)
    assert np.array_equal(np.load(place / "whole.npy"), rows), "its own file is replaced by the same"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_it_goes_on_after_an_interruption(place, how):
    out = f"cut-{int(how)}.npy"
    command = ["embed", "photos", "--weights", "e.safetensors", "--size", "32", "--jobs", "1", "--out", out]
    running = subprocess.Popen([sys.executable, "-m", "dilo.cli", *command], cwd=place, env=ENV, stderr=subprocess.PIPE)
    record = (place / out).with_suffix(".work") / "done-0"
    deadline = time.monotonic() + 120
    while not (record.exists() and record.read_text().count("\n")) and running.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    running.send_signal(how)
    told = running.communicate()[1].decode()
    if how == signal.SIGINT and running.returncode:
        assert running.returncode == 130 and "the same command goes on from here" in told
    dilo(*command, cwd=place)
    assert (place / out).read_bytes() == (place / "whole.npy").read_bytes()
    assert not record.parent.exists()


def test_processes_share_the_photos(place):
    "By what `accelerate launch` runs for two GPUs; on the CPU it would start only one process."
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "dilo.cli"]
    command += ["embed", "photos", "--quiet", "--weights", "e.safetensors", "--size", "32", "--jobs", "1"]
    env = ENV | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    options = dict(cwd=place, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    running = subprocess.Popen([*command, "--out", "shared.npy"], **options)
    records, seen = [place / f"shared.work/done-{process}" for process in (0, 1)], set()
    while running.poll() is None:
        seen |= {record.name for record in records if record.exists()}
        time.sleep(0.002)
    assert running.returncode == 0, running.stdout.read()
    assert len(seen) == 2, "each process has a record of its own"
    np.testing.assert_allclose(np.load(place / "shared.npy"), np.load(place / "whole.npy"), rtol=1e-4, atol=1e-5)
    assert os.listdir(place).count("shared.work") == 0


def test_a_broken_photo_is_named_and_has_no_row(place, tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("000.png", "003.png"):
        (tmp_path / "photos" / name).write_bytes((place / "photos" / name).read_bytes())
    (tmp_path / "photos/001.jpg").write_bytes(b"\xff\xd8\xff broken")
    command = ["embed", "photos", "--weights", place / "e.safetensors", "--size", 32, "--out", "rows.csv"]
    _, told = dilo(*command, status=1, cwd=tmp_path)
    assert "001.jpg: cannot be read as a photo" in told
    assert list(pd.read_csv(tmp_path / "rows.csv").photo) == ["000.png", "003.png"]
    (tmp_path / "mine.csv").write_text("a,b\n1,2\n")
    assert "did not write it" in dilo(*command[:-1], "mine.csv", status=2, cwd=tmp_path)[1]
    assert "allowed are files" in dilo(*command[:-1], "rows.txt", status=2, cwd=tmp_path)[1]


def test_the_map_by_umap_repeats():
    from dilo.evaluation.nearest import flattened

    generator = torch.Generator().manual_seed(0)
    features = torch.cat([torch.randn(30, 8, generator=generator) * 0.1 + shift for shift in torch.eye(8)[:2]])
    points = flattened(features, umap=True)
    assert points.shape == (60, 2) and np.array_equal(points, flattened(features, umap=True))
    near = np.linalg.norm(points[:30] - points[:30].mean(0), axis=1).mean()
    assert near < np.linalg.norm(points[:30].mean(0) - points[30:].mean(0)), "two groups stay two"
