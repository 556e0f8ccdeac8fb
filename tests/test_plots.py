import numpy as np
import pytest
from PIL import Image

import patchcore_kit as pk
from patchcore_kit.datasets import Transform
from patchcore_kit.plots import GAP, HEADER, save_segmentation_images, segmentation_image


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def panel(picture, i, shape=(40, 50)):
    left = GAP + i * (shape[1] + GAP)
    return np.asarray(picture)[HEADER : HEADER + shape[0], left : left + shape[1]]


def test_panels_show_what_they_are_given(image):
    mask = np.zeros((40, 50), dtype=bool)
    mask[10:20, 5:9] = True
    picture = segmentation_image([("image", image), ("mask", mask), ("map", mask * 3.0)], 0, 3, "caption")
    assert (panel(picture, 0) == image).all()
    assert (panel(picture, 1) == mask[..., None] * 255).all()
    heat = panel(picture, 2).astype(int).sum(axis=2)
    assert heat[mask].min() > heat[~mask].max()


def test_maps_share_one_scale(image):
    weak, strong = np.full((40, 50), 1.0), np.full((40, 50), 10.0)
    colours = [panel(segmentation_image([("map", values)], 0, 10), 0)[0, 0] for values in (weak, strong)]
    assert colours[0].sum() < 100  # a good part does not glow because it is alone
    assert colours[1].sum() > 600


def test_constant_maps(image):
    segmentation_image([("image", image), ("map", np.zeros((40, 50)))], 0, 0)


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_pictures_of_any_number_with_and_without_masks(tmp_path, image, count, masks):
    samples = []
    for i in range(count):
        path = tmp_path / "part" / "test" / "dent" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        samples.append(pk.Sample(f"test/dent/{i}.jpg", path, None, "dent"))
    maps = np.random.default_rng(0).random((count, 32, 40)).astype(np.float32)
    truth = maps > 0.5 if masks else None
    names = tuple(sample.name for sample in samples)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    predictions = pk.Predictions(np.ones(count), maps, np.ones(count, dtype=int), truth, names, weights="random")
    save_segmentation_images(tmp_path / "out", samples, Transform((32, 40)), predictions, progress=False)
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == [
        f"part_test_dent_{i}.jpg.png" for i in range(count)
    ]
    panels = 4 if masks else 2
    for path in (tmp_path / "out").glob("*.png"):
        with Image.open(path) as picture:
            assert picture.width > panels * 46
    assert (tmp_path / "out" / "thesis.txt").exists()
