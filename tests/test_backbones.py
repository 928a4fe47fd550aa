"Any backbone: each method on networks of timm; one trained from photos, exported, loaded by timm and measured."

import json
import re
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from test_cli import ENV, dilo

from dilo.config import METHODS, RECIPES, parse_settings
from dilo.data import render_world
from dilo.evaluation import activation_maps, features
from dilo.training import Adapted, find_encoder, load_encoder, pretrain


PLAIN = ("moco", "instdisc", "moco_v1", "simclr", "byol", "lewel_b", "lewel_m", "scene", "scene_m")


def settings_of(backbone, recipe, size=32, **train):
    "Settings for a few steps of a recipe."
    return parse_settings(
        dict(
            views=dict(size=size),
            model=dict(backbone=backbone),
            moco_v1=dict(queue=32, dim=16),
            moco_v2=dict(queue=32, dim=16),
            lewel_m=dict(queue=512, dim=16, groups=4),
            lewel_b=dict(hidden=32, dim=16, groups=4, eman=False),
            byol=dict(hidden=32, dim=16),
            simclr=dict(dim=16),
            instdisc=dict(dim=16, negatives=8),
            scene=dict(hidden=32, dim=16, warmup=0, every=1),
            scene_m=dict(queue=512, dim=16, warmup=0, every=1),
            train=dict(epochs=1, batch=8, lr=0.01, precision="fp32", workers=0) | train,
            recipes={recipe: RECIPES[recipe]},
            saliency=dict(methods=["rbd"]),
            study=dict(recipes=[recipe], seeds=[0]),
        )
    )


@pytest.fixture(scope="module")
def world():
    return render_world(24, size=64)


@pytest.mark.parametrize("backbone, size", [("timm/convnext_atto", 64), ("timm/vit_tiny_patch16_224", 48)])
@pytest.mark.parametrize("recipe", [*PLAIN, "dilo"])
def test_each_method_takes_two_steps(tmp_path, world, backbone, size, recipe):
    assert {RECIPES[name]["method"] for name in PLAIN} == set(METHODS), "a method is new: add its recipe"
    settings = settings_of(backbone, recipe, size)
    options = dict(saliency=world.masks if recipe == "dilo" else None, progress=False, dry_run=True)
    history = pretrain(settings, recipe, 0, world.images, np.arange(24), tmp_path / "run", **options)
    assert np.isfinite(history.loss[0]) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("backbone, size", [("timm/convnext_atto", 64), ("timm/swin_tiny_patch4_window7_224", 64)])
def test_a_run_is_saved_loaded_and_looked_at(tmp_path, world, backbone, size):
    settings = settings_of(backbone, "moco", size, sizes=[dict(until=0.5, side=32)], optimiser="adamw")
    pretrain(settings, "moco", 0, world.images, np.arange(24), tmp_path / "run", progress=False)
    encoder = load_encoder(tmp_path / "run/encoder.safetensors")
    again = find_encoder(tmp_path / "run/encoder.safetensors")
    assert torch.equal(features(encoder, world.images, size, "cpu"), features(again, world.images, size, "cpu"))
    maps = activation_maps(encoder, world.images[:4], size, "cpu")
    assert maps.shape == (4, 64, 64) and 0 <= maps.min() and maps.max() <= 1
    options = {"img_size": 64} if "swin" in backbone else {}
    plain = timm.create_model(backbone.removeprefix("timm/"), num_classes=0, **options)
    plain.load_state_dict(load_file(tmp_path / "run/encoder.safetensors"), strict=True)


def test_a_network_of_ones_own(tmp_path, world):
    def make():
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4, stride=4), torch.nn.ReLU(), torch.nn.Conv2d(8, 16, 2, stride=2))
        return Adapted(net, 16, lambda net, images: net(images))

    settings = settings_of("resnet18", "lewel_m", 32)
    pretrain(settings, "lewel_m", 0, world.images, np.arange(24), tmp_path / "run", progress=False, encoder=make())
    told = json.loads((tmp_path / "run/settings.json").read_text())
    assert told["model.backbone"] == "own: Sequential"
    trained = load_encoder(tmp_path / "run/encoder.safetensors", make())
    assert trained(torch.rand(2, 3, 32, 32)).shape == (2, 16)
    assert not torch.equal(trained.trunk[0].weight, make().trunk[0].weight)
    with pytest.raises(ValueError, match="build it, and call load_encoder"):
        load_encoder(tmp_path / "run/encoder.safetensors")


def test_photos_to_a_network_that_timm_loads(tmp_path, monkeypatch, world):
    "The commands as typed: pretrain, evaluate, export; then the card's own lines."
    for split, rows in (("train", range(0, 16)), ("val", range(16, 24))):
        for i in rows:
            place = tmp_path / f"photos/{split}/c{i % 2}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(world.images[i].transpose(1, 2, 0)).save(place / f"{i}.png")
    quick = ["--epochs", 1, "--batch", 8, "--size", 48, "--set", "data.size=48", "--set", "train.workers=0", "--quiet"]
    vit = ["--backbone", "timm/vit_tiny_patch16_224"]
    dilo("pretrain", "photos", "--recipe", "moco", *vit, *quick, "--out", "run", cwd=tmp_path)
    dilo("evaluate", "run", "photos", "--k", 3, cwd=tmp_path)
    dilo("export", "run", "--out", "encoder", "--onnx", cwd=tmp_path)
    card = (tmp_path / "encoder/README.md").read_text()
    images = torch.rand(2, 3, 48, 48)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", card, re.S)
    assert len(blocks) == 3 and "local-dir:encoder" in blocks[0]
    with torch.no_grad():
        exec(blocks[0], names := {"images": images})
        expected = load_encoder("run/encoder.safetensors")(images)
    torch.testing.assert_close(names["features"], expected, rtol=1e-4, atol=1e-5)
    session = onnxruntime.InferenceSession("encoder/encoder.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"images": images.numpy()})[0], expected, rtol=1e-4, atol=1e-4)
    wrong = ["--backbone", "timm/vit_tiny_patch16_224", *quick[:4], "--size", 50, "--set", "data.size=64", "--quiet"]
    _, told = dilo("pretrain", "photos", "--recipe", "moco", *wrong, "--out", "other", status=2, cwd=tmp_path)
    assert "the nearest that do are 48 and 64" in told and not (tmp_path / "other/encoder.safetensors").exists()
    _, told = dilo("pretrain", "photos", "--backbone", "timm/vit_tinny", *quick, "--out", "third", status=2, cwd=tmp_path)
    assert "has no such network" in told and "model.backbone = 'timm/vit_tinny'" in told


def test_training_starts_from_weights(tmp_path, world):
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    (tmp_path / "photos").mkdir()
    for i in range(8):
        Image.fromarray(world.images[i].transpose(1, 2, 0)).save(tmp_path / f"photos/{i}.png")
    quick = ["--epochs", 1, "--batch", 8, "--size", 32, "--set", "data.size=32", "--set", "train.workers=0", "--set"]
    quick += ["train.lr=1e-8", "--quiet", "--recipe", "moco"]
    said, _ = dilo("pretrain", "photos", "--from", "w.pth", *quick, "--out", "run", cwd=tmp_path)
    assert "starts from 120 of the encoder's 120 tensors" in said
    trained = load_encoder(tmp_path / "run/encoder.safetensors")
    torch.testing.assert_close(trained.layer1[0].conv1.weight, theirs.layer1[0].conv1.weight, rtol=0, atol=1e-5)
    told = json.loads((tmp_path / "run/settings.json").read_text())
    assert len(told["model.start"]) == 64, "the checksum of the file, not where it lay"
    dilo("pretrain", "photos", "--from", "run/encoder.safetensors", *quick, "--out", "next", cwd=tmp_path)
    _, told = dilo("pretrain", "photos", "--from", "none.pth", *quick, "--out", "other", status=2, cwd=tmp_path)
    assert "none.pth: no such file" in told


def test_without_timm_the_extra_is_named(tmp_path):
    code = "import sys; sys.modules['timm'] = None; from dilo.training import build_encoder as b; b('timm/convnext_atto')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV)
    assert "pip install 'dilo[timm]'" in done.stderr
