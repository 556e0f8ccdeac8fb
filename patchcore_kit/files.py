"""Where the kit's files lie, and how they are written: whole or not at all."""

import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from patchcore_kit.errors import ResultsError

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
# what numpy and json raise for files that are missing, locked, damaged or something else
UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


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


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, for a file or a folder, that takes its place when the block ends well.

    Raises ResultsError if it cannot be written; what was there before is then still there.
    """
    path = path.absolute()
    temporary, before = (path.with_name(f".{os.getpid()}-{kind}-{path.name}") for kind in ("new", "old"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if path.is_dir():
            if not temporary.is_dir():
                raise IsADirectoryError(0, "it is a folder")
            path.rename(before)  # a folder cannot be replaced in one step
        temporary.replace(path)
    except OSError as error:
        raise ResultsError(
            f"cannot write {path} ({error.strerror or error}): choose a folder that you may write to, "
            "with room on its disk"
        ) from None
    finally:
        if before.exists() and not path.exists():
            before.rename(path)
        for left in (temporary, before):
            left.unlink() if left.is_file() else shutil.rmtree(left, ignore_errors=True)
