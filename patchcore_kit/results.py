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
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from patchcore_kit.errors import ResultsError, SettingsError, short
from patchcore_kit.files import read_json, user_path, writing
from patchcore_kit.metrics import INTERVALS, METRICS, mean_interval
from patchcore_kit.predictions import ALARMS, COLUMNS

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
        self._order: list[str] = []
        self._believed: set[str] = set()
        table = folder / "results.csv"
        if resume and (table.exists() or self._settings_file.exists()):
            self._check_settings()
        else:
            self._check_replaceable()
        if resume and table.exists():
            rows = read_results(table).drop(index="Mean", errors="ignore")
            if rows.index.has_duplicates:
                twice = rows.index[rows.index.duplicated()][0]
                raise ResultsError(f"{table} has two rows {short(twice)}: remove one, or start without --resume")
            cells = _cells(_text(table))
            self.rows = {name: _kept(row, cells.loc[name]) for name, row in rows.iterrows()}
            self._believed = {name for name, row in cells.iterrows() if row.get("checksum") == _checksum(name, row)}
            if (folder / "defects.csv").exists():
                self.defects = read_results(folder / "defects.csv")

    @property
    def _settings_file(self) -> Path:
        return self.folder / "settings.json"

    def _check_replaceable(self) -> None:
        """An evaluation may replace an earlier one, nothing else."""
        there = [name for name in ("results.csv", "defects.csv", "settings.json") if (self.folder / name).exists()]
        if there and self._kind() != ("models" in self.settings):
            what = {False: "a training run", True: "an evaluation", None: "something else than this"}[self._kind()]
            path = self.folder / there[0]
            raise ResultsError(f"{path} is of {what}: choose another results folder, or move it away")

    def _kind(self) -> bool | None:
        """Whether the settings that are there are an evaluation's, or not; None if they are not the kit's."""
        try:
            return "models" in read_json(self._settings_file)
        except (OSError, ValueError):
            return None

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
                "give the same settings, another folder (--log_group of a training run), or no --resume"
            )

    def made_from(self, name: str) -> str | None:
        """What a row that is there was made from; None if there is none to keep, which it says if it was changed."""
        if name in self.rows and name not in self._believed:
            LOGGER.warning("%s: its row was changed, or is an earlier version's, so it is made anew", name)
        return str(self.rows[name].get("made_from") or "") if name in self._believed else None

    def current(self, name: str, made_from: str, outputs: Collection[str] = ()) -> bool:
        """Whether a row is there, made from the same, with these outputs beside it; says so if it is too old."""
        return is_current(name, self.made_from(name), made_from) and set(outputs) <= self.outputs(name)

    def outputs(self, name: str) -> set[str]:
        """What was written beside a row."""
        return set(str(self.rows.get(name, {}).get("outputs") or "").split())

    def expect(self, names: Collection[str]) -> None:
        """The rows to come, in this order, behind those that are there, whichever is added first."""
        self._order = [*self.rows, *(name for name in names if name not in self.rows)]

    def _sorted(self, names: Iterable[str]) -> list[int]:
        """The order of names, as numbers; those that were not expected come last."""
        places = [self._order.index(name) if name in self._order else len(self._order) for name in names]
        return np.argsort(places, kind="stable").tolist()

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
        theirs = {column: cell for column, cell in self.rows.get(name, {}).items() if column not in (*NUMBERS, *TEXTS)}
        self.rows[name] = theirs | dict(row) | {"outputs": " ".join(outputs), "made_from": made_from}
        names = list(self.rows)
        self.rows = {names[i]: self.rows[names[i]] for i in self._sorted(names)}
        self._believed.add(name)
        others = self.defects[self.defects.index != name]
        if defects is not None and len(defects):
            defects = defects.reset_index().assign(**{NAMES: name}).set_index(NAMES)
            others = pd.concat([others, defects]) if len(others) else defects
        self.defects = others.iloc[self._sorted(others.index)]
        self.begin()
        if len(self.defects):
            with writing(self.folder / "defects.csv") as temporary:
                self.defects.to_csv(temporary)
        cells = _cells(self.table().to_csv())
        checksums = [_checksum(name, row) if name in self._believed else "" for name, row in cells.iterrows()]
        with writing(self.folder / "results.csv") as temporary:
            cells.assign(checksum=checksums).to_csv(temporary)

    def begin(self) -> None:
        """See `record`."""
        record(self.folder, self.settings)

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


def record(folder: Path, settings: Mapping) -> None:
    """Write the settings of a run: before anything else of it, so that what is found later can be told apart."""
    path = folder / "settings.json"
    with suppress(OSError, ValueError):
        if read_json(path) == settings:
            return
    with writing(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def is_current(name: str, before: str | None, made_from: str) -> bool:
    """Whether what a row was made from, if there is one to keep, is the same now; says so if it is not."""
    if before not in (None, made_from):
        LOGGER.warning("%s: its images, masks or model have changed since, so it is made anew", name)
    return before == made_from


def _cells(text: str) -> pd.DataFrame:
    """A table's cells as they are written."""
    return pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False, index_col=NAMES)


def _text(path: Path) -> str:
    """A table as it was written, or as a spreadsheet has saved it: with a mark of its encoding."""
    return path.read_bytes().decode("utf-8-sig")


def _kept(row: pd.Series, cells: pd.Series) -> dict:
    """A row's numbers, and of all else the text: what somebody has put there stays what it is."""
    return {column: row[column] if column in NUMBERS else cells[column] or None for column in row.index}


def _checksum(name: str, row: pd.Series) -> str:
    """Of the kit's own cells that are not empty, for a later version, or anybody, may add columns."""
    own = sorted((column, row[column]) for column in (*NUMBERS, *TEXTS[:-1]) if row.get(column))
    return f"{zlib.crc32(repr((name, own)).encode('utf-8', 'surrogatepass')):08x}"


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
        text = content.decode("utf-8-sig")
        columns = next(csv.reader(io.StringIO(text, newline="")), [])
        if len(columns) == 1 and ";" in columns[0]:
            raise ValueError("its columns are separated by ;, save it with commas")
        if NAMES not in columns:
            raise ValueError(f"it has no column {NAMES!r}")
        if len(columns) > COLUMNS_AT_MOST or len(set(columns)) < len(columns):
            raise ValueError(f"it has {len(columns)} columns, {len(set(columns))} of them different")
        table = pd.read_csv(
            io.StringIO(text, newline=""), index_col=NAMES, dtype=str, keep_default_na=False, na_values=[""]
        )
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
