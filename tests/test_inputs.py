"What a user hands over: nothing of it is written over, and nothing of it is read wrongly in silence."

import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data
from test_cli import dilo

from dilo.cli import main
from dilo.files import claimed
from dilo.data import decode_photo, list_photos, read_mask
from dilo.saliency import maps_array, saliency_folder
from dilo.training import Encoder, export_run, save_encoder


def sums(folder):
    "The sha256 of every file below a folder."
    return {p.relative_to(folder): hashlib.sha256(p.read_bytes()).digest() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def cat():
    return Image.fromarray(data.cat()).resize((60, 40))


@pytest.fixture
def photos(tmp_path, cat):
    "Four photos."
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        cat.rotate(20 * i).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def labelled(tmp_path, cat):
    "Two classes, four photos each to learn from and two to test, each photo another; and an encoder, e.safetensors."
    for number in range(12):
        split, label = ("train", number % 2) if number < 8 else ("val", number % 2)
        place = tmp_path / f"labelled/{split}/c{label}"
        place.mkdir(parents=True, exist_ok=True)
        cat.rotate(7 * number).save(place / f"{number}.png")
    torch.manual_seed(0)
    made = dict(backbone="resnet18", width=8, stem="small")
    save_encoder(Encoder("resnet18", 8, "small"), tmp_path / "e.safetensors", **made)
    return tmp_path / "labelled"


def test_no_command_writes_over_what_it_was_given(tmp_path, photos):
    before = sums(photos)
    os.symlink(photos, tmp_path / "link")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/0.png").write_text("drawn by hand")
    for command in [
        ("saliency", "photos", "--out", "photos"),
        ("saliency", "photos", "--out", "link"),
        ("saliency", "photos", "--out", "mine"),
        ("saliency", "photos", "--out", "."),
        ("preview", "photos/0.png", "--out", "photos/0.png"),
        ("preview", "photos/0.png", "--out", "photos/1.png"),
        ("preview", "photos/0.png", "--others", "photos", "--out", "photos/sheet.png"),
        ("pretrain", "photos", "--out", "photos"),
        ("pretrain", "photos", "--out", "mine"),
        ("saliency-score", "photos", "photos", "--csv", "photos/0.png"),
        ("saliency-score", "photos", "photos", "--csv", "mine/0.png"),
    ]:
        _, error = dilo(*command, status=2, cwd=tmp_path)
        assert "photos" in error or "mine" in error or "link" in error or "dilo: .:" in error, error
        assert sums(photos) == before, command
    assert (tmp_path / "mine/0.png").read_text() == "drawn by hand"


def test_maps_below_the_photos_are_not_taken_for_photos(tmp_path, photos):
    for _ in range(2):
        stdout, _ = dilo("saliency", "photos", "--out", "photos/maps", "--method", "ft", "--jobs", 1, cwd=tmp_path)
        assert "4 maps" in stdout
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/a.png").write_bytes((photos / "maps/0.png").read_bytes())
    _, error = dilo("saliency", "copy", "--out", "m", "--method", "ft", "--jobs", 1, "--quiet", status=1, cwd=tmp_path)
    assert "`dilo saliency` wrote it" in error


def test_a_link_in_the_folder_of_maps_leads_no_map_onto_a_photo(tmp_path, photos):
    (photos / "deep/er").mkdir(parents=True)
    shutil.copy(photos / "0.png", photos / "deep/er/0.png")
    saliency_folder(photos, tmp_path / "m", "ft", progress=False)
    before = sums(photos)
    for link in ("deep", "deep/er"):
        shutil.rmtree(tmp_path / "m/deep")
        (tmp_path / "m" / link).parent.mkdir(exist_ok=True)
        (tmp_path / "m" / link).symlink_to(photos / link)
        with pytest.raises(ValueError, match="a link leads out of"):
            saliency_folder(photos, tmp_path / "m", "sr", progress=False)
        assert sums(photos) == before
        (tmp_path / "m" / link).unlink()
        saliency_folder(photos, tmp_path / "m", "ft", progress=False)


def test_no_map_outlives_its_photo_and_no_broken_one_stays(tmp_path, photos, cat, capsys):
    cat.save(photos / "a.jpg")
    saliency_folder(photos, tmp_path / "m", "ft", progress=False)
    assert (tmp_path / "m/a.png").is_file()
    cat.rotate(90).save(photos / "a.png")
    saliency_folder(photos, tmp_path / "m", "ft")
    there = {p.name for p in (tmp_path / "m").glob("a*")}
    assert there == {"a.jpg.png", "a.png.png"} and "1 map removed" in capsys.readouterr().out
    (photos / "a.jpg").unlink()
    saliency_folder(photos, tmp_path / "m", "ft", progress=False)
    assert {p.name for p in (tmp_path / "m").glob("a*")} == {"a.png"}, "the map of the photo that is there"
    Image.new("L", (5, 5)).save(tmp_path / "m/mine.png")
    whole = {p: p.read_bytes() for p in (tmp_path / "m").glob("*.png")}
    (tmp_path / "m/0.png").write_bytes(b"xx")
    with pytest.raises(ValueError, match="0.png: cannot be read as a map"):
        maps_array(tmp_path / "m", 8)
    saliency_folder(photos, tmp_path / "m", "ft", progress=False)
    assert {p: p.read_bytes() for p in (tmp_path / "m").glob("*.png")} == whole, "made again; mine.png is left alone"


def test_what_has_no_effect_or_cannot_be_is_refused(tmp_path, photos, labelled, capsys):
    save_encoder(Encoder("resnet18", 8, "small"), tmp_path / "e.safetensors", backbone="resnet18", width=8, stem="small")
    for command, said in [
        (["pretrain", photos, "--out", tmp_path / "r", "--jobs", "0"], "--jobs: 0 is not allowed"),
        (["saliency-train", photos, "--out", tmp_path / "n.safetensors", "--jobs", "-3"], "--jobs: -3 is not allowed"),
        (["pretrain", photos, "--out", tmp_path / "r", "--set", "data.folder=/x"], "data.folder has no effect"),
        (["pretrain", photos, "--out", tmp_path / "r", "--set", "study.seeds=[1]"], "study.seeds has no effect"),
        (["pretrain", photos, "--out", tmp_path / "r", "--set", "recipes.dilo=3"], "recipes.dilo"),
        (["evaluate", tmp_path / "e.safetensors", labelled, "--size", "100000"], "--size: 100000 is not allowed"),
        (["evaluate", tmp_path / "e.safetensors", labelled, "--mask-class", "1"], "--mask-class is for --masks"),
        (["evaluate", tmp_path / "e.safetensors", labelled, "--coco", "--k", "3"], "leave --masks, --mask-class"),
        (["evaluate", tmp_path / "e.safetensors", labelled, "--boxes", photos], "is a folder; give a CSV file"),
        (["saliency-train", photos, "--out", tmp_path / "n.safetensors", "--mask-class", "1"], "is for --masks"),
        (["preview", photos / "0.png", "--out", tmp_path / "s.png", "--mask-class", "1"], "is for --map"),
    ]:
        try:
            status = main([str(word) for word in command])
        except SystemExit as stop:
            status = stop.code
        error = capsys.readouterr().err
        assert status == 2 and said in error and "study is missing" not in error, (command, error)
    assert not (tmp_path / "r").exists() and not (tmp_path / "n.safetensors").exists()


def test_an_end_that_nobody_asked_for_is_told_as_it_is(tmp_path, photos, labelled, capsys, monkeypatch):
    "Too little memory, or Ctrl-C: one line, and it promises only what holds."
    about = dict(backbone="resnet18", width=8, stem="small", recipe="moco", seed=0)
    save_encoder(Encoder("resnet18", 8, "small"), tmp_path / "encoder.safetensors", **about)
    command = ["evaluate", str(tmp_path), str(labelled)], ["saliency", str(photos), "--out", str(tmp_path / "m")]

    def stopped(error):
        def stop(*_, **__):
            raise error

        return stop

    for place, words in (("dilo.evaluation.evaluate_photos", command[0]), ("dilo.saliency.saliency_folder", command[1])):
        monkeypatch.setattr(place, stopped(MemoryError("Unable to allocate 2.46 TiB")))
        assert main(words) == 2
        assert "memory does not suffice (Unable to allocate 2.46 TiB)" in capsys.readouterr().err
        monkeypatch.setattr(place, stopped(KeyboardInterrupt()))
        assert main(words) == 130
        goes_on = words[0] == "saliency"
        assert ("the same command goes on from here" if goes_on else "nothing was kept") in capsys.readouterr().err


def test_a_run_without_rows_in_its_history_is_named(tmp_path):
    (tmp_path / "history.csv").write_text("loss\n")
    (tmp_path / "settings.json").write_text(json.dumps({"seed": 0, "model.backbone": "resnet18", "model.width": 8} | {
        "model.stem": "small", "recipe.method": "moco_v2"}))  # fmt: skip
    about = dict(backbone="resnet18", width=8, stem="small", recipe="moco", seed=0)
    save_encoder(Encoder("resnet18", 8, "small"), tmp_path / "encoder.safetensors", **about)
    with pytest.raises(ValueError, match="history.csv: has 0 rows, and needs 1"):
        export_run(tmp_path, tmp_path / "out")


def test_a_colour_that_stands_for_nothing_is_white_in_16_bits_too(tmp_path):
    "PNG of 16 bits a channel with a tRNS chunk, by hand: a pixel of the transparent colour, and one that is nearly of it."
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = struct.pack(">6H", 1000, 2000, 3000, 1000, 2000, 3001)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    png += chunk(b"tRNS", struct.pack(">3H", 1000, 2000, 3000))
    png += chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    image, _ = decode_photo(png, "a.png")
    pixels = np.asarray(image)[0]
    assert pixels[0].tolist() == [255, 255, 255] and pixels[1].tolist() == [62, 125, 187]  # of 12 bits


def test_what_is_not_read_is_named(tmp_path, photos, cat):
    (photos / "IMG_1.CR2").write_text("raw")
    cat.save(photos / "bare", "PNG")
    cat.save(os.fsencode(photos) + b"/caf\xe9.png", "PNG")
    (photos / "gone.png").symlink_to(photos / "nowhere.png")
    (photos / "notes.txt").write_text("no photo")
    stdout, error = dilo("saliency", "photos", "--out", "m", "--method", "ft", "--jobs", 1, cwd=tmp_path)
    assert "4 maps" in stdout and "1 other files" in error
    for name in ("IMG_1.CR2", "bare", "caf\\xe9.png", "gone.png"):
        assert name in error, error


def test_one_reader_for_all_commands(tmp_path, labelled, cat):
    "Every kind that one command reads the others read, as the same pixels."
    grey = np.asarray(cat.convert("L"))
    kinds = {"a.gif": cat, "b.jp2": cat, "d.png": Image.fromarray(grey.astype(np.uint16)), "e.tif": cat,
             "f.png": cat.convert("RGBA"), "g.webp": cat}  # fmt: skip
    for number, (name, picture) in enumerate(kinds.items()):
        picture.rotate(3 * number).save(labelled / "train/c0" / name)
    (labelled / "train/c0/.hidden.png").write_text("no photo")
    _, error = dilo("saliency", labelled, "--out", "m", "--method", "ft", "--jobs", 1, "--quiet", cwd=tmp_path)
    assert error == ""
    assert np.asarray(Image.open(tmp_path / "m/train/c0/d.png")).max() > 0, "levels 0 to 255 in 16 bits are no black photo"
    dilo("evaluate", "e.safetensors", labelled, "--size", 32, cwd=tmp_path)
    command = ("pretrain", labelled, "--out", "run", "--recipe", "moco", "--dry-run", "--size", 32, "--set", "model.width=8")
    assert "two steps" in dilo(*command, "--set", "data.size=40", cwd=tmp_path)[0]


def test_numbers_from_nonsense_are_refused(tmp_path, labelled):
    said, _ = dilo("evaluate", "e.safetensors", "labelled", "--size", 32, "--json", "out.json", cwd=tmp_path)
    assert "4 neighbours vote" in said, "the default follows the data"
    json.loads((tmp_path / "out.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    for option, value in (("--k", 0), ("--k", -1), ("--size", 0)):
        assert "is not allowed" in dilo("evaluate", "e.safetensors", "labelled", option, value, status=2, cwd=tmp_path)[1]
    weights = Encoder("resnet18", 8, "small")
    torch.nn.init.constant_(weights.conv1.weight, float("nan"))
    save_encoder(weights, tmp_path / "nan.safetensors", backbone="resnet18", width=8, stem="small")
    assert "no numbers" in dilo("evaluate", "nan.safetensors", "labelled", status=2, cwd=tmp_path)[1]
    save_encoder(Encoder("resnet18", 16, "small"), tmp_path / "w.safetensors", backbone="resnet18", width=8, stem="small")
    assert "w.safetensors: holds no encoder" in dilo("evaluate", "w.safetensors", "labelled", status=2, cwd=tmp_path)[1]
    for label in (0, 1):
        for photo in (labelled / f"val/c{label}").iterdir():
            photo.unlink()
        for photo in (labelled / f"train/c{label}").iterdir():
            (labelled / f"val/c{label}" / photo.name).write_bytes(photo.read_bytes())
    assert "is in train, too" in dilo("evaluate", "e.safetensors", "labelled", status=2, cwd=tmp_path)[1]
    for split in ("train", "val"):
        (labelled / split / "c1").rename(tmp_path / f"{split}-c1")
    assert "one class" in dilo("evaluate", "e.safetensors", "labelled", status=2, cwd=tmp_path)[1]


def test_settings_are_read_as_dvc_writes_them(tmp_path, photos):
    command = ("pretrain", "photos", "--out", "run", "--recipe", "moco", "--dry-run", "--size", 32)
    small = ("--set", "model.width=8", "--set", "data.size=40")
    (photos / "raw.nef").write_text("of a camera")
    said, error = dilo(*command, *small, "--set", "train.lr=1e-4", "--set", "train.weight_decay=1e-05", cwd=tmp_path)
    assert "batches of 4, learning rate 0.0001" in said, "four photos are enough"
    assert error.count("1 not read") == 1, error
    for change in ("train.lr=[1", "recipes.moco=null", "=1", "a..b=1", "train=3", "recipes=[]", "train.lr=.nan"):
        _, error = dilo(*command, "--set", change, status=2, cwd=tmp_path)
        assert len(error) < 1000, error
    _, error = dilo(*command, "--batch", 16, status=2, cwd=tmp_path)
    assert "train.batch = 16 is not allowed: at most the 4 images" in error


def test_broken_files_of_a_run_are_named(tmp_path, photos):
    command = ("pretrain", "photos", "--out", "run", "--recipe", "moco", "--epochs", 1, "--size", 32, "--quiet",
               "--set", "model.width=8", "--set", "data.size=40")  # fmt: skip
    dilo(*command, cwd=tmp_path)
    with claimed(tmp_path / "run", "dilo pretrain"):
        assert f"process {os.getpid()} on" in dilo(*command, status=2, cwd=tmp_path)[1]
    run = tmp_path / "run"
    for name in ("settings.json", "history.csv", "arrays/images.npy"):
        whole = (run / name).read_bytes()
        (run / name).write_bytes(whole[: len(whole) // 3] if name != "history.csv" else b"")
        assert name in dilo(*command, status=2, cwd=tmp_path)[1]
        (run / name).write_bytes(whole)
    (run / "encoder.safetensors").unlink()
    for content in (b"", b"cut", (run / "last.pt").read_bytes()[:1000]):
        (run / "last.pt").write_bytes(content)
        assert "last.pt: cannot be read as a checkpoint" in dilo(*command, status=2, cwd=tmp_path)[1]
    torch.save({"state_dict": {}}, run / "last.pt")
    assert "last.pt: cannot be read as a checkpoint" in dilo(*command, status=2, cwd=tmp_path)[1]


def test_a_cut_record_costs_only_its_maps(tmp_path, photos):
    command = ("saliency", "photos", "--out", "m", "--method", "ft", "--jobs", 1, "--quiet")
    dilo(*command, cwd=tmp_path)
    lines = (tmp_path / "m/.progress").read_text().splitlines()
    (tmp_path / "m/.progress").write_text("\n".join([lines[0], lines[1][:30], *lines[2:]]) + "\n")
    dilo(*command, cwd=tmp_path)


def test_masks_are_read_by_one_reader(tmp_path, labelled, cat):
    "Cut-outs and class numbers are understood; what could mean two things is refused, by each command."
    box = np.zeros((40, 60), np.uint8)
    box[10:30, 15:45] = 255

    def write(picture):
        for photo in labelled.rglob("*.png"):
            file = tmp_path / "masks" / photo.relative_to(labelled)
            file.parent.mkdir(parents=True, exist_ok=True)
            picture.save(file)

    classes = Image.fromarray(box // 17)  # 0 and 15
    classes.putpalette([0, 0, 0, *([90, 10, 200] * 20)])
    score, found = ("saliency-score", "masks", "masks"), []
    evaluate = ("evaluate", "e.safetensors", "labelled", "--size", 32, "--masks", "masks")
    for picture, more in [
        (Image.fromarray(box), ()),
        (Image.fromarray(np.dstack([np.asarray(cat), box])), ()),
        (classes, ("--mask-class", 15)),
    ]:
        write(picture)
        found.append(dilo(*evaluate, *more, cwd=tmp_path)[0])
    assert found[0] == found[1] == found[2]
    for picture in (classes, Image.fromarray(box // 255), Image.fromarray(box * 0)):
        write(picture)
        for command in (score, evaluate, ("saliency-train", "labelled", "--masks", "masks", "--out", "n.safetensors")):
            assert "masks/" in dilo(*command, status=2, cwd=tmp_path)[1]


def test_heic_is_read_like_any_photo(tmp_path, photos, cat):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(cat).save(photos / "IMG_0001.HEIC", quality=-1)
    stdout, error = dilo("saliency", "photos", "--out", "m", "--method", "ft", "--jobs", 1, cwd=tmp_path)
    assert "5 maps" in stdout and "not read" not in error
    assert Image.open(tmp_path / "m/IMG_0001.png").size == cat.size


def test_large_photos_are_read_small_or_refused_with_the_option(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (16320, 12240), "red").save(folder / "large.jpg")
    Image.new("RGB", (20000, 2), "red").save(folder / "panorama.png")
    command = ("saliency", "photos", "--out", "m", "--method", "centre", "--jobs", 1, "--quiet")
    _, error = dilo(*command, "--max-megapixels", 1, status=1, cwd=tmp_path)
    assert "has 200 megapixels, and 1 are allowed (--max-megapixels)" in error
    dilo(*command, cwd=tmp_path)


def malformed(rng):
    "Bytes that are no whole picture: cut, with bits turned over, or nothing of the kind."
    kind = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")[rng.integers(9)]
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (24, 36, 3), dtype=np.uint8)).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    what = rng.integers(3)
    if what == 0:
        return kind, bytes(content[: rng.integers(len(content))])
    if what == 1:
        for place in rng.integers(0, min(200, len(content)), 8):
            content[place] ^= 1 << rng.integers(8)
        return kind, bytes(content)
    return kind, rng.bytes(rng.integers(300))


def test_malformed_pictures_end_no_command_in_a_traceback(tmp_path, labelled, capfd):
    "200 malformed files over all commands: each says what is wrong, and no file changes that it did not write."
    from dilo.cli import main

    rng = np.random.default_rng(0)
    endings = dict(JPEG="jpg", TIFF="tif", JPEG2000="jp2")
    broken = tmp_path / "broken"
    for number in range(200):
        kind, content = malformed(rng)
        place = broken / ("train", "val")[number % 2] / f"c{number // 2 % 2}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.{endings.get(kind, kind.lower())}").write_bytes(content)
    some = sorted(broken.rglob("*.*"))[::10]
    before, whole = sums(broken), sums(labelled)
    commands = [
        ("saliency", broken, "--out", tmp_path / "m", "--method", "ft", "--jobs", 1, "--quiet"),
        ("pretrain", broken, "--out", tmp_path / "run", "--dry-run", "--jobs", 1, "--quiet"),
        ("evaluate", tmp_path / "e.safetensors", broken, "--size", 32),
        ("evaluate", tmp_path / "e.safetensors", broken, "--size", 32, "--masks", broken),
        ("saliency-score", broken, broken),
        ("saliency-train", broken, "--masks", broken, "--out", tmp_path / "n.safetensors", "--jobs", 1, "--quiet"),
        *(("preview", file, "--out", tmp_path / "s.png", "--method", "centre", "--size", 16, "--quiet") for file in some),
        *(("preview", labelled / "train/c0/0.png", "--map", f, "--out", tmp_path / "s.png", "--size", 16) for f in some),
        *(("saliency", labelled, "--out", tmp_path / "w", "--method", m, "--weights", f) for f in some[:4]
          for m in ("net", "activation")),
        *(("evaluate", f, labelled) for f in some[:8]),
        *(("evaluate", tmp_path / "e.safetensors", labelled, "--boxes", f) for f in some[:8]),
    ]  # fmt: skip
    for command in commands:
        status = main([str(argument) for argument in command])
        error = capfd.readouterr().err
        assert status in (0, 1, 2) and "Traceback" not in error and "did not foresee" not in error, (command, error)
        assert status == 0 or error.strip(), command
    assert sums(broken) == before and sums(labelled) == whole


@pytest.fixture
def little(tmp_path):
    "A disk of 3 MB."
    place = tmp_path / "little"
    place.mkdir()
    if shutil.which("mount") is None or subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place], capture_output=True
    ).returncode:
        pytest.skip("needs to be allowed to mount a small disk")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_is_named_and_nothing_is_lost(tmp_path, photos, little):
    small = ("--recipe", "moco", "--size", 32, "--quiet", "--set", "data.size=32", "--set")
    rng = np.random.default_rng(0)
    (tmp_path / "noise").mkdir()
    for number in range(40):
        noise = Image.fromarray(rng.integers(0, 256, (400, 400, 3), dtype=np.uint8))
        noise.save(tmp_path / f"noise/{number}.jpg")
    for command in [
        ("pretrain", photos, "--out", little / "run", "--epochs", 2, *small, "model.width=16"),
        ("saliency-train", "noise", "--out", little / "n.safetensors", "--epochs", 3, "--jobs", 1, "--quiet"),
        ("saliency", "noise", "--out", little / "m", "--method", "sr", "--array", 400, "--jobs", 1, "--quiet"),
    ]:
        _, error = dilo(*command, status=2, cwd=tmp_path)
        assert "No space left on device" in error and str(little) in error, error
        assert not list(little.rglob("*.part"))
        for file in sorted(little.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()


names = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(names, st.sampled_from(["", ".png", ".JPG", ".txt", ".CR2", ".heic"])), max_size=8))
def test_every_file_of_a_folder_is_listed_named_or_counted(entries):
    with tempfile.TemporaryDirectory() as folder:
        made = set()
        for name, ending in entries:
            if name not in (".", ".."):
                made.add(name + ending)
                (Path(folder) / (name + ending)).write_bytes(b"something")
        try:
            found = list_photos(folder)
        except ValueError as error:
            assert "holds no photos" in str(error)
            return
        unread = [name for some in found.unread.values() for name in some]
        assert len(found.photos) + len(unread) + found.others + found.hidden == len(made)
        assert {p.as_posix() for p in found.photos} <= made and set(unread) <= made


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["x.png", "x.jpg", "x.heic"]))
def test_any_bytes_are_a_photo_or_a_named_error(content, name):
    try:
        image, size = decode_photo(content, name)
    except ValueError as error:
        assert str(error).startswith(f"{name}: ")
    else:
        assert image.mode == "RGB" and image.size == size[::-1]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]), st.integers(1, 6), st.integers(1, 6), st.data())
def test_any_picture_is_a_mask_with_foreground_or_a_named_error(mode, height, width, data):
    count = height * width * {"LA": 2, "RGB": 3, "RGBA": 4}.get(mode, 1)
    values = data.draw(st.lists(st.sampled_from([0, 1, 2, 127, 128, 254, 255]), min_size=count, max_size=count))
    pixels = np.array(values, np.uint16 if mode == "I;16" else np.uint8).reshape(height, width, -1)
    pixels = pixels if mode in ("LA", "RGB", "RGBA") else pixels[..., 0]
    picture = Image.fromarray(pixels > 0) if mode == "1" else Image.fromarray(pixels)
    if mode == "P":
        picture.putpalette(data.draw(st.sampled_from([list(range(256)) * 3, sorted(list(range(256)) * 3)])))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "m.png"
        picture.save(file)
        try:
            mask = read_mask(file, (height, width))
        except ValueError as error:
            assert str(error).startswith(f"{file}: ")
        else:
            assert mask.dtype == np.uint8 and mask.shape == (height, width) and mask.max() >= 128
        if mode in ("L", "P"):
            chosen = values[0]
            assert (read_mask(file, mask_class=chosen) == (pixels == chosen) * 255).all()


def test_photos_may_lie_in_several_folders_and_lists(tmp_path, photos):
    (tmp_path / "more").mkdir()
    shutil.copy(photos / "0.png", tmp_path / "more/same.png")
    (tmp_path / "some.txt").write_text("photos/1.png\nmore/same.png\n")
    quick = ["--epochs", 1, "--batch", 2, "--size", 16, "--set", "data.size=24", "--set", "train.workers=0", "--quiet"]
    _, told = dilo("pretrain", "photos", "more", "some.txt", "--recipe", "moco", "--out", "run", *quick, cwd=tmp_path)
    assert "1 of 5 photos are copies of others, and stay in: more/same.png is photos/0.png" in told
    assert json.loads((tmp_path / "run/settings.json").read_text())["count"] == 5
    (tmp_path / "gone.csv").write_text("path\nphotos/1.png\nphotos/9.png\n")
    _, told = dilo("pretrain", "photos", "gone.csv", "--out", "other", *quick, status=2, cwd=tmp_path)
    assert "gone.csv, line 3: there is no file photos/9.png" in told and not (tmp_path / "other").exists()
