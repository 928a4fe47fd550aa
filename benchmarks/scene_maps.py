"""Do the maps of scene contrast find objects? `python benchmarks/scene_maps.py [RUN ...] [--seed 1]`

For each run of BYOL (by default runs/byol-0 .. runs/byol-2, which `make repro PROFILE=scenes` leaves), the maps that
its target network would give a scene run, by every source, on 256 scenes of another seed of the world than the runs
learned from. Against the true masks, both at 64 px: the correlation, averaged over images, and the share of the map
inside the mask (flat maps have the share of the image that the objects cover).
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dilo.config import load_settings
from dilo.data import render_scenes
from dilo.saliency import energy_inside
from dilo.training import Encoder
from dilo.training.methods.scene import Scene

SOURCES = ("border", "activation", "contracam", "centre")


def correlation(maps, masks):
    "Mean over images of the correlation of maps and masks `(N, H, W)`; 0 where either is flat."
    a, b = (v.reshape(len(v), -1) - v.reshape(len(v), -1).mean(1, keepdims=True) for v in (maps, masks))
    below = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.divide((a * b).sum(1), below, out=np.zeros(len(a)), where=below > 0).mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", help="run folders of the recipe byol")
    parser.add_argument("--seed", type=int, default=1, help="of the scenes")
    args = parser.parse_args()
    settings = load_settings(ROOT / "params.yaml")
    world = render_scenes(256, size=settings.data.size, seed=args.seed)
    images, masks = torch.from_numpy(world.images).float() / 255, world.masks[:, 0]
    rows = []
    for run in args.runs or [ROOT / f"runs/byol-{seed}" for seed in (0, 1, 2)]:
        state = torch.load(Path(run) / "last.pt", map_location="cpu", weights_only=True)["method"]
        for source in SOURCES:
            options = settings.method("byol").model_dump() | dict(source=source)
            scene = Scene(Encoder(**settings.model.model_dump()), **options)
            scene.load_state_dict(state)
            maps = torch.cat([scene.saliency(part) for part in images.split(64)])
            maps = F.interpolate(maps[:, None], masks.shape[1:], mode="bilinear")[:, 0].clamp(0, 1).numpy()
            energy = np.nanmean(energy_inside(maps, masks))
            rows.append(dict(run=Path(run).name, source=source, correlation=correlation(maps, masks / 255), energy=energy))
    table = pd.DataFrame(rows).pivot(index="source", columns="run").loc[list(SOURCES)]
    print(table.round(3).to_string())
    print(f"flat maps: energy {(masks >= 128).mean():.3f}")


if __name__ == "__main__":
    main()
