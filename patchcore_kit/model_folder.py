"""A detector's model folder: what is written of it, and how it is opened again (`reference_format` has the files)."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from patchcore_kit import coreset, reasons, reference_format
from patchcore_kit.appearance import Appearance
from patchcore_kit.backbones import find_device, load_backbone
from patchcore_kit.calibration import Calibration
from patchcore_kit.errors import DataError, ModelError, SettingsError, WeightsError, check_choice, short
from patchcore_kit.files import user_path, writing
from patchcore_kit.growth import HeldOut, Reserve
from patchcore_kit.notes import Notes
from patchcore_kit.scoring import SCORINGS
from patchcore_kit.transforms import Transform

LOGGER = logging.getLogger(__name__)

PatchCore = TypeVar("PatchCore")  # the detector, whose module imports this one


def save_members(members: Sequence[PatchCore], folder: Path | str) -> None:
    """Write a detector's folder, or an ensemble's."""
    folder = user_path(folder)
    # the reference stores a tuple for one backbone and a list for several
    saved = [_saved(member, tuple if len(members) == 1 else list) for member in members]
    reference_format.check_replaceable(folder)
    with writing(folder, reference_format.check_replaceable) as temporary:
        temporary.mkdir()
        for i, model in enumerate(saved):
            reference_format.write_model(temporary, model, reference_format.ensemble_prefix(i, len(saved)))


def _saved(detector: PatchCore, layers_as: type) -> reference_format.SavedModel:
    if not hasattr(detector, "bank_"):
        raise ModelError("this PatchCore has no memory bank to save yet: call fit first")
    params = {
        "backbone.name": detector.backbone.name,
        "layers_to_extract_from": layers_as(detector.backbone.layers),
        "input_shape": (3, *detector.transform.size),
        "pretrain_embed_dimension": detector.pretrain_embed_dimension,
        "target_embed_dimension": detector.target_embed_dimension,
        "patchsize": detector.patchsize,
        "patchstride": 1,
        "anomaly_scorer_num_nn": detector.num_nn,
    }
    extras = {
        "resize": detector.transform.resize,
        "tile": detector.cut.tile,
        "tiles": detector.cut.tiles,
        "overlap": detector.cut.overlap,
        "aligned": detector.cut.aligned,
        "sampler": detector.sampler,
        "percentage": detector.percentage,
        "projection": detector.projection,
        "reweight": detector.reweight,
        "scoring": detector.scoring,
        "alarm_rate": detector.alarm_rate,
        "contamination": detector.contamination,
        "search": detector.search,
        "storage": detector.storage,
        "precision": detector.backbone.precision,
        "seed": detector.seed,
        "grid": detector.grid_,
        "weights": detector.backbone.weights,
        "weights_seed": detector.backbone.seed,
        "weights_fingerprint": detector.backbone.fingerprint,
        "training_images": detector.train_names_,
        "suspects": detector.suspects_,
        "category": detector.category_,
        "bits": detector.transform.bits,
    }
    arrays = {name: getattr(detector.bank_, name) for name in ("images", "cells", "spacing")} | {"near": detector.near_}
    arrays = {name: values for name, values in arrays.items() if values is not None}
    for known in (detector.calibration_, detector.appearance_, detector.held_out_, detector.reserve_):
        arrays |= {} if known is None else known.arrays()
    arrays |= detector.bank_.prepared | {"training_sizes": detector.sizes_} | reasons.bundled(detector.photographs_)
    return reference_format.SavedModel(params, detector.bank_.stored, extras, arrays, detector.bank_.lists)


def open_model(
    kind: type[PatchCore],
    folder: Path | str,
    weights: str | Path | None,
    resize: int | tuple[int, int] | None,
    scoring: str | None,
    bits: int | None,
    device: str,
    prefix: str,
    progress: bool,
) -> PatchCore:
    """A detector of that kind from a model folder, as `PatchCore.load` says."""
    if not prefix and reference_format.prefixes(folder) != [""]:
        raise ModelError(f"{folder} holds an ensemble: open it with PatchCoreEnsemble.load or load_detector")
    device = find_device(device)
    if scoring is not None:
        check_choice("scoring", scoring, SCORINGS)
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
    except SettingsError as error:
        raise ModelError(f"the model in {folder} cannot be opened ({short(error)})") from None
    if extras and backbone.fingerprint != extras["weights_fingerprint"]:
        raise ModelError(
            f"the model in {folder} was trained with other weights ({extras['weights']}) than those "
            f"found for {backbone.name} ({backbone.weights}): give it the same"
        )
    with _usable(folder):
        detector = kind(
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
            contamination=extras.get("contamination", 0.0),
            search=extras.get("search", "fast"),
            storage=extras.get("storage", "float32"),
            bits=bits,
            tile=extras.get("tile"),
            tiles=extras.get("tiles"),
            overlap=extras.get("overlap"),
            aligned=extras.get("aligned", False),
            progress=progress,
        )
        detector.transform = transform
        detector.tiling_ = detector._tiling()
        detector.grid_ = detector.tiling_.grid
        if extras and tuple(extras["grid"]) != detector.grid_:
            raise ValueError(f"its grid is {extras['grid']}, but {backbone.name} makes {list(detector.grid_)}")
        detector._forget()
        _remember(detector, saved)
        named = user_path(folder).name  # the reference's and the scripts' folders are called mvtec_<category>
        detector.category_ = extras.get("category", named.removeprefix("mvtec_") if named.startswith("mvtec_") else "")
        detector.calibration_ = Calibration.of(saved.arrays) if detector.scoring == made_for else None
        detector.held_out_ = HeldOut.of(saved.arrays) if detector.scoring == made_for else None
        detector.levels_ = detector._levels()
        if detector.calibration_ is None:
            LOGGER.info("%s has no threshold from good images for %s scores: no verdicts", folder, detector.scoring)
        spacing = {"spacing": _stored_spacing(detector, folder, saved)} if detector._relative else {}
        lists = dict(zip(["search_lists"], saved.lists, strict=False))  # small banks have none
        detector.bank_ = detector._bank(saved.rows, saved.arrays | lists | spacing)
    return detector


def _remember(detector: PatchCore, saved: reference_format.SavedModel) -> None:
    """What a model folder says of the training images, as far as it does."""
    detector.train_names_ = tuple(saved.extras.get("training_images", ()))
    detector.suspects_ = tuple(saved.extras.get("suspects", ()))
    detector.appearance_, detector.near_ = Appearance.of(saved.arrays), saved.arrays.get("near")
    detector.reserve_ = Reserve.of(saved.arrays, saved.rows.shape[1])
    if "photographs" in saved.arrays:
        detector.sizes_, detector.photographs_ = saved.arrays["training_sizes"], reasons.unbundled(saved.arrays)


def _stored_spacing(detector: PatchCore, folder: Path | str, saved: reference_format.SavedModel) -> np.ndarray:
    if "spacing" in saved.arrays:
        return saved.arrays["spacing"]
    if saved.extras.get("sampler") != "identity":
        raise ModelError(
            f"the model in {folder} does not know how far apart good patches lie: {detector.scoring} scores need a "
            f"model that was trained with scoring={detector.scoring!r}, or one whose bank has all patches (sampler "
            "identity)"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a mapped file may not be written to
        rows = torch.from_numpy(saved.rows)
    projected = coreset.project(rows, detector.projection, detector.seed)
    return detector._spacing_of(projected, np.arange(len(rows)), rows.shape[1], Notes())


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


@contextmanager
def _usable(folder: Path | str) -> Iterator[None]:
    """What a model's files say fits together, or it is a ModelError."""
    try:
        yield
    except (DataError, ModelError, WeightsError, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        raise ModelError(
            f"the model in {folder} cannot be used ({short(error)}): copy the model folder again, or train again"
        ) from error
