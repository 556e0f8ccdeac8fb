"""Scores of good images that the bank has not learnt from -> thresholds, without defects, and what they promise.

A training image is scored without the rows that it gave to the bank, and so as any new good image would be. The
threshold for a false-alarm rate a is the ceil((n + 1)(1 - a))-th smallest of n such scores: one more good image lies
above it with a probability of at most a (split conformal prediction; Vovk et al., "Algorithmic Learning in a Random
World", 2005). That is an average over sets of training images; `Threshold` says between what the rate of this one lies.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.special

from patchcore_kit.errors import SettingsError

SURE = 0.95  # confidence of the ranges and promises
STRICTER = 5  # a verdict is `defective` from the threshold of a fifth of the alarm rate on, and `look` below
CALIBRATED = 100  # training images that thresholds are taken from, spread over all of them
FEWEST = 3  # scores that a tail is fitted to


def check(alarm_rate: float) -> None:
    """Raises SettingsError for a rate that is not between 0 and 0.5."""
    if isinstance(alarm_rate, bool) or not isinstance(alarm_rate, int | float) or not 0 < alarm_rate <= 0.5:
        raise SettingsError(f"alarm_rate is {alarm_rate!r}: give the share of good images, above 0 and at most 0.5")


@dataclass(frozen=True, slots=True)
class Threshold:
    """A value that at most a share `rate` of good images should exceed, from `n` good images.

    extrapolated: it lies beyond what so few scores show, so no rate is promised.
    low, high: between which the true rate lies (95 %, exact binomial); None where it is extrapolated.
    """

    value: float
    rate: float
    n: int
    extrapolated: bool
    low: float | None
    high: float | None

    @property
    def needed(self) -> int:
        """Good images from which on a threshold can hold the rate with 95 % certainty."""
        return math.ceil(math.log(1 - SURE) / math.log1p(-self.rate))

    @property
    def least(self) -> int:
        """Good images from which on it need not be extrapolated."""
        return math.ceil(1 / self.rate - 1e-9) - 1

    def __str__(self) -> str:
        known = (
            f"extrapolated from {self.n} good images, which promises nothing"
            if self.extrapolated
            else f"from {self.n} good images: the true rate lies between {self.low:.1%} and {self.high:.1%}"
        )
        enough = "" if self.n >= self.needed else f"; {self.needed} could promise at most {self.rate:.0%}"
        return f"{self.value:.4g} for {self.rate:.0%} false alarms, {known}{enough}"


def threshold(scores: np.ndarray, rate: float) -> Threshold | None:
    """(n,) scores of good images -> the threshold that at most a share `rate` of good images should exceed.

    Where n is so small that the rank exceeds it, the upper prediction limit of one more score, whose logarithm is taken
    to be normal (mean and deviation of the n, Student's t), but at least the largest score. None for fewer than 3
    scores, and where all good images score 0.
    """
    scores = np.sort(np.asarray(scores, dtype=float))
    n, rank = len(scores), math.ceil((len(scores) + 1) * (1 - rate) - 1e-9)
    if n < FEWEST or scores[-1] <= 0:
        return None
    if rank <= n:
        value = float(scores[rank - 1])
        return Threshold(value, rate, n, False, *_binomial_range(n - rank, n)) if value > 0 else None
    logs = np.log(scores.clip(1e-3 * scores[-1]))
    beyond = scipy.special.stdtrit(n - 1, 1 - rate) * logs.std(ddof=1) * math.sqrt(1 + 1 / n)
    return Threshold(max(float(scores[-1]), math.exp(logs.mean() + beyond)), rate, n, True, None, None)


def _binomial_range(k: int, n: int) -> tuple[float, float]:
    """Between what a probability lies of which k of n were seen, exactly (Clopper and Pearson 1934).

    As `scipy.stats.binomtest` has it, which takes a second to import.
    """
    low = scipy.special.betaincinv(k, n - k + 1, (1 - SURE) / 2) if k else 0.0
    high = scipy.special.betaincinv(k + 1, n - k, (1 + SURE) / 2) if k < n else 1.0
    return float(low), float(high)


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a model knows of good images: `scores` (n,) and `peaks` (n,), the largest values of their maps.

    All are of training images without their own rows of the bank, in the order of the images.
    alarm_rate: share of good images that may be called anything but good.
    """

    scores: np.ndarray
    peaks: np.ndarray
    alarm_rate: float

    @cached_property
    def look(self) -> Threshold | None:
        """Of image scores: what lies above is to be looked at."""
        return threshold(self.scores, self.alarm_rate)

    @cached_property
    def defective(self) -> Threshold | None:
        """Of image scores: what lies above is called defective; the threshold of a fifth of the rate."""
        return threshold(self.scores, self.alarm_rate / STRICTER)

    @cached_property
    def pixel(self) -> Threshold | None:
        """Of map values: what at most `alarm_rate` of the good images exceed anywhere."""
        return threshold(self.peaks, self.alarm_rate)

    def arrays(self) -> dict[str, np.ndarray]:
        """How it is stored, by key."""
        return {"good_scores": self.scores, "good_peaks": self.peaks, "alarm_rate": np.array(self.alarm_rate)}

    @classmethod
    def of(cls, stored: Mapping[str, np.ndarray]) -> "Calibration | None":
        """What `arrays` gave; None where nothing is stored or follows. Raises ValueError for what cannot be."""
        if "good_scores" not in stored:
            return None
        scores, peaks, rate = stored["good_scores"], stored["good_peaks"], float(stored["alarm_rate"])
        check(rate)
        if len(scores) != len(peaks) or min(scores.min(initial=0), peaks.min(initial=0)) < 0:
            raise ValueError(f"{len(scores)} scores and {len(peaks)} peaks of good images, or negative ones")
        found = cls(scores, peaks, rate)
        if not (found.look and found.pixel):
            return None
        if not np.isfinite([found.look.value, found.defective.value, found.pixel.value]).all():
            raise ValueError(f"no threshold is finite at a rate of {rate}")
        return found
