import inspect
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from patchcore_kit.errors import ResultsError, SettingsError
from patchcore_kit.sample_data import CATEGORIES, CENTRE, DEFECTS, FRAME, draw_sample_data, paint

SMALL = {"train": 2, "good": 1, "defective": 3, "size": 64, "progress": False}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    return draw_sample_data(tmp_path_factory.mktemp("drawn"), workers=2, **SMALL)


def test_layout_and_counts(drawn):
    assert sorted(p.name for p in drawn.iterdir()) == sorted(CATEGORIES), "and nothing half-written"
    assert len(CATEGORIES) >= 6
    assert all(len(kinds) >= 3 for kinds in DEFECTS.values())
    for name in CATEGORIES:
        expected = ["train/good/000.png", "train/good/001.png", "test/good/000.png"]
        for kind in DEFECTS[name]:
            expected += [f"test/{kind}/000.png", f"ground_truth/{kind}/000_mask.png"]
        assert sorted(contents(drawn / name)) == sorted(expected)


def test_images_are_rgb_and_all_different(drawn):
    images = [p for p in drawn.rglob("*.png") if "ground_truth" not in p.parts]
    assert {(pixels(p).shape, pixels(p).dtype) for p in images} == {((64, 64, 3), np.dtype(np.uint8))}
    assert len({p.read_bytes() for p in images}) == len(images)


def test_masks_are_black_and_white(drawn):
    for path in drawn.rglob("*_mask.png"):
        mask = pixels(path)
        assert mask.shape == (64, 64)
        assert np.unique(mask).tolist() == [0, 255], path


def test_same_bytes_for_any_number_of_workers_and_other_categories(drawn, tmp_path):
    draw_sample_data(tmp_path, ["screw", "weave"], workers=1, **SMALL)
    for name in ("screw", "weave"):
        assert contents(tmp_path / name) == contents(drawn / name)


def test_another_seed_draws_other_images(drawn, tmp_path):
    draw_sample_data(tmp_path, ["pill"], seed=1, **SMALL)
    new, old = contents(tmp_path / "pill"), contents(drawn / "pill")
    assert new.keys() == old.keys()
    assert all(new[name] != old[name] for name in new if "ground_truth" not in name)


def test_defects_are_spread_evenly_over_their_kinds(tmp_path):
    draw_sample_data(tmp_path, ["wood"], **{**SMALL, "size": 32, "train": 0, "good": 0, "defective": 8})
    counts = [len(list((tmp_path / "wood/test" / kind).iterdir())) for kind in DEFECTS["wood"]]
    assert counts == [3, 3, 2]
    defaults = inspect.signature(draw_sample_data).parameters
    assert all(defaults["defective"].default / len(kinds) >= 6 for kinds in DEFECTS.values())


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_defective_part_equals_its_good_twin_outside_the_mask(category):
    good, empty = paint(category, np.random.default_rng(3))
    assert good.dtype == np.uint8
    assert not empty.any()
    for defect in DEFECTS[category]:
        bad, mask = paint(category, np.random.default_rng(3), defect)
        change = np.abs(bad.astype(int) - good).max(2)
        assert change[~ndimage.binary_dilation(mask, iterations=4)].max() <= 4, "3 are allowed, and rounding"
        assert change[mask].max() > 8, "the defect is there"
        assert 20 <= mask.sum() <= 8000
        margin = (FRAME - CENTRE) // 2
        assert mask.sum() == mask[margin:-margin, margin:-margin].sum(), "a centre crop keeps all of it"


def test_painting_goes_on_from_the_same_generator():
    rng = np.random.default_rng(0)
    first, second = paint("pill", rng, size=64)[0], paint("pill", rng, size=64)[0]
    assert (first != second).any()


def test_an_existing_category_is_left_alone(drawn, tmp_path):
    draw_sample_data(tmp_path, ["board"], **SMALL)
    image = tmp_path / "board/train/good/000.png"
    image.write_bytes(b"my own")
    draw_sample_data(tmp_path, ["board", "pill"], **SMALL)
    assert image.read_bytes() == b"my own"
    assert contents(tmp_path / "pill") == contents(drawn / "pill")


def test_an_incomplete_category_is_neither_used_nor_overwritten(tmp_path):
    own = tmp_path / "screw" / "train" / "good" / "mine.png"
    own.parent.mkdir(parents=True)
    own.touch()
    with pytest.raises(ResultsError, match="screw"):
        draw_sample_data(tmp_path, ["pill", "screw"], **SMALL)
    assert list(contents(tmp_path)) == ["screw/train/good/mine.png"]


def test_an_interrupted_call_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full_disk(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(ResultsError, match=r"weave: no space left"):
        draw_sample_data(tmp_path, ["weave"], **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResultsError, match="file"):
        draw_sample_data(tmp_path / "file", ["pill"], **SMALL)


@pytest.mark.parametrize(
    "call",
    [
        lambda folder: draw_sample_data(folder, ["pill", "bottle"], **SMALL),
        lambda folder: paint("bottle", np.random.default_rng(0)),
    ],
)
def test_an_unknown_category_is_named_with_those_there_are(tmp_path, call):
    with pytest.raises(SettingsError, match="bottle") as error:
        call(tmp_path)
    assert all(name in str(error.value) for name in CATEGORIES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "value"),
    [("train", -1), ("good", -1), ("defective", -2), ("seed", -1), ("workers", 0), ("size", 8)],
)
def test_numbers_that_cannot_work_are_refused(tmp_path, setting, value):
    with pytest.raises(SettingsError, match=f"{setting}={value}"):
        draw_sample_data(tmp_path, ["pill"], **{**SMALL, setting: value})


def test_an_unknown_defect_is_named_with_those_there_are():
    with pytest.raises(SettingsError, match=r"crack.*chip, misprint, spots"):
        paint("pill", np.random.default_rng(0), "crack")
