"""Image files of every kind, by the pixels that they were made of."""

import io
import json
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

import patchcore_kit as pk
from patchcore_kit.datasets import read_rgb
from patchcore_kit.images import bits_for, check_frame, largest_value, opened, read_header, read_pixels
from patchcore_kit.notes import Notes

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


MEASURED = """
import json, sys, time
from pathlib import Path

import numpy as np
from PIL import Image

import patchcore_kit as pk
from patchcore_kit.datasets import Sample
from patchcore_kit.transforms import Transform

def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) / 1024

Transform((8, 8)).image(Sample("first", Path(sys.argv[1])))  # so that all is imported
for name in sys.argv[2:]:
    sample = Sample(name, Path(name), Path(name))
    for what in ("image", "mask"):
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        except OSError as error:
            sys.exit(77)
        before, started, said = status("VmRSS"), time.perf_counter(), ""
        try:
            getattr(Transform(), what)(sample)
        except pk.DataError as error:
            said = str(error)
        print(json.dumps([Path(name).name, what, status("VmHWM") - before, time.perf_counter() - started, said]))
"""


def measured(first, *files):
    """(name, what) -> the peak of memory in MB above what the process takes anyway, seconds, and what was refused."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the peak of memory is read from Linux's /proc")
    run = subprocess.run(
        [sys.executable, "-c", MEASURED, str(first), *map(str, files)], capture_output=True, text=True, check=False
    )
    if run.returncode == 77:
        pytest.skip("the peak of memory may not be reset here")
    assert run.returncode == 0, run.stderr
    return {(name, what): rest for name, what, *rest in map(json.loads, run.stdout.splitlines())}


def test_what_a_header_claims_and_one_row_of_pixels_take_no_memory(tmp_path):
    """Of 93 bytes, 2.1 GB were made; a claim of 676 MB, of which the most would be touched."""
    line = saved(tmp_path / "line.png", np.zeros((1, 8000), dtype=np.uint8))
    column = saved(tmp_path / "column.png", np.zeros((8000, 1), dtype=np.uint8))
    claims = [saved(tmp_path / f"claim.{ending}", np.zeros((8, 8, 3), np.uint8)) for ending in ("png", "bmp", "webp")]
    for path, place, size in zip(claims, (16, 18, 26), (">II", "<II", "<HH"), strict=True):
        content = bytearray(path.read_bytes())
        content[place : place + struct.calcsize(size)] = struct.pack(size, 9000, 9000)
        if path.suffix == ".png":
            content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        path.write_bytes(content)
    for (name, _), (peak, seconds, said) in measured(line, line, column, *claims).items():
        assert peak < 60 and seconds < 2, name
        assert ("it claims 9000x9000 pixels, of which its " in said) == name.startswith("claim"), said


def test_16_bits_take_little_more_than_their_pixels(tmp_path):
    """64-bit copies took 7.6 bytes a pixel of grey, and 19 of colour."""
    shades = np.broadcast_to(np.linspace(0, 65535, 4000, dtype=np.uint16), (4000, 4000))
    grey = saved(tmp_path / "grey.png", shades, compress_level=1)
    colour = png_of_16_bits(tmp_path / "colour.png", np.dstack([shades[:3000, :3000]] * 3), 2)
    ids = np.zeros((4000, 4000), dtype=np.uint16)
    ids[100:600, 100:900], ids[1000:1500, 100:900] = 7, 300
    mask = saved(tmp_path / "ids.png", ids)
    found = measured(grey, grey, colour, mask)
    assert found["grey.png", "image"][0] < 3 * 16 + 30
    assert found["colour.png", "image"][0] < 8 * 9 + 30
    assert found["ids.png", "mask"][0] < 6 * 16 + 30  # was 19 as well


def test_grey_is_left_as_it_is_until_it_is_resized(tmp_path):
    for name, values in {"8.png": GREY, "16.png": GREY.astype(np.uint16), "1.png": GREY > 127}.items():
        path = saved(tmp_path / name, values)
        assert read_pixels(path, notes=Notes()).mode == "L"
        assert read_rgb(path).mode == "RGB"
        transform = pk.Transform(36, 32)
        whole = pk.Transform((36, 54)).image(pk.Sample("a", path))
        assert (transform.image(pk.Sample("a", path)) == whole[2:34, 11:43]).all()
        wanted = np.asarray(read_rgb(path).resize((54, 36), Image.Resampling.BILINEAR))
        assert (whole == wanted).all()


@pytest.mark.parametrize("kind", ["GIF", "PPM", "TGA", "ICO", "PCX", "SGI", "DDS", "JPEG2000", "MSP", "XBM"])
def test_formats_that_are_not_read_under_any_name(tmp_path, kind):
    path = tmp_path / "photo.png"
    saved(path, GREY > 127 if kind in ("MSP", "XBM") else NOISE, format=kind)
    with Image.open(path) as image:
        assert image.format in (kind, "GIF")  # Pillow would read it
    for read in (read_rgb, read_header, pk.datasets.read_mask):
        with pytest.raises(pk.DataError, match=r"photo\.png (is .* whatever its name says: save it as PNG|\(it is )"):
            read(path)
    with pytest.raises(pk.DataError, match=rf"photo\.{kind.lower()}(,? is .*, which is not read: save it as PNG| \()"):
        read_rgb(
            saved(tmp_path / f"photo.{kind.lower()}", GREY > 127 if kind in ("MSP", "XBM") else NOISE, format=kind)
        )


def test_a_picture_that_somebody_else_has_opened_is_read(tmp_path):
    content = io.BytesIO()
    Image.fromarray(GREY // 16 * 16).save(content, "GIF")
    assert (np.asarray(read_rgb(check_frame(Image.open(content), "frame 0")))[..., 0] == GREY // 16 * 16).all()


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # as outside of the tests
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_blocks_stop_nothing(kind):
    exif = Image.Exif()
    exif[0x10F], exif[0x112], exif[0x11A] = "Maker", 3, 72.0
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    exif.get_ifd(0x8825)[2] = (1.0, 2.0, 3.0)
    file = io.BytesIO()
    Image.fromarray(NOISE).save(file, kind, exif=exif, lossless=True)
    whole, block = file.getvalue(), exif.tobytes()
    start, rng, told = whole.index(block[6:40]), np.random.default_rng(0), 0
    upside_down = np.asarray(read_rgb(whole, notes=Notes()))
    for _ in range(300):
        content = bytearray(whole)
        for place in rng.integers(start, start + len(block) - 6, rng.integers(1, 6)):
            content[place] = rng.integers(256)
        if kind == "PNG":
            end = whole.index(b"IDAT") - 8
            content[end : end + 4] = struct.pack(">I", zlib.crc32(content[whole.index(b"eXIf") : end]))
        notes = Notes()
        read = np.asarray(read_rgb(bytes(content), notes=notes))
        ways = (upside_down, upside_down[::-1, ::-1], upside_down[::-1], upside_down[:, ::-1])
        turned = (np.rot90(way, n) for way in ways for n in (0, 1))
        assert any(read.shape == way.shape and (read == way).all() for way in turned)
        told += bool(notes)
        read_header(bytes(content))
    assert told > 0


def test_a_broken_exif_block_is_told_once(tmp_path, caplog):
    path = saved(tmp_path / "a.jpg", NOISE, exif=b"Exif\0\0II no directory")
    deep = png_of_16_bits(tmp_path / "deep.png", NOISE.astype(np.uint16), 2).read_bytes()
    block = b"eXIfII no directory"
    block = struct.pack(">I", len(block) - 4) + block + struct.pack(">I", zlib.crc32(block))
    (tmp_path / "deep.png").write_bytes(deep[:33] + block + deep[33:])
    for image in (path, tmp_path / "deep.png"):
        caplog.clear()
        assert read_rgb(image).size == (60, 40)
        assert [m for m in caplog.messages if "EXIF" in m] == [
            f"{image}: its EXIF block cannot be read, so it is taken to be upright"
        ]


RAISED = [struct.error, OverflowError, AttributeError, TypeError, KeyError, MemoryError, RecursionError, zlib.error,
          AssertionError, NotImplementedError, UnicodeError, ZeroDivisionError, SyntaxError, EOFError]  # fmt: skip


@pytest.mark.parametrize("kind", RAISED)
@pytest.mark.parametrize("where", ["open", "load"])
def test_whatever_pillow_raises_names_the_file_in_a_sentence(tmp_path, monkeypatch, kind, where):
    path = saved(tmp_path / f"{'long ' * 20}name.png", NOISE)

    def fail(*_, **__):
        raise kind("\n".join(["half of the file"] * 10_000))

    monkeypatch.setattr(*((Image, "open") if where == "open" else (Image.Image, "load")), fail)
    if where == "load":
        monkeypatch.setattr(Image.Image, "convert", fail)
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    for read in (read_rgb, pk.datasets.read_mask):
        with pytest.raises(pk.DataError) as error:
            read(path)
        message = str(error.value)
        assert len(message) <= 300 and "\n" not in message and f"{'long ' * 20}name.png (" in message


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_who_stops_the_run_stops_it(tmp_path, monkeypatch, kind):
    path = saved(tmp_path / "a.png", NOISE)
    with pytest.raises(kind), opened(path):
        raise kind


def test_names_that_are_longer_than_a_message_keep_their_end(tmp_path):
    path = tmp_path / ("x" * 240) / ("y" * 200 + ".png")
    with pytest.raises(pk.DataError) as error:
        read_rgb(path)
    assert len(str(error.value)) <= 300 and "yyy.png: check its name" in str(error.value)


@pytest.mark.parametrize("read", [read_rgb, read_header, largest_value, pk.datasets.read_mask])
def test_pipes_are_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "pipe.png")
    for name in ("pipe.png", "link.png"):
        with pytest.raises(pk.DataError, match=rf"{name} \(it is a named pipe, not a file\): remove it"):
            read(tmp_path / name)


def test_a_tiff_without_an_end_and_one_of_too_many_pages(tmp_path, monkeypatch):
    content = bytearray(saved(tmp_path / "a.tif", GREY).read_bytes())
    (start,) = struct.unpack("<I", content[4:8])
    end = start + 2 + 12 * struct.unpack("<H", content[start : start + 2])[0]
    content[end : end + 4] = struct.pack("<I", start)
    (tmp_path / "a.tif").write_bytes(content)
    assert read_header(tmp_path / "a.tif").pages == 1
    page = Image.fromarray(GREY)
    page.save(tmp_path / "b.tif", save_all=True, append_images=[page] * 5)
    monkeypatch.setattr(pk.images, "PAGES", 5)
    with pytest.raises(pk.DataError, match=r"b\.tif holds more than 5 pages: save it as several files"):
        read_header(tmp_path / "b.tif")


def test_a_few_bytes_of_webp_are_no_large_photograph(tmp_path):
    """A picture of one colour, which Pillow's decoder would take 1.3 GB for."""
    content = bytearray(saved_webp(tmp_path, (64, 64)))
    bits = int.from_bytes(content[21:25], "little") & ~0xFFFFFFF  # width - 1 and height - 1, of 14 bits each
    content[21:25] = (bits | 8999 | 8999 << 14).to_bytes(4, "little")
    (tmp_path / "a.webp").write_bytes(content)
    with pytest.raises(pk.DataError, match="it claims 9000x9000 pixels"):
        read_header(tmp_path / "a.webp")
    (tmp_path / "b.webp").write_bytes(saved_webp(tmp_path, (4000, 4000)))
    assert read_header(tmp_path / "b.webp").size == (4000, 4000)


def saved_webp(folder, size):
    Image.new("RGB", size).save(folder / "black.webp", lossless=True)
    return (folder / "black.webp").read_bytes()
