import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

import patchcore_kit as pk
from patchcore_kit.datasets import Sample, as_samples, read_mask, read_rgb
from patchcore_kit.transforms import IMAGENET_MEAN, IMAGENET_STD, Transform, normalise, read_batches


def save(path: Path, values: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)
    return path


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture
def part(tmp_path, noise):
    """A category of the MVTec layout with everything that may lie about in one."""
    category = tmp_path / "root" / "part"
    for name in ("train/good/000.png", "test/good/000.png", "test/dent/000.png", "test/dent/002.png"):
        save(category / name, noise)
    for name in ("000", "002"):
        save(category / f"ground_truth/dent/{name}_mask.png", np.zeros((40, 60), dtype=np.uint8))
    for litter in ("train/good/.DS_Store", "test/desktop.ini", "test/dent/Thumbs.db", "train/good/._000.png"):
        (category / litter).write_bytes(b"litter")
    (category / "test" / ".ipynb_checkpoints").mkdir()
    return category


def test_category(part):
    category = pk.load_category(part.parent, "part")
    assert [s.name for s in category.train] == ["train/good/000.png"]
    assert [s.name for s in category.test] == ["test/dent/000.png", "test/dent/002.png", "test/good/000.png"]
    assert [s.label for s in category.test] == [1, 1, 0]
    assert [s.mask_path and s.mask_path.name for s in category.test] == ["000_mask.png", "002_mask.png", None]


def test_masks_are_paired_by_name_not_by_position(part):
    (part / "ground_truth/dent/000_mask.png").unlink()
    masks = {s.name: s.mask_path for s in pk.load_category(part.parent, "part").test}
    assert masks["test/dent/000.png"] is None
    assert masks["test/dent/002.png"].name == "002_mask.png"


def test_images_without_sub_folders(tmp_path, noise):
    save(tmp_path / "part/train/a.jpg", noise)
    save(tmp_path / "part/test/b.bmp", noise)
    category = pk.load_category(tmp_path, "part")
    assert [s.label for s in category.train] == [0]
    assert [s.label for s in category.test] == [-1]


def test_folder_of_photographs(tmp_path, noise):
    save(tmp_path / "b.png", noise)
    save(tmp_path / "a.webp", noise)
    assert [(s.name, s.label) for s in pk.load_folder(tmp_path)] == [("a.webp", -1), ("b.png", -1)]


def test_samples_files_and_folders(tmp_path, noise):
    path = save(tmp_path / "a.png", noise)
    sample = Sample("a", path)
    for images in (tmp_path, str(tmp_path), path, [path], [str(path)]):
        assert [(s.path, s.label) for s in as_samples(images)] == [(path, -1)]
    assert as_samples([sample]) == [sample]
    for wrong in (3, pk.Category("a", tmp_path, [], []), [3]):
        with pytest.raises(pk.SettingsError, match="are no images: give samples"):
            as_samples(wrong)


def test_images_that_lie_too_deep(part, noise):
    save(part / "train/good/early shift/000.png", noise)
    fails(part, r"early shift holds images too deep to be read")
    with pytest.raises(pk.DataError, match="name one of its folders, as "):
        pk.load_folder(part / "test")
    with pytest.raises(pk.DataError, match="no folder"):
        pk.load_folder(part / "nowhere")


def test_found_without_configuration(tmp_path, monkeypatch):
    monkeypatch.delenv("MVTEC_ROOT", raising=False)
    monkeypatch.setenv("PATCHCORE_WORK", str(tmp_path))
    assert pk.find_data() is None
    (tmp_path / "mvtec_anomaly_detection").mkdir()
    assert pk.find_data() is None  # empty, as a volume that is mounted for nothing
    for folder in ("mvtec_anomaly_detection", "data/mvtec_anomaly_detection", "elsewhere"):
        (tmp_path / folder / "bottle/train").mkdir(parents=True)
        if folder == "elsewhere":
            monkeypatch.setenv("MVTEC_ROOT", str(tmp_path / folder))
        assert pk.find_data() == tmp_path / folder


def fails(part, message):
    with pytest.raises(pk.DataError, match=message):
        pk.load_category(part.parent, "part")


def test_no_data_folder(tmp_path):
    with pytest.raises(pk.DataError, match=r"no data folder .*nowhere"):
        pk.load_category(tmp_path / "nowhere", "part")


def test_no_such_category(part):
    with pytest.raises(pk.DataError, match=r"no category 'prat' in .*: did you mean 'part'"):
        pk.load_category(part.parent, "prat")


def test_empty_category(tmp_path):
    (tmp_path / "part/train/good").mkdir(parents=True)
    with pytest.raises(pk.DataError, match=r"no images in .*good"):
        pk.load_category(tmp_path, "part")


def test_mask_without_image(part):
    save(part / "ground_truth/dent/007_mask.png", np.zeros((40, 60), dtype=np.uint8))
    fails(part, "mask .*007_mask.png has no image 007")


def test_masks_of_a_defect_without_images(part):
    save(part / "ground_truth/scratch/000_mask.png", np.zeros((40, 60), dtype=np.uint8))
    fails(part, "masks in .*scratch have no images")


def test_defective_images_are_never_learnt(part, noise):
    save(part / "train/dent/000.png", noise)
    fails(part, r"train/dent holds images, but only good ones are learnt")


def test_litter_among_the_masks(part):
    save(part / "ground_truth/.ipynb_checkpoints/000_mask.png", np.zeros((40, 60), dtype=np.uint8))
    assert len(pk.load_category(part.parent, "part").test) == 3


def test_folders_that_may_not_be_read(part, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    for call in (pk.list_categories, pk.load_folder):
        with pytest.raises(pk.DataError, match=r"cannot read .* \(Permission denied\)"):
            call(part.parent)


def test_mask_of_another_size(part):
    save(part / "ground_truth/dent/000_mask.png", np.zeros((40, 61), dtype=np.uint8))
    fails(part, "000_mask.png is 61x40 but its image .*000.png is 60x40")


@pytest.mark.parametrize("keep", [0, 20, 0.5, 0.95])
def test_damaged_image(part, noise, keep):
    path = part / "train/good/000.png"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep > 1 else keep * len(content))])
    sample = pk.load_category(part.parent, "part").train[0]
    with pytest.raises(pk.DataError, match=r"cannot read image .*000.png"):
        Transform(32, 24).image(sample)


def test_damaged_image_with_a_mask_is_found_at_once(part):
    (part / "test/dent/000.png").write_text("not an image")
    fails(part, "cannot read image .*dent/000.png")


def test_image_that_vanished(part):
    sample = pk.load_category(part.parent, "part").train[0]
    sample.path.unlink()
    with pytest.raises(pk.DataError, match=r"no file .*000.png"):
        Transform(32, 24).image(sample)


def test_grey_16_bit_palette_alpha_and_turned(tmp_path, noise):
    grey = noise[..., 0]
    assert (np.asarray(read_rgb(save(tmp_path / "grey.png", grey))) == grey[..., None]).all()
    deep = grey.astype(np.uint16) * 256 + 77
    assert (np.asarray(read_rgb(save(tmp_path / "deep.png", deep))) == grey[..., None]).all()
    assert (np.asarray(read_rgb(save(tmp_path / "deep.tiff", deep))) == grey[..., None]).all()
    Image.fromarray(grey // 8).convert("P").save(tmp_path / "palette.png")
    assert (np.asarray(read_rgb(tmp_path / "palette.png")) == (grey // 8)[..., None]).all()
    clear = np.dstack([noise, grey])
    assert (np.asarray(read_rgb(save(tmp_path / "alpha.png", clear))) == noise).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it clockwise by a quarter
    turned = np.asarray(read_rgb(save(tmp_path / "turned.png", noise, exif=exif)))
    assert (turned == np.rot90(noise, -1)).all()


def test_floating_point_pixels_are_refused(tmp_path):
    path = save(tmp_path / "float.tiff", np.ones((8, 8), dtype=np.float32))
    with pytest.raises(pk.DataError, match="floating-point"):
        read_rgb(path)


def test_turned_image_and_its_mask_agree_in_size(part, noise):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(part / "test/dent/000.png", noise, exif=exif)
    fails(part, "000_mask.png is 60x40 but its image .* is 40x60")


@pytest.mark.parametrize(
    ("values", "mode"),
    [
        ([0, 255], "L"),
        ([0, 1], "L"),
        ([0, 1], "P"),
        ([0, 255], "RGB"),
        ([0, 1], "I;16"),
        ([3, 252], "L"),
        ([0, 1], "1"),
    ],
)
def test_masks_of_every_kind(tmp_path, values, mode):
    defect = np.zeros((10, 12), dtype=bool)
    defect[2:5, 3:9] = True
    pixels = np.where(defect, values[1], values[0])
    if mode == "1":
        image = Image.fromarray(defect)
    elif mode == "I;16":
        image = Image.fromarray(pixels.astype(np.uint16))
    elif mode == "P":
        image = Image.fromarray(pixels.astype(np.uint8))
        image.putpalette([0, 0, 0, 128, 0, 0])
    else:
        image = Image.fromarray(pixels.astype(np.uint8)).convert(mode)
    image.save(tmp_path / "mask.png")
    assert (np.asarray(read_mask(tmp_path / "mask.png")) == defect * 255).all()


def test_masks_in_the_alpha_channel(tmp_path):
    defect = np.zeros((10, 12), dtype=np.uint8)
    defect[2:5, 3:9] = 255
    white = np.full((10, 12), 255, dtype=np.uint8)
    save(tmp_path / "shape.png", np.dstack([white, white, white, defect]))
    save(tmp_path / "colour.png", np.dstack([defect, defect, defect, white]))
    save(tmp_path / "none.png", np.dstack([white * 0, white * 0, white * 0, white]))
    assert not np.asarray(read_mask(tmp_path / "none.png")).any()
    for name in ("shape.png", "colour.png"):
        assert (np.asarray(read_mask(tmp_path / name)) == defect).all()


def test_whole_numbers_of_any_kind():
    assert Transform(np.int64(256), np.int32(224)) == Transform(256, 224)
    assert Transform([np.int64(30), 50]).size == (30, 50)


@pytest.mark.parametrize("size", [(300, 300), (200, 333), (500, 260)])
def test_images_and_masks_equal_the_reference_transforms(tmp_path, size):
    rng = np.random.default_rng(1)
    image = save(tmp_path / "image.png", rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    square = np.zeros(size, dtype=np.uint8)
    square[size[0] // 3 : size[0] // 2, size[1] // 3 : size[1] // 2] = 255
    mask = save(tmp_path / "mask.png", square)
    crop = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
    wanted = transforms.Compose([*crop, transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])(Image.open(image))
    wanted_mask = transforms.Compose(crop)(Image.open(mask))[0].int().bool().numpy()
    sample = Sample("image.png", image, mask, "dent")
    assert torch.allclose(normalise(Transform().image(sample)[None])[0], wanted, atol=1e-6)
    inside, nearest = Transform().mask(sample), Transform(mask_rule="nearest").mask(sample)
    assert (inside == wanted_mask).all()
    assert inside.sum() <= nearest.sum()
    assert nearest[inside].all()


def test_rectangular_without_a_crop(tmp_path, noise):
    sample = Sample("a.png", save(tmp_path / "a.png", noise))
    assert Transform((75, 150)).size == (75, 150)
    assert Transform((75, 150)).image(sample).shape == (75, 150, 3)
    assert (Transform((40, 60)).image(sample) == noise).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resize": 0}, "resize is 0"),
        ({"resize": 200}, "imagesize 224 cannot be cut from images resized to 200"),
        ({"resize": (10, 20, 30)}, "resize is"),
        ({"resize": [256]}, "resize is"),
        ({"resize": 256.0}, "resize is 256.0"),
        ({"resize": "256"}, "resize is '256'"),
        ({"imagesize": 0}, "imagesize is 0"),
        ({"mask_rule": "closest"}, "unknown mask rule 'closest'"),
    ],
)
def test_sizes_that_cannot_work(settings, message):
    with pytest.raises(pk.SettingsError, match=message):
        Transform(**settings)


@pytest.mark.parametrize("count", [0, 1, 4, 5, 23])
def test_batches_are_whole_and_in_order(count):
    samples = [Sample(str(i), Path(str(i))) for i in range(count)]
    batches = list(read_batches(samples, lambda sample: np.array([int(sample.name)]), 4, workers=3))
    assert [len(b) for b in batches] == [4] * (count // 4) + [count % 4] * (count % 4 > 0)
    assert np.concatenate([np.empty((0, 1)), *batches]).ravel().tolist() == list(range(count))


def test_normalised_images_stay_channels_last():
    batch = normalise(np.zeros((2, 8, 6, 3), dtype=np.uint8))
    assert batch.shape == (2, 3, 8, 6)
    assert batch.is_contiguous(memory_format=torch.channels_last)
