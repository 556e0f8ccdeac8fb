"""npz files -> arrays by name; nothing that a file says of itself is believed before its own length bears it out.

What numpy writes with `savez` is a ZIP archive of files that are not compressed, each with a checksum, a header and the
values. So a file cannot hold more than its length, and a damaged one is told by its checksum.
"""

import math
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

Kind = tuple[str, int]
"""What an array must be: letters of `numpy.dtype.kind` that it may have, and its number of axes."""

MOST = 1000  # arrays in a file


def read_arrays(path: Path, kinds: Mapping[str, Kind], required: Collection[str] = ()) -> dict[str, np.ndarray]:
    """The arrays of an npz file that are named in `kinds`; others are left alone.

    Raises OSError if it cannot be read, and nearly anything, mostly ValueError, if it is damaged or something else: an
    array is of another kind, is not finite (NaN stands for what is not known where there is no axis), or is missing.
    """
    length, found = path.stat().st_size, {}
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if len(entries) > MOST or sum(entry.file_size for entry in entries) > length:
            raise ValueError(f"it claims more than its {length} bytes can hold, or is compressed")
        for entry in entries:
            name = entry.filename.removesuffix(".npy")
            if name in found:
                raise ValueError(f"it holds {name} twice")
            if name in kinds:
                found[name] = _array(archive, entry)
                _check(name, found[name], *kinds[name])
    for name in required:
        if name not in found:
            raise ValueError(f"it has no {name}")
    return found


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{entry.filename} is compressed")
    with archive.open(entry) as file:
        header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(file)]
        shape, columns_first, dtype = header(file)
        if dtype.hasobject or dtype.itemsize * math.prod(shape) != entry.file_size - file.tell():
            raise ValueError(f"{entry.filename} claims {dtype} of {shape}, which it does not hold")
        content = bytearray(file.read())  # to its end, where the archive compares the checksum
    return np.frombuffer(content, dtype).reshape(shape, order="F" if columns_first else "C")


def _check(name: str, array: np.ndarray, kinds: str, axes: int) -> None:
    if array.dtype.kind not in kinds or array.ndim != axes:
        raise ValueError(f"{name} is {array.dtype} of {array.shape}")
    if array.dtype.kind == "f" and axes and array.size and not np.isfinite([array.min(), array.max()]).all():
        raise ValueError(f"{name} holds values that are not finite")
