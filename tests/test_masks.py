"""Masks as programs and people really save them; in most tests the defect is the same square, 16 % of the image."""

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image, ImageDraw, ImageFilter

import patchcore_kit as pk
from patchcore_kit.datasets import read_mask

SQUARE = np.zeros((100, 100), dtype=bool)
SQUARE[20:60, 20:60] = True
BLACK, RED, GREEN, WHITE = (0, 0, 0), (255, 0, 0), (0, 128, 0), (255, 255, 255)
BLUE_LABEL, CYAN_LABEL = (61, 61, 245), (51, 221, 255)  # as an annotation tool colours its labels


def grey(foreground, background=0, dtype=np.uint8):
    return Image.fromarray(np.where(SQUARE, foreground, background).astype(dtype))


def colours(foreground, background, second=None):
    """The square in one colour, or its right half in a second one."""
    pixels = np.empty((100, 100, 3), dtype=np.uint8)
    pixels[:] = background
    pixels[SQUARE] = foreground
    pixels[20:60, 40:60] = second or foreground
    return Image.fromarray(pixels)


def two_levels(low, high, dtype=np.uint8):
    values = np.where(SQUARE, low, 0).astype(dtype)
    values[20:60, 40:60] = high
    return Image.fromarray(values)


def palette(*table, **info):
    image = Image.fromarray(SQUARE.astype(np.uint8)).convert("P")
    image.putpalette([value for colour in table for value in colour])
    image.info |= info
    return image


def with_alpha(colour, alpha):
    return Image.fromarray(
        np.dstack([*np.broadcast_to(np.array(colour)[:, None, None], (3, 100, 100)), alpha]).astype("u1")
    )


def difference(path, wanted=SQUARE):
    """The share of the image that is read otherwise than it was drawn."""
    return (np.asarray(read_mask(path)) != wanted * 255).mean()


@pytest.mark.parametrize(
    ("name", "image"),
    {
        "0-1.png": grey(1),
        "0-255.png": grey(255),
        "0-255.bmp": grey(255),
        "0-255.webp": grey(255),
        "2 and 253, no black.png": grey(253, 2),
        "one bit.png": Image.fromarray(SQUARE),
        "one bit.tif": Image.fromarray(SQUARE),
        "16 bits.png": grey(1, dtype=np.uint16),
        "16 bits.tif": grey(65535, dtype=np.uint16),
        "32 bits.tif": grey(1, dtype=np.int32),
        "float.tif": grey(1, dtype=np.float32),
        "RGB.png": colours(WHITE, BLACK),
        "CMYK.tif": colours(RED, BLACK).convert("CMYK"),
        "two-colour palette.png": grey(255).quantize(2),
        "palette, dark red.png": palette(BLACK, (128, 0, 0)),
        "palette, white first.png": palette(WHITE, RED),
        "palette, black second.png": palette(RED, BLACK),
        "palette, transparent.png": palette(WHITE, RED, transparency=0),
        "two label colours.png": colours(BLUE_LABEL, BLACK, CYAN_LABEL),
        "two label colours, palette.png": colours(BLUE_LABEL, BLACK, CYAN_LABEL).quantize(3),
        "two grey levels.png": two_levels(60, 200),
        "ids.png": two_levels(1, 2),
        "ids and void.png": two_levels(1, 255),
        "ids of 16 bits.png": two_levels(50, 300, np.uint16),
        "ids of 16 bits.tif": two_levels(50, 300, np.uint16),
        "ids of 32 bits.tif": two_levels(50, 70000, np.int32),
        "coloured background.png": colours(RED, GREEN),
        "coloured background, palette.png": colours(RED, GREEN).quantize(2),
        "coloured background, two labels.bmp": colours(RED, GREEN, CYAN_LABEL),
        "shape in alpha.png": with_alpha(WHITE, SQUARE * 255),
        "black shape in alpha.png": with_alpha(BLACK, SQUARE * 255),
        "grey and opaque.png": Image.merge("LA", [grey(255), Image.new("L", (100, 100), 255)]),
    }.items(),
)  # fmt: skip
def test_exactly_what_was_drawn(tmp_path, name, image):
    if name == "palette, black second.png":  # black is the background, so all but the square is defect
        image.save(tmp_path / name)
        assert difference(tmp_path / name, ~SQUARE) == 0
        return
    image.save(tmp_path / name)
    assert difference(tmp_path / name) == 0


@pytest.mark.parametrize("quality", [40, 75, 95])
@pytest.mark.parametrize(
    "image",
    [grey(255), grey(100), colours(BLUE_LABEL, BLACK, CYAN_LABEL), colours(RED, GREEN), two_levels(100, 200)],
    ids=["white", "grey", "two labels", "coloured background", "two greys"],
)
def test_jpeg(tmp_path, image, quality):
    image.save(tmp_path / "mask.jpg", quality=quality)
    assert difference(tmp_path / "mask.jpg") < 0.005


@pytest.mark.parametrize("quality", [40, 75, 95])
@pytest.mark.parametrize("level", [100, 255])
def test_jpeg_saved_as_png_afterwards(tmp_path, level, quality):
    grey(level).save(tmp_path / "mask.jpg", quality=quality)
    Image.open(tmp_path / "mask.jpg").save(tmp_path / "mask.png")
    assert difference(tmp_path / "mask.png") < 0.005


def test_smooth_edges(tmp_path):
    large = Image.new("L", (400, 400))
    ImageDraw.Draw(large).ellipse((100, 100, 300, 260), fill=180)
    share = (np.asarray(large) > 0).mean()
    for way in (Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS):
        for size in (200, 130, 100):
            large.resize((size, size), way).save(tmp_path / "mask.png")
            assert np.asarray(read_mask(tmp_path / "mask.png")).mean() / 255 == pytest.approx(share, abs=0.003)
    for image in (grey(255), grey(90), Image.merge("RGBA", [*colours(RED, RED).split(), grey(255)])):
        image.filter(ImageFilter.GaussianBlur(2)).save(tmp_path / "mask.png")
        assert difference(tmp_path / "mask.png") < 0.005


def test_thin_lines_and_single_pixels_keep_their_numbers(tmp_path):
    rng = np.random.default_rng(0)
    image = Image.new("L", (200, 200))
    for number in range(1, 6):
        ImageDraw.Draw(image).line([tuple(map(int, rng.integers(0, 200, 2))) for _ in range(3)], fill=number)
    ids = np.zeros((200, 200), dtype=np.uint16)
    for number, (y, x) in enumerate(rng.integers(0, 200, (100, 2)), 1):
        ids[y : y + 1 + number % 7, x : x + 1 + number % 3] = number
    for drawn in (np.asarray(image), ids):
        Image.fromarray(drawn).save(tmp_path / "mask.png")
        assert difference(tmp_path / "mask.png", drawn > 0) == 0


def test_masks_of_one_colour(tmp_path):
    for name, level, share in (
        ("none.png", 0, 0),
        ("none.jpg", 0, 0),
        ("all.png", 255, 1),
        ("all.jpg", 255, 1),
        ("id.png", 1, 1),
    ):
        Image.new("L", (40, 30), level).save(tmp_path / name)
        assert np.asarray(read_mask(tmp_path / name)).mean() / 255 == share
    with_alpha(BLACK, np.full((100, 100), 255)).save(tmp_path / "opaque.png")
    assert not np.asarray(read_mask(tmp_path / "opaque.png")).any()


def test_pages_are_joined(tmp_path):
    left, right = SQUARE.copy(), SQUARE.copy()
    left[:, 40:], right[:, :40] = False, False
    pages = [Image.fromarray(part.astype(np.uint8) * level) for part, level in ((left, 255), (right, 1))]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    assert difference(tmp_path / "pages.tif") == 0
    pages[0].save(tmp_path / "sizes.tif", save_all=True, append_images=[pages[1].resize((50, 40))])
    with pytest.raises(pk.DataError, match=r"sizes.tif has parts of 100x100 and of 50x40"):
        read_mask(tmp_path / "sizes.tif")


def test_folders_are_joined(tmp_path):
    (tmp_path / "000").mkdir()
    with pytest.raises(pk.DataError, match=r"no masks in .*000"):
        read_mask(tmp_path / "000")
    for number, columns in enumerate((slice(20, 30), slice(30, 60))):
        part = np.zeros((100, 100), dtype=np.uint8)
        part[20:60, columns] = 253 + number
        Image.fromarray(part).save(tmp_path / f"000/00{number}.png")
    (tmp_path / "000/.DS_Store").touch()
    assert difference(tmp_path / "000") == 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["turned.tif", "turned.png", "turned 16.tif"])
def test_turned_masks(tmp_path, name, orientation):
    drawn = np.zeros((60, 100), dtype=np.uint16 if "16" in name else np.uint8)
    drawn[:20, :40] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(drawn).save(tmp_path / name, exif=exif)
    turned = np.array([drawn, drawn[:, ::-1], drawn[::-1, ::-1], drawn[::-1]][(orientation - 1) % 4])
    if orientation > 4:
        turned = [drawn.T, np.rot90(drawn, -1), drawn[::-1, ::-1].T, np.rot90(drawn)][orientation - 5]
    assert difference(tmp_path / name, turned > 0) == 0


def test_real_masks_are_read_as_before(mvtec, surface):
    for path in [*mvtec.glob("bottle/ground_truth/*/*.png"), *surface.glob("magnetic_tile/ground_truth/*/*")]:
        assert (np.asarray(read_mask(path)) == (np.asarray(Image.open(path)) >= 128) * 255).all(), path


def test_labels_keep_what_is_thin_or_pale(tmp_path):
    """Scratches of 1 pixel beside a strong label, a rim of the label 1, labels of dark colours."""
    scratch = np.zeros((200, 200), dtype=np.uint8)
    scratch[20:60, 20:60] = 255
    drawn = [scratch.copy() for _ in range(3)]
    for values, level in zip(drawn, (1, 60, 250), strict=True):
        values[100, 20:180] = level
        values[np.arange(110, 190), np.arange(110, 190)] = level
    rim = Image.new("L", (200, 200))
    ImageDraw.Draw(rim).rectangle((20, 20, 50, 50), fill=1)
    ImageDraw.Draw(rim).rectangle((100, 100, 180, 180), fill=255, outline=255)
    dark = Image.new("RGB", (200, 200))
    ImageDraw.Draw(dark).line((5, 5, 190, 180), fill=(50, 0, 0))
    ImageDraw.Draw(dark).rectangle((20, 120, 60, 180), fill=(0, 255, 0))
    ids = scratch.astype(np.uint16) + 45
    ids[scratch == 0] = 0
    ids[100, 20:180] = 1
    for image in (*map(Image.fromarray, drawn), rim, dark, Image.fromarray(ids)):
        image.save(tmp_path / "mask.png")
        wanted = np.asarray(image).reshape(200, 200, -1).any(axis=2)
        assert difference(tmp_path / "mask.png", wanted) == 0


def test_a_pale_label_beside_a_strong_one_in_jpeg_and_at_smooth_edges(tmp_path):
    label = Image.new("RGB", (400, 400))
    ImageDraw.Draw(label).ellipse((50, 50, 200, 180), fill=(0, 255, 0))
    ImageDraw.Draw(label).line((20, 260, 380, 390), fill=(128, 0, 0), width=3)
    label.save(tmp_path / "mask.jpg", quality=90)
    assert difference(tmp_path / "mask.jpg", np.asarray(label).any(axis=2)) < 0.003
    large = Image.new("L", (1600, 1600))
    ImageDraw.Draw(large).ellipse((200, 200, 800, 700), fill=255)
    ImageDraw.Draw(large).line((100, 1100, 1500, 1500), fill=100, width=12)
    large.resize((400, 400), Image.Resampling.BOX).save(tmp_path / "mask.png")
    assert difference(tmp_path / "mask.png", np.asarray(large.resize((400, 400), Image.Resampling.NEAREST)) > 0) < 0.005


@pytest.mark.parametrize("quality", [20, 50, 80])
@pytest.mark.parametrize("colour", [(255, 255, 255), (255, 0, 0)])
def test_lossy_webp_and_png_made_of_it(tmp_path, colour, quality):
    drawn = Image.new("RGB", (500, 400))
    ImageDraw.Draw(drawn).polygon([(50, 60), (300, 100), (200, 350)], fill=colour)
    drawn.save(tmp_path / "mask.webp", quality=quality)
    Image.open(tmp_path / "mask.webp").save(tmp_path / "mask.png")
    for name in ("mask.webp", "mask.png"):
        assert difference(tmp_path / name, np.asarray(drawn).any(axis=2)) < 0.002


@pytest.mark.parametrize("sigma", [1, 2, 4, 6, 10])
def test_blurred_masks_are_cut_at_half(tmp_path, sigma):
    square = np.zeros((400, 400))
    square[150:250, 150:250] = 255
    blurred = scipy.ndimage.gaussian_filter(square, sigma).astype(np.uint8)
    Image.fromarray(blurred).save(tmp_path / "mask.png")
    assert difference(tmp_path / "mask.png", blurred >= 127.5) < 0.001


def test_a_heat_map_is_cut_at_half(tmp_path):
    y, x = np.mgrid[:400, :400] - 200
    heat = (255 * np.exp(-(x**2 + y**2) / (2 * 20**2))).astype(np.uint8)
    Image.fromarray(heat).save(tmp_path / "mask.png")
    assert difference(tmp_path / "mask.png", heat >= 127) < 0.001


def test_black_on_a_transparent_canvas(tmp_path):
    canvas = np.full((100, 100, 4), (255, 255, 255, 0), dtype=np.uint8)
    canvas[SQUARE] = (0, 0, 0, 255)
    Image.fromarray(canvas).save(tmp_path / "mask.png")
    assert difference(tmp_path / "mask.png") == 0


def test_a_broken_exif_block_of_a_mask_is_told(tmp_path, caplog):
    grey(255).save(tmp_path / "mask.png", exif=b"Exif\0\0II no directory")
    assert difference(tmp_path / "mask.png") == 0
    assert caplog.messages == [f"{tmp_path / 'mask.png'}: its EXIF block cannot be read, so it is taken to be upright"]


@pytest.mark.parametrize("place", [(0, 0), (70, 90), (280, 370), (0, 385), (295, 0)])
@pytest.mark.parametrize("sigma", [0, 1, 4])
@pytest.mark.parametrize("background", [0, 30])
def test_what_lies_around_the_labels_is_all_that_matters(tmp_path, monkeypatch, place, sigma, background):
    values = np.full((300, 400), float(background))
    values[place[0] : place[0] + 20, place[1] : place[1] + 30] = 200
    values[150:180, 200:230] = 100
    Image.fromarray(scipy.ndimage.gaussian_filter(values, sigma).astype(np.uint8)).save(tmp_path / "mask.png")
    found = np.asarray(read_mask(tmp_path / "mask.png"))
    monkeypatch.setattr(pk.masks, "MARGIN", 1000)
    assert found.any() and (found == np.asarray(read_mask(tmp_path / "mask.png"))).all()
