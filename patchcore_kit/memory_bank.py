"""The memory bank: the rows kept, where each came from, the search for the nearest, and how far apart good ones lie.

Distances are squared Euclidean, as FAISS and the reference have them.
"""

from collections.abc import Mapping
from functools import cached_property

import faiss
import numpy as np
import torch

from patchcore_kit.errors import SettingsError, check_choice
from patchcore_kit.patches import products

SEARCHES = ("fast", "flat")
STORAGES = ("float32", "float16")
COMPONENTS = 128  # principal components of the rows, by which the fast search chooses candidates
REACH = 0.7  # it looks into clusters farther away than the nearest one by up to so many of the clusters' radii
CANDIDATES = 2  # times the fourth root of M: rows it compares in full, for each neighbour that is asked for
FEW = 512  # rows up to which there is nothing to gain
SAMPLE = 4096  # rows that the components are taken from
ROWS = 2**14  # rows turned into float32 at a time
QUERIES = 512  # compared in full at a time
BLOCK = 2**27  # distances computed at once on a GPU: half a gigabyte
NEIGHBOURS = 9  # whose distances make a row's spacing
AROUND = 5  # rows of the bank, itself among them, over which it is averaged: one row's is uneven
PREPARED = ("search_axes", "search_origin", "search_centres", "search_reach")
CLUSTERS, PROBES = 400, 8  # of all patches, and how many of them are searched for the neighbours


def check(search: str, storage: str) -> None:
    """Raises SettingsError for an unknown search or storage."""
    check_choice("search", search, SEARCHES)
    check_choice("storage", storage, STORAGES)


class MemoryBank:
    """Rows (M, D) with a nearest-neighbour search: by FAISS on the CPU, by torch on a GPU, where the rows stay.

    rows: (M, D), as float32 or float16.
    images, cells: (M,) the training image and the cell of its grid, row by row, that each row came from; None where
        that is not known (models of the reference do not record it).
    search: "flat" compares every query with every row, which a GPU always does. "fast" compares in full only about
        twice the fourth root of M rows, those that are nearest in 128 principal components, sought in a few of about
        sqrt(M) clusters. It may find the second nearest instead; benchmarks/README.md says how often, and by how much.
    storage: "float32", or "float16" for half the memory and distances within 0.1 %.
    spacing: (M,) how far apart good patches lie around each row (see `spacing`), None where nobody asks for it.
    prepared: what a bank of the same rows has found out for the fast search (see there), which takes seconds.

    Raises SettingsError for an unknown search or storage.
    """

    def __init__(
        self,
        rows: np.ndarray | torch.Tensor,
        images: np.ndarray | None = None,
        cells: np.ndarray | None = None,
        device: torch.device | str = "cpu",
        *,
        search: str = "fast",
        storage: str = "float32",
        spacing: np.ndarray | None = None,
        prepared: Mapping[str, np.ndarray] | None = None,
    ):
        check(search, storage)
        rows = torch.as_tensor(rows)
        self.images, self.cells, self.spacing = images, cells, spacing
        self.device = torch.device(device)
        self._candidates = None
        if self.device.type != "cpu":
            self._flat = _TorchIndex(rows.to(self.device, getattr(torch, storage)))
            return
        rows = rows.cpu()
        d, half = rows.shape[1], faiss.ScalarQuantizer.QT_fp16
        self._flat = faiss.IndexFlatL2(d) if storage == "float32" else faiss.IndexScalarQuantizer(d, half)
        if search == "fast" and len(rows) > FEW:
            self._candidates = _Candidates(rows, prepared)
        for block in rows.split(ROWS):
            block = block.float().contiguous()
            self._flat.add(block.numpy())
            if self._candidates:
                self._candidates.add(block)

    @property
    def rows(self) -> np.ndarray:
        """(M, D) float32: a copy of what is stored."""
        return self.rows_at(np.arange(len(self)))

    def rows_at(self, indices: np.ndarray) -> np.ndarray:
        """(...,) indices -> (..., D) float32."""
        stored = self._stored()
        return stored[torch.from_numpy(indices).to(stored.device)].float().cpu().numpy()

    def _stored(self) -> torch.Tensor:
        """(M, D) as they are stored: the index's own memory."""
        if self.device.type != "cpu":
            return self._flat.rows
        codes = faiss.rev_swig_ptr(self._flat.codes.data(), self._flat.codes.size())
        storage = np.float32 if isinstance(self._flat, faiss.IndexFlatL2) else np.float16
        return torch.from_numpy(codes.view(storage).reshape(len(self), -1))

    def __len__(self) -> int:
        return self._flat.ntotal

    @property
    def prepared(self) -> dict[str, np.ndarray]:
        """What the fast search has found out about the rows, by name; nothing where there is none."""
        return self._candidates.arrays() if self._candidates else {}

    @cached_property
    def scale(self) -> float:
        """Mean squared distance of the rows to their mean (1 if they are all equal): an ensemble divides by it."""
        return float(self.rows.var(axis=0, dtype=np.float64).sum()) or 1.0

    def search(
        self, queries: torch.Tensor, k: int = 1, *, images: int = 1, left_out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(Q, D) -> squared distances (Q, k), nearest first, and the rows' indices (Q, k).

        images: how many the queries are the patches of, equally many each. For the patch of each whose distance, the
            mean of its k, is the largest, the fast search gives the same as the flat one.
        left_out: (M,) bool, rows that are not looked at, as if the bank did not have them. For the strangest patches
            the fast search is then what it is for all.

        Raises SettingsError if the bank holds fewer than k rows.
        """
        there = len(self) - (0 if left_out is None else int(left_out.sum()))
        if not 1 <= k <= there:
            raise SettingsError(f"cannot search {k} neighbours in a bank of {there} rows: ask for 1 to {there}")
        if self.device.type != "cpu":
            return self._flat.search(queries, k, left_out)
        chosen = None if left_out is None else faiss.IDSelectorBitmap(np.packbits(~left_out, bitorder="little"))
        flat = None if chosen is None else faiss.SearchParameters(sel=chosen)
        queries = queries.cpu().contiguous()
        if not self._candidates:
            return self._flat.search(queries.numpy(), k, params=flat)
        indices = self._candidates(queries, k * round(CANDIDATES * len(self) ** 0.25), chosen)
        queries = queries.numpy()
        distances = self._distances(queries, indices)
        nearest = distances.argsort(axis=1)[:, :k]
        distances, indices = (np.take_along_axis(x, nearest, axis=1) for x in (distances, indices))
        again = np.flatnonzero(indices[:, -1] < 0)  # the clusters looked into held too few
        settled = np.zeros(len(queries), dtype=bool)
        first = np.arange(images) * (len(queries) // images)
        while True:
            if len(again):
                distances[again], indices[again] = self._flat.search(queries[again], k, params=flat)
                settled[again] = True
            strangest = first + distances.mean(axis=1).reshape(images, -1).argmax(axis=1)
            again = strangest[~settled[strangest]]
            if not len(again) or left_out is not None:
                return distances, indices

    def _distances(self, queries: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """(Q, D), (Q, n) indices of rows -> (Q, n) squared distances, infinite where an index is -1."""
        stored = self._stored().numpy()
        distances = np.empty(indices.shape, dtype=np.float32)
        for start in range(0, len(queries), QUERIES):
            x, y, out = (array[start : start + QUERIES] for array in (queries, indices, distances))
            rows, places = stored, y.clip(0)
            if stored.dtype == np.float16:  # FAISS compares float32
                used, places = np.unique(places, return_inverse=True)
                rows = self.rows_at(used)
            each = np.arange(len(x)).repeat(y.shape[1])
            pointers = [faiss.swig_ptr(array) for array in (x, each, rows, places, out)]
            faiss.pairwise_indexed_L2sqr(x.shape[1], y.size, *pointers)
        distances[indices < 0] = np.inf
        return distances


class _Candidates:
    """Which rows may be the nearest to a query: those with the nearest principal components, in the nearest clusters.

    How many clusters is up to the query: those whose centre is farther away than the nearest centre by at most 0.7
    times the clusters' radius, the root mean square of their rows' distances to the centre. That is 6 of 128 on
    MVTec's bottle, for most of its patches lie well inside a cluster, and half of them on magnetic tiles, whose lie
    between many.
    """

    def __init__(self, rows: torch.Tensor, prepared: Mapping[str, np.ndarray] | None = None) -> None:
        """Finds components and clusters, or takes those that are prepared; the rows (M, D) are still to be added."""
        if prepared and all(name in prepared for name in PREPARED):
            self.axes, self.origin, self.centres, self.reach = (torch.from_numpy(prepared[name]) for name in PREPARED)
        else:
            self._find(rows)
        clusters, components = self.centres.shape
        self.index = faiss.index_factory(components, f"IVF{clusters},SQfp16")
        self.index.parallel_mode = 3  # a query at a time; 0 would be one thread alone
        self.index.nprobe = clusters  # how many a query can name
        self.index.quantizer.add(self.centres.numpy())
        self.index.train(self.centres.numpy())  # there is nothing left to find

    def _find(self, rows: torch.Tensor) -> None:
        import scipy.linalg  # a fifth of a second that a first verdict need not wait for

        sample = rows[:: -(-len(rows) // SAMPLE)].float()
        d, components = rows.shape[1], min(COMPONENTS, rows.shape[1])
        mean = sample.mean(0)
        spread = ((sample - mean).T @ (sample - mean)).numpy()
        self.axes = torch.from_numpy(scipy.linalg.eigh(spread, subset_by_index=(d - components, d - 1))[1].T.copy())
        self.origin = -self.axes @ mean
        clusters = min(round(len(rows) ** 0.5), len(rows) // 39)  # FAISS wants 39 rows for each
        sample = self.turn(rows[:: max(1, len(rows) // (128 * clusters))].float())
        index = faiss.index_factory(components, f"IVF{clusters},SQfp16")
        index.train(sample.numpy())
        self.centres = torch.from_numpy(index.quantizer.reconstruct_n(0, clusters))
        self.reach = REACH * self.to_centres(sample).amin(1).square().mean().sqrt()

    def arrays(self) -> dict[str, np.ndarray]:
        """How it is stored, by key."""
        return {name: getattr(self, name.removeprefix("search_")).numpy() for name in PREPARED}

    def turn(self, rows: torch.Tensor) -> torch.Tensor:
        """(N, D) -> (N, d) principal components."""
        return products(rows, self.axes, self.origin).contiguous()

    def to_centres(self, turned: torch.Tensor) -> torch.Tensor:
        """(N, d) -> (N, clusters) distances."""
        squares = products(turned, -2 * self.centres, self.centres.square().sum(1))
        return squares.add_(turned.square().sum(1, keepdim=True)).clamp_(min=0).sqrt_()

    def add(self, rows: torch.Tensor) -> None:
        """(N, D) more rows to choose from."""
        self.index.add(self.turn(rows).numpy())

    def __call__(self, queries: torch.Tensor, n: int, chosen: faiss.IDSelector | None = None) -> np.ndarray:
        """(Q, D) -> (Q, n) indices of rows, -1 where there are fewer in the clusters near enough; chosen: of these."""
        turned = self.turn(queries)
        distances = self.to_centres(turned)
        least, nearest = distances.min(1, keepdim=True)
        probes = torch.where(distances <= least + self.reach, torch.arange(len(self.centres)), -1)
        probes.scatter_(1, nearest, probes[:, :1].clone())  # the nearest one first: fewer rows come and go
        probes[:, :1] = nearest
        if chosen is None:
            return self.index.search_preassigned(turned.numpy(), n, probes.numpy(), None)[1]
        found = np.empty((len(queries), n), dtype=np.int64)
        distances, to_centres = np.empty(found.shape, dtype=np.float32), np.zeros(probes.shape, dtype=np.float32)
        how = faiss.SearchParametersIVF(sel=chosen, nprobe=probes.shape[1])
        # what search_preassigned calls, which cannot leave out rows
        x, lists, *rest = map(faiss.swig_ptr, (turned.numpy(), probes.numpy(), to_centres, distances, found))
        self.index.search_preassigned_c(len(queries), x, n, lists, *rest, False, how)
        return found


class _TorchIndex:
    """What a bank needs of a flat FAISS index, exact, in torch, with the rows (M, D) wherever they are."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows, self.ntotal = rows, len(rows)
        self.norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32).square()

    def search(
        self, queries: torch.Tensor, k: int, left_out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(Q, D) -> squared distances (Q, k), nearest first, and indices (Q, k); left_out: (M,) bool."""
        distances, indices = self.nearest(queries, k, left_out)
        return distances.cpu().numpy(), indices.cpu().numpy()

    def nearest(
        self, queries: torch.Tensor, k: int, left_out: np.ndarray | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `search`, on the device."""
        rows, norms, found = self.rows.float(), self.norms, []
        if left_out is not None:
            norms = norms.masked_fill(torch.from_numpy(left_out).to(norms.device), torch.inf)
        for part in queries.to(rows.device).split(max(1, BLOCK // self.ntotal)):
            least, indices = torch.addmm(norms, part, rows.T, alpha=-2).topk(k, largest=False)
            found.append(((least + part.square().sum(1, keepdim=True)).clamp_(min=0), indices))
        distances, indices = (torch.cat(parts) for parts in zip(*found, strict=True))
        return distances, indices


def nearby(bank: torch.Tensor, patches: torch.Tensor, seed: int = 0, *, among: bool = True) -> np.ndarray:
    """(M, d) rows of the bank, (N, d) patches -> (M, 9) squared distances to the nearest, or as many as there are.

    among: the rows are among the patches, and each is not its own neighbour. Neighbours are sought in a few of 400
    clusters, around patches drawn by seed: some are missed, which makes the distances larger by 1 to 5 %.
    """
    near = _neighbours(bank, patches, NEIGHBOURS + among, seed)[0]
    return near[:, 1:] if among else near


def spacing(near: np.ndarray, bank: torch.Tensor, seed: int = 0) -> np.ndarray:
    """(M, 9) what `nearby` has found around each row of the bank (M, d) -> (M,) how far apart patches lie there.

    That is the mean of a row's squared distances to its 9 nearest patches (REB's local density: Lyu et al. 2023,
    arXiv 2308.12577), averaged over the row and its 4 nearest rows of the bank.
    """
    mean = near.sum(1) / max(1, near.shape[1])
    return mean[_neighbours(bank, bank, AROUND, seed)[1]].mean(1)


def _neighbours(queries: torch.Tensor, rows: torch.Tensor, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(Q, d), (N, d) -> squared distances (Q, k) to the nearest rows, or those of all that there are, and indices."""
    k = min(k, len(rows))
    if rows.device.type != "cpu":
        return _TorchIndex(rows).search(queries, k)
    some = np.random.default_rng(seed).choice(len(rows), max(1, min(CLUSTERS, len(rows) // 40)), replace=False)
    centres = torch.unique(rows[torch.from_numpy(some)], dim=0)  # of equal ones all but one would be searched in vain
    bias = centres.square().sum(1) / 2
    nearest = torch.cat([products(block, -centres, bias).argmin(1) for block in rows.split(QUERIES)])
    quantizer = faiss.IndexFlatL2(rows.shape[1])
    quantizer.add(centres.numpy())
    half = faiss.ScalarQuantizer.QT_fp16
    index = faiss.IndexIVFScalarQuantizer(quantizer, rows.shape[1], len(centres), half, faiss.METRIC_L2, False)
    index.train(centres.numpy())
    # as `add`, which takes three times as long to find the clusters
    index.add_core(len(rows), faiss.swig_ptr(rows.numpy()), None, faiss.swig_ptr(nearest.numpy()))
    index.nprobe = min(PROBES, len(centres))
    distances, indices = index.search(queries.numpy(), k)
    few = np.flatnonzero(indices[:, -1] < 0)
    if len(few):
        index.nprobe = len(centres)
        distances[few], indices[few] = index.search(queries[torch.from_numpy(few)].numpy(), k)
    return distances, indices
