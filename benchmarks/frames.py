"""Does RBD score higher if a photo's frame, or a strip along its border, is cut off before the superpixels?

`python benchmarks/frames.py [FOLDER ...] [--csv TABLE.csv]`, folders as in `benchmarks/saliency.py`. Cut strips are zero in
the map. A frame is found as the lines along a side, at most a tenth of the image, that differ from the median colour of the
outermost one by less than 6 levels on average. In brackets: the 95 % interval of a bootstrap over images, of what is gained
over RBD as it is.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")  # read when NumPy is loaded

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from saliency import FOLDERS, pairs

from dilo.saliency import rbd
from dilo.saliency.scores import max_f, pr_curve


def frame(image, most=0.1, least=6.0):
    "Widths of the frame in px: top, bottom, left, right."
    widths = []
    for view in (image, image[::-1], image.swapaxes(0, 1), image.swapaxes(0, 1)[::-1]):
        unlike = np.abs(view - np.median(view[0].astype(np.float32), axis=0)).max(2).mean(1)[: int(most * len(view))]
        widths.append(int(np.argmax(np.append(unlike, np.inf) >= least)))
    return widths


def without(image, top, bottom, left, right):
    "RBD's map of the image with strips cut off, zero there."
    inner = image[top : len(image) - bottom, left : image.shape[1] - right]
    return np.pad(rbd(np.ascontiguousarray(inner)), ((top, bottom), (left, right)))


def gains(maps, before, masks, rounds=1000):
    "Max F of `maps`, and the 95 % interval of what it gains over `before`, of a bootstrap over images."
    curves = np.array([[pr_curve([m], [mask]) for m, mask in zip(each, masks)] for each in (maps, before)])
    drawn = np.random.default_rng(0).integers(len(masks), size=(rounds, len(masks)))
    score = [[max_f(*part[rows].mean(0)) for rows in drawn] for part in curves]
    return max_f(*curves[0].mean(0)), *np.quantile(np.subtract(*score), [0.025, 0.975])


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folders", nargs="*", type=Path)
parser.add_argument("--csv", type=Path)
args = parser.parse_args()
real = Path(os.environ.get("DILO_REAL_DATA", ROOT.parent / "shared/data"))
rows = []
for folder in args.folders or [real / name for name in FOLDERS]:
    images, masks = pairs(folder)
    before, frames = [rbd(image) for image in images], [frame(image) for image in images]
    ways = {"as it is": before, "frame cut off": [without(i, *f) for i, f in zip(images, frames)]}
    ways["frame of two sides or more"] = [
        without(i, *f) if sum(w > 0 for w in f) > 1 else b for i, f, b in zip(images, frames, before)
    ]
    ways |= {f"{w} px cut off": [without(i, w, w, w, w) for i in images] for w in (1, 2, 3, 4, 6)}
    for way, maps in ways.items():
        best, low, high = gains(maps, before, masks)
        rows.append(dict(photos=folder.name, way=way, max_f=round(best, 4), low=round(low, 4), high=round(high, 4)))
        print(f"{folder.name}, {way}: max F {best:.4f} ({low:+.4f} to {high:+.4f})", flush=True)
if args.csv:
    pd.DataFrame(rows).to_csv(args.csv, index=False)
