"""Images as the network takes them, kept in a folder: decoded and resized once, whatever reads them afterwards."""

import contextlib
import hashlib
import os
import re
import struct
import threading
import time
import uuid
import zlib
from pathlib import Path

import numpy as np
import PIL

from patchcore_kit.datasets import Sample
from patchcore_kit.errors import DataError
from patchcore_kit.files import user_path, work_folder
from patchcore_kit.images import check_file
from patchcore_kit.notes import Notes
from patchcore_kit.transforms import Transform

LIMIT = 2_000_000_000  # bytes: all of MVTec AD at two sizes
READING = 3  # raised when files are read otherwise than before: then old entries are not used any more
TRIMMED = 0.9  # of the limit is left, so that the folder need not be listed for every entry
LEFT = 3600  # seconds after which a temporary file is one that a killed process has left

# An entry: this, then height x width x 3 bytes of pixels. The checksum is of the key and the pixels.
HEADER = struct.Struct("<8s3I")  # the mark, height, width, checksum
MARK = b"PCKIMG\x00\x03"
_ENTRY = re.compile(r"[0-9a-f]{64}\.image")
_BEFORE = re.compile(r"[0-9a-f]{64}\.npy")  # entries of earlier versions
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.new|\.\d+-new-[0-9a-f]{64}\.npy")


class ImageCache:
    """A folder of decoded and resized images.

    An entry goes by a checksum of the file's bytes, the transform's size and bits, and the versions of the libraries
    that decode and resize. So it cannot be stale: a file that changes is another one, whatever its name and date say.
    An entry that is not what was written, whatever has happened to it, is none: the image is decoded again. An image
    whose file is smaller than its entry would be is not kept, for it is decoded as fast.

    folder: `.cache/images` in the work folder if None; made with the first entry.
    limit: bytes of all entries, when a cache is opened and while it is used; those that were not used for longest go.
        Where several processes write at once, each may be ahead of the others by a tenth of it.
    """

    def __init__(self, folder: Path | str | None = None, *, limit: int = LIMIT) -> None:
        self.folder = work_folder() / ".cache" / "images" if folder is None else user_path(folder)
        self.limit = limit
        self._trimming = threading.Lock()
        self._bytes = self._written = 0  # in the folder, and by this cache since it was listed
        self._trim(limit)

    def image(self, sample: Sample, transform: Transform, notes: Notes | None = None) -> np.ndarray:
        """What `transform.image(sample)` gives: (H, W, 3), uint8. Raises DataError as it does.

        Frames in memory are not kept, nor images of which there is something to tell, so that it is told again. A
        cache that cannot be written leaves it at that.
        """
        if sample.path is None:
            return transform.image(sample, notes=notes)
        try:
            check_file(sample.path)
            content = sample.path.read_bytes()
        except (OSError, DataError):
            return transform.image(sample, notes=notes)  # which says what is wrong
        how = READING, transform.resize, transform.imagesize, transform.bits, PIL.__version__
        key = hashlib.sha256(repr(how).encode())
        key.update(content)
        entry = self.folder / f"{key.hexdigest()}.image"
        image = _read(entry, key.digest(), transform.size)
        if image is not None:
            return image
        own = Notes()
        image = transform.image(sample, content, own)
        if own:
            own.tell(notes)
        elif image.nbytes < len(content):
            self._write(entry, key.digest(), image)
        return image

    def _write(self, entry: Path, key: bytes, image: np.ndarray) -> None:
        """Put an entry there, whole or not at all; a torn one after a power failure is none, so no disk is waited for.

        Its temporary file is of the permissions that others are, which tempfile's are not: caches may be shared.
        """
        size = HEADER.size + image.nbytes
        if size > self.limit:
            return
        temporary = self.folder / f".{uuid.uuid4().hex}.new"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                file.write(HEADER.pack(MARK, *image.shape[:2], _checksum(key, image)))
                file.write(image.data)
            temporary.replace(entry)
        except OSError:  # a full disk, or a folder that is read only
            with contextlib.suppress(OSError):
                temporary.unlink()
            return
        with self._trimming:
            self._bytes, self._written = self._bytes + size, self._written + size
            if self._bytes > self.limit or self._written > (1 - TRIMMED) * self.limit:
                self._trim(TRIMMED * self.limit)

    def _trim(self, most: float) -> None:
        """List the folder, and if it holds more bytes than the limit, remove what was not used for longest."""
        entries, now = [], time.time()
        with contextlib.suppress(OSError), os.scandir(self.folder) as files:
            for file in files:
                with contextlib.suppress(OSError):  # another process trims it at the same time
                    if _ENTRY.fullmatch(file.name):
                        entries.append((file.stat().st_mtime, file.stat().st_size, file.path))
                    elif _BEFORE.fullmatch(file.name) or (
                        _TEMPORARY.fullmatch(file.name) and file.stat().st_mtime < now - LEFT
                    ):
                        Path(file).unlink()
        self._bytes, self._written = sum(size for _, size, _ in entries), 0
        for _, size, path in sorted(entries) if self._bytes > self.limit else ():
            if self._bytes <= most:
                break
            with contextlib.suppress(OSError):
                Path(path).unlink(missing_ok=True)
                self._bytes -= size


def _checksum(key: bytes, image: np.ndarray) -> int:
    return zlib.crc32(image.data, zlib.crc32(key))


def _read(entry: Path, key: bytes, size: tuple[int, int]) -> np.ndarray | None:
    """The image (H, W, 3) of an entry; None if there is none, or if it is not what its key promises: then it goes."""
    try:
        check_file(entry)
        with entry.open("rb") as file:
            image = np.empty((*size, 3), dtype=np.uint8) if _is_whole(file.fileno(), size) else None
            if image is not None:
                header = file.read(HEADER.size)
                read = file.readinto(image.data)
                if read == image.nbytes and header == HEADER.pack(MARK, *size, _checksum(key, image)):
                    with contextlib.suppress(OSError):  # of a folder that is read only
                        os.utime(entry)  # used now
                    return image
    except OSError:
        return None
    except DataError:  # a pipe, a device: no entry either
        pass
    with contextlib.suppress(OSError):
        entry.unlink()
    return None


def _is_whole(file: int, size: tuple[int, int]) -> bool:
    """Whether an opened file is as long as an entry of (H, W), before there is memory for it."""
    return os.fstat(file).st_size == HEADER.size + size[0] * size[1] * 3
