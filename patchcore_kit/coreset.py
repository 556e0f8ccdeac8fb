"""Patch rows (N, D) -> indices (k,) of the rows that the memory bank keeps.

The samplers go by the reference's names. Greedy k-center (the paper's Algorithm 1) starts from some distance of every
row to "what is already covered", and k times takes the row farthest from it, whose neighbours are then covered too.
The two greedy samplers differ in the start only: `greedy_coreset` from the norm of a row of the N x N distance
matrix, `approx_greedy_coreset` from the mean distance to ten random rows, which are not themselves in the set.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType

import numpy as np
import torch

from patchcore_kit.errors import SettingsError, check_choice, whole_number
from patchcore_kit.patches import PatchRows, products
from patchcore_kit.progress import Line, line_of

CANDIDATES = 2048  # rows considered in one pass; a pass keeps 300 to 900 of them on real features
FEWEST = 512  # in the first passes, which keep few
BLOCK = 1024  # rows compared with a pass's choices at a time: the distances then stay in the processor's cache
GPU_BLOCK = 2**15  # and in a GPU's
ROWS = 2**14  # rows projected, or gathered, at a time
PIVOTS = 500  # choices after which the triangle inequality is asked what can be left out
SHELL = 64  # rows that are left out together
PRODUCTS = 2**18  # distances computed at a time after that

Chosen = tuple[np.ndarray, torch.Tensor | None]
"""(k,) indices, and (n,) squared distances of each row to the nearest that is kept, where the sampler knows them."""


def _every(rows: torch.Tensor | None, bank: int, n: int, k: int, seed: int, progress: bool | Line) -> Chosen:
    return np.arange(n), None


def _random(rows: torch.Tensor | None, bank: int, n: int, k: int, seed: int, progress: bool | Line) -> Chosen:
    return np.random.default_rng(seed).choice(n, k, replace=False), None


@dataclass(frozen=True, slots=True)
class Sampler:
    """choose: (rows, bank, n, k, seed, progress) -> k of the n rows behind the `bank` rows that are kept already.

    compares: whether it looks at the rows, (bank + n, d) as `project` makes them; else it is given None.
    keeps_all: whether it takes every row, whatever the percentage.
    start: of a greedy k-center, (rows, seed) -> (n,) the distances to begin with; only such samplers can stream.
    """

    choose: Callable[[torch.Tensor | None, int, int, int, int, bool | Line], Chosen]
    compares: bool = True
    keeps_all: bool = False
    start: Callable[[torch.Tensor, int], torch.Tensor] | None = None


def _greedy(start: Callable[[torch.Tensor, int], torch.Tensor]) -> Sampler:
    def choose(rows: torch.Tensor, bank: int, n: int, k: int, seed: int, progress: bool | Line) -> Chosen:
        if bank:
            return _k_center(rows[bank:], k, None, progress, rows[:bank])
        return _k_center(rows, k, start(rows, seed), progress)

    return Sampler(choose, start=start)


SAMPLERS = MappingProxyType(
    {
        "identity": Sampler(_every, compares=False, keeps_all=True),
        "greedy_coreset": _greedy(lambda rows, seed: _matrix_row_norms(rows)),
        "approx_greedy_coreset": _greedy(lambda rows, seed: _mean_distances(rows, None, seed)),
        "random": Sampler(_random, compares=False),
    }
)


def check(sampler: str, percentage: float, projection: int | None) -> None:
    """Raises SettingsError for an unknown sampler, a percentage outside (0, 1] or a projection below 1."""
    check_choice("sampler", sampler, SAMPLERS)
    if not 0 < percentage <= 1:
        raise SettingsError(f"percentage is {percentage}: it must be above 0 and at most 1 (0.1 keeps a tenth)")
    if projection is not None:
        whole_number("projection", projection, 1)


def select(
    features: torch.Tensor | np.ndarray | PatchRows,
    sampler: str = "approx_greedy_coreset",
    percentage: float = 0.1,
    *,
    projection: int | None = 128,
    seed: int = 0,
    progress: bool | Line = True,
) -> np.ndarray:
    """(N, D) rows -> (k,) indices, k = int(N * percentage), chosen by the sampler of that name.

    The greedy samplers compare rows in a random projection to `projection` dimensions, as the reference does, or as
    they are with None. `identity` keeps every row, in order; `random` draws without replacement.

    Raises SettingsError as `check`, and for a percentage that would keep no row.
    """
    check(sampler, percentage, projection)
    projected = None
    if SAMPLERS[sampler].compares:
        features = torch.as_tensor(features) if isinstance(features, np.ndarray) else features
        projected = project(features, projection, seed)
    return select_first(sampler, projected, len(features), percentage, seed=seed, progress=progress)[0]


def select_first(
    sampler: str,
    projected: torch.Tensor | None,
    n: int,
    percentage: float,
    *,
    seed: int = 0,
    progress: bool | Line = True,
) -> Chosen:
    """What `project` makes of n rows, (n, d), None but for samplers that compare -> (k,) indices, as `select`.

    And (n,) the squared distance of each row to the nearest that is kept, -inf of these; None but for the greedy ones.
    Raises SettingsError for a percentage that would keep no row.
    """
    k = n if SAMPLERS[sampler].keeps_all else int(n * percentage)
    if k == 0:
        raise SettingsError(f"percentage {percentage} keeps none of {n} patches: raise it or add images")
    return SAMPLERS[sampler].choose(projected, 0, n, k, seed, progress)


def select_more(
    sampler: str,
    projected: torch.Tensor | None,
    bank: int,
    n: int,
    k: int,
    *,
    seed: int = 0,
    progress: bool | Line = True,
) -> Chosen:
    """(M + n, d) projected rows, of which the first M are kept already -> as `select_first`, k more of the other n.

    The greedy samplers go on from where the bank is: the row farthest from all that are kept comes next.
    """
    return SAMPLERS[sampler].choose(projected, bank, n, k, seed, progress)


def select_again(
    rows: torch.Tensor, spreads: torch.Tensor, k: int, sampler: str, seed: int, progress: bool | Line
) -> Chosen:
    """k of rows (N, d) that stand for others already; spreads: (N,) squares, the larger the farther away these are.

    In many dimensions what a row stands for lies at about a right angle to the way to any other row, so it is squares
    that add up: of a row's distance to the choices, and its spread. Where all are 0 it is what the sampler, one with a
    `start`, chooses. Gives what a sampler does.
    """
    return _k_center(rows, k, SAMPLERS[sampler].start(rows, seed), progress, spreads=spreads)


def project(
    features: torch.Tensor | PatchRows | Sequence[torch.Tensor | PatchRows], dimension: int | None, seed: int = 0
) -> torch.Tensor:
    """(N, D) -> (N, dimension), float32: the reference's random projection, an untrained linear layer without bias.

    Of several features, their rows one after the other.

    Its weights are uniform in +-1/sqrt(D); without them, if the dimension is None or D, rows stay what they are. They
    are centred, which leaves their distances as they are and makes them more exact: they are computed from norms and
    products, whose large common part would cancel.
    """
    listed = list(features) if isinstance(features, list | tuple) else [features]
    d, device = listed[0].shape[1], listed[0].device
    weight = projection_of(d, dimension, seed, device)
    projected, start = torch.empty(sum(map(len, listed)), dimension or d, device=device), 0
    for part in chain.from_iterable(_projected(each, weight) for each in listed):
        projected[start : start + len(part)] = part
        start += len(part)
    return projected.sub_(projected.mean(0))


def projection_of(d: int, dimension: int | None, seed: int, device: torch.device | str) -> torch.Tensor | None:
    """(dimension, d): the weight of `project`; None where rows stay what they are."""
    if dimension in (None, d):
        return None
    generator = torch.Generator().manual_seed(seed)
    return ((torch.rand(d, dimension, generator=generator) * 2 - 1) / d**0.5).T.contiguous().to(device)


def _projected(features: torch.Tensor | PatchRows, weight: torch.Tensor | None) -> Iterable[torch.Tensor]:
    """The rows in parts, times the weight (d, D) if there is one."""
    if isinstance(features, torch.Tensor):
        blocks = features.split(ROWS)
        return blocks if weight is None else (products(block.float(), weight) for block in blocks)
    return features if weight is None else features.project(weight)


def shrinkage(dimension: int, projected: int) -> float:
    """How many times larger squared distances of rows (N, dimension) are, in the mean, than after `project`."""
    return 1.0 if projected == dimension else 3 * dimension / projected


def greedy_coreset(
    features: torch.Tensor | np.ndarray,
    k: int,
    start_points: np.ndarray | None = None,
    seed: int = 0,
    *,
    progress: bool | Line = True,
) -> np.ndarray:
    """(N, D) -> (k,) indices in order of choice: the reference's `approx_greedy_coreset`, exactly, unprojected.

    The first distances are the mean Euclidean ones to `start_points` (indices; ten are drawn by `seed` if None).
    No row is chosen twice.

    Raises SettingsError unless 1 <= k <= N, and for a negative seed.
    """
    features, seed = torch.as_tensor(features), whole_number("seed", seed, 0)
    return _k_center(features, k, _mean_distances(features, start_points, seed), progress)[0]


def _mean_distances(features: torch.Tensor, start_points: np.ndarray | None, seed: int) -> torch.Tensor:
    """(N, D) -> (N,): mean Euclidean distances to the start points, or to ten drawn by seed."""
    if start_points is None:
        start_points = np.random.default_rng(seed).choice(len(features), min(10, len(features)), replace=False)
    starts = features[torch.as_tensor(start_points, device=features.device)]
    exact = "donot_use_mm_for_euclid_dist"  # also the faster one for ten
    return torch.cdist(features, starts, compute_mode=exact).mean(1)


def _matrix_row_norms(features: torch.Tensor) -> torch.Tensor:
    """(N, D) -> (N,): norms of the rows of the N x N matrix of Euclidean distances, without that matrix.

    The squares of row i sum up to N |x_i|^2 - 2 x_i . sum_j x_j + sum_j |x_j|^2.
    """
    norms = features.double().square().sum(1)
    products = (features @ features.sum(0)).double()
    return (len(features) * norms - 2 * products + norms.sum()).clamp(min=0).sqrt().to(features.dtype)


@torch.inference_mode()
def _k_center(
    features: torch.Tensor,
    k: int,
    distances: torch.Tensor | None,
    progress: bool | Line,
    centres: torch.Tensor | None = None,
    spreads: torch.Tensor | None = None,
) -> tuple[np.ndarray, torch.Tensor]:
    """Greedy k-center from the given distances (N,), or from centres (M, D) that are there already.

    k times the farthest row, then every distance is updated. Gives the choices and the last squared distances (N,).
    spreads: (N,) what is added to the squared distance of each row where the farthest is sought.

    The same choices as one row at a time, but many rows in one pass over the data. Of the B + 1 farthest rows, the
    last one's distance bounds all rows outside the first B, and distances only shrink. So as long as the farthest of
    the B is beyond that bound it is the farthest of all, and only the B x B distances among them are needed to go on.
    """
    n, on_cpu = len(features), features.device.type == "cpu"  # a GPU is faster without leaving anything out
    if centres is None and not 1 <= k <= n:
        raise SettingsError(f"cannot choose {k} of {n} rows: give a number from 1 to {n}")
    norms = features.square().sum(1)
    wide = norms if spreads is None else norms + spreads
    # the squared distance to the nearest choice c is |x|^2 + 2 min_c(|c|^2 / 2 - x.c); `least` holds that minimum
    chosen, candidates, shells = [], min(FEWEST, CANDIDATES), None
    if centres is None:
        least = (distances.square() - norms) / 2
    else:
        least = torch.full_like(norms, torch.inf)
        first, *others = centres.split([min(PIVOTS, len(centres)), *_parts(len(centres) - PIVOTS)])
        _lower_all(least, features, first)
        shells = _Shells(features, norms, first) if on_cpu else None
        for part in others:
            _lower(least, features, part, shells)
    task = f"coreset of {n} patches, about {estimate_seconds(features, k):.0f} s"
    with line_of(progress, f"coreset: {k} of {n} patches") as line, line.bar(task, k) as bar:
        while len(chosen) < k:
            farthest, rows = torch.topk(wide + 2 * least, min(candidates + 1, n))
            bound = float(farthest[-1]) if n > candidates else -np.inf
            rows = rows[:candidates]
            near = norms[rows], wide[rows], farthest[:candidates]
            picks = rows[_greedy_within(features[rows], *near, bound, k - len(chosen))]
            _lower(least, features, features[picks], shells)
            least[picks] = -np.inf
            chosen += picks.tolist()
            if on_cpu and shells is None and len(chosen) >= PIVOTS:
                shells = _Shells(features, norms, features[chosen])
            candidates = min(CANDIDATES, max(candidates, 8 * len(picks)))
            bar.update(len(picks))
    return np.array(chosen, dtype=np.int64), norms + 2 * least


def estimate_seconds(features: torch.Tensor, k: int, n: int | None = None) -> float:
    """About how long greedy k-center will take for k of these rows (N, D), on this machine; or of n such rows.

    On the rows of real images (40 000 to 300 000, 1 to 25 % of them) it took as long as 25 000 sqrt(N k) distances in
    one product do, within a factor of two. Rows that lie apart in many dimensions take longer.
    """
    block, centres = features[:BLOCK], features[:PIVOTS]
    fastest = math.inf
    for _ in range(3):
        started = time.perf_counter()
        float((block @ centres.T).amin())  # waits for a GPU
        fastest = min(fastest, time.perf_counter() - started)
    return 25_000 * math.sqrt((n or len(features)) * k) * fastest / (len(block) * len(centres))


def _parts(n: int) -> list[int]:
    """n things in parts of FEWEST at most; none of none."""
    return [min(FEWEST, n - start) for start in range(0, n, FEWEST)]


def _greedy_within(
    rows: torch.Tensor, norms: torch.Tensor, wide: torch.Tensor, distances: torch.Tensor, bound: float, limit: int
) -> torch.Tensor:
    """Positions of up to `limit` greedy choices among the candidates, while the farthest is at least at `bound`."""
    between = products(rows, -2 * rows, wide).add_(norms[:, None])
    if between.is_cuda:  # by way of memory that the system does not move, which is five times as fast
        between = torch.empty(between.shape, pin_memory=True).copy_(between)
    between = between.numpy()
    distances = distances.cpu().numpy().copy()
    picks = []
    while len(picks) < min(limit, len(rows)):
        i = int(distances.argmax())
        if picks and distances[i] < bound:
            break
        picks.append(i)
        np.minimum(distances, between[i], out=distances)
        distances[i] = -np.inf
    return torch.tensor(picks, device=rows.device)


def _lower(least: torch.Tensor, features: torch.Tensor, centres: torch.Tensor, shells: "_Shells | None") -> None:
    """Update `least` of every row for the rows `centres`, by way of shells if there are any."""
    if shells is None:
        _lower_all(least, features, centres)
    else:
        shells.lower(least, centres)


def _lower_all(least: torch.Tensor, features: torch.Tensor, centres: torch.Tensor) -> None:
    """Update `least` of every row for the rows `centres`."""
    centres, bias = -centres, centres.square().sum(1) / 2
    size = BLOCK if features.device.type == "cpu" else GPU_BLOCK
    for block, lowest in zip(features.split(size), least.split(size), strict=True):
        torch.minimum(lowest, products(block, centres, bias).amin(1), out=lowest)


class _Shells:
    """The rows in shells: SHELL rows that have the same nearest pivot and are about equally far from it.

    By the triangle inequality a choice c is at least |c - p| - |p - x| away from a row x with pivot p. So it lowers
    nothing in a shell unless |c - p| is below the largest |p - x| + (distance of x to its nearest choice) there,
    which on real features leaves about a twentieth of all pairs of rows and choices.
    """

    def __init__(self, features: torch.Tensor, norms: torch.Tensor, pivots: torch.Tensor) -> None:
        self.features, self.norms, self.pivots = features, norms, pivots
        bias = pivots.square().sum(1) / 2
        nearest = [products(block, -pivots, bias).min(1) for block in features.split(BLOCK)]
        least, pivot = (torch.cat(parts) for parts in zip(*nearest, strict=True))
        radius = (norms + 2 * least).clamp_(min=0).sqrt_()
        order = radius.argsort()
        order = order[pivot[order].argsort(stable=True)]  # by pivot, then by distance from it
        count = torch.bincount(pivot, minlength=len(pivots))
        end, shells = count.cumsum(0), -(-count // SHELL)
        self.pivot = torch.arange(len(pivots), device=features.device).repeat_interleave(shells)  # of each shell
        first = (end - count - SHELL * (shells.cumsum(0) - shells))[self.pivot]
        position = first[:, None] + torch.arange(len(first) * SHELL, device=first.device).view(-1, SHELL)
        self.rows = order[position.minimum(end[self.pivot, None] - 1)]  # (shells, SHELL), the last row again to fill
        self.radius = radius[self.rows]
        self._memory: dict[str, torch.Tensor] = {}

    def lower(self, least: torch.Tensor, centres: torch.Tensor) -> None:
        """Update `least` of every row for the rows `centres`."""
        bias = centres.square().sum(1) / 2
        distance = (self.norms + 2 * least).clamp_(min=0).sqrt_()
        reach = (self.radius + distance[self.rows]).amax(1) * (1 + 1e-4)  # a little more, for rounding
        near = torch.cdist(self.pivots, centres)[self.pivot] < reach[:, None]  # (shells, picks)
        shell, pick = near.nonzero(as_tuple=True)
        count = torch.bincount(shell, minlength=len(near))
        column = torch.arange(len(shell), device=shell.device) - (count.cumsum(0) - count)[shell]
        widths, order = count.sort(descending=True)
        widths = widths.tolist()
        table = shell.new_zeros(len(near), widths[0])  # the picks near each shell, filled up with any
        table[shell, column] = pick
        start = 0
        while start < len(widths) and widths[start]:
            width = widths[start]
            stop = start + min(ROWS // SHELL, max(1, PRODUCTS // (SHELL * width)))
            shells = order[start:stop]
            some, rows = table[shells, :width], self.rows[shells]
            ours = self._scratch("rows", (*rows.shape, centres.shape[1]))
            theirs = self._scratch("picks", (*some.shape, centres.shape[1]))
            torch.index_select(self.features, 0, rows.flatten(), out=ours.flatten(0, 1))
            torch.index_select(centres, 0, some.flatten(), out=theirs.flatten(0, 1))
            products = self._scratch("products", (*rows.shape, width))
            torch.baddbmm(bias[some][:, None], ours, theirs.transpose(1, 2), alpha=-1, out=products)
            least.scatter_reduce_(0, rows.flatten(), products.amin(2).flatten(), "amin")
            start = stop

    def _scratch(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Memory that is used again and again: fresh memory costs more than what is computed in it."""
        size = math.prod(shape)
        if len(self._memory.get(name, ())) < size:
            self._memory[name] = self.features.new_empty(size)
        return self._memory[name][:size].view(shape)
