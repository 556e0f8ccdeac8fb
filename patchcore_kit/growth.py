"""What a model keeps beside its bank, so that more images can join it and its thresholds follow.

A `Reserve`: the rows that the bank covers worst, which it may take when it has room for more. And good images that were
scored as new ones (`HeldOut`): the squared distance of every patch to its nearest rows of the bank, without those that
the image gave itself, and the features of its strangest patches. Rows that join the bank can only bring patches nearer.
For the strangest ones that is found out by comparing them with the new rows alone; the others are taken to come nearer
by the same factor.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from patchcore_kit.memory_bank import MemoryBank

RESERVE = 4096  # rows: 8 MB of 1024 values. On bottle, grown tenfold, the bank then covers all as well as a new one
SAME = 0.01  # of the distance before, below which a patch has found itself
STRANGEST = 32  # patches of each image whose features are kept
NAMES = ("images", "distances", "nearest", "cells", "rows")  # the arrays of `HeldOut`


def halved(rows: torch.Tensor) -> np.ndarray:
    """Rows as float16; what is too large for that, as of networks with random weights, at the end of its range."""
    most = torch.finfo(torch.float16).max
    return rows.clamp(-most, most).half().cpu().numpy()


@dataclass(frozen=True, eq=False)
class Reserve:
    """The rows (r, D), float16, that lie farthest from the bank, and where they came from: (r,) images and cells."""

    rows: np.ndarray
    images: np.ndarray
    cells: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @staticmethod
    def farthest(uncovered: torch.Tensor | None) -> np.ndarray:
        """(N,) squared distances to the bank, -inf of its own rows -> ascending indices to keep; none of None."""
        if uncovered is None:
            return np.arange(0)
        far, indices = uncovered.topk(min(RESERVE, len(uncovered)))
        return np.sort(indices[far > 0].cpu().numpy())

    def arrays(self) -> dict[str, np.ndarray]:
        """How it is stored, by key."""
        return {"reserve_rows": self.rows, "reserve_images": self.images, "reserve_cells": self.cells}

    @classmethod
    def of(cls, stored: Mapping[str, np.ndarray], dimension: int) -> "Reserve":
        """What `arrays` gave; an empty one where nothing is stored."""
        if "reserve_rows" not in stored:
            none = np.arange(0)
            return cls(np.empty((0, dimension), dtype=np.float16), none, none)
        return cls(*(stored[f"reserve_{name}"] for name in ("rows", "images", "cells")))


@dataclass(frozen=True, eq=False)
class HeldOut:
    """n good images and their patches.

    images: (n,) their numbers in the bank, -1 of those that it has learnt nothing from.
    distances: (n, h*w, k) float32 squared, to the k nearest rows. nearest: (n, h*w) int64, the nearest row's number.
    cells: (n, s) the strangest patches. rows: (n, s, D) float16, their features.
    """

    images: np.ndarray
    distances: np.ndarray
    nearest: np.ndarray
    cells: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.distances)

    @classmethod
    def joined(cls, parts: "list[HeldOut]") -> "HeldOut | None":
        """Those of several; None of none."""
        return cls(*(np.concatenate(arrays) for arrays in zip(*map(cls._parts, parts), strict=True))) if parts else None

    def _parts(self) -> tuple[np.ndarray, ...]:
        return self.images, self.distances, self.nearest, self.cells, self.rows

    def only(self, images: np.ndarray) -> "HeldOut":
        """Those of some images: (m,) indices, or (n,) bool."""
        return HeldOut(*(part[images] for part in self._parts()))

    def closer(self, bank: MemoryBank, before: int) -> "HeldOut":
        """After rows have joined the bank, from number `before` on; an image's own ones stay left out.

        An image that the bank had learnt nothing from is dropped if it has joined it now.
        """
        keep = np.ones(len(self), dtype=bool)
        k, there = self.distances.shape[2], np.arange(len(bank)) < before
        all_distances, all_nearest = self.distances.copy(), self.nearest.copy()
        for i, (image, cells, rows) in enumerate(zip(self.images, self.cells, self.rows, strict=True)):
            left_out = there | (bank.images == image)
            found = len(bank) - int(left_out.sum())
            if not found:
                continue
            queries = torch.from_numpy(rows.astype(np.float32))
            distances, nearest = bank.search(queries, min(k, found), left_out=left_out)
            old, nearer = self.distances[i, cells], all_distances[i]
            all_nearest[i, cells] = np.where(distances[:, 0] < old[:, 0], nearest[:, 0], self.nearest[i, cells])
            new = np.sort(np.concatenate([old, distances], axis=1), axis=1)[:, :k]
            themselves = new[:, 0] < SAME * old[:, 0]
            keep[i] = image >= 0 or themselves.sum() < 2
            nearer *= np.median(new.mean(axis=1) / old.mean(axis=1).clip(1e-12))
            nearer[cells] = new
        return HeldOut(self.images, all_distances, all_nearest, self.cells, self.rows).only(keep)

    def arrays(self) -> dict[str, np.ndarray]:
        """How it is stored, by key."""
        return {f"held_out_{name}": values for name, values in zip(NAMES, self._parts(), strict=True)}

    @classmethod
    def of(cls, stored: Mapping[str, np.ndarray]) -> "HeldOut | None":
        """What `arrays` gave; None where nothing is stored."""
        return cls(*(stored[f"held_out_{name}"] for name in NAMES)) if "held_out_rows" in stored else None
