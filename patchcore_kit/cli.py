"""The command line: the reference's two commands and their options, and every option does what it says or is refused.

    run_patchcore.py                RESULTS_PATH patch_core ... sampler ... dataset ... mvtec DATA_PATH
    load_and_evaluate_patchcore.py  RESULTS_PATH patch_core_loader -p MODEL ... dataset ... mvtec DATA_PATH

Each is a group of steps on one line. A step only collects its options; the group then does the work.
"""

import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from patchcore_kit.app import UserPath
from patchcore_kit.backbones import PRECISIONS, load_backbone
from patchcore_kit.coreset import SAMPLERS
from patchcore_kit.datasets import Category, list_categories, load_category
from patchcore_kit.errors import DataError, KitError, ModelError, SettingsError
from patchcore_kit.executors import Cluster, Executor, Here, Processes, reason
from patchcore_kit.experiments import (
    Network,
    NewDetector,
    Outputs,
    SavedDetector,
    Training,
    evaluate_models,
    evaluation_folder,
    run_folder,
    train_all,
)
from patchcore_kit.files import user_path
from patchcore_kit.memory_bank import SEARCHES, STORAGES
from patchcore_kit.model_folder import load_transform
from patchcore_kit.progress import in_notebook
from patchcore_kit.reference_format import prefixes, read_settings
from patchcore_kit.results import Results
from patchcore_kit.scoring import SCORINGS
from patchcore_kit.streaming import in_bytes
from patchcore_kit.transforms import MASK_RULES

SHOWN = (
    "instance_auroc", "full_pixel_auroc", "anomaly_pixel_auroc", "full_pro", "alarm_false_alarms", "alarm_missed",
    "fit_seconds", "predict_seconds",
)  # fmt: skip


class Size(click.ParamType):
    """A side in pixels (256), or height and width (150x750)."""

    name = "N|HxW"

    def convert(self, value, param, ctx):
        """Text -> int or (H, W)."""
        if not isinstance(value, str):
            return value
        try:
            sides = tuple(int(side) for side in value.lower().split("x"))
        except ValueError:
            sides = ()
        if len(sides) not in (1, 2):
            self.fail(f"{value!r} is no size: give pixels (256), or height x width (150x750)", param, ctx)
        return sides[0] if len(sides) == 1 else sides


def _only(supported: object, reason: str) -> Callable:
    """For an option of the reference that changes nothing there: its default is accepted, anything else refused."""

    def check(ctx: click.Context, param: click.Parameter, value: object) -> None:
        if value != supported:
            raise click.BadParameter(f"{value!r} is not supported: {reason}", ctx, param)

    return check


INERT = "No effect, as in the reference."


def _sentence(command: Callable) -> Callable:
    """Show the kit's errors as one sentence, exit code 1, without a traceback."""

    @functools.wraps(command)
    def wrapped(*args, **options):
        try:
            return command(*args, **options)
        except KitError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            if in_notebook():
                raise click.exceptions.Exit(130) from None  # as a shell's; what to do then, the notebook says
            stopped = click.ClickException(
                "stopped: finished categories are kept, the same command with --resume goes on (if it has made "
                "a folder with a number, with that as --log_group)"
            )
            stopped.exit_code = 130
            raise stopped from None
        except OSError as error:
            if error.filename is None:
                raise
            raise click.ClickException(reason(error)) from None

    return wrapped


def _shared_options(command: Callable) -> Callable:
    """The options that both commands have."""
    options = (
        click.argument("results_path", type=UserPath()),
        click.option("--gpu", type=int, multiple=True, help="Number of the GPU to use. None named: none used."),
        click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True,
                     help="For training; evaluation draws nothing."),
        click.option("--save_segmentation_images", is_flag=True, help="A picture of every test image."),
        click.option("--save_predictions", is_flag=True, help="Scores, maps, masks and thresholds as .npz and .csv."),
        click.option("--resume", is_flag=True, help="Go on in an existing results folder, skip what it has."),
        click.option("--mask_rule", type=click.Choice(MASK_RULES), default="inside", show_default=True,
                     help="Edge pixels of masks: wholly inside, as the reference, or nearest."),
        click.option("--jobs", type=click.IntRange(min=1), metavar="N",
                     help="So many categories at once, each in a process here; memory grows with it.  [default: 1]"),
        click.option("--scheduler", envvar="DASK_SCHEDULER_ADDRESS", metavar="ADDRESS",
                     help="Let a Dask cluster's workers do it, as tcp://HOST:8786; they need the same folders."),
        click.option("--threads", type=click.IntRange(min=1), metavar="N",
                     help="Of each category's work on the CPU.  [default: all, divided by --jobs]"),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def _device(gpus: Sequence[int]) -> str:
    if len(gpus) > 1:
        raise SettingsError(f"--gpu is given {len(gpus)} times: one run uses one GPU, start one run for each")
    return f"cuda:{gpus[0]}" if gpus else "cpu"


def _executor(jobs: int | None, scheduler: str | None, threads: int | None, device: str) -> Executor:
    """Where the work is done: an explicit --jobs counts more than a scheduler that the environment names."""
    source = click.get_current_context().get_parameter_source("scheduler")
    if jobs and scheduler and source is click.core.ParameterSource.COMMANDLINE:
        raise SettingsError(f"--jobs {jobs} is for this computer, --scheduler {scheduler} for others: give one of them")
    if scheduler and not jobs:
        return Cluster(scheduler, threads)
    if (jobs or 1) == 1:
        return Here(threads)
    if device != "cpu":
        raise SettingsError(
            f"--jobs {jobs} would put {jobs} networks on one GPU, which is busy with one: leave one out"
        )
    return Processes(jobs, threads)


def _steps(collected: Sequence[dict], wanted: Sequence[str]) -> dict:
    """The options of each step, by name."""
    steps = {}
    for step in collected:
        if step["step"] in steps:
            raise click.UsageError(f"the step {step['step']!r} is given twice: give it once")
        steps[step.pop("step")] = step
    for name in wanted:
        if name not in steps:
            raise click.UsageError(f"the step {name!r} is missing: give one of each of {', '.join(wanted)}")
    return steps


def _log() -> None:
    logging.basicConfig(format="%(message)s")
    kit = logging.getLogger("patchcore_kit")
    if kit.level == logging.NOTSET:  # a notebook wants less
        kit.setLevel(logging.INFO)


def _report(results: Results, outputs: Outputs) -> None:
    """The table, and where everything is that was asked for."""
    table = results.table()
    shown = table[[column for column in SHOWN if table[column].notna().any()]]
    click.echo(shown.to_string(float_format=lambda v: f"{v:.3f}", na_rep=""))
    for why, rows in table[table["undefined"].fillna("") != ""].groupby("undefined", sort=False):
        click.echo(f"{', '.join(rows.index)}: {why}")
    click.echo(
        f"\nweights: {', '.join(dict.fromkeys(table['weights'].dropna()))}; "
        f"mask rule: {', '.join(dict.fromkeys(table['mask_rule'].dropna()))}"
    )
    click.echo(f"table: {results.folder / 'results.csv'}")
    kept = {"models": outputs.models, "predictions": outputs.predictions, "segmentation_images": outputs.images}
    for name in (name for name, wanted in kept.items() if wanted and (results.folder / name).is_dir()):
        click.echo(f"{name.replace('_', ' ')}: {results.folder / name}")


@contextmanager
def _reported(tables: Sequence[Results], outputs: Outputs) -> Iterator[None]:
    """Show the tables of what was done in the block, also if not all was."""
    failed = None
    try:
        yield
    except KitError as error:
        failed = error
    for results in tables:
        if results.rows:
            _report(results, outputs)
    if failed:
        raise failed


@click.command("dataset")
@click.argument("name", type=click.Choice(["mvtec"]), expose_value=False)
@click.argument("data_path", type=UserPath())
@click.option("--subdatasets", "-d", multiple=True, help="A category, as often as needed. None named: all there are.")
@click.option(
    "--resize",
    type=Size(),
    multiple=True,
    help="Shorter side, or height x width (no crop). Training takes several.  [default: 256, or the model's]",
)
@click.option(
    "--imagesize",
    type=int,
    multiple=True,
    help="Side of the central crop, one for each --resize.  [default: 224, or the model's]",
)
@click.option(
    "--bits",
    type=click.IntRange(8, 32),
    help="Of 16-bit images' values.  [default: by the largest of the training images, or the model's]",
)
@click.option(
    "--tile", type=Size(), help="Cut larger images: a tile's side in pixels, or tiles down x across.  [default: whole]"
)
@click.option(
    "--overlap",
    type=click.IntRange(min=0),
    help="Pixels that tiles have in common.  [default: 128, of smaller ones a third]",
)
@click.option(
    "--aligned", is_flag=True, help="Parts lie alike in all images: compare each tile with its own place alone."
)
@click.option("--batch_size", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--num_workers", type=click.IntRange(min=0), help="Threads that read images.  [default: one per core]")
@click.option("--no_image_cache", is_flag=True, help="Do not keep resized images for the next run.")
@click.option(
    "--train_val_split",
    help="Only 1: all training images are used.",
    type=float,
    default=1,
    expose_value=False,
    callback=_only(1, "all images train"),
)
@click.option(
    "--augment",
    help=INERT,
    is_flag=True,
    expose_value=False,
    callback=_only(False, "it has no effect in the reference either"),
)
def dataset(
    data_path, subdatasets, resize, imagesize, bits, tile, overlap, aligned, batch_size, num_workers, no_image_cache
):
    """Which images, and at what size."""
    if tile is None and (overlap is not None or aligned):
        raise click.UsageError(f"{'--aligned' if aligned else '--overlap'} is for tiles: give --tile as well")
    if tile is not None and (imagesize or any(isinstance(one, int) for one in resize)):
        raise click.UsageError("--tile shows images whole: give --resize as height x width, or leave it out")
    cut = {"tile" if isinstance(tile, int) else "tiles": tile, "overlap": overlap}
    return {
        "step": "dataset",
        "data_path": data_path,
        "names": subdatasets,
        "sizes": _sizes(resize, imagesize),
        "bits": bits,
        "batch_size": batch_size,
        "workers": num_workers if num_workers is None else max(1, num_workers),  # 0: the reference's word for none
        "cached": not no_image_cache,
        "cut": cut | {"aligned": aligned} if tile is not None else {},
    }


def _sizes(resizes: Sequence[int | tuple[int, int]], imagesizes: Sequence[int]) -> list[tuple]:
    """(resize, imagesize) of each size, None where it is not said; the crops belong to the resizes that are cut."""
    squares = [resize for resize in resizes if isinstance(resize, int)]
    if len(resizes) > len(squares) and len(imagesizes) > len(squares):
        whole = next(resize for resize in resizes if isinstance(resize, tuple))
        raise click.UsageError(
            f"--imagesize {imagesizes[-1]} cuts a square, --resize {whole[0]}x{whole[1]} asks for no cut: give one of "
            "them"
        )
    if imagesizes and squares and len(imagesizes) != len(squares):
        raise click.UsageError(
            f"--resize is given {len(squares)} times and --imagesize {len(imagesizes)} times: give a pair for each size"
        )
    if not resizes:
        sizes = [(None, imagesize) for imagesize in imagesizes or [None]]
    else:
        cuts = iter(imagesizes)
        sizes = [(resize, next(cuts, None) if isinstance(resize, int) else None) for resize in resizes]
    if twice := next((size for i, size in enumerate(sizes) if size in sizes[:i]), None):
        raise click.UsageError(f"the size {_named(*twice)} is given twice: once is enough")
    return sizes


def _named(resize: int | tuple[int, int] | None, imagesize: int | None) -> str:
    """A size as it stands in the name of a folder."""
    if isinstance(resize, tuple):
        return f"{resize[0]}x{resize[1]}"
    resize, imagesize = 256 if resize is None else resize, 224 if imagesize is None else imagesize
    return f"{imagesize}" if resize == round(imagesize * 8 / 7) else f"{imagesize}of{resize}"


def _groups(groups: Sequence[str], sizes: Sequence[tuple]) -> list[str]:
    """A run's name for each size: as given, or one with the size behind."""
    if len(groups) == 1 and len(sizes) > 1:
        return [f"{groups[0]}-{_named(*size)}" for size in sizes]
    if len(groups) != len(sizes) or len(set(groups)) < len(groups):
        raise SettingsError(
            f"--log_group is {', '.join(groups)} for {len(sizes)} image size{'s' * (len(sizes) > 1)}: give a name for "
            "each, or one for all, to which the size is added"
        )
    return list(groups)


def _categories(step: dict) -> list[Category]:
    path = step["data_path"]
    names = dict.fromkeys(step["names"] or list_categories(path))
    if not names:
        hint = (
            f"give {path.resolve().parent} and -d {path.resolve().name}"
            if (path / "train").is_dir()
            else "name another"
        )
        raise DataError(f"no categories in {path}, each a folder with train or test in it: {hint}")
    return [load_category(path, name) for name in names]


def _faiss_options(command: Callable) -> Callable:
    on_gpu = click.option("--faiss_on_gpu", is_flag=True, help="Search on the GPU: needs --gpu, which implies it.")
    threads = click.option("--faiss_num_workers", type=click.IntRange(min=1), help="Threads of the search on the CPU.")
    return on_gpu(threads(command))


def _check_faiss(step: dict, device: str) -> None:
    if step["faiss_on_gpu"] and device == "cpu":
        raise SettingsError("--faiss_on_gpu needs a GPU: name it with --gpu, or leave the option out")


def _weights_file(weights: str | None) -> str | None:
    """As it is found from any folder."""
    return weights if weights in (None, "random") else str(user_path(weights).absolute())


# training


@click.group(chain=True)
@_shared_options
@click.option(
    "--log_group",
    multiple=True,
    default=("group",),
    show_default=True,
    help="The run's name; for several image sizes one for each, or one to which the size is added.",
)
@click.option("--log_project", default="project", show_default=True)
@click.option("--save_patchcore_model", is_flag=True, help="Keep the models, in the reference's format.")
def run_patchcore(**options):
    """Train PatchCore and evaluate it, one model per category; results go to RESULTS_PATH/log_project/log_group."""
    _log()


@run_patchcore.command("patch_core")
@click.option("--backbone_names", "-b", multiple=True, default=("wideresnet50",), show_default=True)
@click.option("--layers_to_extract_from", "-le", multiple=True, default=("layer2", "layer3"), show_default=True)
@click.option("--weights", multiple=True, help="A weights file or 'random'; one for all backbones, or one for each.")
@click.option("--pretrain_embed_dimension", type=int, default=1024, show_default=True)
@click.option("--target_embed_dimension", type=int, default=1024, show_default=True)
@click.option("--patchsize", type=int, default=3, show_default=True)
@click.option("--anomaly_scorer_num_nn", type=int, default=1, show_default=True)
@click.option(
    "--scoring",
    type=click.Choice(SCORINGS),
    default="distance",
    show_default=True,
    help="Squared distances as the reference's, or relative to how densely good patches lie.",
)
@click.option(
    "--alarm_rate",
    type=float,
    default=0.05,
    show_default=True,
    help="Share of good images that may be called anything but good: sets the models' own thresholds.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="float32",
    show_default=True,
    help="Of the network; bfloat16 is faster on GPUs and where the processor has it, tf32 on GPUs.",
)
@click.option(
    "--search",
    type=click.Choice(SEARCHES),
    default="fast",
    show_default=True,
    help="For the nearest patches on the CPU; flat compares with all of them.",
)
@click.option(
    "--storage",
    type=click.Choice(STORAGES),
    default="float32",
    show_default=True,
    help="Of the patches; float16 takes half the memory.",
)
@_faiss_options
@click.option(
    "--preprocessing", help=INERT, default="mean", callback=_only("mean", "the reference has nothing else either")
)
@click.option(
    "--aggregation", help=INERT, default="mean", callback=_only("mean", "the reference has nothing else either")
)
@click.option(
    "--patchscore", help=INERT, default="max", callback=_only("max", "an image's score is its highest patch's")
)
@click.option(
    "--patchoverlap", help=INERT, type=float, default=0, callback=_only(0, "the reference does not use it either")
)
@click.option(
    "--patchsize_aggregate",
    "-pa",
    help=INERT,
    multiple=True,
    callback=_only((), "the reference does not use it either"),
)
def patch_core(**options):
    """The network and how its features become patches; several -b make an ensemble (layers 0.layer2, 1.layer2)."""
    return {"step": "patch_core", **options}


@run_patchcore.command("sampler")
@click.argument("name", metavar=f"[{'|'.join(SAMPLERS)}]")
@click.option("--percentage", "-p", type=float, default=0.1, show_default=True)
@click.option(
    "--memory", metavar="SIZE", help="Let patches stream by, in so much memory, as 2GB.  [default: all at once]"
)
def sampler(name, percentage, memory):
    """Which patches the memory bank keeps."""
    return {"step": "sampler", "sampler": name, "percentage": percentage, "memory": memory}


run_patchcore.add_command(dataset)


@run_patchcore.result_callback()
@_sentence
def _train(
    collected, results_path, gpu, seed, save_segmentation_images, save_predictions, resume, mask_rule,
    jobs, scheduler, threads, log_group, log_project, save_patchcore_model,
):  # fmt: skip
    steps = _steps(collected, ("patch_core", "sampler", "dataset"))
    device = _device(gpu)
    executor = _executor(jobs, scheduler, threads, device)
    network, choice, data = steps["patch_core"], steps["sampler"], steps["dataset"]
    memory = in_bytes(choice["memory"]) if choice["memory"] else None
    _check_faiss(network, device)
    groups = _groups(log_group, data["sizes"])
    categories = _categories(data)
    networks, backbones = [], []
    for name, own_seed, layers, weights in _members(network, seed):
        how = name, layers, _weights_file(weights), device, own_seed, network["precision"]
        at = "cpu" if isinstance(executor, Cluster) else device  # its GPUs are not here
        backbones.append(load_backbone(name, layers, weights, at, own_seed, precision=network["precision"]))
        networks.append(Network(*how, backbones[-1].fingerprint))
    made_with = {
        "pretrain_embed_dimension": network["pretrain_embed_dimension"],
        "target_embed_dimension": network["target_embed_dimension"],
        "patchsize": network["patchsize"],
        "num_nn": network["anomaly_scorer_num_nn"],
        "scoring": network["scoring"],
        "alarm_rate": network["alarm_rate"],
        "search": network["search"],
        "storage": network["storage"],
        "bits": data["bits"],
        **{name: value for name, value in choice.items() if name != "memory"},
    }
    outputs = Outputs(save_patchcore_model, save_predictions, save_segmentation_images, mask_rule)
    runs = []
    for (resize, imagesize), group in zip(data["sizes"], groups, strict=True):
        size = {"resize": 256 if resize is None else resize, "imagesize": 224 if imagesize is None else imagesize}
        size |= {"resize": resize} | data["cut"] if data["cut"] else {}
        detector = size | made_with
        read = {"batch_size": data["batch_size"], "workers": data["workers"]}
        cached, searching = data["cached"], network["faiss_num_workers"]
        make = NewDetector(networks, detector | read, cached=cached, search_threads=searching, backbones=backbones)
        pixels = math.prod(make().transform.size)  # and settings that cannot work are refused before a folder is made
        settings = detector | {
            "data": data["data_path"].resolve().name,  # its name only: the same in a container as outside
            "seed": seed,
            "mask_rule": mask_rule,
            "precision": network["precision"],
            **({"memory": memory} if memory else {}),
            "backbones": [
                [b.name, b.layers, b.weights, b.fingerprint, n.seed] for b, n in zip(backbones, networks, strict=True)
            ],
        }
        runs.append((group, make, settings, pixels))
    with ExitStack() as stack:
        trainings = []
        for group, make, settings, pixels in runs:
            folder = stack.enter_context(run_folder(results_path, log_project, group, resume=resume))
            trainings.append(Training(categories, make, Results(folder, settings, resume=resume), outputs, pixels))
        with _reported([training.results for training in trainings], outputs):
            train_all(trainings, executor=executor)


def _members(network: dict, seed: int) -> list[tuple[str, int, tuple[str, ...], str | None]]:
    """(backbone, seed, layers, weights) of each member; `name.seed-N` gives a member a seed of its own."""
    names, layers, weights = (network[key] for key in ("backbone_names", "layers_to_extract_from", "weights"))
    if len(weights) not in (0, 1, len(names)):
        raise SettingsError(f"{len(weights)} weights for {len(names)} backbones: give one for all, or one for each")
    weights = weights * len(names) if len(weights) == 1 else weights or (None,) * len(names)
    own_layers = [layers] if len(names) == 1 else [[] for _ in names]
    for layer in layers if len(names) > 1 else ():
        number, _, rest = layer.partition(".")
        if not rest or not number.isdigit() or int(number) >= len(names):
            raise SettingsError(
                f"layer {layer!r} belongs to no backbone of the ensemble: write 0.layer2 for layer2 of "
                f"the first, up to {len(names) - 1}"
            )
        own_layers[int(number)].append(rest)
    members = []
    for name, own, weight in zip(names, own_layers, weights, strict=True):
        name, _, own_seed = name.partition(".seed-")
        if own_seed and not own_seed.isdigit():
            raise SettingsError(f"{own_seed!r} is no seed: write {name}.seed-1")
        members.append((name, int(own_seed or seed), tuple(own), weight))
    return members


# evaluation


@click.group(chain=True)
@_shared_options
def load_and_evaluate_patchcore(**options):
    """Evaluate saved models, the kit's or the reference's; results go straight into RESULTS_PATH."""
    _log()


@load_and_evaluate_patchcore.command("patch_core_loader")
@click.option(
    "--patch_core_paths",
    "-p",
    multiple=True,
    required=True,
    type=UserPath(),
    help="A model folder: one for each category, in their order, or one for all.",
)
@click.option("--weights", multiple=True, help="A weights file or 'random'; one for all, or one for each member.")
@_faiss_options
def patch_core_loader(**options):
    """Which models."""
    return {"step": "patch_core_loader", **options}


load_and_evaluate_patchcore.add_command(dataset)


def _check_size(path: Path, resize: int | tuple[int, int] | None, imagesize: int | None) -> None:
    """Raises ModelError if a model, or a member of it, was trained for other sizes than those asked for, if any."""
    for prefix in prefixes(path):
        params, extras = read_settings(path, prefix)
        trained, stored = params["input_shape"][1], extras.get("resize")
        if imagesize not in (None, trained) or (stored and resize not in (None, stored)):
            raise ModelError(
                f"the model in {path} was trained with resize {stored or 'not recorded'} and imagesize {trained}: "
                "give those, or leave both out"
            )


@load_and_evaluate_patchcore.result_callback()
@_sentence
def _evaluate(
    collected, results_path, gpu, seed, save_segmentation_images, save_predictions, resume, mask_rule,
    jobs, scheduler, threads,
):  # fmt: skip
    steps = _steps(collected, ("patch_core_loader", "dataset"))
    device = _device(gpu)
    executor = _executor(jobs, scheduler, threads, device)
    loader, data = steps["patch_core_loader"], steps["dataset"]
    _check_faiss(loader, device)
    categories = _categories(data)

    if len(data["sizes"]) > 1:
        raise SettingsError(f"{len(data['sizes'])} image sizes: a model has one, so give it once, or leave it out")
    if data["cut"]:
        raise SettingsError("--tile is for training: a model knows its tiles, leave it out")
    resize, imagesize = data["sizes"][0]
    weights = [_weights_file(one) for one in loader["weights"]]
    open_model = SavedDetector(
        weights[0] if len(weights) == 1 else tuple(weights) or None,
        resize,
        data["bits"],
        device,
        data["batch_size"],
        data["workers"],
        data["cached"],
        loader["faiss_num_workers"],
    )
    for path in loader["patch_core_paths"]:  # before any work is done
        _check_size(path, resize, imagesize)
        load_transform(path, resize, bits=data["bits"])
    settings = {
        "models": [str(path) for path in loader["patch_core_paths"]],
        "data": data["data_path"].resolve().name,
        "resize": resize,
        "bits": data["bits"],
        "weights": loader["weights"],
        "mask_rule": mask_rule,
    }
    outputs = Outputs(False, save_predictions, save_segmentation_images, mask_rule)
    with evaluation_folder(results_path) as folder:
        results = Results(folder, settings, resume=resume)
        with _reported([results], outputs):
            evaluate_models(categories, loader["patch_core_paths"], open_model, results, outputs, executor=executor)
