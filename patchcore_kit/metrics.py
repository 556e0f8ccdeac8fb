"""Scores and labels -> AUROC, average precision, F1-optimal threshold, PRO, and how sure they are.

Everything follows from one ranking of the values, highest first: millions of pixels are sorted once, and every curve
is a cumulative sum along that order. Equal values share one point of a curve.

How sure: images are drawn again with replacement, as many good and as many defective ones as there are (bootstrap),
which gives a metric's deviation s. An interval is then Wilson's for a share A of n = A(1 - A) / s^2 observations:
unlike the percentiles of the bootstrap it holds the true value as often as it says for few images, too, and for a
measured 1.000 it has a lower end. n is at least the number of images of the rarer kind, which for an AUROC of images
is so by theory (Birnbaum and Klose 1957), and for metrics of images at most the number of all.
"""

from dataclasses import dataclass

import numpy as np
import scipy.ndimage

METRICS = (  # what results.csv has of each category and figures show, in this order; from 0 to 1
    "instance_auroc", "full_pixel_auroc", "anomaly_pixel_auroc", "full_pro", "anomaly_pro",
    "instance_ap", "full_pixel_ap", "instance_f1", "full_pixel_f1", "full_pro_5",
)  # fmt: skip
INTERVALS = tuple(f"{name}_{end}" for name in METRICS if not name.endswith("f1") for end in ("low", "high"))
PRO_LIMIT = 0.3  # false-positive rate up to which the per-region overlap is integrated, as MVTec AD's authors do
STRICT_PRO_LIMIT = 0.05  # and those of MVTec AD 2
NORMAL = 1.96  # deviations of 95 %
RESAMPLES = 300
BINS = 500  # of pixel values in resamples, half of them spread evenly over the defective pixels, half over the good


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
        found = np.maximum(self.true + self.false, 1)  # in a resample there may be none at the first thresholds
        return float(np.sum(gained * self.true / found) / self.true[-1])

    def best_f1(self) -> tuple[float, float]:
        """(threshold, F1): the threshold of the highest F1; values at or above it count as defective."""
        f1 = 2 * self.true / (self.true + self.false + self.true[-1])
        best = int(f1.argmax())
        return float(self.thresholds[best]), float(f1[best])

    def pro(self, overlap: np.ndarray, limit: float = PRO_LIMIT) -> float:
        """Mean per-region overlap up to a rate of false positives, divided by that limit: 1 is perfect.

        overlap: (N,) each pixel's share in the mean overlap, in the order of the values.
        """
        x, y = self.false_rate, np.cumsum(overlap, dtype=np.float64)[self.ends]
        y /= y[-1]  # 1, but for the rounding of the shares
        inside = x <= limit
        at_limit = np.interp(limit, np.append(0, x), np.append(0, y))
        return _area(np.append(x[inside], limit), np.append(y[inside], at_limit)) / limit


def _area(x: np.ndarray, y: np.ndarray) -> float:
    """Area under a curve that starts at (0, 0), by the trapezoidal rule."""
    return float(np.trapezoid(np.append(0, y), np.append(0, x)))


def image_metrics(scores: np.ndarray, labels: np.ndarray, seed: int | None = 0) -> dict[str, float]:
    """(N,) scores and (N,) labels, 0 and 1 among them -> instance_auroc, _ap, _f1, image_threshold, _false_alarms.

    Also instance_auroc_low, _high, instance_ap_low, _high: intervals of 95 %, from resamples drawn by seed; with None
    they are left out.
    """
    order = np.argsort(-scores, kind="stable")
    defective = labels[order] == 1
    curves = Curves.of(scores[order], defective)
    threshold, f1 = curves.best_f1()
    values = _of_images(curves)
    if seed is not None:
        resampled = []
        for weights in _resamples(defective, seed):
            true, false = np.cumsum(weights * defective)[curves.ends], np.cumsum(weights * ~defective)[curves.ends]
            resampled.append(_of_images(Curves(curves.thresholds, true, false, curves.ends)))
        rarer = int(min(defective.sum(), (~defective).sum()))
        values |= _intervals(values, resampled, rarer, len(scores))
    return values | {
        "instance_f1": f1,
        "image_threshold": threshold,
        "image_false_alarms": float((scores[labels == 0] >= threshold).mean()),
    }


def pixel_metrics(maps: np.ndarray, masks: np.ndarray, seed: int | None = 0) -> dict[str, float]:
    """(N, H, W) anomaly maps and bool masks, both kinds of pixel among them -> the pixel metrics.

    `full_` metrics count the pixels of all images, `anomaly_` metrics those of images with a defect in their mask, as
    the reference does. PRO weighs every connected defect region equally (8 neighbours), whatever its size. Undefined
    `anomaly_` metrics (defects that fill their images) are left out.

    Of each but F1 also the ends `_low` and `_high` of an interval of 95 %, from resamples drawn by seed, unless that is
    None or there is only one image with a defect in its mask.
    """
    values = maps.ravel()
    order = np.argsort(values)[::-1]
    overlap = region_shares(masks).ravel()[order]
    values, positive = values[order], masks.ravel()[order]
    full = Curves.of(values, positive)
    threshold, f1 = full.best_f1()
    metrics = _of_all(full, overlap)
    defective = masks.any(axis=(1, 2))
    inside = defective.repeat(masks[0].size)[order]
    anomaly = Curves.of(values[inside], positive[inside])
    if anomaly.false[-1]:
        metrics |= _of_defective(anomaly, overlap[inside])
    if seed is not None and defective.sum() > 1:
        good, bad, share = _histograms(order // masks[0].size, positive, overlap, len(masks))
        resampled = []
        for weights in _resamples(defective, seed):
            again = _of_all(_binned(weights, good, bad), weights @ share)
            if anomaly.false[-1]:
                again |= _of_defective(_binned(weights * defective, good, bad), weights @ share)
            resampled.append(again)
        metrics |= _intervals(metrics, resampled, int(defective.sum()))
    return metrics | {"full_pixel_f1": f1, "pixel_threshold": threshold}


def _of_images(curves: Curves) -> dict[str, float]:
    return {
        "instance_auroc": curves.auroc(),
        "instance_ap": curves.average_precision(),
    }


def _of_all(curves: Curves, overlap: np.ndarray) -> dict[str, float]:
    return {
        "full_pixel_auroc": curves.auroc(),
        "full_pixel_ap": curves.average_precision(),
        "full_pro": curves.pro(overlap),
        "full_pro_5": curves.pro(overlap, STRICT_PRO_LIMIT),
    }


def _of_defective(curves: Curves, overlap: np.ndarray) -> dict[str, float]:
    return {"anomaly_pixel_auroc": curves.auroc(), "anomaly_pro": curves.pro(overlap)}


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


# how sure


def _resamples(defective: np.ndarray, seed: int) -> np.ndarray:
    """(N,) bool -> (RESAMPLES, N): how often each image is drawn, good and defective ones apart."""
    generator, weights = np.random.default_rng(seed), np.zeros((RESAMPLES, len(defective)))
    for kind in (defective, ~defective):
        if n := int(kind.sum()):
            weights[:, kind] = generator.multinomial(n, np.full(n, 1 / n), RESAMPLES)
    return weights


def _histograms(image: np.ndarray, positive: np.ndarray, overlap: np.ndarray, images: int) -> tuple[np.ndarray, ...]:
    """Of pixels, highest value first: the image, whether it is defective, its share in the overlap -> three (N, BINS).

    They count each image's good and defective pixels and its overlap in bins of values: by them a resample is one
    product of matrices, not another sort.
    """
    true = np.cumsum(positive)
    false = np.arange(1, len(true) + 1) - true
    rank = true * (BINS / 2 / true[-1]) + false * (BINS / 2 / false[-1])
    place = image * BINS + rank.astype(np.int64).clip(max=BINS - 1)
    of_defects = place[positive]  # few
    bad, share, all_ = (
        np.bincount(where, weights, images * BINS).reshape(images, BINS)
        for where, weights in ((of_defects, None), (of_defects, overlap[positive]), (place, None))
    )
    return all_ - bad, bad, share


def _binned(weights: np.ndarray, good: np.ndarray, bad: np.ndarray) -> Curves:
    return Curves(np.arange(BINS), np.cumsum(weights @ bad), np.cumsum(weights @ good), np.arange(BINS))


def mean_interval(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[float, float]:
    """(N,) values and the ends of their intervals -> those of their mean.

    The squared distances from the values to the ends add up (MOVER: Zou and Donner 2008).
    """
    mean, n = np.mean(values), len(values)
    return float(mean - np.linalg.norm(values - low) / n), float(mean + np.linalg.norm(high - values) / n)


def _intervals(
    values: dict[str, float], resampled: list[dict[str, float]], rarer: int, most: float = np.inf
) -> dict[str, float]:
    """Metrics, their values in every resample, images of the rarer kind, most observations -> `_low` and `_high`."""
    ends = {}
    for name, value in values.items():
        variance = np.var([again[name] for again in resampled]) * rarer / max(rarer - 1, 1)  # the bootstrap's is small
        n = min(max(value * (1 - value) / variance if variance else 0, rarer), most)
        centre, half = value + NORMAL**2 / (2 * n), NORMAL * np.sqrt(value * (1 - value) / n + NORMAL**2 / (4 * n**2))
        low, high = (centre - half) / (1 + NORMAL**2 / n), (centre + half) / (1 + NORMAL**2 / n)
        ends |= {f"{name}_low": float(low), f"{name}_high": float(min(max(high, value), 1))}  # 1 but for rounding
    return ends
