"""What a detector says of a list of images: one score and one anomaly map each, beside the truth where it is known."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from patchcore_kit.errors import ResultsError
from patchcore_kit.files import UNREADABLE, user_path, writing
from patchcore_kit.metrics import image_metrics, pixel_metrics

METRICS = (
    "instance_auroc", "full_pixel_auroc", "anomaly_pixel_auroc", "full_pro", "anomaly_pro",
    "instance_ap", "full_pixel_ap", "instance_f1", "full_pixel_f1",
)  # fmt: skip
THRESHOLDS = ("image_threshold", "pixel_threshold", "image_false_alarms")


@dataclass(frozen=True, eq=False)
class Predictions:
    """Scores and maps of N images, in the order of the samples; higher is stranger.

    scores: (N,) float32, squared distances. maps: (N, H, W) float32, the same by pixel, smoothed.
    labels: (N,) 1 = defective, 0 = good, -1 = unknown. masks: (N, H, W) bool, or None where defects have no masks.
    names: the samples'. mask_rule: how mask edges were resized (see `Transform`). weights: the network's.
    unmasked: names of images that may be defective and have no mask, which is why `masks` is None.
    """

    scores: np.ndarray
    maps: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None
    names: tuple[str, ...]
    mask_rule: str = "inside"
    weights: str = ""
    unmasked: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return (
            f"Predictions({len(self.scores)} images, maps of {'x'.join(map(str, self.maps.shape[1:]))}, {self.weights})"
        )

    @cached_property
    def metrics(self) -> dict[str, float | str | None]:
        """See `evaluate`; computed once."""
        values, undefined = {}, {}
        known = self.labels >= 0
        if set(self.labels[known]) == {0, 1}:
            values |= image_metrics(self.scores[known], self.labels[known])
        else:
            undefined["image"] = "needs good and defective images"
        if self.masks is None:
            undefined["pixel"] = "needs a mask of every defective image" + self._unmasked()
        elif not self.masks.any() or self.masks.all():
            undefined["pixel"] = "needs good and defective pixels"
        else:
            values |= pixel_metrics(self.maps, self.masks)
            if "anomaly_pro" not in values:
                undefined["anomaly"] = "needs good pixels in defective images"
        reasons = "; ".join(f"{kind} metrics: {reason}" for kind, reason in undefined.items())
        return {name: values.get(name) for name in (*METRICS, *THRESHOLDS)} | {
            "mask_rule": self.mask_rule,
            "undefined": reasons,
        }

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

    def save(self, path: Path | str) -> None:
        """Write one `.npz` with these names as keys and both thresholds (NaN where there is none); no pickles.

        Raises ResultsError if it cannot be written.
        """
        arrays = {
            "scores": self.scores,
            "maps": self.maps,
            "labels": self.labels,
            "names": np.array(self.names),
            "image_threshold": np.array(self.image_threshold, dtype=float),
            "pixel_threshold": np.array(self.pixel_threshold, dtype=float),
            "mask_rule": np.array(self.mask_rule),
            "weights": np.array(self.weights),
            "unmasked": np.array(self.unmasked, dtype=str),
        }
        if self.masks is not None:
            arrays["masks"] = self.masks
        with writing(user_path(path)) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path | str) -> "Predictions":
        """Read what `save` wrote. Raises ResultsError if the file is missing or is something else."""
        try:
            with user_path(path).open("rb") as content, np.load(content, allow_pickle=False) as file:
                names, unmasked = (tuple(file.get(key, np.array(())).tolist()) for key in ("names", "unmasked"))
                arrays = file["scores"], file["maps"], file["labels"], file.get("masks")
                return cls(*arrays, names, str(file["mask_rule"]), str(file["weights"]), unmasked)
        except UNREADABLE as error:
            raise ResultsError(
                f"cannot read predictions from {path} ({error}): evaluate with --save_predictions to make them"
            ) from None

    def table(self) -> pd.DataFrame:
        """One row per image: what it is, its score and verdict, and how well both went; as far as they are known.

        margin: distance of the score from the threshold, as a share of it; negative where the verdict is wrong.
        map_max: peak of the map. predicted_area, mask_area: shares of the image that count as defective, and are.
        iou: the area that these two share, over the area of both together; NaN without a defect in the mask.
        """
        kinds = [parts[-2] if len(parts) > 2 else "" for parts in (name.split("/") for name in self.names)]
        columns = {"name": self.names, "defect": kinds, "label": self.labels, "score": self.scores.astype(float)}
        if self.image_threshold is not None:
            columns["verdict"] = np.where(self.scores >= self.image_threshold, "defective", "good")
            distance = (self.scores - self.image_threshold) / (self.image_threshold or 1)
            columns["margin"] = np.where(self.labels == 1, distance, np.where(self.labels == 0, -distance, np.nan))
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


def evaluate(predictions: Predictions) -> dict[str, float | str | None]:
    """Metrics by name: image and pixel AUROC (`instance_`, `full_pixel_`, `anomaly_pixel_`), average precision,
    F1 and its thresholds, the share of the good images that are at or above the one of images, PRO up to 30 % false
    positives, and which mask rule they used.

    A metric that is not defined (one class only, no masks) is None, and `undefined` gives the reason.
    """
    return dict(predictions.metrics)
