"""The memory bank: the rows kept, where each came from, and the search for the nearest of them.

Distances are squared Euclidean, as FAISS and the reference have them.
"""

from functools import cached_property

import faiss
import numpy as np
import torch

from patchcore_kit.errors import SettingsError

BLOCK = 2**27  # distances computed at once on a GPU: half a gigabyte


class MemoryBank:
    """Rows (M, D) with a nearest-neighbour search: FAISS on the CPU, exact blocked products in torch on a GPU.

    rows: (M, D) float32.
    images, cells: (M,) the training image and the cell of its grid, row by row, that each row came from; None where
        that is not known (models of the reference do not record it).
    """

    def __init__(
        self,
        rows: np.ndarray,
        images: np.ndarray | None = None,
        cells: np.ndarray | None = None,
        device: torch.device | str = "cpu",
    ):
        self.images = images
        self.cells = cells
        self.device = torch.device(device)
        self.index = faiss.IndexFlatL2(rows.shape[1])
        self.index.add(np.ascontiguousarray(rows, dtype=np.float32))
        if self.device.type != "cpu":
            self._rows = torch.from_numpy(self.rows).to(self.device)

    @property
    def rows(self) -> np.ndarray:
        """(M, D) float32: a copy of what the index holds."""
        return self.index.reconstruct_n(0, len(self))

    def rows_at(self, indices: np.ndarray) -> np.ndarray:
        """(...,) indices -> (..., D) float32."""
        return self.index.reconstruct_batch(indices.ravel()).reshape(*indices.shape, -1)

    def __len__(self) -> int:
        return self.index.ntotal

    @cached_property
    def scale(self) -> float:
        """Mean squared distance of the rows to their mean (1 if they are all equal): an ensemble divides by it."""
        return float(self.rows.var(axis=0, dtype=np.float64).sum()) or 1.0

    def search(self, queries: torch.Tensor, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """(Q, D) -> squared distances (Q, k), nearest first, and the rows' indices (Q, k).

        Raises SettingsError if the bank holds fewer than k rows.
        """
        if not 1 <= k <= len(self):
            raise SettingsError(f"cannot search {k} neighbours in a bank of {len(self)} rows: ask for 1 to {len(self)}")
        if self.device.type == "cpu":
            return self.index.search(queries.cpu().numpy(), k)
        found = [
            torch_search(block, self._rows, k) for block in queries.to(self.device).split(max(1, BLOCK // len(self)))
        ]
        distances, indices = (torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True))
        return distances, indices


def torch_search(queries: torch.Tensor, rows: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(Q, D), (M, D) -> squared distances (Q, k), nearest first, and indices (Q, k), on whatever device they are."""
    products = torch.addmm(rows.square().sum(1), queries, rows.T, alpha=-2)
    least, indices = products.topk(k, largest=False)
    return (least + queries.square().sum(1, keepdim=True)).clamp_(min=0), indices
