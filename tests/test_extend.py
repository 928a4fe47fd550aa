"Adding to the project takes one notebook and one line: a toy of each kind, in a clone, run by the pipeline."

import json

import nbformat
import numpy as np
import pandas as pd

TOYS = {
    "training/methods/90_toy": (
        "METHODS",
        "dilo.training.methods.toy:Toy",
        '''
import torch
import torch.nn.functional as F
from torch import nn


class Toy(nn.Module):
    "The two views of an image are each other's class."

    def __init__(self, encoder, *, dim=16, temperature=0.2):
        super().__init__()
        self.encoder, self.head, self.temperature = encoder, nn.Linear(encoder.features, dim), temperature

    def forward(self, views):
        first, second = (F.normalize(self.head(self.encoder(v)), dim=1) for v in (views.first, views.second))
        own = torch.arange(len(first), device=first.device)
        return F.cross_entropy(first @ second.T / self.temperature, own), {"positive": (first * second).sum(1).mean()}

    def after_step(self, progress):
        pass
''',
    ),
    "augmentation/90_toy": (
        "VIEWS",
        "dilo.augmentation.toy:toy",
        '''
from dilo.augmentation.laws import moco_v2


def toy(size, paste=None):
    "The views of MoCo v2 under another name."
    return moco_v2(size, paste)
''',
    ),
    "saliency/90_toy": (
        "SALIENCY",
        "dilo.saliency.toy:toy",
        '''
import numpy as np


def toy(image):
    "The upper half."
    return (np.indices(image.shape[:2])[0] < len(image) / 2).astype(np.float32)
''',
    ),
    "data/90_toy": (
        "LAYOUTS",
        "dilo.data.toy:toy",
        '''
from dilo.data.index import index_world


def toy(out, data, root):
    "The synthetic world under another name."
    return index_world(out, data, root)
''',
    ),
    "evaluation/90_toy": (
        "EVALUATIONS",
        "dilo.evaluation.toy:toy",
        '''
def toy(encoder, train, val, probe, *, size, k, temperature, device):
    "How many images there were."
    return {"images": float(len(val.labels))}
''',
    ),
}


def write_notebook(path, module, code):
    "A notebook that exports `code` as dilo/<module>."
    cell = nbformat.v4
    cells = [cell.new_markdown_cell("# Toy\n\n> A toy."), cell.new_code_cell(f"#| default_exp {module}")]
    nbformat.write(cell.new_notebook(cells=[*cells, cell.new_code_cell(f"#| export\n{code.strip()}")]), path)


def register(project, registry, place):
    "Adds the name toy to a registry of nbs/00_config.ipynb: one line."
    path = project.folder / "nbs/00_config.ipynb"
    notebook = nbformat.read(path, as_version=4)
    (cell,) = [c for c in notebook.cells if c.cell_type == "code" and "METHODS = Registry(" in c.source]
    start = cell.source.index(f"{registry} = Registry({{") + len(f"{registry} = Registry({{")
    cell.source = cell.source[:start] + f'"toy": "{place}", ' + cell.source[start:]
    nbformat.write(notebook, path)


def test_one_notebook_and_one_line_each(fresh):
    for path, (registry, place, code) in TOYS.items():
        write_notebook(fresh.folder / f"nbs/{path}.ipynb", place.removeprefix("dilo.").partition(":")[0], code)
        register(fresh, registry, place)
    fresh.run("python", "-m", "dilo.config", "smoke")
    fresh.edit("params.yaml", "source: world", "source: toy")
    fresh.edit("params.yaml", "train: 400", "train: 128")
    fresh.edit("params.yaml", "methods: [rbd, centre]", "methods: [toy]")
    toy = "{method: toy, views: toy, saliency: toy, probability: 0.5, options: {dim: 8}}"
    fresh.edit("params.yaml", "recipes:\n  moco:", f"recipes:\n  playing: {toy}\n  moco:")
    fresh.edit("params.yaml", "recipes:\n  - moco\n  - dilo\n", "recipes: [playing]\n")
    fresh.run("dvc", "repro")  # which exports the notebooks first
    history = pd.read_csv(fresh.folder / "runs/playing-0/history.csv")
    assert history.epoch.tolist() == [1, 2] and history.pasted.gt(0.2).all() and history.positive.notna().all()
    assert json.loads((fresh.folder / "runs/playing-0/metrics.json").read_text())["toy"] == {"images": 200.0}
    assert json.loads((fresh.folder / "runs/playing-0/settings.json").read_text())["method.dim"] == 8
    assert (np.load(fresh.folder / "build/saliency/toy.npy")[0, 0].mean(1) > 127).sum() == 32, "the upper half of 64 px"
    assert pd.read_csv(fresh.folder / "results/smoke/runs.csv")["toy.images"].tolist() == [200.0]
    assert "playing" in (fresh.folder / "reports/index.html").read_text()
    fresh.edit("params.yaml", "options: {dim: 8}", "options: {dims: 8}")
    said = fresh.run("dvc", "repro", "pretrain@playing-0", fails=True)
    assert "recipes.playing.options: " in said and "dims" in said, said[-3000:]
