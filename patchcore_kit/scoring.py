"""Distances of patches to the bank -> patch scores, image scores and maps.

"distance": squared distances d as they are, the highest patch of an image is its score; the reference's.
"density": d / (t + 3 mean t), where t tells how far apart good patches lie around the nearest row
(`memory_bank.spacing`): where they are all alike a small distance counts, where they vary it takes a larger one. An
image's score is the largest mean of 3x3 neighbouring patches, for a defect is seldom seen by one patch alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np
import scipy.ndimage
import torch
import torch.nn.functional as F

SMOOTHING = 4.0  # sigma of the Gaussian over an anomaly map, in pixels
TYPICAL = 3  # times the mean spacing that is added to each row's: else a part's most uniform places drown the rest
WINDOW = 3  # patches down and across whose mean makes the score of an image


def relative(distances: np.ndarray, nearest: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Squared distances, the rows that they are to, and the rows' spacing (M,) -> d / (t + 3 mean t)."""
    return distances / (spacing[nearest] + TYPICAL * spacing.mean())


def largest(patches: np.ndarray) -> np.ndarray:
    """(B, h, w) patch scores -> (B,)."""
    return patches.reshape(len(patches), -1).max(axis=1)


def largest_mean(patches: np.ndarray) -> np.ndarray:
    """(B, h, w) patch scores -> (B,): the largest mean of 3x3 neighbours, or of as many as there are."""
    window = [min(WINDOW, side) for side in patches.shape[1:]]
    return F.avg_pool2d(torch.from_numpy(patches)[:, None], window, stride=1).amax((1, 2, 3)).numpy()


@dataclass(frozen=True, slots=True)
class Scoring:
    """unit: what a score is, beside an axis. image: (B, h, w) patch scores -> (B,).

    patch: squared distances, their nearest rows and the spacing of all rows -> patch scores; None: as they are.
    """

    unit: str
    image: Callable[[np.ndarray], np.ndarray]
    patch: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray] | None = None


SCORINGS = MappingProxyType(
    {
        "distance": Scoring("squared distance", largest),
        "density": Scoring("relative distance", largest_mean, relative),
    }
)


def draw_maps(patches: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(B, h, w) patch scores -> (B, H, W): bilinear up-sampling and smoothing at once.

    With torch, for numpy's threads would still spin for a while afterwards, and slow the network down.
    """
    down, across = (map_operator(n, m) for n, m in zip(size, patches.shape[1:], strict=True))
    return (down @ torch.from_numpy(patches) @ across.T).numpy()


@lru_cache(maxsize=8)
def map_operator(pixels: int, cells: int) -> torch.Tensor:
    """(pixels, cells): bilinear up-sampling along one axis, then the Gaussian, as one matrix.

    Both are linear and work on rows and columns alike, so a map is `down @ patches @ across.T`. The borders are those
    of the reference: torch's half-pixel bilinear and scipy's mirrored edges.
    """
    up = F.interpolate(torch.eye(cells, dtype=torch.float64)[None], size=pixels, mode="linear", align_corners=False)
    return torch.from_numpy(scipy.ndimage.gaussian_filter1d(up[0].T.numpy(), SMOOTHING, axis=0).astype(np.float32))
