"""An image, in a file or in memory -> RGB pixels of 8 bits, upright; and what its header says before that.

Cameras of 10, 12 or 14 bits save their pixels in 16. What is white there is a property of the data set, never of one
image, whose brightness would be lost: see `bits_for`.
"""

import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from patchcore_kit.errors import DataError
from patchcore_kit.files import LFS_POINTER, user_path
from patchcore_kit.notes import Notes

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp")
BITS = (8, 10, 12, 14, 16, 24, 31, 32)  # that a data set's values may have, from its largest
LEVELS = 16  # left of an image's values, or fewer, are worth a word
_SWAPPED = (5, 6, 7, 8)  # EXIF orientations that are shown with width and height exchanged
_ORIENTATION, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT, _PLANES, _REDUCED = 274, 258, 262, 339, 284, 254  # tags

# of large photographs, which Pillow calls a possible attack; those twice as large it refuses
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

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
        if not getattr(frame, "tile", None) or frame.tell() > 0:
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
        return Header(size, value_bits(image), image.has_transparency_data, len(list(pages(image))))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, without decoding a PNG to look for it behind the pixels."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    return image.getexif().get(_ORIENTATION, 1)


def pages(image: Image.Image) -> Iterator[int]:
    """Go through the pages of an opened file, one after the other, without reduced versions; it is left at the first.

    The pictures behind a photograph's first in an MPO file are previews and other views.
    """
    count = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    for page in range(count):
        if count > 1:
            image.seek(page)
        if page == 0 or image.format != "TIFF" or not image.tag_v2.get(_REDUCED, 0) & 1:
            yield page
    if count > 1:
        image.seek(0)


@contextmanager
def opened(source: Path | Frame, content: bytes | None = None, name: object = None) -> Iterator[Image.Image]:
    """Open an image; whatever Pillow raises, then or while it decodes, becomes a DataError naming the file.

    Files are never opened by their path, for then Pillow maps uncompressed ones into memory, and turned TIFFs wrongly.
    """
    name = name or (source if isinstance(source, Path) else "an image in memory")
    content = source if isinstance(source, bytes) else content
    try:
        if isinstance(source, np.ndarray):
            yield Image.fromarray(source)
        elif isinstance(source, Image.Image):
            yield _copied(source)
        else:
            with (
                io.BytesIO(content) if content is not None else source.open("rb") as file,
                _identified(file, name) as image,
            ):
                yield image
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"no file {name}: check its name, or list its folder again if it was removed") from None
    # Pillow's decoders raise all of these for files that are damaged or truncated
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        raise DataError(f"cannot read image {name} ({error}): replace it or remove it") from None


def _copied(image: Image.Image) -> Image.Image:
    """Somebody else's image, which may then be turned in place; of grey TIFFs with what says where white is."""
    copy = image.copy()
    if image.format == "TIFF" and image.mode.startswith("I"):
        copy.info["tag_v2"] = image.tag_v2
    return copy


def _identified(file: BinaryIO, name: object) -> Image.Image:
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        file.seek(0)
        start = file.read(256).lstrip()
        if not start:
            what = "it is empty"
        elif start.startswith(LFS_POINTER):
            what = "it is a Git LFS pointer, not the image itself: fetch that with `git lfs pull`"
        elif start.startswith(b"<"):
            what = "it is a web page or other text, as a failed download leaves it"
        else:
            what = "it is no image, or of a kind that is not read"
        raise DataError(f"cannot read image {name} ({what}): replace it or remove it") from None
    except TypeError as error:  # a TIFF without dimensions
        raise DataError(f"cannot read image {name} ({error}): replace it or remove it") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            f"cannot read image {name} ({error}): cut it into tiles, or raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from None


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
    source = user_path(source) if isinstance(source, str | Path) else source
    name = name or (source if isinstance(source, Path) else "an image in memory")
    told = Notes() if notes is None else notes
    if isinstance(source, np.ndarray) and source.dtype == np.uint16:
        image = _upper_8_bits(source, False, bits, told, name).convert("RGB")
    else:
        with opened(source, content, name) as image:
            if image.mode == "F":
                raise DataError(f"{name} holds floating-point pixels, of unknown range: save it with 8 or 16 bits")
            if value_bits(image) > 8:
                image = _upper_8_bits(*deep_values(image, name), bits, told, name)
            else:
                ImageOps.exif_transpose(image, in_place=True)  # a copy costs a tenth of the decoding, and so below
                image.load()
            if image.mode in ("La", "RGBa"):  # premultiplied, of which Pillow knows one way out
                image = image.convert("LA" if image.mode == "La" else "RGBA")
            image = image if image.mode == "RGB" else image.convert("RGB")
    if notes is None:
        told.tell()
    return image


def largest_value(source: Path | Frame, name: object = None) -> int:
    """The largest value in an image of more than 8 bits. Raises DataError as `read_rgb`."""
    if isinstance(source, np.ndarray):
        return int(source.max())
    with opened(source, name=name) as image:
        return int(deep_values(image, name or source)[0].max())


def bits_for(largest: int) -> int:
    """How many bits a data set has whose largest value is this: 8, 10, 12, 14, 16, or more for 32-bit values."""
    return next(bits for bits in BITS if largest < 2**bits)


def _upper_8_bits(values: np.ndarray, white_is_zero: bool, bits: int | None, notes: Notes, name: object) -> Image.Image:
    """Values of more than 8 bits -> an image of 8, by division: a stretch by image would hide brightness."""
    lowest, highest = int(values.min()), int(values.max())
    if bits is None:
        bits = max(16, bits_for(highest))
    white = 2**bits - 1
    if highest > white:
        notes.add(name, f"holds values up to {highest}, which are cut at {white}, the white of {bits} bits", "cut")
    if (levels := (highest - lowest) * 256 // 2**bits + 1) <= LEVELS <= highest - lowest:
        notes.add(name, f"of {highest - lowest + 1} grey levels {levels} are left when {white} is white", "levels")
    upper = (values >> (bits - 8)).clip(max=255).astype(np.uint8)
    return Image.fromarray(255 - upper if white_is_zero else upper)


def deep_values(image: Image.Image, name: object) -> tuple[np.ndarray, bool]:
    """Values (H, W) or (H, W, 3) of more than 8 bits, upright, and whether 0 is white. Raises DataError."""
    if not image.mode.startswith("I"):
        return _deep_colour(image, name), False
    white_is_zero, unsigned = False, False
    tags = getattr(image, "tag_v2", image.info.get("tag_v2"))
    if tags is not None:  # a TIFF: Pillow turns white and black of 8 bits only, and takes all of 32 as signed
        white_is_zero = tags.get(_PHOTOMETRIC) == 0
        unsigned = tags.get(_SAMPLE_FORMAT, (1,))[0] == 1
    ImageOps.exif_transpose(image, in_place=True)
    values = np.asarray(image)
    if unsigned and values.dtype == np.int32:
        values = values.view(np.uint32)
    if values.min() < 0:
        raise DataError(f"{name} holds negative values, down to {values.min()}: save it with unsigned ones")
    return values, white_is_zero


def _deep_colour(image: Image.Image, name: object) -> np.ndarray:
    """16 bits of colour, or of grey with alpha: (H, W, 3) or (H, W), without alpha.

    Pillow keeps the upper half of each value, or the lower one if it is told that the bytes lie the other way round.
    """
    raw = _raw_mode(image)
    if image.format == "TIFF" and image.tag_v2.get(_PLANES, 1) != 1:
        raise DataError(f"{name} holds 16-bit colours in separate planes, which is not read: save it with one plane")
    image.fp.seek(0)
    content, page = image.fp.read(), image.tell()
    if raw == "LA;16B":  # four bytes, as red, green, blue and alpha have
        pixels = _decoded(content, page, "RGBA").astype(np.uint16)
        return pixels[..., 0] << 8 | pixels[..., 1]
    big = raw[-1] == "B" or (raw[-1] == "N" and sys.byteorder == "big")
    upper, lower = (
        _decoded(content, page, raw[:-1] + end)[..., :3].astype(np.uint16) for end in ("BL" if big else "LB")
    )
    return upper << 8 | lower


def _decoded(content: bytes, page: int, raw: str) -> np.ndarray:
    """(H, W, channels) uint8, upright: a file whose bytes are taken in another order than they say."""
    with Image.open(io.BytesIO(content)) as image:
        image.seek(page)
        image.tile = [
            tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw) for tile in image.tile
        ]
        ImageOps.exif_transpose(image, in_place=True)
        return np.asarray(image)
