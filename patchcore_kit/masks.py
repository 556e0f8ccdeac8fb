"""A mask, in a file or in a folder of files -> which pixels are defective.

Programs save masks as black and white, grey levels, label numbers or colours, in palettes, behind an alpha channel, or
blurred by JPEG and by smooth edges. What is background and what is not follows from the picture alone.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.ndimage
from PIL import Image, ImageOps

from patchcore_kit.errors import DataError
from patchcore_kit.files import user_path
from patchcore_kit.images import IMAGE_SUFFIXES, deep_values, opened, pages, value_bits

LOSSY = ("JPEG", "MPO")  # formats that change values
NOISE = 8  # grey levels by which they do


def mask_files(path: Path) -> list[Path]:
    """The files that make up a mask: itself, or all images of a folder (MVTec LOCO's: one for each defect)."""
    if not path.is_dir():
        return [path]
    return sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))


def read_mask(path: Path | str) -> Image.Image:
    """A mask file of any kind, or a folder of them -> 8-bit grey, 255 = defect.

    Colours are looked up first. The background is black where there is black, else what is most frequent along the
    border; a mask of one colour other than black is all defect. Where values are what they were drawn with, everything
    but the background is defect, whatever its colour or number. Where they are not, in JPEG and where they rise
    gradually at the edges, it is what differs from the background by half as much as the palest region does. A mask
    of one colour whose shape is in its alpha channel is read from there; what is transparent is background. The pages
    of a file and the files of a folder are joined.

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
    with opened(path) as image:
        for _ in pages(image):
            if value_bits(image) > 8:
                values, white_is_zero = deep_values(image, path)
                yield _defect(~values if white_is_zero else values)
                continue
            ImageOps.exif_transpose(image, in_place=True)
            lossy = image.format in LOSSY
            values = _colours(image)
            defect = values > 0
            usual = (
                not lossy and values.ndim == 2 and np.array_equal(defect, values == values.max()) and not defect.all()
            )
            yield defect if usual else _defect(values, lossy)  # black and one grey: at once


def _colours(page: Image.Image) -> np.ndarray:
    """What a page shows: (H, W) grey levels or (H, W, 3) colours, black where it is transparent."""
    if page.mode in ("1", "L", "F"):
        return np.asarray(page)
    if not page.has_transparency_data:
        return np.asarray(page.convert("RGB"))
    *colours, alpha = (np.asarray(band) for band in page.convert("RGBA").split())
    if alpha.min() < 255 and all(band.min() == band.max() for band in colours):
        return alpha  # one colour: its shape
    return np.dstack(colours) * (alpha > 0)[..., None]


def _defect(values: np.ndarray, lossy: bool = False) -> np.ndarray:
    """(H, W) grey levels or (H, W, 3) colours -> (H, W) bool. lossy: values are near what was drawn, not equal."""
    values = np.atleast_3d(values).astype(np.float64)
    distance = np.abs(values - _background(values, NOISE if lossy else 1)).max(axis=2)
    strongest = distance.max()
    if strongest <= (NOISE if lossy else 0):  # one colour
        return np.full(distance.shape, bool(values.max() > (NOISE if lossy else 0)))
    if not lossy and not _has_ramps(distance) and not _has_noise(distance):
        return distance > 0
    # regions, away from their edges; JPEG and shades reach anywhere below
    even = scipy.ndimage.maximum_filter(distance, 7) - scipy.ndimage.minimum_filter(distance, 7) <= strongest / 32
    regions = distance[even & (distance >= strongest / 8)]
    return distance >= (np.percentile(regions, 1) if len(regions) else strongest) / 2


def _background(values: np.ndarray, step: int) -> np.ndarray:
    """(H, W, C) -> (C,): black where there is black, else the most frequent colour of the border, in steps."""
    black = (values < step).all(axis=2)
    if black.mean() > (0.01 if step > 1 else 0):
        return np.zeros(values.shape[2])
    border = np.concatenate([values[0], values[-1], values[1:-1, 0], values[1:-1, -1]])
    steps, counts = np.unique(border // step, axis=0, return_counts=True)
    return border[(border // step == steps[counts.argmax()]).all(axis=1)].mean(axis=0)


def _has_ramps(distance: np.ndarray) -> bool:
    """Whether most pixels beside the background have something stronger beside them: the edges are smooth."""
    edge = (distance > 0) & (scipy.ndimage.minimum_filter(distance, 3) == 0)
    return bool((scipy.ndimage.maximum_filter(distance, 3) > distance)[edge].mean() > 0.5)


def _has_noise(distance: np.ndarray) -> bool:
    """Whether there is nearly only pale and strong, and the pale is no region of 2x2 pixels: it was JPEG before."""
    strongest = distance.max()
    pale = (distance > 0) & (distance <= strongest / 4)
    between = (distance > strongest / 4) & (distance < strongest * 3 / 4)
    if strongest < 64 or not pale.any() or between.sum() > 0.1 * (distance > strongest / 4).sum():  # below: numbers
        return False
    border = np.concatenate([distance[0], distance[-1], distance[:, 0], distance[:, -1]])
    if 0 < np.median(border) <= NOISE:  # a background that is not quite black
        return True
    corners = scipy.ndimage.maximum_filter(distance, 2) == scipy.ndimage.minimum_filter(distance, 2)
    return bool(scipy.ndimage.maximum_filter(corners, 2, origin=-1)[pale].mean() < 0.5)
