"""Files as disks, networks, editors and other people leave them: thousands of cases over everything that reads a file.

    python tests/hostile.py [--cases 10000] [--seed 0] [READER ...]
    python tests/hostile.py --only 123 model        one case alone, by the number that a failure has

A case is a good file, or a folder of them, with one thing done to it, by the seed, the reader and the case's number. It
must end as a good result or as a KitError of one sentence of at most 300 characters that names the file, with at most
2 s of the processor's time and 300 MB above the file's own size (of images: and above the pixels that are really
there). Printed is how many ended how:

    good        the answer is that of the undamaged file
    other       it is another one, finite and possible, of files that cannot tell (below)
    told        it is another one, and a warning was logged
    refused     a KitError
    failed      anything else; the first ones are written out

Which readers notice that a value was changed to another one that it could be:

    model           all files: by the checksums in patchcore_kit.json, unless somebody has made them anew as well
    old-model       the kit's before there were checksums: patchcore_kit.npz by the ZIP's own, no other file
    their-model     the reference's two files: no
    ensemble        as model; but the files of a member that are exchanged with another's together make a good model
    predictions     by the ZIP's own checksums, unless somebody has made them anew
    table           results.csv and defects.csv, when they are only read: no
    resume          results.csv: each row by its checksum, and is then made anew; settings.json: what differs is refused
    notebooks       settings.json: the data and the models that it names are compared, nothing else
    weights         .safetensors and what torch.save writes before it made ZIP archives: no; of ZIPs torch checks little
    cache           each entry, by its checksum; the image is then decoded again
    image, mask     PNG by its own checksums, as far as they are read; others: no, pixels are what they are
    data            names, sizes and masks that do not fit together; what is in a picture: no
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # threads do not survive a fork
os.environ["HF_HUB_OFFLINE"] = "1"

# isort: split
import argparse
import contextlib
import gc
import io
import json
import logging
import pickle
import resource
import selectors
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import timm  # noqa: F401  loaded before anything is timed
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save as safetensors_bytes

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import patchcore_kit as pk
import utils
from patchcore_kit import backbones, images, model_folder, weights
from patchcore_kit import reference_format as rf
from patchcore_kit.masks import read_mask
from patchcore_kit.results import Results
from patchcore_kit.transforms import Transform

SECONDS, MEGABYTES, CHARACTERS = 2, 300, 300
BATCH = 40  # cases that a process reads before it makes room for a new one
ROOM = 6 * 2**30  # bytes of address space above what is there: more is never needed, and the machine stays alive
OUTCOMES = ("good", "other", "told", "refused", "failed")
SIDE = 32

Damaged = dict[str, bytes | Callable[[Path], None] | None]
"""What is there instead, by a file's name; None: nothing, a function: what it makes of the path."""


@dataclass
class Case:
    """damage: in words. files: what differs from the good ones. forged: even their checksums were made to fit."""

    damage: str
    files: Damaged
    forged: bool = False


@dataclass
class Reader:
    """What reads files, the good files, how they are damaged, and what is read.

    read: a folder -> anything that can be compared; raises AssertionError for what is not possible.
    trusting: whether a case's files cannot tell that a value was changed. share: of all cases.
    agrees: whether what was found is as good as what was wanted.
    """

    share: int
    files: dict[str, bytes]
    damage: Callable[[np.random.Generator, dict[str, bytes]], Case]
    read: Callable[[Path], object]
    trusting: Callable[[Case], bool] = lambda case: True
    agrees: Callable[[object, object], bool] = lambda found, wanted: found == wanted
    room: Callable[[object], int] = lambda found: 0
    wanted: object = None
    usual: frozenset[str] = frozenset()  # warnings of the good files


# damage to bytes, whatever they mean


def some(random: np.random.Generator, things):
    """One of some things, as it is."""
    things = list(things)
    return things[int(random.integers(len(things)))]


def bytes_damaged(random: np.random.Generator, content: bytes, others: list[bytes]) -> tuple[str, bytes]:
    """What happens to any file; others: what may lie in its place."""
    n, kind = len(content), int(random.integers(14))
    at, length = int(random.integers(n + 1)), int(2 ** random.uniform(0, np.log2(n + 2)))
    changed = bytearray(content)
    if kind == 0:
        return f"cut at byte {at} of {n}", content[:at]
    if kind == 1:
        return f"cut {length} bytes from its end", content[: max(0, n - length)]
    if kind == 2:
        return f"cut after {length} bytes", content[:length]
    if kind in (3, 4, 5):
        for bit in random.integers(8 * n, size=1 if kind < 5 else int(random.integers(2, 65))):
            changed[bit // 8] ^= 1 << int(bit) % 8
        return "a bit flipped" if kind < 5 else "bits flipped", bytes(changed)
    if kind == 6:
        changed[at : at + length] = random.bytes(min(length, n - at))
        return f"{length} bytes from {at} on overwritten", bytes(changed)
    if kind == 7:
        return f"{length} bytes put in at {at}", content[:at] + random.bytes(length) + content[at:]
    if kind == 8:
        return f"{length} bytes from {at} on gone", content[:at] + content[at + length :]
    if kind == 9:
        other = int(random.integers(n + 1))
        (a, b), size = sorted((at, other)), min(length, abs(at - other))
        changed[a : a + size], changed[b : b + size] = changed[b : b + size], changed[a : a + size]
        return f"{size} bytes at {a} and {b} exchanged", bytes(changed[:n])
    if kind == 10:
        changed[at : at + length] = bytes(min(length, n - at))
        return f"zeros from {at} on, {length} of them", bytes(changed)
    if kind == 11:
        return "another kind of file", some(
            random, [*others, b"", bytes(n), b"version https://git-lfs.github.com/spec"]
        )
    if kind == 12:
        more = some(random, [b"\n", b"\0" * 512, random.bytes(length), content])
        return f"{len(more)} bytes behind its end", content + more
    number = some(random, [0, 1, -1, 2**31 - 1, -(2**31), 2**16, 10**6, 2**24])
    packed = struct.pack(some(random, "<>") + "i", number) if random.random() < 0.7 else struct.pack("<q", number << 32)
    at = int(random.integers(min(n, 256) + 1))
    changed[at : at + len(packed)] = packed
    return f"the number {number} at byte {at}", bytes(changed[:n])


def nested(depth: int) -> list:
    inner: list = []
    for _ in range(depth):
        inner = [inner]
    return inner


ODD = (
    -1, 0, 1, 2, 3, 8, 9, 255, True, False, None, 0.5, -0.5, 0.05, np.nan, np.inf, -np.inf, 1e308, -1e308, 1e-320,
    2**16, 2**31, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63), 10**400, "", "x", "x" * 10**6, "../../etc", "\0", "a\nb",
    "\ud800", "nan", "random", "resnet18", "layer2", "distance", "density", "float16", "flat", "identity", [], [[]], {},
    {"a": 1}, [0, 0], [1e308] * 3, [-1, -1], [10**9, 10**9], [SIDE, SIDE], [64, 64], [8192, 8192], [4, 4], [None],
    [3, 8192, 8192], [3, 64, 64], [3, 1, 1],
    ["x"] * 1000, list(range(1000)), ["x" * 10**6], ["a\nb", "\ud800"], nested(500),
)  # fmt: skip


def values_damaged(random: np.random.Generator, content: dict) -> str:
    """Something odd in a dict, in place."""
    key, how = some(random, content), random.random()
    value = content[key]
    if how < 0.1:
        del content[key]
        return f"no {key}"
    if how < 0.2:
        other = some(random, content)
        content[key], content[other] = content[other], value
        return f"{key} and {other} exchanged"
    if how < 0.35 and isinstance(value, list | tuple | dict) and value:
        inner = dict(value) if isinstance(value, dict) else dict(enumerate(value))
        said = values_damaged(random, inner)
        content[key] = inner if isinstance(value, dict) else type(value)(inner.values())
        return f"in {key}: {said}"
    if how < 0.5 and isinstance(value, int | float) and not isinstance(value, bool):
        content[key] = some(random, [value + 1, value - 1, -value, value * 2, float(value), str(value), [value]])
    else:
        content[some(random, (key, key, key, "something else"))] = some(random, ODD)
    return f"{key} is {str(content[key])[:40]!r}"


def json_damaged(random: np.random.Generator, content: bytes) -> tuple[str, bytes]:
    kind, text = random.random(), content.decode()
    if kind < 0.06:
        depth = some(random, (100, 900, 30_000))
        return f"nested {depth} deep", b'{"a": ' + b"[" * depth + b"]" * depth + b", " + content[1:]
    if kind < 0.12:
        return "a key twice", text.replace("{", '{"resize": 5, "data": "x", "seed": 7, ', 1).encode()
    if kind < 0.15:
        return "a mark in front, as Windows has it", b"\xef\xbb\xbf" + content
    if kind < 0.18:
        return "in UTF-16", text.encode("utf-16")
    if kind < 0.21:
        return "20 MB", text.replace("{", '{"a": "' + "x" * 20_000_000 + '", ', 1).encode()
    if kind < 0.24:
        return "digits without end", text.replace("{", '{"a": ' + "9" * 100_000 + ", ", 1).encode()
    values = json.loads(text)
    said = values_damaged(random, values)
    return said, json.dumps(values).encode("utf-8", "surrogatepass")


def pickle_damaged(random: np.random.Generator, content: bytes) -> tuple[str, bytes]:
    bombs = {
        "nested 30 000 deep": b"\x80\x04" + b"]" * 30_000 + b"a" * 29_999 + b".",
        "a place in the memo, for which 2 GB would be made": b"\x80\x04Nr\xff\xff\xff\x0f.",
        "pairs of itself": b"\x80\x04)" + b"q\x00h\x00\x86" * 40 + b".",
        "a text of 4 GB": b"\x80\x04\x8d\xff\xff\xff\xff\x00\x00\x00\x00a.",
        "a text of 2 GB": b"\x80\x04X\xff\xff\xff\x7fa.",
        "a call": b"cos\nsystem\n(S'true'\ntR.",
        "a number of 2 GB": b"\x80\x04\x8b\xff\xff\xff\x7f\x01.",
        "a frame of 2**60 bytes": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"}.",
        "another protocol": b"\x80\xff" + content[2:],
        "digits without end": b"I" + b"9" * 60_000 + b"\n.",
    }
    if random.random() < 0.2:
        name = some(random, bombs)
        return name, bombs[name]
    values = pickle.loads(content)
    said = values_damaged(random, values)
    with contextlib.suppress(RecursionError):
        return said, pickle.dumps(values, protocol=some(random, (0, 2, 4, 5)))
    return said, content


def npy(array: np.ndarray) -> bytes:
    with io.BytesIO() as file:
        np.lib.format.write_array(file, array)
        return file.getvalue()


def zipped(entries: list[tuple[str, bytes]], how: int = zipfile.ZIP_STORED) -> bytes:
    with io.BytesIO() as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        with zipfile.ZipFile(file, "w", how, compresslevel=1) as archive:
            for name, content in entries:
                archive.writestr(name, content)
        return file.getvalue()


def array_damaged(random: np.random.Generator, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Other values, another type or another shape."""
    if random.random() < 0.45 and array.size and array.dtype.kind in "iuf":
        changed = array.copy()
        value = some(random, (np.nan, np.inf, -np.inf, -1, 0, 1, 3e38, 1e30, 1e-40, 127, 2**31 - 1, 2**62, -(2**62)))
        if array.dtype.kind != "f":
            value = 0 if not np.isfinite(value) else int(value)
            value = min(max(value, np.iinfo(array.dtype).min), np.iinfo(array.dtype).max)
        where = slice(None) if random.random() < 0.3 else int(random.integers(array.size))
        with np.errstate(all="ignore"):
            changed.reshape(-1)[where] = value
        return f"{value} in it", changed
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return some(random, [item for item in _variants(array) if item[1] is not None])


def _variants(array: np.ndarray) -> list[tuple[str, np.ndarray | None]]:
    array = np.atleast_1d(array)
    found = [
        (f"as {kind}", _as(array, kind))
        for kind in ("i1", "u8", "i4", "f2", "f8", ">f4", ">i8", "c8", "?", "U8", "S8", "m8[s]", "V3", "f4,i4", "g")
    ]
    found += [
        ("empty", array[:0]),
        ("half of it", array[: len(array) // 2]),
        ("twice", np.concatenate([array, array])),
        ("one axis more", array[None]),
        ("an axis of 0 more", np.zeros((*array.shape, 0), array.dtype)),
        ("one row", array[:1]),
        ("flat", array.reshape(-1)),
        ("turned", array.T),
        ("by columns", np.asfortranarray(array)),
        ("backwards", array[::-1]),
        ("without its last column", array[..., :-1] if array.ndim > 1 else None),
        ("without columns", array[..., :0] if array.ndim > 1 else None),
        ("texts of 1 MB", np.array(["x" * 250_000] * max(1, min(2, array.size)))),
        ("odd texts", np.array(["a\nb", "\0", "x" * 5000][: max(1, array.size)])),
        ("objects", np.array([None, "x"], dtype=object)),
        ("a number", np.array(5)),
        ("zeros", np.zeros_like(array)),
    ]
    return found


def _as(array: np.ndarray, kind: str) -> np.ndarray | None:
    with contextlib.suppress(Exception):
        return array.astype(kind)
    return None


def npz_damaged(random: np.random.Generator, content: bytes) -> tuple[str, bytes]:
    """An archive whose own checksums fit, which holds something else."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    number, kind = int(random.integers(len(entries))), random.random()
    name, inside = entries[number]
    if kind < 0.6:
        said, array = array_damaged(random, np.lib.format.read_array(io.BytesIO(inside)))
        try:
            entries[number] = name, npy(array)
        except ValueError:  # objects
            entries[number] = name, pickle.dumps(array)
        return f"{name}: {said}", zipped(entries)
    if kind < 0.66:
        del entries[number]
        return f"no {name}", zipped(entries)
    if kind < 0.72:
        other = int(random.integers(len(entries)))
        entries[number], entries[other] = (name, entries[other][1]), (entries[other][0], inside)
        return f"{name} and {entries[other][0]} exchanged", zipped(entries)
    if kind < 0.76:
        return f"{name} twice", zipped([*entries, (name, some(random, entries)[1])])
    if kind < 0.8:
        return "compressed", zipped(entries, some(random, (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)))
    if kind < 0.82:
        entries[number] = name, bytes(200_000_000)
        return f"{name} is a bomb", zipped(entries, zipfile.ZIP_DEFLATED)
    if kind < 0.84:
        return "2000 entries more", zipped([*entries, *((f"{i}.npy", b"") for i in range(2000))])
    if kind < 0.92:
        header = some(random, [
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296, 0), }",
            "{'descr': '<U500000000', 'fortran_order': False, 'shape': (0,), }",
            "{'descr': '|V0', 'fortran_order': False, 'shape': (99999999999,), }",
            "{'descr': '|O', 'fortran_order': False, 'shape': (2,), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" * 3000 + ")" * 3000 + ", }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': " + "-" * 5000 + "1, }",
            "{'descr': [" + "('a', '<f4')," * 500 + "], 'fortran_order': False, 'shape': (1,), }",
            "{" + " " * 60_000 + "}", "[]", "__import__('os')", "{'descr': 1j, 'fortran_order': 2, 'shape': 3, }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)*10**9, }",
        ])  # fmt: skip
        lied = b"\x93NUMPY\x02\x00" + struct.pack("<I", len(header)) + header.encode() + inside[128:]
        if random.random() < 0.2:
            lied = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + lied[12:]
        entries[number] = name, lied
        return f"{name} claims {header[:80]}", zipped(entries)
    start, size = content.find(b"PK\1\2"), some(random, (0, 1, 2**31, 2**32 - 2, 2**32 - 1))
    for _ in range(number):
        start = content.find(b"PK\1\2", start + 4)
    changed = bytearray(content)
    where = start + some(random, (10, 16, 20, 24, 28, 30, 32, 42))
    changed[where : where + 4] = struct.pack("<I", size)
    return f"{size} at {where - start} of the directory's entry {number}", bytes(changed)


def index_damaged(random: np.random.Generator, content: bytes) -> tuple[str, bytes]:
    header, rows = list(rf.INDEX_HEADER.unpack_from(content)), bytearray(content[rf.INDEX_HEADER.size :])
    if random.random() < 0.5:
        at = int(random.integers(1, len(header)))
        header[at] = (
            some(random, (0, 1, 2, 7, 2**31 - 1)) if at in (1, 5, 6) else some(random, (0, 1, 2**31, 2**40, 2**62))
        )
        if at == 5:
            header[at] = bool(header[at])
        return f"number {at} of its header is {header[at]}", rf.INDEX_HEADER.pack(*header) + rows
    if random.random() < 0.2:
        header[0] = some(random, (b"IxFI", b"IxFl", b"IwFl", b"IHNf", b"IxPT"))
        return f"a {header[0]}", rf.INDEX_HEADER.pack(*header) + rows
    if random.random() < 0.2:
        keep = int(random.integers(0, header[2]))
        header[2], header[7] = keep, keep * header[1]
        return f"of {keep} rows", rf.INDEX_HEADER.pack(*header) + rows[: 4 * header[7]]
    value = some(random, (np.nan, np.inf, -np.inf, 3e38, -1e30, 1e19, 1e10, 1e-40, 0.0, -1.0))
    values = np.frombuffer(rows, "<f4").copy()
    values[slice(None) if random.random() < 0.2 else int(random.integers(len(values)))] = value
    return f"{value} in a row", rf.INDEX_HEADER.pack(*header) + values.tobytes()


def csv_damaged(random: np.random.Generator, content: bytes) -> tuple[str, bytes]:
    lines = [line.split(",") for line in content.decode().splitlines()]
    row, kind = int(random.integers(len(lines))), random.random()
    column = int(random.integers(len(lines[row])))
    text = some(random, [
        "", "nan", "inf", "-inf", "1e308", "1e999", "-1", "-0.0", "2", "1.0000001", "0.5", "1_000", "0x10", "1,5", "\0",
        "9" * 400, "9" * 6000, "x" * 10**6, '"', '"a\nb"', "\u0661", "\x85", "\ud800", "Mean", "mvtec_a", "1+2j",
        "  0.5 ", "é", "=1+1", "NaT", "None", "<NA>", "Row Names", "instance_auroc", "checksum", "99999999999999999999",
    ])  # fmt: skip
    if kind < 0.6:
        lines[row][column] = text
        said = f"{text[:30]!r} in line {row}, column {column}"
    elif kind < 0.7:
        lines.insert(row, lines[row])
        said = f"line {row} twice"
    elif kind < 0.76:
        del lines[row]
        said = f"without line {row}"
    elif kind < 0.82:
        lines = [line[:column] + line[column + 1 :] for line in lines]
        said = f"without column {column}"
    elif kind < 0.88:
        lines = [line + line[column : column + 1] for line in lines]
        said = f"column {column} twice"
    else:
        said, change = some(random, [
            ("by semicolons", lambda: content.replace(b",", b";")),
            ("lines as Windows has them", lambda: content.replace(b"\n", b"\r\n")),
            ("lines as old Macs had them", lambda: content.replace(b"\n", b"\r")),
            ("a mark in front", lambda: b"\xef\xbb\xbf" + content),
            ("in UTF-16", lambda: content.decode().encode("utf-16")),
            ("in Latin-1", lambda: content + "é,1\n".encode("latin-1")),
            ("30 000 columns", lambda: b"Row Names," + b"a," * 30_000 + b"\n" + content),
            ("90 000 lines", lambda: content + b"x,1\n" * 90_000),
            ("7 million lines", lambda: content + b"a\n" * 7_000_000),
            ("7 million empty lines", lambda: content + some(random, (b"\n", b"\r")) * 7_000_000),
            ("17 MB", lambda: content + b"x" * 17_000_000),
            ("15 MB in a cell", lambda: content + b"x" * 15_000_000 + b",1\n"),
            ("15 MB of commas", lambda: content + b"," * 15_000_000),
            ("a quotation that does not end", lambda: content + b'"' + b"x," * 100_000),
        ])  # fmt: skip
        return said, change()
    return said, ("\n".join(",".join(line) for line in lines) + "\n").encode("utf-8", "surrogatepass")


# models

MODEL_DAMAGE = {
    rf.PARAMS_FILE: pickle_damaged,
    rf.INDEX_FILE: index_damaged,
    rf.EXTRAS_FILE: json_damaged,
    rf.ARRAYS_FILE: npz_damaged,
}


def signed(files: dict[str, bytes], prefix: str = "") -> None:
    """The checksums of a model's files made anew, in place, as far as there is an object to put them into."""
    name = f"{prefix}{rf.EXTRAS_FILE}"
    with contextlib.suppress(Exception):
        extras = json.loads(files[name])
        extras.pop("checksums", None)
        sums = {own: rf._crc(files[f"{prefix}{own}"]) for own in rf.FILES if f"{prefix}{own}" in files}
        sums[rf.EXTRAS_FILE] = rf._crc_of_extras(extras)
        files[name] = json.dumps(extras | {"checksums": sums}).encode("utf-8", "surrogatepass")


def model_damaged(
    random: np.random.Generator, files: dict[str, bytes], other: dict[str, bytes], sign: bool, prefixes: tuple[str, ...]
) -> Case:
    prefix = some(random, prefixes)
    names = [name for name in files if name.startswith(prefix)]
    name, kind = some(random, names), random.random()
    own = name.removeprefix(prefix)
    if kind < 0.08:
        few = [one for one in names if random.random() < 0.5] or names[:1]
        few = few if len(few) < len(files) else few[:-1]
        whole = all(files[one] == other[one] for one in names if one not in few)  # else it is of two
        return Case(f"{', '.join(few)} of another model", {one: other[one] for one in few}, forged=whole)
    if kind < 0.12:
        return Case(f"no {name}", {name: None})
    if kind < 0.16:
        beside = some(random, [one for one in files if one != name])
        return Case(f"{name} and {beside} exchanged", {name: files[beside], beside: files[name]})
    if kind < 0.18:
        more = f"Ensemble-1-{some(random, (1, 2, 3, 64, 10**6, 10**30))}_{rf.PARAMS_FILE}"
        return Case(f"{more} beside it", {more: files[f"{prefix}{rf.PARAMS_FILE}"]}, forged=True)
    if kind < 0.2:
        return Case(f"{name} is a folder", {name: lambda path: path.mkdir()})
    if kind < 0.62:
        said, content = MODEL_DAMAGE[own](random, files[name])
    else:
        said, content = bytes_damaged(random, files[name], list(files.values()))
    changed = {name: content}
    forged = sign and random.random() < 0.6
    if forged:
        everything = files | changed
        signed(everything, prefix)
        changed |= {f"{prefix}{rf.EXTRAS_FILE}": everything[f"{prefix}{rf.EXTRAS_FILE}"]}
    return Case(f"{name}: {said}{', its checksum made anew' * forged}", changed, forged)


def parts(seed: int, n: int) -> list[np.ndarray]:
    """Small pictures, each a little different."""
    random = np.random.default_rng(seed)
    base = random.integers(0, 256, (SIDE // 4, SIDE // 4, 3)).repeat(4, 0).repeat(4, 1)
    return [(base + random.integers(0, 40, (SIDE, SIDE, 3))).clip(0, 255).astype(np.uint8) for _ in range(n)]


def small_detector(network: backbones.Backbone, percentage: float = 0.5, **settings: object) -> pk.PatchCore:
    dimensions = {"pretrain_embed_dimension": 16, "target_embed_dimension": 8}
    size = {"resize": SIDE + 4, "imagesize": SIDE}
    return pk.PatchCore(network, percentage=percentage, progress=False, workers=1, **dimensions, **size, **settings)


SEEN = [*parts(1, 1), *parts(2, 1)]
MORE = parts(1, 2)


def predicted(folder: Path) -> object:
    """What a model says of two pictures, and whether it can go on learning."""
    model = pk.load_detector(folder, progress=False)
    if model.transform.size != (SIDE, SIDE):
        return model.transform.size
    found = model.predict(SEEN)
    assert np.isfinite(found.scores).all(), found.scores
    assert np.isfinite(found.maps).all()
    reasons = "" if found.evidence is None else "\n".join(str(found.explain(i)) for i in range(len(SEEN)))
    limits = found.alarm_threshold, found.defective_threshold, found.alarm_threshold_pixel
    assert all(limit is None or np.isfinite(limit) for limit in limits), limits
    with contextlib.suppress(pk.KitError), quiet():  # which says so if it cannot
        model.extend(MORE)
        assert np.isfinite(model.predict(SEEN).scores).all()
    return found.scores.tobytes(), found.maps.tobytes(), limits, reasons


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What the kit logs here is not about the files."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def model_readers(work: Path) -> Iterator[tuple[str, Reader]]:
    network = pk.load_backbone("starter")
    model_folder.load_backbone = cache(backbones.load_backbone)  # the network is not what is read here
    one, two = (small_detector(network, scoring="density").fit(parts(seed, 6)) for seed in (1, 3))
    large, larger = (small_detector(network, 1.0, scoring="density").fit(parts(seed, 34)) for seed in (1, 3))
    plain, flat = (small_detector(network).fit(parts(seed, 6)) for seed in (1, 3))
    found = {}
    models = {"one": one, "two": two, "ensemble": pk.PatchCoreEnsemble([one, plain])}
    models |= {"large": large, "larger": larger}  # of so many rows that the fast search has clusters
    models |= {"others": pk.PatchCoreEnsemble([two, flat]), "plain": plain, "flat": flat}
    for name, model in models.items():
        model.save(work / name)
        found[name] = files_of(work / name)
    old = {name: _without_sums(found[name]) for name in ("large", "larger")}
    theirs = [{file: found[name][file] for file in (rf.PARAMS_FILE, rf.INDEX_FILE)} for name in ("plain", "flat")]
    members = ("Ensemble-1-2_", "Ensemble-2-2_")

    def reader(share: int, files: dict, other: dict, trusting: Callable, prefixes: tuple = ("",)) -> Reader:
        sign = f"{prefixes[0]}{rf.EXTRAS_FILE}" in files and b"checksums" in files[f"{prefixes[0]}{rf.EXTRAS_FILE}"]
        return Reader(
            share, files, partial(model_damaged, other=other, sign=sign, prefixes=prefixes), predicted, trusting
        )

    forged = lambda case: case.forged  # noqa: E731
    yield "model", reader(16, found["one"], found["two"], forged)
    yield "old-model", reader(10, old["large"], old["larger"], lambda case: True)
    yield "their-model", reader(10, *theirs, lambda case: True)
    yield "ensemble", reader(4, found["ensemble"], found["others"], forged, members)


def _without_sums(files: dict[str, bytes]) -> dict[str, bytes]:
    extras = json.loads(files[rf.EXTRAS_FILE])
    del extras["checksums"]
    return files | {rf.EXTRAS_FILE: json.dumps(extras, indent=2).encode()}


# predictions


@cache
def some_predictions() -> pk.Predictions:
    model = small_detector(pk.load_backbone("starter"), scoring="density").fit(parts(1, 6))
    found = model.predict([*parts(1, 2), *parts(2, 2)])
    masks = np.zeros(found.maps.shape, dtype=bool)
    masks[2:, 8:20, 8:20] = True
    names = ("test/good/0.png", "test/good/1.png", "test/dent/2.png", "test/dent/3.png")
    return replace(found, labels=np.array([0, 0, 1, 1]), masks=masks, names=names, unmasked=())


def said_by(folder: Path) -> object:
    """All that a file of predictions is used for."""
    found = pk.Predictions.load(folder / "part.npz")
    assert np.isfinite(found.scores).all() and np.isfinite(found.maps).all()
    table, metrics = found.table(), pk.evaluate(found)
    defects = found.by_defect()
    explained = [str(found.explain(i)) for i in range(len(found.names))] if found.evidence else None
    small = found.transform and len(found.names) and found.sizes[0].prod() < 10**6  # what it claims it may have been
    placed = found.placed(0).tobytes() if small else None
    index = None if found.index is None else found.index.tobytes()
    pk.Predictions.joined([found, found])
    found.save(folder / "again.npz")
    (folder / "again.npz").unlink()
    return table.to_csv(), repr(metrics), defects.to_csv(), explained, placed, index, found.maps.tobytes()


def predictions_damaged(random: np.random.Generator, files: dict[str, bytes]) -> Case:
    if random.random() < 0.55:
        said, content = npz_damaged(random, files["part.npz"])
        return Case(said, {"part.npz": content}, forged=True)
    said, content = bytes_damaged(random, files["part.npz"], [npy(np.zeros(3)), b"text", zipped([("a", b"b")])])
    return Case(said, {"part.npz": content})


# tables


@cache
def row_of(seed: int) -> dict:
    found = some_predictions()
    numbers = {"bank_rows": 48, "fit_seconds": 0.25 + seed, "predict_seconds": 0.5, "peak_mb": 300.5}
    return pk.evaluate(found) | numbers | {"weights": "starter"}


NAMES = ("mvtec_bottle", "mvtec_cable", "mvtec_pill")
OUTPUTS = ("models", "predictions")
SETTINGS = {
    "data": "data", "backbone": "starter", "layers": ["layer2", "layer3"], "percentage": 0.1, "resize": [36, 36],
    "seed": 0, "weights": None, "scoring": "distance", "alarm_rate": 0.05,
}  # fmt: skip


def write_results(folder: Path) -> None:
    folder.mkdir()
    results = Results(folder, SETTINGS)
    defects = some_predictions().by_defect()
    for i, name in enumerate(NAMES):
        results.add(name, row_of(i), defects, made_from=f"{i:016x}", outputs=OUTPUTS)


def table_of(folder: Path) -> object:
    found = []
    for path in sorted(folder.iterdir()):
        table = pk.read_results(path)
        numbers = table.select_dtypes("number")
        assert not np.isinf(numbers.to_numpy(dtype=float)).any()
        found.append(table.to_csv())
    return found


def tables_damaged(random: np.random.Generator, files: dict[str, bytes]) -> Case:
    name = some(random, files)
    how = csv_damaged(random, files[name]) if random.random() < 0.6 else None
    said, content = how or bytes_damaged(random, files[name], list(files.values()))
    return Case(f"{name}: {said}", {name: content})


def resumed(folder: Path) -> object:
    """The rows that would be taken as they are, and the settings; a row that is none of them is made anew."""
    results = Results(folder, SETTINGS, resume=True)
    kept = [name for i, name in enumerate(NAMES) if results.current(name, f"{i:016x}", OUTPUTS)]
    rows = {name: repr({key: value for key, value in results.rows[name].items() if value == value}) for name in kept}
    before = {name: (folder / name).read_bytes() for name in ("results.csv", "defects.csv") if (folder / name).exists()}
    results.add("mvtec_other", row_of(7), some_predictions().by_defect(), made_from="0", outputs=OUTPUTS)
    again = Results(folder, SETTINGS, resume=True)
    assert again.current("mvtec_other", "0", OUTPUTS), "a new row does not count"
    for i, name in enumerate(NAMES):
        assert again.current(name, f"{i:016x}", OUTPUTS) == (name in kept), f"{name} is another after a row was added"
    for name, content in before.items():
        (folder / name).write_bytes(content)
    return rows


def resume_damaged(random: np.random.Generator, files: dict[str, bytes]) -> Case:
    name, kind = (
        some(random, ("results.csv", "results.csv", "settings.json", "settings.json", "defects.csv")),
        random.random(),
    )
    if kind < 0.05:
        return Case(f"no {name}", {name: None})
    if kind < 0.6:
        said, content = (json_damaged if name.endswith("json") else csv_damaged)(random, files[name])
    else:
        said, content = bytes_damaged(random, files[name], list(files.values()))
    return Case(f"{name}: {said}", {name: content})


def rows_agree(found: dict, wanted: dict) -> bool:
    return found.items() <= wanted.items()


class MadeAnew(Exception):
    """What a notebook would do next."""


def notebook(folder: Path) -> object:
    """Whether the notebooks would take what is there."""

    def call(command: object, arguments: object) -> None:
        raise MadeAnew

    utils._call = call
    data, said = folder / "data", []
    here = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            for ask in (lambda: utils.find_or_train(data, "run"), lambda: utils.find_or_evaluate(data, Path("run"))):
                try:
                    said.append(str(ask()))
                except MadeAnew:
                    said.append("made anew")
    finally:
        os.chdir(here)
    return said


def notebook_damaged(random: np.random.Generator, files: dict[str, bytes]) -> Case:
    name = some(random, [name for name in files if name.endswith("settings.json")])
    how = json_damaged if random.random() < 0.6 else partial(bytes_damaged, others=list(files.values()))
    said, content = how(random, files[name])
    return Case(f"{name}: {said}", {name: content})


def notebook_files(work: Path) -> dict[str, bytes]:
    write_results(work / "run")
    shutil.copytree(work / "run", work / "evaluation")
    models = [f"run/models/{name}" for name in NAMES]
    (work / "evaluation/settings.json").write_text(json.dumps({"models": models, "data": "data", "seed": 0}))
    (work / "evaluation/predictions").mkdir()
    for name in NAMES:
        some_predictions().save(work / f"evaluation/predictions/{name}.npz")
        picture = work / "data" / name.removeprefix("mvtec_")
        for below in ("train/good", "test/good"):
            (picture / below).mkdir(parents=True)
            Image.fromarray(SEEN[0]).save(picture / below / "0.png")
    return files_of(work)


# weights


def weights_readers(work: Path) -> Iterator[tuple[str, Reader]]:
    source = weights.resolve("starter")
    network = backbones._build(source, 0)
    cut = backbones._cut(network, ("stem",), "starter")
    good = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in network.state_dict().items()
        if name.startswith("stem")
    }
    good["head.bias"] = torch.zeros(4)
    files = {"w.pth": torch_bytes(good), "old.pth": torch_bytes(good, old=True)}
    files["w.safetensors"] = safetensors_bytes(good)

    def read(folder: Path) -> object:
        found = []
        for name in files:
            tensors = weights.read(folder / name)
            backbones._fill(cut, network, tensors, folder / name, source)
            state = cut.state_dict()
            assert all(bool(tensor.isfinite().all()) for tensor in state.values())
            found.append([tensor.numpy().tobytes() for tensor in state.values()])
        return found

    def damage(random: np.random.Generator, files: dict[str, bytes]) -> Case:
        name = some(random, files)
        if random.random() < 0.5:
            said, content = weights_damaged(random, dict(good), name)
        else:
            said, content = bytes_damaged(random, files[name], list(files.values()))
        return Case(f"{name}: {said}", {name: content})

    yield "weights", Reader(8, files, damage, read)


def torch_bytes(content: object, old: bool = False) -> bytes:
    with io.BytesIO() as file:
        torch.save(content, file, _use_new_zipfile_serialization=not old)
        return file.getvalue()


def weights_damaged(random: np.random.Generator, good: dict, name: str) -> tuple[str, bytes]:
    key = some(random, good)
    tensor = good[key]
    what = {
        "nan": lambda: tensor * np.nan,
        "inf": lambda: tensor + np.inf,
        "3e38": lambda: torch.full_like(tensor, 3e38),
        "int8": lambda: tensor.to(torch.int8),
        "bool": lambda: tensor > 0,
        "complex": lambda: tensor.to(torch.complex64),
        "float16": lambda: tensor.half(),
        "float64": lambda: tensor.double(),
        "bfloat16": lambda: tensor.bfloat16(),
        "float8": lambda: tensor.to(torch.float8_e4m3fn),
        "uint16": lambda: tensor.abs().to(torch.uint16),
        "sparse": lambda: tensor.to_sparse(),
        "sparse by rows": lambda: torch.zeros(8, 8).to_sparse_csr(),
        "quantized": lambda: torch.quantize_per_tensor(tensor, 0.1, 0, torch.quint8),
        "without memory": lambda: tensor.to("meta"),
        "flat": lambda: tensor.reshape(-1),
        "turned": lambda: tensor.T.contiguous() if tensor.ndim == 2 else tensor[None],
        "empty": lambda: tensor[:0].clone(),
        "one number, as large as it": lambda: torch.zeros(1).expand(tensor.shape),
        "one number, of 2**60": lambda: torch.zeros(1).expand(2**30, 2**30),
        "a parameter": lambda: torch.nn.Parameter(tensor),
        "part of another": lambda: torch.zeros(10**5)[: tensor.numel()].view(tensor.shape),
        "a list": lambda: [1.0, 2.0],
        "a text": lambda: "x" * 10**6,
        "itself": lambda: good,
        "nested 900 deep": lambda: nested(900),
    }
    how = some(random, what) if random.random() < 0.75 else "another dict"
    if how == "another dict":
        how, content = some(random, [
            ("numbers for names", {0: tensor, 1.5: tensor, None: tensor}),
            ("names that are pairs", {("a", "b"): tensor}),
            ("a list", [tensor]), ("a tensor", tensor), ("nothing", {}), ("a number", 5), ("None", None),
            ("wrapped", {"state_dict": good}), ("wrapped twice", {"state_dict": {"model": good}}),
            ("wrapped in itself", {"model": {"state_dict": good, 3: 4}}),
            ("names of 1 MB", {"x" * 10**6: tensor}), ("without it", {k: v for k, v in good.items() if k != key}),
            ("names of a module", {f"module.{k}": v for k, v in good.items()}),
            ("more names", good | {f"layer{i}.weight": torch.zeros(1) for i in range(2000)}),
            ("both names", good | {f"module.{k}": v + 1 for k, v in good.items()}),
        ])  # fmt: skip
    else:
        good[key] = what[how]()
        content = good
    if name.endswith("safetensors"):
        header = {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}
        bombs = {
            "a header of 2**60 bytes": struct.pack("<Q", 2**60) + b"{}",
            "a header of 5 MB": struct.pack("<Q", 5_000_000) + b"{" + b" " * 4_999_998 + b"}",
            "a tensor of 2**40": struct.pack("<Q", len(json.dumps(header))) + json.dumps(header).encode() + bytes(4),
            "nested": struct.pack("<Q", 60_004) + b'{"":' + b"[" * 30_000 + b"]" * 30_000,
        }
        with contextlib.suppress(Exception):
            if random.random() < 0.8:
                return f"{key}: {how}", safetensors_bytes(content)
        how = some(random, bombs)
        return how, bombs[how]
    if random.random() < 0.12:
        return some(random, torch_bombs())
    if how == "nested 900 deep" or random.random() < 0.03:
        deep = b"\x80\x02" + b"]" * 30_000 + b"a" * 29_999 + b"."
        return "nested 30 000 deep", zipped([("a/data.pkl", deep), ("a/version", b"3")])
    with contextlib.suppress(Exception):
        return f"{key}: {how}", torch_bytes(content, old=name == "old.pth")
    return f"{key}: nothing, for it cannot be saved", torch_bytes({})


@cache
def torch_bombs() -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(torch_bytes({"stem.0.weight": torch.zeros(100_000_000)}))) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    bomb = zipped(entries, zipfile.ZIP_DEFLATED)
    several = {"a": torch.zeros(100_001), "b": torch.zeros(5)}
    with zipfile.ZipFile(io.BytesIO(torch_bytes(several))) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    count, more, less = (b"J" + struct.pack("<i", n) for n in (100_001, 2**27, 70_001))
    claims = [zipped([(n, c.replace(count, other)) for n, c in entries]) for other in (more, less)]
    old = torch_bytes(several, old=True)
    claims += [old.replace(count, more), old.replace(count, less), old.replace(struct.pack("<q", 100_001), bytes(8))]
    pairs = b"\x80\x02)" + b"q\x00h\x00\x86" * 40 + b"."
    return [
        ("400 MB of zeros, compressed", bomb),
        *((f"claims of other lengths, {i}", claim) for i, claim in enumerate(claims)),
        ("pairs of itself", zipped([("a/data.pkl", pairs), ("a/version", b"3")])),
        ("pairs of itself, old", pairs),
        ("a call", zipped([("a/data.pkl", b"cos\nsystem\n(S'true'\ntR."), ("a/version", b"3")])),
        ("another archive", zipped([("a.txt", b"a")])),
        ("a large number in the memo", b"\x80\x02Nr\xff\xff\xff\x0f."),
    ]


# images

SHAPES = (SIDE * 2, SIDE + 10)


def picture(mode: str = "RGB") -> Image.Image:
    image = Image.fromarray(np.random.default_rng(5).integers(0, 256, (SHAPES[1], SHAPES[0], 3), dtype=np.uint8))
    ImageDraw.Draw(image).rectangle((8, 8, 30, 30), fill=(200, 30, 30))
    return image.convert(mode)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    with io.BytesIO() as file:
        image.save(file, kind, **options)
        return file.getvalue()


def exif(orientation: int = 6) -> bytes:
    block = Image.Exif()
    block[274], block[271], block[0x8769] = orientation, "a camera", {36867: "2020:01:01 00:00:00", 37500: b"x" * 200}
    block[0x8825] = {1: "N", 2: (1.0, 2.0, 3.0)}
    return block.tobytes()


def image_files() -> dict[str, bytes]:
    deep = Image.fromarray(np.random.default_rng(6).integers(0, 2**16, SHAPES[::-1], dtype=np.uint16))
    rgb = picture()
    return {
        "rgb.png": saved(rgb, "PNG"),
        "exif.png": saved(rgb, "PNG", exif=exif()),
        "grey.png": saved(picture("L"), "PNG"),
        "deep.png": saved(deep, "PNG"),
        "palette.png": saved(picture("P"), "PNG"),
        "alpha.png": saved(picture("RGBA"), "PNG"),
        "rgb.jpg": saved(rgb, "JPEG"),
        "exif.jpg": saved(rgb, "JPEG", exif=exif()),
        "progressive.jpg": saved(rgb, "JPEG", progressive=True),
        "cmyk.jpg": saved(picture("CMYK"), "JPEG"),
        "two.jpg": saved(rgb, "MPO", save_all=True, append_images=[rgb]),
        "rgb.bmp": saved(rgb, "BMP"),
        "palette.bmp": saved(picture("P"), "BMP"),
        "rgb.tif": saved(rgb, "TIFF"),
        "deep.tif": saved(deep, "TIFF"),
        "lzw.tif": saved(rgb, "TIFF", compression="tiff_lzw"),
        "deflate.tif": saved(rgb, "TIFF", compression="tiff_adobe_deflate"),
        "jpeg.tif": saved(rgb, "TIFF", compression="jpeg"),
        "fax.tif": saved(picture("1"), "TIFF", compression="group4"),
        "pages.tif": saved(rgb, "TIFF", save_all=True, append_images=[rgb, rgb]),
        "lossy.webp": saved(rgb, "WEBP"),
        "lossless.webp": saved(picture("RGBA"), "WEBP", lossless=True),
        "moving.webp": saved(rgb, "WEBP", save_all=True, append_images=[picture("L").convert("RGB")]),
    }


SIZES = (0, 1, 2, 7, 100, 4000, 30_000, 65_535, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


def image_damaged(random: np.random.Generator, content: bytes) -> tuple[str, bytes]:
    """Damage that its format's checksums, where it has any, do not show."""
    changed = bytearray(content)
    if content.startswith(b"\x89PNG"):
        return png_damaged(random, content)
    if content.startswith(b"\xff\xd8"):
        at = content.find(b"Exif\0\0")
        if at > 0 and random.random() < 0.6:
            block = bytes_damaged(random, exif(int(random.integers(0, 10))), [])[1][:60_000]
            end = at + struct.unpack(">H", content[at - 2 : at])[0] - 2
            return "another EXIF block", content[: at - 2] + struct.pack(">H", len(block) + 2) + block + content[end:]
        start = content.find(b"\xff\xc2" if b"\xff\xc2" in content else b"\xff\xc0")
        if random.random() < 0.6:
            sides = [min(some(random, SIZES), 65_535) for _ in range(2)]
            changed[start + 5 : start + 9] = struct.pack(">HH", *sides)
            return f"it claims {sides}", bytes(changed)
        at = start + int(random.integers(4, 20))
        changed[at] = int(random.integers(256))
        return f"byte {at - start} of its frame", bytes(changed)
    if content.startswith(b"BM"):
        at, size = some(random, (10, 14, 18, 22, 26, 28, 30, 34, 46)), some(random, SIZES)
        changed[at : at + 4] = struct.pack("<I", size)
        return f"{size} at byte {at}", bytes(changed)
    if content.startswith(b"II*\0"):
        start = struct.unpack("<I", content[4:8])[0]
        count = struct.unpack("<H", content[start : start + 2])[0]
        entry, part = start + 2 + 12 * int(random.integers(count)), some(random, (0, 2, 4, 8, 8, 8))
        size = some(random, (*SIZES, start, len(content), 3, 5, 6, 8, 32773, 34712, 50000))
        packed = struct.pack("<I", size) if part >= 4 else struct.pack("<H", size & 0xFFFF)
        changed[entry + part : entry + part + len(packed)] = packed
        return f"{size} at {part} of its tag {struct.unpack('<H', content[entry : entry + 2])[0]}", bytes(changed)
    at = int(random.integers(8, min(64, len(content))))
    changed[at : at + 3] = struct.pack("<I", some(random, SIZES))[:3]
    return f"numbers at byte {at}", bytes(changed)


def png_damaged(random: np.random.Generator, content: bytes) -> tuple[str, bytes]:
    chunks, at = [], 8
    while at < len(content):
        length = struct.unpack(">I", content[at : at + 4])[0]
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    number, kind = int(random.integers(len(chunks))), random.random()
    name, inside = chunks[number]
    if kind < 0.3:
        sides = [some(random, SIZES) for _ in range(2)]
        chunks[0] = b"IHDR", struct.pack(">II", *sides) + chunks[0][1][8:]
        said = f"it claims {sides}"
    elif kind < 0.4:
        depth, colours = some(random, (1, 2, 4, 8, 16, 3)), some(random, range(8))
        chunks[0] = b"IHDR", chunks[0][1][:8] + bytes((depth, colours, 0, 0, some(random, (0, 1)))) + chunks[0][1][13:]
        said = f"it claims {depth} bits, colours {colours}"
    elif kind < 0.5:
        del chunks[number]
        said = f"no {name}"
    elif kind < 0.6:
        chunks.insert(int(random.integers(len(chunks) + 1)), chunks[number])
        said = f"{name} twice"
    elif kind < 0.75:
        what, chunks[number] = bytes_damaged(random, inside or b"x", []), (name, b"")
        chunks[number] = name, what[1]
        said = f"{name}: {what[0]}"
    elif kind < 0.85:
        chunks.insert(1, (b"eXIf", bytes_damaged(random, exif()[6:], [])[1]))
        said = "another EXIF block"
    else:
        bomb = zlib.compress(bytes(100_000_000))
        chunk = some(random, [
            (b"zTXt", b"a\0\0" + bomb), (b"iCCP", b"a\0\0" + bomb), (b"iTXt", b"a\0\1\0\0\0" + bomb),
            (b"tEXt", b"a\0" + b"x" * 10**6), (b"PLTE", b"x" * 7), (b"tRNS", b"x" * 999), (b"gAMA", b"x"),
            (b"acTL", struct.pack(">II", 10**6, 0)), (b"pHYs", b"x"), (b"CRIT", b"x"), (b"IDAT", bomb),
        ])  # fmt: skip
        chunks.insert(1, chunk)
        said = f"a {chunk[0]} of {len(chunk[1])} bytes"
    made = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return said, content[:8] + made


def an_image_damaged(random: np.random.Generator, files: dict[str, bytes], kinds: dict[str, bytes]) -> Case:
    (name,), kind = files, some(random, kinds)
    content = kinds[kind]
    if random.random() < 0.45:
        said, changed = image_damaged(random, content)
    else:
        said, changed = bytes_damaged(random, content, list(kinds.values()))
    return Case(f"{kind}: {said}", {name: changed})


def pixels(folder: Path) -> object:
    path = folder / "a.png"
    header, image = images.read_header(path), images.read_rgb(path)
    assert image.mode == "RGB"
    assert sorted(header.size) == sorted(image.size), (header, image.size)  # EXIF may lie behind a PNG's pixels
    return image.size, zlib.crc32(np.asarray(image).data if image.width * image.height else b"")


def mask_pixels(folder: Path) -> object:
    image = read_mask(folder / "a.png")
    assert set(np.unique(np.asarray(image)).tolist()) <= {0, 255}
    return image.size, zlib.crc32(np.asarray(image).data)


def pixels_room(found: object) -> int:
    """Bytes of the pixels that are really there."""
    (width, height), _ = found
    return width * height * 3


def cache_readers(work: Path) -> Iterator[tuple[str, Reader]]:
    noise = np.random.default_rng(7)
    folder = work / "cache"
    folder.mkdir(parents=True)
    transform = Transform(SIDE + 4, SIDE)
    for name in ("a.png", "b.png"):
        Image.fromarray(noise.integers(0, 256, (80, 80, 3), dtype=np.uint8)).save(folder / name)
        pk.ImageCache(folder / "kept").image(pk.Sample(name, folder / name), transform)
    files = files_of(folder)
    kept = [name for name in files if name.startswith("kept/")]
    assert len(kept) == 2

    def read(folder: Path) -> object:
        opened = pk.ImageCache(folder / "kept")
        return [opened.image(pk.Sample(n, folder / n), transform).tobytes() for n in ("a.png", "b.png", "a.png")]

    def damage(random: np.random.Generator, files: dict[str, bytes]) -> Case:
        name = some(random, kept)
        if random.random() < 0.06:
            return Case("the entries exchanged", {kept[0]: files[kept[1]], kept[1]: files[kept[0]]})
        if random.random() < 0.06:
            how = some(random, (lambda path: path.mkdir(), os.mkfifo, lambda path: path.symlink_to("/dev/zero")))
            return Case("something else in its place", {name: how})
        said, content = bytes_damaged(random, files[name], [files["a.png"], npy(np.zeros((SIDE, SIDE, 3), np.uint8))])
        return Case(said, {name: content})

    yield "cache", Reader(4, files, damage, read, lambda case: False)


# data


def data_files(work: Path) -> dict[str, bytes]:
    made = {}
    for i, image in enumerate(parts(1, 5)):
        made[f"bottle/train/good/{i:03}.png"] = saved(Image.fromarray(image), "PNG")
    for i, (kind, image) in enumerate(zip(("good", "good", "dent", "dent"), parts(2, 4), strict=True)):
        made[f"bottle/test/{kind}/{i:03}.png"] = saved(Image.fromarray(image), "PNG")
        if kind == "dent":
            mask = np.zeros((SIDE, SIDE), np.uint8)
            mask[8:20, 8:20] = 255
            made[f"bottle/ground_truth/dent/{i:03}_mask.png"] = saved(Image.fromarray(mask), "PNG")
    return made


def data_damaged(random: np.random.Generator, files: dict[str, bytes], kinds: dict[str, bytes]) -> Case:
    name, other = some(random, files), some(random, files)
    folder, content = name.rpartition("/")[0], files[name]
    odd = some(random, [
        "a\nb.png", "\udcff.png", "x" * 240 + ".png", ".hidden.png", "a.PNG", "a.gif", "a.txt", "a", "000_mask.png",
        "000.jpg", "000.tif", "-rf.png", "a b.png", "%s.png", "e\u0301.png", "good", "{x}.png", "\u202e.png",
    ])  # fmt: skip
    kind = int(random.integers(12))
    if kind == 0:
        return Case(f"{name} and {other} exchanged", {name: files[other], other: content})
    if kind == 1:
        return Case(f"no {name}", {name: None})
    if kind == 2:
        return Case(f"no {folder}", {one: None for one in files if one.startswith(f"{folder}/")})
    if kind == 3:
        return Case(f"{name} is called {odd!r}", {name: None, f"{folder}/{odd}": content})
    if kind == 4:
        return Case(f"{odd!r} beside it", {f"{folder}/{odd}": some(random, (content, b"", b"text", bytes(99)))})
    if kind == 5:
        makers = [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path), lambda path: path.symlink_to("nowhere")]
        makers += [lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to("..")]
        return Case(f"something else in place of {name}", {name: some(random, makers)})
    if kind == 6:
        return Case(f"a folder {odd!r} beside it", {f"{folder}/{odd}": Path.mkdir})
    if kind == 7:
        size = some(random, ((1, 1), (SIDE, 1), (SIDE * 2, SIDE), (2000, 3), (SIDE // 2, SIDE // 2)))
        return Case(f"{name} of {size}", {name: saved(picture().resize(size), "PNG")})
    if kind in (8, 9):
        case = an_image_damaged(random, {name: content}, kinds)
        return Case(f"{name}: {case.damage}", case.files)
    said, changed = bytes_damaged(random, content, list(kinds.values()))
    return Case(f"{name}: {said}", {name: changed})


def learnt(folder: Path) -> object:
    """From a folder to metrics."""
    names = pk.list_categories(folder)
    if "bottle" not in names:
        return names
    category = pk.load_category(folder, "bottle")
    category.table()
    if not category.train:
        return "no training images"
    model = small_detector(pk.load_backbone("starter")).fit(category.train)
    if not category.test:
        return "no test images"
    found = model.predict(category.test)
    assert np.isfinite(found.scores).all()
    return found.scores.tobytes(), repr(pk.evaluate(found)), found.names


# all of them


def readers(work: Path) -> dict[str, Reader]:
    """By name, with what each finds in the good files."""
    made = dict(model_readers(work / "models"))
    some_predictions().save(work / "some/part.npz")
    made["predictions"] = Reader(12, files_of(work / "some"), predictions_damaged, said_by, lambda case: case.forged)
    write_results(work / "results")
    tables = files_of(work / "results")
    del tables["settings.json"]
    theirs = "Row Names,instance_auroc,full_pixel_auroc\nmvtec_bottle,1.0,0.98\nMean,1.0,0.98\n"
    tables |= {
        "theirs.csv": theirs.encode(),
        "published.csv": Path(pk.__file__).with_name("published.csv").read_bytes(),
    }
    made["table"] = Reader(8, tables, tables_damaged, table_of)
    own = lambda case: any(name == "defects.csv" for name in case.files)  # noqa: E731
    made["resume"] = Reader(6, files_of(work / "results"), resume_damaged, resumed, own, rows_agree)
    (work / "notebooks").mkdir()
    made["notebooks"] = Reader(3, notebook_files(work / "notebooks"), notebook_damaged, notebook)
    made |= dict(weights_readers(work))
    torch_bombs()
    made |= dict(cache_readers(work / "images"))
    kinds = image_files()
    one = {"a.png": kinds["rgb.png"]}
    made["image"] = Reader(18, one, partial(an_image_damaged, kinds=kinds), pixels, room=pixels_room)
    made["mask"] = Reader(6, one, partial(an_image_damaged, kinds=kinds), mask_pixels, room=pixels_room)
    made["data"] = Reader(3, data_files(work), partial(data_damaged, kinds=kinds), learnt)
    model_folder.load_backbone = pk.load_backbone = cache(backbones.load_backbone)
    for name, reader in made.items():
        folder = work / "good" / name
        lay(folder, reader.files)
        with warned() as said:
            reader.wanted = reader.read(folder)
        reader.usual = frozenset(said)
    return made


def lay(folder: Path, files: Damaged) -> None:
    """Put files into a folder; what is there under their names goes."""
    for name, content in files.items():
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
        if content is None:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        content(path) if callable(content) else path.write_bytes(content)


@contextlib.contextmanager
def warned() -> Iterator[list[str]]:
    """What the kit warns of."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("patchcore_kit")
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


def status(name: str) -> int:
    """Bytes, by the name that Linux gives them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024


def case_of(name: str, reader: Reader, number: int, seed: int) -> Case:
    return reader.damage(np.random.default_rng([seed, zlib.crc32(name.encode()), number]), reader.files)


def tried(reader: Reader, case: Case, folder: Path) -> tuple[str, str]:
    """One case -> how it ended, and what is to be said of that."""
    size = sum(len(content) for content in case.files.values() if isinstance(content, bytes))
    gc.collect(0)
    Path("/proc/self/clear_refs").write_text("5")
    before, started, room = status("VmRSS"), time.process_time(), 0
    signal.setitimer(signal.ITIMER_PROF, 5 * SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 60 * SECONDS)
    try:
        with warned() as said:
            found = reader.read(folder)
    except pk.KitError as error:
        ended = "refused", refusal(error, case, folder)
        if ended[1]:
            ended = "failed", ended[1]
    except BaseException:
        ended = "failed", traceback.format_exc(limit=-6)
    else:
        room = reader.room(found)
        if reader.agrees(found, reader.wanted):
            ended = "good", ""
        elif set(said) - reader.usual:
            ended = "told", ""
        elif reader.trusting(case):
            ended = "other", ""
        else:
            ended = "failed", f"another answer, and nobody is told: {str(found)[:300]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    seconds, held = time.process_time() - started, status("VmHWM") - before - size - room
    if seconds > SECONDS:
        return "failed", f"it took {seconds:.1f} s ({ended[0]} {ended[1][-300:]})"
    if held > MEGABYTES * 10**6:
        return "failed", f"it took {held // 10**6} MB ({ended[0]} {ended[1][-300:]})"
    return ended


def refusal(error: pk.KitError, case: Case, folder: Path) -> str:
    """What is wrong with a refusal, "" if nothing is."""
    said, chain = str(error), error
    for name in sorted(map(Path, case.files), key=lambda path: -len(path.stem)):  # as whoever gave it wrote it
        if len(name.stem) > 100 or not name.stem.isprintable():
            said = said.replace(name.stem, "its name")
    while chain:
        if isinstance(chain, MemoryError) or "allocate" in str(chain)[:1000]:
            return f"it asked for more memory than there is: {said}"
        chain = chain.__context__
    if len(said) > CHARACTERS or "\n" in said or not said.isprintable():
        return f"no sentence of {CHARACTERS} characters, but of {len(said)}: {said[:500]!r}"
    names = [str(folder), *(Path(name).name for name in case.files), *(str(Path(n).parent) for n in case.files)]
    of_a_picture = "photograph in the model" in said  # one is decoded when it is shown
    if not of_a_picture and not any(name in said for name in names if name != "."):
        return f"it names no file: {said}"
    return ""


def work_on(batch: list, made: dict[str, Reader], folder: Path, seed: int, send: int) -> None:
    """In a process of its own: read cases, and send what becomes of each, a line before and a line after it."""
    resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + ROOM,) * 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what libraries say of damaged files
    laid: set[str] = set()
    for name, number in batch:
        os.write(send, f"{name} {number}\n".encode())
        reader, place = made[name], folder / name
        if name not in laid:
            laid.add(name)
            lay(place, reader.files)
        case = case_of(name, reader, number, seed)
        for _ in range(2):  # once more if something went wrong: the machine may have been busy
            lay(place, case.files)
            ended, words = tried(reader, case, place)
            if ended != "failed":
                break
        left = {
            path.relative_to(place).as_posix() for path in place.rglob("*") if not path.is_dir() or path.is_symlink()
        }
        folders = {name for name, content in case.files.items() if name not in reader.files}
        lay(place, dict.fromkeys({*left - reader.files.keys(), *folders}))
        lay(place, {one: content for one, content in reader.files.items() if one in case.files or one not in left})
        os.write(
            send, json.dumps([name, number, ended, case.damage, words], ensure_ascii=True)[:60_000].encode() + b"\n"
        )


def run(made: dict[str, Reader], wanted: list, seed: int, work: Path, lanes: int) -> list[list]:
    """All cases, in processes that may die -> [reader, number, how it ended, damage, words] of each."""
    batches = deque(wanted[i : i + BATCH] for i in range(0, len(wanted), BATCH))
    waiting, found, count = selectors.DefaultSelector(), [], 0
    running: dict[int, tuple[int, list, bytearray]] = {}
    gc.collect()
    gc.freeze()
    while batches or running:
        while batches and len(running) < lanes:
            batch, count = batches.popleft(), count + 1
            receive, send = os.pipe()
            if not (child := os.fork()):
                try:
                    os.close(receive)
                    work_on(batch, made, work / f"lane {count}", seed, send)
                except BaseException:
                    os.write(
                        send, json.dumps([*batch[0], "failed", "the corpus itself", traceback.format_exc()]).encode()
                    )
                finally:
                    os._exit(0)
            os.close(send)
            running[receive] = child, batch, bytearray()
            waiting.register(receive, selectors.EVENT_READ, work / f"lane {count}")
        for key, _ in waiting.select():
            child, batch, said = running[key.fd]
            if part := os.read(key.fd, 2**16):
                said += part
                continue
            waiting.unregister(key.fd)
            os.close(key.fd)
            del running[key.fd]
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            shutil.rmtree(key.data, ignore_errors=True)
            lines = said.decode().splitlines()
            ended = [json.loads(line) for line in lines if line.startswith("[")]
            found += ended
            if len(ended) < len(batch):
                name, number = batch[len(ended)]
                how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                damage = case_of(name, made[name], number, seed).damage
                found.append([name, number, "failed", damage, f"its process ended with {how}"])
                if rest := batch[len(ended) + 1 :]:
                    batches.append(rest)
    return sorted(found)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", help="All if none is named.")
    parser.add_argument("--cases", type=int, default=10_000, help="Over all readers that are there.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="The number of one case.")
    parser.add_argument("--shown", type=int, default=20, help="Failures that are written out.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("patchcore_kit").propagate = False
    logging.getLogger("patchcore_kit").addHandler(logging.NullHandler())
    weights._answers = lambda *arguments: False  # no network is asked
    with tempfile.TemporaryDirectory(prefix="kit") as folder:
        work = Path(folder)
        os.environ["PATCHCORE_WORK"] = os.environ["TORCH_HOME"] = os.environ["HF_HOME"] = folder
        os.environ.pop("PATCHCORE_WEIGHTS", None)
        made = readers(work)
        if unknown := set(options.readers) - made.keys():
            parser.error(f"no reader {', '.join(unknown)}: there are {', '.join(made)}")
        chosen = options.readers or list(made)
        whole = sum(reader.share for reader in made.values())
        wanted = [
            (name, number)
            for name in chosen
            for number in range(-(-options.cases * made[name].share // whole))
            if options.only in (None, number)
        ] or [(chosen[0], options.only)]
        started = time.perf_counter()
        found = run(made, wanted, options.seed, work, max(2, os.cpu_count() or 1) if len(wanted) > 1 else 1)
        counts = pd.DataFrame([one[:3] for one in found], columns=["reader", "number", "ended"])
        table = counts.groupby(["reader", "ended"]).size().unstack(fill_value=0).reindex(columns=OUTCOMES, fill_value=0)
        table = table.reindex(chosen)
        table.insert(0, "cases", table.sum(axis=1))
        table.loc["all"] = table.sum()
        print(table.to_string())
        print(f"seed {options.seed}, {time.perf_counter() - started:.0f} s")
    failed = [one for one in found if one[2] == "failed"]
    for name, number, _, damage, words in failed[: options.shown]:
        print(f"\n{name} --only {number} --seed {options.seed}: {damage}\n{words}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
