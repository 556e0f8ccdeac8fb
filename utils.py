"""What the notebooks share: command lines built from Python, a look at the machine, results and what data may lack."""

import io
import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from importlib.metadata import version
from numbers import Real
from pathlib import Path

import click
import faiss
import numpy as np
import pandas as pd
import torch
from IPython import get_ipython
from IPython.display import display
from matplotlib import pyplot as plt

import patchcore_kit as pk
from patchcore_kit import plots
from patchcore_kit.cli import load_and_evaluate_patchcore, run_patchcore
from patchcore_kit.datasets import as_samples
from patchcore_kit.errors import check_choice, short, whole_number
from patchcore_kit.files import file_name, numbered, read_json, user_path
from patchcore_kit.predictions import ALARMS
from patchcore_kit.weights import any_file, find, resolve

# to this output, once it is on the page, and once more when Run All has ended; not when the notebook is opened again
SCROLL = """
const show = () => element.closest(".jp-Cell")?.scrollIntoView({block: "center"});
if (Date.now() - %.0f < 9000) [200, 1000].forEach(wait => setTimeout(show, wait));
"""
STOPPED = "Stopped. Run the cell again to go on."
LAYERS, PERCENTAGE, RESIZE, IMAGESIZE = ("layer2", "layer3"), 0.1, 256, 224  # the published settings
LOWER_IS_BETTER = ("image_false_alarms", "alarm_false_alarms", "alarm_missed", *pk.COSTS)
SAMPLE_AUROC = {  # image AUROC of the sample data with the starter, by task 1
    "biscuit": 1.0, "board": 0.921, "bottle_cap": 0.995, "pill": 1.0, "screw": 0.912, "terrazzo": 0.898,
    "weave": 0.949, "wood": 0.986,
}  # fmt: skip
BACKBONES = ("resnet18", "resnet50", "wideresnet50", "wideresnet101")  # those whose weights `start` looks for


@contextmanager
def commandline_args(*args: str) -> Iterator[None]:
    """Within the block, a command called without arguments sees these, as if typed in a terminal."""
    before = sys.argv
    sys.argv = [before[0], *map(str, args)]
    try:
        yield
    finally:
        sys.argv = before


def get_train_args(
    data_path: Path | str,
    categories: Sequence[str],
    *,
    results_path: Path | str = "experiments",
    log_project: str = "step1",
    log_group: str | list[str] = "0000",
    backbone: str = "wideresnet50",
    layers: Sequence[str] = LAYERS,
    percentage: float = PERCENTAGE,
    resize: int | tuple[int, int] | list[int] = RESIZE,
    imagesize: int | list[int] = IMAGESIZE,
    gpu: Sequence[int] = (),
    seed: int = 0,
    save_models: bool = True,
    resume: bool = False,
    weights: str | None = None,
    save_predictions: bool = False,
    save_segmentation_images: bool = False,
    jobs: int | None = None,
    scheduler: str | None = None,
) -> list[str]:
    """The arguments of `bin/run_patchcore.py`. weights: a file, "random", or None to look for them.

    resize, imagesize, log_group: several image sizes at once as lists of one length.
    jobs: how many categories at once; memory grows with it. scheduler: the address of a Dask cluster that does it.
    Neither: one at a time, unless the environment names a scheduler (`DASK_SCHEDULER_ADDRESS`).
    Raises SettingsError for categories or layers that are no list, or an empty one.
    """
    flags = {
        "--save_patchcore_model": save_models,
        "--save_predictions": save_predictions,
        "--save_segmentation_images": save_segmentation_images,
        "--resume": resume,
    }
    groups = log_group if isinstance(log_group, list) else [log_group]
    run = ["--seed", seed, "--log_project", log_project, *_repeat("--log_group", groups), *_where(jobs, scheduler)]
    network = [
        "patch_core",
        "-b",
        backbone,
        *_repeat("-le", _listed("layers", layers)),
        *_repeat("--weights", [weights] if weights else []),
    ]
    sampler = ["sampler", "-p", percentage, "approx_greedy_coreset"]
    data = _dataset_args(data_path, categories, resize, imagesize)
    chosen = [flag for flag, on in flags.items() if on]
    return [str(a) for a in (*run, *_repeat("--gpu", gpu), *chosen, results_path, *network, *sampler, *data)]


def get_evaluate_args(
    data_path: Path | str,
    categories: Sequence[str],
    models: Path | str | Sequence[Path | str],
    *,
    results_path: Path | str = "evaluation",
    resize: int | tuple[int, int] | None = 256,
    imagesize: int = 224,
    gpu: Sequence[int] = (),
    seed: int = 0,
    save_predictions: bool = True,
    save_segmentation_images: bool = False,
    weights: str | None = None,
    jobs: int | None = None,
    scheduler: str | None = None,
) -> list[str]:
    """The arguments of `bin/load_and_evaluate_patchcore.py`. jobs, scheduler: as of `get_train_args`.

    models: one model folder for each category, or the folder `models` of a run, which holds `mvtec_<category>`.
    resize: None takes each model's own size. Raises SettingsError for categories that are no list, or an empty one.
    """
    if isinstance(models, str | Path):
        models = [Path(models) / f"mvtec_{category}" for category in _listed("categories", categories)]
    flags = {"--save_predictions": save_predictions, "--save_segmentation_images": save_segmentation_images}
    chosen = [flag for flag, on in flags.items() if on]
    run = ["--seed", seed, *_where(jobs, scheduler), *_repeat("--gpu", gpu), *chosen, results_path]
    loader = ["patch_core_loader", *_repeat("-p", models), *_repeat("--weights", [weights] if weights else [])]
    return [str(a) for a in (*run, *loader, *_dataset_args(data_path, categories, resize, imagesize))]


def _listed(name: str, values: Iterable) -> list:
    """Raises SettingsError for what is no list, or an empty one: letters are no categories, and none are not all."""
    if isinstance(values, str | Path | Real | None):
        raise pk.SettingsError(f"{name} is {values!r}, which is no list: write [{values!r}]")
    if not (values := list(values)):
        raise pk.SettingsError(f"{name} is an empty list: name at least one")
    return values


def _repeat(option: str, values: Sequence) -> list:
    return [part for value in values for part in (option, value)]


def _where(jobs: int | None, scheduler: str | None) -> list:
    return [*(["--jobs", jobs] if jobs else []), *(["--scheduler", scheduler] if scheduler else [])]


def _dataset_args(
    data_path: Path | str, categories: Sequence[str], resize: int | tuple | list | None, imagesize: int | list
) -> list:
    resizes = resize if isinstance(resize, list) else [] if resize is None else [resize]
    sides = imagesize if isinstance(imagesize, list) else [imagesize]
    cut = [one for one in resizes if not isinstance(one, tuple)]
    if len(cut) not in (0, len(sides)):
        raise pk.SettingsError(
            f"resize is {resize!r} and imagesize {imagesize!r}: give lists of one length, or a pair (height, width)"
        )
    crops, size = iter(sides), []
    for one in resizes:
        whole = isinstance(one, tuple)
        size += ["--resize", "x".join(map(str, one))] if whole else ["--resize", one, "--imagesize", next(crops)]
    return ["dataset", *size, *_repeat("-d", _listed("categories", categories)), "mvtec", data_path]


def ended(end: SystemExit) -> None:
    """What a script's exit says in a cell. Raises KitError if it has failed or was stopped."""
    if end.code == 130:  # as after a Ctrl-C
        raise pk.KitError(STOPPED) from None
    if end.code:
        raise pk.KitError("It failed: the line that begins with 'Error' says why.") from None
    print("Done.")


def start() -> tuple[Path, tuple[int, ...]]:
    """Say what there is to work with, and return it: (data folder, GPUs to use).

    The data is MVTec AD where `pk.find_data` finds it, else the sample data, drawn now if it is not there yet; a few
    images of it where the environment variable PATCHCORE_SMALL is set. From here on relative paths start at the work
    folder, logs say what is odd and no more, and a cell that fails is scrolled to.
    """
    os.chdir(pk.work_folder())
    plt.rcParams.update(plots.STYLE)
    plots.show_alt_texts()
    logging.basicConfig(stream=sys.stdout, format="%(message)s")  # as any other output, not as an error's
    logging.getLogger("patchcore_kit").setLevel(logging.WARNING)
    if shell := get_ipython():
        shell.set_custom_exc((Exception, KeyboardInterrupt), _show_error)
    gpus = tuple(range(torch.cuda.device_count()))[:1]
    found, root = pk.find_data(), os.environ.get("MVTEC_ROOT")
    data = found or _draw_sample_data()
    weights = [name for name in BACKBONES if find(resolve(name))] if any_file() else []
    models = pk.find_models()
    if root and found != Path(root):
        _say(False, f"MVTEC_ROOT: no categories in {root}")
    _say(True, f"packages: torch {torch.__version__}, torchvision {version('torchvision')}, faiss {faiss.__version__}")
    _say(gpus, f"GPU: {torch.cuda.get_device_name(0) if gpus else 'none, everything runs on the CPU'}")
    _say(found, f"data: {'' if found else 'no MVTec AD, so '}{data} ({', '.join(pk.list_categories(data))})")
    _say(weights, f"published weights: {', '.join(weights) or 'none yet, so the starter (docs/backbones.md)'}")
    _say(models, f"trained models: {len(models) or 'none yet, task 1 makes some'}")
    return data, gpus


def _draw_sample_data() -> Path:
    folder = Path("data")
    if os.environ.get("PATCHCORE_SMALL"):
        return pk.draw_sample_data(folder / "sample_small", ("pill", "screw", "weave"), train=8, good=4, defective=6)
    return pk.draw_sample_data(folder / "sample")


def _say(there: object, what: str) -> None:
    print("[OK]" if there else "[--]", what)


def _show_error(shell, etype: type, error: BaseException, traceback, tb_offset: int | None = None) -> None:
    """IPython's way, but a stop is a sentence, and the page goes to the cell, from which the others were left out."""
    if isinstance(error, KeyboardInterrupt):
        error._render_traceback_ = lambda: [STOPPED]
    shell.showtraceback((etype, error, traceback), tb_offset=tb_offset)
    display({"application/javascript": SCROLL % (1000 * time.time())}, raw=True)


def check_parameters(data: Path | None, **parameters: object) -> None:
    """Raises SettingsError for the first of a notebook's parameters, by name, that is not of its kind."""
    metrics = *pk.METRICS, *ALARMS, "image_false_alarms"
    kinds = {
        "CATEGORY": lambda _, value: value == "" or check_choice("category", value, pk.list_categories(data)),
        "METRIC": lambda _, value: check_choice("metric", value, metrics),
        "IMAGESIZE": lambda name, value: whole_number(name, value, 16),
        "RESIZE": lambda name, value: [whole_number(name, side, 16) for side in _sides(value)],
        "N": lambda name, value: whole_number(name, value, 1),
        "DIGITS": lambda name, value: whole_number(name, value, 0),
        "JOBS": lambda name, value: value is None or whole_number(name, value, 1),
        "SCHEDULER": lambda name, value: (
            value is None or _check_kind(name, value, str, "an address, as 'tcp://host:8786'")
        ),
        "SHARE": _check_share,
        "NAME": lambda name, value: _check_kind(name, value, str, "a name, as 'starter' or 'layer2'"),
        "FOLDER": lambda name, value: _check_kind(name, value, str | Path, "the name of a folder"),
    }
    lists = {"CATEGORIES": "CATEGORY", "METRICS": "METRIC", "LAYERS": "NAME", "SIZES": "IMAGESIZE"}
    others = {"BACKBONE": "NAME", "DEVICE": "NAME", "PERCENTAGE": "SHARE", "ALARM_RATE": "SHARE"}
    others |= dict.fromkeys(("GOOD", "JUDGE", "MODEL", "RUN", "RESULTS"), "FOLDER")
    for name, value in parameters.items():
        values = _listed(name, value) if name in lists else [value]
        for one in values:
            kinds[(lists | others).get(name, name)](name, one)
        if twice := [one for i, one in enumerate(values) if one in values[:i]]:
            raise pk.SettingsError(f"{name} names {twice[0]!r} twice: once is enough")


def _sides(size: object) -> Sequence:
    return size if isinstance(size, tuple) else [size]


def _check_share(name: str, value: object) -> None:
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 < value <= 1:
        raise pk.SettingsError(f"{name} is {value!r}: give a share, above 0 and at most 1, as 0.1")


def _check_kind(name: str, value: object, kind: type, what: str) -> None:
    if not isinstance(value, kind):
        raise pk.SettingsError(f"{name} is {value!r}: give {what}")


# results by data and settings


def run_folder(
    project: str,
    data: Path,
    backbone: str = "starter",
    layers: Sequence[str] = LAYERS,
    percentage: float = PERCENTAGE,
    resize: int | tuple[int, int] = RESIZE,
    imagesize: int = IMAGESIZE,
) -> Path:
    """The folder in experiments/PROJECT for results of this data with these settings: where they are, or a new one.

    Names say what is in there, as sample-starter-112. Of task 1 the starter's with the published settings go to 0000,
    if nothing is there. Raises SettingsError for settings of the wrong kind.
    """
    settings = {"BACKBONE": backbone, "LAYERS": layers, "PERCENTAGE": percentage}
    check_parameters(data, **settings, RESIZE=resize, IMAGESIZE=imagesize)
    wanted = data, backbone, layers, percentage, resize, imagesize
    if there := [run for run in _runs(project) if _made_with(run, *wanted)]:
        return there[0]
    published = (backbone, tuple(layers), percentage, resize, imagesize) == (
        "starter", LAYERS, PERCENTAGE, RESIZE, IMAGESIZE
    )  # fmt: skip
    first = Path("experiments", project, "0000")
    if project == "step1" and published and not first.exists():
        return first
    whole = isinstance(resize, tuple)
    parts = [data.resolve().name, backbone, "x".join(map(str, resize)) if whole else imagesize]
    parts += [] if tuple(layers) == LAYERS else layers
    parts += [] if percentage == PERCENTAGE else [f"{100 * percentage:g}percent"]
    parts += [] if whole or resize == round(imagesize * 8 / 7) else [f"of{resize}"]
    names = (first.with_name(name) for name in numbered(file_name("-".join(map(str, parts)).replace("/", "-"))))
    return next(folder for folder in names if not folder.exists())


def _runs(project: str) -> list[Path]:
    """The folders in experiments/PROJECT that say what they were made with, the newest last."""
    files = sorted(Path("experiments", project).glob("*/settings.json"), key=lambda file: file.stat().st_mtime)
    return [file.parent for file in files]


def _made_with(
    run: Path,
    data: Path,
    backbone: str,
    layers: Sequence[str] | None = None,
    percentage: float | None = None,
    resize: int | tuple[int, int] | None = None,
    imagesize: int | None = None,
) -> bool:
    """Whether a run is of this data and network, and of those settings that are given, all others as the tasks'."""
    try:
        made = _settings(run)
        names = trained_categories(run) if (run / "results.csv").is_file() else []
    except pk.ResultsError as error:
        print(error)
        return False
    wanted = {"data": data.resolve().name, "percentage": percentage, "resize": resize, "imagesize": imagesize}
    wanted |= {"sampler": "approx_greedy_coreset", "scoring": "distance", "seed": 0}
    wanted = {key: value for key, value in json.loads(json.dumps(wanted)).items() if value is not None}
    networks = [one[:2] if layers else one[:1] for one in made.get("backbones", [])]
    return (
        {key: made.get(key) for key in wanted} == wanted
        and networks == [[backbone, list(layers)] if layers else [backbone]]
        and set(names) <= set(pk.list_categories(data))
    )


def task1_run(data: Path, backbone: str = "starter") -> Path:
    """The results of task 1 that the later tasks take: at the published settings, else the newest of this network.

    Says which others there are. Where there are none, the folder is that which task 1 would make.
    """
    published = run_folder("step1", data, backbone)
    there = [run for run in _runs("step1") if _made_with(run, data, backbone)]
    chosen = published if published in there or not there else there[-1]
    if others := [str(run) for run in there if run != chosen]:
        print(f"results of {chosen}; there are also {', '.join(others)}: RUN = {others[0]!r} takes another")
    return chosen


def as_run(run: Path | str) -> Path:
    """A run's folder, there or to be made in experiments. Raises SettingsError for anything else."""
    check_parameters(None, RUN=run)
    run = Path(run)
    if not run.is_dir() and "experiments" not in run.parts:
        raise pk.SettingsError(f"RUN is {str(run)!r}, which is not there: take a folder of experiments/step1")
    return run


def evaluation_folder(run: Path | str) -> Path:
    """Where the models of a run are evaluated: in a folder of its name. Raises as `as_run`."""
    return Path("evaluation", as_run(run).name)


def find_or_train(data: Path, run: Path | str, *, backbone: str = "starter", gpu: Sequence[int] = ()) -> Path:
    """The results folder of task 1; where it is missing it is trained now, with task 1's settings.

    Trains on the sample data as a whole, or on up to three categories of other data, which take longer.
    Raises ResultsError if the folder was made from other data, and as `as_run`.
    """
    run = as_run(run)
    if not (run / "results.csv").is_file():
        print(f"{run} is not there, task 1 makes it: trained now, with {backbone}")
        categories = pk.list_categories(data)[: None if data.name == "sample" else 3]
        project = run.absolute().parent
        folder = {"results_path": project.parent, "log_project": project.name, "log_group": run.name}
        _call(run_patchcore, get_train_args(data, categories, **folder, backbone=backbone, resume=True, gpu=gpu))
    name = data.resolve().name  # as the script records it
    made_from = _settings(run).get("data", name)
    if made_from != name:
        raise pk.ResultsError(f"{run} was made from {short(made_from)}, not {name}: set RUN to another folder")
    missing = set(pk.list_categories(data)) - set(trained_categories(run))
    if missing:
        print(f"{run} has no {', '.join(sorted(missing))}: task 1 adds them")
    return run


def trained_categories(run: Path) -> list[str]:
    """The categories of a run that are done. Raises ResultsError if it has no table."""
    return [_category(row) for row in pk.read_results(run / "results.csv").index.drop("Mean")]


def _category(row: str) -> str:
    return row.removeprefix("mvtec_")


def with_test_images(data: Path, categories: Sequence[str]) -> list[str]:
    """Those of the categories that can be evaluated; says which cannot. Raises DataError if one cannot be used."""
    tested = [name for name in categories if pk.load_category(data, name).test]
    untested = [name for name in categories if name not in tested]
    if untested:
        print(f"{', '.join(untested)}: no test images to evaluate")
    return tested


def find_or_evaluate(data: Path, run: Path, folder: Path | str = "evaluation", *, gpu: Sequence[int] = ()) -> Path:
    """The results folder of task 4, with predictions of all models of a run; made anew if something is missing or old.

    Categories without test images are left out; if no other is there, it is the folder of task 1, whose table has them.
    Raises ResultsError if they cannot be evaluated, DataError for a category that cannot be used.
    """
    folder, categories = Path(folder), with_test_images(data, trained_categories(run))
    if not categories:
        return run
    models = [run / "models" / f"mvtec_{category}" for category in categories]
    made, table = _settings(folder), folder / "results.csv"
    current = (
        made.get("models") == [str(model) for model in models]
        and made.get("data") == data.resolve().name
        and all(_with_reasons(folder / "predictions" / f"{model.name}.npz") for model in models)
        and table.is_file()
        and table.stat().st_mtime >= (run / "results.csv").stat().st_mtime
    )
    if not current:
        args = get_evaluate_args(data, categories, models, results_path=folder, resize=None, gpu=gpu)
        _call(load_and_evaluate_patchcore, args)
    return folder


def _with_reasons(path: Path) -> bool:
    """Whether predictions are there, and not of an earlier version, which had no reasons."""
    return path.is_file() and pk.Predictions.load(path).evidence is not None


def train_at_sizes(
    data: Path,
    categories: Sequence[str],
    sizes: Sequence[int],
    *,
    project: str = "step7",
    backbone: str = "wideresnet50",
    weights: str | None = None,
    percentage: float = PERCENTAGE,
    gpu: Sequence[int] = (),
    jobs: int | None = None,
    scheduler: str | None = None,
) -> pd.DataFrame:
    """Task 1's script for all image sizes at once, into folders of experiments/PROJECT -> their results in one table.

    Images are resized to 8/7 of the size and cut, as 256 and 224. What is done already is skipped.
    jobs, scheduler: as of `get_train_args`, for categories and sizes together.
    Raises SettingsError for sizes or categories that are no list, ResultsError if it cannot be trained.
    """
    sizes = _listed("sizes", sizes)
    seen = [{"percentage": percentage, "resize": round(size * 8 / 7), "imagesize": size} for size in sizes]
    runs = [run_folder(project, data, backbone, **each) for each in seen]
    for size, run in zip(sizes, runs, strict=True):
        print(f"{size} x {size} pixels, {run}")
    run = {"log_project": project, "log_group": [run.name for run in runs], "resume": True, "save_models": False}
    network = {"backbone": backbone, "weights": weights, "percentage": percentage, "gpu": gpu}
    size = {"resize": [each["resize"] for each in seen], "imagesize": sizes}
    _call(run_patchcore, get_train_args(data, categories, **run, **network, **size, jobs=jobs, scheduler=scheduler))
    tables = []
    for size, run in zip(sizes, runs, strict=True):
        rows = pk.read_results(run / "results.csv").loc[[f"mvtec_{category}" for category in categories]]
        tables.append(rows.assign(category=list(categories), size=size))
    return pd.concat(tables, ignore_index=True)


def _call(command: click.Command, args: Sequence[str]) -> None:
    """A script whose results are read at once: its table is not shown."""
    try:
        with redirect_stdout(io.StringIO()):
            code = command.main(args, standalone_mode=False)
    except click.ClickException as error:
        raise pk.ResultsError(error.message) from None
    if code == 130:
        raise KeyboardInterrupt


def _settings(folder: Path) -> dict:
    """What a run was made with, as far as it says. Raises ResultsError for a file that cannot be read."""
    path = folder / "settings.json"
    try:
        return read_json(path) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise pk.ResultsError(f"cannot read {path} ({short(error)}): remove it, or move its folder away") from None


@contextmanager
def as_far_as_known() -> Iterator[None]:
    """A block that ends with a sentence, not with an error, where the data lacks something: masks or test images."""
    try:
        yield
    except pk.DataError as error:
        print(error)


def no_predictions() -> pk.Predictions:
    """Predictions of no images: what there is of a category without test images."""
    return pk.Predictions(np.zeros(0), np.zeros((0, 1, 1)), np.zeros(0, dtype=int), None, ())


def first_known(table: pd.DataFrame, *columns: str) -> str:
    """The first of these columns that a table has values of, else the last; says so if it is not the first."""
    known = next((name for name in columns if name in table and table[name].notna().any()), columns[-1])
    if known != columns[0] and len(table):
        print(f"{columns[0]} is not defined: sorted by {known}")
    return known


def pick_category(table: pd.DataFrame, *metrics: str, worst: bool = False) -> str:
    """The category that is best, or worst, by the first of these metrics that a results table has values of.

    Of errors and costs the lowest is best. Says so if that is not the first metric, and which categories are tied with
    it: those that the intervals do not tell from it. If there are values of none, takes the first category. Raises
    SettingsError for what is no metric.
    """
    rows = table.drop(index="Mean", errors="ignore")
    for metric in metrics:
        check_choice("metric", metric, rows.select_dtypes("number").columns)
    known = next((metric for metric in metrics if rows[metric].notna().any()), None)
    if known != metrics[0]:
        print(f"{metrics[0]} is not defined: {f'chosen by {known}' if known else 'the first category is taken'}")
    ranked = rows[known] if known else pd.Series(0, rows.index)  # all alike, so the first
    lowest = worst != (known in LOWER_IS_BETTER)
    name = ranked.idxmin() if lowest else ranked.idxmax()
    if others := pk.tied(table, known, name) if known else []:
        names = ", ".join(map(_category, others))
        end = "lowest" if lowest else "highest"
        print(f"{_category(name)} has the {end} {known}, but by the intervals of 95 % it is tied with {names}")
    return _category(name)


def examples_of(predictions: pk.Predictions, by: str, n: int, *, worst: bool = False) -> pd.DataFrame:
    """Rows of the table of predictions: the n best defective images by a column of it, then the n best good ones.

    Or the worst, which are missed or faintest defects, and false alarms: of a defective image a low value is bad, of a
    good one a high one, but for its margin. Where a kind of images has no values of the column, as good ones of iou, it
    is ranked by the score, and where nothing is known of any the highest scores are the worst.
    Raises SettingsError for what is no column of numbers.
    """
    table = predictions.table()
    check_choice("EXAMPLE_METRIC", by, table.select_dtypes("number").columns.drop("label").union(["margin", "iou"]))
    parts = []
    for label, rows in table.groupby("label", sort=False):
        column = by if by in rows and rows[by].notna().any() else "score"
        low_is_bad = label == 1 or column == "margin"
        parts.append(rows.sort_values(column, ascending=low_is_bad == worst, kind="stable").head(n))
    order = sorted(parts, key=lambda rows: -rows["label"].iloc[0])
    return pd.concat(order) if order else table


def verdicts_by_defect(table: pd.DataFrame) -> pd.DataFrame:
    """How many images of each kind have which verdict by the model's own thresholds, of a table of predictions."""
    found = pd.crosstab(table["defect"], table["verdict"].fillna("unknown"))
    return found.reindex(
        columns=["good", "look", "defective", *(["unknown"] if "unknown" in found else [])], fill_value=0
    )


def say_thresholds(predictions: pk.Predictions) -> None:
    """Print the thresholds that the model has from good images, and what they promise."""
    known = predictions.calibration
    if known is None:
        print("the model has no threshold from good images: it takes three to learn from, and good ones 19 or more")
        return
    print(f"look above {known.look}")
    print(f"defective above {known.defective}")


def teaching_category(
    data: Path, page: int = 0, run: Path | str | None = None, names: Sequence[str] | None = None
) -> str:
    """The category to look at on a page: nearly right, so that there are errors to see, another on each page.

    That is an image AUROC of .9 to .97, the nearest to .94 first: by the results of a run if it has any, else as
    published of MVTec AD, or measured of the sample data. Where none is in that range it is the nearest, and without
    any results the first. names: to choose from; all of the data if None.
    """
    names = list(dict.fromkeys(names or pk.list_categories(data)))
    if run and Path(run, "results.csv").is_file():
        known = pk.read_results(Path(run, "results.csv"))["instance_auroc"].rename(_category)
    elif set(names) <= set(SAMPLE_AUROC):
        known = pd.Series(SAMPLE_AUROC)
    else:
        known = pk.published_results()["instance_auroc"].rename(_category)
    known = known.reindex(names).dropna()
    order = (known - 0.94).abs().sort_values(kind="stable").index
    good = [name for name in order if 0.9 <= known[name] <= 0.97] or list(order[:1]) or names[:1]
    return good[page % len(good)]


def example_of(category: pk.Category, detector: pk.PatchCore | None = None) -> pk.Sample:
    """The first test image with a defect; where there is none another image, and says so.

    detector: finds the strangest among the first images of each kind of defect.
    """
    sample = max(category.test or category.train, key=lambda sample: sample.label)
    if detector and sample.label == 1:
        firsts = list({one.defect: one for one in reversed(category.test) if one.label == 1}.values())
        return firsts[int(detector.predict(firsts).scores.argmax())]
    if not category.test:
        print(f"no test images: {sample.name} instead, one that it learns from")
    elif sample.label != 1:
        print(f"no defective test images: {sample.name} instead")
    return sample


def own_photographs(
    data: Path, good: Path | str, to_judge: Path | str, *, most: int = 60
) -> tuple[list[pk.Sample], list[pk.Sample]]:
    """The photographs in two folders: of good parts, and to judge; says what it takes where one is empty.

    Without good ones that is a category of the data: `most` of its good images, and test images as if nothing were
    known of them. Without any to judge it is the good ones. Raises DataError for a folder that cannot be used.
    """
    learnt, judged = (_photographs(folder) for folder in (good, to_judge))
    learnt = [replace(sample, defect="good") for sample in learnt]
    if not learnt:
        names = pk.list_categories(data)
        category = pk.load_category(data, "pill" if "pill" in names else names[0])
        print(f"{good} holds no photographs yet: it goes on with {category.name} of {data}")
        learnt, test = category.train[:most], category.test[:: 1 + len(category.test) // 12]
        judged = as_samples([sample.path for sample in test])
    if not judged:
        print("there are none to judge: it takes the good ones, which it has learnt from")
        judged = learnt
    return learnt, judged


def _photographs(folder: Path | str) -> list[pk.Sample]:
    folder = user_path(folder)
    if folder.is_file():
        raise pk.DataError(f"{folder} is a file: give the folder that its photographs lie in")
    there = folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
    return pk.load_folder(folder) if there else []
