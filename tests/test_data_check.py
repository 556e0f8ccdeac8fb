"""Folders with faults planted in them, and real folders without."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

import patchcore_kit as pk
from patchcore_kit import data_check
from patchcore_kit.data_check import check_folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    return pk.draw_sample_data(folder, ("pill",), train=20, good=3, defective=6, size=256, progress=False) / "pill"


@pytest.fixture(params=["drawn", "bottle"])
def category(request, tmp_path) -> Path:
    """A copy, to plant faults in."""
    if request.param == "drawn":
        original = request.getfixturevalue("drawn")
    else:
        original = request.getfixturevalue("mvtec") / "bottle"
    return Path(shutil.copytree(original, tmp_path / "category"))


@pytest.fixture
def pill(drawn, tmp_path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / "pill"))


def found(folder: Path, kind: str | None = None) -> list[tuple[str, str]]:
    """Kinds and names of the faults."""
    return [(finding.kind, finding.name) for finding in check_folder(folder).faults if kind in (None, finding.kind)]


def change(path: Path, how: Callable[[Image.Image], Image.Image]) -> None:
    how(Image.open(path).convert("RGB")).save(path)


def scaled(image: Image.Image, scale: float) -> Image.Image:
    return image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)


def contents(folder: Path) -> dict:
    """What would show that a file was touched."""
    return {
        path: (path.stat().st_mtime_ns, path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest())
        for path in folder.rglob("*")
    }


def test_planted_faults(category):
    good = category / "train" / "good"
    masks = sorted((category / "ground_truth").glob("*/*.png"))
    tested = {mask: category / "test" / mask.parent.name / mask.name.replace("_mask", "") for mask in masks}
    name = "{:03}.png".format
    (good / name(0)).write_bytes(b"")
    (good / name(1)).write_bytes((good / name(1)).read_bytes()[:-5000])
    (good / "page.jpg").write_text("<!DOCTYPE html><title>404</title>")
    shutil.copy(good / name(3), good / "copy.png")
    scaled(Image.open(good / name(4)), 0.5).save(good / "small.jpg", quality=80)
    Image.open(good / name(5)).save(category / "test" / "good" / "known.jpg", quality=90)
    change(good / name(6), lambda image: image.point(lambda value: 0.6 * value))
    change(good / name(7), lambda image: image.filter(ImageFilter.GaussianBlur(3)))
    change(good / name(8), lambda image: image.convert("L"))
    change(good / name(9), lambda image: image.crop((0, 0, 256, 200)))
    change(masks[0], lambda mask: scaled(mask, 0.5))
    Image.new("L", (256, 256)).save(masks[1])
    Image.new("L", (256, 256), 255).save(masks[2])
    (stray := masks[3].with_name("999_mask.png")).write_bytes(masks[3].read_bytes())
    masks[4].unlink()
    before = contents(category)
    report = check_folder(category)
    print(report)
    assert contents(category) == before
    assert {(finding.kind, finding.name) for finding in report.faults} == {
        ("unreadable", "train/good/000.png"),
        ("unreadable", "train/good/001.png"),
        ("unreadable", "train/good/page.jpg"),
        ("double", "train/good/copy.png"),
        ("double", "train/good/small.jpg"),
        ("train and test", "test/good/known.jpg"),
        ("brightness", "train/good/006.png"),
        ("sharpness", "train/good/007.png"),
        ("colour", "train/good/008.png"),
        ("size", "train/good/009.png"),
        ("size", "train/good/small.jpg"),
        ("mask", masks[0].relative_to(category).as_posix()),
        ("mask", masks[1].relative_to(category).as_posix()),
        ("mask", masks[2].relative_to(category).as_posix()),
        ("mask", stray.relative_to(category).as_posix()),
        ("mask", tested[masks[4]].relative_to(category).as_posix()),
    }
    said = {finding.name: finding.sentence for finding in report.findings}
    assert said["train/good/000.png"] == "cannot be read (it is empty): replace it or remove it"
    assert "web page" in said["train/good/page.jpg"]
    assert said["train/good/copy.png"].startswith("has the very bytes of train/good/003.png")
    assert said["test/good/known.jpg"].startswith("is the same picture as train/good/005.png, which is learnt")
    assert str(category) not in str(report)
    table = report.table()
    assert list(table.columns) == ["kind", "name", "sentence", "fault"]
    assert len(table) == len(report.findings)


@pytest.mark.parametrize("name", ["bottle", "drawn"])
def test_nothing_in_good_folders(request, name):
    folder = request.getfixturevalue("mvtec") / "bottle" if name == "bottle" else request.getfixturevalue("drawn")
    report = check_folder(folder)
    assert [finding for finding in report.findings if finding.kind != "few"] == []
    assert "Nothing to mend." in str(report)
    if name == "bottle":
        assert str(report).startswith("209 good images to learn from, 83 to test\n")
        assert str(report).endswith("209 good images: a threshold can hold 5% false alarms with 95% certainty")


def test_a_set_in_which_every_image_has_another_size(surface):
    report = check_folder(surface / "magnetic_tile")
    assert [(finding.kind, finding.name, finding.fault) for finding in report.findings] == [
        ("size", "train/good", False),
        ("size", "test", False),
    ]


@pytest.mark.parametrize("number", [0, 70, 208])
def test_copies_of_nearly_identical_bottles(mvtec, tmp_path, number):
    """Each in another format, quality or size, and each of the photograph that it was made of."""
    folder = Path(shutil.copytree(mvtec / "bottle" / "train" / "good", tmp_path / "bottles"))
    path = folder / f"{number:03}.png"
    image = Image.open(path)
    for quality in (60, 75, 95):
        image.save(folder / f"x{quality}.jpg", quality=quality)
    for scale in (0.5, 1.5):
        scaled(image, scale).save(folder / f"x{scale}.png")
        scaled(image, scale).save(folder / f"x{scale}.jpg", quality=75)
    image.save(folder / "x.webp", quality=80)
    doubles = [finding for finding in check_folder(folder).findings if finding.kind == "double"]
    assert {finding.name for finding in doubles} == {path.name for path in folder.glob("x*")}
    assert all(f" {path.name}," in finding.sentence for finding in doubles)


def test_copies_of_tiles(surface, tmp_path):
    folder = Path(shutil.copytree(surface / "magnetic_tile" / "train" / "good", tmp_path / "tiles"))
    originals = sorted(folder.iterdir())[::10]
    for path in originals:
        scaled(Image.open(path), 0.5).save(path.with_name(f"x{path.stem}.png"))
        Image.open(path).save(path.with_name(f"y{path.stem}.jpg"), quality=60)
    doubles = {name for _, name in found(folder, "double")}
    assert doubles == {f"x{path.stem}.png" for path in originals} | {f"y{path.stem}.jpg" for path in originals}


def test_a_defect_makes_another_picture(pill):
    """The same photograph but for a scratch, as of a part that was left lying there."""
    image = np.asarray(Image.open(pill / "train" / "good" / "000.png").convert("RGB")).copy()
    image[120:126, 100:130] = np.where(image[120:126, 100:130] > 100, image[120:126, 100:130] - 40, 140)
    Image.fromarray(image).save(pill / "test" / "good" / "900.png")
    assert found(pill, "train and test") == []


def test_even_surfaces_are_not_the_same(tmp_path):
    for number in range(20):
        noise = np.random.default_rng(number).normal(128, 4, (200, 200, 3))
        Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(tmp_path / f"{number}.png")
    assert found(tmp_path) == []


def test_the_same_picture_within_test(pill):
    defect = sorted((pill / "ground_truth").iterdir())[0].name
    shutil.copy(pill / "test" / "good" / "000.png", pill / "test" / "good" / "900.png")
    shutil.copy(pill / "test" / "good" / "001.png", pill / "test" / defect / "901.png")
    doubles = {f.name: (f.fault, f.sentence) for f in check_folder(pill).findings if f.kind == "double"}
    assert doubles["test/good/900.png"][0] is False
    pair = next(said for name, said in doubles.items() if name != "test/good/900.png")
    assert pair[0] is True and "is said to be" in pair[1]


def test_unsorted(pill, tmp_path):
    folder = Path(shutil.copytree(pill / "train" / "good", tmp_path / "photographs"))
    shutil.copytree(folder, folder / "older")
    shutil.copy(folder / "000.png", folder / "again.png")
    (folder / "a.heic").write_bytes(b"x")
    (folder / "link.png").symlink_to(folder / "nothing.png")
    Image.open(folder / "001.png").convert("RGBA").save(folder / "001.png")
    report = check_folder(folder)
    assert (report.train, report.test) == (21, 0)
    assert [(finding.kind, finding.name, finding.fault) for finding in report.findings] == [
        ("folders", "link.png", True),
        ("double", "again.png", True),
        ("left out", "a.heic", False),
        ("left out", "older", False),
        ("format", "001.png", False),
        ("unsorted", ".", False),
    ]
    assert "not sorted into good and defective (1)\n  photographs: learn from these images only if" in str(report)


def test_several_categories(pill, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(pill, root / "one")
    shutil.copytree(pill, root / "two")
    (root / "two" / "train" / "good" / "000.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    report = check_folder(root)
    assert found(root) == [("unreadable", "two/train/good/000.png")]
    assert "git lfs pull" in report.faults[0].sentence
    assert report.good == {"one": 20, "two": 19}
    assert report.train == 39
    assert "\none: 20 good images: a threshold for 5% false alarms holds on average; 59 with 95%" in str(report)


def test_folders_that_loading_refuses(pill):
    """All of them, where loading stops at the first."""
    (pill / "train" / "good" / "link.png").symlink_to("nothing.png")
    shutil.copytree(pill / "train" / "good", pill / "train" / "spare", symlinks=True)
    shutil.copytree(pill / "train" / "good", pill / "train" / "good" / "deep", symlinks=True)
    (pill / "test" / "good").rename(pill / "test" / "OK")
    (pill / "ground_truth").rename(pill / "Ground Truth")
    report = check_folder(pill)
    assert report.train == 20
    assert {finding.name for finding in report.faults if finding.kind == "folders"} == {
        "train/good/link.png",
        "train/spare",
        "train/spare/link.png",
        "train/good/deep",
        "train/good/deep/link.png",
        "test/OK",
        ".",
    }
    assert "Ground Truth is not read: rename it to ground_truth" in [finding.sentence for finding in report.faults]
    assert [finding for finding in report.faults if finding.kind == "mask"] == []
    assert str(pill) not in str(report)


def test_a_category_without_images(tmp_path):
    (tmp_path / "train" / "good").mkdir(parents=True)
    assert [name for _, name in found(tmp_path, "folders")] == ["."]


@pytest.mark.parametrize("name", ["train", "test"])
def test_what_loading_reads_is_all_looked_at(pill, name):
    category, report = pk.load_category(pill.parent, "pill"), check_folder(pill)
    assert len(getattr(category, name)) == getattr(report, name)


def test_12_bits(pill, tmp_path):
    """Photographs of 12 bits in 16 are told apart as well as those of 8."""
    folder = tmp_path / "deep"
    folder.mkdir()
    for path in sorted((pill / "train" / "good").iterdir()):
        Image.fromarray(np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16).save(folder / path.name)
    change_16 = np.asarray(Image.open(folder / "003.png"))
    Image.fromarray((change_16 * 0.6).astype(np.uint16)).save(folder / "003.png")
    shutil.copy(folder / "004.png", folder / "x.png")
    assert found(folder) == [("double", "x.png"), ("brightness", "003.png")]
    assert "12 are used" in check_folder(folder).table().set_index("kind").sentence["format"].iloc[0]


def test_many_odd_ones_are_told_once(pill):
    for path in sorted((pill / "train" / "good").iterdir())[:8]:
        change(path, lambda image: image.point(lambda value: 0.6 * value))
    told = [finding for finding in check_folder(pill).findings if finding.kind == "brightness"]
    assert [(finding.name, finding.fault) for finding in told][:1] == [("train/good", False)]
    assert told[0].sentence.startswith("8 of 20 images differ in brightness")


@pytest.mark.parametrize(
    ("n", "said"),
    [
        (1, "1 good image: too few for a threshold, which needs 3"),
        (3, "is extrapolated, promising nothing; 19 hold it on average, 59 with 95% certainty"),
        (19, "holds on average; 59 with 95% certainty"),
        (59, "can hold 5% false alarms with 95% certainty"),
    ],
)
def test_what_a_number_of_images_promises(n, said):
    assert said in str(data_check.Check(Path("x"), {"": n}, 0, ()))


def test_long_lists_are_cut():
    finding = data_check.Finding("double", "a.png", "is there twice", True)
    findings = tuple(replace(finding, name=f"{number}.png") for number in range(8))
    assert "4.png: is there twice\n  and 3 more\n" in str(data_check.Check(Path("x"), {"": 60}, 0, findings))


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(pk.DataError, match="no folder"):
        check_folder(tmp_path / "nothing")
    with pytest.raises(pk.DataError, match="no images in"):
        check_folder(tmp_path)
