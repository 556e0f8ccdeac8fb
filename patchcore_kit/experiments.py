"""Many categories: run folders, results after every category, resuming.

RESULTS/results.csv, defects.csv, settings.json     see `results`
RESULTS/models/mvtec_<category>/                    see `reference_format`
RESULTS/predictions/mvtec_<category>.npz, .csv
RESULTS/segmentation_images/mvtec_<category>/
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import chain, count
from pathlib import Path

from patchcore_kit.datasets import Category, Sample
from patchcore_kit.detector import PatchCore
from patchcore_kit.ensemble import PatchCoreEnsemble
from patchcore_kit.errors import DataError, ResultsError, SettingsError
from patchcore_kit.files import checksum, claimed, printable, run_name, tidy, user_path, writing
from patchcore_kit.masks import mask_files
from patchcore_kit.metrics import INTERVALS, METRICS
from patchcore_kit.plots import check_pictures, save_segmentation_images
from patchcore_kit.predictions import COLUMNS, evaluate
from patchcore_kit.progress import Line, line_of
from patchcore_kit.reference_format import FILES, check_replaceable
from patchcore_kit.results import COSTS, Results

LOGGER = logging.getLogger(__name__)

Detector = PatchCore | PatchCoreEnsemble

MODELS, PREDICTIONS, PICTURES = "models", "predictions", "segmentation_images"


@dataclass(frozen=True, slots=True)
class Outputs:
    """What to keep of each category besides its row in results.csv, and how its masks are resized."""

    models: bool = False
    predictions: bool = False
    images: bool = False
    mask_rule: str = "inside"

    def of(self, category: Category) -> list[str]:
        """Names of the folders that a category's are written to."""
        tested = bool(category.test)
        wanted = {MODELS: self.models, PREDICTIONS: self.predictions and tested, PICTURES: self.images and tested}
        return [name for name, is_wanted in wanted.items() if is_wanted]

    def and_those(self, earlier: Collection[str]) -> "Outputs":
        """These, and what was written before, which would be too old beside a new row."""
        models, predictions, images = (name in earlier for name in (MODELS, PREDICTIONS, PICTURES))
        return Outputs(self.models or models, self.predictions or predictions, self.images or images, self.mask_rule)


@contextmanager
def run_folder(results: Path | str, project: str, group: str, *, resume: bool = False) -> Iterator[Path]:
    """RESULTS/project/group; if that is there already, group_0, group_1, ...; with `resume`, the same one.

    A new folder is claimed atomically, so runs that start together get one each; if the run then fails before it has
    written anything, the folder goes again. Raises SettingsError for names that lead elsewhere, ResultsError if it
    cannot be made or written, or if another run is writing into it.
    """
    parent = user_path(results) / run_name("log_project", project)
    run_name("log_group", group)
    check_writable(parent)
    with _unless_empty(parent):
        folder, new = _claim(parent, group, resume)
        with _at_work(folder, new):
            yield folder


@contextmanager
def evaluation_folder(results: Path | str) -> Iterator[Path]:
    """RESULTS itself, made if it is not there. Raises ResultsError as `run_folder`."""
    folder = user_path(results)
    check_writable(folder)
    with _unless_empty(folder.parent):
        new = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(folder.parent, error) from None
        with _at_work(folder, new):
            yield folder


@contextmanager
def _unless_empty(folder: Path) -> Iterator[None]:
    """Removes what was not there of a folder and those above it, as far as it is empty in the end."""
    folder = folder.absolute()
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        for path in made:
            with suppress(OSError):  # it holds something; or this would hide what has failed before
                path.rmdir()


@contextmanager
def _at_work(folder: Path, new: bool) -> Iterator[None]:
    """Alone in a folder, what dead processes have left there tidied up. A new one goes again if it stays empty."""
    check_writable(folder)
    with claimed(folder):
        for place in (folder, *(folder / name for name in (MODELS, PREDICTIONS, PICTURES))):
            tidy(place)
        try:
            yield
        finally:
            with suppress(OSError):
                if new:
                    folder.rmdir()


def _claim(parent: Path, group: str, resume: bool) -> tuple[Path, bool]:
    """The folder, and whether it is new."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for name in chain([group], (f"{group}_{number}" for number in count())):
            try:
                (parent / name).mkdir()
            except FileExistsError:
                if not resume or not (parent / name).is_dir():
                    continue
                return parent / name, False
            return parent / name, True
    except OSError as error:
        raise _unwritable(parent, error) from None


def _unwritable(folder: Path, error: OSError) -> ResultsError:
    return ResultsError(
        f"cannot make a folder in {folder} ({error.strerror or error}): choose a results folder that you may write to, "
        "with room on its disk"
    )


def check_writable(folder: Path) -> None:
    """Raises ResultsError if a folder, or the one that it would be made in, cannot be written."""
    folder = folder.absolute()
    there = next(p for p in (folder, *folder.parents) if os.path.lexists(p))  # Path.exists may not look everywhere
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ResultsError(f"{there} cannot be written: choose a results folder that you may write to")


def train(
    categories: Sequence[Category],
    make_detector: Callable[[], Detector],
    results: Results,
    outputs: Outputs,
    *,
    progress: bool | Line = True,
) -> None:
    """Fit and evaluate one new detector per category; what `results` has already, of the same images, is skipped.

    Raises DataError before any work if a category has no training images.
    """
    for category in categories:
        if not category.train:
            raise DataError(f"no training images in {category.path / 'train' / 'good'}: put good images there")
    _check_names(categories)
    with line_of(progress, f"{len(categories)} of {len(categories)} categories") as line:
        for number, category in enumerate(categories, 1):
            line.at(f"{number} of {len(categories)}: {category.name}")
            made_from = _made_from([*category.train, *category.test], results)
            if _done(category, made_from, results, outputs):
                continue
            kept = outputs.and_those(results.outputs(row_name(category)))
            _peak_memory()
            detector = _telling(make_detector(), line)
            started = time.perf_counter()
            detector.fit(category.train)
            seconds = time.perf_counter() - started
            results.begin()
            if kept.models:
                detector.save(results.folder / MODELS / row_name(category))
            _evaluate(category, detector, results, kept, {"fit_seconds": seconds}, made_from, line)


def evaluate_models(
    categories: Sequence[Category],
    models: Sequence[Path],
    open_model: Callable[[Path], Detector],
    results: Results,
    outputs: Outputs,
    *,
    progress: bool | Line = True,
) -> None:
    """Evaluate saved detectors: one for each category, or one for all. They are opened one at a time.

    Raises SettingsError if there are as many as neither, DataError if a category has no test images.
    """
    if len(models) not in (1, len(categories)):
        raise SettingsError(f"{len(models)} models for {len(categories)} categories: give one for each, or one for all")
    for category in categories:
        if not category.test:
            raise DataError(f"no test images in {category.path / 'test'}: put images there, in one folder per defect")
    _check_names(categories)
    if len(models) == 1:
        models, open_model = list(models) * len(categories), cache(open_model)
    with line_of(progress, f"{len(categories)} of {len(categories)} categories") as line:
        for number, (category, model) in enumerate(zip(categories, models, strict=True), 1):
            line.at(f"{number} of {len(categories)}: {category.name}")
            made_from = _made_from(category.test, results, model)
            if _done(category, made_from, results, outputs):
                continue
            kept = outputs.and_those(results.outputs(row_name(category)))
            _peak_memory()
            _evaluate(category, _telling(open_model(model), line), results, kept, {}, made_from, line)


def _telling(detector: Detector, line: Line) -> Detector:
    """A detector that writes what it does into a line, unless it is a quiet one."""
    for member in detector.members:
        member.progress = member.progress and line
    return detector


def row_name(category: Category) -> str:
    """The reference's name for a category, in results.csv and of its model folder."""
    return f"mvtec_{category.name}"


def _check_names(categories: Sequence[Category]) -> None:
    """What becomes the names of files must not be too long for that, which would show after all the work."""
    for category in categories:
        run_name("a category", category.name)


def _made_from(samples: Sequence[Sample], results: Results, model: Path | None = None) -> str:
    """16 digits that change with the settings, with any image or mask, and with the model that is evaluated."""
    try:
        files = [(sample.name, sample.path) for sample in samples]
        files += [(f"{s.name} mask", file) for s in samples if s.mask_path for file in mask_files(s.mask_path)]
        if model:
            own = sorted(path for path in model.iterdir() if path.name.endswith(FILES))
            files += [(f"model {path.name}", path) for path in own]
        parts = json.dumps(results.settings, sort_keys=True), checksum(files)
    except OSError as error:
        raise DataError(f"cannot read {error.filename} ({error.strerror}): replace it or remove it") from None
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _done(category: Category, made_from: str, results: Results, outputs: Outputs) -> bool:
    """Whether a category has its row, made from the same, and all the files that are asked for.

    Raises ResultsError if one is in the way that the kit has not written.
    """
    name, wanted = row_name(category), outputs.of(category)
    files = {
        MODELS: [f"models/{name}"],
        PREDICTIONS: [f"predictions/{name}.npz", f"predictions/{name}.csv"],
        PICTURES: [f"segmentation_images/{name}"],
    }
    there = all((results.folder / file).exists() for kind in wanted for file in files[kind])
    if results.current(name, made_from, wanted) and there:
        LOGGER.info("%s: done before", name)
        return True
    for kind, check in ((MODELS, check_replaceable), (PICTURES, check_pictures)):  # before any work is done
        if kind in wanted and (results.folder / kind / name).is_dir():
            check(results.folder / kind / name)
    return False


def _evaluate(
    category: Category,
    detector: Detector,
    results: Results,
    outputs: Outputs,
    costs: dict,
    made_from: str,
    line: Line,
) -> None:
    """Predict, write what is asked for, and last of all the row: a category with a row is complete."""
    name = row_name(category)
    costs = costs | {"bank_rows": sum(len(member.bank_) for member in detector.members)}
    if category.test:
        started = time.perf_counter()
        predictions = detector.predict(category.test, mask_rule=outputs.mask_rule)
        costs["predict_seconds"] = time.perf_counter() - started
        metrics, defects = evaluate(predictions), predictions.by_defect()
        results.begin()
        if outputs.predictions:
            predictions.save(results.folder / PREDICTIONS / f"{name}.npz")
            predictions.save_table(results.folder / PREDICTIONS / f"{name}.csv")
        if outputs.images:
            with writing(results.folder / PICTURES / name, check_pictures) as pictures:
                save_segmentation_images(pictures, category.test, detector.transform, predictions, progress=line)
    else:
        metrics, defects = dict.fromkeys((*COLUMNS, *INTERVALS)), None
        metrics |= {"mask_rule": outputs.mask_rule, "undefined": "all metrics: no test images"}
    costs["peak_mb"] = _peak_memory()
    weights = ", ".join(printable(member.backbone.weights) for member in detector.members)
    row = metrics | dict.fromkeys(COSTS) | costs | {"weights": weights}
    results.add(name, row, defects, made_from=made_from, outputs=outputs.of(category))
    shown = ((key, metrics[key]) for key in METRICS[:4])
    numbers = ", ".join(f"{key} {value:.4f}" for key, value in shown if value is not None)
    alarms = metrics["image_false_alarms"]
    if alarms is not None:
        numbers += f"; at the F1-optimal threshold {alarms:.0%} of the good images are called defective"
    LOGGER.info("%s: %s", name, numbers or metrics["undefined"])
    above, missed = metrics["alarm_false_alarms"], metrics["alarm_missed"]
    said = [] if above is None else [f"{above:.0%} of the good test images are called anything but good"]
    said += [] if missed is None else [f"{missed:.0%} of the defective ones are missed"]
    if said:
        LOGGER.info("%s: at the threshold from good images %s", name, ", ".join(said))


def _peak_memory() -> float | None:
    """The most main memory that this process held since the last call, in MB; None where Linux's /proc does not say."""
    try:
        held = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now
    except (OSError, StopIteration):
        return None
    return int(held.split()[1]) * 1024 / 1e6
