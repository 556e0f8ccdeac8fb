"""What the network is given, and where it lies on the photograph."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

import patchcore_kit as pk
from patchcore_kit.datasets import Sample, as_samples
from patchcore_kit.notes import Notes
from patchcore_kit.transforms import IMAGENET_MEAN, IMAGENET_STD, Transform, look_over, normalise, read_batches

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def saved(path, values, **options):
    Image.fromarray(values).save(path, **options)
    return path


def noted(images, transform, caplog, *, learn=True):
    """What `look_over` tells, and the transform that it returns."""
    caplog.clear()
    notes = Notes()
    transform, _ = look_over(as_samples(images), transform, notes, learn=learn)
    notes.tell()
    return transform, list(caplog.messages)


def test_whole_numbers_of_any_kind():
    assert Transform(np.int64(256), np.int32(224)) == Transform(256, 224)
    assert Transform([np.int64(30), 50]).size == (30, 50)


@pytest.mark.parametrize("size", [(300, 300), (200, 333), (500, 260)])
def test_images_and_masks_equal_the_reference_transforms(tmp_path, size):
    rng = np.random.default_rng(1)
    image = saved(tmp_path / "image.png", rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    square = np.zeros(size, dtype=np.uint8)
    square[size[0] // 3 : size[0] // 2, size[1] // 3 : size[1] // 2] = 255
    mask = saved(tmp_path / "mask.png", square)
    crop = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
    wanted = transforms.Compose([*crop, transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])(Image.open(image))
    wanted_mask = transforms.Compose(crop)(Image.open(mask))[0].int().bool().numpy()
    sample = Sample("image.png", image, mask, "dent")
    assert torch.allclose(normalise(Transform().image(sample)[None])[0], wanted, atol=1e-6)
    inside, nearest = Transform().mask(sample), Transform(mask_rule="nearest").mask(sample)
    assert (inside == wanted_mask).all()
    assert inside.sum() <= nearest.sum()
    assert nearest[inside].all()


def test_rectangular_without_a_crop(tmp_path):
    sample = Sample("a.png", saved(tmp_path / "a.png", NOISE))
    assert Transform((75, 150)).size == (75, 150)
    assert Transform((75, 150)).image(sample).shape == (75, 150, 3)
    assert (Transform((40, 60)).image(sample) == NOISE).all()


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


@pytest.mark.parametrize("bits", [7, 33, "12", 12.0])
def test_bits_that_cannot_be(bits):
    with pytest.raises(pk.SettingsError, match="bits is"):
        Transform(bits=bits)


@pytest.mark.parametrize(
    ("resize", "imagesize", "size"),
    [
        (256, 224, (300, 300)),
        (256, 224, (200, 501)),
        (32, 25, (77, 40)),
        (24, 24, (11, 37)),
        ((48, 96), 224, (90, 200)),
    ],
)
def test_a_map_lies_where_its_pixels_came_from(tmp_path, resize, imagesize, size):
    """A smooth image, brought through the transform and laid back, is itself, and nothing outside the crop."""
    y, x = np.mgrid[: size[0], : size[1]] / (max(size) - 1)
    image = np.round(255 * (0.6 * x + 0.4 * y)).astype(np.uint8)
    transform = Transform(resize, imagesize)
    seen = transform.image(Sample("a", saved(tmp_path / "a.png", image)))[..., 0].astype(np.float32)
    laid = transform.place(seen, size)
    assert laid.shape == size and laid.dtype == np.float32
    inside = ~np.isnan(laid)
    assert inside.mean() == pytest.approx(transform.seen(size), abs=0.02)
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    assert inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert abs(rows[0] - (size[0] - 1 - rows[-1])) <= 2 and abs(columns[0] - (size[1] - 1 - columns[-1])) <= 2
    inner = laid[rows[3] : rows[-3], columns[3] : columns[-3]] - image[rows[3] : rows[-3], columns[3] : columns[-3]]
    assert np.abs(inner).max() < 3  # a pixel's shift would be several levels of some


def test_a_mask_laid_back_covers_the_defect(tmp_path):
    mask = np.zeros((300, 500), dtype=np.uint8)
    mask[140:170, 230:280] = 255
    transform = Transform(256, 224, mask_rule="nearest")
    sample = Sample("a", None, saved(tmp_path / "mask.png", mask), "dent")
    laid = transform.place(transform.mask(sample), mask.shape) >= 0.5
    assert (laid & (mask > 0)).sum() / (laid | (mask > 0)).sum() > 0.9
    with pytest.raises(pk.SettingsError, match=r"the map is of \(10, 10\), not of \(224, 224\)"):
        transform.place(np.zeros((10, 10)), (300, 500))
    assert np.isnan(transform.place(torch.zeros(224, 224), [300, 500])).mean() == pytest.approx(
        1 - transform.seen((300, 500)), abs=0.01
    )
    for size in ((300, 500, 3), 300, (300.5, 500), (0, 5)):
        with pytest.raises(pk.SettingsError):
            transform.place(np.zeros((224, 224)), size)


def test_what_the_crop_hides_is_told_from_the_headers(tmp_path, caplog):
    saved(tmp_path / "a.png", np.zeros((300, 300), dtype=np.uint8))
    saved(tmp_path / "b.png", np.zeros((200, 800), dtype=np.uint8))
    saved(tmp_path / "c.png", np.zeros((300, 400), dtype=np.uint8))
    _, (line,) = noted(tmp_path, Transform(256, 224), caplog)
    assert line.startswith(f"{tmp_path / 'b.png'} (and 1 more): of its 800x200 pixels the network sees 19%")
    assert "resize=(256, 1024), on the command line 256x1024, shows it all" in line
    assert noted(tmp_path, Transform((256, 1024)), caplog)[1] == []
    assert noted(tmp_path / "a.png", Transform(256, 224), caplog)[1] == []
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = saved(tmp_path / "turned.jpg", np.zeros((100, 400), dtype=np.uint8), exif=exif)
    assert "resize=(1024, 256)" in noted(turned, Transform(256, 224), caplog)[1][0]
    assert "frame 0: of its 400x100 pixels" in noted(np.zeros((100, 400), np.uint8), Transform(256, 224), caplog)[1][0]


def test_pages_and_transparent_pixels_are_told(tmp_path, caplog):
    pages = [Image.fromarray(NOISE)] * 3
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    saved(tmp_path / "alpha.png", np.dstack([NOISE, NOISE[..., 0]]))
    _, lines = noted(tmp_path, Transform((40, 60)), caplog)
    assert lines == [
        f"{tmp_path / 'alpha.png'}: its alpha channel is left out, so the colours beneath what is transparent count",
        f"{tmp_path / 'pages.tif'}: of its 3 pages the first is read",
    ]


@pytest.mark.parametrize(("largest", "bits"), [(255, 8), (256, 10), (1023, 10), (4080, 12), (16383, 14)])
def test_the_depth_of_a_data_set(tmp_path, caplog, largest, bits):
    for i, top in enumerate((largest // 3, largest, largest // 2)):
        saved(tmp_path / f"{i}.png", np.linspace(0, top, 2400).reshape(40, 60).astype(np.uint16))
    saved(tmp_path / "8 bits.png", NOISE)
    transform, lines = noted(tmp_path, Transform((40, 60)), caplog)
    assert transform.bits == bits
    assert lines == [
        f"{tmp_path / '0.png'}: of 3 images of more than 8 bits {largest} is the largest value, so {bits} bits are "
        f"assumed and {2**bits - 1} is white: bits=... says it outright"
    ]
    assert noted(tmp_path, Transform((40, 60), bits=16), caplog) == (Transform((40, 60), bits=16), [])
    transform, lines = noted(tmp_path, Transform((40, 60)), caplog, learn=False)  # of a model that knows nothing of it
    assert (
        transform.bits is None
        and "has more than 8 bits, but none were learnt from: 65535 is taken as white" in lines[0]
    )


def test_a_data_set_of_all_16_bits_needs_no_word(tmp_path, caplog, monkeypatch):
    looked = []
    largest_value = pk.transforms.largest_value
    monkeypatch.setattr(pk.transforms, "largest_value", lambda *of: looked.append(of) or largest_value(*of))
    for i in range(60):
        saved(tmp_path / f"{i:02}.png", np.full((40, 60), 20000 if i == 0 else i, dtype=np.uint16))
    transform, lines = noted(tmp_path, Transform((40, 60)), caplog)
    assert transform.bits == 16 and lines == []
    assert len(looked) < 60  # the first has said it
    saved(tmp_path / "deeper.tif", np.full((40, 60), 2**20, dtype=np.int32))
    assert noted(tmp_path, Transform((40, 60)), caplog)[0].bits == 24


def test_8_bits_are_as_they_are(tmp_path, caplog):
    path = saved(tmp_path / "a.png", NOISE)
    assert noted(path, Transform((40, 60)), caplog) == (Transform((40, 60)), [])
    for bits in (8, 12, 16):
        assert (Transform((40, 60), bits=bits).image(Sample("a", path)) == NOISE).all()


LONG = [(1, 8000), (8000, 1), (2, 3000), (3, 5000), (7, 9001)]


@pytest.mark.parametrize("size", LONG)
@pytest.mark.parametrize("rule", ["inside", "nearest"])
def test_what_is_cut_before_it_is_resized_is_as_if_all_had_been_resized(tmp_path, monkeypatch, size, rule):
    rng = np.random.default_rng(0)
    image = saved(tmp_path / "a.png", rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    mask = saved(tmp_path / "mask.png", (rng.random(size) < 0.5).astype(np.uint8) * 255)
    sample, transform, found = Sample("a.png", image, mask, "dent"), Transform(64, 60, mask_rule=rule), []
    for most in (0, 2**40):
        monkeypatch.setattr(pk.transforms, "MOST_PIXELS", most)
        found.append((transform.image(sample).astype(int), transform.mask(sample), transform.sees_defect(sample)))
    (image, mask, seen), (whole_image, whole_mask, whole_seen) = found
    assert image.shape == (60, 60, 3) and mask.shape == (60, 60)
    assert np.abs(image - whole_image).max() <= 1
    assert (image != whole_image).mean() < 0.01
    assert (mask == whole_mask).all() and seen == whole_seen


def test_ordinary_photographs_are_resized_as_a_whole(tmp_path, monkeypatch):
    """As the reference does, so that not a bit of them is another."""
    monkeypatch.setattr(pk.transforms, "_resized_middle", None)
    for size in ((300, 300), (200, 4000), (3000, 200)):
        Transform(1024, 896).image(Sample("a", saved(tmp_path / "a.png", np.zeros(size, dtype=np.uint8))))


def test_a_row_of_pixels_is_told_without_an_image_size_that_nobody_can_use(tmp_path, caplog):
    path = saved(tmp_path / "a.png", np.zeros((1, 8000), dtype=np.uint8))
    (line,) = noted(path, Transform(), caplog)[1]
    assert line.endswith("of its 8000x1 pixels the network sees 0%, the central square: cut it into pieces to see more")


@pytest.mark.parametrize("resize", [64, (48, 70)])
@pytest.mark.parametrize("size", [(64, 91), (77, 64), (48, 70)])
def test_a_frame_that_needs_no_resize_is_used_as_it_is(size, resize):
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    transform = Transform(resize, 51)
    image = transform.image(as_samples([frame])[0])
    assert np.array_equal(image, transform.image(as_samples([Image.fromarray(frame)])[0]))
    assert np.array_equal(image, transform.image(as_samples([frame.transpose(1, 0, 2).copy().transpose(1, 0, 2)])[0]))
    assert image.flags.c_contiguous and not np.shares_memory(image, frame)
