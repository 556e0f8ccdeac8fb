"""Rows that stream by -> a cover of them, of a given size: greedy covers of covers.

    rows of a batch -> those beyond the cover's radius -> held beside it -> greedy k-center of both -> the next cover

A row that lies nearer to the cover than the radius of its last reduction is let go, any other is held; when there is no
more room, greedy k-center chooses the next cover of the last one and of what is held. A row that stands for others far
from it is more likely to stay, or what it stands for would be left alone (`coreset.select_again`). A stream that fits
into the room is reduced once, at its end, which is what a fit does that does not stream.

What can be proved: each row of the cover knows how far away the farthest row is that it stands for, at most, for a row
that is let go is that far from it, and one that leaves the cover hands on what it stands for (triangle inequality).
The largest of these is `Cover.bound`: no row that has come by is farther from the cover. And as greedy k-center, the
first time, leaves a row at some radius r from all M that it has chosen, which are r apart themselves, no M rows
whatever cover all within less than r / 2 = `Cover.least`. What is measured on real images: docs/scaling.md.
"""

import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import torch

from patchcore_kit import coreset, memory_bank
from patchcore_kit.errors import SettingsError
from patchcore_kit.progress import Line

STANDING = 0.1  # of its spread, by which a row counts as farther: all of it would make the cover 15 % denser where most
# patches are, and scores other than the exact bank's
SPARE = 0.5  # rows held beside the cover, of its size: more are seldom reduced, fewer leave room for a larger cover
CLUSTERS = 2.0  # times the square root of the cover's rows: those among which the nearest is sought
PROBES = (1, 8)  # of the clusters, at first, and for rows that then seem far
BLOCK = 2**12  # rows moved at a time
HELD = ("images", "cells", "slots", "reach", "spread")  # of each row that is held, beside what it is compared by
FEWEST = 1000  # rows that a cover has room for
WORKING = 100  # bytes that choosing takes for a row, beside the row itself


@dataclass(frozen=True)
class Room:
    """What fits into some memory: `size` rows in the cover, `room` with those held beside it.

    record: bytes that one takes on disk.
    """

    size: int
    room: int
    record: int

    @classmethod
    def of(cls, memory: int, dimension: int, projected: int, storage: str) -> "Room":
        """Rows of so many values, and of so many when they are projected. Raises SettingsError for none at all.

        At the end the bank takes most: its rows, and their components to search by.
        """
        row = dimension * (4 if storage == "float32" else 2)
        streaming = (1 + SPARE) * (4 * projected + WORKING) + 2 * projected
        each = max(streaming, row + 2 * projected + WORKING)
        size = int(memory / each)
        if size < FEWEST:
            least = f"{each * FEWEST / 1e6:.0f} MB"
            raise SettingsError(f"memory of {memory / 1e6:.0f} MB has room for {size} patches: give {least} or more")
        return cls(size, int(size * (1 + SPARE)), 4 * projected + row)


def write_at(file: int, values: np.ndarray, place: int) -> None:
    """An array's bytes into a file. Raises OSError if they do not all fit."""
    if os.pwrite(file, values, place) < values.nbytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Cover:
    """At most `size` of all rows that come, so that each is near to one of them.

    What is compared, (n, d) projected rows, is in memory; the rows themselves (n, D) are on disk. `images` and `cells`
    say where each held one came from, `reach` how far away what it stands for may be, `spread` the square of the
    longest of the ways that this is the sum of, `radius` what the last reduction left uncovered (None before), `seen`
    how many rows have come, `reduced` whether there was a reduction since `written` was called.
    """

    def __init__(self, file: Path, room: Room, projected: int, dtype: torch.dtype, sampler: str, seed: int) -> None:
        self.room, self.sampler, self.seed, self.dtype = room, sampler, seed, dtype
        self.held = self.settled = self.seen = 0
        self.radius: float | None = None
        self.least = 0.0
        self.origin: torch.Tensor | None = None
        self.projected = torch.empty(room.room, projected)
        self.images, self.cells, self.slots = (np.zeros(room.room, dtype=np.int64) for _ in range(3))
        self.reach, self.spread = (np.zeros(room.room, dtype=np.float32) for _ in range(2))
        self._file = os.open(file, os.O_RDWR | os.O_CREAT)
        self._end, self._free, self._freed = 0, np.arange(0), np.arange(0)
        self._near: faiss.Index | None = None
        self.reduced = False

    def close(self) -> None:
        """The file; rows cannot be read any more."""
        os.close(self._file)

    @property
    def bound(self) -> float:
        """A distance that no row that has come is beyond, from the nearest in the cover."""
        return float(self.reach[: self.held].max(initial=0))

    def add(
        self,
        projected: torch.Tensor,
        rows: Callable[[np.ndarray], torch.Tensor],
        images: np.ndarray,
        cells: np.ndarray,
        line: Line,
    ) -> np.ndarray:
        """(n, d) rows that come, from these images and cells -> ascending indices of those that are held now.

        rows: what gives the (m, D) rows of m indices, for only these are needed.
        """
        if self.origin is None:
            self.origin = projected.mean(0).cpu()
        projected, taken = projected.cpu() - self.origin, []
        for start in range(0, len(projected), self.room.room - self.room.size):
            part = projected[start : start + self.room.room - self.room.size]
            if self.held + len(part) > self.room.room:
                self.reduce(self.room.size, line)
            taken.append(start + self._beyond(part))
            n, new = len(taken[-1]), slice(self.held, self.held + len(taken[-1]))
            self.projected[new], self.reach[new], self.spread[new] = projected[taken[-1]], 0, 0
            self.images[new], self.cells[new], self.slots[new] = images[taken[-1]], cells[taken[-1]], self._take(n)
            self._write(self.slots[new], self.projected[new], rows(taken[-1]))
            self.held += n
        self.seen += len(projected)
        return np.concatenate(taken)

    def _beyond(self, projected: torch.Tensor) -> np.ndarray:
        """Indices of the rows that lie beyond the radius; the others count to what the nearest stands for."""
        if self._near is None:
            return np.arange(len(projected))
        distances, nearest = self._nearest(projected, self.radius)
        within = distances <= self.radius
        np.maximum.at(self.reach, nearest[within], distances[within])
        np.maximum.at(self.spread, nearest[within], distances[within] ** 2)
        return np.flatnonzero(~within)

    def _nearest(self, rows: torch.Tensor, enough: float) -> tuple[np.ndarray, np.ndarray]:
        """(n, d) -> distances to the cover and the nearest of it; those above `enough` may be a little too large."""
        x = rows.contiguous().numpy()
        distances, nearest = np.full(len(x), np.inf, dtype=np.float32), np.zeros(len(x), dtype=np.int64)
        far = np.arange(len(x))
        for probes in PROBES:
            how = faiss.SearchParametersIVF(nprobe=probes)
            squares, found = (part[:, 0] for part in self._near.search(x[far], 1, params=how))
            there = found >= 0
            distances[far[there]] = np.sqrt(squares[there].clip(0))
            nearest[far[there]] = found[there]
            far = far[~(distances[far] <= enough)]
            if not len(far):
                break
        return distances, nearest

    def _index(self) -> faiss.Index:
        """Finds some near row of the cover; `_nearest` says how."""
        clusters = round(CLUSTERS * self.settled**0.5)
        return memory_bank.clustered(self.projected[: self.settled], clusters, self.seed)

    def reduce(self, k: int, line: Line) -> list[np.ndarray]:
        """Keep k of the rows held, by greedy k-center -> others' places on disk, images and cells, farthest first.

        Those that are the same as some row that is kept are not among them. What is in these places can be read until
        more rows are added.
        """
        rows = self.projected[: self.held]
        spread = STANDING * torch.from_numpy(self.spread[: self.held])
        picks, uncovered = coreset.select_again(rows, spread, k, self.sampler, self.seed, line)
        kept = np.sort(picks)
        gone = np.delete(np.arange(self.held), kept)
        radius = float(uncovered[torch.from_numpy(gone)].max().clamp(min=0).sqrt())
        if self.radius is None:
            self.least = radius / 2
        self.radius, leaving = radius, rows[torch.from_numpy(gone)]
        apart = uncovered.numpy()[gone]
        far = np.argsort(-apart, kind="stable")[: int((apart > 0).sum())]
        left = [array[gone[far]] for array in (self.slots, self.images, self.cells)]
        freed, reach, spread = self.slots[gone], self.reach[gone], self.spread[gone]
        for array in (getattr(self, name) for name in HELD):
            array[:k] = array[kept]
        for start in range(0, k, BLOCK):  # ascending, so what is read has not been written over
            some = torch.from_numpy(kept[start : start + BLOCK])
            self.projected[start : start + len(some)] = self.projected[some]
        self.held = self.settled = k
        self.reduced = True
        self._freed = np.concatenate([self._freed, freed])
        self._near = self._index()
        distances, nearest = self._nearest(leaving, self.radius)
        lost = np.isinf(distances)
        distances[lost] = self.radius
        np.maximum.at(self.reach, nearest, distances + reach)
        np.maximum.at(self.spread, nearest, np.maximum(distances**2, spread))
        return left

    def forget(self) -> None:
        """All that is in memory of the rows; those on disk can still be read."""
        self.projected, self._near = self.projected[:0].clone(), None

    def rows(self, slots: np.ndarray) -> torch.Tensor:
        """(n,) places on disk -> (n, D) rows."""
        width = self.room.record - 4 * self.projected.shape[1]
        found = torch.empty(len(slots), width // self.dtype.itemsize, dtype=self.dtype)
        for row, slot in zip(found.numpy(), slots.tolist(), strict=True):
            os.preadv(self._file, [row], (slot + 1) * self.room.record - width)
        return found

    def _take(self, n: int) -> np.ndarray:
        """Places on disk that nothing is in that a written state names: old ones, then new ones at the end."""
        old, self._free = self._free[:n], self._free[n:]
        new = np.arange(self._end, self._end + n - len(old))
        self._end += len(new)
        return np.concatenate([old, new])

    def _write(self, slots: np.ndarray, projected: torch.Tensor, rows: torch.Tensor) -> None:
        parts = [x.cpu().contiguous().view(torch.uint8).numpy() for x in (projected, rows.to(self.dtype))]
        records = np.concatenate(parts, axis=1)
        for run in np.split(np.arange(len(slots)), np.flatnonzero(np.diff(slots) != 1) + 1):
            if len(run):
                write_at(self._file, records[run[0] : run[-1] + 1], int(slots[run[0]]) * self.room.record)

    def arrays(self) -> dict[str, np.ndarray]:
        """What it takes to go on, beside the rows on disk, which are there when this returns."""
        os.fsync(self._file)
        held = {name: getattr(self, name)[: self.held] for name in HELD}
        numbers = {"settled": self.settled, "seen": self.seen, "least": self.least}
        numbers["radius"] = np.nan if self.radius is None else self.radius
        return held | {name: np.array(value) for name, value in numbers.items()} | {"origin": self.origin.numpy()}

    def written(self) -> None:
        """The arrays are on disk: what they do not name may be written over."""
        self._free, self._freed = np.concatenate([self._free, self._freed]), np.arange(0)
        self.reduced = False

    def go_on(self, arrays: Mapping[str, np.ndarray]) -> None:
        """From where `arrays` was asked."""
        self.held, self.settled, self.seen = len(arrays["slots"]), int(arrays["settled"]), int(arrays["seen"])
        self.least = float(arrays["least"])
        for name in HELD:
            getattr(self, name)[: self.held] = arrays[name]
        self.origin = torch.from_numpy(arrays["origin"])
        for row, slot in zip(self.projected.numpy(), self.slots[: self.held].tolist(), strict=False):
            os.preadv(self._file, [row], slot * self.room.record)
        self._end = int(self.slots[: self.held].max(initial=-1)) + 1
        self._free = np.setdiff1d(np.arange(self._end), self.slots[: self.held])
        if self.settled:
            self.radius = float(arrays["radius"])
            self._near = self._index()
