"The script that measures on a GPU, as far as a machine without one can run it."

import os
import subprocess
import sys

import pandas as pd
import pytest
import torch
from conftest import ROOT
from PIL import Image

from dilo.data import render_world

ENV = os.environ | {"PYTHON": sys.executable}


def gpu(*options, status=0):
    command = ["bash", ROOT / "benchmarks/gpu.sh", *map(str, options)]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True)
    assert done.returncode == status, (done.stdout + done.stderr)[-6000:]
    return done.stdout + done.stderr


def test_every_part_runs_in_miniature(tmp_path):
    world = render_world(60, size=48)
    for number, (image, label) in enumerate(zip(world.images, world.labels)):
        folder = tmp_path / "photos" / ("val" if number % 4 == 0 else "train") / str(label % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{number}.png")
    where = ["--csv", tmp_path / "gpu.csv", "--work", tmp_path / "work", "--photos", tmp_path / "photos"]
    said = gpu("--dry-run", *where)
    table = pd.read_csv(tmp_path / "gpu.csv").set_index(["part", "figure"])
    assert set(table.index.levels[0]) == {"checks", "r50", "views", "rbd", "lightly", "profile", "imagenette"}, said
    assert not (table.value == "failed").any(), said
    assert float(table.value["checks", "a continued run in bf16 has the same bits"]) == 1
    assert float(table.value["checks", "values of the views within 1e-4 of the CPU's"]) > 0.999
    for name in ("MoCo v2", "DiLo"):
        assert 0 <= float(table.value["imagenette", f"{name}: kNN of the last epoch"]) <= 1
    assert len(pd.read_csv(tmp_path / "profile.csv")) > 10 and not (tmp_path / "work").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured_and_the_table_says_so(tmp_path):
    "And what was measured elsewhere stays."
    said = gpu("--csv", tmp_path / "gpu.csv", status=1)
    table = pd.read_csv(tmp_path / "gpu.csv")
    assert "no GPU here" in said and table.value.isna().all() and (table.note == "not measured: no GPU was at hand").all()
    table.assign(value="1").to_csv(tmp_path / "gpu.csv", index=False)
    assert "was left alone" in gpu("--csv", tmp_path / "gpu.csv", status=1)
    assert (pd.read_csv(tmp_path / "gpu.csv").value == 1).all()
