"Encoders of other libraries, from files that those libraries write themselves: read, measured, refused."

import json
import shutil

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from test_cli import dilo
from torchvision.transforms.v2.functional import normalize

from dilo.data import render_world
from dilo.evaluation import evaluate
from dilo.training import find_encoder

IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def moved(model):
    "The model with BatchNorms that have seen images, so that their statistics count."
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.rand(8, 3, 64, 64))
    return model.eval()


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    "Photos of two classes with masks, and the same as arrays: a folder, and images, labels and masks by split."
    folder, world = tmp_path_factory.mktemp("labelled"), render_world(200)
    chosen = [i for i, label in enumerate(world.labels) if label < 2]
    parts = {"train": chosen[:24], "val": chosen[24:]}
    for split, numbers in parts.items():
        parts[split] = numbers = sorted(numbers, key=lambda i: (world.labels[i], i))
        for i in numbers:
            for root, picture in (("photos", world.images[i].transpose(1, 2, 0)), ("masks", world.masks[i, 0])):
                place = folder / root / split / f"c{world.labels[i]}"
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(place / f"{i:03}.png")
    return folder, [array[rows] for rows in parts.values() for array in (world.images, world.labels, world.masks)]


class Theirs(torch.nn.Module):
    "torchvision's network as the evaluation wants an encoder: images in [0, 1] to pooled features and to a feature map."

    def __init__(self, model):
        super().__init__()
        self.body = torch.nn.Sequential(*list(model.children())[:-2])

    def feature_map(self, images):
        return self.body(normalize(images, *IMAGENET))

    def forward(self, images):
        return self.feature_map(images).mean((2, 3))


def test_the_file_of_torchvision_is_measured_as_torchvision_would(tmp_path, labelled):
    folder, (images, labels, masks, val_images, val_labels, val_masks) = labelled
    torch.manual_seed(0)
    model = moved(torchvision.models.resnet18())
    torch.save(model.state_dict(), tmp_path / "resnet18.pth")
    command = ["evaluate", tmp_path / "resnet18.pth", folder / "photos", "--masks", folder / "masks", "--size", "64"]
    _, told = dilo(*command, "--k", "5", "--json", tmp_path / "out.json")
    assert "resnet18 of width 64" in told and "left out: fc.weight, fc.bias" in told
    found = json.loads((tmp_path / "out.json").read_text())
    sides = images, labels, val_images, val_labels
    options = dict(size=64, k=5, train_masks=masks, val_masks=val_masks, device="cpu")
    ours, theirs = (evaluate(e, *sides, **options) for e in (find_encoder(tmp_path / "resnet18.pth"), Theirs(model)))
    for kind in ("knn", "linear"):  # between libraries, rounding may turn an image of the 16
        assert found[kind] == ours[kind] == pytest.approx(theirs[kind], abs=1 / 16 + 1e-9), kind
    for kind in ("activation", "centre"):
        assert found["localisation"][kind]["energy"] == pytest.approx(theirs["localisation"][kind]["energy"], abs=1e-3)


def test_the_backgrounds_challenge_of_a_file_of_torchvision(tmp_path, labelled):
    "The first command of README's section on anyone's encoder."
    folder, _ = labelled
    for name in ("original", "mixed_rand"):
        shutil.copytree(folder / "photos/val", tmp_path / "bg_challenge" / name / "val")
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet50().state_dict(), tmp_path / "resnet50.pth")
    (tmp_path / "in_to_in9.json").write_text('{"0": 0, "1": 1}')
    command = ["evaluate", "resnet50.pth", folder / "photos", "--challenge", "bg_challenge/", "--size", "64", "--k", "5"]
    said, told = dilo(*command, "--class-map", "in_to_in9.json", cwd=tmp_path)
    assert "resnet50 of width 64" in told and "mixed_rand" in said and "original" in said and "no training" not in said
    (tmp_path / "in_to_in9.json").write_text('{"0": 0, "1": -1}')
    said, _ = dilo(*command, "--class-map", "in_to_in9.json", cwd=tmp_path)
    assert "no training photo has the classes" in said and "their photos count as wrong" in said


def test_images_may_be_normalised_otherwise(tmp_path, labelled):
    folder, _ = labelled
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "w.pth")
    six = ",".join(map(str, [*IMAGENET[0], *IMAGENET[1]]))
    maps = {}
    for how in (None, "imagenet", six, "none"):
        given = [] if how is None else ["--normalise", how]
        out = tmp_path / f"maps-{len(maps)}"
        options = ["--method", "activation", "--weights", tmp_path / "w.pth", "--size", "64", "--jobs", "1", "--quiet"]
        dilo("saliency", folder / "photos/val", *options, *given, "--out", out)
        maps[how] = {p.name: p.read_bytes() for p in out.rglob("*.png")}
    assert maps[None] == maps["imagenet"] == maps[six] != maps["none"] and maps[None]
    assert "allowed are imagenet" in dilo("evaluate", tmp_path / "w.pth", folder / "photos", "--normalise", "x", status=2)[1]
    assert "for --method activation" in dilo("saliency", folder, "--out", "m", "--normalise", "none", status=2)[1]


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_timm_writes_what_is_read(tmp_path, name):
    torch.manual_seed(0)
    model = moved(timm.create_model(name, pretrained=False))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.forward_features(normalize(images, *IMAGENET)).mean((2, 3))
        torch.testing.assert_close(find_encoder(tmp_path / "model.safetensors")(images), expected, rtol=1e-4, atol=1e-5)


def test_lightly_and_lightning_write_what_is_read(tmp_path, capsys):
    import pytorch_lightning
    from lightly.models.modules import BYOLProjectionHead
    from lightly.models.utils import deactivate_requires_grad

    class BYOL(pytorch_lightning.LightningModule):
        "As lightly's guide builds it: the backbone is a Sequential, beside a slow copy and heads."

        def __init__(self):
            super().__init__()
            self.save_hyperparameters({"lr": 0.06})
            self.backbone = torch.nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])
            self.projection_head = BYOLProjectionHead(512, 64, 32)
            self.backbone_momentum = torch.nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])
            deactivate_requires_grad(self.backbone_momentum)

        def training_step(self, batch, _):
            return self.projection_head(self.backbone(batch[0]).flatten(1)).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    torch.manual_seed(0)
    model, data = BYOL(), torch.utils.data.TensorDataset(torch.rand(8, 3, 64, 64))
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
    trainer = pytorch_lightning.Trainer(max_steps=2, accelerator="cpu", **quiet)
    trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=4))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.eval().backbone(normalize(images, *IMAGENET)).flatten(1)
        torch.testing.assert_close(find_encoder(tmp_path / "last.ckpt")(images), expected, rtol=1e-4, atol=1e-5)
    told = capsys.readouterr().out
    assert "to be named by --part: state_dict.backbone_momentum" in told
    assert "taken from state_dict.backbone" in told and "state_dict.backbone_momentum (120 tensors)" in told, told


def test_what_is_no_resnet_is_refused_in_one_line(tmp_path, labelled):
    folder, _ = labelled
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "vit.pth")
    torch.save(torchvision.models.resnet18(), tmp_path / "whole.pth")  # pickled with its code
    np.save(tmp_path / "array.npy", np.zeros(3))
    refused = {"vit.pth": "holds no ResNet", "whole.pth": "whose code would have to run", "array.npy": "as weights"}
    for name, why in refused.items():
        _, told = dilo("evaluate", tmp_path / name, folder / "photos", status=2)
        assert why in told and name in told and told.count("\n") == 1, told
