"""Much of everything: 50,000 steps, a million images. Memory and open files are flat over steps, and linear in images.

`make faults` has all of it, `make test` 960 steps and a tenth of the images."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from commands import MANY
from running import ROOT

SETTINGS = """
import json, math, sys, threading, time
from pathlib import Path
import numpy as np, psutil
from dilo.config import parse_settings
from dilo.data import open_arrays
from dilo.training import Run, pretrain

def settings(epochs, batch):
    return parse_settings(dict(
        views=dict(size=16, pool=64), model=dict(backbone="resnet18", width=8, stem="small"),
        moco_v2=dict(queue=128), instdisc=dict(negatives=64),
        train=dict(epochs=epochs, batch=batch, lr=0.01, precision="fp32"),
        recipes=dict(dilo=dict(method="moco_v2", saliency="rbd", background="image", probability=0.3),
                     bank=dict(method="instdisc", views="instdisc", saliency="rbd", background="grey", probability=0.3)),
        study=dict(recipes=["dilo", "bank"], seeds=[0])))

def held():
    "MiB of this process that are no files."
    told = Path("/proc/self/status").read_text().split("RssAnon:")[1]
    return int(told.split()[0]) / 1024
"""

STEPS = """
epochs, folder = int(sys.argv[1]), sys.argv[2]
rng = np.random.default_rng(0)
images, maps = (rng.integers(0, 256, (64, channels, 16, 16), dtype=np.uint8) for channels in (3, 1))
run = Run(settings(epochs, 4), "dilo", 0, images, np.arange(64), folder, maps, False)
run.files.begin(run.made | run.machine)
found = []
for epoch in range(epochs):
    row = run.learn()
    run.files.save(run.state())
    assert math.isfinite(row["loss"]), row
    if (epoch + 1) % (epochs // 5) == 0:
        found.append((held(), psutil.Process().num_fds(), threading.active_count(), row["loss"]))
print(json.dumps(dict(steps=16 * epochs, found=found)))
"""

IMAGES = """
number, folder = int(sys.argv[1]), Path(sys.argv[2])
peak = [0.0]

def watch():
    while True:
        peak[0] = max(peak[0], held())
        time.sleep(0.01)

threading.Thread(target=watch, daemon=True).start()
found = {}

def told(what, make):
    "Seconds and MiB at most that a part takes."
    before, started = held(), time.monotonic()
    peak[0] = before
    made = make()
    time.sleep(0.05)
    found[what] = (time.monotonic() - started - 0.05, max(peak[0], held()) - before)
    return made

packed = told("index", lambda: open_arrays(folder))
maps, rows = np.load(folder / "rbd.npy", mmap_mode="r"), packed.learning_rows
for recipe in ("dilo", "bank"):
    out = folder / recipe
    run = told(f"{recipe}, begin", lambda: Run(settings(2, 64), recipe, 0, packed.images, rows, out, maps, False))
    told(f"{recipe}, sampler and a step", lambda: run.learn(1))
    told(f"{recipe}, checkpoint", lambda: (run.files.begin(run.made | run.machine), run.files.save(run.state())))
    run.close()
    del run
print(json.dumps(found))
"""


def said(code, *arguments):
    "What a piece of code prints last, as JSON, in a process of its own."
    env = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore")
    command = [sys.executable, "-c", SETTINGS + code, *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_many_steps_take_no_more_memory_or_files_than_few(tmp_path):
    told = said(STEPS, 3125 if MANY else 60, tmp_path / "run")
    print(f"{told['steps']} steps: MiB, open files, threads, loss at each fifth: {told['found']}")
    memory, files, threads, losses = np.array(told["found"]).T
    assert np.isfinite(losses).all()
    assert memory[-1] - memory[0] < 8 and len(set(files)) == len(set(threads)) == 1


def write_index(folder, number):
    "The index of so many images that nobody has, arrays with nothing in them, and maps with a square."
    folder.mkdir()
    with open(folder / "index.csv", "w", encoding="utf-8") as file:
        file.write("split,path,mask,label,class_name,family,x0,y0,x1,y1,sha256\n")
        for i in range(number):
            name = f"n{i % 1000:08}"
            file.write(f"train,/data/imagenet/train/{name}/{name}_{i}.JPEG,,{i % 1000},{name},,,,,,{i:064x}\n")
    np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (number, 3, 16, 16))
    maps = np.lib.format.open_memmap(folder / "rbd.npy", "w+", np.uint8, (number, 1, 16, 16))
    maps[:, :, 4:12, 4:12] = 255


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads the memory of a process from Linux")
def test_memory_and_time_are_linear_in_images(tmp_path):
    number = 1_000_000 if MANY else 100_000
    both = []
    for share in (4, 1):
        write_index(tmp_path / str(share), number // share)
        both.append(said(IMAGES, number // share, tmp_path / str(share)))
    few, many = both
    for what, (seconds, mebibytes) in many.items():
        told = ", a quarter of them: ".join(f"{one[what][0]:.2f} s, {one[what][1]:.0f} MiB" for one in (many, few))
        print(f"{number} images, {what}: {told}")
        assert mebibytes < 32 + 5 * few[what][1] and mebibytes < 64 + 1500 * number / 1e6, what
        assert not MANY or seconds < 2 + 6 * few[what][0], what  # of small ones the clock says nothing
