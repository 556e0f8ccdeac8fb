"""Model folders: the reference's two files, byte for byte as it writes them, and beside them what they lack.

    patchcore_params.pkl            a pickled dict of settings                  } the reference reads and writes these
    nnscorer_search_index.faiss     a FAISS IndexFlatL2 with the bank's rows    }
    patchcore_kit.json              resize, sampler, seed, weights, training images, ...
    patchcore_kit.npz               the training image, cell and spacing of each row; the scores of good images

Members of an ensemble share a folder, each file with a prefix `Ensemble-1-3_`. Nothing in a pickle is executed: it
may hold plain containers, strings and numbers only.
"""

import io
import json
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import faiss
import numpy as np

from patchcore_kit.errors import ModelError, ResultsError
from patchcore_kit.files import UNREADABLE, is_lfs_pointer, user_path, work_folder

PARAMS_FILE = "patchcore_params.pkl"
INDEX_FILE = "nnscorer_search_index.faiss"
EXTRAS_FILE = "patchcore_kit.json"
ARRAYS_FILE = "patchcore_kit.npz"
OF_ROWS = ("images", "cells", "spacing", "near")  # arrays with a value for each row

# the reference's settings, in the order in which it stores them
PARAMS = {
    "backbone.name": str,
    "layers_to_extract_from": (tuple, list),
    "input_shape": tuple,
    "pretrain_embed_dimension": int,
    "target_embed_dimension": int,
    "patchsize": int,
    "patchstride": int,
    "anomaly_scorer_num_nn": int,
}


# the kit's own
EXTRAS = (
    "resize", "sampler", "percentage", "projection", "reweight", "seed", "grid",
    "weights", "weights_seed", "weights_fingerprint", "training_images",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SavedModel:
    """One member of a model folder.

    params: the reference's settings. rows: (M, D) float32. extras: the kit's own settings, {} for a folder that the
    reference wrote. arrays: what else the model knows, by name; {} where nothing is stored.
    """

    params: dict
    rows: np.ndarray
    extras: dict
    arrays: dict[str, np.ndarray]


class _PlainUnpickler(pickle.Unpickler):
    """Refuses every name that a pickle asks to import, and so everything that could run."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def find_models() -> list[Path]:
    """Model folders at any depth under `models/` and `experiments/` of the work folder, sorted."""
    found = chain.from_iterable((work_folder() / name).rglob(f"*{PARAMS_FILE}") for name in ("models", "experiments"))
    return sorted({path.parent for path in found})


def prefixes(folder: Path | str) -> list[str]:
    """The prefixes of a model folder's members: [""] for one model, ["Ensemble-1-3_", ...] for an ensemble.

    Raises ModelError if the folder is missing, holds no model, or lacks a member.
    """
    folder = user_path(folder)
    if (folder / PARAMS_FILE).is_file():
        return [""]
    found = sorted(p.name for p in folder.glob(f"Ensemble-*-*_{PARAMS_FILE}")) if folder.is_dir() else []
    totals = [match.group(1) for name in found if (match := re.match(r"Ensemble-\d+-(\d+)_", name))]
    if not totals:
        raise ModelError(
            f"no model in {folder}: it should hold {PARAMS_FILE}, as training with --save_patchcore_model writes it"
        )
    wanted = [ensemble_prefix(i, int(totals[0])) for i in range(int(totals[0]))]
    missing = [f"{prefix}{PARAMS_FILE}" for prefix in wanted if f"{prefix}{PARAMS_FILE}" not in found]
    if missing:
        raise ModelError(f"the ensemble in {folder} lacks {missing[0]}: copy the whole folder again")
    return wanted


def ensemble_prefix(i: int, total: int) -> str:
    """File prefix of member i, counted from 0; none for a single model."""
    return f"Ensemble-{i + 1}-{total}_" if total > 1 else ""


def check_replaceable(folder: Path) -> None:
    """Raises ResultsError if a folder holds anything but a model's files, which saving a model would remove."""
    names = (PARAMS_FILE, INDEX_FILE, EXTRAS_FILE, ARRAYS_FILE)
    others = [p.name for p in folder.iterdir() if not p.name.endswith(names)] if folder.is_dir() else []
    others = [name for name in others if not name.startswith(".") and name not in ("Thumbs.db", "desktop.ini")]
    if others:
        raise ResultsError(f"{folder} holds other files ({others[0]}): choose a new folder for the model")


def write_model(folder: Path, model: SavedModel, prefix: str = "") -> None:
    """Write one member's files into an existing folder."""
    (folder / f"{prefix}{PARAMS_FILE}").write_bytes(params_bytes(model.params))
    index = faiss.IndexFlatL2(model.rows.shape[1])
    index.add(model.rows)
    (folder / f"{prefix}{INDEX_FILE}").write_bytes(faiss.serialize_index(index).tobytes())
    (folder / f"{prefix}{EXTRAS_FILE}").write_text(json.dumps(model.extras, indent=2) + "\n", encoding="utf-8")
    if model.arrays:
        np.savez(folder / f"{prefix}{ARRAYS_FILE}", **model.arrays)


def params_bytes(params: dict) -> bytes:
    """The reference's settings file: protocol 5 of pickle, keys in its order."""
    return pickle.dumps({key: params[key] for key in PARAMS}, protocol=5)


def read_model(folder: Path | str, prefix: str = "") -> SavedModel:
    """Read one member. Raises ModelError, naming the file, for whatever is missing, damaged or something else."""
    folder = user_path(folder)
    params, extras = read_settings(folder, prefix)
    rows = _read_index(folder / f"{prefix}{INDEX_FILE}", params["target_embed_dimension"])
    path = folder / f"{prefix}{ARRAYS_FILE}"
    if not path.is_file():
        return SavedModel(params, rows, extras, {})
    with _damaged(path), path.open("rb") as content, np.load(content, allow_pickle=False) as stored:
        arrays = dict(stored)
        for name in OF_ROWS:
            if len(arrays.get(name, rows)) != len(rows):
                raise ValueError(f"{name} of {len(arrays[name])} rows, the bank has {len(rows)}")
        return SavedModel(params, rows, extras, arrays)


def read_settings(folder: Path | str, prefix: str = "") -> tuple[dict, dict]:
    """(params, extras) of one member, without its rows. Raises ModelError as `read_model`."""
    folder = user_path(folder)
    params = _read_params(folder / f"{prefix}{PARAMS_FILE}")
    path = folder / f"{prefix}{EXTRAS_FILE}"
    if not path.is_file():
        return params, {}
    with _damaged(path):
        extras = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in EXTRAS if key not in extras]
        if missing:
            raise KeyError(missing[0])
    if isinstance(extras["resize"], list):  # JSON has no pairs
        extras["resize"] = tuple(extras["resize"])
    return params, extras


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except UNREADABLE as error:
        raise ModelError(f"cannot read {path} ({error}): copy the model folder again, or train again") from None


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise ModelError(f"no file {path}: copy the whole model folder")
    with _damaged(path):
        if is_lfs_pointer(path):
            raise ModelError(f"{path} is a Git-LFS pointer, not the file itself: fetch that with `git lfs pull`")
        return path.read_bytes()


def _read_params(path: Path) -> dict:
    content = io.BytesIO(_content(path))
    try:
        params = _PlainUnpickler(content).load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ModelError(f"{path} is not a PatchCore settings file ({error}): copy it again") from None
    for key, kind in PARAMS.items():
        if not isinstance(params, dict) or not isinstance(params.get(key), kind):
            raise ModelError(f"{path} has no usable {key!r}: it is not a PatchCore settings file, or a damaged one")
    if params["patchstride"] != 1:
        raise ModelError(f"{path} asks for patchstride {params['patchstride']}: only 1 is supported")
    return params


def _read_index(path: Path, dimension: int) -> np.ndarray:
    content = np.frombuffer(_content(path), dtype=np.uint8)
    try:
        index = faiss.deserialize_index(content)
    except RuntimeError:
        raise ModelError(f"{path} is not a FAISS index, or a damaged one: copy it again") from None
    if not isinstance(index, faiss.IndexFlat) or index.metric_type != faiss.METRIC_L2 or index.d != dimension:
        raise ModelError(
            f"{path} holds a {type(index).__name__} of dimension {index.d}: the settings beside it ask for "
            f"an IndexFlatL2 of dimension {dimension}"
        )
    return index.reconstruct_n(0, index.ntotal)
