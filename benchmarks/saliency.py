"""Scores and times of every saliency method on photos with hand-made masks: `python benchmarks/saliency.py`.

Looks for the folders saliency_objects and saliency_people (each with images/*.jpg and masks/*.png of the same stem) in
the folder named by the environment variable DILO_REAL_DATA, by default ../shared/data from the project root.
Images are used at their stored size; ms is the median over images, on one core. The last lines time a 64 px image.
"""

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")  # read when NumPy is loaded

import sys
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dilo.saliency import METHODS, at_size, score

FOLDERS = ("saliency_objects", "saliency_people")


def pairs(folder):
    "Images uint8 `(H, W, 3)` and masks uint8 `(H, W)` of a folder, in the order of their names."
    files = sorted((folder / "images").glob("*.jpg"))
    if not files:
        raise SystemExit(f"{folder / 'images'} holds no .jpg files")
    images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    return images, [np.asarray(Image.open(folder / "masks" / f"{file.stem}.png").convert("L")) for file in files]


def timed(function, images):
    "Results of `function` for each image, and the median time in ms."
    results, times = [], []
    for image in images:
        start = perf_counter()
        results.append(function(image))
        times.append((perf_counter() - start) * 1000)
    return results, median(times)


def main():
    data = Path(os.environ.get("DILO_REAL_DATA", ROOT.parent / "shared" / "data"))
    absent = [str(data / name) for name in FOLDERS if not (data / name).is_dir()]
    if absent:
        print(
            f"Nothing to measure: {' and '.join(absent)} not found. Set DILO_REAL_DATA to the folder that holds "
            f"{' and '.join(FOLDERS)}."
        )
        return
    small = []
    print(f"{'folder':18}{'images':>7}  {'method':8}{'max F':>7}{'MAE':>7}{'ms':>8}")
    for name in FOLDERS:
        images, masks = pairs(data / name)
        small += [np.asarray(Image.fromarray(image).resize((64, 64))) for image in images[:18]]
        for method, function in METHODS.items():
            maps, ms = timed(function, images)
            result = score(maps, masks)
            numbers = f"{result['max_f']:7.3f}{result['mae']:7.3f}{ms:8.1f}"
            print(f"{name:18}{len(images):7}  {method:8}{numbers}", flush=True)
    for method, function in METHODS.items():
        print(f"64 px at 224: {method:8}{timed(partial(at_size, function), small)[1]:8.1f} ms")


if __name__ == "__main__":
    main()
