"""Regions and their nearest normal patches, in the photograph's own pixels."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import patchcore_kit as pk
from patchcore_kit import reasons
from patchcore_kit.appearance import Appearance, measure

SMALL = {"resize": 72, "imagesize": 64, "progress": False}


@pytest.fixture(scope="module")
def category(sample_root):
    return pk.load_category(sample_root, "pill")


@pytest.fixture(scope="module")
def detector(category):
    return pk.PatchCore(pk.load_backbone("starter"), scoring="density", progress=False).fit(category.train)


@pytest.fixture(scope="module")
def predictions(detector, category):
    return detector.predict(category.test)


def test_regions_are_what_lies_above_the_threshold():
    anomaly_map, patches = np.zeros((64, 96), dtype=np.float32), np.zeros((8, 12), dtype=np.float32)
    anomaly_map[8:20, 40:60], anomaly_map[50, 90] = 2, 5  # the second is smaller than a patch
    anomaly_map[0, 0], patches[1, 6] = 1, 9
    (one, cell), (other, its) = reasons.find_regions(anomaly_map, patches, 1.5)
    assert reasons.box_of(one) == (90, 50, 91, 51) and cell == 6 * 12 + 11  # the strongest first
    assert reasons.box_of(other) == (40, 8, 60, 20) and its == 1 * 12 + 6 and other.sum() == 12 * 20
    for threshold in (9, None):  # nothing is above it: the strangest patch
        ((region, cell),) = reasons.find_regions(anomaly_map, patches, threshold)
        assert reasons.box_of(region) == (48, 8, 56, 16) == reasons.cell_box(cell, (8, 12), (64, 96))


def test_at_most_five_regions_are_told():
    anomaly_map = np.zeros((64, 64), dtype=np.float32)
    anomaly_map[::8, ::8] = np.arange(64).reshape(8, 8) + 1
    found = reasons.find_regions(anomaly_map, np.zeros((8, 8), dtype=np.float32), 0.5)
    assert [int(anomaly_map[region].max()) for region, _ in found] == [64, 63, 62, 61, 60]


@pytest.mark.parametrize(
    ("transform", "size"),
    [
        (pk.Transform(256, 224), (900, 900)),
        (pk.Transform(256, 224), (750, 150)),
        (pk.Transform((64, 256)), (2000, 8000)),
        (pk.Transform((128, 128)), (97, 211)),
    ],
)
def test_boxes_lie_where_maps_are_placed(transform, size):
    """The box of a region of the map is the box of the same region once it is laid onto the photograph."""
    region = np.zeros(transform.size, dtype=np.float32)
    region[20:37, 30:60] = 1
    placed = transform.place(region, size) > 0.5
    box, wanted = reasons.in_photograph((30, 20, 60, 37), transform, size), reasons.box_of(placed)
    tolerance = 1 + max(side / seen for side, seen in zip(size, transform.resized(size), strict=True))
    assert np.abs(np.subtract(box, wanted)).max() <= tolerance
    assert 0 <= box[0] < box[2] <= size[1] and 0 <= box[1] < box[3] <= size[0]


def test_pictures_have_the_patch_in_the_middle():
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    image[16:24, 40:48] = 255
    picture = reasons.around(image, 2 * 8 + 5, (8, 8))
    assert picture.shape == (64, 64, 3) and picture[28:36, 28:36].min() == 255 and picture.sum() == image.sum()
    corner = reasons.around(image, 0, (8, 8))
    assert corner.shape == (64, 64, 3)


def test_explanations(predictions, detector, category):
    told = predictions.explain(int(predictions.scores.argmax()))
    assert told.verdict == "defective" and told.index > 1 and 1 <= len(told.regions) <= 5
    region = told.regions[0]
    assert region.index == max(r.index for r in told.regions) > 1
    height, width = predictions.sizes[0]
    left, top, right, bottom = region.box
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert region.area <= (right - left) * (bottom - top) * 1.2
    assert len(region.nearest) == 3
    near = region.nearest[0]
    assert near.name in detector.train_names_ and near.picture.shape == region.picture.shape
    assert [normal.distance for normal in region.nearest] == sorted(normal.distance for normal in region.nearest)
    assert near.name in str(told) and "defective, index" in str(told)


def test_the_nearest_normal_patch_is_where_it_is_said(predictions, detector, category):
    """Its picture is cut from that training image, and its distance is that of the two patches' features."""
    i = int(predictions.scores.argmax())
    region = predictions.explain(i).regions[0]
    near = region.nearest[0]
    names = {sample.name: sample for sample in category.train}
    seen = detector.transform.image(names[near.name])
    evidence = predictions.evidence
    row = int(np.flatnonzero(evidence.images == i)[0])
    cell = int(evidence.near[row, 0, 1])
    wanted = reasons.around(seen, cell, detector.grid_)
    assert np.abs(near.picture.astype(int) - wanted).mean() < 6  # but for JPEG
    assert near.box == reasons.in_photograph(
        reasons.cell_box(cell, detector.grid_, detector.transform.size), detector.transform, (128, 128)
    )
    features = pk.embed(detector.backbone, pk.load_images([names[near.name], category.test[i]], detector.transform))
    features = features.unflatten(0, (2, -1)).numpy()
    squares = ((features[1] - features[0][cell]) ** 2).sum(axis=1)
    assert np.isclose(squares, near.distance, rtol=1e-3).any()


def test_good_images_need_no_reason(predictions):
    good = np.flatnonzero(predictions.verdicts == "good")
    assert len(good) and all(predictions.explain(int(i)).regions == () for i in good)
    bad = np.flatnonzero(predictions.verdicts != "good")
    assert all(predictions.explain(int(i)).regions for i in bad)
    assert predictions.explain(-1).name == predictions.names[-1]
    with pytest.raises(IndexError):
        predictions.explain(len(predictions.names))


def test_without_a_threshold_it_is_the_strangest_patch(category):
    detector = pk.PatchCore(pk.load_backbone("starter"), progress=False).fit(category.train[:2])
    told = detector.predict(category.test).explain(0)
    assert told.verdict is None and told.index is None and told.regions[0].index is None
    assert len(told.regions) == 1 and "defective" not in str(told)


def test_reasons_are_saved_with_predictions(predictions, tmp_path):
    predictions.save(tmp_path / "p.npz")
    again = pk.Predictions.load(tmp_path / "p.npz")
    for i in range(len(predictions.names)):
        ours, theirs = again.explain(i), predictions.explain(i)
        assert str(ours) == str(theirs)
        for one, other in zip(ours.regions, theirs.regions, strict=True):
            assert (one.picture == other.picture).all()
            assert all((a.picture == b.picture).all() for a, b in zip(one.nearest, other.nearest, strict=True))
    assert np.array_equal(again.placed(0), predictions.placed(0), equal_nan=True)
    assert again.placed(0).shape == (128, 128)
    with pytest.raises(pk.ResultsError, match="hold no reasons"):
        replace(predictions, evidence=None).explain(0)


def test_some_and_joined(detector, category, predictions):
    some = predictions.of(np.array([7, 2, 9]))
    assert [str(some.explain(i)) for i in range(3)] == [str(predictions.explain(i)) for i in (7, 2, 9)]
    parts = [predictions.of(np.arange(0, 4)), predictions.of(np.arange(4, 4)), predictions.of(np.arange(4, 10))]
    joined = pk.Predictions.joined(parts)
    assert joined.names == predictions.names and (joined.maps == predictions.maps).all()
    assert [str(joined.explain(i)) for i in range(10)] == [str(predictions.explain(i)) for i in range(10)]
    with pytest.raises(pk.ResultsError, match="no predictions to join"):
        pk.Predictions.joined([])


# appearance


def test_what_sets_a_photograph_apart(category):
    images = np.stack([pk.Transform().image(sample) for sample in category.train])
    sizes = np.full((len(images), 2), 128)
    known = Appearance(measure(images), sizes)
    assert known.remarks(known.values, sizes) == [""] * len(images)
    blurred = np.stack([np.asarray(Image.fromarray(x).resize((40, 40)).resize((224, 224))) for x in images])
    for changed, word in (
        (images * 2 // 3, "darker"), (np.minimum(images.astype(int) * 3 // 2, 255), "brighter"), (blurred, "blurred"),
    ):  # fmt: skip
        remarks = known.remarks(measure(changed.astype(np.uint8)), sizes)
        assert all(remark.startswith(f"{word} than all training images") for remark in remarks)
    (other,) = known.remarks(known.values[:1], np.array([[128, 256]]))
    assert other == "of another size, 256x128, than all training images (128x128)"
    every = Appearance(known.values, np.arange(2 * len(images)).reshape(-1, 2))  # each of its own size: no remark
    assert every.remarks(known.values[:1], np.array([[1000, 1000]])) == [""]
