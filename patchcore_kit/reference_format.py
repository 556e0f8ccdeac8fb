"""Model folders: the reference's two files, byte for byte as it writes them, and beside them what they lack.

    patchcore_params.pkl            a pickled dict of settings                  } the reference reads and writes these
    nnscorer_search_index.faiss     a FAISS IndexFlatL2 with the bank's rows    }
    patchcore_kit.json              resize, sampler, seed, weights, training images, ...; checksums of all files
    patchcore_kit.npz               the training image, cell and spacing of each row; the scores of good images
    patchcore_kit.lists             of large banks: what the fast search has found out of each row

Lists, and files of more than 256 MB, are mapped, not read: whoever opens the same model shares their memory. A model
may be replaced meanwhile, which leaves its files as they are; they must not be written to or cut where they lie.
Members of an ensemble share a folder, each file with a prefix `Ensemble-1-3_`. Nothing in a pickle is executed: it
may hold plain containers, strings and numbers only.
"""

import io
import json
import math
import os
import pickle
import pickletools
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np

from patchcore_kit.arrays import read_arrays
from patchcore_kit.errors import ModelError, ResultsError, short
from patchcore_kit.files import DRAFT, is_lfs_pointer, names_in, read_json, tidy, user_path, work_folder

PARAMS_FILE = "patchcore_params.pkl"
INDEX_FILE = "nnscorer_search_index.faiss"
EXTRAS_FILE = "patchcore_kit.json"
ARRAYS_FILE = "patchcore_kit.npz"
LISTS_FILE = "patchcore_kit.lists"
FILES = (PARAMS_FILE, INDEX_FILE, EXTRAS_FILE, ARRAYS_FILE, LISTS_FILE)
LARGE = 2**28  # bytes, of a file that is mapped, and of the rows of a bank whose lists are stored
BLOCK = 2**22  # values looked at or written at a time
MEMBERS = 64  # at most, of an ensemble
SIDE = 2**15  # pixels, at most, of what a network sees, with tiles
DIMENSION = 2**16  # at most
LONGEST = 2**24  # pixels, at most, that a photograph has on a side
LARGEST = 1e30  # squared distance, at most: sums of them are finite
OF_IMAGES, OF_CELLS = ("images", "reserve_images", "held_out_images"), ("cells", "reserve_cells", "held_out_cells")
POSITIVE, SIZES = ("near", "held_out_distances", "spacing"), ("photograph_sizes", "training_sizes")
FLOAT32 = ("near", "spacing", "held_out_distances", "search_axes", "search_origin", "search_centres", "search_reach")


def _number(least: int, most: int) -> Callable[[object], bool]:
    return lambda value: type(value) is int and least <= value <= most


def _text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 500


def _texts(value: object) -> bool:
    return isinstance(value, tuple | list) and len(value) <= 10**6 and all(isinstance(one, str) for one in value)


def _sides(value: object) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(map(_number(1, SIDE), value))


# the reference's settings, in the order in which it stores them, and what they can be
PARAMS: Mapping[str, Callable[[object], bool]] = {
    "backbone.name": _text,
    "layers_to_extract_from": lambda value: _texts(value) and 0 < len(value) <= 100,
    "input_shape": lambda value: isinstance(value, tuple | list) and _sides(value[1:]) and value[0] == 3,
    "pretrain_embed_dimension": _number(1, DIMENSION),
    "target_embed_dimension": _number(1, DIMENSION),
    "patchsize": _number(1, 255),
    "patchstride": _number(1, 255),
    "anomaly_scorer_num_nn": _number(1, 10**6),
}

# the kit's own that every model of its has; what the others can be is up to PatchCore
EXTRAS: Mapping[str, Callable[[object], bool]] = {
    "resize": lambda value: _number(1, SIDE)(value) or _sides(value),
    "sampler": _text,
    "percentage": lambda value: isinstance(value, int | float),
    "projection": lambda value: value is None or _number(1, DIMENSION)(value),
    "reweight": _number(0, 10**6),
    "seed": _number(0, 2**63 - 1),
    "grid": _sides,
    "weights": _text,
    "weights_seed": _number(0, 2**63 - 1),
    "weights_fingerprint": _text,
    "training_images": _texts,
}

# and those that earlier versions did not have
LATER: Mapping[str, Callable[[object], bool]] = {
    "bits": lambda value: value is None or _number(8, 32)(value),
    "precision": lambda value: value in ("float32", "tf32", "bfloat16"),
}

# what the arrays beside a bank can be: see `arrays.Kind`; M rows of D values, n images of C cells
ARRAYS = {
    "images": ("i", "M"), "cells": ("i", "M"), "spacing": ("f", "M"), "near": ("f", "M."),
    "good_scores": ("f", "g"), "good_peaks": ("f", "g"), "alarm_rate": ("f", ""),
    "appearance": ("f", "a2"), "photograph_sizes": ("i", "a2"), "training_sizes": ("i", "n2"),
    "photographs": ("u", "."), "photograph_ends": ("i", "n"),
    "reserve_rows": ("f", "rD"), "reserve_images": ("i", "r"), "reserve_cells": ("i", "r"),
    "held_out_images": ("i", "h"), "held_out_distances": ("f", "hCk"), "held_out_nearest": ("i", "hC"),
    "held_out_cells": ("i", "hs"), "held_out_rows": ("f", "hsD"),
    "search_axes": ("f", "dD"), "search_origin": ("f", "d"), "search_centres": ("f", "cd"), "search_reach": ("f", ""),
}  # fmt: skip
TOGETHER = (("images", "cells"), ("appearance", "photograph_sizes"), ("photographs", "photograph_ends"))

# all that a pickled dict of texts, numbers and tuples takes; not LONG_BINPUT, which makes room for as many as it says
OPCODES = frozenset({
    "PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINPUT", "BINGET", "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST",
    "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "SHORT_BINUNICODE", "BINUNICODE",
    "BININT", "BININT1", "BININT2", "LONG1", "NONE", "NEWTRUE", "NEWFALSE",
})  # fmt: skip
LARGEST_PARAMS = 2**16  # bytes
CONTAINERS = 16  # tuples, lists and dicts in it: nested in themselves more would take for ever to look at
INDEX_HEADER = struct.Struct(
    "<4siqqq?iQ"
)  # kind, dimension, rows, two numbers that are not used, trained, metric, values


@dataclass(frozen=True, slots=True)
class SavedModel:
    """One member of a model folder.

    params: the reference's settings. rows: (M, D) float32, or float16 to be written. extras: the kit's own settings, {}
    for a folder that the reference wrote. arrays: what else the model knows, by name; {} where nothing is stored.
    lists: what `MemoryBank.lists` has, in one part where it was read; () where nothing is stored.
    """

    params: dict
    rows: np.ndarray
    extras: dict
    arrays: dict[str, np.ndarray]
    lists: Iterable[np.ndarray] = ()


class _PlainUnpickler(pickle.Unpickler):
    """Refuses every name that a pickle asks to import, and so everything that could run."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")  # the opcodes for that are refused before


def find_models() -> list[Path]:
    """Model folders at any depth under `models/` and `experiments/` of the work folder, sorted, without hidden ones."""
    found = []
    for root in (work_folder() / name for name in ("models", "experiments")):
        for place, folders, files in os.walk(root):
            if any(name.startswith(DRAFT) for name in folders):
                tidy(Path(place), remove=False)
                folders[:] = [path.name for path in Path(place).iterdir() if path.is_dir()]
            folders[:] = [name for name in folders if not name.startswith(".")]
            if any(name.endswith(PARAMS_FILE) for name in files):
                found.append(Path(place))
    return sorted(found)


def prefixes(folder: Path | str) -> list[str]:
    """The prefixes of a model folder's members: [""] for one model, ["Ensemble-1-3_", ...] for an ensemble.

    Raises ModelError if the folder is missing, holds no model, or lacks a member.
    """
    folder = user_path(folder)
    tidy(folder.parent, remove=False)  # a process may have died while it was replaced
    if (folder / PARAMS_FILE).is_file():
        return [""]
    found = sorted(p.name for p in folder.glob(f"Ensemble-*-*_{PARAMS_FILE}")) if folder.is_dir() else []
    totals = [int(match.group(1)) for name in found if (match := re.match(r"Ensemble-\d{1,9}-(\d{1,9})_", name))]
    if not totals:
        raise ModelError(
            f"no model in {folder}: it should hold {PARAMS_FILE}, as training with --save_patchcore_model writes it"
        )
    if not 1 < totals[0] <= MEMBERS:
        raise ModelError(f"{folder / found[0]} is of an ensemble of {totals[0]}: there can be 2 to {MEMBERS} members")
    wanted = [ensemble_prefix(i, totals[0]) for i in range(totals[0])]
    missing = [f"{prefix}{PARAMS_FILE}" for prefix in wanted if f"{prefix}{PARAMS_FILE}" not in found]
    if missing:
        raise ModelError(f"the ensemble in {folder} lacks {missing[0]}: copy the whole folder again")
    return wanted


def ensemble_prefix(i: int, total: int) -> str:
    """File prefix of member i, counted from 0; none for a single model."""
    return f"Ensemble-{i + 1}-{total}_" if total > 1 else ""


def check_replaceable(folder: Path) -> None:
    """Raises ResultsError if a folder holds anything but a model's files, which saving a model would remove."""
    ours = re.compile(rf"(Ensemble-\d+-\d+_)?({'|'.join(map(re.escape, FILES))})")
    if others := [name for name in (names_in(folder) if folder.is_dir() else ()) if not ours.fullmatch(name)]:
        raise ResultsError(f"{folder} holds other files ({short(others[0])}): choose a new folder for the model")


def write_model(folder: Path, model: SavedModel, prefix: str = "") -> None:
    """Write one member's files into an existing folder; last the one with the checksums of the others."""
    (folder / f"{prefix}{PARAMS_FILE}").write_bytes(params_bytes(model.params))
    count, d = model.rows.shape
    with (folder / f"{prefix}{INDEX_FILE}").open("wb") as file:
        file.write(INDEX_HEADER.pack(b"IxF2", d, count, 2**20, 2**20, True, faiss.METRIC_L2, count * d))
        for block in _blocks(model.rows):
            file.write(np.ascontiguousarray(block, dtype="<f4"))
    if model.lists and 4 * count * d > LARGE:
        with (folder / f"{prefix}{LISTS_FILE}").open("wb") as file:
            file.writelines(model.lists)
    if model.arrays:
        np.savez(folder / f"{prefix}{ARRAYS_FILE}", **model.arrays)
    written = [name for name in FILES if (folder / f"{prefix}{name}").is_file()]
    sums = {name: _crc(_bytes(folder / f"{prefix}{name}")) for name in written}
    extras = model.extras | {"checksums": sums | {EXTRAS_FILE: _crc_of_extras(model.extras)}}
    (folder / f"{prefix}{EXTRAS_FILE}").write_text(json.dumps(extras, indent=2) + "\n", encoding="utf-8")


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """(M, D) -> its rows, in order, a few at a time."""
    step = max(1, BLOCK // rows.shape[1])
    return (rows[start : start + step] for start in range(0, len(rows), step))


def _bytes(path: Path, mapped: bool = False) -> bytes | np.ndarray:
    least = 0 if mapped else LARGE
    return np.memmap(path, np.uint8, "r") if path.stat().st_size > least else path.read_bytes()


def _crc(content: bytes | np.ndarray) -> str:
    return f"{zlib.crc32(content):08x}"


def _crc_of_extras(extras: dict) -> str:
    return _crc(json.dumps(extras, sort_keys=True).encode())


def params_bytes(params: dict) -> bytes:
    """The reference's settings file: protocol 5 of pickle, keys in its order."""
    return pickle.dumps({key: params[key] for key in PARAMS}, protocol=5)


def read_model(folder: Path | str, prefix: str = "") -> SavedModel:
    """Read one member. Raises ModelError, naming the file, for whatever is missing, damaged or something else."""
    folder = user_path(folder)
    before = folder.stat().st_ino if folder.is_dir() else None
    try:
        return _read_model(folder, prefix)
    except ModelError:
        if not folder.is_dir() or folder.stat().st_ino == before:
            raise
    return _read_model(folder, prefix)  # it was replaced while it was read


def _read_model(folder: Path, prefix: str) -> SavedModel:
    params, extras, sums = _read_settings(folder, prefix)
    index = folder / f"{prefix}{INDEX_FILE}"
    rows = _read_index(index, params["target_embed_dimension"], sums.get(INDEX_FILE))
    if (nearest := params["anomaly_scorer_num_nn"]) > len(rows):
        raise ModelError(f"{index} has {len(rows)} rows, but the settings beside it ask for the nearest {nearest}")
    path = folder / f"{prefix}{ARRAYS_FILE}"
    if not path.exists() and ARRAYS_FILE not in sums:
        return SavedModel(params, rows, extras, {})
    if not extras:  # the kit writes both, and the reference neither
        raise ModelError(f"no file {folder / f'{prefix}{EXTRAS_FILE}'}: copy the whole model folder")
    _content(path, sums.get(ARRAYS_FILE))
    with _damaged(path):
        images, cells = len(extras["training_images"]), math.prod(extras["grid"])
        lengths = {"M": len(rows), "D": rows.shape[1], "n": images, "C": cells}
        arrays = read_arrays(path, ARRAYS, lengths=lengths)
        _check_values(arrays, lengths)
    if LISTS_FILE not in sums:
        return SavedModel(params, rows, extras, arrays)
    lists = _content(folder / f"{prefix}{LISTS_FILE}", sums[LISTS_FILE], mapped=True)
    return SavedModel(params, rows, extras, arrays, (np.frombuffer(lists, np.uint8),))


def _check_values(arrays: dict[str, np.ndarray], lengths: Mapping[str, int]) -> None:
    """Raises ValueError if the arrays of a model hold what cannot be; floats that torch computes with become its."""
    ranges = dict.fromkeys(OF_IMAGES, (0, lengths["n"] - 1))
    ranges |= dict.fromkeys(OF_CELLS, (0, lengths["C"] - 1))
    ranges |= dict.fromkeys(POSITIVE, (0, LARGEST)) | dict.fromkeys(SIZES, (1, LONGEST))
    ranges["held_out_images"] = -1, ranges["images"][1]  # -1: of images that the bank has learnt nothing from
    ranges["held_out_nearest"] = 0, lengths["M"] - 1
    for name, (least, most) in ranges.items():
        values = arrays.get(name, np.arange(0))
        if values.size and not least <= values.min() <= values.max() <= most:
            raise ValueError(f"{name} from {values.min()} to {values.max()}: they can be {least} to {most}")
    for names in TOGETHER:
        if len(there := arrays.keys() & names) == 1:
            raise ValueError(f"it has {', '.join(there)} alone of {' and '.join(names)}")
    if not arrays.get("spacing", np.ones(1)).all() or not len(arrays.get("appearance", "some")):
        raise ValueError("it has a spacing of 0, or the appearance of no image")
    for name in arrays.keys() & set(FLOAT32):
        arrays[name] = arrays[name].astype(np.float32, copy=False)


def read_settings(folder: Path | str, prefix: str = "") -> tuple[dict, dict]:
    """(params, extras) of one member, without its rows. Raises ModelError as `read_model`."""
    return _read_settings(user_path(folder), prefix)[:2]


def _read_settings(folder: Path, prefix: str) -> tuple[dict, dict, dict[str, str]]:
    """(params, extras, checksums of the files by name)."""
    path = folder / f"{prefix}{EXTRAS_FILE}"
    extras, sums = {}, {}
    if path.exists():
        with _damaged(path):
            extras = read_json(path)
            sums = extras.pop("checksums", {})  # earlier versions had none
            if not isinstance(sums, dict):
                raise ValueError(f"checksums is {short(repr(sums), 60)}")
            there = {name for name in FILES if (folder / f"{prefix}{name}").exists()}
            if sums and not (there <= sums.keys() and sums[EXTRAS_FILE] == _crc_of_extras(extras)):
                raise ValueError("its checksum differs")
            for key, fits in (EXTRAS | {key: LATER[key] for key in LATER.keys() & extras.keys()}).items():
                if not fits(extras.get(key)):
                    raise ValueError(f"{key} is {short(repr(extras.get(key)), 60)}")
            if isinstance(extras["resize"], list):  # JSON has no pairs
                extras["resize"] = tuple(extras["resize"])
    params = _read_params(folder / f"{prefix}{PARAMS_FILE}", sums.get(PARAMS_FILE))
    _, *size = params["input_shape"]
    if type(resize := extras.get("resize")) is int and resize < max(size):
        raise ModelError(f"{path} says resize {resize}, but the settings beside it images of {size}: copy them again")
    return params, extras, sums


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # whatever parsers raise for files that are damaged or something else
        raise ModelError(
            f"cannot read {path} ({short(error) or type(error).__name__}): copy the model folder again, or train again"
        ) from None


def _content(path: Path, crc: str | None, mapped: bool = False) -> bytes | np.ndarray:
    """A file's bytes, which must have that checksum if it is known; of a large one where they lie."""
    if not path.is_file():
        raise ModelError(f"no file {path}: copy the whole model folder")
    with _damaged(path):
        if is_lfs_pointer(path):
            raise ModelError(f"{path} is a Git-LFS pointer, not the file itself: fetch that with `git lfs pull`")
        content = _bytes(path, mapped)
        if crc and crc != _crc(content):
            raise ValueError("its checksum differs")
        return content


def _read_params(path: Path, crc: str | None) -> dict:
    content = _content(path, crc)
    try:
        params = _unpickled(content)
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ModelError(f"{path} is not a PatchCore settings file ({short(error)}): copy it again") from None
    for key, fits in PARAMS.items():
        if not isinstance(params, dict) or not fits(params.get(key)):
            raise ModelError(f"{path} has no usable {key!r}: it is not a PatchCore settings file, or a damaged one")
    if params["patchstride"] != 1:
        raise ModelError(f"{path} asks for patchstride {params['patchstride']}: only 1 is supported")
    return params


def _unpickled(content: bytes) -> object:
    if len(content) > LARGEST_PARAMS:
        raise ValueError(f"it has {len(content)} bytes, more than any settings")
    containers = 0
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name not in OPCODES:
            raise pickle.UnpicklingError(f"it asks for {argument or opcode.name}, which plain settings do not")
        containers += opcode.name.startswith(("EMPTY_", "TUPLE"))
        if containers > CONTAINERS:
            raise ValueError(f"it has more than {CONTAINERS} tuples, lists or dicts")
    return _PlainUnpickler(io.BytesIO(content)).load()


def _read_index(path: Path, dimension: int, crc: str | None) -> np.ndarray:
    """The rows of an IndexFlatL2, whose layout is fixed, so that no claim of the file is believed."""
    content = _content(path, crc)
    try:
        kind, d, count, _, _, _, metric, values = INDEX_HEADER.unpack_from(content)
    except struct.error:
        kind, d, count, metric, values = b"", 0, 0, 0, 0
    if kind in (b"IxFI", b"IxF2") and (kind, d) != (b"IxF2", dimension):
        raise ModelError(
            f"{path} holds a {'IndexFlatL2' if kind == b'IxF2' else 'IndexFlatIP'} of dimension {d}: the settings "
            f"beside it ask for an IndexFlatL2 of dimension {dimension}"
        )
    whole = values == count * d and len(content) == INDEX_HEADER.size + 4 * values
    if kind != b"IxF2" or metric != faiss.METRIC_L2 or not whole or count < 1:
        raise ModelError(f"{path} is not a FAISS index of some rows, IndexFlatL2, or a damaged one: copy it again")
    values = memoryview(content)[INDEX_HEADER.size :]
    rows = np.frombuffer(values if isinstance(content, np.ndarray) else bytearray(values), dtype="<f4").reshape(
        count, d
    )
    if not d * float(np.max([np.abs([block.min(), block.max()]) for block in _blocks(rows)])) ** 2 < LARGEST:
        raise ModelError(
            f"{path} holds rows that are not finite, or too large: copy the model folder again, or train again"
        )
    return rows
