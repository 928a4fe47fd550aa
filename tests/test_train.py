"Pre-training as a user starts it: from photos, stopped and continued, at ImageNet's shape, in several processes."

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from skimage import data
from test_cli import ENV, dilo

SMALL = [f"--set={s}" for s in ("model.width=8", "data.size=48", "train.precision=fp32", "saliency.size=64")]
SMALL += ["--size", 40, "--jobs", 1]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    "Forty photos of two sizes in two folders."
    folder = tmp_path_factory.mktemp("photos")
    pictures = [Image.fromarray(getattr(data, name)()) for name in ("coffee", "chelsea", "astronaut", "rocket")]
    for number in range(40):
        place = folder / ("walk" if number % 2 else "home/garden")
        place.mkdir(parents=True, exist_ok=True)
        size = (90, 60) if number % 3 else (64, 80)
        pictures[number % 4].rotate(9 * number).resize(size).save(place / f"{number}.jpg")
    return folder


def test_photos_to_an_encoder(photos, tmp_path):
    run = tmp_path / "run"
    text, _ = dilo("pretrain", photos, "--out", run, "--recipe", "lewel_m_dilo", "--epochs", 2, *SMALL)
    assert "encoder.safetensors after 2 epochs" in text
    made = json.loads((run / "settings.json").read_text())
    assert made["recipe.method"] == "lewel_m" and made["recipe.probability"] == 0.3 and made["train.epochs"] == 2
    text, _ = dilo("pretrain", photos, "--out", tmp_path / "dry", "--recipe", "scene", "--dry-run", *SMALL)
    assert "two steps: loss" in text and not (tmp_path / "dry/encoder.safetensors").exists()


def test_ctrl_c_saves_and_the_same_command_goes_on(photos, tmp_path):
    command = ["pretrain", photos, "--recipe", "dilo", "--epochs", 12, *SMALL]
    dilo(*command, "--out", tmp_path / "whole")
    run = tmp_path / "stopped"
    process = subprocess.Popen(
        [sys.executable, "-m", "dilo.cli", *map(str, command), "--out", str(run)],
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (run / "history.csv").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on from here" in err and "Traceback" not in err, err
    assert not (run / "encoder.safetensors").exists()
    out, err = dilo(*command, "--epochs", 13, "--out", run, status=2)
    assert "train.epochs: 12 -> 13" in err and "delete" in err
    last = run / "last.pt"
    text, _ = dilo(*command, "--out", run)
    assert "going on after epoch" in text
    same = [(folder / "encoder.safetensors").read_bytes() for folder in (tmp_path / "whole", run)]
    assert same[0] == same[1] and last.exists()


def test_a_checkpoint_cut_short_costs_an_epoch(photos, tmp_path):
    command = ["pretrain", photos, "--recipe", "byol", "--epochs", 3, *SMALL]
    run = tmp_path / "run"
    dilo(*command, "--out", tmp_path / "whole")
    whole = (tmp_path / "whole/encoder.safetensors").read_bytes()
    process = subprocess.Popen(
        [sys.executable, "-m", "dilo.cli", *map(str, command), "--out", str(run)],
        env=ENV,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (run / "previous.pt").exists():
            process.kill()
            break
        time.sleep(0.002)
    process.wait()
    assert (run / "previous.pt").exists() and not (run / "encoder.safetensors").exists(), (
        "it was too quick to be killed"
    )
    last = run / "last.pt"
    if last.exists():
        last.write_bytes(last.read_bytes()[:5000])
    text, _ = dilo(*command, "--out", run)
    assert "previous.pt" in text and "is used in its place" in text and "going on after epoch" in text
    assert (run / "encoder.safetensors").read_bytes() == whole


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--recipe", "dino"], "is not known; allowed: instdisc"),
        (["--set", "train.lrr=1"], "did you mean lr?"),
        (["--set", "train.trackers=[wandb]"], "tensorboard"),
        (
            ["--batch", 100, "--set", "moco_v2.queue=32"],
            "moco_v2.queue = 32 is not allowed: must be larger than train.batch = 100",
        ),
        (["--batch", 100], "train.batch = 100 is not allowed: at most the 40 images"),
        (["--recipe", "byol", "--batch", 100], "train.batch = 100 is not allowed: at most the 40 images"),
    ],
)
def test_what_cannot_be_is_said(photos, tmp_path, arguments, said):
    _, err = dilo("pretrain", photos, "--out", tmp_path / "run", *SMALL, *arguments, status=2)
    assert said in err, err


def test_broken_photos_are_named_all(photos, tmp_path):
    for name in ("one.jpg", "two.png"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(b"nothing")
    _, err = dilo("pretrain", tmp_path / "photos", "--out", tmp_path / "run", status=2)
    assert "one.jpg" in err and "two.png" in err and "replace or remove these photos (2 of 2)" in err


def test_imagenet_settings_fit_a_tree_of_its_shape(fresh):
    "ResNet-50 at 224 px with the papers' settings, all but batch and precision, streamed: two steps of two recipes."
    generator = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 1)):
        for synset in ("n01440764", "n01443537", "n02099601"):
            place = fresh.folder.parent / "imagenet" / split / synset
            place.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
                size = (500, 375) if number % 2 else (333, 500)
                Image.fromarray(pixels).resize(size).save(place / f"{synset}_{number}.JPEG")
    fresh.edit("profiles/imagenet.yaml", "folder: ../imagenet,", "folder: ../imagenet, storage: streamed,")
    fresh.edit("profiles/imagenet.yaml", "jobs: 64", "jobs: 2")
    # a processor without bf16 emulates it, ten to thirty times slower
    fresh.edit("profiles/imagenet.yaml", "precision: bf16", "precision: fp32")
    fresh.run("python", "-m", "dilo.config", "imagenet")
    fresh.run("dvc", "repro", "saliency")
    assert not (fresh.folder / "build/arrays/images.npy").exists(), "they were to be streamed"
    text = (fresh.folder / "params.yaml").read_text()
    for batch in ("batch: 256", "batch: 1024"):
        text = text.replace(batch, "batch: 6")
    (fresh.folder / "params.yaml").write_text(text)
    for recipe in ("dilo", "lewel_b"):
        said = fresh.run("python", "-m", "dilo.training", recipe, "0", "--dry-run")
        assert "two steps: loss" in said and "nothing was written" in said, said
    assert not (fresh.folder / "runs").exists()


MEMORY = """
import sys, numpy as np, psutil
from dilo.config import parse_settings
from dilo.data import open_arrays
from dilo.training import Run
settings = parse_settings(dict(
    views=dict(size=32), model=dict(backbone="resnet18", width=8, stem="small"), moco_v2=dict(queue=64),
    train=dict(epochs=6, batch=16, lr=0.01, precision="fp32", workers=1),
    recipes=dict(moco=dict(method="moco_v2")), study=dict(recipes=["moco"], seeds=[0])))
packed = open_arrays(sys.argv[1])
run = Run(settings, "moco", 0, packed.images, np.tile(packed.learning_rows, 8), sys.argv[2], None, False)
sizes = []
for _ in range(6):
    run.learn()
    sizes.append(psutil.Process().memory_info().rss / 2**20)
print(sizes)
assert max(sizes[2:]) - sizes[1] < 20, sizes
"""


def test_memory_stays_flat(photos, tmp_path):
    "Streamed photos of 256 px: 60 MB of pixels go by in an epoch, and the process grows by less than 20 MiB in four."
    from dilo.data import pack, write_photos_index

    write_photos_index(tmp_path / "index", photos)
    pack(tmp_path / "index", tmp_path / "arrays", size=256, storage="streamed", progress=False)
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "arrays"), str(tmp_path / "run")]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_notebook_launches_several_processes(tmp_path):
    "`launch` in a fresh interpreter, as a stage notebook calls it: two processes, one run folder, one writer."
    code = f"""
import numpy as np
from dilo.config import parse_settings
from dilo.data import render_world
from dilo.training import launch
world = render_world(64, size=32)
settings = parse_settings(dict(
    views=dict(size=32), model=dict(backbone="resnet18", width=8, stem="small"), scene=dict(hidden=16, dim=8, warmup=1),
    train=dict(epochs=2, batch=16, lr=0.05, precision="fp32", processes=2, accumulate=2, batch_norm="sync"),
    recipes=dict(scene=dict(method="scene", views="scene")), study=dict(recipes=["scene"], seeds=[0])))
history = launch(settings, "scene", 0, world.images, np.arange(64), {str(tmp_path / "run")!r})
assert len(history) == 2 and history.crop_saliency[1] > 0 == history.crop_saliency[0], history
"""
    done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    made = json.loads((tmp_path / "run/settings.json").read_text())
    assert made["processes"] == 2
    names = sorted(p.name for p in (tmp_path / "run").iterdir())
    assert names == ["encoder.safetensors", "history.csv", "last.pt", "settings.json"], names
