"""A folder that a camera writes into -> a line of a CSV for each photograph once it is whole, and never two.

The CSV is all that is remembered. A line is written after the verdict, and one that has not reached the disk whole is
dropped at the next start; what has no line, or has become another file since, is judged. So power may fail at any time.
"""

import csv
import fcntl
import io
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Event
from types import TracebackType

from patchcore_kit.errors import DataError, ResultsError
from patchcore_kit.files import printable
from patchcore_kit.folders import is_litter
from patchcore_kit.images import IMAGE_SUFFIXES
from patchcore_kit.judgements import UNREADABLE, Judgement
from patchcore_kit.notes import Notes

COLUMNS = ("time", "name", "verdict", "index", "where", "score", "remark", "size", "mtime_ns")
HEADER = (",".join(COLUMNS) + "\n").encode()
TEMPORARY = {".part", ".tmp"}  # among a name's suffixes: a file that is still being written
PATIENCE = 10.0  # seconds after which a file that cannot be read, and does not change, is told

Stamp = tuple[int, int]
"""Size and mtime_ns of a file, which tell it from another of its name."""


class Verdicts:
    """The CSV, open to be added to, by one process at a time; `done`: the stamp of each name's last line.

    Raises ResultsError if it cannot be written, holds something else, or another process adds to it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.done = path, {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
            self._read()
        except BlockingIOError:
            self._file.close()
            raise ResultsError(f"{path} is written by another watch: end that one, or choose another file") from None
        except ResultsError:
            self._file.close()
            raise

    def _unwritable(self, error: OSError) -> ResultsError:
        return ResultsError(
            f"cannot write {self.path} ({error.strerror or error}): choose a place that you may write to, with room on "
            "its disk"
        )

    def _read(self) -> None:
        """What is done; a last line that is torn is removed."""
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if not whole.startswith(HEADER) and not HEADER.startswith(content):
            raise ResultsError(f"{self.path} holds something else than verdicts: choose another file, or move it away")
        if len(whole) < len(content):
            self._file.truncate(len(whole))
        if not whole:
            self._write(HEADER)
        for line in whole[len(HEADER) :].decode("utf-8", "replace").split("\n"):
            fields = next(csv.reader([line]), [])
            if len(fields) == len(COLUMNS) and all(field.lstrip("-").isdecimal() for field in fields[-2:]):
                self.done[fields[1]] = int(fields[-2]), int(fields[-1])

    def add(self, said: Judgement, stamp: Stamp) -> None:
        """One line, on the disk when this returns. Raises ResultsError if it cannot be written."""
        line = io.StringIO()
        numbers = ["" if number is None else f"{number:.6g}" for number in (said.index, said.score)]
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        known = [now, said.name, said.verdict, numbers[0], said.where, numbers[1], printable(said.remark), *stamp]
        csv.writer(line, lineterminator="\n").writerow(known)
        self._write(line.getvalue().encode())
        self.done[said.name] = stamp

    def _write(self, content: bytes) -> None:
        try:
            self._file.write(content)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._unwritable(error) from None

    def __enter__(self) -> "Verdicts":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()


@dataclass(slots=True)
class _Waiting:
    """A file that has no line yet: since when it is as it is, and whether it could not be read then."""

    path: Path
    stamp: Stamp
    since: float
    tried: bool = False


def watch(
    folder: Path,
    judge: Callable[[Path, str], Judgement],
    verdicts: Path,
    tell: Callable[[Judgement], None],
    *,
    settle: float = 0.5,
    interval: float = 0.2,
    patience: float = PATIENCE,
    only_new: bool = False,
    once: bool = False,
    stop: Event | None = None,
) -> None:
    """Judge each image file in a folder, and in folders below, that the CSV `verdicts` does not know as it is.

    judge: a file and its name below the folder -> what is said of it; raises DataError for one that cannot be read.
    tell: is given the same once it is in the CSV.
    settle, patience: seconds without a change after which a file is taken to be whole, and a whole one that cannot be
        read to be damaged; if it changes later it is judged again. interval: seconds between looks at the folder.
    only_new: leave what is there at the start, of a CSV with lines only what is not newer than all of these.
    once: end when what is there at the start is judged; what cannot be read then is damaged.
    stop: ends it when it is set, after the photograph at hand.

    Raises DataError without a folder, ResultsError as `Verdicts`.
    """
    stop = stop or Event()
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: name the one that the camera writes into")
    with Verdicts(verdicts) as lines:
        notes, waiting = Notes(), {}
        start = _look(folder, notes)
        newest = max((mtime for _, mtime in lines.done.values()), default=None)
        left = {n: stamp for n, (_, stamp) in start.items() if newest is None or stamp[1] <= newest} if only_new else {}
        while not stop.is_set():
            there, now = _look(folder, notes), time.monotonic()
            if once:
                there = {name: there[name] for name in start if name in there}
            there = {n: (p, s) for n, (p, s) in there.items() if s not in (lines.done.get(n), left.get(n))}
            waiting = {name: _still(waiting.get(name), *found, now) for name, found in there.items()}
            for name in sorted(waiting, key=lambda name: (waiting[name].stamp[1], name)):
                one = waiting[name]
                if now - one.since < (patience if one.tried else settle) or stop.is_set():
                    continue
                said = _judged(judge, name, one, final=once or one.tried)
                if said is not None and _stamp(one.path) == one.stamp:  # else it has changed under our eyes
                    lines.add(said, one.stamp)
                    tell(said)
            if once and not any(lines.done.get(name) != one.stamp for name, one in waiting.items()):
                break
            stop.wait(interval)


def _still(before: _Waiting | None, path: Path, stamp: Stamp, now: float) -> _Waiting:
    return before if before and before.stamp == stamp else _Waiting(path, stamp, now)


def _judged(judge: Callable[[Path, str], Judgement], name: str, one: _Waiting, final: bool) -> Judgement | None:
    """What is said of a file; None of one that cannot be read, until that is final."""
    try:
        return judge(one.path, name)
    except DataError as error:
        one.tried = True
        return Judgement(name, UNREADABLE, remark=str(error)) if final else None


def _stamp(path: Path) -> Stamp | None:
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_size, about.st_mtime_ns


def _look(folder: Path, notes: Notes) -> dict[str, tuple[Path, Stamp]]:
    """Name below the folder -> path and stamp, of the image files there; of a folder that is out of reach none."""
    try:
        return {printable(path.relative_to(folder).as_posix()): (path, stamp) for path, stamp in _files(folder)}
    except OSError as error:  # a share that comes back, perhaps
        notes.add(error.filename or folder, f"cannot be read ({error.strerror}), so it is looked at again and again")
        notes.tell()
        return {}


def _files(folder: Path) -> Iterator[tuple[Path, Stamp]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.path)
            if is_litter(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                try:
                    yield from _files(path)
                except FileNotFoundError:
                    continue  # removed meanwhile
            elif path.suffix.lower() in IMAGE_SUFFIXES and not TEMPORARY.intersection(map(str.lower, path.suffixes)):
                stamp = _stamp(path)
                if stamp and not path.is_dir():
                    yield path, stamp
