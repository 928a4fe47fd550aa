"The real samples of the pets and of COCO, as the readers of `dilo.transfer` read them."

import json
import os
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from dilo.transfer.scenes import BOX_LAYOUTS, PIXEL_LAYOUTS
from dilo.transfer.sets import Problems, check_photos

DATA = Path(os.environ.get("DILO_REAL_DATA", Path(__file__).resolve().parents[2] / "shared/data"))


def sample(name):
    "The folder of a real data set; skips the test where it is absent."
    if not (DATA / name).is_dir():
        pytest.skip(f"{DATA / name} is absent; DILO_REAL_DATA names the folder of real data")
    return DATA / name


def checked(reader, *given, **options):
    "The two sets of a reader after `check_photos`, without any problem."
    problems = Problems()
    sets = [check_photos(one, problems) for one in reader(*given, problems, **options)]
    assert not problems
    return sets


def test_coco():
    root = sample("coco")
    told = json.loads((root / "annotations/instances_val2017.json").read_text())
    one, same = checked(BOX_LAYOUTS["coco"], root, train="val2017", test="val2017")
    assert len(one.paths) == 100 and sum(map(len, one.labels)) == 712 and sum(crowd.sum() for crowd in one.crowd) == 5
    assert one.ids == same.ids == [image["id"] for image in told["images"]] and one.masks == same.masks
    assert one.numbers == sorted(c["id"] for c in told["categories"]) and len(one.classes) == 80

    names = {c["id"]: c["name"] for c in told["categories"]}
    for row, number in enumerate(one.ids):
        width, height = one.sizes[row].tolist()
        own = [a for a in told["annotations"] if a["image_id"] == number]
        assert [one.classes[label - 1] for label in one.labels[row]] == [names[a["category_id"]] for a in own]
        assert [one.numbers[label - 1] for label in one.labels[row]] == [a["category_id"] for a in own]
        assert one.crowd[row].tolist() == [bool(a["iscrowd"]) for a in own]
        for code, box, annotation in zip(one.masks[row], one.boxes[row], own, strict=True):
            drawn = coco_mask.decode(code)
            theirs = coco_mask.frPyObjects(annotation["segmentation"], height, width)
            assert drawn.shape == (height, width) and (drawn == coco_mask.decode(theirs)).all()
            x, y, across, down = coco_mask.toBbox(code)
            assert np.abs(box - [x, y, x + across, y + down]).max() <= 1, "a box lies around its mask"


def test_coco_polygons(tmp_path):
    root = sample("coco100")
    told = json.loads((root / "instances.json").read_text())
    (tmp_path / "annotations").mkdir()
    for split in ("one", "two"):
        (tmp_path / split).symlink_to(root / "images")
        (tmp_path / f"annotations/instances_{split}.json").write_text(json.dumps(told))
    one, _ = checked(BOX_LAYOUTS["coco"], tmp_path, train="one", test="two")
    assert sum(map(len, one.labels)) == len(told["annotations"]) == 712
    for row, number in enumerate(one.ids):
        width, height = one.sizes[row].tolist()
        own = [a for a in told["annotations"] if a["image_id"] == number]
        for code, annotation in zip(one.masks[row], own, strict=True):
            theirs = coco_mask.merge(coco_mask.frPyObjects(annotation["segmentation"], height, width))
            assert (coco_mask.decode(code) == coco_mask.decode(theirs)).all()


def test_pets_boxes():
    root = sample("oxford-iiit-pet")
    train, test = checked(BOX_LAYOUTS["pets"], root)
    assert len(train.paths) == 198 and len(test.paths) == 98 and not set(train.ids) & set(test.ids)
    assert sum(map(len, train.labels)) + sum(map(len, test.labels)) == 297, "one photo has two heads"
    files = {file.stem for file in (root / "annotations/xmls").glob("*.xml")}
    assert set(train.ids) | set(test.ids) == files
    listed = [line.split() for line in (root / "annotations/list.txt").read_text().splitlines()]
    cats, species = 0, {name: int(number) for name, _, number, _ in listed}
    for one in (train, test):
        for name, boxes, labels in zip(one.ids, one.boxes, one.labels, strict=True):
            told = ElementTree.parse(root / f"annotations/xmls/{name}.xml").getroot()
            limits = [int(told.find("object/bndbox")[side].text) for side in range(4)]
            assert boxes[0].tolist() == [limits[0] - 1, limits[1] - 1, *limits[2:]]
            assert set(labels.tolist()) == {species[name]}, "the species of the list, 1 a cat and 2 a dog"
            cats += (labels == 1).sum()
    assert cats == 198
    assert len(set(test.labels[0]) | set(test.labels[-1])) == 2, "both species are tested on"


def test_pets_pixels():
    root = sample("oxford-iiit-pet")
    train, test = checked(PIXEL_LAYOUTS["pets"], root)
    assert len(train.paths) == 300 and len(test.paths) == 298
    for row in range(0, 300, 50):
        trimap = np.asarray(Image.open(root / f"annotations/trimaps/{train.paths[row].stem}.png"))
        numbers = train.numbers(row)
        assert [int((numbers == n).sum()) for n in (1, 0, 255)] == [int((trimap == n).sum()) for n in (1, 2, 3)]
        assert 0 < (numbers == 1).mean() < 1
