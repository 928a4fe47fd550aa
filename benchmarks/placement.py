"""Where people put what they photograph, and how large it is; and the same of the world, which is to be like it:

`python benchmarks/placement.py [--csv TABLE.csv]`. Photos are in the folder named by the environment variable
DILO_REAL_DATA, or in ../shared/data from the project root: `<name>/masks/*.png` (one object a photo, white on black), the
trimaps of `oxford-iiit-pet` (border pixels count as the pet), `coco/annotations/instances_val2017.json` (without crowds).
Of each set: objects an image; the median area of an object, as a share of the image; off_middle, the mean distance of the
middle of its box from the image's, where the image spans 1 by 1; and way, how far towards the place where it would leave the
image (0 in the middle, 1 at the edge), the mean of both axes.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dilo.config import load_settings
from dilo.data import render_scenes, render_world
from dilo.data.world import mask_boxes


def row(name, images, boxes, sizes, areas):
    "A row of the table. boxes: `(M, 4)`, x0, y0, x1, y1 in px; sizes: `(M, 2)`, width and height of each object's image."
    boxes, sizes = np.asarray(boxes, float), np.asarray(sizes, float)
    middle, side = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    room = (sizes - side) / 2
    way = np.abs(middle - sizes / 2)[room > 1] / room[room > 1]
    off = np.linalg.norm(middle / sizes - 0.5, axis=1)
    found = dict(objects=len(boxes) / images, area=np.median(areas), off_middle=off.mean(), way=way.mean())
    return {"photos": name, "images": images} | {key: round(float(value), 3) for key, value in found.items()}


def of_masks(folder, read=lambda picture: np.array(picture.convert("L"))):
    "The row of photos of single objects, by a folder of masks. read: from a picture to uint8 `(H, W)`, white on black."
    masks = [read(Image.open(file)) for file in sorted(folder.glob("*.png"))]
    boxes = [mask_boxes(mask[None, None])[0] for mask in masks]
    sizes = [mask.shape[::-1] for mask in masks]
    return row(folder.parts[len(real.parts)], len(masks), boxes, sizes, [(mask >= 128).mean() for mask in masks])


def of_coco(file, least, largest=False):
    "The row of COCO's objects of at least this share of their image, or of the largest of each image."
    told = json.loads(file.read_text())
    sides = {image["id"]: (image["width"], image["height"]) for image in told["images"]}
    found = [(a, a["area"] / np.prod(sides[a["image_id"]])) for a in told["annotations"] if not a["iscrowd"]]
    found = [(a, share) for a, share in found if share >= least]
    if largest:
        found = list({a["image_id"]: (a, share) for a, share in sorted(found, key=lambda pair: pair[1])}.values())
    boxes = [(x, y, x + w, y + h) for x, y, w, h in (a["bbox"] for a, _ in found)]
    sizes = [sides[a["image_id"]] for a, _ in found]
    name = "coco, largest of each" if largest else f"coco, from {100 * least:g} percent on"
    return row(name, len(told["images"]), boxes, sizes, [share for _, share in found])


def of_world(n, centring, area, size=64):
    "The row of a world."
    world = render_world(n, centring=centring, area=area)
    return row(f"world, centring {centring:g}", n, world.boxes, [(size, size)] * n, (world.masks >= 128).mean((1, 2, 3)))


def of_scenes(n, centring, area, size=64):
    "The row of the world's scenes. A mask covers all objects of its image, so the area is the mean of each image's."
    scenes = render_scenes(n, centring=centring, area=area)
    count = np.bincount(scenes.pictures)
    shares = (scenes.masks >= 128).mean((1, 2, 3)) / count
    return row(f"scenes, centring {centring:g}", n, scenes.boxes, [(size, size)] * len(scenes.boxes), shares)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--csv", type=Path)
args = parser.parse_args()
real = Path(os.environ.get("DILO_REAL_DATA", ROOT.parent / "shared/data"))
area = tuple(load_settings(ROOT / "params.yaml").data.world.area)
rows = [of_masks(folder) for folder in sorted(real.glob("*/masks"))]
if (trimaps := real / "oxford-iiit-pet/annotations/trimaps").is_dir():
    rows.append(of_masks(trimaps, lambda picture: np.where(np.array(picture) == 2, 0, 255).astype(np.uint8)))
coco = real / "coco/annotations/instances_val2017.json"
if coco.is_file():
    rows += [of_coco(coco, 0.02), of_coco(coco, 0.01), of_coco(coco, 0, largest=True)]
if not rows:
    print(f"{real}: holds neither */masks/*.png nor coco/, so there are no photos to compare with", file=sys.stderr)
rows += [of_world(1000, centring, area) for centring in (0.0, 0.5, 1.0)] + [of_scenes(1000, 0.0, area)]
table = pd.DataFrame(rows)
print(table.to_string(index=False))
if args.csv:
    table.to_csv(args.csv, index=False)
