"""npz files -> arrays by name; nothing that a file says of itself is believed before its own length bears it out.

What numpy writes with `savez` is a ZIP archive of files that are not compressed, each with a checksum, a header and the
values. So a file cannot hold more than its length, and a damaged one is told by its checksum.
"""

import math
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.lib import format as npy

Kind = tuple[str, str]
"""What an array must be: letters of `numpy.dtype.kind` that it may have, and a letter for each axis. In a file axes of
the same letter are equally long, one of a digit is as long as that, and one of a dot is of any length."""

MOST = 1000  # arrays in a file


def read_arrays(
    path: Path,
    kinds: Mapping[str, Kind],
    required: Collection[str] = (),
    lengths: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, np.ndarray]:
    """The arrays of an npz file that are named in `kinds`; others are left alone.

    lengths: of axes, by their letters, as far as they are known before.
    Raises OSError if it cannot be read, and nearly anything, mostly ValueError, if it is damaged or something else: an
    array is of another kind, is not finite (NaN stands for what is not known where there is no axis), or is missing.
    """
    length, found, known = path.stat().st_size, {}, dict(lengths)
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
                _check(name, found[name], *kinds[name], known)
            else:  # what it is called stands in two places: a known name that is damaged in one is not left alone
                archive.open(entry).close()
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
    array = np.frombuffer(content, dtype).reshape(shape, order="F" if columns_first else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)  # torch takes no other


def _check(name: str, array: np.ndarray, kinds: str, axes: str, known: dict[str, int]) -> None:
    unknown = array.dtype.kind == "f" and array.dtype.itemsize > 8  # to torch
    if array.dtype.kind not in kinds or array.ndim != len(axes) or unknown:
        raise ValueError(f"{name} is {array.dtype} of {array.shape}")
    for axis, length in zip(axes, array.shape, strict=True):
        wanted = int(axis) if axis.isdigit() else length if axis == "." else known.setdefault(axis, length)
        if length != wanted:
            raise ValueError(f"{name} is of {array.shape}, which has {length} where {wanted} belong")
    if array.dtype.kind == "f" and axes and array.size and not np.isfinite([array.min(), array.max()]).all():
        raise ValueError(f"{name} holds values that are not finite")
