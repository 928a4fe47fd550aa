"""`dilo transfer` as a user types it: each task, an interruption, two processes, faults; and a dry run of each published
protocol at the size of its paper, on small trees of the data sets' layouts."""

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image
from safetensors.torch import load_file
from test_cli import ENV, ROOT, dilo

from dilo.cli import main
from dilo.config import Study, Transfer, load_settings
from dilo.study import run_transfer
from dilo.training import Encoder, build_encoder, save_encoder
from dilo.transfer import PROTOCOLS, transfer, write_transfer_world
from dilo.transfer.command import changed, read_layout
from dilo.transfer.loop import Fit, new_accelerator, precise_norm
from dilo.transfer.tasks import TASKS as MINE

TASKS = {  # the data in the folder of the world, and its layout
    "detect": ("scenes", "coco"),
    "segment": ("pixels", "own"),
    "classify": ("objects", "folders"),
    "attributes": ("objects", "own"),
    "landmarks": ("objects", "own"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "The world as data sets of transfer, 24 and 12 images, and an encoder, e.safetensors."
    folder = tmp_path_factory.mktemp("transfer")
    write_transfer_world(folder, 24, 12)
    torch.manual_seed(8)
    save_encoder(Encoder("resnet18", 8, "small"), folder / "e.safetensors", backbone="resnet18", width=8, stem="small")
    return folder


def command_of(place, task, out, *more):
    "The words behind `dilo` for a task of the world."
    data, layout = TASKS[task]
    told = ["transfer", task, place / "e.safetensors", place / data, "--layout", layout, "--out", out, *more]
    return [str(word) for word in told]


def contents(folder):
    "The bytes of every file below a folder, by its place; the lock and the mark of the owner are left out."
    files = [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.mark.parametrize("task", TASKS)
def test_each_task_from_the_command_line(place, tmp_path, capsys, task):
    assert main(command_of(place, task, tmp_path / "out", "--length", 1, "--batch", 8)) == 0
    said = capsys.readouterr().out.splitlines()
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert set(results["scores"]) == {str(place / "e.safetensors"), "random"}
    assert [line.split()[0] for line in said[1:3]] == list(results["scores"]) and said[0].split()[0] == "encoder"
    assert "is the main score" in said[3] and str(tmp_path / "out/index.html") in said[3]
    assert results["made"]["protocol.schedule.batch"] == "8" and results["made"]["protocol.schedule.epochs"] == "1"
    page = (tmp_path / "out/index.html").read_text()
    assert page.count("data:image/png") >= 2 and "<html" in page
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//|url\(|@import""", page), "it must open without a network"
    for name in ("encoder", "random"):
        assert np.isfinite(pd.read_csv(tmp_path / f"out/{name}/history.csv").loss).all()
        assert (tmp_path / f"out/{name}/model.safetensors").is_file()


@pytest.mark.parametrize("task", ["attributes", "landmarks"])
def test_a_hidden_layer_in_the_head(place, tmp_path, task):
    options = ["--length", 1, "--batch", 8, "--protocol", "small_mlp", "--quiet"]
    assert main(command_of(place, task, tmp_path / "out", *options)) == 0
    weights = load_file(tmp_path / "out/encoder/model.safetensors")
    assert 256 in [len(value) for key, value in weights.items() if key.startswith("head.")]
    assert np.isfinite(pd.read_csv(tmp_path / "out/encoder/history.csv").loss).all()


@pytest.fixture(scope="module")
def whole(place):
    "A run of `dilo transfer classify` that nothing interrupts; its folder and the options."
    options = ["--length", 40, "--batch", 8, "--quiet"]
    dilo(*command_of(place, "classify", place / "whole", *options))
    return place / "whole", options[:-1]


def until(running, text, seconds=120):
    "Reads what a process writes to its standard error until the text is there."
    told, deadline = "", time.monotonic() + seconds
    while text not in told:
        assert time.monotonic() < deadline and running.poll() is None, told
        told += running.stderr.read(1).decode(errors="replace")
    return told


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_it_goes_on_after_an_interruption(place, whole, tmp_path, how):
    command = command_of(place, "classify", tmp_path / "cut", *whole[1])
    running = subprocess.Popen([sys.executable, "-m", "dilo.cli", *command], env=ENV, stderr=subprocess.PIPE)
    until(running, "step")  # the bar of the first training
    time.sleep(0.2)
    running.send_signal(how)
    told = running.communicate()[1].decode()
    assert not (tmp_path / "cut/encoder/model.safetensors").exists(), "it was cut after the training; make that longer"
    if how == signal.SIGINT:
        assert running.returncode == 130 and "the same command goes on from here" in told and "Traceback" not in told
        assert (tmp_path / "cut/encoder/last.pt").is_file() and re.search(r"stopped after step \d+ of 120", told)
    dilo(*command, "--quiet")
    for name in ("encoder", "random"):
        assert (tmp_path / f"cut/{name}/model.safetensors").read_bytes() == (
            whole[0] / f"{name}/model.safetensors"
        ).read_bytes()
    assert not list((tmp_path / "cut").rglob("*.pt"))


def launched(*words):
    "Runs `dilo ...` in two processes, by what `accelerate launch` runs for two GPUs; on the CPU it would start only one."
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "dilo.cli"]
    env = ENV | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*command, *words], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_two_processes_learn_as_one(place, tmp_path):
    "With a frozen encoder, whose BatchNorm does not see the halves of a batch."
    options = ["--frozen", "--length", 2, "--batch", 8]
    said = launched(*command_of(place, "classify", tmp_path / "two", *options))
    assert said.count("is the main score") == 1
    assert main(command_of(place, "classify", tmp_path / "one", *options, "--quiet")) == 0
    one, two = (load_file(tmp_path / name / "encoder/model.safetensors") for name in ("one", "two"))
    assert set(one) == set(two)
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-5, atol=1e-6, msg=key)
    one, two = (pd.read_csv(tmp_path / name / "encoder/history.csv") for name in ("one", "two"))
    assert len(one) == 6 and list(one.step) == list(two.step)
    np.testing.assert_allclose(one.loss, two.loss, rtol=1e-5)
    told = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    assert told[0]["scores"] == told[1]["scores"]
    assert [one["made"]["processes"] for one in told] == [1, 2]


def test_two_processes_compute_features_once(place, tmp_path):
    launched(*command_of(place, "classify", tmp_path / "two", "--protocol", "linear"))
    assert main(command_of(place, "classify", tmp_path / "one", "--protocol", "linear", "--quiet")) == 0
    one, two = (np.load(tmp_path / name / "encoder/features_test.npz")["features"] for name in ("one", "two"))
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def mean_of(maps):
    return maps.mean((0, 2, 3))


def variance_of(maps):
    return maps.var((0, 2, 3))  # the unbiased one, as torch keeps it


def renewed(rank, count, port, folder):
    "Renews a small network's statistics of BatchNorm in one of `count` processes, and saves them."
    torch.set_num_threads(1)
    if count > 1:
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in told.items()} | {"ACCELERATE_USE_CPU": "true"})
    train, _, _ = read_layout("classify", "folders", folder / "objects", False, print)
    protocol = changed(PROTOCOLS["classify"]["small"], batch=8, length=1)
    torch.manual_seed(1)
    network = MINE["classify"].network(Encoder("resnet18", 8, "small"), protocol, train, False)
    fit = Fit(MINE["classify"], network, train, protocol, 0, folder / "fit", {}, new_accelerator("fp32"), print)
    assert fit.machine.num_processes == count
    shown = []  # what the first BatchNorm is shown, in float64
    bn = fit.bare.encoder.bn1
    hook = bn.register_forward_pre_hook(lambda _, maps: shown.append(maps[0].double()))
    precise_norm(fit, 2)
    hook.remove()
    assert [len(maps) for maps in shown] == [8 // count] * 2
    by_hand = [torch.stack([statistic(maps) for maps in shown]).mean(0) for statistic in (mean_of, variance_of)]
    last = fit.bare.encoder.layer4[1].bn2.running_mean
    torch.save(([bn.running_mean, bn.running_var], by_hand, last), folder / f"norm{rank}of{count}.pt")


def test_statistics_of_batchnorm_anew_in_two_processes(place):
    "The plain mean over batches, worked by hand; two processes, each with half of every batch, come to the same, together."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for count in (1, 2):
        mp.spawn(renewed, (count, port, place), nprocs=count)
    one, *two = (
        torch.load(place / f"norm{name}.pt", weights_only=True, map_location="cpu") for name in ("0of1", "0of2", "1of2")
    )
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5, check_dtype=False)
    close(one[0], one[1])
    for told in two:
        close(told[0], [(a + b) / 2 for a, b in zip(two[0][1], two[1][1], strict=True)])
        close(told[0][0], one[0][0])  # means are those of whole batches; variances are within halves
    assert torch.equal(two[0][2], two[1][2]), "the deepest statistics, too, are shared"


def test_masks_of_0_and_255_alone_are_refused(place, tmp_path, capsys):
    shutil.copytree(place / "pixels", tmp_path / "pixels")
    command = ["transfer", "segment", place / "e.safetensors", tmp_path / "pixels", "--layout", "own", "--skip-broken"]
    for mask in (tmp_path / "pixels/val_masks").glob("*.png"):
        Image.fromarray((np.array(Image.open(mask)) > 0).astype(np.uint8) * 255).save(mask)
    refused(
        capsys, [str(w) for w in (*command, "--out", tmp_path / "out")], "val_masks: its pictures hold 0 and 255 alone"
    )
    assert not (tmp_path / "out").exists()


def refused(capsys, command, *said):
    "Runs a command that must fail with status 2 and say all of `said`, without a traceback."
    capsys.readouterr()
    try:
        status = main(command)
    except SystemExit as stop:  # by the parser
        status = stop.code
    told = capsys.readouterr().err
    assert status == 2 and "Traceback" not in told and "did not foresee" not in told, told
    for words in said:
        assert words in told, told
    return told


def test_faults_are_named_and_nothing_is_written(place, tmp_path, capsys):
    out = tmp_path / "out"
    command = command_of(place, "classify", out)
    changed = lambda old, new: [new if word == old else word for word in command]  # noqa: E731
    told = refused(capsys, changed("folders", "folder"), "layout = 'folder'", "classify", "folders, ")
    assert told.count("\n") == 1
    told = refused(capsys, [*command, "--protocol", "voc_c4"], "protocol = 'voc_c4'", ", ".join(PROTOCOLS["classify"]))
    assert told.count("\n") == 1
    told = refused(capsys, [*command, "--labels", "0"], "labels", "0")
    assert told.count("\n") == 1
    refused(capsys, changed(str(place / "objects"), str(place / "nowhere")), f"{place}/nowhere: no such folder")
    refused(capsys, changed(str(place / "e.safetensors"), str(place / "no.safetensors")), "no.safetensors")
    refused(capsys, [*command, "--protocol", "linear", "--lr", "1"], "--batch, --lr, --length")
    refused(capsys, [*command, "--protocol", "linear", "--frozen"], "--frozen")
    refused(capsys, changed("classify", "classified"), "TASK")
    assert not out.exists()


def test_masks_that_are_not_there_are_refused(place, tmp_path, capsys):
    scenes = tmp_path / "scenes"
    shutil.copytree(place / "scenes", scenes)
    for file in (scenes / "annotations").iterdir():
        told = json.loads(file.read_text())
        for one in told["annotations"]:
            del one["segmentation"]
        file.write_text(json.dumps(told))
    command = ["transfer", "detect", str(place / "e.safetensors"), str(scenes), "--layout", "coco", "--out"]
    refused(capsys, [*command, str(tmp_path / "out"), "--protocol", "small_masks"], "the layout has none")
    assert not (tmp_path / "out").exists()


def test_a_network_without_stages_is_refused(place, tmp_path, capsys):
    pytest.importorskip("timm")
    model = dict(backbone="timm/vit_tiny_patch16_224", width=64, stem="imagenet")
    torch.manual_seed(0)
    save_encoder(build_encoder(**model), tmp_path / "vit.safetensors", **model)
    for task in ("detect", "segment"):
        command = command_of(place, task, tmp_path / "out")
        command[2] = str(tmp_path / "vit.safetensors")
        assert refused(capsys, command, "maps at 1/4, 1/8, 1/16 and 1/32", "choose a ResNet").count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", ["detect", "segment", "landmarks"])
def test_a_network_of_timm_does_what_a_resnet_does(place, tmp_path, task):
    pytest.importorskip("timm")
    model = dict(backbone="timm/convnext_atto", width=64, stem="imagenet")
    torch.manual_seed(8)
    save_encoder(build_encoder(**model), tmp_path / "convnext.safetensors", **model)
    command = command_of(place, task, tmp_path / "out", "--length", 1, "--batch", 8)
    command[2] = str(tmp_path / "convnext.safetensors")
    assert main(command) == 0
    scores = json.loads((tmp_path / "out/results.json").read_text())["scores"]
    assert set(scores) == {command[2], "random"}
    before = load_file(tmp_path / "convnext.safetensors")
    after = load_file(tmp_path / "out/encoder/model.safetensors")
    shared = {name: next(key for key in after if key.endswith(name)) for name in before if "stages.3" in name}
    assert len(shared) > 10 and all(after[key].shape == before[name].shape for name, key in shared.items())
    assert any(not torch.equal(after[key], before[name]) for name, key in shared.items())


def test_broken_photos_are_named_or_left_out(place, tmp_path, capsys):
    objects = tmp_path / "objects"
    shutil.copytree(place / "objects", objects)
    first, second = sorted((objects / "train").rglob("*.png"))[:2]
    first.write_bytes(b"\x89PNG broken")
    second.write_bytes(second.read_bytes()[:300])
    command = command_of(place, "classify", tmp_path / "out", "--length", 1, "--batch", 8)
    command[3] = str(objects)
    refused(capsys, command, "the data set has 2 problems", f"{first}: ", f"{second}: ", "--skip-broken")
    assert not (tmp_path / "out").exists()
    assert main([*command, "--skip-broken", "--quiet"]) == 0
    assert "2 problems of the data set were left out" in (tmp_path / "out/index.html").read_text()


def test_another_run_does_not_replace_one(place, tmp_path, capsys):
    command = command_of(place, "classify", tmp_path / "out", "--length", 1, "--batch", 8, "--quiet")
    assert main(command) == 0
    before = contents(tmp_path / "out")
    refused(capsys, [*command, "--seed", "1"], "seed: 0 -> 1", "another --out")
    assert contents(tmp_path / "out") == before
    assert main(command) == 0, "the same command is answered from what is there"
    after = contents(tmp_path / "out")
    assert all(after[name] == before[name] for name in before if name.endswith(("safetensors", ".csv", ".png")))


def test_a_detector_repeats_on_the_cpu(place, tmp_path):
    for name in ("first", "second"):
        assert main(command_of(place, "detect", tmp_path / name, "--length", 1, "--quiet")) == 0
    for one in ("encoder", "random"):
        first, second = ((tmp_path / name / one / "model.safetensors").read_bytes() for name in ("first", "second"))
        assert first == second


# Small trees of the layouts of the data sets. A photo holds an object in its left half, of a colour that names its class.


def photo(path, seed, size=(500, 375), object_class=0):
    "Writes a photo of noise with a rectangle, whose x0, y0, x1, y1 it returns."
    generator = np.random.default_rng(seed)
    width, height = size
    noise = Image.fromarray(generator.integers(0, 255, (6, 8, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    box = width // 8 if width < 4 * height else 7 * width // 16, height // 8, width // 2, height - height // 8
    noise.paste([(250, 30, 30), (30, 30, 250)][object_class], box)
    path.parent.mkdir(parents=True, exist_ok=True)
    noise.save(path)
    return box


def written(path, lines):
    "Writes lines of text."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(str, lines)) + "\n")


RIBBON = (320, 4)  # px; 1333 x 16 px in a detector, whose shape leaves few regions to look at: a tenth of the time


def voc_boxes(root):
    for split, count in (("trainval", 2), ("test", 1)):
        names = [f"{split}{n}" for n in range(count)]
        for n, name in enumerate(names):
            x0, y0, x1, y1 = photo(root / f"VOC2007/JPEGImages/{name}.jpg", n, RIBBON, n % 2)
            sides = f"<xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
            told = f"<name>{('cat', 'dog')[n % 2]}</name><difficult>0</difficult><bndbox>{sides}</bndbox>"
            size = f"<size><width>{RIBBON[0]}</width><height>{RIBBON[1]}</height></size>"
            text = f"<annotation>{size}<object>{told}</object></annotation>"
            written(root / f"VOC2007/Annotations/{name}.xml", [text])
        written(root / f"VOC2007/ImageSets/Main/{split}.txt", names)


def voc_pixels(root):
    for split, count, size in (("train", 2, (500, 375)), ("val", 1, (200, 150))):
        names = [f"{split}{n}" for n in range(count)]
        for n, name in enumerate(names):
            box = photo(root / f"VOC2012/JPEGImages/{name}.jpg", n, size, n % 2)
            numbers = Image.new("P", size, 0)
            numbers.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
            numbers.paste(255, (box[0] - 5, box[1] - 5, box[2] + 5, box[3] + 5))
            numbers.paste(8 + n, box)
            (root / "VOC2012/SegmentationClass").mkdir(exist_ok=True)
            numbers.save(root / f"VOC2012/SegmentationClass/{name}.png")
        written(root / f"VOC2012/ImageSets/Segmentation/{split}.txt", names)


def coco(root):
    for split, count in (("train2017", 3), ("val2017", 1)):
        told = dict(images=[], annotations=[], categories=[dict(id=17, name="cat"), dict(id=90, name="toothbrush")])
        for n in range(count):
            x0, y0, x1, y1 = photo(root / f"{split}/{n:012}.jpg", n, RIBBON, n % 2)
            told["images"].append(dict(id=n + 5, file_name=f"{n:012}.jpg", width=RIBBON[0], height=RIBBON[1]))
            ring = [x0, y0, x1, y0, x1, y1, x0, y1]
            one = dict(id=n + 1, image_id=n + 5, category_id=(17, 90)[n % 2], bbox=[x0, y0, x1 - x0, y1 - y0])
            one |= dict(area=(x1 - x0) * (y1 - y0), iscrowd=0, segmentation=[ring])
            if n < 2:  # the third photo is empty, and is not trained on
                told["annotations"].append(one)
        written(root / f"annotations/instances_{split}.json", [json.dumps(told)])


def cub(root):
    names = [f"00{c + 1}.Bird_{c}/Bird_{c}_{n}.jpg" for c in (0, 1) for n in (0, 1)]
    for n, name in enumerate(names):
        photo(root / "images" / name, n, object_class=n // 2)
    written(root / "images.txt", [f"{n + 1} {name}" for n, name in enumerate(names)])
    written(root / "classes.txt", [f"{c + 1} 00{c + 1}.Bird_{c}" for c in (0, 1)])
    written(root / "image_class_labels.txt", [f"{n + 1} {n // 2 + 1}" for n in range(4)])
    written(root / "train_test_split.txt", [f"{n + 1} {1 - n % 2}" for n in range(4)])


def inat18(root):
    for split, count in (("train", 6), ("val", 2)):
        told = dict(images=[], annotations=[], categories=[dict(id=c, name=f"{c}") for c in (3, 4)])
        for n in range(count):
            name = f"train_val2018/Birds/{3 + n % 2}/{split}{n}.jpg"
            photo(root / name, n, object_class=n % 2)
            told["images"].append(dict(id=n, file_name=name, width=500, height=375))
            told["annotations"].append(dict(id=n, image_id=n, category_id=3 + n % 2))
        written(root / f"{split}2018.json", [json.dumps(told)])


def rafdb(root):
    rows = [f"{split}_0000{n + 1}.jpg {4 + n % 2}" for split in ("train", "test") for n in (0, 1)]
    written(root / "EmoLabel/list_patition_label.txt", rows)
    for n, row in enumerate(rows):
        photo(root / f"Image/aligned/{row.split('.')[0]}_aligned.jpg", n, (100, 100), n % 2)


def affectnet(root):
    for split, count in (("training", 4), ("validation", 2)):
        rows = [
            "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
        ]
        for n in range(count):
            photo(root / f"Manually_Annotated_Images/{split}/{n}.jpg", n, object_class=n % 2)
            rows.append(f"{split}/{n}.jpg,50,20,300,300,1;2,{(1, 6, 1, 9)[n]},0.1,0.2")
        written(root / f"{split}.csv", rows)


def celeba(root):
    names = [f"{n + 1:06}.jpg" for n in range(4)]
    for n, name in enumerate(names):
        photo(root / "img_align_celeba" / name, n, (178, 218), n % 2)
    asked = [f"Question_{n}" for n in range(40)]
    answers = [" ".join("1" if (n + k) % 2 else "-1" for k in range(40)) for n in range(4)]
    written(root / "list_attr_celeba.txt", [4, " ".join(asked), *(f"{name} {a}" for name, a in zip(names, answers))])
    written(root / "list_eval_partition.txt", [f"{name} {split}" for name, split in zip(names, (0, 0, 1, 2))])


def faces_300w(root):
    for part in ("helen/trainset", "lfpw/trainset", "helen/testset", "ibug"):
        photo(root / part / "1.jpg", len(part))
        points = np.random.default_rng(len(part)).uniform((100, 60), (300, 260), (68, 2))
        rows = ["version: 1", "n_points: 68", "{", *(f"{x:.3f} {y:.3f}" for x, y in points), "}"]
        written(root / part / "1.pts", rows)


DETECTION = dict(weight_decay=1e-4, norm="sync", norm_decay=False, rois=512, longest=1333, precise=200)
EXPRESSION = dict(optimiser="adamw", lr=2e-4, weight_decay=0.05, floor=1e-6, warmup=0.05, law="cosine", size=224)
# protocol: task, layout, tree, photos a step, steps or epochs, and constants of the paper; lr is that of a whole batch
PUBLISHED = {
    "voc_c4": ("detect", "voc", voc_boxes, 1, 1, DETECTION | dict(lr=0.02, model="c4", metric="voc", masks=False)),
    "coco_c4_1x": ("detect", "coco", coco, 1, 1, DETECTION | dict(lr=0.02, model="c4", metric="coco", masks=True)),
    "coco_fpn_1x": ("detect", "coco", coco, 2, 1, DETECTION | dict(lr=0.02, model="fpn", box_head="convs", masks=True)),
    "voc_fcn_moco": ("segment", "voc", voc_pixels, 2, 1, dict(lr=0.003, stride=16, dilation=6, crop=513, channels=256)),
    "voc_fcn_mmseg": (
        "segment", "voc", voc_pixels, 1, 1, dict(lr=0.01, stride=8, law="poly", auxiliary=0.4, crop=512, weight_decay=5e-4),
    ),
    "finegrained": ("classify", "cub", cub, 2, 2, dict(lr=0.001, weight_decay=5e-4, law="cosine", size=224, resize=256)),
    "inat_linear": ("classify", "inat18", inat18, None, None, dict(frozen=True, size=224)),
    "expression": ("classify", "rafdb", rafdb, 2, 2, EXPRESSION | dict(balanced=False)),
    "expression_balanced": ("classify", "affectnet", affectnet, 2, 2, EXPRESSION | dict(balanced=True)),
    "celeba": ("attributes", "celeba", celeba, 2, 2, EXPRESSION),
    "300w_heat": (
        "landmarks", "300w", faces_300w, 2, 2, dict(optimiser="adam", lr=0.001, weight_decay=1e-5, head="heat", limit=0.05),
    ),
}  # fmt: skip
WHOLE_BATCH = {"expression": 256, "expression_balanced": 256, "celeba": 256, "300w_heat": 32}


@pytest.fixture(scope="module")
def resnet50():
    torch.manual_seed(0)
    return Encoder("resnet50", 64, "imagenet")


def test_each_published_protocol_has_a_dry_run():
    twice_as_long = {"coco_c4_2x", "coco_fpn_2x"}  # the same networks
    published = {name for own in PROTOCOLS.values() for name, one in own.items() if one.published != "ours"}
    assert published - twice_as_long == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_protocol_at_its_size(resnet50, tmp_path, name):
    task, layout, tree, batch, length, constants = PUBLISHED[name]
    tree(tmp_path / "data")
    options = dict(layout=layout, protocol=name, batch=batch, length=length, control=False, progress=False)
    scores = transfer(task, resnet50, tmp_path / "data", tmp_path / "out", **options)
    told = {key: value for key, value in scores["Encoder"].items() if isinstance(value, float)}
    rare = {"small", "medium", "large", "mask_small", "mask_medium", "mask_large"}  # not every size of object is there
    assert told and all(math.isfinite(value) for key, value in told.items() if key not in rare), told
    results = json.loads((tmp_path / "out/results.json").read_text())
    if batch is None:
        made = results["made"]
    else:
        made = json.loads((tmp_path / "out/encoder/settings.json").read_text())
        assert made["protocol.schedule.batch"] == str(batch)
        assert str(length) in (made["protocol.schedule.steps"], made["protocol.schedule.epochs"])
        constants = constants | {"lr": constants["lr"] * batch / WHOLE_BATCH.get(name, 16)}
    for key, value in constants.items():
        said = made.get(f"protocol.{key}", made.get(f"protocol.schedule.{key}"))
        assert float(said) == pytest.approx(value) if type(value) in (int, float) else said == str(value), key


def test_the_study_reads_sets_of_photos(tmp_path):
    cub(tmp_path / "sets/CUB_200_2011")
    faces_300w(tmp_path / "sets/300W")
    settings = load_settings(ROOT / "params.yaml")
    asked = dict(tasks=["classify", "landmarks"], photos="sets", epochs=1)
    settings = settings.model_copy(update=dict(transfer=Transfer(**asked), study=Study(recipes=["moco"], seeds=[3])))
    place = tmp_path / "place"
    file = place / "runs/moco-3/encoder.safetensors"
    file.parent.mkdir(parents=True)
    save_encoder(Encoder("resnet18", 8, "small"), file, backbone="resnet18", width=8, stem="small")
    table = run_transfer(settings, place, tmp_path)
    found = table.groupby(["task", "encoder"]).protocol.first().to_dict()
    assert found == {(task, name): "small_photos" for task in asked["tasks"] for name in ("random", "moco")}
    assert not (place / "build/transfer/world").exists() and (table.seed == 3).all()
