"""Training images that may be bad themselves: which stand out from the others, before any is learnt.

In the manner of SoftPatch (Jiang et al. 2022, arXiv 2403.14233), which weights patches by how far they are from their
neighbours. Here whole images are left out, for a photograph is what a person can look at and put right.

A patch is compared with every other image by itself. If at most a share c of n images is bad, then of the cn + 1 that
are most like it one is good, whatever the others are: so the distance to the (cn + 1)-th nearest image cannot be made
small by the same defect in several images.
"""

import numpy as np
import torch

from patchcore_kit.errors import SettingsError
from patchcore_kit.patches import products
from patchcore_kit.scoring import largest_mean

COMPARED = 100  # images that each patch is compared with, spread over all
PATCHES = 80  # of each, drawn by seed
BEYOND = 4.0  # deviations of the logarithm, by the median and what half of the images lie within: odd above


def check(contamination: float) -> None:
    """Raises SettingsError for a share that is not from 0 to below 0.5."""
    number = isinstance(contamination, int | float) and not isinstance(contamination, bool)
    if not number or not 0 <= contamination < 0.5:
        raise SettingsError(
            f"contamination is {contamination!r}: give the share of images that may be bad, from 0 to below 0.5"
        )


def strangeness(patches: torch.Tensor, grid: tuple[int, int], contamination: float, seed: int = 0) -> np.ndarray:
    """(n*h*w, d) patches of all images -> (n,): of each the largest mean of 3x3 squared distances to other images."""
    cells = grid[0] * grid[1]
    images = np.arange(len(patches) // cells)
    others = spread(len(images), COMPARED)
    some = min(cells, PATCHES)
    rng = np.random.default_rng(seed)
    rows = np.concatenate([rng.choice(cells, some, replace=False) + image * cells for image in others])
    compared = patches[torch.from_numpy(rows).to(patches.device)]
    bias, rank = compared.square().sum(1), round(contamination * len(others))
    found = np.empty(len(images), dtype=np.float32)
    for image, own in zip(images, patches.split(cells), strict=True):
        own = own.contiguous()
        squares = products(own, -2 * compared, bias).view(cells, len(others), some).amin(2)
        squares[:, torch.from_numpy(others == image).to(squares.device)] = torch.inf
        nearest = squares.kthvalue(min(rank + 1, max(1, len(others) - 1)), dim=1).values + own.square().sum(1)
        found[image] = largest_mean(nearest.clamp(min=0).cpu().numpy().reshape(1, *grid))[0]
    return found


def spread(n: int, most: int) -> np.ndarray:
    """Ascending indices of at most so many of n things, spread evenly over them."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))


def stand_out(strange: np.ndarray, contamination: float) -> np.ndarray:
    """(n,) -> ascending indices of the images that stand out from the others, at most a share `contamination`."""
    logs = np.log(np.maximum(strange, 1e-6 * max(strange.max(), 1e-30)))
    middle = np.median(logs)
    deviation = 1.4826 * np.median(np.abs(logs - middle))  # of a normal distribution, the standard deviation
    most = int(contamination * len(logs))
    order = np.argsort(-logs, kind="stable")[:most]
    return np.sort(order[logs[order] > middle + BEYOND * deviation])
