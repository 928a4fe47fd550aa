"""Scores and times of every saliency method on photos with hand-made masks:

`python benchmarks/saliency.py [FOLDER ...] [--csv TABLE.csv]`, each FOLDER with images/*.jpg and masks/*.png of the same
stem; by default saliency_objects and saliency_people in the folder named by the environment variable DILO_REAL_DATA, or in
../shared/data from the project root. Images are used at their stored size, on one core; ms is the median over images of
the best of three runs. Peers in the same run: scikit-image's SLIC alone (as many superpixels, ten rounds), which any plain
script starts with, and OpenCV's saliency where opencv-contrib-python-headless is installed. The last lines time all five
graph methods together, and a 64 px image at 224.
"""

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")  # read when NumPy is loaded

import argparse
import sys
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import pandas as pd
from PIL import Image
from skimage.segmentation import slic

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dilo.saliency import METHODS, at_size, gs, mb, mc, mr, rbd, score
from dilo.saliency.superpixels import superpixels

FOLDERS = ("saliency_objects", "saliency_people")


def pairs(folder):
    "Images uint8 `(H, W, 3)` and masks uint8 `(H, W)` of a folder, in the order of their names."
    files = sorted((folder / "images").glob("*.jpg"))
    if not files:
        raise SystemExit(f"{folder / 'images'} holds no .jpg files; give folders with images/*.jpg and masks/*.png")
    images = [np.array(Image.open(file).convert("RGB")) for file in files]
    return images, [np.array(Image.open(folder / "masks" / f"{file.stem}.png").convert("L")) for file in files]


def timed(function, images, runs=3):
    "Results of `function` for each image, and the median over images of its shortest time in ms."
    results, times = [], []
    for image in images:
        spent = []
        for _ in range(runs):
            start = perf_counter()
            result = function(image)
            spent.append((perf_counter() - start) * 1000)
        results.append(result)
        times.append(min(spent))
    return results, median(times)


def peer_slic(image):
    "scikit-image's SLIC with as many superpixels as `dilo.saliency.superpixels` makes by default."
    return slic(image, round(image.shape[0] * image.shape[1] / 600), 20, max_num_iter=10, start_label=0)


def opencv_methods():
    "OpenCV's saliency methods by name, or none where it is not installed."
    try:
        import cv2

        cv2.setNumThreads(1)
        makers = {"fine-grained": cv2.saliency.StaticSaliencyFineGrained_create}
        makers["spectral residual"] = cv2.saliency.StaticSaliencySpectralResidual_create
    except (ImportError, AttributeError):
        return {}
    return {
        f"OpenCV {name}": lambda image, make=make: np.clip(make().computeSaliency(image[..., ::-1])[1], 0, 1)
        for name, make in makers.items()
    }


def five(image):
    "RBD, GS, MR, MC on shared superpixels, and MB+."
    graph = superpixels(image)
    return rbd(graph), gs(graph), mr(graph), mc(graph), mb(image)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get("DILO_REAL_DATA", ROOT.parent / "shared" / "data"))
    parser.add_argument("folders", nargs="*", metavar="FOLDER", type=Path, default=[data / name for name in FOLDERS])
    parser.add_argument("--csv", metavar="TABLE.csv", help="write the table there")
    args = parser.parse_args()
    methods = {**METHODS, "rbd, paper": partial(rbd, constants="paper"), **opencv_methods()}
    small, rows = [], []
    print(f"{'':25}{'max F':>7}{'adapt F':>8}{'MAE':>7}{'S':>7}{'E':>7}{'IoU':>7}{'ms':>7}{'SLIC / it':>11}")
    for folder in args.folders:
        name, (images, masks) = folder.name, pairs(folder)
        small += [np.array(Image.fromarray(image).resize((64, 64))) for image in images[:18]]
        for function in methods.values():
            function(images[0])  # compiles, or loads what was compiled
        _, peer = timed(peer_slic, images, 1)
        print(f"{name}: {len(images)} images; scikit-image's SLIC alone {peer:.1f} ms")
        for method, function in methods.items():
            maps, ms = timed(function, images)
            s = score(maps, masks)
            figures = f"{s['max_f']:7.3f}{s['adaptive_f']:8.3f}{s['mae']:7.3f}{s['s_measure']:7.3f}{s['e_measure']:7.3f}"
            print(f"  {method:23}{figures}{s['iou']:7.3f}{ms:7.1f}{peer / ms:11.1f}", flush=True)
            rows.append({"photos": name, "method": method, **s, "ms": ms, "slic_ms": peer})
        print(f"  {'all five, shared':23}{timed(five, images)[1]:50.1f}")
    for method in ("rbd", "gs", "mr", "mc", "mb"):
        print(f"64 px at 224: {method:8}{timed(partial(at_size, method), small)[1]:8.1f} ms")
    if args.csv is not None:
        pd.DataFrame(rows).round({"ms": 1, "slic_ms": 1}).round(4).to_csv(args.csv, index=False)


if __name__ == "__main__":
    main()
