"""Many categories: run folders, results after every category, resuming; here or elsewhere (see `executors`).

RESULTS/results.csv, defects.csv, settings.json     see `results`
RESULTS/models/mvtec_<category>/                    see `reference_format`
RESULTS/predictions/mvtec_<category>.npz, .csv
RESULTS/segmentation_images/mvtec_<category>/
RESULTS/checkpoints/mvtec_<category>/               see `streaming`; goes when the category is done
"""

import hashlib
import json
import logging
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from itertools import chain, count
from pathlib import Path

import faiss
import pandas as pd
from tqdm.contrib.logging import logging_redirect_tqdm

from patchcore_kit.backbones import Backbone, load_backbone
from patchcore_kit.datasets import Category, Sample
from patchcore_kit.detector import PatchCore
from patchcore_kit.ensemble import PatchCoreEnsemble, load_detector
from patchcore_kit.errors import DataError, ResultsError, SettingsError, WeightsError
from patchcore_kit.executors import Executor, Here, JobsError, Place, reason
from patchcore_kit.files import checksum, claimed, printable, run_name, tidy, user_path, writing
from patchcore_kit.image_cache import ImageCache
from patchcore_kit.masks import mask_files
from patchcore_kit.metrics import INTERVALS, METRICS
from patchcore_kit.plots import check_pictures, save_segmentation_images
from patchcore_kit.predictions import COLUMNS, evaluate
from patchcore_kit.progress import Line, line_of
from patchcore_kit.reference_format import FILES, check_replaceable
from patchcore_kit.results import COSTS, Results, is_current, record

LOGGER = logging.getLogger(__name__)

Detector = PatchCore | PatchCoreEnsemble

MODELS, PREDICTIONS, PICTURES = "models", "predictions", "segmentation_images"
CHECKPOINTS = "checkpoints"


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
        _tidy(folder)
        try:
            yield
        finally:
            _tidy(folder)  # processes may have been ended
            with suppress(OSError):
                if new:
                    folder.rmdir()


def _tidy(folder: Path) -> None:
    for place in (folder, *(folder / name for name in (MODELS, PREDICTIONS, PICTURES))):
        tidy(place)


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


@dataclass(frozen=True, slots=True)
class Training:
    """What is trained for one results folder: as the arguments of `train`, of which it is one.

    pixels: of an image as the network sees it, by which sizes are put in order.
    """

    categories: Sequence[Category]
    make_detector: Callable[[], Detector]
    results: Results
    outputs: Outputs
    pixels: int = 1


def train(
    categories: Sequence[Category],
    make_detector: Callable[[], Detector],
    results: Results,
    outputs: Outputs,
    *,
    executor: Executor | None = None,
    progress: bool | Line = True,
) -> None:
    """Fit and evaluate one new detector per category; what `results` has already, of the same images, is skipped.

    executor: where; in this process if None. Elsewhere `make_detector` is pickled: see `NewDetector`.
    Raises DataError before any work if a category has no training images. A category that fails stops no other:
    its error is logged, and raised in the end, where there are several a JobsError.
    """
    train_all([Training(categories, make_detector, results, outputs)], executor=executor, progress=progress)


def train_all(trainings: Sequence[Training], *, executor: Executor | None = None, progress: bool | Line = True) -> None:
    """`train` for several results folders at once, as for several image sizes: the jobs of all go into one pool."""
    for training in trainings:
        for category in training.categories:
            if not category.train:
                raise DataError(f"no training images in {category.path / 'train' / 'good'}: put good images there")
        _check_names(training.categories)
    pairs = [(training, category) for training in trainings for category in training.categories]
    if executor and not isinstance(executor, Here):  # what takes longest first, so that all end at about the same time
        pairs.sort(key=lambda pair: -len(pair[1].train) * pair[0].pixels)
    jobs = [
        (training.results, Job.of(category, training.results, training.outputs, training.make_detector, fit=True))
        for training, category in pairs
    ]
    _do_all(jobs, executor or Here(), progress)


def evaluate_models(
    categories: Sequence[Category],
    models: Sequence[Path],
    open_model: Callable[[Path], Detector],
    results: Results,
    outputs: Outputs,
    *,
    executor: Executor | None = None,
    progress: bool | Line = True,
) -> None:
    """Evaluate saved detectors: one for each category, or one for all. In this process they are opened one at a time.

    executor: as of `train`, where `open_model` may be a `SavedDetector`.
    Raises SettingsError if there are as many as neither, DataError if a category has no test images, and as `train`.
    """
    executor = executor or Here()
    if len(models) not in (1, len(categories)):
        raise SettingsError(f"{len(models)} models for {len(categories)} categories: give one for each, or one for all")
    for category in categories:
        if not category.test:
            raise DataError(f"no test images in {category.path / 'test'}: put images there, in one folder per defect")
    _check_names(categories)
    if len(models) == 1:
        models = list(models) * len(categories)
        open_model = cache(open_model) if isinstance(executor, Here) else open_model
    jobs = [
        (results, Job.of(category, results, outputs, open_model, model=model))
        for category, model in zip(categories, models, strict=True)
    ]
    _do_all(jobs, executor, progress)


def row_name(category: Category) -> str:
    """The reference's name for a category, in results.csv and of its model folder."""
    return f"mvtec_{category.name}"


def _check_names(categories: Sequence[Category]) -> None:
    """What becomes the names of files must not be too long for that, which would show after all the work."""
    for category in categories:
        run_name("a category", category.name)


# one category


@dataclass(frozen=True, slots=True)
class Job:
    """One category of one run: all that it takes to do it, in any process that sees the same folders.

    get: makes a detector, or opens `model`. before: what an earlier row was made from, None if there is none to keep.
    earlier: what was written beside it.
    """

    category: Category
    get: Callable[..., Detector]
    model: Path | None
    fit: bool
    folder: Path
    settings: dict
    outputs: Outputs
    before: str | None
    earlier: frozenset[str]

    @classmethod
    def of(
        cls,
        category: Category,
        results: Results,
        outputs: Outputs,
        get: Callable[..., Detector],
        *,
        model: Path | None = None,
        fit: bool = False,
    ) -> "Job":
        """Of a category and the table that its row goes to."""
        before, earlier = results.made_from(row_name(category)), frozenset(results.outputs(row_name(category)))
        return cls(category, get, model, fit, results.folder, results.settings, outputs, before, earlier)

    @property
    def name(self) -> str:
        """Of its row."""
        return row_name(self.category)

    def elsewhere(self) -> "Job":
        """The same, wherever it is done: with paths that do not depend on the current folder."""
        train, test = ([_absolute(sample) for sample in part] for part in (self.category.train, self.category.test))
        category = replace(self.category, path=self.category.path.absolute(), train=train, test=test)
        model = self.model and self.model.absolute()
        return replace(self, category=category, model=model, folder=self.folder.absolute())


def _absolute(sample: Sample) -> Sample:
    path, mask = (place and place.absolute() for place in (sample.path, sample.mask_path))
    return replace(sample, path=path, mask_path=mask)


@dataclass(frozen=True, slots=True)
class Row:
    """What comes of a job: a row, those of its kinds of defect, and what else it has written."""

    numbers: dict
    defects: pd.DataFrame | None
    made_from: str
    outputs: list[str]


def _do_all(jobs: Sequence[tuple[Results, Job]], executor: Executor, progress: bool | Line) -> None:
    """Do the jobs and write their rows, as they come."""
    here = isinstance(executor, Here)
    several = len({results.folder for results, _ in jobs}) > 1
    names = [f"{job.category.name} ({results.folder.name})" if several else job.category.name for results, job in jobs]
    what, total, failed = "jobs" if several else "categories", len(jobs), {}
    for results in {id(results): results for results, _ in jobs}.values():
        _make(results.folder)
        results.expect([job.name for its, job in jobs if its is results])
    with line_of(progress, f"{total} of {total} {what}") as line, ExitStack() as stack:
        if here:
            task, sent = partial(_do, line=line), _announced(line, names, (job for _, job in jobs))
            bar = None
        else:
            task, sent = _do, (job.elsewhere() for _, job in jobs)
            if sys.stderr.isatty():
                stack.enter_context(logging_redirect_tqdm())  # a line of the log goes above the bar
            bar = stack.enter_context(line.bar(what, total))
        for number, outcome in stack.enter_context(closing(executor.run(task, sent))):
            results, job = jobs[number]
            for logger, level, message in outcome.told:
                logging.getLogger(logger).log(
                    level, "mvtec_%s: %s", names[number], message.removeprefix(f"{job.name}: ")
                )
            error = outcome.error
            if outcome.value and not (error := _not_here(results, job, outcome.value)):
                row = outcome.value
                results.add(job.name, row.numbers, row.defects, made_from=row.made_from, outputs=row.outputs)
                _tell(f"mvtec_{names[number]}", row.numbers)
            if error and total == 1:
                raise error
            if error:
                LOGGER.error("mvtec_%s: %s", names[number], reason(error))
                failed[number] = error
            if bar is not None:
                bar.update()
        if len(failed) == 1:
            raise next(iter(failed.values()))
        if failed:
            which = ", ".join(names[number] for number in sorted(failed))  # not in the order in which they came
            raise JobsError(
                f"{len(failed)} of {total} {what} are not done, for the reasons above: {which}; "
                "with --resume they are tried again"
            )


def _announced(line: Line, names: Sequence[str], jobs: Iterable[Job]) -> Iterator[Job]:
    for number, (name, job) in enumerate(zip(names, jobs, strict=True), 1):
        line.at(f"{number} of {len(names)}: {name}")
        yield job


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder.parent, error) from None


def _not_here(results: Results, job: Job, row: Row) -> JobsError | None:
    """What is wrong if a worker has written to a folder of the same name on a disk of its own."""
    missing = [file for kind in row.outputs for file in _files(kind, job.name) if not (results.folder / file).exists()]
    if not missing:
        return None
    return JobsError(
        f"{results.folder / missing[0]} was written by a worker and is not here: workers must see the same results "
        "folder"
    )


def _files(kind: str, name: str) -> list[str]:
    """What is written of a category, within the results folder."""
    return [f"{kind}/{name}{ending}" for ending in ((".npz", ".csv") if kind == PREDICTIONS else ("",))]


def _do(job: Job, place: Place, line: Line | None = None) -> Row | None:
    """Fit, predict, write what is asked for -> the row: a category with a row is complete. None: it was before."""
    line = line or Line(False)
    samples = [*job.category.train, *job.category.test] if job.fit else job.category.test
    made_from = _made_from(samples, job)
    if _is_done(job, made_from):
        return None
    kept, costs = job.outputs.and_those(job.earlier), {}
    _peak_memory()
    detector = job.get(job.model) if job.model else job.get()
    for member in detector.members:
        member.progress = member.progress and line  # unless it is a quiet one
        member.workers = member.workers or place.threads
    if job.fit:
        started = time.perf_counter()
        memory = job.settings.get("memory")
        checkpoint = memory and job.folder / CHECKPOINTS / job.name
        if memory:
            _begin(job, place)
        detector.fit(job.category.train, memory=memory, checkpoint=checkpoint)
        costs["fit_seconds"] = time.perf_counter() - started
        if kept.models:
            _begin(job, place)
            detector.save(job.folder / MODELS / job.name)
    costs["bank_rows"] = sum(len(member.bank_) for member in detector.members)
    if job.category.test:
        started = time.perf_counter()
        predictions = detector.predict(job.category.test, mask_rule=kept.mask_rule)
        costs["predict_seconds"] = time.perf_counter() - started
        metrics, defects = evaluate(predictions), predictions.by_defect()
        if kept.predictions:
            _begin(job, place)
            predictions.save(job.folder / PREDICTIONS / f"{job.name}.npz")
            predictions.save_table(job.folder / PREDICTIONS / f"{job.name}.csv")
        if kept.images:
            _begin(job, place)
            with writing(job.folder / PICTURES / job.name, check_pictures) as pictures:
                save_segmentation_images(pictures, job.category.test, detector.transform, predictions, progress=line)
    else:
        metrics, defects = dict.fromkeys((*COLUMNS, *INTERVALS)), None
        metrics |= {"mask_rule": kept.mask_rule, "undefined": "all metrics: no test images"}
    if job.fit and memory:
        shutil.rmtree(checkpoint)
        with suppress(OSError):  # another category's is there
            checkpoint.parent.rmdir()
    costs["peak_mb"] = _peak_memory()
    weights = ", ".join(printable(member.backbone.weights) for member in detector.members)
    numbers = metrics | dict.fromkeys(COSTS) | costs | {"weights": weights}
    return Row(numbers, defects, made_from, kept.of(job.category))


def _begin(job: Job, place: Place) -> None:
    """Before something is written: nobody must have given the job up, and the settings come first."""
    if not place.wanted():
        raise JobsError(f"{job.name} is not waited for any more, so nothing is written")
    if not job.folder.is_dir():
        raise ResultsError(f"{job.folder} is not on {platform.node()}: workers must see the same results folder")
    record(job.folder, job.settings)


def _made_from(samples: Sequence[Sample], job: Job) -> str:
    """16 digits that change with the settings, with any image or mask, and with the model that is evaluated."""
    try:
        files = [(sample.name, sample.path) for sample in samples]
        files += [(f"{s.name} mask", file) for s in samples if s.mask_path for file in mask_files(s.mask_path)]
        if job.model:
            own = sorted(path for path in job.model.iterdir() if path.name.endswith(FILES))
            files += [(f"model {path.name}", path) for path in own]
        parts = json.dumps(job.settings, sort_keys=True), checksum(files)
    except OSError as error:
        raise DataError(f"cannot read {error.filename} ({error.strerror}): replace it or remove it") from None
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _is_done(job: Job, made_from: str) -> bool:
    """Whether a category has its row, made from the same, and all the files that are asked for.

    Raises ResultsError if one is in the way that the kit has not written.
    """
    name, wanted = job.name, job.outputs.of(job.category)
    there = all((job.folder / file).exists() for kind in wanted for file in _files(kind, name))
    if is_current(name, job.before, made_from) and there and job.earlier.issuperset(wanted):
        LOGGER.info("%s: done before", name)
        return True
    for kind, check in ((MODELS, check_replaceable), (PICTURES, check_pictures)):  # before any work is done
        if kind in wanted and (job.folder / kind / name).is_dir():
            check(job.folder / kind / name)
    return False


def _tell(name: str, row: dict) -> None:
    """The most important of a new row's numbers, in words."""
    shown = ((key, row[key]) for key in METRICS[:4])
    numbers = ", ".join(f"{key} {value:.4f}" for key, value in shown if value is not None)
    alarms = row["image_false_alarms"]
    if alarms is not None:
        numbers += f"; at the F1-optimal threshold {alarms:.0%} of the good images are called defective"
    LOGGER.info("%s: %s", name, numbers or row["undefined"])
    above, missed = row["alarm_false_alarms"], row["alarm_missed"]
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


# detectors, for where they are sent to other processes


@dataclass(frozen=True, slots=True)
class Network:
    """What `load_backbone` takes, and the fingerprint of what it gave here."""

    name: str
    layers: tuple[str, ...]
    weights: str | None
    device: str
    seed: int
    precision: str
    fingerprint: str

    def load(self) -> Backbone:
        """The same network where this is. Raises WeightsError if what is found here are other weights."""
        weights = self.weights
        found = load_backbone(self.name, self.layers, weights, self.device, self.seed, precision=self.precision)
        if found.fingerprint != self.fingerprint:
            raise WeightsError(
                f"{platform.node()} has other weights of {self.name} ({found.weights}, {found.fingerprint} instead of "
                f"{self.fingerprint}): give it the same"
            )
        return found


_load = lru_cache(maxsize=4)(Network.load)  # a worker does many jobs with the same networks


class NewDetector:
    """Makes detectors of the same settings, to be fitted: a PatchCore, or an ensemble of one for each network.

    settings: what else `PatchCore` takes. cached: whether images are kept in the image cache. search_threads: of FAISS,
    if not as many as of all else. backbones: the networks, if they are loaded already. It can be pickled: elsewhere
    its networks are loaded anew, and must be the same.
    """

    def __init__(
        self,
        networks: Sequence[Network],
        settings: Mapping,
        *,
        cached: bool = True,
        search_threads: int | None = None,
        backbones: Sequence[Backbone] | None = None,
    ):
        self.networks, self.settings, self.cached = tuple(networks), dict(settings), cached
        self.search_threads = search_threads
        self._backbones = [_load(network) for network in networks] if backbones is None else list(backbones)
        self._cache = ImageCache() if cached else None

    def __reduce__(self):
        again = {"cached": self.cached, "search_threads": self.search_threads}
        return partial(NewDetector, self.networks, self.settings, **again), ()

    def __call__(self) -> Detector:
        """Raises as `PatchCore`."""
        _search_with(self.search_threads)
        made = [
            PatchCore(backbone, seed=network.seed, cache=self._cache, **self.settings)
            for network, backbone in zip(self.networks, self._backbones, strict=True)
        ]
        return PatchCoreEnsemble(made) if len(made) > 1 else made[0]


@dataclass(frozen=True, slots=True)
class SavedDetector:
    """Opens model folders, here or elsewhere, with the same settings. weights, resize, bits: see `load_detector`."""

    weights: str | tuple[str, ...] | None = None
    resize: int | tuple[int, int] | None = None
    bits: int | None = None
    device: str = "cpu"
    batch_size: int = 8
    workers: int | None = None
    cached: bool = True
    search_threads: int | None = None

    def __call__(self, folder: Path) -> Detector:
        """Raises as `load_detector`."""
        _search_with(self.search_threads)
        detector = load_detector(folder, self.weights, self.resize, bits=self.bits, device=self.device)
        cache = ImageCache() if self.cached else None
        for member in detector.members:
            member.batch_size, member.workers, member.cache = self.batch_size, self.workers, cache
        return detector


def _search_with(threads: int | None) -> None:
    if threads:
        faiss.omp_set_num_threads(threads)
