"""Image files of every kind, by the pixels that they were made of."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import patchcore_kit as pk
from patchcore_kit.datasets import read_rgb
from patchcore_kit.images import bits_for, largest_value, read_header

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
GREY = NOISE[..., 0]
SHADES = np.linspace(0, 255, 65536).reshape(256, 256)  # every level of any depth


def saved(path, values, **options):
    Image.fromarray(values).save(path, **options)
    return path


def tagged(**tags):
    """Save options of a TIFF with these tags."""
    numbers = {"orientation": 274, "white_is_zero": 262}
    exif = Image.Exif()
    for name, value in tags.items():
        exif[numbers[name]] = value
    return {"exif": exif}


def png_of_16_bits(path, values, colour_type):
    """A PNG of (H, W, channels) uint16: Pillow writes 16 bits of grey only."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


def tiff_of_16_bits(path, values, order="<", planes=1, photometric=2):
    """An uncompressed TIFF of (H, W, channels) uint16: Pillow writes no colour of 16 bits."""
    height, width, channels = values.shape
    pixels = values.astype(f"{order}u2").tobytes()
    entries = [(256, 4, width), (257, 4, height), (259, 3, 1), (262, 3, photometric), (273, 4, 0), (277, 3, channels)]
    entries += [(278, 4, height), (279, 4, len(pixels)), (284, 3, planes)]
    start = 8 + 2 + 12 * (len(entries) + 1) + 4
    entries += [(258, 3, start)]
    ifd = struct.pack(f"{order}H", len(entries))
    for tag, kind, value in sorted(entries):
        value = start + 2 * channels if tag == 273 else value
        if tag == 258:
            ifd += struct.pack(f"{order}HHII", tag, kind, channels, value)
        elif kind == 3:
            ifd += struct.pack(f"{order}HHIHH", tag, kind, 1, value, 0)
        else:
            ifd += struct.pack(f"{order}HHII", tag, kind, 1, value)
    magic = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8)
    path.write_bytes(
        magic + ifd + struct.pack(f"{order}I", 0) + struct.pack(f"{order}{channels}H", *[16] * channels) + pixels
    )
    return path


def test_grey_16_bit_palette_alpha_and_turned(tmp_path):
    grey = NOISE[..., 0]
    assert (np.asarray(read_rgb(saved(tmp_path / "grey.png", grey))) == grey[..., None]).all()
    deep = grey.astype(np.uint16) * 256 + 77
    assert (np.asarray(read_rgb(saved(tmp_path / "deep.png", deep))) == grey[..., None]).all()
    assert (np.asarray(read_rgb(saved(tmp_path / "deep.tiff", deep))) == grey[..., None]).all()
    Image.fromarray(grey // 8).convert("P").save(tmp_path / "palette.png")
    assert (np.asarray(read_rgb(tmp_path / "palette.png")) == (grey // 8)[..., None]).all()
    clear = np.dstack([NOISE, grey])
    assert (np.asarray(read_rgb(saved(tmp_path / "alpha.png", clear))) == NOISE).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it clockwise by a quarter
    turned = np.asarray(read_rgb(saved(tmp_path / "turned.png", NOISE, exif=exif)))
    assert (turned == np.rot90(NOISE, -1)).all()


def test_floating_point_pixels_are_refused(tmp_path):
    path = saved(tmp_path / "float.tiff", np.ones((8, 8), dtype=np.float32))
    with pytest.raises(pk.DataError, match="floating-point"):
        read_rgb(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["L", "RGB", "16", "P"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_turned_tiffs_however_they_are_opened(tmp_path, orientation, kind, compression):
    drawn = {"L": GREY, "RGB": NOISE, "16": GREY.astype(np.uint16) * 257, "P": GREY}[kind]
    image = Image.fromarray(drawn).convert("P") if kind == "P" else Image.fromarray(drawn)
    path = tmp_path / "turned.tif"
    image.save(path, compression=compression, **tagged(orientation=orientation))
    shown = NOISE if kind == "RGB" else np.repeat(GREY[..., None], 3, axis=2)
    upright = np.rot90(shown, {3: 2, 4: 2, 5: -1, 6: -1, 7: 1, 8: 1}.get(orientation, 0))
    upright = upright[:, ::-1] if orientation in (2, 4, 5, 7) else upright
    assert (np.asarray(read_rgb(path)) == upright).all()
    assert (np.asarray(read_rgb(path, path.read_bytes())) == upright).all()
    assert read_header(path).size == upright.shape[1::-1]
    with Image.open(path) as opened:
        (sample,) = pk.datasets.as_samples(opened)
        assert (pk.Transform((40, 60) if orientation < 5 else (60, 40)).image(sample) == upright).all()


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_values_of_every_depth(tmp_path, bits):
    shades = (SHADES * 2 ** (bits - 8)).astype(np.uint16)
    wanted = np.repeat(SHADES.astype(np.uint8)[..., None], 3, axis=2)
    colour = np.dstack([shades, shades.T, shades[::-1]])
    wanted_colour = np.dstack([wanted[..., 0], wanted[..., 0].T, wanted[::-1, :, 0]])
    grey = [
        saved(tmp_path / "grey.png", shades),
        saved(tmp_path / "grey.tif", shades),
        saved(tmp_path / "packed.tif", shades, compression="tiff_deflate"),
        saved(tmp_path / "signed.tif", shades.astype(np.int32)),
        png_of_16_bits(tmp_path / "grey and alpha.png", np.dstack([shades, shades]), 4),
    ]
    coloured = [
        png_of_16_bits(tmp_path / "colour.png", colour, 2),
        png_of_16_bits(tmp_path / "alpha.png", np.dstack([colour, shades]), 6),
        tiff_of_16_bits(tmp_path / "little.tif", colour),
        tiff_of_16_bits(tmp_path / "big.tif", colour, ">"),
    ]
    for paths, expected in ((grey, wanted), (coloured, wanted_colour)):
        for path in paths:
            assert bits_for(largest_value(path)) == bits, path
            assert (np.asarray(read_rgb(path, bits=bits)) == expected).all(), path
            assert (np.asarray(read_rgb(path)) == expected.astype(int) // 2 ** (16 - bits)).all(), (
                path
            )  # alone: 65535 is white


def test_32_bits_to_their_full_range(tmp_path):
    wanted = np.repeat(SHADES.astype(np.uint8)[..., None], 3, axis=2)
    signed = saved(tmp_path / "signed.tif", (SHADES * 2**23).astype(np.int32))
    assert (np.asarray(read_rgb(signed)) == wanted).all()
    content = bytearray(
        saved(tmp_path / "unsigned.tif", (SHADES * 2**24).astype(np.uint32).view(np.int32)).read_bytes()
    )
    with Image.open(tmp_path / "unsigned.tif") as image:
        assert image.tag_v2[339] == (2,)
    entry = content.index(struct.pack("<HHI", 339, 3, 1))
    content[entry + 8 : entry + 10] = struct.pack("<H", 1)  # the sample format: unsigned
    (tmp_path / "unsigned.tif").write_bytes(content)
    assert (np.asarray(read_rgb(tmp_path / "unsigned.tif")) == wanted).all()
    with pytest.raises(pk.DataError, match=r"below.tif holds negative values, down to -5"):
        read_rgb(saved(tmp_path / "below.tif", np.full((8, 8), -5, dtype=np.int32)))


def test_white_is_zero(tmp_path):
    shades = (SHADES * 256).astype(np.uint16)
    for values, options in (
        (SHADES.astype(np.uint8), {}),
        (shades, {}),
        ((SHADES * 16).astype(np.uint16), {"bits": 12}),
    ):
        path = tmp_path / "inverted.tif"
        Image.fromarray(values).save(path, tiffinfo={262: 0})
        with Image.open(path) as image:
            assert image.tag_v2[262] == 0
        brightness = np.asarray(read_rgb(path, **options))[..., 0]
        # Pillow writes 8 bits inverted, as the tag says, and 16 bits as they are
        wanted = SHADES.astype(np.uint8) if values.dtype == np.uint8 else 255 - SHADES.astype(np.uint8)
        assert (brightness == wanted).all()


def test_what_is_cut_and_what_is_lost_is_told(tmp_path, caplog):
    bright = saved(tmp_path / "bright.png", (SHADES * 256).astype(np.uint16))
    assert np.asarray(read_rgb(bright, bits=12)).max() == 255
    (line,) = caplog.messages
    assert line.startswith(str(bright)) and "values up to 65280, which are cut at 4095, the white of 12 bits" in line
    caplog.clear()
    read_rgb(saved(tmp_path / "dark.png", (SHADES * 4).astype(np.uint16)))
    (line,) = caplog.messages
    assert "dark.png: of 1021 grey levels 4 are left when 65535 is white" in line
    caplog.clear()
    read_rgb(saved(tmp_path / "flat.png", np.full((8, 8), 900, dtype=np.uint16)))  # nothing to lose
    read_rgb(saved(tmp_path / "bright.png", (SHADES * 256).astype(np.uint16)))
    assert not caplog.messages


def test_16_bit_colour_in_planes_is_refused(tmp_path):
    values = np.zeros((4, 8, 3), dtype=np.uint16)
    path = tiff_of_16_bits(tmp_path / "planes.tif", values, planes=2)
    with pytest.raises(pk.DataError, match=r"planes.tif holds 16-bit colours in separate planes"):
        read_rgb(path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"RIFF????", "no image, or of a kind that is not read"),
    ],
)
def test_files_that_are_no_images(tmp_path, content, what):
    (tmp_path / "photo.png").write_bytes(content)
    for read in (read_rgb, read_header):
        with pytest.raises(pk.DataError, match=rf"cannot read image .*photo.png \(.*{what}.*\): replace it"):
            read(tmp_path / "photo.png")


def test_images_too_large_for_pillow(tmp_path, monkeypatch):
    path = saved(tmp_path / "scan.png", NOISE)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(pk.DataError, match=r"scan.png .*exceeds limit.*cut it into tiles"):
        read_rgb(path)


def test_headers(tmp_path):
    assert read_header(saved(tmp_path / "grey.png", GREY)) == pk.images.Header((60, 40))
    assert read_header(saved(tmp_path / "deep.png", GREY.astype(np.uint16))).bits == 16
    assert read_header(saved(tmp_path / "deep.tif", GREY.astype(np.int32))).bits == 32
    assert read_header(png_of_16_bits(tmp_path / "colour.png", NOISE.astype(np.uint16), 2)).bits == 16
    assert read_header(saved(tmp_path / "alpha.png", np.dstack([NOISE, GREY]))).alpha
    image = Image.fromarray(GREY).convert("P")
    image.save(tmp_path / "index.png", transparency=0)
    assert read_header(tmp_path / "index.png").alpha
    pages = [Image.fromarray(GREY)] * 3
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "moving.png", save_all=True, append_images=[Image.fromarray(255 - GREY)])
    pages[0].save(tmp_path / "moving.webp", save_all=True, append_images=[Image.fromarray(255 - GREY)])
    pages[0].save(tmp_path / "views.jpg", format="MPO", save_all=True, append_images=pages[1:])
    counts = [read_header(tmp_path / name).pages for name in ("pages.tif", "moving.png", "moving.webp", "views.jpg")]
    assert counts == [3, 2, 2, 1]
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("turned.png", "turned.jpg", "turned.webp", "turned.tif"):
        assert read_header(saved(tmp_path / name, NOISE, exif=exif)).size == (40, 60)
        assert read_rgb(tmp_path / name).size == (40, 60)


def test_pages_that_are_smaller_versions_do_not_count(tmp_path):
    small = Image.fromarray(GREY).resize((30, 20))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    Image.fromarray(GREY).save(tmp_path / "pyramid.tif", save_all=True, append_images=[small])
    with Image.open(tmp_path / "pyramid.tif") as image:
        image.seek(1)
        assert image.tag_v2[254] == 1
    assert read_header(tmp_path / "pyramid.tif").pages == 1


def test_names_of_jpeg(tmp_path):
    for name in ("a.jpg", "a.JPG", "a.jpeg", "a.jpe", "a.jfif"):
        Image.fromarray(NOISE).save(tmp_path / name, format="JPEG")
    assert len({s.name for s in pk.load_folder(tmp_path)}) == 5


def test_12_bits_that_are_taken_as_16_are_told(tmp_path, caplog):
    read_rgb(saved(tmp_path / "full range.png", np.arange(4096, dtype=np.uint16).reshape(64, 64)))
    assert "of 4096 grey levels 16 are left when 65535 is white" in caplog.text


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_premultiplied_alpha(tmp_path, mode):
    image = Image.fromarray(np.dstack([NOISE, np.full((40, 60), 255, dtype=np.uint8)])).convert("RGBA")
    image = image.convert("LA").convert("La") if mode == "La" else image.convert("RGBa")
    wanted = np.asarray(image.convert("LA" if mode == "La" else "RGBA").convert("RGB"))
    assert (np.asarray(read_rgb(image)) == wanted).all()


def test_a_tiff_without_dimensions(tmp_path):
    path = saved(tmp_path / "a.tif", GREY)
    content = path.read_bytes()
    width = content.index(struct.pack("<HHI", 256, 4, 1))
    path.write_bytes(content[:width] + struct.pack("<H", 65000) + content[width + 2 :])
    for read in (read_rgb, read_header):
        with pytest.raises(pk.DataError, match=r"cannot read image .*a.tif"):
            read(path)
