"""A maker for each row of the tables in docs/data.md: what the row's first cell names, and how it is read.

A maker gets an empty folder, puts the thing there and returns a `Case`.
"""

import os
import shutil
import socket
import struct
import unicodedata
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

import patchcore_kit as pk
from patchcore_kit.datasets import as_samples, read_mask, read_rgb
from patchcore_kit.notes import Notes
from patchcore_kit.transforms import Transform, look_over

NOISE = np.random.default_rng(0).integers(0, 256, (16, 32, 3), dtype=np.uint8)
GREY = NOISE[..., 0]
DEEP = GREY.astype(np.uint16) * 257
SMOOTH = np.stack(np.broadcast_arrays(np.arange(64) * 4, np.arange(48)[:, None] * 5, 128), axis=-1).astype(np.uint8)
LOSSY = 8  # grey levels, on average, by which what JPEG and WebP make of SMOOTH differs from it
SQUARE = np.zeros((100, 100), dtype=bool)
SQUARE[20:60, 20:60] = True
BLACK, RED, GREEN, WHITE = (0, 0, 0), (255, 0, 0), (0, 128, 0), (255, 255, 255)
MAKERS: dict[str, dict[str, Callable]] = {"Images": {}, "Folders": {}, "Masks": {}}


@dataclass
class Case:
    """read: as a user would; wanted: what it returns where it is not refused; off: by how much that may be missed."""

    read: Callable[[], list]
    wanted: list
    off: float = 0


def makes(table, *rows):
    def kept(maker):
        for row in rows:
            assert row not in MAKERS[table], row
            MAKERS[table][row] = maker
        return maker

    return kept


# images


def images(sources, wanted, off=0, transform=None):
    """Files or frames, read as `fit` does; wanted: the pixels of each, grey as (H, W)."""
    sources = sources if isinstance(sources, list) else [sources]
    wanted = wanted if isinstance(wanted, list) else [wanted] * len(sources)

    def read():
        notes = Notes()
        samples = as_samples(sources)
        known, _ = look_over(samples, transform or Transform((16, 32)), notes, learn=True)
        for sample in samples:
            assert known.image(sample, notes=Notes()).shape == (*known.size, 3)
        found = [np.asarray(read_rgb(s.source, bits=known.bits, notes=notes, name=s.where)) for s in samples]
        notes.tell()
        return found

    return Case(read, [np.repeat(w[..., None], 3, axis=2) if np.ndim(w) == 2 else w for w in wanted], off)


def saved(path, values=NOISE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(path, **options)
    return path


def written(path, content):
    path.write_bytes(content)
    return path


def turned(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    return {"exif": exif}


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(path, rows, width, height, depth=8, colours=2, interlaced=0):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, interlaced))
    return written(
        path, b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")
    )


def deep_png(path, values, colours):
    rows = (b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(path, rows, values.shape[1], values.shape[0], 16, colours)


def tiff(path, blocks, height, width, order="<", **tags):
    """A TIFF of (number, [values]) tags and blocks of pixels; by default of RGB, uncompressed, in one strip."""
    tags = {256: [width], 257: [height], 258: [8, 8, 8], 259: [1], 262: [2], 277: [3]} | {
        int(name[1:]): value for name, value in tags.items()
    }
    places, sizes = (324, 325) if 322 in tags else (273, 279)
    tags |= {places: [0] * len(blocks), sizes: [len(block) for block in blocks]}
    start = 8 + 2 + 12 * len(tags) + 4
    after = start + sum(4 * len(value) for value in tags.values() if len(value) > 1)
    tags[places] = [after + sum(map(len, blocks[:i])) for i in range(len(blocks))]
    directory, data = struct.pack(f"{order}H", len(tags)), b""
    for number, values in sorted(tags.items()):
        directory += struct.pack(f"{order}HHI", number, 4, len(values))
        packed = struct.pack(f"{order}{len(values)}I", *values)
        directory += packed if len(values) == 1 else struct.pack(f"{order}I", start + len(data))
        data += packed if len(values) > 1 else b""
    magic = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8)
    return written(path, magic + directory + struct.pack(f"{order}I", 0) + data + b"".join(blocks))


def bmp(path, rows, bits, height, width=32, compression=0, palette=b""):
    data = b"".join(row + bytes(-len(row) % 4) for row in rows) if compression == 0 else rows
    start = 54 + len(palette)
    head = struct.pack("<2sIHHI", b"BM", start + len(data), 0, 0, start)
    head += struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 2835, 2835, len(palette) // 4, 0
    )
    return written(path, head + palette + data)


def entries(colours):
    return b"".join(bytes((*colour[::-1], 0)) for colour in colours)


@makes("Images", "PNG, BMP, TIFF and WebP; suffixes in any case")
def _(folder):
    files = [saved(folder / name) for name in ("a.png", "b.PNG", "c.bmp", "d.BMP", "e.tif", "f.TIFF")]
    return images([*files, saved(folder / "g.WebP", lossless=True)], NOISE)


@makes("Images", "JPEG (`.jpg`, `.jpeg`, `.jpe`, `.jfif`), also progressive")
def _(folder):
    files = [saved(folder / f"a.{ending}", SMOOTH, format="JPEG") for ending in ("jpg", "JPEG", "jpe", "jfif")]
    return images([*files, saved(folder / "b.jpg", SMOOTH, progressive=True)], SMOOTH, LOSSY)


@makes("Images", "JPEG in CMYK and in YCCK, as printers want it")
def _(folder):
    image = Image.fromarray(SMOOTH)
    inverted = [255 - np.asarray(band) for band in Image.fromarray(255 - SMOOTH).convert("YCbCr").split()]
    stored = Image.merge("CMYK", [*map(Image.fromarray, inverted), Image.new("L", image.size)])
    content = bytearray(saved(folder / "ycck.jpg", stored, quality=95).read_bytes())
    content[content.index(b"Adobe") + 11] = 2
    cmyk = saved(folder / "cmyk.jpg", image.convert("CMYK"), quality=95)
    return images([cmyk, written(folder / "ycck.jpg", content)], SMOOTH, LOSSY)


@makes("Images", "grey, palette, one bit")
def _(folder):
    sixteen, bit = GREY // 16 * 16, GREY > 127
    palette = Image.fromarray(sixteen).convert("P")
    files = [saved(folder / "a.png", GREY), saved(folder / "b.png", palette), saved(folder / "c.png", bit)]
    return images([*files, saved(folder / "d.png", palette, bits=8)], [GREY, sixteen, bit * np.uint8(255), sixteen])


@makes("Images", "an alpha channel; a palette or a colour that is transparent")
def _(folder):
    clear = [saved(folder / "a.png", np.dstack([NOISE, GREY])), saved(folder / "b.png", np.dstack([GREY, GREY]))]
    palette, plain = Image.fromarray(GREY // 16).convert("P"), GREY // 16
    clear.append(saved(folder / "c.png", palette, transparency=3))
    clear.append(saved(folder / "d.png", palette, transparency=bytes(range(0, 256, 16))))
    clear.append(saved(folder / "e.png", transparency=tuple(NOISE[0, 0].tolist())))
    return images(clear, [NOISE, GREY, plain, plain, NOISE])


@makes("Images", "interlaced PNG")
def _(folder):
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = (b"\0" + row.tobytes() for x, y, across, down in passes for row in NOISE[y::down, x::across])
    return images(png(folder / "a.png", rows, 32, 16, interlaced=1), NOISE)


@makes("Images", "lossless WebP")
def _(folder):
    return images(saved(folder / "a.webp", lossless=True), NOISE)


@makes("Images", "lossy WebP")
def _(folder):
    return images(saved(folder / "a.webp", SMOOTH), SMOOTH, LOSSY)


@makes("Images", "APNG, animated WebP, several pages of a TIFF")
def _(folder):
    more = {"save_all": True, "append_images": [Image.fromarray(255 - NOISE)] * 2}
    files = [saved(folder / "a.png", **more), saved(folder / "b.webp", lossless=True, **more)]
    return images([*files, saved(folder / "c.tif", **more)], NOISE)


@makes("Images", "smaller versions in a TIFF (pyramids), previews in a phone's MPO")
def _(folder):
    small = Image.fromarray(SMOOTH).resize((32, 24))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    pyramid = saved(folder / "a.tif", SMOOTH, save_all=True, append_images=[small])
    views = saved(folder / "b.jpg", SMOOTH, format="MPO", save_all=True, append_images=[small])
    return images([pyramid, views], SMOOTH, LOSSY)


@makes("Images", "a damaged list of previews in an MPO")
def _(folder):
    path = saved(folder / "b.jpg", SMOOTH, format="MPO", save_all=True, append_images=[Image.fromarray(SMOOTH)])
    content = bytearray(path.read_bytes())
    start = content.index(b"MPF\0") + 4
    content[start : start + 4] = b"????"
    return images(written(path, content), SMOOTH, LOSSY)


@makes("Images", "EXIF orientations 1 to 8")
def _(folder):
    files, wanted = [], []
    for orientation in range(1, 9):
        upright = np.rot90(NOISE, {3: 2, 4: 2, 5: -1, 6: -1, 7: 1, 8: 1}.get(orientation, 0))
        for ending in ("png", "tif"):
            files.append(saved(folder / f"{orientation}.{ending}", **turned(orientation)))
            wanted.append(upright[:, ::-1] if orientation in (2, 4, 5, 7) else upright)
    return images(files, wanted)


@makes("Images", "EXIF orientations that there are not, 0 and 9")
def _(folder):
    return images([saved(folder / f"{number}.png", **turned(number)) for number in (0, 9)], NOISE)


@makes("Images", "a broken EXIF block")
def _(folder):
    broken = b"Exif\0\0II no directory"
    files = [saved(folder / "a.png", SMOOTH, exif=broken), saved(folder / "b.jpg", SMOOTH, exif=broken)]
    return images(files, SMOOTH, LOSSY)


@makes("Images", "a colour profile of another kind, or broken")
def _(folder):
    profile = bytearray(128 + 4)
    profile[16:20], profile[36:40] = b"CMYK", b"acsp"
    files = [saved(folder / f"{i}.png", icc_profile=bytes(p)) for i, p in enumerate((profile, b"no profile", b"\0"))]
    return images(files, NOISE)


@makes("Images", "TIFF by LZW, deflate, PackBits, fax")
def _(folder):
    ways = ("tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits")
    files = [saved(folder / f"{way}.tif", compression=way) for way in ways]
    return images(
        [*files, saved(folder / "fax.tif", GREY > 127, compression="group4")],
        [NOISE] * 4 + [(GREY > 127) * np.uint8(255)],
    )


@makes("Images", "JPEG in TIFF")
def _(folder):
    return images(saved(folder / "a.tif", SMOOTH, compression="jpeg"), SMOOTH, LOSSY)


@makes("Images", "TIFF in tiles, in planes, big-endian, BigTIFF")
def _(folder):
    tiles = [NOISE[:, left : left + 16].tobytes() for left in (0, 16)]
    files = [
        tiff(folder / "tiles.tif", tiles, 16, 32, _322=[16], _323=[16]),
        tiff(folder / "planes.tif", [NOISE[..., i].tobytes() for i in range(3)], 16, 32, _284=[2]),
        tiff(folder / "big-endian.tif", [NOISE.tobytes()], 16, 32, ">"),
    ]
    return images([*files, saved(folder / "big.tif", big_tiff=True)], NOISE)


@makes("Images", "TIFF in which white is zero, of 8 and of 16 bits")
def _(folder):
    files = [saved(folder / "8.tif", GREY, tiffinfo={262: 0}), saved(folder / "16.tif", DEEP, tiffinfo={262: 0})]
    return images(files, [GREY, 255 - GREY])  # Pillow writes 8 bits inverted, as the tag says, and 16 as they are


@makes("Images", "BMP of 1, 4, 8, 16, 24 and 32 bits")
def _(folder):
    bit, four = GREY[::-1] > 127, GREY[::-1] // 16
    five = NOISE[::-1].astype(np.uint16) >> 3
    shades = entries([(shade * 16,) * 3 for shade in range(16)])
    rows = {
        1: np.packbits(bit, axis=1),
        4: four[:, ::2] << 4 | four[:, 1::2],
        16: (five @ np.array([1024, 32, 1], np.uint16)).astype("<u2"),
        32: NOISE[::-1][..., [2, 1, 0, 0]],
    }
    tables = {1: entries([BLACK, RED]), 4: shades, 16: b"", 32: b""}
    files = [
        bmp(folder / f"{bits}.bmp", [row.tobytes() for row in rows[bits]], bits, 16, palette=tables[bits])
        for bits in rows
    ]
    files += [saved(folder / "8.bmp", Image.fromarray(GREY // 16 * 16).convert("P")), saved(folder / "24.bmp")]
    one = np.where(bit[::-1, :, None], np.array(RED, np.uint8), np.uint8(0))
    five = (five[::-1] * 255 / 31).astype(np.uint8)
    return images(files, [one, four[::-1] * 16, five, NOISE, GREY // 16 * 16, NOISE])


@makes("Images", "BMP run by run (RLE), or upside down")
def _(folder):
    shades = entries([(shade,) * 3 for shade in range(255)] + [RED])
    rows = b"".join(b"\x20" + bytes([10 * row]) + b"\0\0" for row in range(16)) + b"\0\1"
    wanted = np.repeat(np.arange(15, -1, -1, dtype=np.uint8)[:, None] * 10, 32, axis=1)
    runs = bmp(folder / "runs.bmp", rows, 8, 16, compression=1, palette=shades)
    return images([runs, bmp(folder / "down.bmp", [row[:, ::-1].tobytes() for row in NOISE], 24, -16)], [wanted, NOISE])


@makes("Images", "16 bits of grey, RGB, RGBA in a PNG")
def _(folder):
    deep = NOISE.astype(np.uint16) * 257
    deep[0, 0] = 65535
    wanted = deep.astype(np.uint8)
    files = [saved(folder / "a.png", deep[..., 0]), deep_png(folder / "b.png", deep, 2)]
    return images(files, [wanted[..., 0], wanted])


@makes("Images", "16-bit RGBA")
def _(folder):
    deep = np.dstack([NOISE, GREY]).astype(np.uint16) * 257
    deep[0, 0] = 65535
    return images(deep_png(folder / "a.png", deep, 6), (deep >> 8).astype(np.uint8)[..., :3])


@makes("Images", "10, 12 or 14 bits in 16, of a data set")
def _(folder):
    deep = GREY.astype(np.uint16) * 16
    deep[0, 0] = 4095
    return images(saved(folder / "a.png", deep), (deep >> 4).astype(np.uint8))


@makes("Images", "32 bits of grey")
def _(folder):
    deep = GREY.astype(np.int32) << 23
    deep[0, 0] = 2**31 - 1
    return images(saved(folder / "a.tif", deep), (deep >> 23).astype(np.uint8))


@makes("Images", "floating-point values")
def _(folder):
    return images(saved(folder / "a.tif", GREY.astype(np.float32)), None)


@makes("Images", "negative values")
def _(folder):
    return images(saved(folder / "a.tif", np.full((16, 32), -5, dtype=np.int32)), None)


@makes("Images", "16-bit colour in separate planes")
def _(folder):
    planes = [(NOISE[..., i].astype("<u2") * 257).tobytes() for i in range(3)]
    return images(tiff(folder / "a.tif", planes, 16, 32, _258=[16, 16, 16], _284=[2]), None)


@makes("Images", "one pixel; one colour only")
def _(folder):
    files = [saved(folder / "a.png", NOISE[:1, :1]), saved(folder / "b.png", np.full((16, 32, 3), 7, np.uint8))]
    return images(files, [NOISE[:1, :1], np.full((16, 32, 3), 7)])


@makes("Images", "one row, one column of 8000 pixels")
def _(folder):
    line = np.random.default_rng(0).integers(0, 256, (1, 8000), dtype=np.uint8)
    return images(
        [saved(folder / "a.png", line), saved(folder / "b.png", line.T)], [line, line.T], transform=Transform()
    )


@makes("Images", "the rest of a picture outside the central crop")
def _(folder):
    wide = np.zeros((20, 60), dtype=np.uint8)
    return images(saved(folder / "a.png", wide), wide, transform=Transform(20, 20))


@makes("Images", "more pixels than Pillow reads (179 million)")
def _(folder):
    return images(png(folder / "a.png", [], 20000, 20000), None)


@makes("Images", "a PNG that claims 9000x9000 pixels in 100 bytes")
def _(folder):
    return images(png(folder / "a.png", [bytes(100)], 9000, 9000), None)


@makes("Images", "a TIFF that claims so")
def _(folder):
    return images(tiff(folder / "a.tif", [bytes(100)], 9000, 9000), None)


@makes("Images", "a BMP that claims so")
def _(folder):
    return images(bmp(folder / "a.bmp", [bytes(100)], 24, 9000, 9000), None)


@makes("Images", "a JPEG that claims so")
def _(folder):
    content = bytearray(saved(folder / "a.jpg", SMOOTH).read_bytes())
    start = content.index(b"\xff\xc0") + 5
    content[start : start + 4] = struct.pack(">HH", 9000, 9000)
    return images(written(folder / "a.jpg", content), None)


def cut(ending, share, **options):
    def maker(folder):
        path = saved(
            folder / f"a.{ending}", np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8), **options
        )
        content = path.read_bytes()
        return images(written(path, content[: int(share * len(content))]), None)

    return maker


for ending, options in (("png", {}), ("jpg", {}), ("tif", {"compression": "tiff_lzw"}), ("bmp", {}), ("webp", {})):
    for share in (10, 50, 99):
        makes("Images", f"the first {share} % of a file: {ending.upper()}")(cut(ending, share / 100, **options))


@makes("Images", "bytes behind the end of the picture")
def _(folder):
    files = [saved(folder / f"a.{ending}", SMOOTH) for ending in ("png", "jpg", "bmp", "webp")]
    return images([written(file, file.read_bytes() + b"more" * 99) for file in files], SMOOTH, LOSSY)


def called_png(row, content):
    makes("Images", row)(lambda folder: images(written(folder / "photo.png", content), None))


called_png("an empty file", b"")
called_png("nothing but zeros, as an interrupted copy leaves", bytes(5000))
called_png("a web page called `.png`", b"<!DOCTYPE html><html>404</html>")
called_png("text called `.png`", "Grüße: siehe Anhang\n".encode())
called_png("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
called_png("a GIF called `.png`", b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2D\1\0;")
called_png("PostScript (EPS) called `.png`", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
called_png("a PDF called `.png`", b"%PDF-1.7\n")
called_png("HEIC called `.png`", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
called_png("AVIF called `.png`", b"\0\0\0\x18ftypavif\0\0\0\0mif1avif")
called_png("JPEG 2000 called `.png`", b"\0\0\0\x0cjP  \r\n\x87\n")
called_png("a Photoshop file called `.png`", b"8BPS\0\1")
called_png("a PNM called `.png`", b"P6\n1 1\n255\nabc")
called_png("an icon called `.png`", b"\0\0\1\0\1\0\1\1\0\0\1\0\x20\0\4\0\0\0\x16\0\0\0")
called_png("anything else called `.png`", bytes(range(256)) * 4)


@makes("Images", "a PNG called `.jpg`, a JPEG called `.png`")
def _(folder):
    files = [saved(folder / "a.jpg", SMOOTH, format="PNG"), saved(folder / "b.png", SMOOTH, format="JPEG")]
    return images(files, SMOOTH, LOSSY)


@makes("Images", "names with blanks, quotes, a newline, an emoji, umlauts in both forms")
def _(folder):
    names = ["a b .png", 'it\'s "a".png', "two\nlines.png", "\U0001f529.png", "%s {0} #?.png"]
    names += [unicodedata.normalize(form, "größe.png") for form in ("NFC", "NFD")]
    return images([saved(folder / name) for name in names], NOISE)


@makes("Images", "names of 255 bytes, or not in UTF-8")
def _(folder):
    shutil.copy(saved(folder / "a.png"), os.fsencode(folder) + b"/gr\xf6\xdfe.png")
    return images(
        [saved(folder / f"{'x' * 251}.png"), Path(os.fsdecode(os.fsencode(folder) + b"/gr\xf6\xdfe.png"))], NOISE
    )


@makes("Images", "a named pipe")
def _(folder):
    os.mkfifo(folder / "a.png")
    return images(folder / "a.png", None)


@makes("Images", "a socket")
def _(folder):
    before = Path.cwd()
    os.chdir(folder)  # or its path would be too long for one
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("a.png")
    os.chdir(before)
    return images(folder / "a.png", None)


@makes("Images", "a link to a device, which has no end")
def _(folder):
    (folder / "a.png").symlink_to("/dev/zero")
    return images(folder / "a.png", None)


@makes("Images", "a link to a file")
def _(folder):
    (folder / "a.png").symlink_to(saved(folder / "b.png"))
    return images(folder / "a.png", NOISE)


@makes("Images", "a link to nothing, no file")
def _(folder):
    (folder / "a.png").symlink_to(folder / "gone.png")
    return images(folder / "a.png", None)


@makes("Images", "links that lead back to themselves")
def _(folder):
    (folder / "a.png").symlink_to(folder / "b.png")
    (folder / "b.png").symlink_to(folder / "a.png")
    return images(folder / "a.png", None)


@makes("Images", "a file that you may not read")
def _(folder):
    if os.geteuid() == 0:
        pytest.skip("root may read every file")
    saved(folder / "a.png").chmod(0)
    return images(folder / "a.png", None)


@makes("Images", "arrays `(H, W)`, `(H, W, 1)`, `(H, W, 3)` of uint8 or uint16 in RGB order, PIL images")
def _(folder):
    deep = np.full((16, 32), 65535, dtype=np.uint16)
    frames = [GREY, GREY[..., None], NOISE, deep, NOISE.astype(np.uint16) * 257, Image.fromarray(NOISE)]
    return images(frames, [GREY, GREY, NOISE, np.full((16, 32), 255), NOISE, NOISE])


@makes("Images", "any iterable of them, `(N, H, W, 3)`")
def _(folder):
    return images(list(np.stack([NOISE, NOISE])), NOISE)


@makes("Images", "arrays of other types and shapes (float, `(3, H, W)`, with alpha)")
def _(folder):
    return images([np.dstack([NOISE, GREY])], None)


# folders


def category(folder, *names):
    """A category `part` of the usual layout, and more files: name or (name, pixels)."""
    part = folder / "root" / "part"
    for name in ("train/good/000.png", "test/good/000.png", "test/dent/000.png", "test/dent/001.png", *names):
        saved(part / name)
    return part


USUAL = ["test/dent/000.png", "test/dent/001.png", "test/good/000.png", "train/good/000.png"]


def loaded(part, wanted=USUAL):
    def read():
        found = pk.load_category(part.parent, part.name)
        return sorted(sample.name for sample in found.train + found.test)

    return Case(read, sorted(wanted))


def masked(part, wanted):
    """wanted: the images that have a mask."""

    def read():
        return [sample.name for sample in pk.load_category(part.parent, part.name).test if sample.mask_path]

    return Case(read, wanted)


def listed(folder, *wanted):
    return Case(lambda: [sample.name for sample in pk.load_folder(folder)], sorted(wanted))


def beside(*names, wanted=("a.png",)):
    """A folder of photographs, with something else in it."""

    def maker(folder):
        for name in ("a.png", *names):
            saved(folder / name, format="PNG")
        return listed(folder, *wanted)

    return maker


def in_category(*names):
    return lambda folder: loaded(category(folder, *names))


@makes("Folders", "the layout above, as of MVTec AD")
def _(folder):
    return masked(category(folder, "ground_truth/dent/000_mask.png", "ground_truth/dent/001_mask.png"), USUAL[:2])


@makes("Folders", "a folder of masks for each image, as in MVTec LOCO")
def _(folder):
    return masked(category(folder, "ground_truth/dent/000/000.png", "ground_truth/dent/000/001.png"), USUAL[:1])


@makes("Folders", "masks named as their images, as in VisA after its usual split")
def _(folder):
    return masked(category(folder, "ground_truth/dent/000.png", "ground_truth/dent/001.png"), USUAL[:2])


@makes("Folders", "no test images; images loose in `train` and `test`")
def _(folder):
    saved(folder / "root/part/train/000.png")
    saved(folder / "root/part/test/000.png")
    return loaded(folder / "root/part", ["test/000.png", "train/000.png"])


makes("Folders", "hidden files, `Thumbs.db`, `desktop.ini`")(
    beside(".hidden.png", "._a.png", ".DS_Store", "Thumbs.db", "desktop.ini")
)
makes("Folders", "`@eaDir`, `__MACOSX`, recycle bins")(
    beside("@eaDir/a.png", "__MACOSX/a.png", "#recycle/a.png", "$RECYCLE.BIN/a.png", ".ipynb_checkpoints/a.png")
)
makes("Folders", "double suffixes: `a.png.bak`, `a.png.txt`, `a.png~`")(beside("a.png.bak", "a.png.txt", "a.png~"))
makes("Folders", "other image files (`.gif`, `.heic`, `.pgm`, raw photographs, ...)")(
    beside("b.gif", "c.heic", "d.NEF")
)
makes("Folders", "upper-case suffixes")(beside("B.PNG", "c.Jpg", wanted=("B.PNG", "a.png", "c.Jpg")))
makes("Folders", "two images of one name (`a.png`, `a.jpg`)")(beside("a.jpg", wanted=("a.jpg", "a.png")))
makes("Folders", "`x_mask.png`, `x_gt.png` beside `x.png` among images")(beside("a_mask.png"))
makes("Folders", "`x_label.png`, `x_seg.png` beside `x.png` among images")(
    beside("a_label.png", wanted=("a.png", "a_label.png"))
)
makes("Folders", "a folder of images in a folder of photographs, even if called `x.png`")(beside("x.png/b.png"))
makes("Folders", "images deeper than these folders, at any depth")(in_category("train/good/lot 1/day/000.png"))
makes("Folders", "images in `train/<other>`")(in_category("train/dent/000.png"))
makes("Folders", "`test/masks`, `test/gt` and the like, without masks of their own in `ground_truth`")(
    in_category("test/masks/000.png")
)
makes(
    "Folders", "good images in `test/OK`, `Good`, `normal`, `pass`, `nominal`, `io`, with blanks or dots, in any case"
)(in_category("test/O.K./000.png"))
makes("Folders", "`Train`, `TEST`, `Ground Truth`, ...")(in_category("Ground Truth/dent/000.png"))
makes("Folders", "other folders with images in a category (`validation`); images beside the folders")(
    in_category("validation/000.png", "overview.png")
)
makes("Folders", "the masks of a category in `masks`, `gt`, ...")(in_category("masks/dent/000_mask.png"))


@makes("Folders", "two images of one name that could share a mask")
def _(folder):
    return loaded(category(folder, "test/dent/000.jpg", "ground_truth/dent/000_mask.png"))


@makes("Folders", "an empty folder")
def _(folder):
    return listed(folder)


@makes("Folders", "no such folder")
def _(folder):
    return listed(folder / "gone")


@makes("Folders", "an empty folder called `x.png`")
def _(folder):
    (folder / "x.png").mkdir()
    return listed(saved(folder / "a.png").parent, "a.png")


@makes("Folders", "links to files and to folders")
def _(folder):
    saved(folder / "elsewhere/a.png")
    part = category(folder)
    shutil.rmtree(part / "test" / "good")
    (part / "test" / "good").symlink_to(folder / "elsewhere")
    (part / "train" / "good" / "link.png").symlink_to(folder / "elsewhere" / "a.png")
    return loaded(part, [*USUAL[:2], "test/good/a.png", "train/good/000.png", "train/good/link.png"])


@makes("Folders", "links to nothing")
def _(folder):
    saved(folder / "a.png")
    (folder / "b.png").symlink_to(folder / "gone.png")
    return listed(folder)


@makes("Folders", "links that lead back to themselves")
def _(folder):
    saved(folder / "a.png")
    (folder / "b.png").symlink_to(folder / "b.png")
    return listed(folder)


@makes("Folders", "a category in place of its data folder")
def _(folder):
    part = category(folder)
    return Case(lambda: pk.load_category(part, part.name), [])


@makes("Folders", "`~` in paths")
def _(folder):
    saved(folder / "photographs/a.png")
    os.environ["HOME"] = str(folder)  # put back by the test
    return listed("~/photographs", "a.png")


@makes("Folders", "files of several folders in one list")
def _(folder):
    files = [saved(folder / place / "a.png") for place in ("monday", "tuesday/late")]
    return Case(lambda: [sample.name for sample in as_samples(files)], ["monday/a.png", "tuesday/late/a.png"])


@makes("Folders", "images of another category than the model's")
def _(folder):
    detector = fitted(saved(folder / "root/part/train/good/000.png"))
    other = pk.load_category(saved(folder / "root/other/test/good/000.png").parents[3], "other")
    return Case(lambda: detector.predict(other.test).names, ["test/good/000.png"])


def fitted(path):
    backbone = pk.load_backbone("starter")
    part = pk.load_category(path.parents[3], path.parents[2].name)
    return pk.PatchCore(backbone, resize=(32, 32), percentage=1.0, progress=False).fit(part.train)


# masks


def mask(path, wanted=SQUARE, off=0.0):
    return Case(lambda: [np.asarray(read_mask(path)) == 255], [wanted], off)


def drawn(name, wanted=SQUARE, off=0.0, **options):
    """A maker of masks that are one picture."""
    return lambda picture: lambda folder: mask(saved(folder / name, picture, **options), wanted, off)


def levels(defect, background=0, dtype=np.uint8):
    return np.where(SQUARE, defect, background).astype(dtype)


def two(low, high, dtype=np.uint8):
    values = levels(low, dtype=dtype)
    values[20:60, 40:60] = high
    return values


def colours(defect, background, second=None):
    pixels = np.empty((100, 100, 3), dtype=np.uint8)
    pixels[:] = background
    pixels[SQUARE] = defect
    pixels[20:60, 40:60] = second or defect
    return pixels


def palette(*table):
    image = Image.fromarray(SQUARE.astype(np.uint8)).convert("P")
    image.putpalette([value for colour in table for value in colour])
    return image


def clear(colour, alpha):
    pixels = np.empty((100, 100, 4), dtype=np.uint8)
    pixels[..., :3], pixels[..., 3] = colour, alpha
    return pixels


makes("Masks", "black and white, 0 and 255")(drawn("a.png")(levels(255)))
makes("Masks", "0 and 1, which looks all black")(drawn("a.png")(levels(1)))
makes("Masks", "one bit")(drawn("a.png")(SQUARE))
makes("Masks", "16 bits")(drawn("a.png")(levels(65535, dtype=np.uint16)))
makes("Masks", "32 bits, floating-point values")(drawn("a.tif")(levels(1, dtype=np.float32)))
makes("Masks", "palettes")(drawn("a.png")(palette(BLACK, (128, 0, 0))))
makes("Masks", "palettes in which black is the second colour")(drawn("a.png", ~SQUARE)(palette(RED, BLACK)))
makes("Masks", "labels as colours (CVAT, LabelMe)")(drawn("a.png")(colours((61, 61, 245), BLACK, (51, 221, 255))))
makes("Masks", "labels as grey levels")(drawn("a.png")(two(60, 200)))
makes("Masks", "labels as numbers of 8, 16 or 32 bits")(drawn("a.tif")(two(50, 70000, np.int32)))
makes("Masks", "a background that is not black")(drawn("a.png")(colours(RED, GREEN)))
makes("Masks", "JPEG")(drawn("a.jpg", off=0.005)(levels(255)))
makes("Masks", "lossy WebP")(drawn("a.webp", off=0.005)(levels(255)))
makes("Masks", "smooth edges, as of resized masks")(
    drawn("a.png", off=0.005)(Image.fromarray(levels(255)).filter(ImageFilter.GaussianBlur(2)))
)
makes("Masks", "one colour, or black, with the shape in alpha")(drawn("a.png")(clear(BLACK, SQUARE * 255)))
makes("Masks", "colours on a transparent layer")(drawn("a.png")(clear(colours(RED, BLACK), SQUARE * 255)))
makes("Masks", "all black")(drawn("a.png", SQUARE & False)(levels(0)))
makes("Masks", "one colour other than black")(drawn("a.png", SQUARE | True)(levels(9, 9)))
makes("Masks", "turned by EXIF, as its image")(drawn("a.png", np.rot90(SQUARE, -1), **turned(6))(levels(255)))


@makes("Masks", "PNG made of JPEG")
def _(folder):
    return mask(saved(folder / "a.png", Image.open(saved(folder / "a.jpg", levels(255)))), off=0.005)


@makes("Masks", "blurred masks, heat maps")
def _(folder):
    y, x = np.mgrid[:400, :400] - 200
    heat = (255 * np.exp(-(x**2 + y**2) / 800)).astype(np.uint8)
    return mask(saved(folder / "a.png", heat), heat >= 127, 0.001)


def halves():
    parts = [levels(255), levels(1)]
    parts[0][:, 40:], parts[1][:, :40] = 0, 0
    return parts


@makes("Masks", "pages of a TIFF")
def _(folder):
    first, second = map(Image.fromarray, halves())
    return mask(saved(folder / "a.tif", first, save_all=True, append_images=[second]))


@makes("Masks", "files of an image's folder")
def _(folder):
    for name, part in zip("ab", halves(), strict=True):
        saved(folder / f"000/{name}.png", part)
    saved(folder / "000/.hidden.png", levels(255)[::-1])
    return mask(folder / "000")


@makes("Masks", "pages, or files of a folder, of different sizes")
def _(folder):
    saved(folder / "000/a.png", levels(255))
    saved(folder / "000/b.png", levels(255)[:50])
    return mask(folder / "000")


@makes("Masks", "an empty folder in the place of a mask")
def _(folder):
    (folder / "000").mkdir()
    return mask(folder / "000")


@makes("Masks", "a mask that cannot be read, as of images")
def _(folder):
    return mask(written(folder / "a.png", b"GIF89a"))


def scored(defect, pixels):
    """The mask of an image of a kind, as `predict` sees it at 32x32 pixels."""

    def maker(folder):
        root = folder / "root/part"
        detector = fitted(saved(root / "train/good/000.png", SMOOTH))
        saved(root / f"test/{defect}/000.png", SMOOTH)
        if pixels is not None:
            saved(root / f"ground_truth/{defect}/000_mask.png", pixels)
        return Case(
            lambda: detector.predict(pk.load_category(root.parent, "part").test).names, [f"test/{defect}/000.png"]
        )

    return maker


def spot(height, width):
    pixels = np.zeros(SMOOTH.shape[:2], dtype=np.uint8)
    pixels[10 : 10 + height, 10 : 10 + width] = 255
    return pixels


makes("Masks", "more than half of what is seen")(scored("dent", 255 - spot(9, 9)))
makes("Masks", "a mask of a good image that is not empty")(scored("good", spot(9, 9)))
makes("Masks", "an empty mask of a defective image")(scored("dent", spot(0, 0)))
makes("Masks", "a defect too thin at this size")(scored("dent", spot(20, 1)))
makes("Masks", "a defective image without a mask")(scored("dent", None))
makes("Masks", "a mask of another size than its image")(scored("dent", np.zeros((9, 9), np.uint8)))


@makes("Masks", "endings `_mask`, `_gt`, `_label`, `_seg`, with `-`, `.` or a blank, in any case and form of Unicode")
def _(folder):
    names = ("a_mask", "b-GT", "c.label", "d seg", "e_Ground Truth", "grö")
    part, masks = category(folder), folder / "root/part/ground_truth/dent"
    for name in names:
        stem = name[0] if name != "grö" else name
        saved(part / f"test/dent/{unicodedata.normalize('NFC', stem)}.png")
        saved(masks / f"{unicodedata.normalize('NFD', name)}.png")
    return masked(part, [f"test/dent/{name[0] if name != 'grö' else name}.png" for name in names])


def with_masks(*names):
    return lambda folder: masked(category(folder, *(f"ground_truth/{name}" for name in names)), [])


makes("Masks", "a mask without an image")(with_masks("dent/007_mask.png"))
makes("Masks", "masks of a defect without images")(with_masks("scratch/000_mask.png"))
makes("Masks", "two masks of one image")(with_masks("dent/000_mask.png", "dent/000_gt.png"))
makes("Masks", "masks loose in `ground_truth/`")(with_masks("000_mask.png"))


@makes("Masks", "outlines in LabelMe's or COCO's JSON, where images lack their masks")
def _(folder):
    part = category(folder)
    written(part / "test/dent/000.json", b'{"shapes": []}')
    return masked(part, [])
