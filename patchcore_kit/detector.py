"""PatchCore: fit on good images, predict scores and anomaly maps, save and load; alone or as an ensemble.

    fit       images -> feature maps -> patch rows -> coreset -> memory bank -> thresholds
    predict   images -> feature maps -> patch rows -> nearest rows of the bank -> scores and maps -> verdicts

Source: Roth et al. 2022, "Towards Total Recall in Industrial Anomaly Detection". Scores are by default the reference
implementation's (`scoring="distance"`): squared distances d, the highest patch of an image is its score.

With `scoring="density"` a patch's score is d / (t + 3 mean t), where t tells how far apart good patches lie around its
nearest row (`memory_bank.spacing`): where they are all alike a small distance counts, where they vary it takes a larger
one. An image's score is the largest mean of 3x3 neighbouring patches, for a defect is seldom seen by one patch alone.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import scipy.ndimage
import scipy.special
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from patchcore_kit import calibration, coreset, memory_bank, reference_format
from patchcore_kit.backbones import Backbone, load_backbone
from patchcore_kit.calibration import Calibration
from patchcore_kit.datasets import Sample, as_samples
from patchcore_kit.errors import DataError, ModelError, SettingsError, WeightsError, whole_number
from patchcore_kit.files import user_path, writing
from patchcore_kit.image_cache import ImageCache
from patchcore_kit.images import Frame
from patchcore_kit.masks import read_mask
from patchcore_kit.memory_bank import MemoryBank
from patchcore_kit.notes import Notes
from patchcore_kit.patches import PatchEmbedding, PatchRows
from patchcore_kit.predictions import Predictions
from patchcore_kit.transforms import Transform, look_over, normalise, read_batches

LOGGER = logging.getLogger(__name__)

Images = Path | str | Frame | Iterable[Sample | Path | str | Frame]
"""Samples, image files, a folder of them, or frames in memory: whatever `datasets.as_samples` takes."""

SCORINGS = ("distance", "density")
SMOOTHING = 4.0  # sigma of the Gaussian over an anomaly map, in pixels
TYPICAL = 3  # times the mean spacing that is added to each row's: else a part's most uniform places drown the rest
WINDOW = 3  # patches down and across whose mean makes the score of an image
CALIBRATED = 100  # training images that thresholds are taken from, spread over all of them
NOTHING = 1e-6  # times what is usual: distances that are rounding


class PatchCore:
    """A memory bank of what good patches look like, and how far others are from it.

    sampler, percentage, projection: see `coreset.select`. resize, imagesize: see `Transform`.
    bits: that images of more than 8 bits have; None: as many as the largest value of the training images needs.
    search, storage: see `MemoryBank`; with "float16" the feature maps of the training images are kept so, too.
    pretrain_embed_dimension, target_embed_dimension, patchsize: see `PatchEmbedding`.
    num_nn: neighbours whose squared distances are averaged to a patch's score.
    scoring: "distance", the reference's, or "density", relative to how far apart good patches lie (see the module).
    alarm_rate: share of good images that may be called anything but good; sets the thresholds.
    reweight: number b of neighbours for the paper's Eq. 7, which lowers the score of an image whose nearest row of
        the bank lies in a dense part of it; 0 leaves scores as they are, as the reference does.
    seed: draws the projection and the coreset's start.
    batch_size, workers: images at a time, and threads that read them (None: one per core).
    cache: where images are kept as the network takes them, or None.

    After `fit`: `bank_` (a MemoryBank), `grid_` (patches down and across), `train_names_`, `category_` (the name of
    the category that the images are of, "" where they are of none), `calibration_` (scores of good images and the
    thresholds that follow, None where there can be none), and `transform` knows the bits of the images.
    Raises SettingsError for settings that cannot work.
    """

    def __init__(
        self,
        backbone: Backbone,
        sampler: str = "approx_greedy_coreset",
        percentage: float = 0.1,
        resize: int | tuple[int, int] = 256,
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
        search: str = "fast",
        storage: str = "float32",
        bits: int | None = None,
        batch_size: int = 8,
        workers: int | None = None,
        cache: ImageCache | None = None,
        progress: bool = True,
    ):
        coreset.check(sampler, percentage, projection)
        memory_bank.check(search, storage)
        calibration.check(alarm_rate)
        if scoring not in SCORINGS:
            raise SettingsError(f"unknown scoring {scoring!r}: there are {', '.join(SCORINGS)}")
        if reweight and scoring != "distance":
            raise SettingsError(f"reweight is {reweight}, a rule for scoring='distance': give 0, or that scoring")
        if not isinstance(backbone, Backbone):
            raise SettingsError(f"backbone is {backbone!r}: give a network, as load_backbone makes it")
        if reweight == 1:
            raise SettingsError("reweight is 1, which makes all scores 0: give 0 for none or at least 2 neighbours")
        self.transform = Transform(resize, imagesize, bits=bits)  # these two check their settings
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
        self.resize = self.transform.resize
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

    def fit(self, images: Images) -> "PatchCore":
        """Fill the memory bank from good images: samples, image files, a folder of them, or frames (`as_samples`).

        Raises DataError without images or for one that cannot be read, SettingsError if the sampler keeps nothing.
        """
        return self._fit(as_samples(images), Notes())

    @torch.inference_mode()
    def _fit(self, samples: Sequence[Sample], notes: Notes) -> "PatchCore":
        if not samples:
            raise DataError("no images to embed: the list of samples is empty")
        self.transform = look_over(samples, replace(self.transform, bits=self.bits), notes, learn=True)
        notes.tell()
        rows = PatchRows(self.embedding, self._feature_maps(samples, "embed training images", notes), self.storage)
        self.train_names_ = tuple(sample.name for sample in samples)
        kept, spacing = self._select(rows, notes)
        LOGGER.info("memory bank: %d of %d patches from %d images", len(kept), len(rows), len(samples))
        self.grid_, cells = rows.grid, math.prod(rows.grid)
        self.category_ = category_of(samples[0])
        alike, images = len(samples) > 1 and rows.alike(), spread(len(samples), CALIBRATED)
        bank, rows = rows.at(kept), rows.only(images)  # the other maps' memory is free from here on
        self.bank_ = self._bank(bank, {"images": kept // cells, "cells": kept % cells, "spacing": spacing})
        self.calibration_ = None if alike else self._calibrate(rows, images)
        self._tell_thresholds(len(images), alike, notes)
        return self

    def _select(self, rows: PatchRows, notes: Notes) -> tuple[np.ndarray, np.ndarray | None]:
        """Indices (M,) of the rows to keep, and their spacing (M,) where scores are relative to it."""
        projected = None
        if self.scoring == "density" or "greedy" in self.sampler:
            projected = coreset.project(rows, self.projection, self.seed)
        kept = coreset.select(
            rows,
            self.sampler,
            self.percentage,
            projection=self.projection,
            seed=self.seed,
            progress=self.progress,
            projected=projected,
        )
        if self.scoring != "density":
            return kept, None
        return kept, self._spacing(projected, kept, rows.shape[1], notes)

    def _spacing(self, projected: torch.Tensor, kept: np.ndarray, dimension: int, notes: Notes) -> np.ndarray:
        """(M,) spacing of the rows that are kept, on the scale of rows of `dimension` values."""
        spacing = memory_bank.spacing(projected, kept, self.seed)
        variance = float(projected.square().sum(1).mean())  # they are centred
        if spacing.mean() <= NOTHING * variance:
            notes.add(self.train_names_[0], "all other training images are the same, so scores are plain distances")
            spacing[:] = variance or 1.0
        return spacing * coreset.shrinkage(dimension, projected.shape[1])

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
        )

    def _calibrate(self, rows: PatchRows, images: np.ndarray) -> Calibration | None:
        """Score these training images, each without its own rows of the bank; None if no threshold follows."""
        others = len(self.bank_) - np.bincount(self.bank_.images, minlength=images.max() + 1)[images]
        each = (one for batch in rows for one in batch.split(math.prod(self.grid_)))
        scored = [
            self._score(one, 1, without=image)
            for image, one, there in zip(images, each, others, strict=True)
            if there >= self.num_nn
        ]
        scores, peaks = (np.array([one[part].max() for one in scored]) for part in (0, 1))
        scores[scores < NOTHING * scores.max(initial=0)] = 0
        found = Calibration(scores, peaks, self.alarm_rate)
        return found if found.look and found.pixel else None

    def _tell_thresholds(self, scored: int, alike: bool, notes: Notes) -> None:
        """What the thresholds promise, or why there are none."""
        n, rate = len(self.train_names_), f"{self.alarm_rate:.0%} false alarms"
        name = f"{n} training image{'s' * (n > 1)} ({self.train_names_[0]}{', ...' * (n > 1)})"
        if self.calibration_ is None:
            why = "there are too few" if scored < calibration.FEWEST else "most are copies of others"
            why = "they are all the same" if alike else why
            notes.add(name, f"{why}, so there is no threshold for {rate}, and no verdict")
        elif self.calibration_.look.extrapolated:
            least = self.calibration_.look.least
            notes.add(name, f"the threshold for {rate} is extrapolated, it takes {least} to know one")
        notes.tell()
        if self.calibration_ is not None:
            LOGGER.info("threshold from good images: %s", self.calibration_.look)

    def _score(self, rows: torch.Tensor, count: int, without: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(B*H*W, D) rows of `count` images -> their scores (B,) and maps (B, height, width).

        without: a training image whose rows of the bank are left out.
        """
        distances, nearest = self.bank_.search(rows, self.num_nn, images=count, without=without)
        patches, nearest = distances.mean(axis=1), nearest[:, 0]
        if self.scoring == "density":
            patches = relative(patches, nearest, self.bank_.spacing)
        patches = patches.reshape(count, *self.grid_)
        # bilinear up-sampling and smoothing at once; with torch, for numpy's threads would still spin for a while
        # afterwards, and slow the network down
        down, across = (map_operator(n, m) for n, m in zip(self.transform.size, self.grid_, strict=True))
        return self._image_scores(patches, rows, nearest), (down @ torch.from_numpy(patches) @ across.T).numpy()

    def _feature_maps(self, samples: Sequence[Sample], task: str, notes: Notes) -> Iterator[list[torch.Tensor]]:
        """The feature maps of all images, batch by batch, while threads read the next ones."""
        if self.cache:
            read = partial(self.cache.image, transform=self.transform, notes=notes)
        else:
            read = partial(self.transform.image, notes=notes)
        with tqdm(total=len(samples), desc=task, leave=False, disable=not self.progress) as bar:
            for images in read_batches(samples, read, self.batch_size, self.workers):
                yield self.backbone(normalise(images, self.backbone.device))
                bar.update(len(images))
        notes.tell()

    def predict(self, images: Images, *, mask_rule: str = "inside") -> Predictions:
        """Score images (samples, files, a folder or frames) and draw their anomaly maps. mask_rule: see `Transform`.

        Raises ModelError before `fit`, DataError without images or for one that cannot be read.
        """
        return self._predict(as_samples(images), mask_rule, Notes())

    @torch.inference_mode()
    def _predict(self, samples: Sequence[Sample], mask_rule: str, notes: Notes) -> Predictions:
        if not hasattr(self, "bank_"):
            raise ModelError("this PatchCore has no memory bank yet: call fit, or PatchCore.load")
        if not samples:
            raise DataError("no images to score: the list of samples is empty")
        mask_transform = replace(self.transform, mask_rule=mask_rule)
        look_over(samples, self.transform, notes, learn=False)
        for sample in samples if self.category_ else ():
            if category_of(sample) not in ("", self.category_):
                notes.add(sample.where, f"is of another category than the model's, {self.category_}")
        notes.tell()
        unmasked = [sample for sample in samples if sample.mask_path is None and sample.label != 0]
        scored = [
            self._score(rows, len(rows) // math.prod(self.grid_))
            for rows in self.embedding.each(self._feature_maps(samples, "score images", notes))
        ]
        scores, maps = (np.concatenate(parts) for parts in zip(*scored, strict=True))
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
        )

    def _image_scores(self, patches: np.ndarray, rows: torch.Tensor, nearest: np.ndarray) -> np.ndarray:
        """(B, H, W) patch scores -> (B,): the highest, or of relative ones the highest mean of 3x3.

        The highest is re-weighted by the paper's Eq. 7 if asked for.

        The factor is 1 - exp(d(m_test, m*)) / sum over m in N_b(m*) of exp(d(m_test, m)), with m_test the patch of
        the highest score, m* its nearest row and N_b(m*) the b rows nearest to m*, itself among them. It takes
        Euclidean distances, as the paper does; the score that it scales stays squared.
        """
        if self.scoring == "density":
            return largest_mean(patches)
        flat = patches.reshape(len(patches), -1)
        highest = flat.max(axis=1)
        if not self.reweight:
            return highest
        strangest = flat.argmax(axis=1) + np.arange(len(flat)) * flat.shape[1]
        test = rows[torch.from_numpy(strangest).to(rows.device)].cpu().numpy()
        row = self.bank_.rows_at(nearest[strangest])
        _, around = self.bank_.search(torch.from_numpy(row), min(self.reweight, len(self.bank_)))
        to_row = np.linalg.norm(test - row, axis=1, keepdims=True)
        to_neighbours = np.linalg.norm(test[:, None] - self.bank_.rows_at(around), axis=2)
        factor = 1 - np.exp(-scipy.special.logsumexp(to_neighbours - to_row, axis=1))
        return (factor * highest).astype(np.float32)

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

    def save(self, folder: Path | str) -> None:
        """Write a model folder, in the reference's format and with what it lacks; one that was there is replaced.

        Raises ModelError before `fit`, ResultsError if the folder cannot be written or holds anything else.
        """
        _save([self], folder)

    def _saved(self, layers_as: type) -> reference_format.SavedModel:
        if not hasattr(self, "bank_"):
            raise ModelError("this PatchCore has no memory bank to save yet: call fit first")
        params = {
            "backbone.name": self.backbone.name,
            "layers_to_extract_from": layers_as(self.backbone.layers),
            "input_shape": (3, *self.transform.size),
            "pretrain_embed_dimension": self.pretrain_embed_dimension,
            "target_embed_dimension": self.target_embed_dimension,
            "patchsize": self.patchsize,
            "patchstride": 1,
            "anomaly_scorer_num_nn": self.num_nn,
        }
        extras = {
            "resize": self.resize,
            "sampler": self.sampler,
            "percentage": self.percentage,
            "projection": self.projection,
            "reweight": self.reweight,
            "scoring": self.scoring,
            "alarm_rate": self.alarm_rate,
            "search": self.search,
            "storage": self.storage,
            "precision": self.backbone.precision,
            "seed": self.seed,
            "grid": self.grid_,
            "weights": self.backbone.weights,
            "weights_seed": self.backbone.seed,
            "weights_fingerprint": self.backbone.fingerprint,
            "training_images": self.train_names_,
            "category": self.category_,
            "bits": self.transform.bits,
        }
        arrays = {name: getattr(self.bank_, name) for name in reference_format.OF_ROWS}
        arrays = {name: values for name, values in arrays.items() if values is not None}
        if self.calibration_ is not None:
            arrays |= self.calibration_.arrays()
        return reference_format.SavedModel(params, self.bank_.rows, extras, arrays)

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
        if not prefix and reference_format.prefixes(folder) != [""]:
            raise ModelError(f"{folder} holds an ensemble: open it with PatchCoreEnsemble.load or load_detector")
        saved = reference_format.read_model(folder, prefix)
        params, extras = saved.params, saved.extras
        made_for = extras.get("scoring", "distance")
        transform = _transform(folder, params, extras, resize, bits)
        if weights is None and extras.get("weights") == "random":
            weights = "random"
        try:
            backbone = load_backbone(
                params["backbone.name"],
                tuple(params["layers_to_extract_from"]),
                weights,
                device,
                extras.get("weights_seed", 0),
                precision=extras.get("precision", "float32"),
            )
        except WeightsError as error:
            raise WeightsError(f"the model in {folder} needs the weights it was made with: {error.needed}") from None
        if extras and backbone.fingerprint != extras["weights_fingerprint"]:
            raise ModelError(
                f"the model in {folder} was trained with other weights ({extras['weights']}) than those "
                f"found for {backbone.name} ({backbone.weights}): give it the same"
            )
        detector = cls(
            backbone,
            extras.get("sampler", "identity"),
            extras.get("percentage", 1),
            transform.resize,
            transform.imagesize,
            params["pretrain_embed_dimension"],
            params["target_embed_dimension"],
            params["patchsize"],
            params["anomaly_scorer_num_nn"],
            extras.get("seed", 0),
            projection=extras.get("projection"),
            reweight=extras.get("reweight", 0),
            scoring=scoring or made_for,
            alarm_rate=extras.get("alarm_rate", 0.05),
            search=extras.get("search", "fast"),
            storage=extras.get("storage", "float32"),
            bits=bits,
            progress=progress,
        )
        detector.transform = transform
        detector.grid_ = tuple(extras["grid"]) if extras else detector._find_grid()
        detector.train_names_ = tuple(extras.get("training_images", ()))
        named = user_path(folder).name  # the reference's and the scripts' folders are called mvtec_<category>
        detector.category_ = extras.get("category", named.removeprefix("mvtec_") if named.startswith("mvtec_") else "")
        detector.calibration_ = Calibration.of(saved.arrays) if detector.scoring == made_for else None
        if detector.calibration_ is None:
            LOGGER.info("%s has no threshold from good images for %s scores: no verdicts", folder, detector.scoring)
        spacing = {"spacing": detector._stored_spacing(folder, saved)} if detector.scoring == "density" else {}
        detector.bank_ = detector._bank(saved.rows, saved.arrays | spacing)
        return detector

    def _stored_spacing(self, folder: Path | str, saved: reference_format.SavedModel) -> np.ndarray:
        if "spacing" in saved.arrays:
            return saved.arrays["spacing"]
        if saved.extras.get("sampler") != "identity":
            raise ModelError(
                f"the model in {folder} does not know how far apart good patches lie: density scores need a model that "
                "was trained with scoring='density', or one whose bank has all patches (sampler identity)"
            )
        rows = torch.from_numpy(saved.rows)
        projected = coreset.project(rows, self.projection, self.seed)
        return self._spacing(projected, np.arange(len(rows)), rows.shape[1], Notes())

    def _find_grid(self) -> tuple[int, int]:
        """Run the network once on an empty image of the right size."""
        return self.embedding.grid(self.backbone(torch.zeros(1, 3, *self.transform.size, device=self.backbone.device)))


def load_transform(
    folder: Path | str, resize: int | tuple[int, int] | None = None, *, bits: int | None = None, prefix: str = ""
) -> Transform:
    """How a saved model sees images, without opening the rest of it.

    resize, bits, prefix: as for `PatchCore.load`; without a prefix, an ensemble's first member.
    Raises ModelError if the folder is no model, or was made for another `resize` or `bits`.
    """
    params, extras = reference_format.read_settings(folder, prefix or reference_format.prefixes(folder)[0])
    return _transform(folder, params, extras, resize, bits)


def _transform(
    folder: Path | str, params: dict, extras: dict, resize: int | tuple[int, int] | None, bits: int | None
) -> Transform:
    size = tuple(params["input_shape"][1:])
    stored, resize = extras.get("resize"), tuple(resize) if isinstance(resize, list) else resize
    if stored and resize and resize != stored:
        raise ModelError(
            f"the model in {folder} was trained with resize {stored}, not {resize}: use the same, or train another"
        )
    if bits not in (None, extras.get("bits") or bits):
        raise ModelError(f"the model in {folder} was trained with {extras['bits']} bits, not {bits}: use the same")
    resize = stored or resize or (round(size[0] * 8 / 7) if size[0] == size[1] else size)
    transform = Transform(resize, size[1], bits=extras.get("bits") or bits)
    if transform.size != size:
        raise ModelError(
            f"the model in {folder} was trained on images of {size[0]}x{size[1]} pixels, resize={resize} "
            f"makes them {'x'.join(map(str, transform.size))}: give what it was trained with"
        )
    return transform


class PatchCoreEnsemble:
    """Several PatchCores, fitted on the same images, whose scores and maps are averaged on one scale.

    Members whose scores are distances are divided by the mean squared distance of their bank's rows to their mean.
    Where others are among them all are divided by their thresholds from good images: the index is averaged. Both come
    from training images alone: predictions do not depend on what else is in the test set. With `scaling="test-set"`
    each member is brought to 0..1 over the test set instead, which is what the reference does; it needs a test set to
    make sense, and has no thresholds from good images.

    Raises SettingsError without members, for members of different image sizes and for an unknown scaling.
    """

    SCALINGS = ("bank", "test-set")

    def __init__(self, members: Sequence[PatchCore], *, scaling: str = "bank"):
        if not members or scaling not in self.SCALINGS:
            raise SettingsError(
                f"{len(members)} members and scaling {scaling!r}: give at least one member and one of "
                f"{', '.join(self.SCALINGS)}"
            )
        if len({member.transform.size for member in members}) > 1:
            raise SettingsError(
                "the members of an ensemble see images of different sizes: give all the same resize and imagesize"
            )
        self.members = tuple(members)
        self.scaling = scaling

    @property
    def transform(self) -> Transform:
        """How the members see images."""
        return self.members[0].transform

    def fit(self, images: Images) -> "PatchCoreEnsemble":
        """Fit every member. Raises as `PatchCore.fit`."""
        samples = as_samples(images)
        notes = Notes()
        for member in self.members:
            member._fit(samples, notes)
        return self

    def predict(self, images: Images, *, mask_rule: str = "inside") -> Predictions:
        """Average the members' scores and maps, each on its scale. Raises as `PatchCore.predict`."""
        samples, notes, scores, maps = as_samples(images), Notes(), 0, 0
        scales = None if self.scaling == "test-set" else self._scales()
        for i, member in enumerate(self.members):
            one = member._predict(samples, mask_rule, notes)
            of_scores, of_maps = (one.scores, one.maps) if scales is None else scales[i]
            scores = scores + _scaled(one.scores, of_scores) / len(self.members)
            maps = maps + _scaled(one.maps, of_maps) / len(self.members)
        weights = ", ".join(member.backbone.weights for member in self.members)
        scoring = "distance" if all(member.scoring == "distance" for member in self.members) else "index"
        known = {"calibration": self._calibration(scales), "scoring": scoring}
        return replace(one, scores=scores, maps=maps, weights=weights, **known)

    def _scales(self) -> list[tuple[float, float]]:
        """What each member's scores and maps are divided by."""
        if all(member.scoring == "distance" for member in self.members):
            return [(member.bank_.scale, member.bank_.scale) for member in self.members]
        known = [member.calibration_ for member in self.members]
        if all(known):
            return [(one.look.value, one.pixel.value) for one in known]
        if all(member.scoring == "density" for member in self.members):
            return [(1.0, 1.0)] * len(known)  # relative, all of them
        raise SettingsError(
            "members of different scoring are averaged by their thresholds from good images, and one has none: fit "
            "them on 3 images at least"
        )

    def _calibration(self, scales: list[tuple[float, float]] | None) -> Calibration | None:
        """Of the members' averages on the same images; the peak of an average is at most the average of the peaks."""
        known = [member.calibration_ for member in self.members]
        if scales is None or not all(known) or len({(len(one.scores), one.alarm_rate) for one in known}) > 1:
            return None
        scores = np.mean([one.scores / scale for one, (scale, _) in zip(known, scales, strict=True)], axis=0)
        peaks = np.mean([one.peaks / scale for one, (_, scale) in zip(known, scales, strict=True)], axis=0)
        return Calibration(scores, peaks, known[0].alarm_rate)

    def save(self, folder: Path | str) -> None:
        """Write all members into one model folder. Raises as `PatchCore.save`."""
        _save(self.members, folder)

    @classmethod
    def load(
        cls,
        folder: Path | str,
        weights: str | Path | Sequence[str | Path] | None = None,
        resize: int | tuple[int, int] | None = None,
        *,
        bits: int | None = None,
        device: str = "cpu",
        scaling: str = "bank",
        progress: bool = True,
    ) -> "PatchCoreEnsemble":
        """Open an ensemble's folder; weights: for all members, or one for each in order. Raises as `PatchCore.load`."""
        prefixes = reference_format.prefixes(folder)
        if isinstance(weights, str | Path):
            weights = [weights] * len(prefixes)
        if weights and len(weights) != len(prefixes):
            raise SettingsError(f"{len(weights)} weights for the {len(prefixes)} members in {folder}: one for each")
        members = [
            PatchCore.load(folder, w, resize, bits=bits, device=device, prefix=prefix, progress=progress)
            for prefix, w in zip(prefixes, weights or [None] * len(prefixes), strict=True)
        ]
        return cls(members, scaling=scaling)


def load_detector(
    folder: Path | str,
    weights: str | Path | Sequence[str | Path] | None = None,
    resize: int | tuple[int, int] | None = None,
    *,
    bits: int | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> PatchCore | PatchCoreEnsemble:
    """Open a model folder, whether it holds one PatchCore or an ensemble. Raises as `PatchCore.load`."""
    ensemble = PatchCoreEnsemble.load(folder, weights, resize, bits=bits, device=device, progress=progress)
    return ensemble.members[0] if len(ensemble.members) == 1 else ensemble


def _save(members: Sequence[PatchCore], folder: Path | str) -> None:
    folder = user_path(folder)
    # the reference stores a tuple for one backbone and a list for several
    saved = [member._saved(tuple if len(members) == 1 else list) for member in members]
    reference_format.check_replaceable(folder)
    with writing(folder) as temporary:
        temporary.mkdir()
        for i, model in enumerate(saved):
            reference_format.write_model(temporary, model, reference_format.ensemble_prefix(i, len(saved)))


def _scaled(values: np.ndarray, by: float | np.ndarray) -> np.ndarray:
    """Values over a number, or brought to 0..1 over an array of them."""
    if isinstance(by, float):
        return values / np.float32(by)
    low, high = by.min(), by.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def category_of(sample: Sample) -> str:
    """The name of the category that `load_category` has found a sample in, "" of any other sample."""
    split, *below = sample.name.split("/")
    if sample.path is None or not below or split not in ("train", "test"):
        return ""
    return sample.path.parents[len(below)].name if sample.path.as_posix().endswith(f"/{sample.name}") else ""


def spread(n: int, most: int) -> np.ndarray:
    """Ascending indices of at most so many of n things, spread evenly over them."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))


def relative(distances: np.ndarray, nearest: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """(Q,) squared distances, (Q,) the rows that they are to, (M,) the rows' spacing -> (Q,) d / (t + 3 mean t)."""
    return distances / (spacing[nearest] + TYPICAL * spacing.mean())


def largest_mean(patches: np.ndarray) -> np.ndarray:
    """(B, H, W) patch scores -> (B,): the largest mean of 3x3 neighbours, or of as many as there are."""
    window = [min(WINDOW, side) for side in patches.shape[1:]]
    return F.avg_pool2d(torch.from_numpy(patches)[:, None], window, stride=1).amax((1, 2, 3)).numpy()


@lru_cache(maxsize=8)
def map_operator(pixels: int, cells: int) -> torch.Tensor:
    """(pixels, cells): bilinear up-sampling along one axis, then the Gaussian, as one matrix.

    Both are linear and work on rows and columns alike, so a map is `down @ patches @ across.T`. The borders are those
    of the reference: torch's half-pixel bilinear and scipy's mirrored edges.
    """
    up = F.interpolate(torch.eye(cells, dtype=torch.float64)[None], size=pixels, mode="linear", align_corners=False)
    return torch.from_numpy(scipy.ndimage.gaussian_filter1d(up[0].T.numpy(), SMOOTHING, axis=0).astype(np.float32))
