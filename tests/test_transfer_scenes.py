"Readers of boxes and class numbers on real samples."

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from dilo.transfer.scenes import read_coco_boxes, read_pets_boxes, read_pets_pixels
from dilo.transfer.sets import Problems, check_photos


REAL_DATA = Path(os.environ.get("DILO_REAL_DATA", ROOT.parent / "shared/data"))


def there(name):
    if not (REAL_DATA / name).is_dir():
        pytest.skip(f"{REAL_DATA / name}: no real photos here")
    return REAL_DATA / name


def test_coco():
    from pycocotools.coco import COCO

    root, problems = there("coco"), Problems()
    one, _ = read_coco_boxes(root, problems, train="val2017", test="val2017")
    one = check_photos(one, problems)
    assert problems == [] and len(one.paths) == 100
    assert sum(map(len, one.labels)) == 712 and sum(int(c.sum()) for c in one.crowd) == 5
    told = COCO(str(root / "annotations/instances_val2017.json"))
    from pycocotools import mask

    for row in (0, 17, 99):
        theirs = [told.annToMask(a) for a in told.loadAnns(told.getAnnIds(imgIds=[one.ids[row]]))]
        assert len(theirs) == len(one.masks[row])
        assert all((a == mask.decode(b)).all() for a, b in zip(theirs, one.masks[row]))


def test_pets():
    root, problems = there("oxford-iiit-pet"), Problems()
    pixels = [check_photos(one, problems) for one in read_pets_pixels(root, problems)]
    assert [len(one.paths) for one in pixels] == [300, 300] or sum(len(one.paths) for one in pixels) >= 590
    assert set(np.unique(pixels[0].numbers(0))) <= {0, 1, 255}
    boxes = [check_photos(one, problems) for one in read_pets_boxes(root, problems)]
    assert sum(len(one.paths) for one in boxes) >= 290 and not problems, problems[:3]
