"The command `dilo export` as a user types it, and what strangers do with the folder: torchvision, timm, the hub."

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
import yaml
from PIL import Image
from safetensors.torch import load_file
from test_cli import ROOT, dilo
from torchvision.transforms.v2.functional import normalize

from dilo.config import load_settings
from dilo.data import render_world
from dilo.saliency import SaliencyNet, cues, load_saliency_net, save_saliency_net
from dilo.training import Encoder, load_encoder, save_encoder
from dilo.evaluation import write_result
from dilo.cli import main

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def make_run(folder, backbone, width, stem):
    "A finished run of recipe dilo and seed 0 as training leaves it, untrained, with BatchNorms that have seen images."
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    encoder = Encoder(backbone, width, stem).train()
    with torch.no_grad():
        for _ in range(3):
            encoder(torch.rand(4, 3, 64, 64))
    model = dict(backbone=backbone, width=width, stem=stem)
    save_encoder(encoder, folder / "encoder.safetensors", **model, recipe="dilo", seed=0)
    settings = load_settings(ROOT / "params.yaml")
    made = {f"{s}.{k}": v for s, section in settings.outcome("dilo").items() for k, v in section.items()}
    made |= {f"model.{k}": v for k, v in model.items()} | {"train.epochs": 12, "seed": 0, "processes": 1, "torch": "2.10.0"}
    made |= dict(count=4000, images="a" * 64, rows="b" * 64, saliency="c" * 64, code="d" * 64)
    (folder / "settings.json").write_text(json.dumps(made, indent=1))
    (folder / "history.csv").write_text("epoch,loss\n1,5.5\n2,4.25\n")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A finished run of a full ResNet-50."
    return make_run(tmp_path_factory.mktemp("full") / "runs/dilo-0", "resnet50", 64, "imagenet")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    "A finished run of an encoder that only dilo has."
    return make_run(tmp_path_factory.mktemp("narrow") / "runs/dilo-0", "resnet18", 8, "small")


def result(path, recipe="dilo", seed=0):
    "A result file with scores of two splits."
    accuracies = dict(original=0.75, mixed_same=0.5, mixed_rand=0.375)
    gap = dict(knn=0.125, linear=0.125)
    right = {name: {split: np.ones(8, bool) for split in accuracies} for name in ("knn", "linear")}
    numbers = dict(knn=accuracies, linear=accuracies, bg_gap=gap, chance=0.1, penalty=0.01)
    write_result(path, recipe, seed, numbers | {"right": right})
    return path


def test_torchvision_and_timm_load_it(tmp_path, run):
    out = tmp_path / "encoder"
    stdout, _ = dilo("export", run, "--out", out)
    assert "README.md" in stdout
    assert sorted(os.listdir(out)) == ["README.md", "config.json", "model.safetensors", "settings.json"]
    assert (out / "settings.json").read_bytes() == (run / "settings.json").read_bytes()
    weights = load_file(out / "model.safetensors")
    theirs = torchvision.models.resnet50()
    theirs.fc = torch.nn.Identity()
    theirs.load_state_dict(weights, strict=True)
    timms = timm.create_model("resnet50", num_classes=0)
    timms.load_state_dict(weights, strict=True)
    pretrained = timm.create_model(f"local-dir:{out}", pretrained=True)
    from_file = timm.create_model("resnet50", num_classes=0, checkpoint_path=str(out / "model.safetensors"))
    assert pretrained.pretrained_cfg["mean"] == pytest.approx(MEAN) and pretrained.pretrained_cfg["input_size"][1] == 64
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    normalised = normalize(images, mean=MEAN, std=STD)
    with torch.no_grad():
        expected = load_encoder(out / "model.safetensors")(images)
        for model in (theirs, timms, pretrained, from_file):
            torch.testing.assert_close(model.eval()(normalised), expected, rtol=1e-5, atol=1e-5)
    assert expected.std(0).max() > 1e-3, "features that differ between images"


@pytest.mark.parametrize("kind, blocks", [("run", 3), ("narrow", 1)])
def test_what_the_card_says_runs(tmp_path, monkeypatch, request, kind, blocks):
    run = request.getfixturevalue(kind)
    dilo("export", run, "--out", tmp_path / "encoder")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    code = re.findall(r"```python\n(.*?)```", (tmp_path / "encoder/README.md").read_text(), re.S)
    assert len(code) == blocks
    with torch.no_grad():
        expected = load_encoder(run / "encoder.safetensors")(images)
        for block in code:
            monkeypatch.chdir(tmp_path if "local-dir" in block else tmp_path / "encoder")
            names = {"images": images}
            exec(block, names)
            torch.testing.assert_close(names["features"], expected, rtol=1e-5, atol=1e-5)


def test_card(tmp_path, narrow):
    files = [result(tmp_path / name / "dilo-0.json") for name in ("world", "photos")]
    dilo("export", narrow, "--out", tmp_path / "encoder", "--results", *files)
    card = (tmp_path / "encoder/README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert card.startswith("---\n") and set(front) == {"library_name", "tags"} and "resnet18" in front["tags"]
    for said in (
        "# dilo, seed 0",
        "method: `moco_v2`",
        "saliency: `rbd`",
        "probability `0.3`",
        "a" * 64,
        "Epochs: 12.",
        "Loss of the last epoch: 4.2500.",
        "2.10.0",
        "only the package `dilo`\nloads it",
        "From `world/dilo-0.json`",
        "From `photos/dilo-0.json`",
        "| `mixed_rand` | 37.5 | 37.5 |",
        "| BG-gap | 12.5 | 12.5 |",
    ):
        assert said in card, said
    assert "torchvision.models" not in card and "import timm" not in card and str(tmp_path) not in card


@pytest.mark.parametrize("kind, size", [("run", 64), ("narrow", 64)])
def test_onnx_computes_the_same(tmp_path, monkeypatch, request, kind, size):
    "On ten photos and on one; the card's lines run without dilo and torch."
    import onnxruntime

    run = request.getfixturevalue(kind)
    dilo("export", run, "--out", tmp_path / "encoder", "--onnx")
    session = onnxruntime.InferenceSession(tmp_path / "encoder/encoder.onnx", providers=["CPUExecutionProvider"])
    photos = render_world(10, size=size).images.astype(np.float32) / 255
    with torch.no_grad():
        expected = load_encoder(run / "encoder.safetensors")(torch.from_numpy(photos)).numpy()
    for some in (slice(0, 10), slice(0, 1)):
        np.testing.assert_allclose(session.run(None, {"images": photos[some]})[0], expected[some], rtol=1e-4, atol=1e-4)
    monkeypatch.chdir(tmp_path / "encoder")
    photo = Image.fromarray((photos[0] * 255).round().astype(np.uint8).transpose(1, 2, 0))
    photo.save("photo.jpg", quality=100, subsampling=0)
    block = next(b for b in re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.S) if "onnxruntime" in b)
    assert "dilo" not in block and "torch" not in block and len(block.splitlines()) <= 10
    exec(block, names := {})
    cosine = names["features"][0] @ expected[0] / np.linalg.norm(names["features"][0]) / np.linalg.norm(expected[0])
    assert names["features"].shape == (1, expected.shape[1]) and cosine > 0.99


def test_a_saliency_network_becomes_onnx(tmp_path):
    import onnxruntime

    torch.manual_seed(0)
    save_saliency_net(SaliencyNet(), tmp_path / "net.safetensors", {"made": {}})
    assert "give --onnx" in dilo("export", tmp_path / "net.safetensors", "--out", tmp_path / "net", status=2)[1]
    dilo("export", tmp_path / "net.safetensors", "--out", tmp_path / "net", "--onnx")
    assert sorted(os.listdir(tmp_path / "net")) == ["README.md", "saliency.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "net/saliency.onnx", providers=["CPUExecutionProvider"])
    photos, method = render_world(10, size=128).images, load_saliency_net(tmp_path / "net.safetensors")
    images = photos.transpose(0, 2, 3, 1)
    inputs = np.stack([cues(image) for image in images]).astype(np.float32) / 255
    (maps,) = session.run(["map"], {"photo_and_cues": inputs})
    for image, found in zip(images, maps[:, 0]):
        np.testing.assert_allclose(found, method(image), atol=1e-4)


def test_what_is_not_known_is_not_said(tmp_path, narrow):
    run = tmp_path / "run"
    shutil.copytree(narrow, run)
    (run / "history.csv").unlink()
    dilo("export", run, "--out", tmp_path / "encoder")
    card = (tmp_path / "encoder/README.md").read_text()
    assert "Loss of" not in card and "Scores" not in card and "scores" not in card


def test_an_earlier_export_is_replaced(tmp_path, narrow):
    out = tmp_path / "encoder"
    dilo("export", narrow, "--out", out)
    (out / "settings.json").unlink()  # as if it had been stopped in between
    (out / "model.safetensors.part").write_bytes(b"half")
    (out / "encoder.safetensors").write_bytes(b"of an earlier version")
    dilo("export", narrow, "--out", out, "--results", result(tmp_path / "dilo-0.json"))
    assert sorted(os.listdir(out)) == ["README.md", "model.safetensors", "settings.json"]
    assert "BG-gap" in (out / "README.md").read_text()


def test_mistakes_are_said_in_a_line(tmp_path, monkeypatch, capsys, narrow):
    unfinished, nameless, other, foreign = (tmp_path / n for n in ("unfinished", "nameless", "other", "foreign"))
    for copy in (unfinished, nameless, other, foreign):
        shutil.copytree(narrow, copy)
    (unfinished / "encoder.safetensors").unlink()
    model = dict(backbone="resnet18", width=8, stem="small")
    save_encoder(Encoder(**model), nameless / "encoder.safetensors", **model)
    save_encoder(Encoder(**model), other / "encoder.safetensors", **model, recipe="dilo", seed=3)
    made = json.loads((foreign / "settings.json").read_text())
    (foreign / "settings.json").write_text(json.dumps({k: v for k, v in made.items() if k != "recipe.views"}))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "README.md").write_text("# somebody's own")
    moco, seed1 = result(tmp_path / "moco-0.json", "moco"), result(tmp_path / "dilo-1.json", seed=1)
    (tmp_path / "broken.json").write_text('{"recipe": ')
    (tmp_path / "empty.json").write_text("{}")
    (tmp_path / "list.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    for arguments, said in [
        (["none"], "none: no such folder"),
        (["moco-0.json"], "moco-0.json: no such folder"),
        (["mine"], "mine: holds no settings.json"),
        (["unfinished"], "unfinished: the run is not finished"),
        (["nameless"], "does not say which recipe and seed"),
        (["other"], "are of two runs: seed: 0 -> 3"),
        (["foreign"], "settings.json: 'recipe.views' is missing"),
        ([narrow, "--results", moco], "is of recipe 'moco', seed 0, and the run is of recipe 'dilo', seed 0"),
        ([narrow, "--results", seed1], "is of recipe 'dilo', seed 1, and the run is of recipe 'dilo', seed 0"),
        ([narrow, "--results", "broken.json"], "broken.json: cannot be read as JSON"),
        ([narrow, "--results", "empty.json"], "empty.json: is no result"),
        ([narrow, "--results", "list.json"], "list.json: holds no JSON dictionary"),
        ([narrow, "--results", "none.json"], "none.json"),
        ([narrow, "--out", "mine"], "mine: holds something else than an earlier export (README.md)"),
        ([narrow, "--out", narrow], "holds something else than an earlier export (encoder.safetensors, history.csv"),
        ([narrow, "--out", "moco-0.json"], "moco-0.json"),
    ]:
        out = [] if "--out" in arguments else ["--out", "new"]
        status = main(["export", *map(str, arguments), *out])  # in this process: a new one imports torch for seconds
        stderr = capsys.readouterr().err
        assert status == 2 and said in stderr and len(stderr.splitlines()) == 1, stderr
    assert not (tmp_path / "new").exists() and os.listdir(mine) == ["README.md"]
    assert sorted(os.listdir(narrow)) == ["encoder.safetensors", "history.csv", "settings.json"]


def test_help_shows_an_example():
    assert "example: dilo export runs/dilo-0" in re.sub(r"\s+", " ", dilo("export", "--help")[0])
