"""The tables of a run, written whole after every category, and when a row of them may be believed.

RESULTS/results.csv                    one row per category and their mean; read by column name
RESULTS/defects.csv                    the same for each kind of defect of each category
RESULTS/settings.json                  what the run was made with

A row ends with what was written beside it (`outputs`), a checksum of all that it was made from (`made_from`: settings,
images, masks, the model that was opened), and one of itself.
"""

import csv
import io
import json
import logging
import zlib
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from patchcore_kit.errors import ResultsError, SettingsError, short
from patchcore_kit.files import read_json, user_path, writing
from patchcore_kit.metrics import mean_interval
from patchcore_kit.predictions import ALARMS, COLUMNS, INTERVALS, METRICS

LOGGER = logging.getLogger(__name__)

NAMES = "Row Names"  # the reference's word for the column of the index
COSTS = ("bank_rows", "fit_seconds", "predict_seconds", "peak_mb")
TEXTS = ("weights", "mask_rule", "undefined", "outputs", "made_from", "checksum")
SHARES = (*METRICS, *ALARMS, *INTERVALS, "image_false_alarms")  # from 0 to 1
EARLIER = {"scoring": "distance", "alarm_rate": 0.05}  # settings of runs that do not record them
NUMBERS = (*COLUMNS, *INTERVALS, *COSTS)
ROUNDING = 1e-9  # by which a share may be beyond 0 or 1
LARGEST = 2**24  # bytes of a table
COLUMNS_AT_MOST, LINES_AT_MOST = 1000, 100_000


class Results:
    """The rows of results.csv in a folder; the file is rewritten, whole, after every row.

    With `resume` the rows that are there are kept, if they were made with the same settings. `current` says whether one
    can be taken as it is.

    Raises SettingsError if they were made with others, ResultsError if the file cannot be read or written, or is
    somebody else's that would be replaced.
    """

    def __init__(self, folder: Path, settings: Mapping, *, resume: bool = False):
        self.folder = folder
        self.settings = json.loads(json.dumps(settings))
        self.rows: dict[str, dict] = {}
        self.defects = pd.DataFrame()
        self._believed: set[str] = set()
        table = folder / "results.csv"
        if not resume:
            self._check_replaceable(table)
        elif table.exists() or self._settings_file.exists():
            self._check_settings()
        if resume and table.exists():
            rows = read_results(table).drop(index="Mean", errors="ignore")
            if rows.index.has_duplicates:
                twice = rows.index[rows.index.duplicated()][0]
                raise ResultsError(f"{table} has two rows {short(twice)}: remove one, or start without --resume")
            self.rows = {name: row.to_dict() for name, row in rows.iterrows()}
            self._believed = _unchanged(table)
            if (folder / "defects.csv").exists():
                self.defects = read_results(folder / "defects.csv")

    @property
    def _settings_file(self) -> Path:
        return self.folder / "settings.json"

    def _check_replaceable(self, table: Path) -> None:
        """An evaluation may replace an earlier one, nothing else."""
        if not table.exists():
            return
        try:
            kind = "models" in read_json(self._settings_file)
        except (OSError, ValueError):
            kind = None
        if kind != ("models" in self.settings):
            what = "a training run" if kind is False else "something else than this"
            raise ResultsError(f"{table} is the table of {what}: choose another results folder, or move it away")

    def _check_settings(self) -> None:
        path = self._settings_file
        try:
            before = EARLIER | read_json(path)
        except (OSError, ValueError) as error:
            raise ResultsError(
                f"cannot resume in {self.folder} ({path.name}: {short(error)}): start without --resume"
            ) from None
        changed = [key for key in self.settings if before.get(key) != self.settings[key]]
        if changed:
            key = changed[0]
            raise SettingsError(
                f"{self.folder} was made with {key} {short(before.get(key), 60)}, not {short(self.settings[key], 60)}: "
                "give the same settings, another --log_group, or no --resume"
            )

    def current(self, name: str, made_from: str, outputs: Collection[str] = ()) -> bool:
        """Whether a row is there, made from the same, with these outputs beside it; says so if it is too old."""
        row = self.rows.get(name)
        if row is None:
            return False
        if name not in self._believed:
            LOGGER.warning("%s: its row was changed, or is an earlier version's, so it is made anew", name)
        elif row.get("made_from") != made_from:
            LOGGER.warning("%s: its images, masks or model have changed since, so it is made anew", name)
        else:
            return set(outputs) <= set(str(row.get("outputs")).split())
        return False

    def add(
        self,
        name: str,
        row: Mapping,
        defects: pd.DataFrame | None = None,
        *,
        made_from: str = "",
        outputs: Collection[str] = (),
    ) -> None:
        """Add or replace a row, and those of its kinds of defect (`Predictions.by_defect`), and rewrite the files."""
        self.rows[name] = dict(row) | {"outputs": " ".join(outputs), "made_from": made_from}
        self._believed.add(name)
        others = self.defects[self.defects.index != name]
        if defects is not None and len(defects):
            defects = defects.reset_index().assign(**{NAMES: name}).set_index(NAMES)
            others = pd.concat([others, defects]) if len(others) else defects
        self.defects = others
        self.begin()
        if len(self.defects):
            with writing(self.folder / "defects.csv") as temporary:
                self.defects.to_csv(temporary)
        cells = _cells(self.table().to_csv())
        checksums = [_checksum(name, row) if name in self._believed else "" for name, row in cells.iterrows()]
        with writing(self.folder / "results.csv") as temporary:
            cells.assign(checksum=checksums).to_csv(temporary)

    def begin(self) -> None:
        """Record the settings: before anything else is written, so that what is found later can be told apart."""
        text = json.dumps(self.settings, indent=2) + "\n"
        if not self._settings_file.is_file() or self._settings_file.read_text(encoding="utf-8") != text:
            with writing(self._settings_file) as temporary:
                temporary.write_text(text, encoding="utf-8")

    def table(self) -> pd.DataFrame:
        """One row per category, then `Mean`: of each metric and cost, over the categories where it is defined.

        The mean's interval follows from the categories', where all have one.
        """
        table = pd.DataFrame.from_dict(self.rows, orient="index").rename_axis(NAMES)
        averaged = [*METRICS, *ALARMS, *COSTS]
        known = table.columns.drop(TEXTS, errors="ignore")
        wanted = [*known, *averaged, *INTERVALS, *TEXTS[:-1]]  # a column may be newer than a row
        table = table.reindex(columns=dict.fromkeys(wanted))
        table[[*averaged, *INTERVALS]] = table[[*averaged, *INTERVALS]].astype(float)
        means = table[averaged].mean()
        for ends in zip(INTERVALS[::2], INTERVALS[1::2], strict=True):
            metric = ends[0].removesuffix("_low")
            known = table.loc[table[metric].notna(), [metric, *ends]]
            if len(known) and known.notna().all(axis=None):
                means[ends[0]], means[ends[1]] = mean_interval(*known.to_numpy().T)
        table.loc["Mean", means.index] = means
        return table


def _cells(text: str) -> pd.DataFrame:
    """A table's cells as they are written."""
    return pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False, index_col=NAMES)


def _checksum(name: str, row: pd.Series) -> str:
    """Of a row's cells that are not empty, for a later version may add columns."""
    known = sorted((column, cell) for column, cell in row.items() if cell and column != "checksum")
    return f"{zlib.crc32(repr((name, known)).encode('utf-8', 'surrogatepass')):08x}"


def _unchanged(path: Path) -> set[str]:
    """Names of the rows that are as they were written."""
    cells = _cells(path.read_text(encoding="utf-8"))
    if "checksum" not in cells:
        return set()
    return {name for name, row in cells.iterrows() if row["checksum"] == _checksum(name, row)}


def published_results() -> pd.DataFrame:
    """The reference's published results on MVTec AD as a results table: image and pixel AUROC and PRO by category.

    Source: results.csv of its model IM224_WR50_L2-3_P01_D1024-1024_PS-3_AN-1 (wide ResNet-50, 224 pixels, 10 %),
    rounded to four decimals. Its `full_pro`, which its code does not compute, is left out.
    """
    return read_results(Path(__file__).with_name("published.csv"))


def read_results(path: Path | str) -> pd.DataFrame:
    """results.csv or defects.csv, the kit's or the reference's, with the row names as index.

    Raises ResultsError if it is missing, is something else, or holds values that cannot be.
    """
    path = user_path(path)
    try:
        if not path.is_file():
            raise FileNotFoundError("train first, it is written after every category")
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has {path.stat().st_size} bytes, more than any such table")
        content = path.read_bytes()
        if (lines := content.count(b"\n") + content.count(b"\r")) > LINES_AT_MOST:
            raise ValueError(f"it has {lines} lines, more than any such table")
        text = content.decode("utf-8")
        columns = next(csv.reader(io.StringIO(text, newline="")), [])
        if NAMES not in columns:
            raise ValueError(f"it has no column {NAMES!r}")
        if len(columns) > COLUMNS_AT_MOST or len(set(columns)) < len(columns):
            raise ValueError(f"it has {len(columns)} columns, {len(set(columns))} of them different")
        table = pd.read_csv(io.StringIO(text, newline=""), index_col=NAMES, dtype=str)
        if table.index.hasnans:
            raise ValueError("it has a row without a name")
        for column in table.columns.drop([*TEXTS, "defect"], errors="ignore"):
            if column in NUMBERS:
                table[column] = table[column].astype(float)  # Python's, which is exact: a row that is kept stays
                _check_range(table[column])
            else:
                table[column] = _as_numbers(table[column])
    except Exception as error:  # pandas raises nearly anything for files that are something else
        raise ResultsError(f"cannot read {path} ({short(error)})") from None
    return table


def _as_numbers(texts: pd.Series) -> pd.Series:
    """What it may be: whole numbers, as of images, numbers, or texts."""
    with suppress(ValueError):
        return texts.astype(int)
    try:
        numbers = texts.astype(float)
    except ValueError:
        return texts
    if np.isinf(numbers).any():
        raise ValueError(f"{short(texts.name)} holds numbers that are not finite")
    return numbers


def _check_range(values: pd.Series) -> None:
    most = 1 + ROUNDING if values.name in SHARES else np.finfo(float).max
    wrong = ~(values.isna() | values.between(-ROUNDING, most))
    if wrong.any():
        raise ValueError(f"{values.name} of {short(wrong.idxmax())} is {values[wrong].iloc[0]:g}")


def tied(table: pd.DataFrame, metric: str, name: str) -> list[str]:
    """The other rows of a results table that a row's metric cannot be told from, by their intervals of 95 %.

    Two values differ if the interval of their difference (MOVER) leaves out 0. Empty where there are no intervals.
    """
    low, high = f"{metric}_low", f"{metric}_high"
    if low not in table or high not in table:
        return []
    rows = table.drop(index="Mean", errors="ignore").dropna(subset=[metric, low, high])
    if name not in rows.index:
        return []
    own, others = rows.loc[name], rows.drop(index=name)
    above = others[metric] >= own[metric]
    ends = np.hypot(
        np.where(above, others[metric] - others[low], others[high] - others[metric]),
        np.where(above, own[high] - own[metric], own[metric] - own[low]),
    )
    return others.index[(others[metric] - own[metric]).abs() <= ends].tolist()
