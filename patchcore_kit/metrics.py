"""Scores and labels -> AUROC, average precision, F1-optimal threshold, PRO.

Everything follows from one ranking of the values, highest first: millions of pixels are sorted once, and every curve
is a cumulative sum along that order. Equal values share one point of a curve.
"""

from dataclasses import dataclass

import numpy as np
import scipy.ndimage

PRO_LIMIT = 0.3  # false-positive rate up to which the per-region overlap is integrated, as MVTec AD's authors do


@dataclass(frozen=True, slots=True)
class Curves:
    """What is found when everything from a threshold on counts as defective, one entry per distinct value.

    thresholds: descending. true, false: how many defective and good ones lie at or above each threshold.
    """

    thresholds: np.ndarray
    true: np.ndarray
    false: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, labels: np.ndarray) -> "Curves":
        """(N,) values, highest first, and (N,) bool labels in the same order."""
        ends = np.append(np.flatnonzero(values[1:] != values[:-1]), len(values) - 1)
        true = np.cumsum(labels)[ends]
        return cls(values[ends], true, ends + 1 - true, ends)

    @property
    def false_rate(self) -> np.ndarray:
        """False-positive rate at each threshold."""
        return self.false / self.false[-1]

    def auroc(self) -> float:
        """Area under the ROC curve; both classes must be there."""
        return _area(self.false_rate, self.true / self.true[-1])

    def average_precision(self) -> float:
        """Average precision: precision weighted by the recall gained at each threshold."""
        gained = np.diff(self.true, prepend=0)
        return float(np.sum(gained * self.true / (self.true + self.false)) / self.true[-1])

    def best_f1(self) -> tuple[float, float]:
        """(threshold, F1): the threshold of the highest F1; values at or above it count as defective."""
        f1 = 2 * self.true / (self.true + self.false + self.true[-1])
        best = int(f1.argmax())
        return float(self.thresholds[best]), float(f1[best])

    def pro(self, overlap: np.ndarray) -> float:
        """Mean per-region overlap up to PRO_LIMIT false positives, divided by that limit: 1 is perfect.

        overlap: (N,) each pixel's share in the mean overlap, in the order of the values.
        """
        x, y = self.false_rate, np.cumsum(overlap, dtype=np.float64)[self.ends]
        y /= y[-1]  # 1, but for the rounding of the shares
        inside = x <= PRO_LIMIT
        at_limit = np.interp(PRO_LIMIT, np.append(0, x), np.append(0, y))
        return _area(np.append(x[inside], PRO_LIMIT), np.append(y[inside], at_limit)) / PRO_LIMIT


def _area(x: np.ndarray, y: np.ndarray) -> float:
    """Area under a curve that starts at (0, 0), by the trapezoidal rule."""
    return float(np.trapezoid(np.append(0, y), np.append(0, x)))


def image_metrics(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """(N,) scores and (N,) labels, 0 and 1 among them -> instance_auroc, _ap, _f1, image_threshold, _false_alarms."""
    order = np.argsort(-scores, kind="stable")
    curves = Curves.of(scores[order], labels[order] == 1)
    threshold, f1 = curves.best_f1()
    return {
        "instance_auroc": curves.auroc(),
        "instance_ap": curves.average_precision(),
        "instance_f1": f1,
        "image_threshold": threshold,
        "image_false_alarms": float((scores[labels == 0] >= threshold).mean()),
    }


def pixel_metrics(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """(N, H, W) anomaly maps and bool masks, both kinds of pixel among them -> the pixel metrics.

    `full_` metrics count the pixels of all images, `anomaly_` metrics those of images with a defect in their mask, as
    the reference does. PRO weighs every connected defect region equally (8 neighbours), whatever its size. Undefined
    `anomaly_` metrics (defects that fill their images) are left out.
    """
    values = maps.ravel()
    order = np.argsort(values)[::-1]
    overlap = region_shares(masks).ravel()[order]
    values, positive = values[order], masks.ravel()[order]
    full = Curves.of(values, positive)
    threshold, f1 = full.best_f1()
    metrics = {
        "full_pixel_auroc": full.auroc(),
        "full_pixel_ap": full.average_precision(),
        "full_pixel_f1": f1,
        "full_pro": full.pro(overlap),
        "pixel_threshold": threshold,
    }
    inside = masks.any(axis=(1, 2)).repeat(masks[0].size)[order]
    anomaly = Curves.of(values[inside], positive[inside])
    if anomaly.false[-1]:
        metrics |= {"anomaly_pixel_auroc": anomaly.auroc(), "anomaly_pro": anomaly.pro(overlap[inside])}
    return metrics


def region_shares(masks: np.ndarray) -> np.ndarray:
    """(N, H, W) bool -> (N, H, W) float32: 1 / (regions * size of the region) at defect pixels, 0 elsewhere.

    Summed over the pixels found, this is the mean overlap of all regions.
    """
    within_an_image = np.zeros((3, 3, 3), dtype=bool)
    within_an_image[1] = True
    labels, regions = scipy.ndimage.label(masks, structure=within_an_image)
    sizes = np.bincount(labels.ravel(), minlength=regions + 1)
    shares = np.zeros(regions + 1, dtype=np.float32)
    shares[1:] = 1 / (regions * sizes[1:])
    return shares[labels]
