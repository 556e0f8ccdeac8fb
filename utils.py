"""What the notebooks share: command lines built from Python, a look at the machine, what data may lack, and answers."""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click
import faiss
import numpy as np
import pandas as pd
import torch
import torchvision
from matplotlib import pyplot as plt

import patchcore_kit as pk
from patchcore_kit import plots
from patchcore_kit.cli import load_and_evaluate_patchcore, run_patchcore
from patchcore_kit.datasets import as_samples
from patchcore_kit.errors import short
from patchcore_kit.files import read_json, user_path
from patchcore_kit.weights import find, resolve

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
    log_group: str = "0000",
    backbone: str = "wideresnet50",
    layers: Sequence[str] = ("layer2", "layer3"),
    percentage: float = 0.1,
    resize: int | tuple[int, int] = 256,
    imagesize: int = 224,
    gpu: Sequence[int] = (),
    seed: int = 0,
    save_models: bool = True,
    resume: bool = False,
    weights: str | None = None,
    save_predictions: bool = False,
    save_segmentation_images: bool = False,
) -> list[str]:
    """The arguments of `bin/run_patchcore.py`. weights: a file, "random", or None to look for them."""
    flags = {
        "--save_patchcore_model": save_models,
        "--save_predictions": save_predictions,
        "--save_segmentation_images": save_segmentation_images,
        "--resume": resume,
    }
    run = ["--seed", seed, "--log_project", log_project, "--log_group", log_group]
    network = [
        "patch_core",
        "-b",
        backbone,
        *_repeat("-le", layers),
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
) -> list[str]:
    """The arguments of `bin/load_and_evaluate_patchcore.py`.

    models: one model folder for each category, or the folder `models` of a run, which holds `mvtec_<category>`.
    resize: None takes each model's own size.
    """
    if isinstance(models, str | Path):
        models = [Path(models) / f"mvtec_{category}" for category in categories]
    flags = {"--save_predictions": save_predictions, "--save_segmentation_images": save_segmentation_images}
    run = ["--seed", seed, *_repeat("--gpu", gpu), *(flag for flag, on in flags.items() if on), results_path]
    loader = ["patch_core_loader", *_repeat("-p", models), *_repeat("--weights", [weights] if weights else [])]
    return [str(a) for a in (*run, *loader, *_dataset_args(data_path, categories, resize, imagesize))]


def _repeat(option: str, values: Sequence) -> list:
    return [part for value in values for part in (option, value)]


def _dataset_args(data_path: Path | str, categories: Sequence[str], resize: int | tuple | None, imagesize: int) -> list:
    if resize is None:
        size = []
    elif isinstance(resize, int):
        size = ["--resize", resize, "--imagesize", imagesize]
    else:
        size = ["--resize", "x".join(map(str, resize))]
    return ["dataset", *size, *_repeat("-d", categories), "mvtec", data_path]


def start() -> tuple[Path, tuple[int, ...]]:
    """Say what there is to work with, and return it: (data folder, GPUs to use).

    The data is MVTec AD where `pk.find_data` finds it, else the sample data, drawn now if it is not there yet; a few
    images of it where the environment variable PATCHCORE_SMALL is set. From here on relative paths start at the work
    folder.
    """
    os.chdir(pk.work_folder())
    plt.rcParams.update(plots.STYLE)
    logging.basicConfig(stream=sys.stdout, format="%(message)s")  # as any other output, not as an error's
    gpus = tuple(range(torch.cuda.device_count()))[:1]
    found, root = pk.find_data(), os.environ.get("MVTEC_ROOT")
    data = found or _draw_sample_data()
    weights = [name for name in BACKBONES if find(resolve(name))]
    models = pk.find_models()
    if root and found != Path(root):
        _say(False, f"MVTEC_ROOT: no categories in {root}")
    _say(True, f"packages: torch {torch.__version__}, torchvision {torchvision.__version__}, faiss {faiss.__version__}")
    _say(gpus, f"GPU: {torch.cuda.get_device_name(0) if gpus else 'none, everything runs on the CPU'}")
    _say(found, f"data: {'' if found else 'no MVTec AD, so '}{data} ({', '.join(pk.list_categories(data))})")
    _say(weights, f"published weights: {', '.join(weights) or 'none yet, so the starter (README, Backbones)'}")
    _say(models, f"trained models: {len(models) or 'none yet, task 1 makes some'}")
    return data, gpus


def _draw_sample_data() -> Path:
    folder = Path("data")
    if os.environ.get("PATCHCORE_SMALL"):
        return pk.draw_sample_data(folder / "sample_small", ("pill", "screw", "weave"), train=8, good=4, defective=6)
    return pk.draw_sample_data(folder / "sample")


def _say(there: object, what: str) -> None:
    print("[OK]" if there else "[--]", what)


def task1_folder(backbone: str) -> Path:
    """Where task 1 puts its results: the starter's in 0000, those of another backbone under its name."""
    return Path("experiments", "step1", "0000" if backbone == "starter" else backbone)


def find_or_train(data: Path, run: Path | str, *, backbone: str = "starter", gpu: Sequence[int] = ()) -> Path:
    """The results folder of task 1; where it is missing it is trained now, with task 1's settings.

    Trains on the sample data as a whole, or on up to three categories of other data, which take longer.
    Raises ResultsError if the folder was made from other data.
    """
    run = Path(run)
    if not (run / "results.csv").is_file():
        print(f"{run} is not there, task 1 makes it: trained now, with {backbone}")
        categories = pk.list_categories(data)[: None if data.name == "sample" else 3]
        project = run.absolute().parent
        folder = {"results_path": project.parent, "log_project": project.name, "log_group": run.name}
        _call(run_patchcore, get_train_args(data, categories, **folder, backbone=backbone, resume=True, gpu=gpu))
    name = data.resolve().name  # as the script records it
    made_from = _settings(run).get("data", name)
    if made_from != name:
        raise pk.ResultsError(
            f"{run} was made from {short(made_from)}, not {name}: rename that folder, or set RUN to another"
        )
    missing = set(pk.list_categories(data)) - set(trained_categories(run))
    if missing:
        print(f"{run} has no {', '.join(sorted(missing))}: task 1 adds them")
    return run


def trained_categories(run: Path) -> list[str]:
    """The categories of a run that are done. Raises ResultsError if it has no table."""
    return [name.removeprefix("mvtec_") for name in pk.read_results(run / "results.csv").index.drop("Mean")]


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
    percentage: float = 0.1,
    gpu: Sequence[int] = (),
) -> pd.DataFrame:
    """Task 1's script at each image size, into experiments/<project>/<size> -> all their results in one table.

    Images are resized to 8/7 of the size and cut, as 256 and 224. What is done already is skipped.
    Raises ResultsError if it cannot be trained, or those folders hold results of other settings.
    """
    tables = []
    for size in sizes:
        options = {"log_project": project, "log_group": size, "resize": round(size * 8 / 7), "imagesize": size}
        network = {"backbone": backbone, "weights": weights, "percentage": percentage, "gpu": gpu}
        _call(run_patchcore, get_train_args(data, categories, **options, **network, save_models=False, resume=True))
        table = pk.read_results(Path("experiments") / project / str(size) / "results.csv")
        rows = table.loc[[f"mvtec_{category}" for category in categories]]
        tables.append(rows.assign(category=list(categories), size=size))
    return pd.concat(tables, ignore_index=True)


def _call(command: click.Command, args: Sequence[str]) -> None:
    try:
        command.main(args, standalone_mode=False)
    except click.ClickException as error:
        refused = isinstance(error.__cause__, pk.SettingsError)
        hint = " (in a notebook: rename that folder, or change the parameters)" if refused else ""
        raise pk.ResultsError(error.message + hint) from None


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

    Says so if that is not the first metric, and which categories are tied with it: those that the intervals do not tell
    from it. If there are values of none, takes the first category.
    """
    rows = table.drop(index="Mean", errors="ignore")
    known = next((metric for metric in metrics if rows[metric].notna().any()), None)
    if known != metrics[0]:
        print(f"{metrics[0]} is not defined: {f'chosen by {known}' if known else 'the first category is taken'}")
    ranked = rows[known] if known else pd.Series(0, rows.index)  # all alike, so the first
    name = ranked.idxmin() if worst else ranked.idxmax()
    if others := pk.tied(table, known, name) if known else []:
        names = ", ".join(other.removeprefix("mvtec_") for other in others)
        end = "lowest" if worst else "highest"
        print(
            f"{name.removeprefix('mvtec_')} has the {end} {known}, but by the intervals of 95 % it is tied with {names}"
        )
    return name.removeprefix("mvtec_")


def say_thresholds(predictions: pk.Predictions) -> None:
    """Print the thresholds that the model has from good images, and what they promise."""
    known = predictions.calibration
    if known is None:
        print("the model has no threshold from good images: it takes three to learn from, and good ones 19 or more")
        return
    print(f"look above {known.look}")
    print(f"defective above {known.defective}")


def example_of(category: pk.Category) -> pk.Sample:
    """The first test image with a defect; where there is none another image, and says so."""
    sample = max(category.test or category.train, key=lambda sample: sample.label)
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
    there = folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
    return pk.load_folder(folder) if there else []


def check(holds: bool, hint: str) -> None:
    """Say whether an answer is right; if not, give a hint."""
    print("Right." if holds else f"Not yet: {hint}")
