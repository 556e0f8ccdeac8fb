"""Several PatchCores as one: fitted on the same images, their scores and maps averaged on one scale."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from patchcore_kit import reference_format
from patchcore_kit.calibration import Calibration
from patchcore_kit.datasets import as_samples
from patchcore_kit.detector import Images, PatchCore
from patchcore_kit.errors import SettingsError
from patchcore_kit.model_folder import save_members
from patchcore_kit.notes import Notes
from patchcore_kit.predictions import Predictions
from patchcore_kit.progress import images_of, line_of
from patchcore_kit.transforms import Transform


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

    def fit(
        self, images: Images, *, memory: str | float | None = None, checkpoint: Path | str | None = None
    ) -> "PatchCoreEnsemble":
        """Fit every member, one after the other, each in this memory; see `PatchCore.fit`, and raises as it does."""
        samples, notes = as_samples(images), Notes()
        if memory is not None or checkpoint is not None:
            for number, member in enumerate(self.members):
                member.fit(samples, memory=memory, checkpoint=checkpoint and Path(checkpoint) / str(number))
            return self
        for member in self.members:
            with line_of(member.progress, f"fit on {images_of(samples)}") as line:
                member._fit(samples, notes, line)
        return self

    def predict(self, images: Images, *, mask_rule: str = "inside") -> Predictions:
        """Average the members' scores and maps, each on its scale. Raises as `PatchCore.predict`."""
        samples, notes, scores, maps = as_samples(images), Notes(), 0, 0
        scales = None if self.scaling == "test-set" else self._scales()
        for i, member in enumerate(self.members):
            with line_of(member.progress, f"scored {images_of(samples)}") as line:
                one = member._predict(samples, mask_rule, notes, line)
            of_scores, of_maps = (one.scores, one.maps) if scales is None else scales[i]
            scores = scores + _scaled(one.scores, of_scores) / len(self.members)
            maps = maps + _scaled(one.maps, of_maps) / len(self.members)
        weights = ", ".join(member.backbone.weights for member in self.members)
        scoring = "distance" if all(member.scoring == "distance" for member in self.members) else "index"
        known = {"calibration": self._calibration(scales), "scoring": scoring}
        return replace(one, scores=scores, maps=maps, weights=weights, **known, evidence=None)

    def _scales(self) -> list[tuple[float, float]]:
        """What each member's scores and maps are divided by."""
        if all(member.scoring == "distance" for member in self.members):
            return [(member.bank_.scale, member.bank_.scale) for member in self.members]
        known = [member.calibration_ for member in self.members]
        if all(known):
            return [(one.look.value, one.pixel.value) for one in known]
        if len({member.scoring for member in self.members}) == 1:
            return [(1.0, 1.0)] * len(known)  # of one kind, all of them
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

    def extend(self, images: Images) -> "PatchCoreEnsemble":
        """Let more good images join every member. Raises as `PatchCore.extend`."""
        samples, notes = as_samples(images), Notes()
        for member in self.members:
            with line_of(member.progress, f"extended by {images_of(samples)}") as line:
                member._extend(samples, notes, line)
        return self

    def recalibrate(self, images: Images) -> "PatchCoreEnsemble":
        """Take every member's thresholds from these good images. Raises as `PatchCore.recalibrate`."""
        samples, notes = as_samples(images), Notes()
        for member in self.members:
            with line_of(member.progress, f"thresholds from {images_of(samples)}") as line:
                member._recalibrate(samples, notes, line)
        return self

    def save(self, folder: Path | str) -> None:
        """Write all members into one model folder. Raises as `PatchCore.save`."""
        save_members(self.members, folder)

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


def _scaled(values: np.ndarray, by: float | np.ndarray) -> np.ndarray:
    """Values over a number, or brought to 0..1 over an array of them."""
    if isinstance(by, float):
        return values / np.float32(by)
    low, high = by.min(), by.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)
