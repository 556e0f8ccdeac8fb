"""PatchCore: fit on good images, predict scores and anomaly maps, go on learning, save and load.

    fit       images -> feature maps -> patch rows -> coreset -> memory bank -> thresholds
    predict   images -> feature maps -> patch rows -> nearest rows of the bank -> scores and maps -> verdicts, reasons

Source: Roth et al. 2022, "Towards Total Recall in Industrial Anomaly Detection". Scores are by default the reference
implementation's: `scoring.py` has the rules.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
import scipy.special
import torch

from patchcore_kit import calibration, coreset, memory_bank, model_folder, reasons, streaming, suspects
from patchcore_kit.appearance import Appearance, measure
from patchcore_kit.backbones import Backbone
from patchcore_kit.calibration import CALIBRATED, Calibration
from patchcore_kit.cover import WORKING
from patchcore_kit.datasets import Sample, as_samples, category_of
from patchcore_kit.errors import DataError, ModelError, SettingsError, check_choice, whole_number
from patchcore_kit.growth import STRANGEST, HeldOut, Reserve, halved
from patchcore_kit.image_cache import ImageCache
from patchcore_kit.images import Frame
from patchcore_kit.masks import read_mask
from patchcore_kit.memory_bank import MemoryBank
from patchcore_kit.notes import Notes
from patchcore_kit.patches import PatchEmbedding, PatchRows
from patchcore_kit.predictions import Predictions
from patchcore_kit.progress import Line, images_of, line_of
from patchcore_kit.reasons import Evidence
from patchcore_kit.scoring import SCORINGS, draw_maps
from patchcore_kit.streaming import available
from patchcore_kit.suspects import spread
from patchcore_kit.tiles import Cut, Tiling
from patchcore_kit.transforms import Transform, look_over, normalise, read_batches, whole_resize

LOGGER = logging.getLogger(__name__)

Images = Path | str | Frame | Iterable[Sample | Path | str | Frame]
"""Samples, image files, a folder of them, or frames in memory: whatever `datasets.as_samples` takes."""

MANY = 500  # images from which on a fit is worth a second to find out how long it takes
WAITING = 4  # batches of images that may wait to become JPEGs
NOTHING = 1e-6  # times what is usual: distances that are rounding


class PatchCore:
    """A memory bank of what good patches look like, and how far others are from it.

    sampler, percentage, projection: see `coreset.select`. resize, imagesize: see `Transform`; resize None: 256, with
        tiles what most training images have, in steps of what the network's coarsest cells measure.
    tile, tiles, overlap, aligned: how larger images are cut, see `tiles.Cut`.
    bits: that images of more than 8 bits have; None: as many as the largest value of the training images needs.
    search, storage: see `MemoryBank`; with "float16" the feature maps of the training images are kept so, too.
    pretrain_embed_dimension, target_embed_dimension, patchsize: see `PatchEmbedding`.
    num_nn: neighbours whose squared distances are averaged to a patch's score.
    scoring: "distance", the reference's, or "density", relative to how far apart good patches lie (see the module).
    alarm_rate: share of good images that may be called anything but good; sets the thresholds.
    contamination: share of the training images that may be bad themselves; those that stand out, at most so many, are
        not learnt (see `suspects.py`).
    reweight: number b of neighbours for the paper's Eq. 7, which lowers the score of an image whose nearest row of
        the bank lies in a dense part of it; 0 leaves scores as they are, as the reference does.
    seed: draws the projection and the coreset's start.
    batch_size, workers: images at a time, and threads that read them (None: one per core).
    cache: where images are kept as the network takes them, or None.

    After `fit`: `bank_` (a MemoryBank), `grid_` (patches down and across), `train_names_`, `suspects_` (names of images
    that were not learnt), `category_` (the name of the category that the images are of, "" where they are of none),
    `calibration_` (scores of good images and the thresholds that follow, None where there can be none), `appearance_`
    (how they were taken) and `photographs_` (what the network has seen, as JPEGs); `transform` knows their bits. For
    `extend` a model keeps `reserve_`, `held_out_` and, for density scores, `near_` (see `growth.py`).
    Raises SettingsError for settings that cannot work.
    """

    def __init__(
        self,
        backbone: Backbone,
        sampler: str = "approx_greedy_coreset",
        percentage: float = 0.1,
        resize: int | tuple[int, int] | None = None,
        imagesize: int = 224,
        pretrain_embed_dimension: int = 1024,
        target_embed_dimension: int = 1024,
        patchsize: int = 3,
        num_nn: int = 1,
        seed: int = 0,
        *,
        projection: int | None = 128,
        reweight: int = 0,
        scoring: str = "distance",
        alarm_rate: float = 0.05,
        contamination: float = 0.0,
        search: str = "fast",
        storage: str = "float32",
        bits: int | None = None,
        tile: int | None = None,
        tiles: tuple[int, int] | None = None,
        overlap: int | None = None,
        aligned: bool = False,
        batch_size: int = 8,
        workers: int | None = None,
        cache: ImageCache | None = None,
        progress: bool | Line = True,
    ):
        coreset.check(sampler, percentage, projection)
        memory_bank.check(search, storage)
        calibration.check(alarm_rate)
        suspects.check(contamination)
        check_choice("scoring", scoring, SCORINGS)
        if reweight and scoring != "distance":
            raise SettingsError(f"reweight is {reweight}, a rule for scoring='distance': give 0, or that scoring")
        if not isinstance(backbone, Backbone):
            raise SettingsError(f"backbone is {backbone!r}: give a network, as load_backbone makes it")
        if reweight == 1:
            raise SettingsError("reweight is 1, which makes all scores 0: give 0 for none or at least 2 neighbours")
        self.cut = Cut(tile, tiles, overlap, aligned)  # these check their settings
        self.transform = Transform(256 if resize is None else resize, imagesize, bits=bits)
        self.embedding = PatchEmbedding(
            backbone.channels,
            pretrain_embed_dimension=pretrain_embed_dimension,
            target_embed_dimension=target_embed_dimension,
            patchsize=patchsize,
            device=backbone.device,
        )
        self.backbone = backbone
        self.sampler = sampler
        self.percentage = percentage
        self.resize = None if resize is None and self.cut else self.transform.resize
        self.imagesize = self.transform.imagesize
        self.pretrain_embed_dimension = self.embedding.pretrain_embed_dimension
        self.target_embed_dimension = self.embedding.target_embed_dimension
        self.patchsize = self.embedding.patchsize
        self.num_nn = whole_number("num_nn", num_nn, 1)
        self.seed = whole_number("seed", seed, 0)
        self.projection = projection
        self.reweight = whole_number("reweight", reweight, 0)
        self.scoring = scoring
        self.alarm_rate = float(alarm_rate)
        self.contamination = float(contamination)
        self.search = search
        self.storage = storage
        self.bits = self.transform.bits
        self.batch_size = whole_number("batch_size", batch_size, 1)
        self.workers = None if workers is None else whole_number("workers", workers, 1)
        self.cache = cache
        self.progress = progress

    def __repr__(self) -> str:
        bank = f"{len(self.bank_)} patches" if hasattr(self, "bank_") else "not fitted"
        return f"PatchCore({self.backbone!r}, {self.sampler!r}, {self.percentage}, resize={self.resize}: {bank})"

    @property
    def members(self) -> tuple["PatchCore", ...]:
        """Itself alone: so that one PatchCore and an ensemble can be treated alike."""
        return (self,)

    def fit(
        self, images: Images, *, memory: str | float | None = None, checkpoint: Path | str | None = None
    ) -> "PatchCore":
        """Fill the memory bank from good images: samples, image files, a folder of them, or frames (`as_samples`).

        memory: bytes, or "2GB": patches stream by, of which the bank and all that choosing it takes have so much room,
            beside about 1 GB for the network (see `streaming.py`). Then frames may come from an iterator as well, and
            the bank has at most `percentage` of all patches, fewer if these are too many. None: all are there at once.
        checkpoint: a folder where a stream keeps its state: the same call goes on from there if this one is killed. It
            can be removed once the model is saved.

        Raises DataError without images or for one that cannot be read, SettingsError if the sampler keeps nothing or
        what it takes is more than the memory there is, ResultsError for a checkpoint of something else.
        """
        if checkpoint is not None and memory is None:
            raise SettingsError("checkpoint is of a fit that streams: give memory as well, or leave it out")
        if memory is not None and isinstance(images, Iterator):
            with line_of(self.progress, "fit on a stream") as line:
                return streaming.fit(self, images, memory, checkpoint, Notes(), line)
        samples = as_samples(images)
        with line_of(self.progress, f"fit on {images_of(samples)}") as line:
            if memory is not None:
                return streaming.fit(self, samples, memory, checkpoint, Notes(), line)
            return self._fit(samples, Notes(), line)

    @torch.inference_mode()
    def _fit(self, samples: Sequence[Sample], notes: Notes, line: Line) -> "PatchCore":
        if not samples:
            raise DataError("no images to embed: the list of samples is empty")
        sizes = self._look_at(samples, notes)
        self._foresee(len(samples))
        passing = _Passing(self.backbone.device, keep=True)
        rows = self._rows(samples, passing, notes, line)
        self._forget()
        self.grid_, self.category_ = rows.grid, category_of(samples[0])
        alike = len(samples) > 1 and rows.alike(self.backbone.rounding)
        projected = coreset.project(rows, self.projection, self.seed) if self._projects else None
        good = np.arange(len(samples))
        if self.contamination:
            strange = suspects.strangeness(projected, rows.grid, self.contamination, self.seed)
            good = np.delete(good, suspects.stand_out(strange, self.contamination))
        if len(good) < len(samples):
            rows = rows.only(good)
            projected = projected.unflatten(0, (len(samples), -1))[torch.from_numpy(good)].flatten(0, 1)
        self._know(samples, good, sizes, passing, notes)
        kept, uncovered = self._choose(projected, len(rows), line)
        kept = np.sort(kept)  # not in the order of choice: where two are equally far, rounding decides on it
        LOGGER.info("memory bank: %d of %d patches from %d images", len(kept), len(rows), len(good))
        spacing = self._spacing_of(projected, kept, rows.shape[1], notes)
        del projected
        self._fill(rows, kept, Reserve.farthest(uncovered), spacing)
        images = spread(len(good), CALIBRATED)
        self.held_out_ = None if alike else self._hold_out(rows.only(images), images)
        self.calibration_ = self._calibrate()
        self._tell_thresholds(alike, notes)
        return self

    def _look_at(self, samples: Sequence[Sample], notes: Notes) -> np.ndarray:
        """Settle how these training images are seen, and tell what of them is not: their heights and widths (N, 2)."""
        resize = self.resize or whole_resize(samples, None, multiple=self.backbone.stride)
        transform = Transform(resize, self.transform.imagesize, bits=self.bits)
        self.transform, sizes = look_over(samples, transform, notes, learn=True)
        self.tiling_ = self._tiling()
        notes.tell()
        return sizes

    def _foresee(self, count: int) -> None:
        """Tell what memory and time a fit on so many images takes.

        Raises SettingsError for more memory than there is.
        """
        maps = [x.shape[1:] for x in self.backbone.empty_maps(*self.tiling_.size)]
        value, rows = 4 if self.storage == "float32" else 2, count * self.tiling_.cells
        d = (self.projection or self.target_embed_dimension) if self._projects else 0
        kept = rows if coreset.SAMPLERS[self.sampler].keeps_all else int(rows * self.percentage)
        choosing, bank = rows * (4 * d + WORKING * (d > 0)), 2 * kept * self.target_embed_dimension * value
        bytes_ = count * len(self.tiling_) * value * sum(map(math.prod, maps)) + max(choosing, bank)
        words = f"{count} images take about {bytes_ / 1e9:.1f} GB of memory"
        if self.backbone.device.type == "cpu" and bytes_ > (free := available()):
            raise SettingsError(
                f"{words}, {free / 1e9:.1f} GB are free: give `fit` memory='{max(1, int(free / 2e9))}GB', and they "
                "stream by, or choose fewer or smaller images"
            )
        if count >= MANY:
            blank = np.zeros((self._at_a_time, *self.tiling_.size, 3), dtype=np.uint8)
            for _ in range(2):  # the first time is longer
                started = time.perf_counter()
                self._maps_of(blank)
            seconds = (time.perf_counter() - started) / len(blank) * len(self.tiling_) * count
            if d:
                some = torch.randn(coreset.BLOCK, d, device=self.backbone.device)
                seconds += coreset.estimate_seconds(some, kept, rows)
            words += f" and {seconds / 60:.0f} minutes"
        LOGGER.info(words)

    def _tiling(self) -> Tiling:
        """Where tiles and patches lie, by the maps' shapes alone: the size that a file claims costs nothing."""
        size = self.transform.size
        if self.cut and self.patchsize % 2 == 0:
            raise SettingsError(f"patchsize is {self.patchsize}, which lies between cells: with tiles give an odd one")
        if self.cut:
            return Tiling.of(self.cut, size, self.backbone)
        return Tiling.whole(size, self.embedding.grid(self.backbone.empty_maps(*size)))

    def _choose(self, projected: torch.Tensor | None, n: int, line: Line) -> tuple[np.ndarray, torch.Tensor | None]:
        """As `coreset.select_first`; of aligned tiles of each by itself."""
        if not self.cut.aligned:
            return coreset.select_first(self.sampler, projected, n, self.percentage, seed=self.seed, progress=line)
        tiles, chosen = self.tiling_.tile_of(self.tiling_.origin(np.arange(n))[1]), []
        uncovered = None if projected is None else projected.new_empty(n)
        for tile in range(len(self.tiling_)):
            own = np.flatnonzero(tiles == tile)
            some = None if projected is None else projected[torch.from_numpy(own).to(projected.device)]
            kept, far = coreset.select_first(
                self.sampler, some, len(own), self.percentage, seed=self.seed, progress=line
            )
            chosen.append(own[kept])
            if far is None:
                uncovered = None
            elif uncovered is not None:
                uncovered[torch.from_numpy(own).to(far.device)] = far
        return np.concatenate(chosen), uncovered

    def _rows(self, samples: Sequence[Sample], passing: "_Passing", notes: Notes, line: Line) -> PatchRows:
        maps = self._feature_maps(samples, "embed training images", notes, line, passing)
        return PatchRows(self.embedding, maps, self.storage, self.tiling_)

    def _feature_maps(
        self,
        samples: Sequence[Sample],
        task: str,
        notes: Notes,
        line: Line,
        passing: Callable[[np.ndarray], None],
    ) -> Iterator[list[torch.Tensor]]:
        """The feature maps of all images, batch by batch, while threads read the next; `passing` sees the images.

        With tiles, of one image after another: `batch_size` tiles at a time.
        """
        with line.bar(task, len(samples)) as bar:
            for images in read_batches(samples, self._reader(notes), self._at_a_time, self.workers):
                passing(images)
                yield from map(self._maps_of, self.tiling_.cut(images, self.batch_size))
                bar.update(len(images))
        notes.tell()

    def _reader(self, notes: Notes) -> Callable[[Sample], np.ndarray]:
        if self.cache:
            return partial(self.cache.image, transform=self.transform, notes=notes)
        return partial(self.transform.image, notes=notes)

    def _maps_of(self, tiles: np.ndarray) -> list[torch.Tensor]:
        """(b, h, w, 3) -> the feature maps."""
        return self.backbone(normalise(tiles, self.backbone.device))

    @property
    def _at_a_time(self) -> int:
        """Images: of tiles one is enough."""
        return 1 if self.cut else self.batch_size

    def _forget(self) -> None:
        """Training images, of a model that has none yet."""
        self.train_names_ = self.suspects_ = self.photographs_ = ()
        self.sizes_, self.appearance_, self.near_, self.held_out_ = np.zeros((0, 2), dtype=np.int64), None, None, None
        self.levels_ = None

    def _know(
        self, samples: Sequence[Sample], good: np.ndarray, sizes: np.ndarray, passing: "_Passing", notes: Notes
    ) -> None:
        """Add to what is known of the training images: which were learnt, which were not, and what they look like."""
        suspected, files = [samples[i].name for i in np.delete(np.arange(len(samples)), good)], passing.files
        self.train_names_ += tuple(samples[i].name for i in good)
        self.suspects_ += tuple(suspected)
        self.photographs_ += tuple(files[i] for i in good)
        self.sizes_ = np.concatenate([self.sizes_, sizes[good]])
        new = Appearance(passing.values[good], sizes[good])
        self.appearance_ = new if self.appearance_ is None else self.appearance_.joined(new)
        for name in suspected:
            notes.add(name, "stands out from the training images and is not learnt: look at it", "suspect")
        notes.tell()

    @property
    def _projects(self) -> bool:
        return self._relative or coreset.SAMPLERS[self.sampler].compares or self.contamination > 0

    @property
    def _relative(self) -> bool:
        """Whether scores take the spacing of the bank's rows."""
        return SCORINGS[self.scoring].patch is not None

    def _spacing_of(
        self, projected: torch.Tensor | None, kept: np.ndarray, dimension: int, notes: Notes
    ) -> np.ndarray | None:
        """(M,) spacing of the rows that are kept of all patches; None where scores are not relative to it."""
        if not self._relative:
            return None
        bank = projected[torch.from_numpy(kept).to(projected.device)]
        self.near_ = memory_bank.nearby(bank, projected, self.seed)
        return self._spacing(bank, projected, dimension, notes)

    def _spacing(self, bank: torch.Tensor, projected: torch.Tensor, dimension: int, notes: Notes) -> np.ndarray:
        """(M,) spacing of the bank's rows (M, d), on the scale of rows of `dimension` values."""
        spacing = memory_bank.spacing(self.near_, bank, self.seed)
        variance = float(projected.square().sum(1).mean())  # they are centred
        if spacing.mean() <= NOTHING * variance:
            notes.add(self.train_names_[0], "all other training images are the same, so scores are plain distances")
            spacing[:] = variance or 1.0
        return spacing * coreset.shrinkage(dimension, projected.shape[1])

    def _fill(self, rows: PatchRows, kept: np.ndarray, reserve: np.ndarray, spacing: np.ndarray | None) -> None:
        """The bank of the rows that are kept, and the reserve."""
        bank, spare = rows.at(np.concatenate([kept, reserve])).split([len(kept), len(reserve)])
        self.reserve_ = Reserve(halved(spare), *self.tiling_.origin(reserve))
        images, cells = self.tiling_.origin(kept)
        self.bank_ = self._bank(bank, {"images": images, "cells": cells, "spacing": spacing})

    def _bank(self, rows: torch.Tensor | np.ndarray, arrays: Mapping[str, np.ndarray | None]) -> MemoryBank:
        """A bank of the rows and of what is known of each: `images`, `cells`, `spacing`."""
        return MemoryBank(
            rows,
            arrays.get("images"),
            arrays.get("cells"),
            self.backbone.device,
            search=self.search,
            storage=self.storage,
            spacing=arrays.get("spacing"),
            prepared=arrays,
        )

    def _hold_out(self, rows: Iterable[torch.Tensor], images: np.ndarray) -> HeldOut | None:
        """These images' patches, compared with the bank without their own rows; none where it has no others.

        images: (n,) number of each in the bank, -1 of those that gave it nothing.
        """
        parts = []
        if not self.cut:
            rows = (one for batch in rows for one in batch.split(self.tiling_.cells))
        for image, (chunks, _) in zip(images, self._images_of(rows), strict=True):
            own = None if image < 0 else self.bank_.images == image
            if own is not None and self._fewest(own) < self.num_nn:
                deque(chunks, maxlen=0)  # the next image's come after them
                continue
            found = self._compare(chunks, 1, own, STRANGEST)
            parts.append(
                HeldOut(
                    np.array([image]), found.distances, found.nearest[..., 0], found.strange, halved(found.features)
                )
            )
        return HeldOut.joined(parts)

    def _images_of(self, chunks: Iterable[torch.Tensor]) -> Iterator[tuple[Iterator[torch.Tensor], int]]:
        """Rows as they come -> those of whole images, tile by tile, and how many images these are."""
        chunks, tiles = iter(chunks), len(self.tiling_)
        for first in chunks:
            yield chain([first], islice(chunks, tiles - 1)), len(first) // self.tiling_.cells if tiles == 1 else 1

    def _compare(
        self, chunks: Iterable[torch.Tensor], count: int, left_out: np.ndarray | None = None, strangest: int = 0
    ) -> "_Compared":
        """The rows of `count` images, tile by tile, beside the bank's but for those left out, (M,) bool."""
        shape = count, self.tiling_.cells, self.num_nn
        distances, nearest = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.int64)
        found = []
        for tile, rows in enumerate(chunks):
            others = self._others(tile, left_out)
            near, who = self.bank_.search(rows, self.num_nn, images=count, left_out=others)
            cells = self.tiling_.cells_of(tile)
            distances[:, cells], nearest[:, cells] = (
                near.reshape(count, -1, self.num_nn),
                who.reshape(count, len(cells), -1),
            )
            if strangest:
                some = np.argsort(-distances[:, cells].mean(axis=2), kind="stable")[:, :strangest]
                own = torch.from_numpy(some).to(rows.device)
                found.append((cells[some], rows.view(count, len(cells), -1)[torch.arange(count)[:, None], own]))
        strange, features = None, None
        if strangest:
            cells, features = np.concatenate([x for x, _ in found], axis=1), torch.cat([x for _, x in found], dim=1)
            each = np.arange(count)[:, None]
            some = np.argsort(-distances[each, cells].mean(axis=2), kind="stable")[:, :strangest]
            strange, features = cells[each, some], features[each, torch.from_numpy(some).to(features.device)]
        return _Compared(distances, nearest, strange, features, None if self.cut else rows)

    def _others(self, tile: int, left_out: np.ndarray | None = None) -> np.ndarray | None:
        """(M,) bool: the rows of the bank that patches of a tile are not compared with; None: none."""
        if not self.cut.aligned:
            return left_out
        others = self.tiling_.tile_of(self.bank_.cells) != tile
        return others if left_out is None else others | left_out

    def _fewest(self, left_out: np.ndarray | None = None) -> int:
        """How many rows of the bank a patch of any tile is compared with, at least."""
        there = np.ones(len(self.bank_), dtype=bool) if left_out is None else ~left_out
        if not self.cut.aligned:
            return int(there.sum())
        return int(np.bincount(self.tiling_.tile_of(self.bank_.cells[there]), minlength=len(self.tiling_)).min())

    def _levels(self) -> np.ndarray | None:
        """(h*w,) by what squared distances are divided, so that those of all aligned tiles mean the same.

        That is how far the strangest good patch of the tile is from its bank, in the mean, over the mean of all tiles.
        """
        if not self.cut.aligned or self.held_out_ is None:
            return None
        tiles = self.tiling_.tile_of(np.arange(self.tiling_.cells))
        far = self.held_out_.distances.mean(axis=2)
        levels = np.array([far[:, tiles == tile].max(axis=1).mean() for tile in range(len(self.tiling_))])
        return (levels / levels.mean()).clip(NOTHING)[tiles].astype(np.float32) if levels.mean() > 0 else None

    def _calibrate(self) -> Calibration | None:
        """The scores of the good images that were held out; None if no threshold follows."""
        self.levels_ = self._levels()
        if self.held_out_ is None:
            return None
        scores, peaks = [], []
        for start in range(0, len(self.held_out_), self._at_a_time):
            held = self.held_out_.only(np.arange(start, min(start + self._at_a_time, len(self.held_out_))))
            patches = self._patch_scores(held.distances.mean(axis=2), held.nearest, len(held))
            strangest = held.distances.mean(axis=2)[np.arange(len(held))[:, None], held.cells].argmax(axis=1)
            rows = held.rows[np.arange(len(held)), strangest].astype(np.float32)
            nearest = held.nearest[np.arange(len(held)), held.cells[np.arange(len(held)), strangest]]
            scores.append(SCORINGS[self.scoring].image(patches) * self._factor(rows, nearest))
            peaks.append(draw_maps(patches, self.transform.size).max(axis=(1, 2)))
        scores, peaks = np.concatenate(scores), np.concatenate(peaks)
        scores[scores < NOTHING * scores.max(initial=0)] = 0
        found = Calibration(scores, peaks, self.alarm_rate)
        return found if found.look and found.pixel else None

    def _patch_scores(self, distances: np.ndarray, nearest: np.ndarray, count: int) -> np.ndarray:
        """Squared distances and the nearest rows of `count` images' patches -> (B, h, w)."""
        if self._relative:
            distances = SCORINGS[self.scoring].patch(distances, nearest, self.bank_.spacing)
        if self.levels_ is not None:
            distances = distances / self.levels_
        return distances.reshape(count, *self.grid_)

    def _factor(self, test: np.ndarray, nearest: np.ndarray) -> np.ndarray | float:
        """(B, D) strangest patch of each image, (B,) its nearest row -> (B,) by what the paper's Eq. 7 weights scores.

        It is 1 - exp(d(m_test, m*)) / sum over m in N_b(m*) of exp(d(m_test, m)), with m_test the patch of the highest
        score, m* its nearest row and N_b(m*) the b rows nearest to m*, itself among them. It takes Euclidean
        distances, as the paper does; the score that it scales stays squared. 1 without `reweight`.
        """
        if not self.reweight:
            return 1.0
        row = self.bank_.rows_at(nearest)
        _, around = self.bank_.search(torch.from_numpy(row), min(self.reweight, len(self.bank_)))
        to_row = np.linalg.norm(test - row, axis=1, keepdims=True)
        to_neighbours = np.linalg.norm(test[:, None] - self.bank_.rows_at(around), axis=2)
        return 1 - np.exp(-scipy.special.logsumexp(to_neighbours - to_row, axis=1))

    def _tell_thresholds(self, alike: bool, notes: Notes) -> None:
        """What the thresholds promise, or why there are none."""
        n, rate = len(self.train_names_), f"{self.alarm_rate:.0%} false alarms"
        name = f"{n} training image{'s' * (n > 1)} ({self.train_names_[0]}{', ...' * (n > 1)})"
        if self.calibration_ is None:
            why = "there are too few" if min(n, CALIBRATED) < calibration.FEWEST else "most are copies of others"
            why = "they are all the same" if alike else why
            notes.add(name, f"{why}, so there is no threshold for {rate}, and no verdict")
        elif self.calibration_.look.extrapolated:
            least = self.calibration_.look.least
            notes.add(name, f"the threshold for {rate} is extrapolated, it takes {least} to know one")
        notes.tell()
        if self.calibration_ is not None:
            LOGGER.info("threshold from good images: %s", self.calibration_.look)

    def predict(self, images: Images, *, mask_rule: str = "inside") -> Predictions:
        """Score images (samples, files, a folder or frames) and draw their anomaly maps. mask_rule: see `Transform`.

        Raises ModelError before `fit`, DataError without images or for one that cannot be read.
        """
        samples = as_samples(images)
        with line_of(self.progress, f"scored {images_of(samples)}") as line:
            return self._predict(samples, mask_rule, Notes(), line)

    @torch.inference_mode()
    def _predict(self, samples: Sequence[Sample], mask_rule: str, notes: Notes, line: Line) -> Predictions:
        self._fitted()
        if not samples:
            raise DataError("no images to score: the list of samples is empty")
        mask_transform = replace(self.transform, mask_rule=mask_rule)
        _, sizes = look_over(samples, self.transform, notes, learn=False)
        for sample in samples if self.category_ else ():
            if category_of(sample) not in ("", self.category_):
                notes.add(sample.where, f"is of another category than the model's, {self.category_}")
        notes.tell()
        unmasked = [sample for sample in samples if sample.mask_path is None and sample.label != 0]
        passing, start = _Passing(self.backbone.device), 0
        scores = np.empty(len(samples), dtype=np.float32)
        maps = np.empty((len(samples), *self.transform.size), dtype=np.float32)

        @torch.inference_mode()
        def judged(start: int, pictures: np.ndarray, compared: _Compared) -> list[tuple]:
            count, found = len(pictures), []
            here = slice(start, start + count)
            scores[here], maps[here], patches = self._scored(compared)
            for i, number in enumerate(range(start, start + count)):
                if self.calibration_ is None or scores[number] > self.calibration_.look.value:
                    own = None if compared.rows is None else compared.rows.view(count, -1, compared.rows.shape[1])[i]
                    rows = partial(self._rows_of, pictures[i], own)
                    found += self._places(number, pictures[i], rows, maps[number], patches[i], sizes[number])
            return found

        features = self._feature_maps(samples, "score images", notes, line, passing)
        found, last = [], _at_once(list)
        with ThreadPoolExecutor(1) as pool:
            judge = pool.submit if self.backbone.device.type == "cuda" else _at_once  # a GPU goes on meanwhile
            for chunks, count in self._images_of(self.embedding.each(features, self.tiling_)):
                compared = self._compare(chunks, count, strangest=int(self.reweight > 0))
                found += last.result()
                last = judge(judged, start, passing.images, compared)
                start += count
        found += last.result()
        remarks = self._remarks(passing.values, sizes, samples, notes)
        return Predictions(
            scores=scores,
            maps=maps,
            labels=np.array([sample.label for sample in samples]),
            masks=self._masks(samples, unmasked, mask_transform, notes),
            names=tuple(sample.name for sample in samples),
            mask_rule=mask_rule,
            weights=self.backbone.weights,
            unmasked=tuple(sample.name for sample in unmasked),
            calibration=self.calibration_,
            scoring=self.scoring,
            transform=self.transform,
            sizes=sizes,
            remarks=remarks,
            evidence=self._evidence(found),
        )

    def _fitted(self) -> MemoryBank:
        if not hasattr(self, "bank_"):
            raise ModelError("this PatchCore has no memory bank yet: call fit, or PatchCore.load")
        return self.bank_

    def _scored(self, compared: "_Compared") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images beside the bank -> their scores (B,), maps (B, H, W) and patch scores (B, h, w)."""
        count, nearest = len(compared.distances), compared.nearest[..., 0]
        patches = self._patch_scores(compared.distances.mean(axis=2), nearest, count)
        scores = SCORINGS[self.scoring].image(patches)
        if not (scores < np.finfo(np.float32).max).all():  # which FAISS gives where it finds none; NaN is not less
            raise ModelError("distances to the memory bank are not finite: its rows are damaged, fit or load it anew")
        if self.reweight:
            near = nearest[np.arange(count), compared.strange[:, 0]]
            scores = (self._factor(compared.features[:, 0].cpu().numpy(), near) * scores).astype(np.float32)
        return scores, draw_maps(patches, self.transform.size), patches

    def _rows_of(self, image: np.ndarray, rows: torch.Tensor | None, cells: Sequence[int]) -> torch.Tensor:
        """(n, D) rows of n cells of an image (H, W, 3); of all its (h*w, D) rows or, with tiles, computed anew."""
        places = self.tiling_.places[cells]
        if rows is not None:
            return rows[torch.from_numpy(places).to(rows.device)]
        found = torch.empty(len(cells), self.target_embed_dimension, device=self.backbone.device)
        tiles = self.tiling_.tile_of(cells)
        for tile in np.unique(tiles):
            here = np.flatnonzero(tiles == tile)
            maps = self._maps_of(self.tiling_.tile(image, tile)[None])
            (rows,) = self.tiling_.answers(self.embedding(maps), tile, 1)
            first = self.tiling_.ends[tile] - len(rows)
            found[here] = rows[torch.from_numpy(places[here] - first).to(rows.device)]
        return found

    def _remarks(
        self, values: np.ndarray, sizes: np.ndarray, samples: Sequence[Sample], notes: Notes
    ) -> tuple[str, ...]:
        """What sets each photograph apart from all of training, told once as well."""
        if self.appearance_ is None:
            return ("",) * len(samples)
        remarks = tuple(self.appearance_.remarks(values, sizes))
        for sample, remark in zip(samples, remarks, strict=True):
            if remark:
                notes.add(sample.where, f"{remark}, so its verdict may be wrong", "unlike training")
        notes.tell()
        return remarks

    def _places(
        self,
        number: int,
        image: np.ndarray,
        rows: Callable[[Sequence[int]], torch.Tensor],
        anomaly_map: np.ndarray,
        patches: np.ndarray,
        size: np.ndarray,
    ) -> list[tuple]:
        """The regions of one image above the threshold: its number, boxes, peak, picture; cell and (D,) of the patch.

        rows: what gives the (n, D) rows of n cells.
        """
        threshold = self.calibration_.pixel.value if self.calibration_ else None
        size, places = tuple(size.tolist()), []
        pixels = math.prod(side / whole for side, whole in zip(size, self.transform.resized(size), strict=True))
        regions = reasons.find_regions(anomaly_map, patches, threshold)
        features = rows([cell for _, cell in regions])
        for (region, cell), row in zip(regions, features, strict=True):
            box, patch = (
                reasons.in_photograph(each, self.transform, size)
                for each in (reasons.box_of(region), reasons.cell_box(cell, self.grid_, self.transform.size))
            )
            boxes, peak = (*box, round(region.sum() * pixels), *patch), anomaly_map[region].max()
            places.append((number, boxes, peak, reasons.around(image, cell, self.grid_), cell, row))
        return places

    def _evidence(self, found: list[tuple]) -> Evidence:
        """All regions, and the good patches nearest to them, where the model knows which images its rows are of."""
        known = self.photographs_ and self.bank_.images is not None
        k = min(reasons.NEAREST, self._fewest()) if known else 0
        side = reasons.picture_side(self.transform.size, self.grid_)
        images, boxes, peaks, pictures, cells, rows = zip(*found, strict=True) if found else ((),) * 6
        distances, near = np.empty((len(found), k), dtype=np.float32), np.empty((len(found), k, 2), dtype=np.int64)
        if found and k:
            distances, nearest = self._nearest(torch.stack(rows), np.array(cells), k)
            near = np.stack([self.bank_.images[nearest], self.bank_.cells[nearest]], axis=-1)
        return Evidence(
            np.array(images, dtype=np.int64),
            np.array(boxes, dtype=np.int64).reshape(-1, 9),
            np.array(peaks, dtype=np.float32),
            np.array(pictures, dtype=np.uint8).reshape(-1, side, side, 3),
            near,
            distances,
            self.train_names_,
            self.sizes_,
            self.photographs_,
            self.grid_,
            self.transform,
        )

    def _nearest(self, rows: torch.Tensor, cells: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(n, D) patches of these cells -> squared distances (n, k) and the rows of the bank (n, k)."""
        if not self.cut.aligned:
            return self.bank_.search(rows, k)
        tiles = self.tiling_.tile_of(cells)
        distances, nearest = np.empty((len(rows), k), dtype=np.float32), np.empty((len(rows), k), dtype=np.int64)
        for tile in np.unique(tiles):
            here = np.flatnonzero(tiles == tile)
            found = self.bank_.search(rows[torch.from_numpy(here)], k, left_out=self._others(tile))
            distances[here], nearest[here] = found
        return distances, nearest

    def _masks(
        self, samples: Sequence[Sample], unmasked: Sequence[Sample], transform: Transform, notes: Notes
    ) -> np.ndarray | None:
        """(N, H, W) bool, or None where images that may be defective have none; what is odd about them is noted."""
        if unmasked:
            for sample in unmasked if any(sample.label >= 0 for sample in samples) else ():  # else nobody expects masks
                notes.add(sample.where, "has no mask, so there will be no pixel metrics")
            notes.tell()
            return None
        masks = np.concatenate(list(read_batches(samples, transform.mask, self.batch_size, self.workers)))
        keeps = "'nearest'" if transform.mask_rule == "inside" else "a larger size"
        for sample, share in zip(samples, masks.mean(axis=(1, 2)), strict=True):
            if share > 0.5:
                why = "more than half of what is seen counts as defect: if that is wrong, invert the mask"
            elif share and sample.label == 0:
                why = "the mask of a good image is not empty, so pixels of it count as defect"
            elif share or sample.label == 0:
                continue
            elif not np.any(read_mask(sample.mask_path)):
                why = "the mask of a defective image is empty"
            elif not transform.sees_defect(sample):
                why = "the defect lies outside the central crop: a resize of height and width shows whole images"
            else:
                why = f"the defect is too thin for the rule {transform.mask_rule!r} at this size: {keeps} keeps more"
            notes.add(sample.mask_path, why)
        notes.tell()
        return masks

    def extend(self, images: Images) -> "PatchCore":
        """Let more good images join the bank, which grows to `percentage` of all patches so far (its share, if less).

        Greedy samplers go on where they are, among the new patches and those of the reserve. Thresholds are taken from
        old and new images, each without its own rows. With `contamination`, of the new images those that the model
        calls defective, at most such a share of them, are not learnt.

        Raises ModelError before `fit` and for models that do not record where their rows came from, DataError without
        images or for one that cannot be read.
        """
        samples = as_samples(images)
        with line_of(self.progress, f"extended by {images_of(samples)}") as line:
            return self._extend(samples, Notes(), line)

    @torch.inference_mode()
    def _extend(self, samples: Sequence[Sample], notes: Notes, line: Line) -> "PatchCore":
        unknown = self._fitted().images is None or (self._relative and self.near_ is None)
        if unknown or len(self.photographs_) < len(self.train_names_):  # the reference's, and of earlier versions
            raise ModelError("this model does not record what it takes to extend it: fit it anew, with all images")
        if self.cut.aligned:
            raise ModelError("a model of aligned tiles cannot be extended yet: fit it anew, with all images")
        if not samples:
            raise DataError("no images to add: the list of samples is empty")
        _, sizes = look_over(samples, self.transform, notes, learn=False)
        notes.tell()
        passing = _Passing(self.backbone.device, keep=True)
        rows = self._rows(samples, passing, notes, line)
        good = np.arange(len(samples))
        if self.contamination and self.calibration_:
            good = np.delete(good, self._unlikely(rows))
            rows = rows if len(good) == len(samples) else rows.only(good)
        before, old, cells = len(self.train_names_), self.bank_, math.prod(self.grid_)
        self._know(samples, good, sizes, passing, notes)
        if not len(good):
            return self

        spare, n = self.reserve_, len(self.train_names_)
        parts = [torch.from_numpy(part).to(rows.device, torch.float32) for part in (old.rows, spare.rows)]
        filled = [part for part in (*parts, rows) if len(part)]  # the reserve may be empty
        projected = coreset.project(filled, self.projection, self.seed) if self._projects else None
        share = self.percentage  # or less, of a bank that streamed into less memory than that takes
        if len(old) < int(before * cells * share):
            share = len(old) / (before * cells)
        there, room = len(spare) + len(rows), int(n * cells * share) - len(old)
        k = there if coreset.SAMPLERS[self.sampler].keeps_all else min(max(0, room), there)
        chosen, uncovered = coreset.select_more(
            self.sampler, projected, len(old), there, k, seed=self.seed, progress=line
        )
        LOGGER.info("memory bank: %d more patches, from %d more images", len(chosen), len(good))
        taken = np.concatenate([chosen, Reserve.farthest(uncovered)])
        new = taken >= len(spare)
        picked = torch.empty(len(taken), rows.shape[1], device=rows.device)
        picked[~new], picked[new] = parts[1][taken[~new]], rows.at(taken[new] - len(spare)).float()
        images, places = self.tiling_.origin(np.arange(len(rows)))
        of = np.concatenate([spare.images, before + images])[taken]
        at = np.concatenate([spare.cells, places])[taken]
        spacing = self._spacing_after(projected, len(old), len(spare), chosen, rows.shape[1], notes)
        arrays = {"images": np.concatenate([old.images, of[:k]]), "cells": np.concatenate([old.cells, at[:k]])}
        self.reserve_ = Reserve(halved(picked[k:]), of[k:], at[k:])
        self.bank_ = self._bank(torch.cat([parts[0], picked[:k]]), arrays | {"spacing": spacing})

        share = spread(len(good), max(1, round(CALIBRATED * len(good) / n)))
        held = [self._hold_out(rows.only(share), before + share)]
        if self.held_out_ and self.held_out_.distances.shape[2] == self.num_nn:
            some = spread(len(self.held_out_), CALIBRATED - len(share))
            held.insert(0, self.held_out_.only(some).closer(self.bank_, len(old)))
        self.held_out_ = HeldOut.joined([one for one in held if one])
        self.calibration_ = self._calibrate()
        self._tell_thresholds(False, notes)
        return self

    def _spacing_after(
        self, projected: torch.Tensor, old: int, spare: int, chosen: np.ndarray, dimension: int, notes: Notes
    ) -> np.ndarray | None:
        """As `_spacing_of`, after rows have been chosen behind the old ones: of a reserve, then new patches."""
        if not self._relative:
            return None
        places = torch.from_numpy(np.concatenate([np.arange(old), old + chosen])).to(projected.device)
        bank = projected[places]
        nearer = memory_bank.nearby(bank[:old], projected[old + spare :], self.seed, among=False)
        own = memory_bank.nearby(bank[old:], projected, self.seed)
        joined = np.sort(np.concatenate([self.near_, nearer], axis=1), axis=1)
        self.near_ = np.concatenate([joined[:, : own.shape[1]], own])
        return self._spacing(bank, projected, dimension, notes)

    def _unlikely(self, rows: PatchRows) -> np.ndarray:
        """Ascending numbers of the images that the model calls defective, at most a share `contamination` of them."""
        found = [self._scored(self._compare(chunks, count, strangest=1))[0] for chunks, count in self._images_of(rows)]
        scores = np.concatenate(found)
        order = np.argsort(-scores)[: int(self.contamination * len(scores))]
        return np.sort(order[scores[order] > self.calibration_.defective.value])

    def recalibrate(self, images: Images) -> "PatchCore":
        """Take the thresholds from these good images, for a new lamp or camera: the bank stays as it is.

        They replace those of training, also in what new photographs are compared with (`Predictions.remarks`).
        20 images are enough for a rate of 5 %.

        Raises ModelError before `fit`, DataError for fewer images than a threshold takes (3), or for one that cannot be
        read; then the thresholds stay as they were.
        """
        samples = as_samples(images)
        with line_of(self.progress, f"thresholds from {images_of(samples)}") as line:
            return self._recalibrate(samples, Notes(), line)

    @torch.inference_mode()
    def _recalibrate(self, samples: Sequence[Sample], notes: Notes, line: Line) -> "PatchCore":
        self._fitted()
        _, sizes = look_over(samples, self.transform, notes, learn=False)
        notes.tell()
        passing = _Passing(self.backbone.device)
        maps = self._feature_maps(samples, "score good images", notes, line, passing)
        rows = self.embedding.each(maps, self.tiling_)
        before = self.held_out_
        self.held_out_ = self._hold_out(rows, np.full(len(samples), -1))
        found = self._calibrate()
        if found is None:
            self.held_out_ = before
            raise DataError(
                f"{len(samples)} images give no threshold: give at least {calibration.FEWEST} good ones that are no "
                f"training images, better {math.ceil(1 / self.alarm_rate) - 1} for a rate of {self.alarm_rate:.0%}"
            )
        self.calibration_, self.appearance_ = found, Appearance(passing.values, sizes)
        LOGGER.info("threshold from good images: %s", found.look)
        return self

    def save(self, folder: Path | str) -> None:
        """Write a model folder, in the reference's format and with what it lacks; one that was there is replaced.

        Raises ModelError before `fit`, ResultsError if the folder cannot be written or holds anything else.
        """
        model_folder.save_members([self], folder)

    @classmethod
    def load(
        cls,
        folder: Path | str,
        weights: str | Path | None = None,
        resize: int | tuple[int, int] | None = None,
        *,
        scoring: str | None = None,
        bits: int | None = None,
        device: str = "cpu",
        prefix: str = "",
        progress: bool = True,
    ) -> "PatchCore":
        """Open a model folder of the kit's or of the reference's.

        weights: as for `load_backbone`; a model made with random weights gets the same again by itself.
        resize: for the reference's folders, which do not record it: by default 8/7 of the image size, the rule of
            its published models (256 for 224, 366 for 320).
        scoring: another than the model's; its thresholds are those of its own and go. "density" needs the spacing of
            the rows, which is stored with models made for it, and found anew where the bank has all training patches.
        bits: for folders that do not record how many bits images of more than 8 have.
        prefix: a member's, in the folder of an ensemble.

        Raises ModelError if the folder is no model, was made with other weights or for another `resize` or
        `bits`, or lacks the spacing that is asked for, and WeightsError if the network's weights are not found.
        """
        return model_folder.open_model(cls, folder, weights, resize, scoring, bits, device, prefix, progress)


@dataclass(frozen=True, eq=False)
class _Compared:
    """B images beside the bank, of h*w patches each.

    distances, nearest: (B, h*w, k) squared, and the rows that they are to. strange: (B, s) the strangest patches, if
    asked for, features: (B, s, D) their rows. rows: (B*h*w, D), of all patches, as long as the next ones have not come;
    None with tiles.
    """

    distances: np.ndarray
    nearest: np.ndarray
    strange: np.ndarray | None
    features: torch.Tensor | None
    rows: torch.Tensor | None


def _at_once(function: Callable[..., list], *values: object) -> Future[list]:
    """As an executor's `submit`, here and now."""
    done = Future()
    done.set_result(function(*values))
    return done


class _Passing:
    """What is learnt of images on their way to the network, batch by batch.

    images: those of the last batch. values: (N, 2) of all, see `appearance.measure`. keep: JPEGs of all as well, files.
    """

    def __init__(self, device: torch.device, *, keep: bool = False) -> None:
        self.device, self.keep, self.images = device, keep, np.empty(0)
        self._files: list[Future[list[bytes]]] = []
        self._pool = ThreadPoolExecutor(1)  # while the network has the next batch
        self._values: list[np.ndarray] = []

    def __call__(self, images: np.ndarray) -> None:
        self.images = images
        self._values.append(measure(images, self.device))
        if self.keep:
            self._files.append(self._pool.submit(reasons.packed, images))
            wait(self._files[:-WAITING])  # or images that wait would fill the memory

    @property
    def files(self) -> list[bytes]:
        return [file for batch in self._files for file in batch.result()]

    @property
    def values(self) -> np.ndarray:
        return np.concatenate(self._values)
