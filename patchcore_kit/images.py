"""An image, in a file or in memory -> RGB pixels of 8 bits, upright; and what its header says before that.

Cameras of 10, 12 or 14 bits save their pixels in 16. What is white there is a property of the data set, never of one
image, whose brightness would be lost: see `bits_for`.

Nothing that a file says of itself is believed: not its name, nor a size that its bytes cannot hold.
"""

import os
import re
import stat
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, TiffTags, UnidentifiedImageError

from patchcore_kit.errors import DataError, short
from patchcore_kit.files import LFS_POINTER, user_path
from patchcore_kit.notes import Notes

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp")
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")  # of all that Pillow would open; a JPEG may turn out to be an MPO
BITS = (8, 10, 12, 14, 16, 24, 31, 32)  # that a data set's values may have, from its largest
LEVELS = 16  # left of an image's values, or fewer, are worth a word
PAGES = 10_000  # of a TIFF, each of which takes a while to find
SENTENCE = 300  # characters of a message, of which Pillow's own may take all that is left
NAME = 200  # characters of a name, in messages
_SWAPPED = (5, 6, 7, 8)  # EXIF orientations that are shown with width and height exchanged
_TURNED = (2, 3, 4, *_SWAPPED)
_ORIENTATION, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT, _PLANES, _REDUCED = 274, 258, 262, 339, 284, 254  # tags
_COMPRESSION, _SAMPLES, _YCBCR = 259, 277, 6
_INDEX = 2**18  # bytes, in which a JPEG's list of previews lies
_STRIP = 2**18  # pixels that are worked on at once, which the processor's cache holds
# Bytes that a byte of a file can become, at most: deflate's longest match is 258 bytes for 2 bits, PackBits' 128 for 2
# bytes, LZW's 4096 for 9 bits, LZMA's 273 for 0.3 bits, Zstandard's 131072 for 4 bytes; fax is of one bit a pixel, and
# without a limit. Pixels that it can become: Huffman codes of a JPEG's block of 8x8 take a bit or more, blocks may be
# 4 times as coarse in one direction and others in the other; lossy WebP's mode of 16x16 takes 3 bits or more.
_DEFLATE = 1032
_TIFF_MOST = {1: 1, 5: 3641, 8: _DEFLATE, 32773: 64, 32946: _DEFLATE, 34925: 7200, 50000: 32768}
_TIFF_JPEG, _TIFF_FAX = (6, 7), (2, 3, 4)
_PIXELS_MOST = 1024
_UNBOUNDED = 2**24  # pixels of a format that has no limit: Pillow's decoder takes 16 bytes for each
_OTHERS = (  # how files begin that are called images, and what they are
    (rb"GIF8", "a GIF"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript (EPS)"),
    (rb"%PDF", "a PDF"),
    (rb"8BPS", "a Photoshop file"),
    (rb"....ftyp(avif|avis)", "AVIF"),
    (rb"....ftyp(hei|hev|mif1|msf1)", "HEIC"),
    (rb"....ftyp", "a video"),
    (rb"....jP  |\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"....JXL |\xff\x0a", "JPEG XL"),
    (rb"P[1-7]\s", "a PNM"),
    (rb"\0\0[\1\2]\0", "an icon"),
    (rb"v/1\x01", "OpenEXR"),
    (rb"#\?(RADIANCE|RGBE)", "Radiance HDR"),
    (rb"II\xbc\x01", "JPEG XR"),
    (rb"DDS |qoif", "a texture (DDS, QOI)"),
    (rb"\x93NUMPY", "a NumPy array"),
)

# of large photographs, which Pillow calls a possible attack; those twice as large it refuses
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# of damage to what is not read: what matters is refused or told here
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

Frame = np.ndarray | Image.Image | bytes
"""A picture in memory: uint8 or uint16 of (H, W), (H, W, 1) or (H, W, 3), as RGB; any PIL image; a file's bytes."""


def is_frame(thing: object) -> bool:
    """Whether something is one picture in memory, by its shape: (H, W), or (H, W, 1, 3 or 4)."""
    if isinstance(thing, np.ndarray):
        return thing.ndim == 2 or (thing.ndim == 3 and thing.shape[2] in (1, 3, 4))
    return isinstance(thing, Image.Image)


def check_frame(frame: Frame, name: str) -> Frame:
    """A frame as it is read. Raises DataError for arrays of other types and shapes, and PIL images that are closed."""
    if isinstance(frame, Image.Image):
        if not getattr(frame, "tile", None) or frame.tell() > 0 or frame.format not in (*FORMATS, "MPO"):
            return frame
        try:  # only opened yet: Pillow would halve 16-bit colours, and the file says more than its pixels
            frame.fp.seek(0)
            return frame.fp.read()
        except (ValueError, AttributeError, OSError):
            raise DataError(f"{name} was closed before it was read: load it first, or give its path") from None
    deep = frame.dtype.kind == "u" and frame.dtype.itemsize == 2
    if not (deep or frame.dtype == np.uint8) or not is_frame(frame) or not frame.size or frame.shape[2:] == (4,):
        raise DataError(
            f"{name} is an array of {frame.dtype} {frame.shape}: give uint8 or uint16 of (H, W) or (H, W, 3), as RGB"
        )
    frame = frame.astype(np.uint16, copy=False) if deep else frame  # in this machine's order of bytes
    return frame[..., 0] if frame.shape[2:] == (1,) else frame


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of an image before its pixels are read.

    size: (width, height) as it is shown. bits: 8, 16 or 32, that each value takes. alpha: pixels may be transparent.
    pages: pictures in the file, without those that are only smaller versions or previews.
    """

    size: tuple[int, int]
    bits: int = 8
    alpha: bool = False
    pages: int = 1


def read_header(source: Path | Frame, name: object = None) -> Header:
    """The header of an image file, or of a frame; name: what to call it. Raises DataError as `read_rgb`."""
    if isinstance(source, np.ndarray):
        return Header(source.shape[1::-1], 8 * source.itemsize)
    with opened(source, name=name) as image:
        turned = image.format != "TIFF" and _orientation(image) in _SWAPPED  # Pillow has turned a TIFF's size already
        size = image.size[::-1] if turned else image.size
        count = sum(1 for _ in pages(image, _named(source, name))) if image.format == "TIFF" else _frames(image)
        return Header(size, value_bits(image), image.has_transparency_data, count)


@contextmanager
def opened(source: Path | Frame, content: bytes | None = None, name: object = None) -> Iterator[Image.Image]:
    """Open an image; whatever Pillow raises, then or while it decodes, becomes a DataError naming the file.

    Files are never opened by their path, for then Pillow maps uncompressed ones into memory, and turned TIFFs wrongly.
    """
    name = _called(_named(source, name))
    content = source if isinstance(source, bytes) else content
    try:
        if isinstance(source, np.ndarray):
            yield Image.fromarray(source)
        elif isinstance(source, Image.Image):
            yield _copied(source)
        else:
            if content is None:
                check_file(source, name)
            with (
                BytesIO(content) if content is not None else source.open("rb") as file,
                _identified(file, name) as image,
            ):
                _check_claim(image, file, name)
                yield image
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"no file {name}: check its name, or list its folder again if it was removed") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _unreadable(name, error, "cut it into tiles, or raise PIL.Image.MAX_IMAGE_PIXELS") from None
    except MemoryError:
        raise DataError(f"cannot read image {name} (there is not enough memory for it): cut it into tiles") from None
    except Exception as error:  # there is no kind that Pillow's decoders do not raise for files that are damaged
        raise _unreadable(name, error) from None


def check_file(path: Path, name: object = None) -> None:
    """Raise DataError for what would have to be waited for, or has no end: only files have pixels.

    Raises FileNotFoundError if there is nothing, and other OSErrors as `stat` does.
    """
    mode = path.stat().st_mode
    kinds = (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket")
    what = next((what for is_one, what in kinds if is_one(mode)), "a device")
    if not stat.S_ISREG(mode):
        raise DataError(f"cannot read image {name or _called(path)} (it is {what}, not a file): remove it")


def _named(source: Path | Frame, name: object) -> object:
    return name or (source if isinstance(source, Path) else "an image in memory")


def _called(name: object) -> str:
    """A name as messages have room for it; of longer ones the end, which tells them apart."""
    name = str(name)
    return name if len(name) <= NAME else f"...{name[3 - NAME :]}"


def _unreadable(name: str, why: object, advice: str = "replace it or remove it") -> DataError:
    """What cannot be read and why, in a sentence of bounded length: some of Pillow's hold half of the file."""
    room = SENTENCE - len(f"cannot read image {name} (): {advice}")
    return DataError(f"cannot read image {name} ({short(why, room) or type(why).__name__}): {advice}")


def _copied(image: Image.Image) -> Image.Image:
    """Somebody else's image, which may then be turned in place; of grey TIFFs with what says where white is."""
    copy = image.copy()
    if image.format == "TIFF" and image.mode.startswith("I"):
        copy.info["tag_v2"] = image.tag_v2
    return copy


def _identified(file: BinaryIO, name: str) -> Image.Image:
    """Open a file as one of the formats that are read, whatever its name says. Raises DataError for others."""
    try:
        return Image.open(file, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise
    except Exception as error:
        file.seek(0)
        start = file.read(_INDEX)
        if start.startswith(b"\xff\xd8\xff") and b"MPF\0" in start:  # a damaged list of previews: taken out
            with suppress(Exception):
                return Image.open(BytesIO(start.replace(b"MPF\0", bytes(4), 1) + file.read()), formats=FORMATS)
        if not isinstance(error, UnidentifiedImageError):
            raise
    other = next((what for magic, what in _OTHERS if re.match(magic, start, re.DOTALL)), None)
    if other:
        said = " whatever its name says" if name.lower().endswith(IMAGE_SUFFIXES) else ", which is not read"
        raise DataError(f"{name} is {other}{said}: save it as PNG")
    text = start.lstrip()
    if not start:
        what = "it is empty"
    elif not start.strip(b"\0"):
        what = "it begins with nothing but zeros, as an interrupted copy leaves it"
    elif text.startswith(LFS_POINTER):
        what = "it is a Git LFS pointer, not the image itself: fetch that with `git lfs pull`"
    elif text.startswith(b"<"):
        what = "it is a web page or other text, as a failed download leaves it"
    elif re.search(rb"\s", start) and not re.search(rb"[\0-\x08\x0e-\x1f]", start):
        what = "it is text"
    else:
        what = "it is no image, or of a kind that is not read"
    raise _unreadable(name, what)


def _check_claim(image: Image.Image, file: BinaryIO, name: str) -> None:
    """Raise DataError for a file that claims more pixels than its bytes can hold, before there is memory for them."""
    length = file.seek(0, os.SEEK_END)
    most = _most_pixels(image, file, length)
    if most is not None and image.width * image.height > most:
        what = f"it claims {image.width}x{image.height} pixels, of which its {length} bytes can hold {most} at most"
        raise _unreadable(name, what)


def _most_pixels(image: Image.Image, file: BinaryIO, length: int) -> int | None:
    """How many pixels a file of so many bytes can hold; None where that is not certain, as of BMP's run lengths."""
    if image.format == "PNG":
        file.seek(24)
        depth, colours = file.read(2)
        return 8 * length * _DEFLATE // (depth * {2: 3, 4: 2, 6: 4}.get(colours, 1))
    if image.format == "BMP" and image.tile[0][0] == "raw":
        row = image.tile[0][3][1]  # in bytes, the last of which may have been left out
        return length // max(1, row - 3) * image.width
    if image.format == "TIFF":
        return _most_pixels_of_tiff(image.tag_v2, length)
    file.seek(12)
    lossy = image.format in ("JPEG", "MPO") or (image.format == "WEBP" and file.read(4) == b"VP8 ")
    # WebP without loss has no limit, but no photograph is that small
    return max(length * _PIXELS_MOST, 0 if lossy else _UNBOUNDED)


def _most_pixels_of_tiff(tags: TiffImagePlugin.ImageFileDirectory_v2, length: int) -> int | None:
    compression, bits, samples = tags.get(_COMPRESSION, 1), tags.get(_BITS, (1,)), tags.get(_SAMPLES, 1)
    # of colours by brightness and hue, the hue may be that of several pixels
    bits = 8 if tags.get(_PHOTOMETRIC) == _YCBCR else sum(bits[:samples]) if len(bits) > 1 else bits[0] * samples
    if compression in _TIFF_JPEG:
        return length * _PIXELS_MOST
    if compression in _TIFF_FAX:
        return None if bits == 1 else 0
    most = _TIFF_MOST.get(compression)
    return None if most is None else 8 * length * most // max(1, bits)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, without decoding a PNG to look for it behind the pixels; 1 if EXIF cannot be read."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    return _said_orientation(image) or 1


def _said_orientation(image: Image.Image) -> int | None:
    """The EXIF orientation, 1 if there is none; None if the block cannot be read."""
    try:
        if "exif" in image.info:  # of a JPEG's Pillow has been silent when it looked for the resolution
            Image.Exif().load(image.info["exif"])
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # there is no kind that it does not raise for some damage
        return None


def pages(image: Image.Image, name: object) -> Iterator[int]:
    """Go through the pages of an opened file, one after the other, without reduced versions; it is left at the first.

    Raises DataError for a TIFF of more than 10 000, which may be an endless one.
    """
    if image.format != "TIFF":
        for page in range(count := _frames(image)):
            if count > 1:
                image.seek(page)
            yield page
        if count > 1:
            image.seek(0)
        return
    for page in range(PAGES + 1):
        try:
            image.seek(page)
        except EOFError:
            break
        if page == PAGES:
            raise DataError(f"{_called(name)} holds more than {PAGES} pages: save it as several files")
        if page == 0 or not image.tag_v2.get(_REDUCED, 0) & 1:
            yield page
    image.seek(0)


def _frames(image: Image.Image) -> int:
    """The pictures that a file says it has; those behind a photograph's first in an MPO are previews, other views."""
    return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def value_bits(image: Image.Image) -> int:
    """How many bits a value of an opened image takes: 8, 16 or 32. Of 16 in colour Pillow drops half in silence."""
    if image.format == "TIFF":  # of which the raw mode says nothing if colours lie in planes
        deep_colour = max(image.tag_v2.get(_BITS, (1,))) > 8 and image.mode in ("RGB", "RGBA")
        deep_colour = deep_colour and not _raw_mode(image).startswith("RGBa")  # not taken apart: the upper half will do
    else:
        deep_colour = _raw_mode(image).startswith(("RGB;16", "RGBA;16", "LA;16"))
    return 32 if image.mode == "I" else 16 if image.mode.startswith("I;16") or deep_colour else 8


def _raw_mode(image: Image.Image) -> str:
    """How the pixels of an opened file lie in it, in Pillow's words; "" of an image in memory."""
    arguments = image.tile[0].args if getattr(image, "tile", None) else ""
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def read_rgb(
    source: Path | str | Frame,
    content: bytes | None = None,
    *,
    bits: int | None = None,
    notes: Notes | None = None,
    name: object = None,
) -> Image.Image:
    """An image file of any kind, or a frame -> RGB, upright.

    Grey is repeated, alpha is dropped (as the reference does), a palette is looked up, an EXIF rotation applied. Of a
    file of several pages the first is read.

    content: the file's bytes, if they have been read already. bits: that values of more than 8 bits have, the upper
    8 of which are kept; None takes 16, or as many as the largest of 32-bit values needs.
    notes: where values above that are told, and images that have fewer than 16 levels left; logged if None.
    name: what to call the image there, its path if None.

    Raises DataError for a file that is no image, is damaged or truncated, or holds floating-point or negative pixels.
    """
    return read_pixels(source, content, bits=bits, notes=notes, name=name).convert("RGB")


def read_pixels(
    source: Path | str | Frame,
    content: bytes | None = None,
    *,
    bits: int | None = None,
    notes: Notes | None = None,
    name: object = None,
) -> Image.Image:
    """As `read_rgb`, but grey is left as it is, which is a quarter of the memory: of mode L or RGB."""
    source = user_path(source) if isinstance(source, str | Path) else source
    name = _named(source, name)
    told = Notes() if notes is None else notes
    if isinstance(source, np.ndarray) and source.dtype == np.uint16:
        image = _upper_8_bits(Deep((source,)), bits, told, name)
    else:
        with opened(source, content, name) as image:
            if image.mode == "F":
                raise DataError(f"{name} holds floating-point pixels, of unknown range: save it with 8 or 16 bits")
            if value_bits(image) > 8:
                image = _upper_8_bits(deep(image, name, told), bits, told, name)
            else:
                upright(image, name, told)
            if image.mode in ("La", "RGBa"):  # premultiplied, of which Pillow knows one way out
                image = image.convert("LA" if image.mode == "La" else "RGBA")
            image.info.pop("transparency", None)  # dropped as alpha is, or Pillow warns of it
            mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
            image = image if image.mode == mode else image.convert(mode)
    if notes is None:
        told.tell()
    return image


def upright(image: Image.Image, name: object, notes: Notes) -> None:
    """Decode an opened image and turn it, in place, as its EXIF block says.

    A block that cannot be read counts as none, which is noted: the pixels are as good without it.
    """
    if image.format == "TIFF":  # which Pillow turns while it decodes
        exif = image.getexif()
        for group in TiffTags.TAGS_V2_GROUPS:  # the blocks that it would read, for nothing
            if group in exif:
                del exif[group]
    image.load()
    orientation = _said_orientation(image)
    if orientation is None:
        notes.add(name, "its EXIF block cannot be read, so it is taken to be upright")
    elif orientation in _TURNED:
        for key in ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"):  # or Pillow writes them anew
            image.info.pop(key, None)
        ImageOps.exif_transpose(image, in_place=True)  # a copy costs a tenth of the decoding


def largest_value(source: Path | Frame, name: object = None) -> int:
    """The largest value in an image of more than 8 bits. Raises DataError as `read_rgb`."""
    if isinstance(source, np.ndarray):
        return int(source.max())
    with opened(source, name=name) as image:
        name = _named(source, name)
        return deep(image, name, Notes()).limits(name)[1]


def bits_for(largest: int) -> int:
    """How many bits a data set has whose largest value is this: 8, 10, 12, 14, 16, or more for 32-bit values."""
    return next(bits for bits in BITS if largest < 2**bits)


@dataclass(frozen=True, slots=True)
class Deep:
    """Decoded values of more than 8 bits, (H, W) or (H, W, 3), upright, which are worked on in strips of rows.

    Whole arrays of them, with their copies, would take many times the file's memory.

    layers: one array or image that holds them; or two images of 8 bits, upper and lower halves.
    unsigned: what Pillow takes as negative is not. white_is_zero: 0 is white. grey: of the layers the first two bands
    are the halves.
    """

    layers: tuple[np.ndarray | Image.Image, ...]
    unsigned: bool = False
    white_is_zero: bool = False
    grey: bool = False

    def strips(self) -> Iterator[tuple[int, np.ndarray]]:
        """The first row of each strip, and its values: uint16, int32 or uint32 of (h, W) or (h, W, 3)."""
        first = self.layers[0]
        height, width = first.shape[:2] if isinstance(first, np.ndarray) else first.size[::-1]
        step = max(1, _STRIP // width)
        for top in range(0, height, step):
            yield top, self._values(top, min(top + step, height))

    def _values(self, top: int, bottom: int) -> np.ndarray:
        if isinstance(self.layers[0], np.ndarray):
            return self.layers[0][top:bottom]
        parts = [np.asarray(layer.crop((0, top, layer.width, bottom))) for layer in self.layers]
        if self.grey or len(parts) == 2:
            upper, lower = np.moveaxis(parts[0], 2, 0)[:2] if self.grey else (part[..., :3] for part in parts)
            values = upper.astype(np.uint16)
            values <<= 8
            values |= lower
            return values
        return parts[0].view(np.uint32) if self.unsigned and parts[0].dtype == np.int32 else parts[0]

    def limits(self, name: object) -> tuple[int, int]:
        """The lowest and the highest value. Raises DataError for negative ones."""
        lowest, highest = zip(*((int(values.min()), int(values.max())) for _, values in self.strips()), strict=True)
        if min(lowest) < 0:
            raise DataError(f"{name} holds negative values, down to {min(lowest)}: save it with unsigned ones")
        return min(lowest), max(highest)


def _upper_8_bits(values: Deep, bits: int | None, notes: Notes, name: object) -> Image.Image:
    """Values of more than 8 bits -> an image of 8, L or RGB, by division: a stretch by image would hide brightness."""
    lowest, highest = values.limits(name)
    if bits is None:
        bits = max(16, bits_for(highest))
    white = 2**bits - 1
    if highest > white:
        notes.add(name, f"holds values up to {highest}, which are cut at {white}, the white of {bits} bits", "cut")
    if (levels := (highest - lowest) * 256 // 2**bits + 1) <= LEVELS <= highest - lowest:
        notes.add(name, f"of {highest - lowest + 1} grey levels {levels} are left when {white} is white", "levels")
    image = values.layers[0] if len(values.layers) == 2 else None  # which has just the room
    for top, strip in values.strips():
        upper = strip >> (bits - 8)
        upper = np.minimum(upper, 255, out=upper).astype(np.uint8)
        upper = Image.fromarray(255 - upper if values.white_is_zero else upper)
        if image is None:
            first = values.layers[0]
            image = Image.new(upper.mode, first.shape[1::-1] if isinstance(first, np.ndarray) else first.size)
        image.paste(upper, (0, top))
    return image


def deep(image: Image.Image, name: object, notes: Notes) -> Deep:
    """Decode an opened image of more than 8 bits. Raises DataError for colours that lie in planes."""
    if not image.mode.startswith("I"):
        return _deep_colour(image, name, notes)
    white_is_zero, unsigned = False, False
    tags = getattr(image, "tag_v2", image.info.get("tag_v2"))
    if tags is not None:  # a TIFF: Pillow turns white and black of 8 bits only, and takes all of 32 as signed
        white_is_zero = tags.get(_PHOTOMETRIC) == 0
        unsigned = tags.get(_SAMPLE_FORMAT, (1,))[0] == 1
    upright(image, name, notes)
    return Deep((image,), unsigned, white_is_zero)


def deep_values(image: Image.Image, name: object, notes: Notes) -> tuple[np.ndarray, bool]:
    """Values (H, W) or (H, W, 3) of more than 8 bits, upright, and whether 0 is white. Raises DataError."""
    values = deep(image, name, notes)
    values.limits(name)
    whole = None
    for top, strip in values.strips():
        whole = np.empty((image.height, *strip.shape[1:]), strip.dtype) if whole is None else whole
        whole[top : top + len(strip)] = strip
    return whole, values.white_is_zero


def _deep_colour(image: Image.Image, name: object, notes: Notes) -> Deep:
    """16 bits of colour, or of grey with alpha.

    Pillow keeps the upper half of each value, or the lower one if it is told that the bytes lie the other way round.
    """
    raw = _raw_mode(image)
    if image.format == "TIFF" and image.tag_v2.get(_PLANES, 1) != 1:
        raise DataError(f"{name} holds 16-bit colours in separate planes, which is not read: save it with one plane")
    file, page = image.fp, image.tell()
    if raw == "LA;16B":  # four bytes, as red, green, blue and alpha have
        return Deep((_decoded(file, page, "RGBA", name, notes),), grey=True)
    big = raw[-1] == "B" or (raw[-1] == "N" and sys.byteorder == "big")
    upper, lower = (raw[:-1] + end for end in ("BL" if big else "LB"))
    return Deep((_decoded(file, page, upper, name, notes), _decoded(file, page, lower, name, Notes())))


def _decoded(file: BinaryIO, page: int, raw: str, name: object, notes: Notes) -> Image.Image:
    """8 bits of each value, upright: a file whose bytes are taken in another order than they say."""
    image = Image.open(file, formats=FORMATS)
    image.seek(page)
    image.tile = [
        tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw) for tile in image.tile
    ]
    upright(image, name, notes)
    return image
