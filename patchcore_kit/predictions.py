"""What a detector says of a list of images: one score and one anomaly map each, beside the truth where it is known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from patchcore_kit.arrays import read_arrays
from patchcore_kit.calibration import Calibration, Threshold
from patchcore_kit.errors import ResultsError, short
from patchcore_kit.files import user_path, writing
from patchcore_kit.metrics import INTERVALS, METRICS, image_metrics, pixel_metrics
from patchcore_kit.reasons import Evidence, Explanation
from patchcore_kit.transforms import Transform

if TYPE_CHECKING:
    import pandas as pd

THRESHOLDS = ("image_threshold", "pixel_threshold", "image_false_alarms")
ALARMS = ("alarm_false_alarms", "alarm_missed", "alarm_f1", "alarm_pixel_f1")  # at the thresholds from good images
ALARM_THRESHOLDS = ("alarm_threshold", "defective_threshold", "alarm_threshold_pixel")
MASKS = ("masks", "empty_masks")  # of defective images: how many there are, and how many hold no pixel at this size
COLUMNS = (*METRICS, *THRESHOLDS, *ALARMS, *ALARM_THRESHOLDS, *MASKS)  # all that is measured, in this order


NONE = np.array((), dtype=str)
# what a file of them holds: see `arrays.Kind`; n images with maps of HxW, R regions, t training images
REQUIRED = ("scores", "maps", "labels", "names", "mask_rule", "weights")
KINDS = {
    "scores": ("f", "n"), "maps": ("f", "nHW"), "labels": ("i", "n"), "masks": ("b", "nHW"), "names": ("U", "n"),
    "unmasked": ("U", "."), "mask_rule": ("U", ""), "weights": ("U", ""), "scoring": ("U", ""),
    "sizes": ("i", "n2"), "remarks": ("U", "."),
    "good_scores": ("f", "g"), "good_peaks": ("f", "g"), "alarm_rate": ("f", ""),
    "region_images": ("i", "R"), "region_boxes": ("i", "R9"), "region_peaks": ("f", "R"),
    "region_pictures": ("u", "RSS3"), "region_near": ("i", "RK2"), "region_distances": ("f", "RK"),
    "good_names": ("U", "."), "good_sizes": ("i", "t2"), "photographs": ("u", "."), "photograph_ends": ("i", "t"),
    "grid": ("i", "2"), "transform": ("i", "."),
}  # fmt: skip
LARGEST = 2**30  # pixels of a photograph: a gigabyte and more


@dataclass(frozen=True, eq=False)
class Predictions:
    """Scores and maps of N images, in the order of the samples; higher is stranger.

    scores: (N,) float32, squared distances, or relative ones ("density"). maps: (N, H, W) float32, the same by pixel,
        smoothed.
    labels: (N,) 1 = defective, 0 = good, -1 = unknown. masks: (N, H, W) bool, or None where defects have no masks.
    names: the samples'. mask_rule: how mask edges were resized (see `Transform`). weights: the network's.
    unmasked: names of images that may be defective and have no mask, which is why `masks` is None.
    calibration: what the model knows of good images, from which its own thresholds follow; None where it knows nothing.
    scoring: the model's, "distance" or "density"; "index" of an ensemble in which one is not "distance".
    transform, sizes: how the images were seen, and the (N, 2) heights and widths of the photographs, which together lay
        maps onto them (`placed`).
    remarks: what sets each photograph apart from all training images, "" if nothing does.
    evidence: what `explain` needs; None of ensembles.
    """

    scores: np.ndarray
    maps: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None
    names: tuple[str, ...]
    mask_rule: str = "inside"
    weights: str = ""
    unmasked: tuple[str, ...] = ()
    calibration: Calibration | None = None
    scoring: str = "distance"
    transform: Transform | None = None
    sizes: np.ndarray | None = None
    remarks: tuple[str, ...] = ()
    evidence: Evidence | None = None

    def __repr__(self) -> str:
        return (
            f"Predictions({len(self.scores)} images, maps of {'x'.join(map(str, self.maps.shape[1:]))}, {self.weights})"
        )

    @cached_property
    def metrics(self) -> dict[str, float | str | None]:
        """See `evaluate`; computed once."""
        return self._metrics(seed=0)

    def _metrics(self, seed: int | None) -> dict[str, float | str | None]:
        """seed: of the intervals, None for metrics without them."""
        values, undefined = {}, {}
        known = self.labels >= 0
        if set(self.labels[known]) == {0, 1}:
            values |= image_metrics(self.scores[known], self.labels[known], seed)
        else:
            undefined["image"] = "needs good and defective images"
        if self.masks is None:
            undefined["pixel"] = "needs a mask of every defective image" + self._unmasked()
        elif not self.masks.any() or self.masks.all():
            undefined["pixel"] = "needs good and defective pixels"
        else:
            values |= pixel_metrics(self.maps, self.masks, seed)
            if "anomaly_pro" not in values:
                undefined["anomaly"] = "needs good pixels in defective images"
            if seed is not None and "full_pro_low" not in values:
                undefined["interval"] = "of pixels need two images with a defect"
        values |= self._alarms(known)
        if self.masks is not None:
            masks = self.masks[self.labels == 1].any(axis=(1, 2))
            n, empty = len(masks), int((~masks).sum())
            values |= {"masks": float(n), "empty_masks": float(empty)}
            if empty and "pixel" not in undefined:
                undefined["pixel"] = f"at this size {empty} of {n} masks are empty, whose defects do not count"
        reasons = "; ".join(f"{kind} metrics: {reason}" for kind, reason in undefined.items())
        names = COLUMNS if seed is None else (*COLUMNS, *INTERVALS)
        return {name: values.get(name) for name in names} | {"mask_rule": self.mask_rule, "undefined": reasons}

    def _alarms(self, known: np.ndarray) -> dict[str, float | None]:
        """What goes wrong at the model's own thresholds, of images whose label is known, as far as there are any."""
        values = {name: getattr(self, name) for name in ALARM_THRESHOLDS}
        good, defective = self.labels == 0, self.labels == 1
        if self.alarm_threshold is not None:
            alarms = self.scores > self.alarm_threshold
            if good.any():
                values["alarm_false_alarms"] = float(alarms[good].mean())
            if defective.any():
                values["alarm_missed"] = float((~alarms[defective]).mean())
                values["alarm_f1"] = _f1(alarms[known], defective[known])
        if self.alarm_threshold_pixel is not None and self.masks is not None and self.masks.any():
            values["alarm_pixel_f1"] = _f1(self.maps > self.alarm_threshold_pixel, self.masks)
        return values

    def _unmasked(self) -> str:
        more = f" and {len(self.unmasked) - 1} more have" if len(self.unmasked) > 1 else " has"
        return f", and {self.unmasked[0]}{more} none" if self.unmasked and (self.labels >= 0).any() else ""

    @property
    def image_threshold(self) -> float | None:
        """Score from which on an image counts as defective: F1-optimal, None without both labels."""
        return self.metrics["image_threshold"]

    @property
    def pixel_threshold(self) -> float | None:
        """Map value from which on a pixel counts as defective: F1-optimal, None without masks."""
        return self.metrics["pixel_threshold"]

    @property
    def alarm_threshold(self) -> float | None:
        """Score that at most `alarm_rate` of the good images exceed, by the model; None where it has none."""
        return _value(self.calibration and self.calibration.look)

    @property
    def defective_threshold(self) -> float | None:
        """The same for a fifth of `alarm_rate`: what lies above is called defective."""
        return _value(self.calibration and self.calibration.defective)

    @property
    def alarm_threshold_pixel(self) -> float | None:
        """Map value that at most `alarm_rate` of the good images exceed anywhere, by the model; None without."""
        return _value(self.calibration and self.calibration.pixel)

    @property
    def index(self) -> np.ndarray | None:
        """(N,) scores / `alarm_threshold`: 1 is the limit, whatever the model; None without a threshold."""
        return None if self.alarm_threshold is None else self.scores / np.float32(self.alarm_threshold)

    @property
    def index_maps(self) -> np.ndarray | None:
        """(N, H, W) maps / `alarm_threshold_pixel`: 1 is the limit; None without a threshold."""
        return None if self.alarm_threshold_pixel is None else self.maps / np.float32(self.alarm_threshold_pixel)

    @property
    def verdicts(self) -> np.ndarray:
        """(N,) `good`, `look` above `alarm_threshold`, `defective` above `defective_threshold`; None without them."""
        if self.alarm_threshold is None:
            return np.full(len(self.scores), None)
        over = (self.scores > self.alarm_threshold).astype(int) + (self.scores > self.defective_threshold)
        return np.array(("good", "look", "defective"), dtype=object)[over]

    def of(self, images: np.ndarray) -> "Predictions":
        """Those of some images: (n,) indices, or (N,) bool."""
        arrays = {name: getattr(self, name) for name in ("scores", "maps", "labels", "masks", "sizes")}
        arrays = {name: None if values is None else values[images] for name, values in arrays.items()}
        numbers = np.arange(len(self.scores))[images]
        texts = {"names": tuple(self.names[i] for i in numbers)}
        texts["remarks"] = tuple(self.remarks[i] for i in numbers) if self.remarks else ()
        return replace(self, **arrays, **texts, evidence=self.evidence and self.evidence.of(numbers))

    @classmethod
    def joined(cls, parts: Sequence["Predictions"]) -> "Predictions":
        """Those of one model on several lists of images, as of all these images together.

        Masks are left out unless all have them. Raises ResultsError without any.
        """
        if not parts:
            raise ResultsError("no predictions to join: the list is empty")
        names = ("scores", "maps", "labels", "masks", "sizes")
        arrays = {name: [getattr(part, name) for part in parts] for name in names}
        known = {
            name: None if any(values is None for values in listed) else np.concatenate(listed)
            for name, listed in arrays.items()
        }
        texts = {name: sum((getattr(part, name) for part in parts), ()) for name in ("names", "unmasked", "remarks")}
        evidence = [part.evidence for part in parts]
        if None not in evidence:
            known["evidence"] = Evidence.joined(evidence, [len(part.names) for part in parts])
        return replace(parts[0], **known, **texts)

    def placed(self, i: int) -> np.ndarray:
        """The i-th map on its photograph: (H, W) of the photograph as it is shown, NaN outside what the network saw.

        Raises ResultsError for predictions that were saved by an earlier version.
        """
        if self.transform is None:
            raise ResultsError("these predictions do not say how large the photographs were: predict again")
        return self.transform.place(self.maps[i], tuple(self.sizes[i].tolist()))

    def explain(self, i: int) -> Explanation:
        """Why the i-th image has its verdict: regions above the threshold, and what good patches are most like them.

        Raises ResultsError for predictions of ensembles, and those that were saved by an earlier version.
        """
        if self.evidence is None:
            raise ResultsError("these predictions hold no reasons: predict again, with one model that is no ensemble")
        i = range(len(self.names))[i]
        index = None if self.index is None else float(self.index[i])
        regions = self.evidence.regions(i, self.alarm_threshold_pixel)
        remark = self.remarks[i] if self.remarks else ""
        return Explanation(self.names[i], self.verdicts[i], index, remark, regions)

    def by_defect(self) -> "pd.DataFrame":
        """The metrics of each kind of defect among the good images, without intervals, and its number of images."""
        import pandas as pd  # here and below: half a second that a first verdict need not wait for

        kinds = np.array([_kind(name) for name in self.names])
        found = {}
        for kind in sorted(set(kinds[self.labels == 1])):
            of_kind = (kinds == kind) & (self.labels == 1)
            found[kind] = {"images": int(of_kind.sum())} | self.of(of_kind | (self.labels == 0))._metrics(None)
        return pd.DataFrame.from_dict(found, orient="index").rename_axis("defect")

    def table(self) -> "pd.DataFrame":
        """One row per image: what it is, its score and verdict, and how well both went; as far as they are known.

        verdict: `good`, `look` or `defective` by the model's own thresholds, None where it has none. index: score over
            the lower of them. verdict_f1: `good` or `defective` by the F1-optimal threshold, which knows the labels.
        remark: what sets the photograph apart from all training images, where it does for any.
        margin: distance of the score from that one, as a share of it; negative where that verdict is wrong.
        map_max: peak of the map. predicted_area, mask_area: shares of the image that count as defective, and are.
        iou: the area that these two share, over the area of both together; NaN without a defect in the mask.
        """
        import pandas as pd

        kinds = [_kind(name) for name in self.names]
        columns = {"name": self.names, "defect": kinds, "label": self.labels, "score": self.scores.astype(float)}
        columns["verdict"] = self.verdicts
        if self.index is not None:
            columns["index"] = self.index.astype(float)
        if self.image_threshold is not None:
            columns["verdict_f1"] = np.where(self.scores >= self.image_threshold, "defective", "good")
            distance = (self.scores - self.image_threshold) / (self.image_threshold or 1)
            columns["margin"] = np.where(self.labels == 1, distance, np.where(self.labels == 0, -distance, np.nan))
        if any(self.remarks):
            columns["remark"] = self.remarks
        columns["map_max"] = self.maps.max(axis=(1, 2)).astype(float)
        if self.masks is not None:
            columns["mask_area"] = self.masks.mean(axis=(1, 2))
        if self.pixel_threshold is not None:
            found = self.maps >= self.pixel_threshold
            both, either = (found & self.masks).sum(axis=(1, 2)), (found | self.masks).sum(axis=(1, 2))
            columns["predicted_area"] = found.mean(axis=(1, 2))
            columns["iou"] = np.where(self.masks.any(axis=(1, 2)), both / either.clip(1), np.nan)
        return pd.DataFrame(columns).assign(mask_rule=self.mask_rule, weights=self.weights)

    def save_table(self, path: Path | str) -> None:
        """Write `table` as CSV. Raises ResultsError if it cannot be written."""
        with writing(user_path(path)) as temporary:
            self.table().to_csv(temporary, index=False)

    def save(self, path: Path | str) -> None:
        """Write one `.npz` with these names as keys and all thresholds (NaN where there is none); no pickles.

        Of the calibration: `good_scores`, `good_peaks` and `alarm_rate`.

        Raises ResultsError if it cannot be written.
        """
        arrays = {
            "scores": self.scores,
            "maps": self.maps,
            "labels": self.labels,
            "names": np.array(self.names, dtype=str),
            "image_threshold": np.array(self.image_threshold, dtype=float),
            "pixel_threshold": np.array(self.pixel_threshold, dtype=float),
            "mask_rule": np.array(self.mask_rule),
            "weights": np.array(self.weights),
            "unmasked": np.array(self.unmasked, dtype=str),
            "scoring": np.array(self.scoring),
        } | {name: np.array(getattr(self, name), dtype=float) for name in ALARM_THRESHOLDS}
        if self.calibration is not None:
            arrays |= self.calibration.arrays()
        if self.masks is not None:
            arrays["masks"] = self.masks
        if self.evidence is not None:
            arrays |= self.evidence.arrays() | {"sizes": self.sizes, "remarks": np.array(self.remarks, dtype=str)}
        with writing(user_path(path)) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path | str) -> "Predictions":
        """Read what `save` wrote. Raises ResultsError if the file is missing or is something else."""
        path = user_path(path)
        try:
            file = read_arrays(path, KINDS, REQUIRED)
            _check_fit(file)
            names, unmasked, remarks = (tuple(file.get(key, NONE).tolist()) for key in ("names", "unmasked", "remarks"))
            arrays = file["scores"], file["maps"], file["labels"], file.get("masks")
            about = str(file["mask_rule"]), str(file["weights"])
            scoring, evidence = str(file.get("scoring", "distance")), Evidence.of_arrays(file)
            seen = None if evidence is None else evidence.transform
            if seen and seen.size != file["maps"].shape[1:]:
                raise ValueError(f"maps of {file['maps'].shape[1:]}, made for {seen.size}")
            known = unmasked, Calibration.of(file), scoring, seen, file.get("sizes"), remarks, evidence
            return cls(*arrays, names, *about, *known)
        except Exception as error:  # whatever parsers raise for files that are damaged or something else
            raise ResultsError(
                f"cannot read predictions from {path} ({short(error) or type(error).__name__}): evaluate with "
                "--save_predictions to make them"
            ) from None


def _check_fit(file: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError if the arrays of a file do not belong together, or hold what cannot be."""
    n, height, width = file["maps"].shape
    if n and not height * width:
        raise ValueError(f"maps of {height}x{width}")
    ranges = {"labels": (-1, 1), "region_images": (0, n - 1), "sizes": (1, LARGEST), "good_sizes": (1, LARGEST)}
    for name, (least, most) in ranges.items():
        if name in file and file[name].size and not least <= file[name].min() <= file[name].max() <= most:
            raise ValueError(f"{name} from {file[name].min()} to {file[name].max()}")
    if "sizes" in file and (file["sizes"].prod(axis=1) > LARGEST).any():
        raise ValueError("photographs larger than any that is read")
    if "good_names" in file:
        if len(file["remarks"]) not in (0, n) or len(file["sizes"]) != n:
            raise ValueError(f"{len(file['remarks'])} remarks and {len(file['sizes'])} sizes of {n} images")
        names, photographs = len(file["good_names"]), len(file["good_sizes"])
        if photographs not in (0, names):  # none of models of earlier versions
            raise ValueError(f"{names} names of good images, {photographs} sizes")


def _kind(name: str) -> str:
    """The folder that an image lies in, which names its defect; "" where it lies in none."""
    parts = name.split("/")
    return parts[-2] if len(parts) > 2 else ""


def _value(threshold: Threshold | None) -> float | None:
    return None if threshold is None else threshold.value


def _f1(found: np.ndarray, true: np.ndarray) -> float:
    return float(2 * (found & true).sum() / (found.sum() + true.sum()))


def evaluate(predictions: Predictions) -> dict[str, float | str | None]:
    """Metrics by name: image and pixel AUROC (`instance_`, `full_pixel_`, `anomaly_pixel_`), average precision,
    F1 and its thresholds, the share of the good images that are at or above the one of images, PRO up to 30 and to 5 %
    false positives (`full_pro_5`), and which mask rule they used; of all but F1 an interval of 95 % (`_low`, `_high`).

    At the model's own thresholds (`alarm_threshold`, `alarm_threshold_pixel`): the share of good images above it, of
    defective ones that are missed, F1 of images and of pixels (`alarm_`).

    A metric that is not defined (one class only, no masks) is None, and `undefined` gives the reason.
    """
    return dict(predictions.metrics)
