"""Kill, or refuse, every file operation of what writes files, one after the other, and see what is left.

    python tests/faults.py [--every 5] [WHAT ...]

Each case is a process of its own, forked from one that has everything loaded. It dies at its k-th operation on a file
(SIGKILL, half of the last file written), or is told from there on that the disk is full, or that it may only be read.
Then what is there must be whole, and the same command, once more, must end with the same bytes as one that nobody
disturbed. Printed is how often, as SQLite counts its faults.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # threads do not survive a fork

# isort: split
import argparse
import errno
import itertools
import logging
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import patchcore_kit as pk
from patchcore_kit import files
from patchcore_kit.experiments import Outputs, evaluate_models, evaluation_folder, run_folder, train
from patchcore_kit.results import COSTS, Results

OPERATIONS = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link", "os.truncate", "shutil.copyfile"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
KILLED, REFUSED, FAILED = "killed", "refused", "failed"
ERRORS = {"full": errno.ENOSPC, "read-only": errno.EROFS, "defective": errno.EIO}


class Faults:
    """Counts this process's operations on files below a folder, and strikes at the k-th; 0 never."""

    def __init__(self, below: Path, k: int, how: str) -> None:
        self.below, self.k, self.how, self.count = os.fspath(below), k, how, 0
        sys.addaudithook(self.see)
        fsync, exchange = os.fsync, files._exchange

        def counted_fsync(handle):
            self.step(handle)
            fsync(handle)

        def counted_exchange(one, other):
            self.step()
            return exchange(one, other)

        os.fsync, files._exchange = counted_fsync, counted_exchange

    def see(self, event: str, arguments: tuple) -> None:
        if event not in OPERATIONS or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        if event == "open" and not (arguments[2] or 0) & WRITES:
            return
        if os.fspath(arguments[0]).startswith(self.below):
            self.step()

    def step(self, handle: int | None = None) -> None:
        self.count += 1
        if not self.k or self.count < self.k:
            return
        if self.how in ERRORS:
            number = ERRORS[self.how]
            raise OSError(number, os.strerror(number))
        path = None if handle is None else Path(f"/proc/self/fd/{handle}").resolve()
        if path and path.is_file():  # half of what had not reached the disk
            os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)


def forked(task: Callable[[Path], None], folder: Path, k: int = 0, how: str = "kill") -> tuple[str, int, str]:
    """Run a task in a process of its own -> how it ended, "" if well, the operations until then, and its last words."""
    said = folder.parent / f"{folder.name}.said"
    if not (child := os.fork()):
        code = 0
        try:
            faults = Faults(folder, k, how)
            try:
                task(folder)
                faults.k = 0
                said.write_text(f"{faults.count}\n")
            except pk.KitError as error:
                faults.k, code = 0, 3
                said.write_text(f"{faults.count}\n{error}")
            except BaseException:
                faults.k, code = 0, 4
                said.write_text(f"{faults.count}\n{traceback.format_exc()}")
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return KILLED, 0, ""
    count, _, words = said.read_text().partition("\n")
    said.unlink()
    return {0: "", 3: REFUSED, 4: FAILED}[os.waitstatus_to_exitcode(status)], int(count), words


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder that is no draft; of results.csv what does not depend on the machine."""
    there = [path for path in folder.rglob("*") if path.is_file() and files.DRAFT not in str(path)]
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in there}
    for name in (name for name in found if Path(name).name == "results.csv"):
        table = pd.read_csv(folder / name, dtype=str).drop(columns=[*COSTS, "checksum"], errors="ignore")
        found[name] = table.to_csv().encode()
    return found


@dataclass(frozen=True)
class Case:
    """Something that writes: what is there before, what is done, and what must hold whenever it is cut off."""

    prepare: Callable[[Path], None]
    act: Callable[[Path], None]
    whole: Callable[[Path, dict[str, bytes], dict[str, bytes]], None]


def cases(work: Path) -> dict[str, Case]:
    """By name; the data is drawn into `work`."""
    data = pk.draw_sample_data(
        work / "data", ("pill", "weave"), train=6, good=2, defective=2, size=64, progress=False, workers=1
    )
    categories = [pk.load_category(data, name) for name in pk.list_categories(data)]
    network = pk.load_backbone("starter")
    outputs = Outputs(models=True, predictions=True, images=True)
    settings = {"percentage": 0.1}
    cache = pk.ImageCache(work / "cache")

    def detector() -> pk.PatchCore:
        small = {"resize": 36, "imagesize": 32, "batch_size": 4, "workers": 1, "progress": False, "cache": cache}
        return pk.PatchCore(network, scoring="density", **small)

    def nothing(folder: Path) -> None:
        folder.mkdir()

    def trained(folder: Path, some: slice = slice(None)) -> None:
        with run_folder(folder, "step1", "0000", resume=True) as run:
            train(categories[some], detector, Results(run, settings, resume=True), outputs, progress=False)

    def first_trained(folder: Path) -> None:
        trained(folder, slice(1))

    def evaluated(folder: Path) -> None:
        models = [folder / "step1/0000/models" / f"mvtec_{category.name}" for category in categories]
        with evaluation_folder(folder / "evaluation") as place:
            results = Results(place, {"models": ["step1"]}, resume=True)
            opened = lambda path: pk.load_detector(path, progress=False)  # noqa: E731
            evaluate_models(categories, models, opened, results, Outputs(False, True, True), progress=False)

    def old_model(folder: Path) -> None:
        detector().fit(categories[0].train[:4]).save(folder / "model")

    def new_model(folder: Path) -> None:
        detector().fit(categories[0].train).save(folder / "model")

    def extended(folder: Path) -> None:
        model = pk.load_detector(folder / "model", progress=False)
        if len(model.train_names_) == 4:  # else it was extended before the end came
            model.extend(categories[0].train[4:])
        model.save(folder / "model")

    def rows_are_whole(folder: Path, before: dict[str, bytes], after: dict[str, bytes]) -> None:
        """Every file that is there under its own name is as it ends, or as it began."""
        for name, there in content(folder).items():
            if Path(name).name not in TABLES:
                assert there in (before.get(name), after.get(name)), f"{name} is neither old nor new"
        for table in (path for path in folder.rglob("results.csv") if files.DRAFT not in str(path)):
            for name in pk.read_results(table).index.drop("Mean"):
                assert (table.parent / "predictions" / f"{name}.npz").is_file(), f"{name} has a row only"

    def model_is_whole(folder: Path, before: dict[str, bytes], after: dict[str, bytes]) -> None:
        pk.load_detector(folder / "model", progress=False)  # which tidies up, if it has to
        assert content(folder) in (before, after), "the model is neither the old nor the new one"

    return {
        "train": Case(nothing, trained, rows_are_whole),
        "resume": Case(first_trained, trained, rows_are_whole),
        "evaluate": Case(trained, evaluated, rows_are_whole),
        "save": Case(old_model, new_model, model_is_whole),
        "save in two steps": Case(old_model, in_two_steps(new_model), model_is_whole),
        "extend": Case(old_model, extended, model_is_whole),
    }


TABLES = ("results.csv", "defects.csv", "settings.json")  # they grow


def in_two_steps(act: Callable[[Path], None]) -> Callable[[Path], None]:
    """As on a file system that cannot exchange two folders."""

    def acting(folder: Path) -> None:
        files._exchange = lambda one, other: False
        act(folder)

    return acting


def strike(name: str, case: Case, how: str, every: int, work: Path) -> str:
    """Every k-th operation of a case, from the first one on -> what happened, counted."""
    start, perfect, folder = work / "start", work / "perfect", work / "run"
    for path in (start, perfect):
        shutil.rmtree(path, ignore_errors=True)
    start.mkdir()
    start.rmdir()
    ended, _, words = forked(case.prepare, start)
    assert not ended, words
    shutil.copytree(start, perfect)
    ended, operations, words = forked(case.act, perfect)
    assert not ended, words
    before, after = content(start), content(perfect)
    struck = whole = resumed = 0
    for k in range(1, operations + 1, every):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(start, folder)
        ended, _, words = forked(case.act, folder, k, how)
        where = f"{name}, {how} at operation {k} of {operations}"
        assert ended == (KILLED if how == "kill" else REFUSED) or (not ended and how != "kill"), f"{where}: {words}"
        assert len(words) <= 400, f"{where}: {words}"
        struck += bool(ended)
        ended, _, words = forked(lambda path: case.whole(path, before, after), folder)
        assert not ended, f"{where}: {words}"
        whole += 1
        ended, _, words = forked(case.act, folder)
        assert not ended, f"{where}: {words}"
        assert not [path for path in folder.rglob("*") if path.name.startswith(".")], f"{where}: a draft is left"
        there = content(folder)
        assert there == after, (
            f"{where}: {sorted(n for n in there.keys() | after.keys() if there.get(n) != after.get(n))}"
        )
        resumed += 1
    tried = len(range(1, operations + 1, every))
    return (
        f"{name}: {operations} operations, {tried} tried, {struck} {KILLED if how == 'kill' else f'refused ({how})'}, "
        f"{whole} whole, {resumed} resumed to the same bytes"
    )


def together(work: Path, case: Case, processes: int = 8) -> str:
    """Processes that save the same model at the same time: one of them wins, and it is whole."""
    folder = work / "together"
    shutil.rmtree(folder, ignore_errors=True)
    forked(case.prepare, folder)
    children = []
    for _ in range(processes):
        if not (child := os.fork()):
            code = 1
            try:
                for _ in range(4):
                    case.act(folder)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * processes, codes
    case.whole(folder, {}, content(folder))
    assert [path.name for path in folder.iterdir()] == ["model"], "something is left"
    return f"{processes} processes save a model {4 * processes} times: whole, nothing left"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="Names of cases; all if none is named.")
    parser.add_argument("--every", type=int, default=1, help="Operations from one fault to the next.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        known = cases(work)
        for name, how in itertools.product(
            [name for name in options.what or known if name in known], ("kill", *ERRORS)
        ):
            print(
                strike(name, known[name], how, options.every if how == "kill" else 9 * options.every, work), flush=True
            )
        if not options.what or options.what == ["together"]:
            print(together(work, known["save"]))


if __name__ == "__main__":
    main()
