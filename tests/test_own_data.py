"""Real images as people have them: whatever form the files take, the numbers are those of the original."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import patchcore_kit as pk

QUARTER_TURN = Image.Exif()
QUARTER_TURN[0x0112] = 6  # to be shown clockwise by a quarter


@pytest.fixture(scope="module")
def bottle(mvtec, tmp_path_factory) -> Path:
    """Fewer images of the real category, of every kind."""
    folder = tmp_path_factory.mktemp("bottle") / "original" / "bottle"
    for split, every in (("train", 4), ("test", 2)):
        for kind in sorted((mvtec / "bottle" / split).iterdir()):
            for path in sorted(kind.iterdir())[::every]:
                copy(path, folder / split / kind.name / path.name)
                mask = mvtec / "bottle" / "ground_truth" / kind.name / f"{path.stem}_mask.png"
                if mask.is_file():
                    copy(mask, folder / "ground_truth" / kind.name / mask.name)
    return folder


def copy(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, to)


def rewritten(bottle: Path, folder: Path, image=shutil.copy, mask=shutil.copy) -> Path:
    """A copy of the category whose images and masks are written anew by these functions of (path, new path)."""
    for path in bottle.rglob("*.png"):
        to = folder / "bottle" / path.relative_to(bottle)
        to.parent.mkdir(parents=True, exist_ok=True)
        (mask if "ground_truth" in path.parts else image)(path, to)
    return folder


def evaluated(category: pk.Category) -> dict:
    detector = pk.PatchCore(pk.load_backbone("starter"), percentage=0.02, progress=False).fit(category.train)
    return pk.evaluate(detector.predict(category.test))


@pytest.fixture(scope="module")
def original(bottle) -> dict:
    return evaluated(pk.load_category(bottle.parent, "bottle"))


def same(metrics: dict, original: dict) -> bool:
    print({name: (metrics[name], original[name]) for name in ("instance_auroc", "full_pixel_auroc")})
    return all(abs(metrics[name] - original[name]) < 0.002 for name in ("instance_auroc", "full_pixel_auroc"))


def twelve_bits(path: Path, to: Path) -> None:
    """Grey levels of a 12-bit camera, in files of 16; the lower four bits hold noise, as a camera's do."""
    grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16
    Image.fromarray(grey + np.random.default_rng(0).integers(0, 16, grey.shape, dtype=np.uint16)).save(to)


def turned(path: Path, to: Path) -> None:
    Image.open(path).transpose(Image.Transpose.ROTATE_90).save(to.with_suffix(".tif"), exif=QUARTER_TURN)


def two_colours(path: Path, to: Path) -> None:
    Image.open(path).convert("L").quantize(2).save(to)


def loco(path: Path, to: Path) -> None:
    """A folder for each image, with the mask in two halves of different values."""
    folder = to.with_name(to.stem.removesuffix("_mask"))
    folder.mkdir()
    mask = np.asarray(Image.open(path)) > 127
    left = np.arange(mask.shape[1]) < mask.shape[1] / 2
    for number, half in enumerate((left, ~left)):
        Image.fromarray((mask & half).astype(np.uint8) * np.uint8(255 - 7 * number)).save(folder / f"00{number}.png")


def test_12_bits_in_16(bottle, tmp_path, caplog):
    """Beside the same images in 8 bits of grey; without their depth there are 16 levels left of them."""
    grey = rewritten(bottle, tmp_path / "grey", lambda path, to: Image.open(path).convert("L").save(to))
    deep = rewritten(bottle, tmp_path / "deep", twelve_bits)
    wanted = evaluated(pk.load_category(grey, "bottle"))
    assert same(evaluated(pk.load_category(deep, "bottle")), wanted)
    assert "12 bits are assumed and 4095 is white" in caplog.text


@pytest.mark.parametrize(
    "options",
    [{"image": turned, "mask": turned}, {"mask": two_colours}, {"mask": loco}],
    ids=["turned", "palette", "LOCO"],
)
def test_files_of_another_form(bottle, original, tmp_path, options):
    assert same(evaluated(pk.load_category(rewritten(bottle, tmp_path, **options), "bottle")), original)


def test_turned_images_go_with_upright_masks(bottle, tmp_path):
    category = pk.load_category(rewritten(bottle, tmp_path, image=turned, mask=turned), "bottle")
    sample = next(sample for sample in category.test if sample.label == 1)
    name = Path(sample.mask_path.parent.name, sample.mask_path.with_suffix(".png").name)
    before = pk.Sample("a", bottle / "test" / sample.defect / f"{sample.path.stem}.png", bottle / "ground_truth" / name)
    assert (pk.Transform().image(sample) == pk.Transform().image(before)).all()
    assert (pk.Transform().mask(sample) == pk.Transform().mask(before)).all()


def test_frames_in_memory(bottle, original):
    category = pk.load_category(bottle.parent, "bottle")
    train, test = (
        [np.asarray(Image.open(sample.path).convert("RGB")) for sample in samples]
        for samples in (category.train, category.test)
    )
    detector = pk.PatchCore(pk.load_backbone("starter"), percentage=0.02, progress=False).fit(iter(train))
    labels = np.array([sample.label for sample in category.test])  # which frames do not have
    masks = np.stack([detector.transform.mask(sample) for sample in category.test])
    assert same(pk.evaluate(replace(detector.predict(test), labels=labels, masks=masks)), original)
