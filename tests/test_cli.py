"The command `dilo` as a user types it: photos of every kind, faults, interruption."

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import PEAK
from PIL import Image
from running import ROOT, runner
from skimage import data

from dilo.data import render_world
from dilo.training import Encoder, save_encoder

ENV = os.environ | {"PYTHONPATH": str(ROOT)}


def dilo(*arguments, status=0, cwd=None):
    "Standard output and error of `dilo ...`, which must end with `status` and never with a traceback."
    done = runner()(arguments, cwd or os.getcwd())
    out, err = done["out"], done["err"]
    assert done["status"] == status, f"dilo {' '.join(map(str, arguments))} exited with {done['status']}:\n{out}{err}"
    assert "Traceback" not in err, err
    return out, err


def digests(folder):
    "The sha256 of every map below a folder, by its place."
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*.png"))
    }


def test_evaluate_measures_an_encoder(tmp_path):
    "On labelled photos with masks, then on the folders of the backgrounds challenge; faults name the file or folder."
    torch.manual_seed(0)
    save_encoder(Encoder("resnet18", 8, "small"), tmp_path / "e.safetensors", backbone="resnet18", width=8, stem="small")
    world = render_world(60, size=32)
    for number, (image, mask, label) in enumerate(zip(world.images, world.masks, world.labels)):
        split = "train" if number < 40 else "val"
        challenge = tmp_path / "challenge" / ("original", "mixed_rand")[number % 2] / "val"
        pixels = image.transpose(1, 2, 0)
        for root, picture in (("photos", pixels), ("masks", mask[0])):
            (tmp_path / root / split / f"c{label}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(tmp_path / root / split / f"c{label}/{number}.png")
        (challenge / f"c{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(challenge / f"c{label}/{number}.png")
    command = ["evaluate", "e.safetensors", "photos", "--size", "32", "--k", "5"]
    said, _ = dilo(*command, "--masks", "masks", "--json", "out.json", cwd=tmp_path)
    told = json.loads((tmp_path / "out.json").read_text())
    assert set(told) >= {"knn", "linear", "bg_gap", "localisation"} and "right" not in told
    assert f"{100 * told['linear']['mixed_rand']:.1f}" in said and "centre map" in said
    assert "only_fg" not in dilo(*command, cwd=tmp_path)[0]
    lines = [
        f"{'train' if n < 40 else 'val'}/c{label}/{n}.png,{','.join(map(str, box))}"
        for n, (label, box) in enumerate(zip(world.labels, world.boxes))
    ]
    (tmp_path / "boxes.csv").write_text("\n".join(["path,x0,y0,x1,y1", *lines]))
    said, _ = dilo(*command, "--boxes", "boxes.csv", cwd=tmp_path)
    assert "only_fg" not in said and "class_activation map" in said and "corloc" in said
    (tmp_path / "boxes.csv").write_text("path,x0,y0,x1\n")
    assert "boxes.csv: has no column y1" in dilo(*command, "--boxes", "boxes.csv", status=2, cwd=tmp_path)[1]
    (tmp_path / "settings.json").write_text('{"views.size": 32}')  # a folder as pre-training leaves it
    shutil.copy(tmp_path / "e.safetensors", tmp_path / "encoder.safetensors")
    assert dilo("evaluate", ".", "photos", "--k", "5", cwd=tmp_path)[0] == dilo(*command, cwd=tmp_path)[0]
    _, error = dilo(*command, "--k", "500", status=2, cwd=tmp_path)
    assert "k = 500 is not allowed: photos/train holds 40 photos" in error
    (tmp_path / "photos/val/c3/43.png").write_bytes(b"no picture")
    assert "43.png" in dilo(*command, status=2, cwd=tmp_path)[1]
    _, error = dilo(*command, "--challenge", "challenge", status=2, cwd=tmp_path)
    assert "other classes" in error  # each split has the even or the odd ones alone
    shutil.rmtree(tmp_path / "challenge/mixed_rand")
    (tmp_path / "map.json").write_text(json.dumps({c: c // 2 if c % 2 == 0 else -1 for c in range(10)}))
    said, _ = dilo(*command, "--challenge", "challenge", "--class-map", "map.json", cwd=tmp_path)
    assert "original" in said and "bg_gap" not in said
    _, error = dilo("evaluate", ".", "photos", "--coco", status=2, cwd=tmp_path)
    assert "annotations/instances_train2017.json: no such file" in error
    (tmp_path / "annotations").mkdir()
    for split, part in (("train2017", range(40)), ("val2017", range(40, 60))):
        (tmp_path / split).mkdir()
        for number in part:
            Image.fromarray(world.images[number].transpose(1, 2, 0)).save(tmp_path / split / f"{number}.png")
        told = {
            "images": [{"id": number, "file_name": f"{number}.png"} for number in part],
            "categories": [{"id": c, "name": f"c{c}"} for c in range(10)],
            "annotations": [{"image_id": number, "category_id": int(world.labels[number])} for number in part],
        }
        (tmp_path / f"annotations/instances_{split}.json").write_text(json.dumps(told))
    said, _ = dilo("evaluate", ".", ".", "--coco", "--json", "coco.json", cwd=tmp_path)
    told = json.loads((tmp_path / "coco.json").read_text())
    assert said == f"mAP {100 * told['map']:.1f} over 10 classes, by chance {100 * told['chance']:.1f}\n"


@pytest.fixture(scope="module")
def cat():
    return Image.fromarray(data.cat()).resize((180, 120))


@pytest.fixture(scope="module")
def photos(tmp_path_factory, cat):
    "Twelve photos."
    folder = tmp_path_factory.mktemp("photos")
    for i in range(12):
        cat.rotate(30 * i, fillcolor=(90, 20 * i, 60)).save(folder / f"{i:02}.png")
    return folder


def test_installed_command_explains_itself():
    command = Path(sys.executable).with_name("dilo")
    text = subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout
    for name in ("saliency", "preview", "pretrain", "export", "evaluate", "saliency-score", "saliency-train"):
        assert name in text
        assert "example: dilo" in dilo(name, "--help")[0]


def test_photos_of_every_kind(tmp_path, cat):
    folder, out = tmp_path / "photos", tmp_path / "maps"
    (folder / "sub").mkdir(parents=True)
    grey = np.asarray(cat.convert("L"))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    cat.save(folder / "rgb.png")
    cat.convert("L").save(folder / "grey.png")
    Image.fromarray(np.dstack([np.asarray(cat), np.full_like(grey, 255)])).save(folder / "rgba.png")
    Image.fromarray(grey.astype(np.uint16) << 8).save(folder / "deep.png")
    cat.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "palette.gif")
    cat.convert("CMYK").save(folder / "sub/cmyk.jpg", quality=95)
    cat.rotate(90, expand=True).save(folder / "turned.jpg", quality=95, exif=exif)
    Image.new("RGB", (60, 40), (9, 120, 60)).save(folder / "constant.png")
    cat.resize((1, 50)).save(folder / "line.png")
    cat.resize((3, 5)).save(folder / "tiny.png")
    cat.convert("1").save(folder / "bits.tif")
    stdout, stderr = dilo("saliency", folder, "--out", out, "--jobs", 1, "--array", 32)
    assert "11 maps" in stdout and "100%" in stderr and re.search(r"photo/s|s/photo", stderr)
    index = pd.read_csv(out / "index.csv").set_index("photo")
    assert len(index) == 11 and index.problem.isna().all()
    assert np.load(out / "maps.npy", mmap_mode="r").shape == (11, 1, 32, 32)
    maps = {photo: np.asarray(Image.open(out / row["map"])) for photo, row in index.iterrows()}
    for photo, row in index.iterrows():
        assert maps[photo].dtype == np.uint8 and maps[photo].shape == (row.height, row.width), photo
    assert maps["line.png"].shape == (50, 1) and maps["tiny.png"].shape == (5, 3)
    assert maps["turned.jpg"].shape == (120, 180), "EXIF says how it is held"
    assert (maps["constant.png"] == 0).all()
    assert (maps["rgba.png"] == maps["rgb.png"]).all() and (maps["deep.png"] == maps["grey.png"]).all()
    for photo in ("sub/cmyk.jpg", "turned.jpg", "palette.gif"):
        assert np.abs(maps[photo].astype(int) - maps["rgb.png"]).mean() < 40, photo


def test_every_method(tmp_path, photos):
    for method in ("rbd", "gs", "mr", "mc", "mb", "sr", "ft", "centre", "full_box"):
        dilo("saliency", photos, "--out", tmp_path / method, "--method", method, "--jobs", 1, "--quiet")
        assert len(digests(tmp_path / method)) == 12
    assert len({tuple(digests(tmp_path / m).values()) for m in ("rbd", "gs", "mr", "mc", "mb", "sr", "ft")}) == 7


def test_broken_photos_are_listed_and_the_rest_goes_on(tmp_path, cat):
    folder, out = tmp_path / "photos", tmp_path / "maps"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        cat.save(folder / name)
    whole = (folder / "b.jpg").read_bytes()
    (folder / "b.jpg").write_bytes(whole[: len(whole) // 3])
    (folder / "not.png").write_text("not an image")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("no photo, and not listed")
    _, stderr = dilo("saliency", folder, "--out", out, "--quiet", "--jobs", 1, status=1)
    assert sorted(line.split(":")[0] for line in stderr.splitlines()) == ["b.jpg", "empty.jpg", "not.png"]
    assert sorted(digests(out)) == ["a.png", "c.png"]
    before = digests(out) | {"mtime": (out / "a.png").stat().st_mtime_ns}
    (folder / "b.jpg").write_bytes(whole)
    (folder / "not.png").unlink()
    (folder / "empty.jpg").unlink()
    dilo("saliency", folder, "--out", out, "--quiet", "--jobs", 1)
    assert (out / "a.png").stat().st_mtime_ns == before["mtime"], "what was there is kept"
    assert sorted(digests(out)) == ["a.png", "b.png", "c.png"] and pd.read_csv(out / "index.csv").problem.isna().all()


def test_large_photos_need_little_memory(tmp_path):
    "8000 x 6000 px, as JPEG and as PNG: the pixels of one are 144 MB."
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    large = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).resize((8000, 6000))
    large.save(folder / "large.jpg")
    large.save(folder / "large.png", compress_level=1)
    del large
    code = f"""
from dilo.saliency import saliency_folder
before = peak()
table = saliency_folder({str(folder)!r}, {str(tmp_path / "maps")!r}, progress=False)
assert table.problem.isna().all() and (table.width == 8000).all(), table
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", PEAK + code], capture_output=True, text=True, env=ENV, check=True)
    grown = int(done.stdout) / 2**10
    print(f"peak memory grew by {grown:.0f} MiB")
    assert grown < 900, f"{grown:.0f} MiB"
    for ending in ("jpg", "png"):
        assert Image.open(tmp_path / f"maps/large.{ending}.png").size == (8000, 6000)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["saliency", "none", "--out", "maps"], "none: no such folder"),
        (["saliency", "empty", "--out", "maps"], "empty: holds no photos"),
        (["saliency", "photos", "--out", "file"], "file"),
        (["saliency", "photos", "--out", "maps", "--method", "bms"], "invalid choice: 'bms'"),
        (["saliency", "photos", "--out", "maps", "--size", "0"], "argument --size: 0 is not allowed"),
        (["saliency", "photos", "--out", "maps", "--jobs", "0"], "--jobs: 0 is not allowed"),
        (["saliency", "photos", "--out", "maps", "--array", "0"], "argument --array: 0 is not allowed"),
        (["saliency", "photos", "--out", "maps", "--method", "net"], "needs --weights"),
        (["saliency", "photos", "--out", "maps", "--method", "net", "--weights", "file"], "file: cannot be read"),
        (["saliency", "photos", "--out", "maps", "--method", "activation", "--weights", "file"], "as weights"),
        (["saliency", "photos", "--out", "maps", "--backend", "ray"], "pip install ray"),
        (["preview", "none.jpg"], "none.jpg: no such file"),
        (["preview", "photos"], "photos: is a folder; give a photo"),
        (["preview", "pipe.jpg"], "pipe.jpg: is no regular file; give a photo"),
        (["preview", "photos/a.png", "--out", "file/sheet.png"], "file/sheet.png: file is no folder; give another place"),
        (["saliency", "photos/a.png", "--out", "maps"], "photos/a.png: is a file; give a folder"),
        (["saliency-score", "photos", "none"], "none: no such folder"),
        (["saliency-score", "photos", "photos"], "a.png: holds colours; a map or mask is grey"),
        (["saliency-score", "photos", "photos", "--csv", "none/s.csv"], "none/s.csv: there is no folder none"),
        (["preview", "file"], "file: cannot be read"),
        (["preview", "photos/a.png", "--others", "empty"], "empty: holds no photos"),
        (["preview", "photos/a.png", "--others", "photos"], "photos: holds 1 photos; at least 3 are needed"),
        (["preview", "photos/a.png", "--map", "file"], "file: cannot be read"),
        (["preview", "photos/a.png", "--size", "0"], "argument --size: 0 is not allowed"),
        (["preview", "photos/a.png", "--out", "sheet.doc"], "--out is sheet.doc"),
        (["preview", "photos/a.png", "--out", "none/sheet.png"], "none/sheet.png"),
        (["evaluate", "none.safetensors", "photos"], "none.safetensors: no such file or folder"),
        (["evaluate", "file", "none"], "none: no such folder"),
        (["evaluate", "file", "photos", "--json", "none/out.json"], "none/out.json: there is no folder none"),
        (["evaluate", "file", "photos"], "file: cannot be read as weights"),
        (["evaluate", "empty", "photos"], "empty/encoder.safetensors: no encoder here"),
        (["evaluate", "file", "photos", "--coco", "--masks", "empty"], "--coco has labels and boxes of its own"),
        (["evaluate", "file", "photos", "--masks", "empty", "--boxes", "file"], "leave one of masks and boxes out"),
        (["saliency", "photos", "--out", "maps", "--methd", "mr"], "usage: dilo saliency [-h]"),
        (["saliency", "photos", "--out", "maps", "--methd", "mr"], "unrecognized arguments: --methd mr"),
        (["pretrain", "photos", "--out", "run", "--recipe", "dino"], "recipe 'dino' is not known; allowed: instdisc"),
        (["evaluate", "file", "photos", "--class-map", "file"], "--class-map is for --challenge"),
        (["evaluate", "file", "photos", "--challenge", "empty", "--masks", "empty"], "leave one out"),
        (["saliency-score", "photos", "empty"], "empty"),
        (["saliency-train", "photos", "--out", "net.pt"], "ends in .safetensors"),
        (["saliency-train", "photos", "--masks", "empty", "--out", "net.safetensors"], "empty: holds no photos"),
        ([], "COMMAND"),
    ],
)
def test_mistakes_are_said_in_a_line(tmp_path, cat, arguments, said):
    for name in ("photos", "empty"):
        (tmp_path / name).mkdir()
    cat.save(tmp_path / "photos/a.png")
    (tmp_path / "file").write_text("a file")
    os.mkfifo(tmp_path / "pipe.jpg")
    _, stderr = dilo(*arguments, status=2, cwd=tmp_path)
    assert said in stderr, stderr
    assert not (tmp_path / "maps").exists(), "nothing was begun"


def test_preview(tmp_path, cat, photos):
    "Photos of many kinds, with and without others, the same sheet each time."
    cat.save(tmp_path / "cat.jpg")
    cat.convert("L").save(tmp_path / "grey.png")
    cat.convert("RGBA").resize((30, 90)).save(tmp_path / "narrow.png")
    Image.new("RGB", (60, 40), (9, 120, 60)).save(tmp_path / "constant.png")
    mask = Image.new("L", (90, 60))
    mask.paste(255, (20, 10, 70, 50))
    mask.save(tmp_path / "mask.png")
    for name, more in [
        ("cat.jpg", ["--views", "all", "--others", photos]),
        ("cat.jpg", ["--map", tmp_path / "mask.png", "--size", 48]),
        ("grey.png", ["--method", "mb", "--views", "scene"]),
        ("narrow.png", ["--method", "centre", "--views", "multi_crop"]),
        ("constant.png", []),
    ]:
        stdout, _ = dilo("preview", tmp_path / name, "--out", f"{name}.png", *more, cwd=tmp_path)
        assert f"{name}.png: " in stdout and Image.open(tmp_path / f"{name}.png").width > 800
    sheets = []
    for seed in (0, 0, 1):
        dilo("preview", "cat.jpg", "--out", "sheet.png", "--seed", seed, "--quiet", cwd=tmp_path)
        sheets.append((tmp_path / "sheet.png").read_bytes())
    assert sheets[0] == sheets[1] != sheets[2], "same seed, same sheet"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_unwritable_output(tmp_path, photos):
    (tmp_path / "maps").mkdir(mode=0o500)
    assert "maps" in dilo("saliency", photos, "--out", tmp_path / "maps", status=2)[1]


def test_jobs_change_nothing(tmp_path, photos):
    for jobs in (1, 2):
        dilo("saliency", photos, "--out", tmp_path / str(jobs), "--jobs", jobs, "--quiet")
    assert digests(tmp_path / "1") == digests(tmp_path / "2")


def test_killed_run_goes_on(tmp_path, cat):
    folder, whole, killed = (tmp_path / name for name in ("photos", "whole", "killed"))
    folder.mkdir()
    for i in range(60):
        cat.rotate(6 * i, fillcolor=(90, 4 * i, 60)).save(folder / f"{i:02}.png")
    dilo("saliency", folder, "--out", whole, "--quiet", "--jobs", 1)
    command = [sys.executable, "-m", "dilo.cli", "saliency", str(folder), "--out", str(killed), "--quiet", "--jobs", "1"]
    run = subprocess.Popen(command, env=ENV)
    deadline = time.monotonic() + 120
    while len(digests(killed)) < 8:
        assert time.monotonic() < deadline and run.poll() is None, "the run ended or never began"
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not (killed / "index.csv").exists()
    times = {name: (killed / name).stat().st_mtime_ns for name in digests(killed)}
    assert 8 <= len(times) < 60
    dilo("saliency", folder, "--out", killed, "--quiet", "--jobs", 1)
    assert digests(killed) == digests(whole)
    assert (killed / "index.csv").read_bytes() == (whole / "index.csv").read_bytes()
    kept = sum((killed / name).stat().st_mtime_ns == then for name, then in times.items())
    assert kept >= len(times) - 4, "at most the handful in work is made again"
    assert not [file for file in killed.rglob("*") if file.name.endswith(".part")]


def test_kill_ends_a_run_and_its_processes(tmp_path, cat):
    "SIGTERM, as `kill` and schedulers send it: a line and status 130 at once, and the run goes on from there."
    folder, out = tmp_path / "photos", tmp_path / "maps"
    folder.mkdir()
    for i in range(200):
        cat.rotate(i, fillcolor=(90, i, 60)).save(folder / f"{i:03}.png")
    command = [sys.executable, "-m", "dilo.cli", "saliency", str(folder), "--out", str(out), "--quiet", "--jobs", "2"]
    run = subprocess.Popen(command, env=ENV, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / ".progress").exists() or len((out / ".progress").read_text().splitlines()) < 9:
        assert time.monotonic() < deadline and run.poll() is None, "the run ended or never began"
        time.sleep(0.005)
    run.send_signal(signal.SIGTERM)
    _, stderr = run.communicate(timeout=60)  # returns only when every process that holds the pipe has ended
    assert run.returncode == 130 and "goes on from here" in stderr and "Traceback" not in stderr, stderr
    known = len((out / ".progress").read_text().splitlines()) - 1
    assert 8 <= known < 200
    dilo("saliency", folder, "--out", out, "--quiet", "--jobs", 1)
    assert len(digests(out)) == 200 and (pd.read_csv(out / "index.csv").method == "rbd").all()


def test_maps_against_masks(tmp_path, photos):
    "A mask is its own perfect map; scores of each image in a table."
    masks = tmp_path / "masks"
    masks.mkdir()
    for file in photos.iterdir():
        mask = np.zeros((120, 180), np.uint8)
        mask[30:90, 40:140] = 255
        Image.fromarray(mask).save(masks / file.name)
    stdout, _ = dilo("saliency-score", masks, masks, "--csv", tmp_path / "scores.csv")
    scores = dict(line.split() for line in stdout.splitlines())
    assert scores["max_f"] == scores["iou"] == scores["s_measure"] == "1.0000" and scores["mae"] == "0.0000"
    assert len(pd.read_csv(tmp_path / "scores.csv")) == 12


def test_a_network_from_masks_and_one_without(tmp_path, cat):
    "Trained by the command, used by the command; called again, it has nothing to do."
    photos, masks = tmp_path / "photos", tmp_path / "masks"
    for folder in (photos, masks):
        folder.mkdir()
    for i in range(4):
        picture, mask = Image.new("RGB", (96, 64), (40, 60 * i, 90)), Image.new("L", (96, 64))
        picture.paste((220, 60, 40), (10 * i + 10, 15, 10 * i + 50, 50))
        mask.paste(255, (10 * i + 10, 15, 10 * i + 50, 50))
        picture.save(photos / f"{i}.jpg")
        mask.save(masks / f"{i}.png")
    (photos / "broken.jpg").write_text("no photo")
    (masks / "broken.png").write_text("no mask")
    for name, more in (("free", []), ("taught", ["--masks", masks])):
        file = tmp_path / f"{name}.safetensors"
        command = ("saliency-train", photos, "--out", file, "--epochs", 3, "--jobs", 1, "--quiet", *more)
        _, stderr = dilo(*command, status=1)
        assert "broken.jpg" in stderr
        written = file.stat().st_mtime_ns
        dilo(*command, status=1)
        assert file.stat().st_mtime_ns == written
        maps = tmp_path / name
        dilo("saliency", masks, "--out", maps, "--method", "net", "--weights", file, "--jobs", 1, "--quiet", status=1)
        assert len(digests(maps)) == 4
