"""Images that stream by -> a fit in memory of a given size, which goes on after it was killed.

    images -> feature maps -> patch rows, projected -> a cover of all that have come (`cover.py`) -> bank, thresholds

Features never all exist at once: rows of the cover lie on disk, what they are compared by in memory. What else a model
learns of its images is drawn from all of them alike: patches for how far good ones lie apart, pictures for the
thresholds.
"""

import errno
import json
import logging
import os
import re
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import torch
from tqdm import tqdm

from patchcore_kit import coreset, memory_bank, reasons
from patchcore_kit.appearance import Appearance, measure
from patchcore_kit.calibration import CALIBRATED
from patchcore_kit.cover import Cover, Room, write_at
from patchcore_kit.datasets import Sample, category_of, in_blocks
from patchcore_kit.errors import DataError, ResultsError, SettingsError, short
from patchcore_kit.files import claimed, names_in, read_json, user_path, work_folder, writing
from patchcore_kit.growth import RESERVE, HeldOut, Reserve, halved
from patchcore_kit.notes import Notes
from patchcore_kit.progress import Line
from patchcore_kit.transforms import look_over, read_batches

LOGGER = logging.getLogger(__name__)

PatchCore = TypeVar("PatchCore")  # the detector, whose module imports this one
SAMPLE = 2**16  # patches kept for how far good ones lie apart, all with the same chance
EVERY = 60  # seconds after which the state is written, if nothing else was a reason
AHEAD = 256  # frames taken from an iterator at a time
STREAMED = tuple(name for name, sampler in coreset.SAMPLERS.items() if sampler.start)
SETTINGS, STATE, ROWS, PICTURES, PHOTOGRAPHS = (
    "settings.json", "state.npz", "rows.dat", "pictures.dat", "photographs.dat",
)  # fmt: skip
MINE = ("patches", "patch_images", "patch_cells", "numbers", "first")  # what a stream's state has of its own
OURS = ("names", "ends", "sizes", "values", "alike")
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def in_bytes(memory: str | float) -> int:
    """A number of bytes, or one with a unit as "2GB" or "500 MB" -> bytes. Raises SettingsError for anything else."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*([kmgt]?)i?b?\s*", str(memory).lower())
    try:
        count = int(float(found[1]) * UNITS[found[2]])
    except (TypeError, ValueError):
        count = 0
    if count < 1:
        raise SettingsError(f"memory is {memory!r}: give a number of bytes, or one with a unit, as '2GB'")
    return count


def available() -> int:
    """Bytes of memory that this process may still take, of the machine and of its container."""
    free = psutil.virtual_memory().available
    try:  # of a container, where its system has version 2 of the control groups; what is cached of files makes way
        limit, used, details = (
            Path("/sys/fs/cgroup", f"memory.{name}").read_text() for name in ("max", "current", "stat")
        )
        free = min(free, int(limit) - int(used) + int(re.search(r"^inactive_file (\d+)$", details, re.MULTILINE)[1]))
    except (OSError, ValueError, TypeError):  # none, "max", or another form
        pass
    return max(0, free)


class Reservoir:
    """Which of all things that come are kept, `size` at most, all with the same chance (Vitter's algorithm R)."""

    def __init__(self, size: int, seed: int, seen: int = 0) -> None:
        self.size, self.seed, self.seen = size, seed, seen

    def draw(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the next n: which are kept, and in whose places; where two take the same, the later one has it."""
        numbers = self.seen + np.arange(n)
        drawn = np.random.default_rng((self.seed, self.seen)).integers(0, numbers + 1)
        places = np.where(numbers < self.size, numbers, drawn)
        self.seen += n
        taken = np.flatnonzero(places < self.size)
        return taken, places[taken]


class Stream:
    """All that a fit has learnt so far, in a folder, from where it goes on after it was killed.

    names, sizes (n, 2), values (n, 2): of the images, as a model keeps them. patches, pictures: some of all, each with
    the same chance. alike: whether all images have been the same.
    """

    def __init__(self, folder: Path, cover: Cover, size: tuple[int, int], written: bool) -> None:
        """size: (H, W) of the images. written: whether the state is written now and then."""
        self.folder, self.cover, self._writes = folder, cover, written
        self.names: list[str] = []
        self.ends = [0]  # of the photographs in their file, one behind the other
        self.sizes, self.values = np.zeros((0, 2), dtype=np.int64), np.zeros((0, 2))
        self.alike, self._first = True, np.zeros((*size, 3), dtype=np.uint8)
        self._of_patches, self._of_images = Reservoir(SAMPLE, cover.seed), Reservoir(CALIBRATED, cover.seed)
        self._patches = np.zeros((SAMPLE, cover.projected.shape[1]), dtype=np.float32)
        self._patch_images, self._patch_cells = (np.zeros(SAMPLE, dtype=np.int64) for _ in range(2))
        self._numbers = np.zeros(CALIBRATED, dtype=np.int64)
        self._pictures = (folder / PICTURES).open("wb+" if not (folder / PICTURES).exists() else "rb+")
        self._photographs = (folder / PHOTOGRAPHS).open("ab+")
        self._when = time.monotonic()

    def __len__(self) -> int:
        return len(self.names)

    def close(self) -> None:
        """The files."""
        self.cover.close()
        self._pictures.close()
        self._photographs.close()

    @property
    def patches(self) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
        """(s, d) projected, (s,) images and (s,) cells."""
        n = min(self._of_patches.seen, SAMPLE)
        return torch.from_numpy(self._patches[:n]), self._patch_images[:n], self._patch_cells[:n]

    def pictures(self, most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Those kept, at most so many at a time: (c, H, W, 3) uint8 and (c,) their numbers, ascending."""
        order = np.argsort(self._numbers[: min(len(self), CALIBRATED)])
        for start in range(0, len(order), most):
            found = np.empty((len(order[start : start + most]), *self._first.shape), dtype=np.uint8)
            for picture, place in zip(found, order[start : start + most].tolist(), strict=True):
                os.preadv(self._pictures.fileno(), [picture], place * picture.nbytes)
            yield found, self._numbers[order[start : start + most]]

    def add_patches(self, projected: torch.Tensor, images: np.ndarray, cells: np.ndarray) -> None:
        """(n, d) that the cover has been given, too."""
        taken, places = self._of_patches.draw(len(projected))
        self._patches[places] = projected[torch.from_numpy(taken)].cpu() - self.cover.origin
        self._patch_images[places], self._patch_cells[places] = images[taken], cells[taken]

    def add_images(
        self, names: Sequence[str], sizes: np.ndarray, values: np.ndarray, pictures: np.ndarray, held: np.ndarray
    ) -> None:
        """A batch whose patches are there already; held: ascending, those of the batch that the cover has rows of."""
        taken, places = self._of_images.draw(len(names))
        self._numbers[places] = len(self) + taken
        for i, place in zip(taken, places.tolist(), strict=True):  # the same again, if a killed fit comes here twice
            write_at(self._pictures.fileno(), pictures[i], place * pictures[i].nbytes)
        if not self.names:
            self._first = pictures[0].copy()
        self.alike = self.alike and all(np.array_equal(one, self._first) for one in pictures)
        files = iter(reasons.packed(pictures[held]))
        for i in range(len(names)):
            content = next(files) if i in held else b""
            self._photographs.write(content)
            self.ends.append(self.ends[-1] + len(content))
        self.names += names
        self.sizes, self.values = np.concatenate([self.sizes, sizes]), np.concatenate([self.values, values])

    def photographs(self, images: np.ndarray) -> tuple[bytes, ...]:
        """JPEGs of these images, of all others b""."""
        wanted, files = set(images.tolist()), []
        for i, (start, end) in enumerate(pairwise(self.ends)):
            self._photographs.seek(start)
            files.append(self._photographs.read(end - start) if i in wanted else b"")
        return tuple(files)

    def write(self, *, now: bool = False) -> None:
        """The state, after a reduction, after a minute, or now."""
        if not self._writes:
            self.cover.written()
        elif now or self.cover.reduced or time.monotonic() - self._when > EVERY:
            self._photographs.flush()
            for file in (self._photographs, self._pictures):
                os.fsync(file)
            mine = {name: getattr(self, f"_{name}") for name in MINE} | {name: getattr(self, name) for name in OURS}
            with writing(self.folder / STATE) as file, file.open("wb") as opened:
                np.savez(opened, **mine, **self.cover.arrays())
            self.cover.written()
            self._when = time.monotonic()

    def go_on(self) -> None:
        """From the state that was written, if there is one."""
        if not (self.folder / STATE).is_file():
            return
        with np.load(self.folder / STATE) as arrays:
            self.cover.go_on(arrays)
            for name in MINE:
                setattr(self, f"_{name}", arrays[name])
            self.sizes, self.values, self.alike = arrays["sizes"], arrays["values"], bool(arrays["alike"])
            self.names, self.ends = arrays["names"].tolist(), arrays["ends"].tolist()
        self._of_patches.seen, self._of_images.seen = self.cover.seen, len(self)
        self._photographs.truncate(self.ends[-1])


@contextmanager
def stream_in(
    folder: Path | str | None, made_for: dict[str, object], cover: Callable[[Path], Cover]
) -> Iterator[Stream]:
    """A stream that goes on from what lies in this folder; without one, in a folder that goes with it.

    made_for: the settings that must be the same to go on, as JSON has them; `size` among them. cover: of a file.
    Raises ResultsError for a folder of other settings, in use by another fit, damaged, or that cannot be written, then
    or later, as when the disk is full.
    """
    path = work_folder() / ".cache" if folder is None else user_path(folder)
    with ExitStack() as stack:
        stack.enter_context(_full_disk_told(path, kept=folder is not None))
        path.mkdir(parents=True, exist_ok=True)
        if folder is None:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stream-", dir=path)))
        else:
            stack.enter_context(claimed(path))
            if others := set(names_in(path)) - {SETTINGS, STATE, ROWS, PICTURES, PHOTOGRAPHS}:
                raise ResultsError(
                    f"checkpoint {path} holds {min(others)}, which is of no fit: give a folder of its own"
                )
            if (path / SETTINGS).exists():
                _check_settings(path, made_for)
            else:
                with writing(path / SETTINGS) as file:
                    file.write_text(json.dumps(made_for), encoding="utf-8")
        stream = Stream(path, cover(path / ROWS), tuple(made_for["size"]), folder is not None)
        stack.callback(stream.close)
        try:
            stream.go_on()
        except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
            raise ResultsError(f"checkpoint {path} is damaged ({short(error)}): remove it, and start anew") from None
        yield stream


@contextmanager
def _full_disk_told(folder: Path, *, kept: bool) -> Iterator[None]:
    """In a sentence, also where a file that is closed has something left to write."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        then = "the same call then goes on" if kept else "or set PATCHCORE_WORK to where there is more"
        raise ResultsError(f"there is no room for the stream in {folder}: make some, {then}") from None


def _check_settings(folder: Path, made_for: dict[str, object]) -> None:
    try:
        found = read_json(folder / SETTINGS)
    except (OSError, ValueError) as error:
        raise ResultsError(f"checkpoint {folder} cannot be read ({short(error)}): remove it, and start anew") from None
    for name, value in json.loads(json.dumps(made_for)).items():
        if found.get(name) != value:
            raise ResultsError(
                f"checkpoint {folder} was begun with {name} {found.get(name)!r}, not {value!r}: give the same, or "
                "another folder"
            )


@torch.inference_mode()
def fit(
    detector: PatchCore,
    images: list[Sample] | Iterator[object],
    memory: str | float,
    checkpoint: Path | str | None,
    notes: Notes,
    line: Line,
) -> PatchCore:
    """Fit a detector on what streams by, as `PatchCore.fit` says."""
    if detector.sampler not in STREAMED or detector.contamination or detector.cut.aligned:
        raise SettingsError(
            f"memory is for the samplers {' and '.join(STREAMED)}, without contamination and aligned tiles: leave "
            "it out, or those"
        )
    blocks = in_blocks(images, AHEAD)
    samples = next(blocks, [])
    if not samples:
        raise DataError("no images to embed: the list of samples is empty")
    sizes = detector._look_at(samples, notes)
    values, device, memory = detector.target_embed_dimension, detector.backbone.device, in_bytes(memory)
    weight = coreset.projection_of(values, detector.projection, detector.seed, device)
    d = values if weight is None else len(weight)
    room = Room.of(memory, values, d, detector.storage)
    same = ("sampler", "projection", "storage", "batch_size", "seed", "patchsize")
    same = (*same, "pretrain_embed_dimension", "target_embed_dimension")
    made_for = {name: getattr(detector, name) for name in same} | {"weights": detector.backbone.fingerprint}
    made_for |= {"resize": detector.transform.resize, "size": detector.transform.size, "bits": detector.transform.bits}
    made_for |= {"cut": str(detector.cut), "memory": memory}
    dtype = getattr(torch, detector.storage)
    cover = partial(Cover, room=room, projected=d, dtype=dtype, sampler=detector.sampler, seed=detector.seed)
    with stream_in(checkpoint, made_for, cover) as stream:
        LOGGER.info(
            "stream: a bank of at most %d patches in %.1f GB; %d images are there already",
            room.size, memory / 1e9, len(stream),
        )  # fmt: skip
        with line.bar("embed training images", len(images) if isinstance(images, list) else None) as bar:
            done = 0
            for block in chain([samples], blocks):
                if done:
                    sizes = look_over(block, detector.transform, notes, learn=False)[1]
                there = min(len(block), len(stream) - done)
                if [sample.name for sample in block[:there]] != stream.names[done : done + there]:
                    raise DataError(
                        f"checkpoint {checkpoint} was begun with other images than these, from {block[0].where} on: "
                        "give the same in the same order, or another folder"
                    )
                bar.update(there)
                _learn(detector, stream, block[there:], sizes[there:], weight, notes, line, bar)
                done += len(block)
        if done < len(stream):
            raise DataError(f"checkpoint {checkpoint} has learnt {len(stream)} images, these are {done}: give all")
        _settle(detector, stream, notes, line)
        detector.category_ = category_of(samples[0])
    return detector


def _learn(
    detector: PatchCore,
    stream: Stream,
    samples: Sequence[Sample],
    sizes: np.ndarray,
    weight: torch.Tensor | None,
    notes: Notes,
    line: Line,
    bar: tqdm,
) -> None:
    """Let the patches of these images stream by; weight: of the projection."""
    start = 0
    for pictures in read_batches(samples, detector._reader(notes), detector._at_a_time, detector.workers):
        held, tile = set(), 0
        for tiles in detector.tiling_.cut(pictures, detector.batch_size):
            maps = detector._maps_of(tiles)
            rows = detector.tiling_.answers(detector.embedding(maps), tile, len(tiles))
            projected = rows
            if weight is not None:
                projected = detector.tiling_.answers(detector.embedding.project(maps, weight), tile, len(tiles))
            for i, (own, one) in enumerate(zip(rows, projected, strict=True), tile):
                images, cells = detector.tiling_.origin_of(i, len(own))
                images = images + len(stream)
                taken = stream.cover.add(one, lambda some, own=own: own[torch.from_numpy(some)], images, cells, line)
                stream.add_patches(one, images, cells)
                held |= set((images[taken] - len(stream)).tolist())
            tile += len(tiles)
        count = len(pictures)
        batch = samples[start : start + count]
        values, known = measure(pictures, detector.backbone.device), sizes[start : start + count]
        stream.add_images([sample.name for sample in batch], known, values, pictures, np.array(sorted(held), int))
        stream.write()
        start += count
        bar.update(count)
    notes.tell()


def _settle(detector: PatchCore, stream: Stream, notes: Notes, line: Line) -> None:
    """The bank of what has streamed by, and all else."""
    stream.write(now=True)
    cover = stream.cover
    k = min(cover.room.size, int(cover.seen * detector.percentage))
    if k == 0:
        raise SettingsError(
            f"percentage {detector.percentage} keeps none of {cover.seen} patches: raise it or add images"
        )
    left = cover.reduce(k, line) if k < cover.held else [cover.slots[:0]] * 3
    order = np.lexsort([array[:RESERVE] for array in (left[2], left[1])])
    k, spare = cover.held, [array[order] for array in left]
    LOGGER.info(
        "memory bank: %d of %d patches from %d images; no patch is farther from it than %.3g, and %d patches "
        "cannot cover all within less than %.3g", k, cover.seen, len(stream), cover.bound, k, cover.least,
    )  # fmt: skip
    detector._forget()
    detector.grid_ = detector.tiling_.grid
    detector.train_names_, detector.sizes_ = tuple(stream.names), stream.sizes
    detector.appearance_ = Appearance(stream.values, stream.sizes)
    images, cells = cover.images[:k].copy(), cover.cells[:k].copy()
    detector.photographs_ = stream.photographs(np.concatenate([images, spare[1]]))
    spacing = None
    if detector._relative:
        patches, of, at = stream.patches
        others = torch.from_numpy(~np.isin(of * detector.tiling_.cells + at, images * detector.tiling_.cells + cells))
        detector.near_ = memory_bank.nearby(cover.projected[:k], patches[others], detector.seed, among=False)
        spacing = detector._spacing(
            cover.projected[:k], patches - patches.mean(0), detector.target_embed_dimension, notes
        )
    cover.forget()
    detector.reserve_ = Reserve(halved(cover.rows(spare[0])), *spare[1:])
    rows = cover.rows(cover.slots[:k]).numpy()
    rows.flags.writeable = False  # so that the bank uses it where it lies
    detector.bank_ = detector._bank(rows, {"images": images, "cells": cells, "spacing": spacing})
    alike, held = stream.alike and len(stream) > 1, []
    for pictures, numbers in stream.pictures(detector._at_a_time) if not alike else ():
        maps = map(detector._maps_of, detector.tiling_.cut(pictures, detector.batch_size))
        held.append(detector._hold_out(detector.embedding.each(maps, detector.tiling_), numbers))
    detector.held_out_ = HeldOut.joined([one for one in held if one])
    detector.calibration_ = detector._calibrate()
    detector._tell_thresholds(alike, notes)
