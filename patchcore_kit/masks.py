"""A mask, in a file or in a folder of files -> which pixels are defective.

Programs save masks as black and white, grey levels, label numbers or colours, in palettes, behind an alpha channel, or
blurred by JPEG and by smooth edges. What is background and what is not follows from the picture alone.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.ndimage
from PIL import Image

from patchcore_kit.errors import DataError
from patchcore_kit.files import user_path
from patchcore_kit.images import IMAGE_SUFFIXES, deep_values, opened, pages, upright, value_bits
from patchcore_kit.notes import Notes

NOISE = 8  # grey levels by which JPEG changes even areas
MARGIN = 8  # pixels of background around what differs from it, more than any filter here reaches


def mask_files(path: Path) -> list[Path]:
    """The files that make up a mask: itself, or all images of a folder (MVTec LOCO's: one for each defect)."""
    if not path.is_dir():
        return [path]
    return sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))


def read_mask(path: Path | str) -> Image.Image:
    """A mask file of any kind, or a folder of them -> 8-bit grey, 255 = defect.

    Colours are looked up first. The background is black where there is black, else what is most frequent along the
    border; a mask of one colour other than black is all defect. Where values are what they were drawn with, everything
    but the background is defect, whatever its colour or number; of shades at smooth edges, what differs from the
    background by half as much as the labels do. Where values are not what they were drawn with, in JPEG, it is what
    differs by half as much as the strongest nearby; in a blurred mask, by half of the most. A mask of one colour whose
    shape is in its alpha channel is read from there; what is transparent is background. The pages of a file and the
    files of a folder are joined.

    Raises DataError as `read_rgb`, and for pages or files of different sizes.
    """
    joined = None
    for defect in (layer for file in mask_files(user_path(path)) for layer in _layers(file)):
        if joined is not None and joined.shape != defect.shape:
            (h, w), (other_h, other_w) = joined.shape, defect.shape
            raise DataError(
                f"mask {path} has parts of {w}x{h} and of {other_w}x{other_h}: export them all at the image's size"
            )
        joined = defect if joined is None else joined | defect
    if joined is None:
        raise DataError(f"no masks in {path}: put some there, or remove it")
    return Image.fromarray(joined.view(np.uint8) * np.uint8(255))


def _layers(path: Path) -> Iterator[np.ndarray]:
    """(H, W) bool for each page of a file."""
    notes = Notes()
    with opened(path) as image:
        for _ in pages(image, path):
            if value_bits(image) > 8:
                values, white_is_zero = deep_values(image, path, notes)
                yield _defect(~values if white_is_zero else values)
                continue
            upright(image, path, notes)
            lossy = _is_lossy(image, path)
            values = _colours(image)
            defect = values > 0
            usual = (
                not lossy and values.ndim == 2 and np.array_equal(defect, values == values.max()) and not defect.all()
            )
            yield defect if usual else _defect(values, lossy)  # black and one grey: at once
    notes.tell()


def _is_lossy(image: Image.Image, path: Path) -> bool:
    """Whether the format of a file has changed the values: JPEG, also within a TIFF, and one of WebP's two kinds."""
    if image.format == "WEBP":
        return b"VP8 " in path.read_bytes()  # the name of a part, VP8L in the other kind
    return image.format in ("JPEG", "MPO") or image.info.get("compression") in ("jpeg", "tiff_jpeg")


def _colours(page: Image.Image) -> np.ndarray:
    """What a page shows: (H, W) grey levels or (H, W, 3) colours, black where it is transparent."""
    if page.mode in ("1", "L", "F"):
        return np.nan_to_num(np.asarray(page)) if page.mode == "F" else np.asarray(page)
    if not page.has_transparency_data:
        return np.asarray(page.convert("RGB"))
    *colours, alpha = (np.asarray(band) for band in page.convert("RGBA").split())
    shown = np.dstack(colours)
    if alpha.min() < 255 and (not shown[alpha > 0].any() or not np.ptp(shown, axis=(0, 1)).any()):
        return alpha  # one colour, or black: its shape
    return shown * (alpha > 0)[..., None]


def _defect(values: np.ndarray, lossy: bool = False) -> np.ndarray:
    """(H, W) grey levels or (H, W, 3) colours -> (H, W) bool. lossy: values are near what was drawn, not equal."""
    values = np.atleast_3d(values)
    background = _background(values, NOISE if lossy else 1)
    defect, around = np.zeros(values.shape[:2], dtype=bool), _around(values, background)
    distance = _distance(values[around], background)
    if distance.max(initial=0) <= (NOISE if lossy else 0):  # one colour
        return np.full(defect.shape, bool(values.max() > (NOISE if lossy else 0)))
    defect[around] = _differing(distance, lossy)
    return defect


def _strips(values: np.ndarray) -> Iterator[slice]:
    """Some rows after the other, so that what is made of them is small however large the mask is."""
    step = max(1, 2**16 // values.shape[1])
    return (slice(top, top + step) for top in range(0, len(values), step))


def _around(values: np.ndarray, background: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of an (H, W, C) mask that hold all that is not background, and a margin; none if all is."""
    rows, columns = [], np.zeros(values.shape[1], dtype=bool)
    for strip in _strips(values):
        differs = (values[strip] != background).any(axis=2)
        rows.append(differs.any(axis=1))
        columns |= differs.any(axis=0)
    found = np.flatnonzero(np.concatenate(rows)), np.flatnonzero(columns)
    return tuple(slice(max(0, at[0] - MARGIN), at[-1] + MARGIN + 1) if len(at) else slice(0) for at in found)


def _distance(values: np.ndarray, background: np.ndarray) -> np.ndarray:
    """(H, W, C) and (C,) -> (H, W) float32: how far the band that differs most is from the background."""
    distance = np.empty(values.shape[:2], dtype=np.float32)
    for strip in _strips(values) if values.size else ():
        distance[strip] = np.abs(values[strip] - background).max(axis=2)
    return distance


def _differing(distance: np.ndarray, lossy: bool) -> np.ndarray:
    """(H, W) differences from the background, not all 0 -> (H, W) bool: what of them was drawn."""
    strongest = distance.max()
    if _is_soft(distance):
        return distance >= strongest / 2
    if lossy or _has_residue(distance):
        near = scipy.ndimage.maximum_filter(distance, 7)  # the regions that a pixel may be the edge of
        return (distance >= near / 2) & (distance >= min(strongest / 2, max(strongest / 6, 3 * NOISE)))
    shades = _shades(distance)
    drawn = distance[(distance > 0) & ~shades]
    return (distance > 0) & (~shades | (distance >= np.percentile(drawn, 10) / 2))


def _background(values: np.ndarray, step: int) -> np.ndarray:
    """(H, W, C) -> (C,): black where there is black, else the most frequent colour of the border, in steps."""
    black = sum(np.count_nonzero(values[strip].max(axis=2) < step) for strip in _strips(values))
    if black > (0.01 * values[..., 0].size if step > 1 else 0):
        return np.zeros(values.shape[2])
    border = np.concatenate([values[0], values[-1], values[1:-1, 0], values[1:-1, -1]]).astype(np.float64)
    steps, counts = np.unique(border // step, axis=0, return_counts=True)
    return border[(border // step == steps[counts.argmax()]).all(axis=1)].mean(axis=0)


def _shades(distance: np.ndarray) -> np.ndarray:
    """(H, W) bool: values that nearly all lie between something weaker and something stronger, as at smooth edges."""
    shades, some = np.zeros(distance.shape, dtype=bool), distance > 0
    weakest, strongest = scipy.ndimage.minimum_filter(distance, 5), scipy.ndimage.maximum_filter(distance, 5)
    between = ((weakest < distance) & (distance < strongest))[some]
    _, value, counts = np.unique(distance[some], return_inverse=True, return_counts=True)
    shades[some] = (np.bincount(value, between) > 0.9 * counts)[value]
    return shades


def _is_soft(distance: np.ndarray) -> bool:
    """Whether the values rise so slowly, over several pixels, that no edge can be seen: a blurred mask, a heat map."""
    strongest = distance.max()
    middle = (distance > strongest / 8) & (distance < strongest * 7 / 8)
    counts, _ = np.histogram(distance[middle], 12, (0, strongest))
    step = scipy.ndimage.maximum_filter(distance, 3) - scipy.ndimage.minimum_filter(distance, 3)
    slow = ((step > 0) & (step <= strongest / 4))[middle]
    return bool(slow.size and slow.mean() > 0.8 and counts.max() < 0.4 * slow.size)


def _has_residue(distance: np.ndarray) -> bool:
    """Whether a lossless file was JPEG before: a little of many values near the background and near the strongest.

    Of few values, they are no regions of 2x2 pixels, as drawn ones are.
    """
    strongest = distance.max()
    pale, strong = (distance > 0) & (distance <= strongest / 4), distance > strongest / 2
    if strongest < 64 or np.count_nonzero(distance) - pale.sum() - strong.sum() > 0.1 * strong.sum():
        return False  # numbers, or more than two levels
    levels, counts = np.unique(distance[strong], return_counts=True)
    pales, others = len(np.unique(distance[pale])), strong & (distance != levels[counts.argmax()])
    if not others.any() or pales + len(levels) < 5:
        return False
    alike = scipy.ndimage.maximum_filter(distance, 2) == scipy.ndimage.minimum_filter(distance, 2)
    regions = scipy.ndimage.maximum_filter(alike, 2, origin=-1)
    return bool(min(pales, len(levels)) >= 8 or (regions[others].mean() < 0.7 and regions[pale].mean() < 0.5))
