"""The kit's own command line: from a folder of good photographs to verdicts, each step a verb.

    patchcore-kit check FOLDER                      what should be mended before a model is made
    patchcore-kit fit FOLDER MODEL                  learn from good photographs
    patchcore-kit predict MODEL IMAGES...           a verdict for each photograph, on a line
    patchcore-kit report MODEL IMAGES... PAGE       the same as a page to look at
    patchcore-kit watch MODEL FOLDER                a verdict for each photograph that a camera writes

Results go to stdout, whatever else there is to say to stderr: that is where Python writes warnings of a program that
has set up no log, as plain lines. Whatever takes time to import is imported where it is needed.
"""

import functools
import gc
import glob
import json
import logging
import os
import re
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import click

from patchcore_kit.errors import DataError, KitError, ResultsError
from patchcore_kit.files import user_path

if TYPE_CHECKING:
    from patchcore_kit.datasets import Sample
    from patchcore_kit.detector import PatchCore
    from patchcore_kit.ensemble import PatchCoreEnsemble
    from patchcore_kit.judgements import Judgement
    from patchcore_kit.notes import Notes
    from patchcore_kit.predictions import Predictions

FAILED = 2  # the exit code, as click's for a wrong option; 1 is an answer: there is something to look at
DEFAULT_LAYERS = ("layer2", "layer3")  # a ResNet's, and the starter's
LAYERS = {  # of the networks that have others, where the kit knows which to begin with
    "dinov2_small": ("blocks.5", "blocks.8"),
    "dinov2_base": ("blocks.5", "blocks.8"),
    "dinov2_large": ("blocks.11", "blocks.17"),
    "dinov3_small": ("blocks.5", "blocks.8"),
    "dinov3_base": ("blocks.5", "blocks.8"),
    "dinov3_large": ("blocks.11", "blocks.17"),
    "dinov3_convnext_tiny": ("stages.1", "stages.2"),
}
BATCH = 8  # photographs judged at a time, once the first one's verdict is out


class UserPath(click.Path):
    """A path, ~ for the home folder, which no shell replaces behind an equals sign or in what Python gives."""

    def convert(self, value, param, ctx):
        """Text -> Path."""
        return user_path(super().convert(value, param, ctx))


class _Failure(click.ClickException):
    exit_code = FAILED


def _sentence(command: Callable) -> Callable:
    """Show errors as one sentence, without a traceback, and never exit with the code 1 for them."""

    @functools.wraps(command)
    def wrapped(*args, **options):
        logger = logging.getLogger("patchcore_kit.notes")
        once = _OncePerKind()
        logger.addFilter(once)
        try:
            return command(*args, **options)
        except KitError as error:
            raise _Failure(str(error)) from error
        except KeyboardInterrupt:
            raise SystemExit(128 + signal.SIGINT) from None
        except (
            BrokenPipeError
        ):  # as of `| head`: nobody reads on, and nothing more is to be written, at the end neither
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(128 + signal.SIGPIPE) from None
        except OSError as error:  # a file that the system refuses, wherever it is
            what = f"cannot use {error.filename}" if error.filename else "the system refuses"
            raise _Failure(
                f"{what} ({error.strerror or error}): check that it is there and that you may use it"
            ) from None
        except (click.ClickException, click.exceptions.Exit):
            raise
        except Exception:  # Python's own code for it is 1
            traceback.print_exc()
            raise SystemExit(FAILED) from None
        finally:
            logger.removeFilter(once)

    return wrapped


class _OncePerKind(logging.Filter):
    """Lets a note pass once, whatever numbers are in it: each batch of photographs would tell it again."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        kind = re.sub(
            r"\d+", "0", str(record.args[-1] if isinstance(record.args, tuple) and record.args else record.msg)
        )
        new = kind not in self._told
        self._told.add(kind)
        return new


def _version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"patchcore-kit {metadata.version('patchcore-kit')}")
        ctx.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
@click.pass_context
def main(ctx):
    """Find what is not as it should be on photographs of parts, by good ones alone (PatchCore).

    \b
        patchcore-kit check photographs/good
        patchcore-kit fit photographs/good models/part
        patchcore-kit predict models/part photographs/new

    VERB --help says more of each.
    """
    gc.disable()  # until all is imported, see `_imported`
    ctx.call_on_close(gc.enable)
    ctx.call_on_close(gc.unfreeze)


def _imported() -> None:
    """What has been imported stays: looking through it for garbage, again and again, would take half a second."""
    gc.freeze()
    gc.enable()


def _model_options(command: Callable) -> Callable:
    """How a saved model is opened."""
    weights = click.option("--weights", metavar="FILE", help="The network's, where they are not found by themselves.")
    gpu = click.option("--gpu", type=click.IntRange(min=0), metavar="N", help="Use this GPU.  [default: the processor]")
    return weights(gpu(command))


def _device(gpu: int | None) -> str:
    return "cpu" if gpu is None else f"cuda:{gpu}"


# check


@main.command(short_help="Look for faults in a folder of photographs.")
@click.argument("folder", type=UserPath())
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_context
@_sentence
def check(ctx, folder, as_json):
    """Look for faults in a folder of photographs, sorted or not, before a model is made.

    \b
        patchcore-kit check data/bottle

    Exit code 1 if there is something to mend.
    """
    from patchcore_kit.data_check import check_folder

    _imported()
    found = check_folder(folder)
    if as_json:
        findings = [
            {"kind": one.kind, "name": one.name, "sentence": one.sentence, "fault": one.fault} for one in found.findings
        ]
        known = {"folder": str(folder), "good": found.good, "test": found.test, "findings": findings}
        click.echo(json.dumps(known, indent=2))
    else:
        click.echo(str(found))
    ctx.exit(int(any(one.fault for one in found.findings)))


# fit


@main.command(short_help="Learn from good photographs.")
@click.argument("folder", type=UserPath())
@click.argument("model", type=UserPath())
@click.option("--backbone", default="starter", show_default=True, help="The network that describes photographs.")
@click.option("--weights", metavar="FILE", help="Of the network, or 'random'.  [default: what is found, or downloaded]")
@click.option(
    "--layers", multiple=True, metavar="NAME", help="A layer of it, as often as needed.  [default: by network]"
)
@click.option(
    "--size", type=click.IntRange(min=1), help="Shorter side it sees, pixels.  [default: 256; with --tile all]"
)
@click.option("--tile", type=click.IntRange(min=1), metavar="N", help="Cut larger photographs into tiles of N pixels.")
@click.option("--memory", metavar="SIZE", help="Learn in so much memory, as 2GB.  [default: all photographs at once]")
@click.option("--percentage", type=float, default=0.1, show_default=True, help="Share of the patches that are kept.")
@click.option("--alarm-rate", type=float, default=0.05, show_default=True, help="Share of good ones not called good.")
@click.option("--contamination", type=float, default=0.0, show_default=True, help="Share that may be bad themselves.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@click.option("--gpu", type=click.IntRange(min=0), metavar="N", help="Use this GPU.  [default: the processor]")
@click.option("--force", is_flag=True, help="Replace a model that is there.")
@_sentence
def fit(
    folder, model, backbone, weights, layers, size, tile, memory, percentage, alarm_rate, contamination, seed, gpu,
    force,
):  # fmt: skip
    """Learn from good photographs: those of FOLDER, or of its train/good. The model becomes the folder MODEL.

    \b
        patchcore-kit fit data/bottle models/bottle

    Photographs are seen as a whole, with their sides in proportion.
    """
    _check_free(model, force)
    samples = _good(folder)

    from patchcore_kit.backbones import load_backbone
    from patchcore_kit.detector import PatchCore
    from patchcore_kit.transforms import whole_resize

    network = load_backbone(backbone, layers or LAYERS.get(backbone, DEFAULT_LAYERS), weights, _device(gpu), seed)
    if tile:
        resize = whole_resize(samples, size, multiple=network.stride, longest=2**15)
    else:
        resize = whole_resize(samples, size or 256, multiple=getattr(network, "multiple", 8))
    detector = PatchCore(
        network,
        percentage=percentage,
        resize=resize,
        tile=tile,
        seed=seed,
        scoring="density",
        alarm_rate=alarm_rate,
        contamination=contamination,
        progress=sys.stderr.isatty(),
    )
    _imported()
    detector.fit(samples, memory=memory).save(model)
    for line in _learnt(detector):
        click.echo(line)
    click.echo(f"model: {model}")


def _check_free(model: Path, force: bool) -> None:
    """Before any work is done. Raises ResultsError for a folder that holds a model, or anything else."""
    from patchcore_kit.reference_format import PARAMS_FILE, check_replaceable

    check_replaceable(model)
    if not force and model.is_dir() and any(model.glob(f"*{PARAMS_FILE}")):
        raise ResultsError(f"{model} holds a model: choose another folder, or replace it with --force")
    if model.exists() and not model.is_dir():
        raise ResultsError(f"{model} is a file: choose a new folder for the model")


def _good(folder: Path) -> "list[Sample]":
    """Good photographs, unsorted or in the usual layout. Raises DataError for a folder of several categories."""
    from patchcore_kit import datasets

    if folder.is_dir() and datasets.is_category(folder):
        category = folder if folder.name not in ("", "..") else folder.resolve()
        samples = datasets.load_category(category.parent, category.name).train
        if not samples:
            raise DataError(f"no images in {folder / 'train' / 'good'}: put good ones there, to learn from")
        return samples
    names = datasets.list_categories(folder) if folder.is_dir() else []
    if names:
        raise DataError(f"{folder} holds categories ({', '.join(names)}): name one of them, as {folder / names[0]}")
    return datasets.load_folder(folder)


def _learnt(detector: "PatchCore") -> Iterator[str]:
    """What a detector has learnt, and what it promises, in lines."""
    from patchcore_kit.calibration import FEWEST
    from patchcore_kit.files import printable

    n, (height, width) = len(detector.train_names_), detector.transform.size
    of = n * detector.grid_[0] * detector.grid_[1]
    yield f"learnt from: {n} photograph{'s' * (n != 1)}, seen at {width}x{height}"
    yield f"kept: {len(detector.bank_)} of {of} patches"
    yield f"network: {_network(detector)}"
    if detector.suspects_:
        yield f"not learnt, look at them: {', '.join(map(printable, detector.suspects_))}"
    if detector.calibration_:
        yield f"threshold: {detector.calibration_.look}"
    else:
        why = f"it takes {FEWEST} photographs at least" if n < FEWEST else "they are copies of each other"
        yield f"threshold: none, and so no verdicts, for {why}"


def _network(detector: "PatchCore") -> str:
    backbone = detector.backbone
    return f"{backbone.name} ({', '.join(backbone.layers)}), weights {backbone.weights}"


# predict


@main.command(short_help="A verdict for each photograph, on a line.")
@click.argument("model", type=UserPath())
@click.argument("images", nargs=-1, required=True)
@click.option("--out", type=UserPath(), metavar="FOLDER", help="Tables, and a picture of each that is not good.")
@click.option(
    "--json", "as_json", is_flag=True, help="Lines of JSON, with all regions and what they were compared with."
)
@_model_options
@click.pass_context
@_sentence
def predict(ctx, model, images, out, as_json, weights, gpu):
    """Judge photographs: files, folders with all below, or patterns as 'new/**/*.png'.

    \b
        patchcore-kit predict models/bottle data/bottle/test

    A line for each: verdict, index (1 is the limit), where, name, remark; with tabs between them where stdout is no
    terminal. Exit code 0: all good; 1: some are not; 2: some could not be judged.
    """
    from patchcore_kit import judgements

    samples, failed = find_images(images, out)
    tally: Counter[str] = Counter()
    with judgements.outputs(out) as outputs, _bar(len(samples)) as bar:
        for name, sentence in failed:
            _tell(judgements.unreadable(name, sentence), as_json, tally)
            outputs.add_unreadable(name, sentence)
        for part, predictions, sentence in _judged(model, weights, gpu, samples) if samples else ():
            for i, sample in enumerate(part):
                if predictions is None:
                    _tell(judgements.unreadable(sample.name, sentence), as_json, tally)
                    outputs.add_unreadable(sample.name, sentence)
                    continue
                record = judgements.record(predictions, i) if as_json or out else {}
                _tell(judgements.judgement(predictions, i), as_json, tally, record)
                outputs.add(sample, predictions, i, record)
            bar.update(len(part))
    ctx.exit(_exit_code(tally, model))


def find_images(given: Iterable[str], left_out: Path | None = None) -> "tuple[list[Sample], list[tuple[str, str]]]":
    """Files, folders with all that is below them, and patterns -> samples of unknown label, each file once.

    They are named by their paths as they were given. left_out: a folder of results, which are not looked for images.
    The second list is of what led to no images: name and reason.
    """
    from patchcore_kit.datasets import Sample
    from patchcore_kit.notes import Notes

    samples, failed, notes = {}, [], Notes()
    skipped = {left_out.resolve()} if left_out else set()
    for one in given:
        try:
            for path in _expanded(one, skipped, notes):
                samples.setdefault(path.as_posix(), Sample(path.as_posix(), path, defect=None))
        except DataError as error:
            failed.append((one, str(error)))
    notes.tell()
    return list(samples.values()), failed


def _expanded(one: str, skipped: set[Path], notes: "Notes") -> Iterator[Path]:
    from patchcore_kit import datasets
    from patchcore_kit.images import IMAGE_SUFFIXES

    path = user_path(one)
    if path.is_dir():
        images = list(_below(path, skipped, notes))
        yield from images or (sample.path for sample in datasets.load_folder(path))  # which says why there are none
    elif path.exists() or not glob.has_magic(one):
        yield path  # one that is missing is told when it is read
    else:
        matches = map(Path, sorted(glob.glob(str(path), recursive=True)))  # noqa: PTH207, as shells do it
        found = {match.resolve(): match for match in reversed(list(matches))}  # a link may lead back
        images = [
            match for match in reversed(found.values()) if match.is_dir() or match.suffix.lower() in IMAGE_SUFFIXES
        ]
        if not images:
            raise DataError(f"no images match {one}: check the pattern, which needs quotation marks around it")
        for match in images:
            yield from _below(match, skipped, notes) if match.is_dir() else [match]


def _below(folder: Path, skipped: set[Path], notes: "Notes") -> Iterator[Path]:
    """Image files in a folder, then in those below it, sorted; what is left out is noted. skipped: places seen."""
    from patchcore_kit import folders
    from patchcore_kit.images import IMAGE_SUFFIXES

    if folder.resolve() in skipped:
        return
    skipped.add(folder.resolve())  # a link may lead back
    with folders.listing(folder):
        entries = sorted(entry for entry in folder.iterdir() if not folders.is_litter(entry.name))
    images = [entry for entry in entries if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.is_dir()]
    keys = {folders.folded(image.stem) for image in images}
    for image in images:
        ending = folders.MASK_ENDING.search(folders.folded(image.stem))
        if ending and ending[1] not in folders.PERHAPS and folders.folded(image.stem)[: ending.start()] in keys:
            notes.add(image, "is left out: it looks like the mask of the image beside it")
        else:
            yield image
    for entry in entries:
        if entry.is_dir() and folders.letters(entry.name) in folders.NO_DEFECTS:
            notes.add(entry, "is left out: it seems to hold masks")
        elif entry.is_dir():
            yield from _below(entry, skipped, notes)
        elif entry.suffix.lower() in folders.UNREAD_SUFFIXES:
            notes.add(entry, f"left out: of images only {', '.join(IMAGE_SUFFIXES)} are read")


def _judged(
    model: Path, weights: str | None, gpu: int | None, samples: "Sequence[Sample]"
) -> "Iterator[tuple[Sequence[Sample], Predictions | None, str]]":
    """Samples in order, some at a time, and what the model says of them; or one that cannot be read, and why."""
    detector = _open(model, weights, gpu)
    for batch in (samples[:1], *(samples[start : start + BATCH] for start in range(1, len(samples), BATCH))):
        yield from _tried(detector, batch)


def _tried(
    detector: "PatchCore | PatchCoreEnsemble", samples: "Sequence[Sample]"
) -> "Iterator[tuple[Sequence[Sample], Predictions | None, str]]":
    try:
        predictions, why = detector.predict(samples), ""
    except DataError as error:
        predictions, why = None, str(error)
    if predictions is not None or len(samples) == 1:
        yield samples, predictions, why
    else:
        for sample in samples:  # which of them it is
            yield from _tried(detector, [sample])


def _open(model: Path, weights: str | None, gpu: int | None) -> "PatchCore | PatchCoreEnsemble":
    from patchcore_kit.ensemble import load_detector

    return load_detector(model, weights, device=_device(gpu), progress=False)


def _tell(said: "Judgement", as_json: bool, tally: Counter, record: dict | None = None) -> None:
    """A line on stdout, at once; of a photograph that cannot be read the reason on stderr."""
    tally[said.verdict] += 1
    if said.verdict == "unreadable":
        click.echo(said.remark, err=True)
    click.echo(json.dumps(record or said.record) if as_json else _line(said))


def _line(said: "Judgement") -> str:
    """Aligned for a person, with tabs between the columns for a program."""
    remark = [said.remark] if said.remark and said.verdict != "unreadable" else []
    fields = [said.verdict, "-" if said.index is None else f"{said.index:.2f}", said.where, said.name]
    if sys.stdout.isatty():
        fields = [f"{fields[0]:10}", f"{fields[1]:>6}", f"{fields[2]:>19}", fields[3]]
    return ("  " if sys.stdout.isatty() else "\t").join(fields + remark)


def _exit_code(tally: Counter, model: Path) -> int:
    """0: all are good; 1: some are not; 2: something could not be judged, which without a threshold is all."""
    if tally["-"]:
        click.echo(
            f"{model} has no threshold, and so no verdicts: fit it on at least 3 photographs that differ", err=True
        )
    if tally["-"] or tally["unreadable"]:
        return FAILED
    return int(tally["look"] + tally["defective"] > 0)


@contextmanager
def _bar(total: int) -> Iterator:
    """How far it has come; only where lines do not show that, and a person looks on."""
    from tqdm import tqdm

    with tqdm(total=total, leave=False, disable=not sys.stderr.isatty() or sys.stdout.isatty()) as bar:
        yield bar


# report


@main.command(short_help="The same as a page to look at.")
@click.argument("model", type=UserPath())
@click.argument("images", nargs=-1, required=True)
@click.argument("page", type=UserPath())
@_model_options
@click.pass_context
@_sentence
def report(ctx, model, images, page, weights, gpu):
    """Judge photographs as predict does, and write a page to look at: the last argument, PAGE, ends in .html.

    \b
        patchcore-kit report models/bottle data/bottle/test bottle.html

    Exit codes are those of predict.
    """
    if page.suffix.lower() not in (".html", ".htm"):
        raise ResultsError(f"{page} is to be written: the last argument is the page, whose name ends in .html")
    samples, failed = find_images(images)
    parts, judged, tally = [], [], Counter()
    with _bar(len(samples)) as bar:
        for part, predictions, sentence in _judged(model, weights, gpu, samples) if samples else ():
            if predictions is None:
                failed.append((part[0].name, sentence))
            else:
                parts.append(predictions)
                judged += part
                tally.update(verdict or "-" for verdict in predictions.verdicts)
            bar.update(len(part))
    for _, sentence in failed:
        click.echo(sentence, err=True)
    if not parts:
        raise DataError("none of the images could be judged, so there is no page")

    from patchcore_kit.predictions import Predictions
    from patchcore_kit.report import write_report

    predictions = Predictions.joined(parts)
    facts = _facts(model, predictions, len(failed))
    write_report(page, judged, predictions, facts=facts, failed=failed, title=f"Verdicts of {model.name}")
    tally["unreadable"] = len(failed)
    click.echo(", ".join(f"{n} {verdict}" for verdict, n in tally.items() if n and verdict != "-") or f"{len(judged)}")
    click.echo(f"page: {page}")
    ctx.exit(_exit_code(tally, model))


def _facts(model: Path, predictions: "Predictions", failed: int) -> dict[str, str]:
    """What was judged with what."""
    from patchcore_kit.reference_format import prefixes, read_settings

    params, extras = read_settings(model, prefixes(model)[0])
    facts = {"model": str(model), "photographs": f"{len(predictions.names)} judged, {failed} that could not be"}
    n = len(extras.get("training_images", ()))
    if n:
        facts["learnt from"] = f"{n} good photograph{'s' * (n != 1)}"
    facts["seen at"] = "x".join(map(str, predictions.transform.size[::-1]))
    layers = ", ".join(params["layers_to_extract_from"])
    facts["network"] = f"{params['backbone.name']} ({layers})"
    facts["threshold"] = "none" if predictions.calibration is None else str(predictions.calibration.look)
    return facts


# watch


@main.command(short_help="A verdict for each photograph that a camera writes.")
@click.argument("model", type=UserPath())
@click.argument("folder", type=UserPath())
@click.option("--out", type=UserPath(), metavar="FILE", help="The CSV of verdicts.  [default: FOLDER/verdicts.csv]")
@click.option(
    "--settle",
    type=click.FloatRange(min=0),
    default=0.5,
    show_default=True,
    help="Seconds without a change until a file is whole.",
)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.01),
    default=0.2,
    show_default=True,
    help="Seconds between looks at the folder.",
)
@click.option("--only-new", is_flag=True, help="Leave what is there at the start.")
@click.option("--once", is_flag=True, help="Judge what is there, and end.")
@_model_options
@click.pass_context
@_sentence
def watch(ctx, model, folder, out, settle, interval, only_new, once, weights, gpu):  # fmt: skip
    """Judge each photograph that a camera writes into FOLDER, or below it, once it is whole, and never twice.

    \b
        patchcore-kit watch models/bottle camera

    Verdicts are added to a CSV, from which a new start knows what is done. Ctrl-C ends it. With --once exit codes are
    those of predict.
    """
    from patchcore_kit import judgements
    from patchcore_kit import watch as watching
    from patchcore_kit.datasets import Sample

    detector, tally, stop = _open(model, weights, gpu), Counter(), Event()

    def judge(path: Path, name: str) -> "Judgement":
        return judgements.judgement(detector.predict([Sample(name, path, defect=None)]), 0)

    def tell(said: "Judgement") -> None:
        _tell(said, False, tally)

    out = out or folder / "verdicts.csv"
    if sys.stderr.isatty():
        click.echo(f"watching {folder}, verdicts go to {out}, Ctrl-C ends", err=True)
    with _until_signal(stop):
        watching.watch(
            folder, judge, out, tell, settle=settle, interval=interval, only_new=only_new, once=once, stop=stop
        )
    ctx.exit(_exit_code(tally, model) if once else 0)


@contextmanager
def _until_signal(stop: Event) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM sets the event, another one acts as ever."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def end(number: int, frame: object) -> None:
        stop.set()
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    main(prog_name="patchcore-kit")
