"`dilo transfer` as a whole: every task, stopped runs, several processes, refusals, and the papers' protocols at their size."

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from dilo.cli import main
from dilo.training import Encoder, save_encoder
from dilo.transfer import PROTOCOLS, protocol_of, transfer, write_transfer_world

TASKS = {
    "detect": ("scenes", "coco", "small_masks"), "segment": ("pixels", "own", "small"),
    "classify": ("objects", "folders", "small"), "attributes": ("objects", "own", "linear"),
    "landmarks": ("objects", "own", "small_heat"),
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_transfer_world(folder, 24, 12)
    about = dict(backbone="resnet18", width=8, stem="small")
    save_encoder(Encoder("resnet18", 8, "small"), folder / "encoder.safetensors", **about)
    return folder


def words(world, task, out, *more):
    part, layout, protocol = TASKS[task]
    given = ["transfer", task, world / "encoder.safetensors", world / part, "--layout", layout, "--protocol", protocol]
    return [*map(str, given), "--out", str(out), *more]


@pytest.mark.parametrize("task", TASKS)
def test_every_task_by_one_command(world, tmp_path, capsys, task):
    length = ["--length", "1"] if task != "attributes" else []
    assert main(words(world, task, tmp_path / "out", "--quiet", *length)) == 0
    assert capsys.readouterr().out == ""
    assert main(words(world, task, tmp_path / "out", *length)) == 0  # reads what is finished
    told = capsys.readouterr().out
    assert "random" in told and "encoder.safetensors" in told and "results.json" in told
    results, page = json.loads((tmp_path / "out/results.json").read_text()), (tmp_path / "out/index.html").read_text()
    assert len(results["scores"]) == 2 and results["made"]["task"] == task and results["command"].startswith("dilo ")
    assert not re.search(r'(src|href)="https?:', page) and page.count("data:image/png") == 2


def run(world, out, *more, **options):
    command = [sys.executable, "-m", "dilo.cli", *words(world, "classify", out, "--batch", "8", *more)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_a_stopped_run_ends_with_the_same_bits(world, tmp_path):
    whole = run(world, tmp_path / "whole", "--length", "60", "--quiet")
    assert whole.wait() == 0, whole.stderr.read()
    stopped = run(world, tmp_path / "stopped", "--length", "60")
    seen = ""
    while "step" not in seen or " 0/" in seen[-60:]:
        seen += stopped.stderr.read(1)
    stopped.send_signal(signal.SIGINT)
    said = stopped.communicate()[1]
    assert stopped.returncode == 130 and "the same command goes on from here" in said, said
    assert (tmp_path / "stopped/encoder/last.pt").exists()
    killed = run(world, tmp_path / "stopped", "--length", "60")
    time.sleep(4)
    killed.kill()
    killed.communicate()
    again = run(world, tmp_path / "stopped", "--length", "60", "--quiet")
    assert again.wait() == 0, again.stderr.read()
    for name in ("encoder", "random"):
        both = [(tmp_path / place / name / "model.safetensors").read_bytes() for place in ("whole", "stopped")]
        assert both[0] == both[1]
    scores = [json.loads((tmp_path / place / "results.json").read_text())["scores"] for place in ("whole", "stopped")]
    assert list(scores[0].values()) == list(scores[1].values())
    assert not [p for p in (tmp_path / "stopped").rglob("*") if p.name.endswith(".part") or p.name == "previous.pt"]


def test_two_processes_share_a_batch(world, tmp_path):
    "With the encoder frozen no statistics depend on the share of a process, so two learn what one learns."
    one = words(world, "classify", tmp_path / "one", "--length", "3", "--batch", "8", "--frozen", "--quiet")
    assert main(one) == 0
    two = words(world, "classify", tmp_path / "two", "--length", "3", "--batch", "8", "--frozen", "--quiet")
    launch = ["accelerate", "launch", "--cpu", "--num_processes", "2", "-m", "dilo.cli", *two]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(launch, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    tables = [np.genfromtxt(tmp_path / name / "encoder/history.csv", delimiter=",", names=True) for name in ("one", "two")]
    assert np.allclose(tables[0]["loss"], tables[1]["loss"], rtol=1e-5)
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    assert results[1]["made"]["processes"] == 2 and results[0]["scores"].keys() == results[1]["scores"].keys()


def test_detection_repeats_to_the_bit(world, tmp_path):
    for name in ("a", "b"):
        assert main(words(world, "detect", tmp_path / name, "--length", "1", "--quiet")) == 0
    assert (tmp_path / "a/encoder/model.safetensors").read_bytes() == (tmp_path / "b/encoder/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "more, told",
    [
        (["--layout", "coco"], "layout = 'coco' is not allowed for classify; allowed: cub"),
        (["--protocol", "voc_c4"], "is not allowed for classify; allowed: finegrained"),
        (["--labels", "0"], "labels = 0.0 is not allowed"),
        (["--protocol", "linear", "--frozen"], "leave --frozen out"),
        (["--protocol", "linear", "--batch", "2"], "leave --batch"),
    ],
)
def test_what_does_not_fit_is_refused(world, tmp_path, capsys, more, told):
    assert main([*words(world, "classify", tmp_path / "out"), *more]) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_broken_photos_are_named_at_once_and_can_be_skipped(tmp_path, capsys):
    write_transfer_world(tmp_path / "world", 24, 12)
    about = dict(backbone="resnet18", width=8, stem="small")
    save_encoder(Encoder("resnet18", 8, "small"), tmp_path / "world/encoder.safetensors", **about)
    photos = sorted((tmp_path / "world/objects/train").rglob("*.png"))
    photos[0].write_bytes(photos[0].read_bytes()[:100])
    photos[5].write_text("no photo")
    command = words(tmp_path / "world", "classify", tmp_path / "out", "--length", "1", "--quiet")
    assert main(command) == 2
    said = capsys.readouterr().err
    assert photos[0].name in said and photos[5].name in said and "2 problems" in said and not (tmp_path / "out").exists()
    assert main([*command, "--skip-broken"]) == 0
    assert "left out for 2 problems" in capsys.readouterr().err
    assert "2 problems of the data set were left out" in (tmp_path / "out/index.html").read_text()
    assert main([*command, "--skip-broken", "--seed", "1"]) == 2
    assert "seed: 0 -> 1" in capsys.readouterr().err


def test_boxes_need_a_resnet(world, tmp_path, capsys):
    pytest.importorskip("timm")
    from dilo.training import build_encoder

    net = build_encoder("timm/convnext_atto", sizes=(64,))
    save_encoder(net, tmp_path / "encoder.safetensors", backbone="timm/convnext_atto", width=64, stem="imagenet", sizes=[64])
    given = ["transfer", "detect", str(tmp_path), str(world / "scenes"), "--layout", "coco", "--out", str(tmp_path / "out")]
    assert main([*given, "--quiet"]) == 2 and "choose a ResNet" in capsys.readouterr().err


# the papers' protocols at their size, on trees of three photos


def photo(path, size=(500, 375), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path)


def text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def voc(root):
    names = ["000001", "000002", "000003"]
    box = "<bndbox><xmin>30</xmin><ymin>40</ymin><xmax>300</xmax><ymax>350</ymax></bndbox>"
    for year in (root / "VOC2007", root / "VOC2012"):
        for n, name in enumerate(names):
            photo(year / f"JPEGImages/{name}.jpg", seed=n)
            told = f"<object><name>{('dog', 'cat', 'car')[n]}</name><difficult>0</difficult>{box}</object>"
            text(year / f"Annotations/{name}.xml", f"<annotation>{told}</annotation>")
            mask = np.zeros((375, 500), np.uint8)
            mask[40:350, 30:300], mask[40:43] = n + 1, 255
            (year / "SegmentationClass").mkdir(exist_ok=True)
            Image.fromarray(mask).save(year / f"SegmentationClass/{name}.png")
        for part in ("Main/trainval", "Main/test", "Segmentation/train", "Segmentation/val"):
            text(year / f"ImageSets/{part}.txt", *names)


def coco(root):
    for split in ("train2017", "val2017"):
        told = dict(images=[], annotations=[], categories=[dict(id=c, name=f"thing {c}") for c in (1, 4, 90)])
        for n in (1, 2, 3):
            photo(root / split / f"{n}.jpg", seed=n)
            told["images"].append(dict(id=n, file_name=f"{n}.jpg", width=500, height=375))
            ring = [[30, 40, 300, 40, 300, 350, 30, 350]]
            told["annotations"].append(dict(id=n, image_id=n, category_id=(1, 4, 90)[n - 1], bbox=[30, 40, 270, 310],
                                            segmentation=ring, iscrowd=0, area=83700))  # fmt: skip
        text(root / f"annotations/instances_{split}.json", json.dumps(told))


def cub(root):
    names = [f"{c + 1:03d}.bird/{n}.jpg" for c in range(2) for n in range(4)]
    for n, name in enumerate(names):
        photo(root / "images" / name, seed=n)
    ids = range(1, 9)
    text(root / "classes.txt", "1 001.bird", "2 002.bird")
    text(root / "images.txt", *(f"{i} {name}" for i, name in zip(ids, names)))
    text(root / "image_class_labels.txt", *(f"{i} {1 + (i > 4)}" for i in ids))
    text(root / "train_test_split.txt", *(f"{i} {i % 2}" for i in ids))
    text(root / "bounding_boxes.txt", *(f"{i} 10.0 10.0 400.0 300.0" for i in ids))


def inat(root):
    for split in ("train", "val"):
        images, notes = [], []
        for n in range(4):
            name = f"train_val2018/Aves/{n % 2}/{split}{n}.jpg"
            photo(root / name, seed=n)
            images.append(dict(id=n, file_name=name, width=500, height=375))
            notes.append(dict(id=n, image_id=n, category_id=n % 2))
        text(root / f"{split}2018.json", json.dumps(dict(images=images, annotations=notes,
             categories=[dict(id=c, name=f"kind {c}", supercategory="Aves") for c in (0, 1)])))  # fmt: skip


def rafdb(root):
    lines = []
    for split in ("train", "test"):
        for n in range(14):
            photo(root / f"Image/aligned/{split}_{n:05d}_aligned.jpg", (100, 100), n)
            lines.append(f"{split}_{n:05d}.jpg {n % 7 + 1}")
    text(root / "EmoLabel/list_patition_label.txt", *lines)


def affectnet(root):
    for split in ("training", "validation"):
        lines = []
        for n in range(14):
            photo(root / f"Manually_Annotated_Images/{split}/{n}.jpg", (200, 160), n)
            lines.append(f"{split}/{n}.jpg,20,20,100,100,,{n % 7},0.0,0.0")
        text(root / f"{split}.csv", *lines)


def celeba(root):
    names = [f"{n:06d}.jpg" for n in range(1, 7)]
    for n, name in enumerate(names):
        photo(root / "img_align_celeba" / name, (178, 218), n)
    answers = (" ".join(str(1 if (n + k) % 2 else -1) for k in range(40)) for n in range(6))
    text(root / "list_attr_celeba.txt", "6", " ".join(f"Attribute_{k}" for k in range(40)),
         *(f"{name} {values}" for name, values in zip(names, answers)))  # fmt: skip
    text(root / "list_eval_partition.txt", *(f"{name} {(0, 2)[n % 2]}" for n, name in enumerate(names)))


def faces(root):
    spread = np.random.default_rng(0).uniform(100, 250, (68, 2))
    for part in ("afw", "helen/testset", "ibug"):
        for n in range(3):
            photo(root / part / f"{n}.jpg", (400, 360), n)
            points = [f"{x:.2f} {y:.2f}" for x, y in spread + n]
            text(root / part / f"{n}.pts", "version: 1", "n_points: 68", "{", *points, "}")


PAPERS = {
    "voc_c4": ("detect", "voc", voc), "coco_c4_1x": ("detect", "coco", coco),
    "coco_fpn_1x": ("detect", "coco", coco),
    "voc_fcn_moco": ("segment", "voc", voc), "voc_fcn_mmseg": ("segment", "voc", voc), "finegrained": ("classify", "cub", cub),
    "inat_linear": ("classify", "inat18", inat), "expression": ("classify", "rafdb", rafdb),
    "expression_balanced": ("classify", "affectnet", affectnet), "celeba": ("attributes", "celeba", celeba),
    "300w_heat": ("landmarks", "300w", faces),
}  # fmt: skip


def test_every_published_protocol_is_run_dry():
    published = {name for own in PROTOCOLS.values() for name, one in own.items() if one.published != "ours"}
    assert published - set(PAPERS) == {"coco_c4_2x", "coco_fpn_2x"}, "these two are the 1x networks for longer"


@pytest.mark.parametrize("name", PAPERS)
def test_a_protocol_of_the_papers_at_its_size(tmp_path, name):
    "Two steps with a ResNet-50, two photos a step, where the batch of the paper would not fit."
    task, layout, write = PAPERS[name]
    write(tmp_path / "data")
    protocol = protocol_of(task, name)
    options = {} if protocol.schedule is None else dict(batch=2, length=2 if protocol.schedule.steps else 1)
    encoder = Encoder("resnet50", 64, "imagenet").eval().requires_grad_(False)
    scores = transfer(task, encoder, tmp_path / "data", tmp_path / "out", layout=layout, protocol=name, control=False,
                      progress=False, label="dry", **options)["dry"]  # fmt: skip
    numbers = [value for value in scores.values() if isinstance(value, float)]
    assert numbers and all(0 <= value for value in numbers if np.isfinite(value))
    if protocol.schedule is not None:
        made = json.loads((tmp_path / "out/encoder/settings.json").read_text())
        assert float(made["protocol.schedule.lr"]) == protocol.schedule.lr * 2 / protocol.schedule.batch
