"""The label-free network against its teachers, on photos it never saw.

`python benchmarks/saliency_net.py [FOLDER] [SEED...]`

Looks in the folder named by the environment variable DILO_REAL_DATA, by default ../shared/data from the project root.
Trains with `train_label_free` (12 epochs) on every fourth of the photos in imagenette128/train, for each SEED (default 0),
scores the network and its teachers on saliency_objects and saliency_people at their stored size, pooled scores too, and
times it on photos of 224 pixels on one core (median over photos of the best of three). FOLDER (default
build/saliency_net) keeps what was computed, and scores.csv: a second call goes on where the first stopped.
"""

import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import numpy as np
import pandas as pd
import torch
from PIL import Image
from saliency import FOLDERS, pairs, timed

from dilo.saliency import CUES, METHODS, TEACHERS, load_saliency_net, score, train_label_free

DATA = Path(os.environ.get("DILO_REAL_DATA", ROOT.parent / "shared/data"))


def training_photos(folder):
    "A folder of links to every fourth training photo."
    files = sorted((DATA / "imagenette128/train").rglob("*.webp"))[::4]
    if not files:
        raise SystemExit(f"{DATA / 'imagenette128/train'} holds no .webp files")
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        link = folder / f"{file.parent.name}_{file.name}"
        if not link.exists():
            link.symlink_to(file.resolve())
    return folder


def main():
    torch.set_num_threads(os.cpu_count())  # benchmarks/saliency.py asked for one
    out = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build/saliency_net")
    photos = training_photos(out / "photos")
    methods = {name: METHODS[name] for name in (*TEACHERS, "centre")}
    for seed in map(int, sys.argv[2:] or ["0"]):
        file = out / f"seed{seed}.safetensors"
        if seed and (out / "seed0.work").is_dir() and not (out / f"seed{seed}.work").is_dir():
            (out / f"seed{seed}.work").mkdir()  # the same photos, cues and teachers
            for name in ("images", "masks", *TEACHERS, *(cue.__name__ for cue in CUES.values())):
                for made in (out / "seed0.work").glob(f"{name}.*"):
                    os.link(made, out / f"seed{seed}.work" / made.name)
            shutil.copy(out / "seed0.work/photos.json", out / f"seed{seed}.work")
        train_label_free(photos, file, seed=seed, jobs=-1)
        methods[f"network, seed {seed}"] = load_saliency_net(file)
    sets = {folder: pairs(DATA / folder) for folder in FOLDERS}
    sets["both"] = tuple(sum(parts, []) for parts in zip(*sets.values()))
    print(f"{'':18}" + "".join(f"{name:>24}" for name in sets) + "   (max F / MAE)")
    rows = []
    for name, method in methods.items():
        row = ""
        for photos, (images, masks) in sets.items():
            result = score([(method(image) * 255).round().astype(np.uint8) for image in images], masks)
            rows.append({"photos": photos, "method": name, **result})
            row += f"{result['max_f']:>17.3f} / {result['mae']:.3f}"
        print(f"{name:18}{row}", flush=True)
    pd.DataFrame(rows).round(4).to_csv(out / "scores.csv", index=False)
    torch.set_num_threads(1)
    name, network = list(methods.items())[-1]
    small = [np.array(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC)) for image in sets["both"][0]]
    print(f"{name}: {timed(network, small)[1]:.1f} ms for a photo of 224 x 224 px, one core")


if __name__ == "__main__":
    main()
