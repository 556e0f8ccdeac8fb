"""What the notebooks share: command lines built from Python, a first look at the machine, checks of answers."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


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
    resize: int | tuple[int, int] = 256,
    imagesize: int = 224,
    gpu: Sequence[int] = (),
    seed: int = 0,
    save_predictions: bool = True,
    save_segmentation_images: bool = False,
    weights: str | None = None,
) -> list[str]:
    """The arguments of `bin/load_and_evaluate_patchcore.py`.

    models: one model folder for each category, or the folder `models` of a run, which holds `mvtec_<category>`.
    """
    if isinstance(models, str | Path):
        models = [Path(models) / f"mvtec_{category}" for category in categories]
    flags = {"--save_predictions": save_predictions, "--save_segmentation_images": save_segmentation_images}
    run = ["--seed", seed, *_repeat("--gpu", gpu), *(flag for flag, on in flags.items() if on), results_path]
    loader = ["patch_core_loader", *_repeat("-p", models), *_repeat("--weights", [weights] if weights else [])]
    return [str(a) for a in (*run, *loader, *_dataset_args(data_path, categories, resize, imagesize))]


def _repeat(option: str, values: Sequence) -> list:
    return [part for value in values for part in (option, value)]


def _dataset_args(data_path: Path | str, categories: Sequence[str], resize: int | tuple, imagesize: int) -> list:
    size = (
        ["--resize", resize, "--imagesize", imagesize]
        if isinstance(resize, int)
        else ["--resize", "x".join(map(str, resize))]
    )
    return ["dataset", *size, *_repeat("-d", categories), "mvtec", data_path]


def start() -> tuple[Path, tuple[int, ...]]:
    """Say what there is to work with, and return it: (data folder, GPUs to use).

    The data is MVTec AD where it is found, else the sample data in `data/sample`, drawn if it is not there yet.
    """
    import torch

    import patchcore_kit as pk

    gpus = tuple(range(torch.cuda.device_count()))[:1]
    data = pk.find_data()
    if data is None:
        data = pk.draw_sample_data(pk.work_folder() / "data" / "sample")
    print(f"[OK] data: {data} ({', '.join(pk.list_categories(data))})")
    print(f"[OK] GPU: {torch.cuda.get_device_name(0)}" if gpus else "[--] GPU: none, everything runs on the CPU")
    return data, gpus


def check(holds: bool, hint: str) -> None:
    """Say whether an answer is right; if not, give a hint."""
    print("Right." if holds else f"Not yet: {hint}")
