"""A map -> the regions above the threshold, and beside each the nearest patches of good images: why, not only how much.

Regions are told in the photograph's own pixels, as it is shown. Pictures are what the network has seen, a patch with
some of what lies around it, all on one scale.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.ndimage
from PIL import Image

from patchcore_kit.images import read_rgb
from patchcore_kit.notes import Notes
from patchcore_kit.transforms import Transform

MOST = 5  # regions of an image that are told, the strongest first
NEAREST = 3  # normal patches shown beside each
AROUND = 8  # patches across in a picture
QUALITY = 90  # of the JPEGs that a model keeps of its training images
PARTS = ("images", "boxes", "peaks", "pictures", "near", "distances")  # arrays with a value for each region

Box = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels; right and bottom are the first outside."""


@dataclass(frozen=True, slots=True)
class Normal:
    """A patch of a good image.

    name: the training image's. box: the patch in that image's own pixels. distance: squared, between the two patches'
    features. picture: (S, S, 3) uint8, the patch in the middle.
    """

    name: str
    box: Box
    distance: float
    picture: np.ndarray


@dataclass(frozen=True, slots=True)
class Region:
    """A place that is not as good ones are.

    box: around it, in the photograph's pixels. area: how many of them are above the threshold. index: the highest value
    of the map there over the threshold, None where there is none. patch: the box of its strangest patch. picture:
    (S, S, 3) uint8, that patch in the middle. nearest: the patches of good images that are most like it, nearest first;
    none of models that do not record where their rows came from, and of ensembles.
    """

    box: Box
    area: int
    index: float | None
    patch: Box
    picture: np.ndarray
    nearest: tuple[Normal, ...]

    def __str__(self) -> str:
        left, top, right, bottom = self.box
        how = "" if self.index is None else f", index {self.index:.2f}"
        words = f"{left},{top} to {right},{bottom}: {self.area} pixels{how}"
        if self.nearest:
            near = self.nearest[0]
            words += f"; the nearest normal patch is in {near.name} at {near.box[0]},{near.box[1]}"
        return words


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an image has its verdict.

    verdict, index: as in `Predictions`, None without a threshold. remark: what sets the photograph apart from all
    training images, "" if nothing does. regions: above the threshold of the map, the strongest first, at most five. An
    image that is not good without any, and of models without a threshold every image, has one: around its strangest
    patch.
    """

    name: str
    verdict: str | None
    index: float | None
    remark: str
    regions: tuple[Region, ...]

    def __str__(self) -> str:
        start = self.name if self.verdict is None else f"{self.name}: {self.verdict}, index {self.index:.2f}"
        return "\n  ".join([start, *([self.remark] if self.remark else []), *map(str, self.regions)])


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the regions of all images are made of, R together; and the good images that they are compared with.

    images: (R,) number of the image that each is of. boxes: (R, 9) box, area and the strangest patch's box, in the
    photograph's pixels. peaks: (R,) highest value of the map. pictures: (R, S, S, 3) uint8. near: (R, K, 2) number of
    the training image and cell of the nearest rows. distances: (R, K) squared; K is 0 where origins are not known.
    names, sizes (n, 2), photographs: of the training images, these as JPEGs (b"" of those that nothing is compared
    with). grid, transform: the model's.
    """

    images: np.ndarray
    boxes: np.ndarray
    peaks: np.ndarray
    pictures: np.ndarray
    near: np.ndarray
    distances: np.ndarray
    names: tuple[str, ...]
    sizes: np.ndarray
    photographs: tuple[bytes, ...]
    grid: tuple[int, int]
    transform: Transform

    def regions(self, image: int, threshold: float | None) -> tuple[Region, ...]:
        """The regions of an image; threshold: of the map, which the index is relative to."""
        return tuple(self._region(r, threshold) for r in np.flatnonzero(self.images == image))

    def _region(self, r: int, threshold: float | None) -> Region:
        numbers = self.boxes[r].tolist()
        nearest = tuple(
            self._normal(*where, distance)
            for where, distance in zip(self.near[r].tolist(), self.distances[r].tolist(), strict=True)
        )
        index = None if threshold is None else float(self.peaks[r]) / threshold
        return Region(tuple(numbers[:4]), numbers[4], index, tuple(numbers[5:]), self.pictures[r], nearest)

    def _normal(self, image: int, cell: int, distance: float) -> Normal:
        seen = cell_box(cell, self.grid, self.transform.size)
        box = in_photograph(seen, self.transform, tuple(self.sizes[image].tolist()))
        return Normal(self.names[image], box, distance, around(unpacked(self.photographs[image]), cell, self.grid))

    def of(self, images: np.ndarray) -> "Evidence":
        """That of some images, (n,) indices, by their new numbers."""
        some = [np.flatnonzero(self.images == image) for image in images]
        rows = np.concatenate([np.arange(0), *some]).astype(int)
        numbers = np.repeat(np.arange(len(images)), [len(r) for r in some])
        parts = {name: getattr(self, name)[rows] for name in ("boxes", "peaks", "pictures", "near", "distances")}
        return replace(self, images=numbers, **parts)

    @classmethod
    def joined(cls, parts: "Sequence[Evidence]", counts: Sequence[int]) -> "Evidence":
        """Those of several lists of images, of so many each, by one model."""
        starts = np.cumsum([0, *counts[:-1]])
        images = np.concatenate([part.images + start for part, start in zip(parts, starts, strict=True)])
        found = [part for part in parts if len(part.images)] or parts[:1]  # of none the shapes are not known
        joined = {name: np.concatenate([getattr(part, name) for part in found]) for name in PARTS[1:]}
        return replace(parts[0], images=images, **joined)

    def arrays(self) -> dict[str, np.ndarray]:
        """How it is stored, by key; of the photographs those that something is compared with."""
        used = set(self.near[..., 0].ravel().tolist())
        files = [file if i in used else b"" for i, file in enumerate(self.photographs)]
        transform = self.transform
        size = transform.resize if isinstance(transform.resize, tuple) else (transform.resize,)
        return {f"region_{name}": getattr(self, name) for name in PARTS} | {
            "good_names": np.array(self.names, dtype=str),
            "good_sizes": self.sizes,
            **bundled(files),
            "grid": np.array(self.grid),
            "transform": np.array([transform.imagesize, transform.bits or 0, *size]),
        }

    @classmethod
    def of_arrays(cls, stored: Mapping[str, np.ndarray]) -> "Evidence | None":
        """What `arrays` gave; None where nothing is stored."""
        if "region_images" not in stored:
            return None
        imagesize, bits, *size = stored["transform"].tolist()
        grid, photographs = tuple(stored["grid"].tolist()), unbundled(stored)
        images, cells = np.moveaxis(stored["region_near"], -1, 0)
        if (
            min(grid) < 1
            or min(images.min(initial=0), cells.min(initial=0)) < 0
            or cells.max(initial=0) >= math.prod(grid)
        ):
            raise ValueError(f"the nearest patches are of cells {cells.min()} to {cells.max()} of {grid}")
        if not all(photographs[i] for i in set(images.ravel().tolist())):
            raise ValueError("a photograph that something is compared with is missing")
        return cls(
            *(stored[f"region_{name}"] for name in PARTS),
            names=tuple(stored["good_names"].tolist()),
            sizes=stored["good_sizes"],
            photographs=photographs,
            grid=grid,
            transform=Transform(tuple(size) if len(size) > 1 else size[0], imagesize, bits=bits or None),
        )


def find_regions(anomaly_map: np.ndarray, patches: np.ndarray, threshold: float | None) -> list[tuple[np.ndarray, int]]:
    """(H, W) map, (h, w) patch scores -> up to five regions: (H, W) bool, and the cell of the strangest patch in it.

    Without a threshold, or with nothing above it, it is the strangest patch alone.
    """
    size, grid = anomaly_map.shape, patches.shape
    labels, count = scipy.ndimage.label(anomaly_map > (np.inf if threshold is None else threshold), np.ones((3, 3)))
    if not count:
        cell = int(patches.argmax())
        region = np.zeros(size, dtype=bool)
        left, top, right, bottom = cell_box(cell, grid, size)
        region[top:bottom, left:right] = True
        return [(region, cell)]
    peaks = scipy.ndimage.maximum(anomaly_map, labels, np.arange(1, count + 1))
    middles = [((np.arange(n) + 0.5) * pixels / n).astype(int) for n, pixels in zip(grid, size, strict=True)]
    of_cells = labels[np.ix_(*middles)]
    found = []
    for number in np.argsort(-peaks)[:MOST] + 1:
        region = labels == number
        if (of_cells == number).any():
            cell = int(np.where(of_cells == number, patches, -np.inf).argmax())
        else:  # too small to hold the middle of a patch
            peak = np.unravel_index(np.where(region, anomaly_map, -np.inf).argmax(), size)
            cell = int(np.ravel_multi_index([p * n // s for p, n, s in zip(peak, grid, size, strict=True)], grid))
        found.append((region, cell))
    return found


def cell_box(cell: int, grid: tuple[int, int], size: tuple[int, int]) -> Box:
    """The number of a cell of a grid (h, w) -> its box in an image of (H, W)."""
    row, column = divmod(int(cell), grid[1])
    top, bottom = (place * size[0] // grid[0] for place in (row, row + 1))
    left, right = (place * size[1] // grid[1] for place in (column, column + 1))
    return left, top, max(right, left + 1), max(bottom, top + 1)


def around(image: np.ndarray, cell: int, grid: tuple[int, int]) -> np.ndarray:
    """An (H, W, 3) image and a cell of its grid -> (S, S, 3), eight cells across, its border repeated outside."""
    left, top, right, bottom = cell_box(cell, grid, image.shape[:2])
    side = picture_side(image.shape[:2], grid)
    middle = (top + bottom) // 2, (left + right) // 2
    rows, columns = (
        (np.arange(side) + at - side // 2).clip(0, n - 1) for at, n in zip(middle, image.shape[:2], strict=True)
    )
    return image[np.ix_(rows, columns)]


def picture_side(size: tuple[int, int], grid: tuple[int, int]) -> int:
    """S: how many pixels a picture of `around` has across."""
    return max(1, AROUND * min(size[0] // grid[0], size[1] // grid[1]))


def in_photograph(box: Box, transform: Transform, size: tuple[int, int]) -> Box:
    """A box in what the network sees -> in the pixels of its photograph of (H, W)."""
    ends = []
    for low, high, pixels, whole, cut in zip(
        box[1::-1], box[:1:-1], size, transform.resized(size), transform.size, strict=True
    ):
        start, scale = round((whole - cut) / 2), pixels / whole
        ends.append((max(0, int((low + start) * scale)), min(pixels, int(np.ceil((high + start) * scale)))))
    (top, bottom), (left, right) = ends
    return left, top, right, bottom


def box_of(region: np.ndarray) -> Box:
    """(H, W) bool -> the box around what is True."""
    down, across = scipy.ndimage.find_objects(region.astype(np.uint8))[0]
    return across.start, down.start, across.stop, down.stop


def packed(images: np.ndarray) -> list[bytes]:
    """(B, H, W, 3) uint8 -> JPEGs, which is how a model keeps what its training images look like."""
    files = []
    for image in images:
        with io.BytesIO() as file:
            Image.fromarray(image).save(file, "JPEG", quality=QUALITY)
            files.append(file.getvalue())
    return files


def unpacked(file: bytes) -> np.ndarray:
    """What `packed` has kept: (H, W, 3) uint8. Raises DataError if that is no image any more."""
    return np.asarray(read_rgb(file, notes=Notes(), name="a photograph in the model"))


def bundled(files: list[bytes]) -> dict[str, np.ndarray]:
    """Files of any lengths as two arrays: their bytes, and where each ends."""
    ends = np.cumsum([len(file) for file in files], dtype=np.int64)
    return {"photographs": np.frombuffer(b"".join(files), dtype=np.uint8), "photograph_ends": ends}


def unbundled(stored: Mapping[str, np.ndarray]) -> tuple[bytes, ...]:
    """The files that `bundled` was given. Raises ValueError for ends that cannot be."""
    content, ends = stored["photographs"].tobytes(), stored["photograph_ends"].tolist()
    if sorted([0, *ends]) != [0, *ends] or [0, *ends][-1] != len(content):
        raise ValueError("the ends of its photographs are not where the files end")
    return tuple(content[start:end] for start, end in zip([0, *ends], ends, strict=False))
