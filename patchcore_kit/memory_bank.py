"""The memory bank: the rows kept, where each came from, and the search for the nearest of them.

Distances are squared Euclidean, as FAISS and the reference have them.
"""

from functools import cached_property

import faiss
import numpy as np
import scipy.linalg
import torch

from patchcore_kit.errors import SettingsError

SEARCHES = ("fast", "flat")
STORAGES = ("float32", "float16")
COMPONENTS = 96  # principal components of the rows, by which the fast search chooses candidates
PROBES = 2.5  # times the square root of the number of clusters: how many of them it looks into
CANDIDATES = 3.5  # times the fourth root of M: rows it compares in full, for each neighbour that is asked for
FEW = 512  # rows up to which there is nothing to gain
SAMPLE = 4096  # rows that the components are taken from
ROWS = 2**14  # rows turned into float32 at a time
BLOCK = 2**27  # distances computed at once on a GPU: half a gigabyte


def check(search: str, storage: str) -> None:
    """Raises SettingsError for an unknown search or storage."""
    for name, value, known in (("search", search, SEARCHES), ("storage", storage, STORAGES)):
        if value not in known:
            raise SettingsError(f"unknown {name} {value!r}: there are {', '.join(known)}")


class MemoryBank:
    """Rows (M, D) with a nearest-neighbour search: by FAISS on the CPU, by torch on a GPU, where the rows stay.

    rows: (M, D), as float32 or float16.
    images, cells: (M,) the training image and the cell of its grid, row by row, that each row came from; None where
        that is not known (models of the reference do not record it).
    search: "flat" compares every query with every row, which a GPU always does. "fast" compares in full only about 3.5
        times the fourth root of M rows, those that are nearest in 96 principal components, sought in the nearest of
        about sqrt(M) clusters. It may find the second nearest instead; benchmarks/README.md says how often, and by
        how much.
    storage: "float32", or "float16" for half the memory and distances within 0.1 %.

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
    ):
        check(search, storage)
        rows = torch.as_tensor(rows)
        self.images, self.cells = images, cells
        self.device = torch.device(device)
        if self.device.type != "cpu":
            self._index = self._flat = _TorchIndex(rows.to(self.device, getattr(torch, storage)))
            return
        d, half = rows.shape[1], faiss.ScalarQuantizer.QT_fp16
        self._flat = faiss.IndexFlatL2(d) if storage == "float32" else faiss.IndexScalarQuantizer(d, half)
        self._index = _fast_index(rows, self._flat) if search == "fast" and len(rows) > FEW else self._flat
        for block in rows.split(ROWS):
            self._index.add(block.float().contiguous().numpy())

    @property
    def rows(self) -> np.ndarray:
        """(M, D) float32: a copy of what is stored."""
        return self.rows_at(np.arange(len(self)))

    def rows_at(self, indices: np.ndarray) -> np.ndarray:
        """(...,) indices -> (..., D) float32."""
        return self._flat.reconstruct_batch(indices.ravel()).reshape(*indices.shape, -1)

    def __len__(self) -> int:
        return self._flat.ntotal

    @cached_property
    def scale(self) -> float:
        """Mean squared distance of the rows to their mean (1 if they are all equal): an ensemble divides by it."""
        return float(self.rows.var(axis=0, dtype=np.float64).sum()) or 1.0

    def search(self, queries: torch.Tensor, k: int = 1, *, images: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """(Q, D) -> squared distances (Q, k), nearest first, and the rows' indices (Q, k).

        images: how many the queries are the patches of, equally many each. For the patch of each whose distance, the
            mean of its k, is the largest, the fast search gives the same as the flat one.

        Raises SettingsError if the bank holds fewer than k rows.
        """
        if not 1 <= k <= len(self):
            raise SettingsError(f"cannot search {k} neighbours in a bank of {len(self)} rows: ask for 1 to {len(self)}")
        if self.device.type == "cpu":
            queries = queries.cpu().numpy()
        distances, indices = self._index.search(queries, k)
        if self._index is self._flat:
            return distances, indices
        again = np.flatnonzero(indices[:, -1] < 0)  # the clusters looked into held too few
        settled = np.zeros(len(queries), dtype=bool)
        first = np.arange(images) * (len(queries) // images)
        while True:
            if len(again):
                distances[again], indices[again] = self._flat.search(queries[again], k)
                settled[again] = True
            strangest = first + distances.mean(axis=1).reshape(images, -1).argmax(axis=1)
            again = strangest[~settled[strangest]]
            if not len(again):
                return distances, indices


def _fast_index(rows: torch.Tensor, flat: faiss.Index) -> faiss.IndexRefine:
    """An empty index, trained on the rows, whose answers are refined by `flat`."""
    sample = rows[:: -(-len(rows) // SAMPLE)].float()
    d, components = rows.shape[1], min(COMPONENTS, rows.shape[1])
    mean = sample.mean(0)
    spread = ((sample - mean).T @ (sample - mean)).numpy()
    axes = torch.from_numpy(scipy.linalg.eigh(spread, subset_by_index=(d - components, d - 1))[1].T)
    turn = faiss.LinearTransform(d, components, True)
    faiss.copy_array_to_vector(axes.flatten().numpy(), turn.A)
    faiss.copy_array_to_vector((-axes @ mean).numpy(), turn.b)
    turn.is_trained = True
    count = min(round(len(rows) ** 0.5), len(rows) // 39)  # FAISS wants 39 rows for each
    clusters = faiss.index_factory(components, f"IVF{count},SQfp16")
    clusters.nprobe = round(PROBES * count**0.5)
    index = faiss.IndexRefine(faiss.IndexPreTransform(turn, clusters), flat)
    index.k_factor = round(CANDIDATES * len(rows) ** 0.25)
    index.train(rows[:: max(1, len(rows) // (128 * count))].float().contiguous().numpy())
    return index


class _TorchIndex:
    """What a bank needs of a flat FAISS index, exact, in torch, with the rows (M, D) wherever they are."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows, self.ntotal = rows, len(rows)
        self.norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32).square()

    def search(self, queries: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(Q, D) -> squared distances (Q, k), nearest first, and indices (Q, k)."""
        distances, indices = self.nearest(queries, k)
        return distances.cpu().numpy(), indices.cpu().numpy()

    def nearest(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As `search`, on the device."""
        rows, found = self.rows.float(), []
        for part in queries.to(rows.device).split(max(1, BLOCK // self.ntotal)):
            products = torch.addmm(self.norms, part, rows.T, alpha=-2)
            least, indices = products.topk(k, largest=False)
            found.append(((least + part.square().sum(1, keepdim=True)).clamp_(min=0), indices))
        distances, indices = (torch.cat(parts) for parts in zip(*found, strict=True))
        return distances, indices

    def reconstruct_batch(self, indices: np.ndarray) -> np.ndarray:
        """(N,) indices -> (N, D) float32."""
        return self.rows[torch.from_numpy(indices).to(self.rows.device)].float().cpu().numpy()
