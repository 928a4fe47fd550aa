"Readers of fine-grained classes, attributes and landmarks, on real samples of CUB-200-2011 and 300W where they are there."

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from dilo.transfer import Problems, check_photos, read_layout
from dilo.transfer.faces import ATTRIBUTE_LAYOUTS, POINT_LAYOUTS, read_300w
from dilo.transfer.fine import LABEL_LAYOUTS

DATA = Path(os.environ.get("DILO_REAL_DATA", ROOT.parent / "shared/data"))


def sample(name):
    "The folder of a real sample; skips the test where it is absent."
    if not (DATA / name).is_dir():
        pytest.skip(f"{DATA / name} is absent; DILO_REAL_DATA names the folder of real samples")
    return DATA / name


def checked(reader, root):
    "Train and test set of a reader, with all photos decoded; there must be no problem."
    problems = Problems()
    sets = [check_photos(one, problems) for one in reader(root, problems)]
    assert problems == []
    return sets


def test_classes_of_cub():
    train, test = checked(LABEL_LAYOUTS["cub"], sample("CUB_200_2011"))
    assert (len(train.paths), len(test.paths)) == (300, 243)
    assert train.classes == test.classes and len(train.classes) == 10
    assert train.classes[0] == "001.Black_footed_Albatross"
    for one in (train, test):  # the folder of a photo names its class, too
        assert [one.classes[label] for label in one.labels] == [path.parent.name for path in one.paths]
        assert set(one.labels) == set(range(10)) and (one.sizes.max(1) <= 320).all()


def test_visible_parts_of_cub():
    train, test = checked(ATTRIBUTE_LAYOUTS["cub"], sample("CUB_200_2011"))
    assert train.values.shape == (300, 15) and test.values.shape == (243, 15)
    assert round(np.concatenate([train.values, test.values]).mean(), 2) == 0.76
    assert set(np.unique(train.values)) == {0, 1} and "left eye" in train.names
    # a bird from the side shows one eye
    left, right = (train.values[:, train.names.index(f"{side} eye")] for side in ("left", "right"))
    assert (left + right == 1).mean() > 0.7


def test_places_of_the_parts_of_cub():
    train, test = checked(POINT_LAYOUTS["cub"], sample("CUB_200_2011"))
    assert train.points.shape == (300, 15, 2) and test.points.shape == (243, 15, 2) and train.span == "box"
    for one in (train, test):
        inside = (one.points >= one.crops[:, None, :2]) & (one.points <= one.crops[:, None, 2:])
        assert inside.all(2)[one.visible].mean() > 0.99
        sides = one.crops[:, 2:] - one.crops[:, :2]
        assert np.allclose(one.spans, np.sqrt(sides.prod(1)) / 1.2, rtol=1e-4)
    names = [train.names[other] for other in train.mirror]
    assert [one for one, other in zip(train.names, names) if one != other] == [
        f"{side} {part}" for side in ("left", "right") for part in ("eye", "leg", "wing")
    ]
    flipped = [name.replace("left", "?").replace("right", "left").replace("?", "right") for name in train.names]
    assert names == flipped


def test_points_of_300w():
    train, test = checked(POINT_LAYOUTS["300w"], sample("300W"))
    assert train.points.shape == (337, 68, 2) and test.points.shape == (330, 68, 2)
    assert set(train.parts) == {"train"} and set(test.parts) == {"common"}
    for one in (train, test):
        eyes = one.points[:, [36, 45]]
        assert np.allclose(one.spans, np.hypot(*(eyes[:, 0] - eyes[:, 1]).T), rtol=1e-5)
        assert ((one.points >= one.crops[:, None, :2]) & (one.points <= one.crops[:, None, 2:])).all()
        assert np.allclose(*(one.crops[:, 2:] - one.crops[:, :2]).T, rtol=1e-4)
        middle = one.points[:, 36:48].mean(1)  # the first points are those on the left of the photo
        assert (one.points[:, 36, 0] < middle[:, 0]).all() and (one.points[:, 45, 0] > middle[:, 0]).all()


def test_the_mean_face_is_its_own_mirror():
    "Faces look to both sides alike, so that their mean is nearly symmetric, if the table of the flip is right."
    _, test = checked(read_300w, sample("300W"))
    low, side = test.crops[:, None, :2], (test.crops[:, 2] - test.crops[:, 0])[:, None, None]
    mean = ((test.points - low) / side).mean(0)
    flipped = np.array([1, 0]) + np.array([-1, 1]) * mean
    flipped[:, 0] += (mean[:, 0] - flipped[:, 0]).mean()
    nearest = np.linalg.norm(flipped[:, None] - mean[None], axis=2).argmin(1)
    assert nearest.tolist() == test.mirror.tolist()


def test_pupils_are_closer_than_outer_corners():
    problems = Problems()
    sets = {span: read_300w(sample("300W"), problems, span=span)[1] for span in ("inter-ocular", "inter-pupil", "box")}
    ratio = np.median(sets["inter-ocular"].spans / sets["inter-pupil"].spans)
    _, test, _ = read_layout("landmarks", "300w", sample("300W"), options={"span": "box"})  # as `--option span=box` does
    assert np.array_equal(test.spans, sets["box"].spans)
    assert 1.3 < ratio < 1.5 and not problems and {one.span for one in sets.values()} == set(sets)
