"""Where the kit's files lie, and how they are written: whole or not at all, whatever happens meanwhile.

What is being written lies in a draft, a hidden folder `.patchcore_kit-...` beside its place, which is locked as long as
its process lives. One that can be locked was left by a process that is dead, and whoever writes there next tidies up.
"""

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from itertools import chain, count
from pathlib import Path

from patchcore_kit.errors import ResultsError, SettingsError, short

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
DRAFT = ".patchcore_kit-"
DAY = 86400  # seconds
SYSTEMS = (".DS_Store", "Thumbs.db", "desktop.ini")  # what systems put into any folder; a new one gets them, too
LITTER = ("._", ".nfs", "@eaDir", ".directory")  # how the names of what they put there for a while begin
LONGEST_NAME = 200  # bytes of a name that a person gives; most file systems take 255, with what is put around it
LARGEST_JSON = 2**24  # bytes
BLOCK = 2**20  # bytes read at once


def work_folder() -> Path:
    """Where data, weights, models and results lie: `$PATCHCORE_WORK`, else the checkout, else the current folder."""
    if os.environ.get("PATCHCORE_WORK"):
        return user_path(os.environ["PATCHCORE_WORK"])
    around = Path(__file__).resolve().parent.parent
    # installed, the kit lies among other packages, which is no place to write to; bin comes with the checkout only
    return around if (around / "bin" / "run_patchcore.py").is_file() else Path.cwd()


def user_path(path: Path | str) -> Path:
    """A path as a person writes it, with ~ for the home folder, as a Path."""
    return Path(path).expanduser()


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is Git LFS's stand-in for a large file, as a clone without LFS leaves it."""
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def read_json(path: Path) -> dict:
    """A file that holds one JSON object. Raises OSError if it cannot be read, ValueError if it is something else."""
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "it is not there", str(path))
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"it has {path.stat().st_size} bytes, more than any of the kit's")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not an object")
    return content


def _no_number(name: str) -> None:
    raise ValueError(f"it holds {name}")


def checksum(files: Iterable[tuple[str, Path]]) -> str:
    """(name, path) of files -> 16 hexadecimal digits that change with any name, size or content.

    Raises OSError for a file that cannot be read.
    """
    named = list(files)
    with ThreadPoolExecutor() as pool:
        parts = pool.map(_size_and_crc, (path for _, path in named))
        lines = [f"{name}\0{size}\0{crc:08x}\n" for (name, _), (size, crc) in zip(named, parts, strict=True)]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _size_and_crc(path: Path) -> tuple[int, int]:
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "it is no file", str(path))
    size = crc = 0
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                size, crc = size + len(block), zlib.crc32(block, crc)
    except OSError as error:  # which names a file that cannot be opened only
        raise OSError(error.errno, error.strerror, str(path)) from None
    return size, crc


@contextmanager
def writing(path: Path, check: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """A temporary path for a file or a folder that takes the place of `path` when the block ends well.

    A folder that is there is exchanged in one step where the system can do that, else put back by `tidy` if the process
    dies between two. Of a link the file or folder that it leads to is replaced.

    check: called with a folder that is about to be replaced, raises if it may not be.
    Raises ResultsError if it cannot be written; what was there before is then still there.
    """
    path = Path(os.path.realpath(path))
    within = any(part.startswith(DRAFT) for part in path.parts)  # another draft, which reaches the disk as a whole
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not within:
            tidy(path.parent)
        with _draft(path.parent) as draft:
            new = draft / "new" / path.name
            new.parent.mkdir()
            yield new
            if not within:
                _reach_disk(new)
            if path.is_dir() and new.is_dir():
                if check:
                    check(path)
                for left in (path / name for name in SYSTEMS):
                    if left.is_file():
                        shutil.copy2(left, new)
                if not _exchange(new, path):
                    (draft / "old").mkdir()
                    path.rename(draft / "old" / path.name)
                    new.rename(path)
            else:
                new.replace(path)
            if not within:
                _sync(path.parent)
    except ResultsError:
        raise
    except OSError as error:
        raise ResultsError(
            f"cannot write {path} ({short(error.strerror or error)}): choose a folder that you may write to, "
            "with room on its disk"
        ) from None


@contextmanager
def _draft(parent: Path) -> Iterator[Path]:
    """A new folder that goes with the block, and that nobody takes for a dead process's."""
    while True:  # somebody may tidy up before it is locked
        draft = Path(tempfile.mkdtemp(prefix=_of_this_machine(), dir=parent))
        with suppress(FileNotFoundError):
            handle = os.open(draft, os.O_RDONLY)
            if _lock(handle) and draft.is_dir():
                break
            os.close(handle)
    try:
        yield draft
    finally:
        try:
            if _put_back(draft):
                shutil.rmtree(draft, ignore_errors=True)
        finally:
            os.close(handle)


def _of_this_machine() -> str:
    """How its drafts begin: on shares a lock may be known on the machine alone that has it."""
    return f"{DRAFT}{re.sub('[^A-Za-z0-9]', '_', platform.node())[:40]}-"


def _put_back(draft: Path) -> bool:
    """Put back what was moved away to be replaced, and was not; False if it cannot be, and is in the draft only."""
    back = True
    if (old := draft / "old").is_dir() and not old.is_symlink():
        for before in old.iterdir():
            place = draft.parent / before.name
            if not os.path.lexists(place) and os.path.lexists(draft / "new" / before.name):
                with suppress(OSError):
                    before.rename(place)
            back = back and os.path.lexists(place)
    return back


def _lock(handle: int) -> bool:
    """Lock an open file or folder for as long as it is open; False if another process has it.

    Where the file system has no locks it is taken to be locked.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _reach_disk(path: Path) -> None:
    """Wait until a file, or all of a folder, is on the disk: a name must not get there before its content."""
    for below in path.iterdir() if path.is_dir() else ():
        _reach_disk(below)
    _sync(path)


def _sync(path: Path) -> None:
    folder = path.is_dir()
    with suppress(OSError) if folder else nullcontext():  # of folders not every system can
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where the system cannot."""
    libc = ctypes.CDLL(None) if sys.platform in ("linux", "darwin") else None
    names = os.fsencode(one), os.fsencode(other)
    if hasattr(libc, "renameat2"):  # AT_FDCWD, RENAME_EXCHANGE
        failed = libc.renameat2(-100, names[0], -100, names[1], 2)
    elif hasattr(libc, "renamex_np"):  # RENAME_SWAP
        failed = libc.renamex_np(*names, 2)
    else:
        return False
    return not failed  # two steps then say what is wrong, if anything else is


def tidy(folder: Path, *, remove: bool = True) -> None:
    """Put back what dead processes were about to replace in a folder, and remove the drafts that they have left.

    remove: else they stay, for who only reads. Those of other machines are left alone for a day.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(DRAFT)]
        for draft in (folder / name for name in names):
            with suppress(OSError):  # it is gone, not ours to touch, or locked
                handle = os.open(draft, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    of_here = draft.name.startswith(_of_this_machine())
                    if (of_here or draft.stat().st_mtime < time.time() - DAY) and _put_back(draft) and remove:
                        shutil.rmtree(draft, ignore_errors=True)
                finally:
                    os.close(handle)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other processes that ask for the same out of a folder.

    Raises ResultsError if one is in it already, or if it cannot be read.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ResultsError(f"cannot use {folder} ({error.strerror}): choose a folder that you may read") from None
    try:
        if not _lock(handle) or not folder.is_dir() or not os.path.samestat(os.fstat(handle), folder.stat()):
            raise ResultsError(f"another run is writing into {folder}: wait for its end, or choose another folder")
        yield
    finally:
        os.close(handle)


def run_name(option: str, name: str) -> str:
    """A name for a folder, as it is. Raises SettingsError for one that would lead elsewhere or is too long.

    option: what it is called where it was given.
    """
    if not name or name.startswith(".") or set(name) & {"/", "\0"}:
        raise SettingsError(f"{option} is {short(name)!r}: give a single name, without / and with no dot in front")
    if (size := len(os.fsencode(name))) > LONGEST_NAME:
        raise SettingsError(f"{option} is {short(name)!r}, of {size} bytes: give a name of at most {LONGEST_NAME}")
    return name


def names_in(folder: Path) -> list[str]:
    """What is in a folder that is to be replaced, sorted, without what systems and shares put into any.

    Raises ResultsError if it may not be written.
    """
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ResultsError(f"{folder} cannot be replaced: you may not write to it")
    names = (path.name for path in folder.iterdir())
    return sorted(name for name in names if name not in SYSTEMS and not name.startswith(LITTER))


def file_name(stem: str) -> str:
    """A name for a file that any system takes: as `printable`, and a long one cut, with a checksum behind."""
    name = printable(stem)
    if len(name.encode()) <= LONGEST_NAME:
        return name
    return f"{name.encode()[: LONGEST_NAME - 9].decode(errors='ignore')}_{zlib.crc32(name.encode()):08x}"


def numbered(name: str) -> Iterator[str]:
    """A name, and then with a number behind it, for where it is taken: part, part_2, part_3, ..."""
    return chain([name], (f"{name}_{number}" for number in count(2)))


def printable(name: str) -> str:
    """A name on one line and in UTF-8; what is neither is written as in Python's texts, a line's end as `\\n`."""
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name)
