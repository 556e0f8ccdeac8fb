"""Images larger than the network's view -> tiles, and which patches of the image each tile answers for.

Tiles overlap, for at its border a network is told of zeros where the image goes on. So each answers for the patches up
to the middle of its overlaps, its core, and all cores together are the grid of the whole image: maps are drawn from
that and have no seams. Tiles begin at multiples of the deepest layer's cell, so that their cells lie as those of the
whole image would. An image that is not cut is one tile.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch

from patchcore_kit.backbones import Backbone
from patchcore_kit.errors import SettingsError, whole_number

OVERLAP = 128  # pixels, or a third of smaller tiles: with less, zeros beyond a tile's border show in the map


@dataclass(frozen=True, slots=True)
class Cut:
    """How images are cut: into square tiles of `tile` pixels, into `tiles` down and across, or, with neither, not.

    overlap: pixels that neighbouring tiles have in common, at least; None: 128, of smaller tiles a third.
    aligned: whether parts lie alike in all images, so that the patches of each tile are compared with its own alone.

    Raises SettingsError for settings that cannot work.
    """

    tile: int | None = None
    tiles: tuple[int, int] | None = None
    overlap: int | None = None
    aligned: bool = False

    def __post_init__(self):
        if self.tile is not None and self.tiles is not None:
            raise SettingsError(f"tile is {self.tile} and tiles is {self.tiles}: give one of them")
        if self.tile is not None:
            object.__setattr__(self, "tile", whole_number("tile", self.tile, 1))
        if self.tiles is not None:
            if not isinstance(self.tiles, list | tuple) or len(self.tiles) != 2:
                raise SettingsError(f"tiles is {self.tiles!r}: give how many down and how many across, as in (2, 3)")
            object.__setattr__(self, "tiles", tuple(whole_number("tiles", n, 1) for n in self.tiles))
        if self.overlap is not None:
            object.__setattr__(self, "overlap", whole_number("overlap", self.overlap, 0))
        if self.aligned and not self:
            raise SettingsError("aligned is True, but there are no tiles to compare by: give tile or tiles")

    def __bool__(self) -> bool:
        return self.tile is not None or self.tiles is not None

    def along(self, axis: int, side: int, stride: int) -> tuple[int, list[int]]:
        """Of an axis of `side` pixels: how long a tile is, and where each begins; all multiples of the stride."""
        own = self.tile or side // self.tiles[axis]
        overlap = min(OVERLAP, own // 3) if self.overlap is None else self.overlap
        if self.tiles is not None:
            n = self.tiles[axis]
            length = min(side, -(-(side + (n - 1) * overlap) // (n * stride)) * stride)
        else:
            length = min(side, self.tile)
            step = (length - overlap) // stride * stride
            if length < side and step < stride:
                raise SettingsError(
                    f"tiles of {length} pixels that overlap by {overlap} do not get on: give larger ones, or a "
                    f"smaller overlap (the network's cells are {stride} pixels wide)"
                )
            n = 1 if length == side else 1 - (length - side) // step
        free = (side - length) // stride
        starts = [stride * (free * i // max(1, n - 1)) for i in range(n)]
        if len(set(starts)) < n:
            raise SettingsError(f"tiles is {self.tiles}, but {side} pixels are too few for {n} of them: give fewer")
        return length, starts


@dataclass(frozen=True, eq=False)
class Tiling:
    """Where the tiles of an image lie, T in all, and what each answers for.

    size: (h, w) of a tile. corners: top and left of each in pixels, row by row. grid: patches down and across of the
    whole image. cores: of each tile, which of its own patches it answers for. order: (cells,) the patches of the grid
    tile by tile, as their rows come.
    """

    size: tuple[int, int]
    corners: tuple[tuple[int, int], ...]
    grid: tuple[int, int]
    cores: tuple[np.ndarray, ...]
    order: np.ndarray

    @classmethod
    def whole(cls, image: tuple[int, int], grid: tuple[int, int]) -> "Tiling":
        """One tile: the image of (H, W)."""
        cells = np.arange(math.prod(grid))
        return cls(image, ((0, 0),), grid, (cells,), cells)

    @classmethod
    def of(cls, cut: Cut, image: tuple[int, int], backbone: Backbone) -> "Tiling":
        """Tiles of an image of (H, W). Raises SettingsError for a size or a network that cannot be cut like that."""
        stride = backbone.stride
        if cut.tile is not None and cut.tile % stride:
            raise SettingsError(f"tile is {cut.tile}: it must be a multiple of {stride}, the cells of {backbone.name}")
        if any(side % stride for side in image):
            near = "x".join(str(-(-side // stride) * stride) for side in image)
            raise SettingsError(
                f"resize {image[0]}x{image[1]} cannot be cut into tiles: give multiples of {stride}, the cells of "
                f"{backbone.name}, as {near}"
            )
        (height, tops), (width, lefts) = (cut.along(axis, side, stride) for axis, side in enumerate(image))
        own, whole = (backbone.empty_maps(*size) for size in ((height, width), image))
        for small, large in zip(own, whole, strict=True):
            if [n * side for n, side in zip(small.shape[-2:], image, strict=True)] != [
                n * side for n, side in zip(large.shape[-2:], (height, width), strict=True)
            ]:
                raise SettingsError(f"the maps of {backbone.name} change with the image's size: choose another network")
        local, grid = tuple(own[0].shape[-2:]), tuple(whole[0].shape[-2:])
        cell = height // local[0]
        cores, order = [], []
        for top, rows in _cores(tops, height, cell, grid[0]):
            for left, columns in _cores(lefts, width, cell, grid[1]):
                cores.append(((rows - top)[:, None] * local[1] + columns - left).ravel())
                order.append((rows[:, None] * grid[1] + columns).ravel())
        corners = tuple((top, left) for top in tops for left in lefts)
        return cls((height, width), corners, grid, tuple(cores), np.concatenate(order))

    def __len__(self) -> int:
        return len(self.corners)

    @property
    def cells(self) -> int:
        """Patches of an image."""
        return len(self.order)

    @cached_property
    def places(self) -> np.ndarray:
        """(cells,) where in the order each patch of the grid comes."""
        return np.argsort(self.order)

    @cached_property
    def ends(self) -> np.ndarray:
        """(T,) where in the order each tile's patches end."""
        return np.cumsum([len(core) for core in self.cores])

    def cells_of(self, tile: int) -> np.ndarray:
        """The patches of the grid that a tile answers for, in the order of its rows."""
        return self.order[self.ends[tile] - len(self.cores[tile]) : self.ends[tile]]

    def origin(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) numbers of rows, as those of many images come -> (n,) the images and (n,) the patches of the grid."""
        return rows // self.cells, self.order[rows % self.cells]

    def origin_of(self, tile: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """As `origin`, of the n rows that `answers` gives together, those of the tile of this number."""
        first = 0 if len(self) == 1 else tile // len(self) * self.cells + int(self.ends[tile % len(self)]) - n
        return self.origin(first + np.arange(n))

    def tile_of(self, cells: np.ndarray) -> np.ndarray:
        """(n,) patches of the grid -> (n,) the tiles that answer for them."""
        return np.searchsorted(self.ends, self.places[cells], side="right")

    def cut(self, images: np.ndarray, most: int) -> Iterator[np.ndarray]:
        """(B, H, W, 3) -> tiles (b, h, w, 3) of the first image, at most so many at a time, of the second, and so on.

        A single tile is the image, and they come as they are.
        """
        if len(self) == 1:
            yield images
            return
        for image in images:
            for start in range(0, len(self), most):
                yield np.stack([self.tile(image, t) for t in range(start, min(start + most, len(self)))])

    def tile(self, image: np.ndarray, number: int) -> np.ndarray:
        """(H, W, 3) -> (h, w, 3)."""
        (top, left), (height, width) = self.corners[number], self.size
        return image[top : top + height, left : left + width]

    def answers(self, rows: torch.Tensor, first: int, count: int) -> list[torch.Tensor]:
        """(count * h * w, D) patches of consecutive tiles, the first of number `first` -> of each those of its core.

        A single tile is the image, and the patches of all images stay together.
        """
        if len(self) == 1:
            return [rows]
        parts = rows.split(len(rows) // count)
        numbers = [(first + i) % len(self) for i in range(count)]
        return [part[torch.from_numpy(self.cores[t]).to(rows.device)] for part, t in zip(parts, numbers, strict=True)]


def _cores(starts: list[int], length: int, cell: int, n: int) -> Iterator[tuple[int, np.ndarray]]:
    """Of each tile along an axis of n cells: the cell that it begins at, and those that it answers for."""
    ends = [(one + length + other) // 2 // cell for one, other in pairwise(starts)]
    for start, low, high in zip(starts, [0, *ends], [*ends, n], strict=True):
        yield start // cell, np.arange(low, high)
