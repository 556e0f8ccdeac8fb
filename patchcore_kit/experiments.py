"""Many categories: run folders, results.csv after every category, resuming.

RESULTS/results.csv                    one row per category and their mean; read it by column name
RESULTS/defects.csv                    the same for each kind of defect of each category
RESULTS/settings.json                  what the run was made with
RESULTS/models/mvtec_<category>/       see `reference_format`
RESULTS/predictions/mvtec_<category>.npz, .csv
RESULTS/segmentation_images/mvtec_<category>/
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain, count
from pathlib import Path

import numpy as np
import pandas as pd

from patchcore_kit.datasets import Category
from patchcore_kit.detector import PatchCore
from patchcore_kit.ensemble import PatchCoreEnsemble
from patchcore_kit.errors import DataError, ResultsError, SettingsError
from patchcore_kit.files import user_path, writing
from patchcore_kit.metrics import mean_interval
from patchcore_kit.plots import save_segmentation_images
from patchcore_kit.predictions import ALARMS, COLUMNS, INTERVALS, METRICS, evaluate

LOGGER = logging.getLogger(__name__)

Detector = PatchCore | PatchCoreEnsemble

COSTS = ("bank_rows", "fit_seconds", "predict_seconds", "peak_mb")
EARLIER = {"scoring": "distance", "alarm_rate": 0.05}  # settings of runs that do not record them


@dataclass(frozen=True, slots=True)
class Outputs:
    """What to keep of each category besides its row in results.csv, and how its masks are resized."""

    models: bool = False
    predictions: bool = False
    images: bool = False
    mask_rule: str = "inside"


@contextmanager
def run_folder(results: Path | str, project: str, group: str, *, resume: bool = False) -> Iterator[Path]:
    """RESULTS/project/group; if that is there already, group_0, group_1, ...; with `resume`, the same one.

    A new folder is claimed atomically, so runs that start together get one each; if the run then fails before it has
    written anything, the folder goes again. Raises ResultsError if it cannot be made or written.
    """
    results = user_path(results)
    parent = results.absolute() / project
    check_writable(parent)
    made = [p for p in (parent, *parent.parents) if not p.exists()]
    try:
        folder = _claim(parent, group, resume)
        made.insert(0, folder)
        check_writable(folder)
        yield results / project / folder.name
    finally:
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _claim(parent: Path, group: str, resume: bool) -> Path:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for name in chain([group], (f"{group}_{number}" for number in count())):
            try:
                (parent / name).mkdir()
            except FileExistsError:
                if not resume or not (parent / name).is_dir():
                    continue
            return parent / name
    except OSError as error:
        raise ResultsError(
            f"cannot make a folder in {parent} ({error.strerror or error}): choose a results folder that you may "
            "write to, with room on its disk"
        ) from None


def check_writable(folder: Path) -> None:
    """Raises ResultsError if a folder, or the one that it would be made in, cannot be written."""
    folder = folder.absolute()
    there = next(p for p in (folder, *folder.parents) if os.path.lexists(p))  # Path.exists may not look everywhere
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ResultsError(f"{there} cannot be written: choose a results folder that you may write to")


class Results:
    """The rows of results.csv in a folder; the file is rewritten, whole, after every row.

    With `resume` the rows that are there are kept, if they were made with the same settings.

    Raises SettingsError if they were not, ResultsError if the file cannot be read or written.
    """

    def __init__(self, folder: Path, settings: dict, *, resume: bool = False):
        self.folder = folder
        self.settings = json.loads(json.dumps(settings))
        self.rows: dict[str, dict] = {}
        self.defects = pd.DataFrame()
        if resume and (folder / "results.csv").is_file():
            self._check_settings()
            table = read_results(folder / "results.csv").drop(index="Mean", errors="ignore")
            self.rows = {name: row.to_dict() for name, row in table.iterrows()}
            if (folder / "defects.csv").is_file():
                self.defects = read_results(folder / "defects.csv")

    def _check_settings(self) -> None:
        path = self.folder / "settings.json"
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ResultsError(
                f"cannot resume in {self.folder} ({path.name}: {error}): start without --resume"
            ) from None
        if not isinstance(before, dict):
            raise ResultsError(f"cannot resume in {self.folder}: {path.name} is damaged, start without --resume")
        before = EARLIER | before
        changed = [key for key in self.settings if before.get(key) != self.settings[key]]
        if changed:
            key = changed[0]
            raise SettingsError(
                f"{self.folder} was made with {key} {before.get(key)}, not {self.settings[key]}: "
                "give the same settings, another --log_group, or no --resume"
            )

    def add(self, name: str, row: dict, defects: pd.DataFrame | None = None) -> None:
        """Add or replace a row, and those of its kinds of defect (`Predictions.by_defect`), and rewrite the files."""
        self.rows[name] = row
        others = self.defects[self.defects.index != name]
        if defects is not None and len(defects):
            defects = defects.reset_index().assign(**{"Row Names": name}).set_index("Row Names")
            others = pd.concat([others, defects]) if len(others) else defects
        self.defects = others
        with writing(self.folder / "settings.json") as temporary:
            temporary.write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")
        if len(self.defects):
            with writing(self.folder / "defects.csv") as temporary:
                self.defects.to_csv(temporary)
        with writing(self.folder / "results.csv") as temporary:
            self.table().to_csv(temporary)

    def table(self) -> pd.DataFrame:
        """One row per category, then `Mean`: of each metric and cost, over the categories where it is defined.

        The mean's interval follows from the categories', where all have one.
        """
        table = pd.DataFrame.from_dict(self.rows, orient="index").rename_axis("Row Names")
        averaged = [*METRICS, *ALARMS, *COSTS]
        wanted = [*table.columns, *averaged, *INTERVALS]
        table = table.reindex(columns=dict.fromkeys(wanted))  # a column may be newer than a row
        table[[*averaged, *INTERVALS]] = table[[*averaged, *INTERVALS]].astype(float)
        means = table[averaged].mean()
        for ends in zip(INTERVALS[::2], INTERVALS[1::2], strict=True):
            metric = ends[0].removesuffix("_low")
            known = table.loc[table[metric].notna(), [metric, *ends]]
            if len(known) and known.notna().all(axis=None):
                means[ends[0]], means[ends[1]] = mean_interval(*known.to_numpy().T)
        table.loc["Mean", means.index] = means
        return table


def published_results() -> pd.DataFrame:
    """The reference's published results on MVTec AD as a results table: image and pixel AUROC and PRO by category.

    Source: results.csv of its model IM224_WR50_L2-3_P01_D1024-1024_PS-3_AN-1 (wide ResNet-50, 224 pixels, 10 %),
    rounded to four decimals. Its `full_pro`, which its code does not compute, is left out.
    """
    return read_results(Path(__file__).with_name("published.csv"))


def read_results(path: Path | str) -> pd.DataFrame:
    """results.csv, the kit's or the reference's, with the row names as index.

    Raises ResultsError if it is missing or is something else.
    """
    try:
        return pd.read_csv(user_path(path), index_col="Row Names")
    except (OSError, ValueError) as error:
        raise ResultsError(f"cannot read {path} ({error}): train first, it is written after every category") from None


def tied(table: pd.DataFrame, metric: str, name: str) -> list[str]:
    """The other rows of a results table that a row's metric cannot be told from, by their intervals of 95 %.

    Two values differ if the interval of their difference (MOVER) leaves out 0. Empty where there are no intervals.
    """
    low, high = f"{metric}_low", f"{metric}_high"
    if low not in table or high not in table:
        return []
    rows = table.drop(index="Mean", errors="ignore").dropna(subset=[metric, low, high])
    if name not in rows.index:
        return []
    own, others = rows.loc[name], rows.drop(index=name)
    above = others[metric] >= own[metric]
    ends = np.hypot(
        np.where(above, others[metric] - others[low], others[high] - others[metric]),
        np.where(above, own[high] - own[metric], own[metric] - own[low]),
    )
    return others.index[(others[metric] - own[metric]).abs() <= ends].tolist()


def train(
    categories: Sequence[Category],
    make_detector: Callable[[], Detector],
    results: Results,
    outputs: Outputs,
    *,
    progress: bool = True,
) -> None:
    """Fit and evaluate one new detector per category; categories that `results` has already are skipped.

    Raises DataError before any work if a category has no training images.
    """
    for category in categories:
        if not category.train:
            raise DataError(f"no training images in {category.path / 'train' / 'good'}: put good images there")
    for category in categories:
        if _done(category, results, outputs):
            continue
        _peak_memory()
        started = time.perf_counter()
        detector = make_detector().fit(category.train)
        seconds = time.perf_counter() - started
        if outputs.models:
            detector.save(results.folder / "models" / row_name(category))
        _evaluate(category, detector, results, outputs, {"fit_seconds": seconds}, progress)


def evaluate_models(
    categories: Sequence[Category],
    load: Sequence[Callable[[], Detector]],
    results: Results,
    outputs: Outputs,
    *,
    progress: bool = True,
) -> None:
    """Evaluate saved detectors: one for each category, or one for all. `load` opens them, one at a time.

    Raises SettingsError if there are as many as neither, DataError if a category has no test images.
    """
    if len(load) not in (1, len(categories)):
        raise SettingsError(f"{len(load)} models for {len(categories)} categories: give one for each, or one for all")
    for category in categories:
        if not category.test:
            raise DataError(f"no test images in {category.path / 'test'}: put images there, in one folder per defect")
    if len(load) == 1:
        load = [cache(load[0])] * len(categories)
    for category, open_model in zip(categories, load, strict=True):
        if _done(category, results, outputs):
            continue
        _peak_memory()
        _evaluate(category, open_model(), results, outputs, {}, progress)


def row_name(category: Category) -> str:
    """The reference's name for a category, in results.csv and of its model folder."""
    return f"mvtec_{category.name}"


def _done(category: Category, results: Results, outputs: Outputs) -> bool:
    """Whether a category has its row and all the files that are asked for."""
    name = row_name(category)
    files = {
        f"models/{name}": outputs.models,
        f"predictions/{name}.npz": outputs.predictions and category.test,
        f"segmentation_images/{name}": outputs.images and category.test,
    }
    done = name in results.rows and all((results.folder / file).exists() for file, wanted in files.items() if wanted)
    if done:
        LOGGER.info("%s: done before", name)
    return done


def _evaluate(
    category: Category, detector: Detector, results: Results, outputs: Outputs, costs: dict, progress: bool
) -> None:
    """Predict, write what is asked for, and last of all the row: a category with a row is complete."""
    name = row_name(category)
    costs = costs | {"bank_rows": sum(len(member.bank_) for member in detector.members)}
    if category.test:
        started = time.perf_counter()
        predictions = detector.predict(category.test, mask_rule=outputs.mask_rule)
        costs["predict_seconds"] = time.perf_counter() - started
        metrics, defects = evaluate(predictions), predictions.by_defect()
        if outputs.predictions:
            predictions.save(results.folder / "predictions" / f"{name}.npz")
            predictions.save_table(results.folder / "predictions" / f"{name}.csv")
        if outputs.images:
            with writing(results.folder / "segmentation_images" / name) as pictures:
                save_segmentation_images(pictures, category.test, detector.transform, predictions, progress=progress)
    else:
        metrics, defects = dict.fromkeys((*COLUMNS, *INTERVALS)), None
        metrics |= {"mask_rule": outputs.mask_rule, "undefined": "all metrics: no test images"}
    costs["peak_mb"] = _peak_memory()
    weights = ", ".join(member.backbone.weights for member in detector.members)
    results.add(name, metrics | dict.fromkeys(COSTS) | costs | {"weights": weights}, defects)
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
