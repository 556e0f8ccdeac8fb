"""What a model says of a photograph: in words, as JSON, drawn on it; and the files of `predict --out`."""

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import click
import numpy as np
import scipy.ndimage
from PIL import Image, ImageDraw, ImageFont

from patchcore_kit.datasets import Sample
from patchcore_kit.errors import DataError, ResultsError
from patchcore_kit.files import file_name, numbered, printable, writing
from patchcore_kit.images import read_rgb
from patchcore_kit.notes import Notes

if TYPE_CHECKING:  # it brings torch, which whoever only looks for new files need not wait for
    from patchcore_kit.predictions import Predictions

UNREADABLE = "unreadable"
PICTURE = 1600  # pixels of a picture's longer side at most
OUTLINE = (255, 0, 60)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is said of a photograph.

    verdict: `good`, `look` or `defective`, `-` by a model without a threshold, or `unreadable`. box: around the
    strongest region, in the photograph's pixels. remark: what else there is to know, of unreadable ones why.
    """

    name: str
    verdict: str
    index: float | None = None
    box: tuple[int, int, int, int] | None = None
    score: float | None = None
    remark: str = ""

    @property
    def where(self) -> str:
        """The box as left,top-right,bottom, `-` without one."""
        return "{},{}-{},{}".format(*self.box) if self.box else "-"

    @property
    def record(self) -> dict:
        """For JSON, where no regions are known."""
        return {"name": self.name, "verdict": self.verdict, "remark": self.remark, "regions": []}


def judgement(predictions: "Predictions", i: int) -> Judgement:
    """Of the i-th image of some predictions."""
    name, verdict, score = printable(predictions.names[i]), predictions.verdicts[i] or "-", float(predictions.scores[i])
    index = None if predictions.index is None else float(predictions.index[i])
    box = None
    if predictions.evidence is not None:  # of ensembles no regions are known
        boxes = predictions.evidence.boxes[predictions.evidence.images == i]
        box = tuple(boxes[0, :4].tolist()) if len(boxes) else None  # the strongest comes first
    remark = predictions.remarks[i] if predictions.remarks else ""
    return Judgement(name, verdict, index, box, score, remark)


def unreadable(name: str, sentence: str) -> Judgement:
    """Of a photograph that cannot be judged, and why."""
    return Judgement(printable(name), UNREADABLE, remark=sentence)


def record(predictions: "Predictions", i: int) -> dict:
    """What is known of an image, for JSON."""
    said = judgement(predictions, i)
    regions = [
        {
            "box": region.box,
            "area": region.area,
            "index": region.index,
            "nearest": [{"name": near.name, "box": near.box, "distance": near.distance} for near in region.nearest],
        }
        for region in (predictions.explain(i).regions if said.box else ())
    ]
    known = {"name": said.name, "verdict": said.verdict, "index": said.index, "score": said.score}
    return known | {"remark": said.remark, "regions": regions}


@contextmanager
def outputs(folder: Path | None) -> "Iterator[_Outputs]":
    """What is judged is written at the end, also when that comes too early."""
    outputs = _Outputs(folder)
    try:
        yield outputs
    finally:
        outputs.write()


class _Outputs:
    """predictions.csv, predictions.jsonl and pictures of what is not good, in a folder; without a folder nothing.

    Raises ResultsError if they cannot be written.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._rows: list[dict] = []
        self._records: list[dict] = []
        self._pictures: set[str] = set()
        if folder:
            self._remove_earlier()
            with writing(folder / "predictions.jsonl") as temporary:  # whether that can be, before any work is done
                temporary.touch()

    def _remove_earlier(self) -> None:
        """The pictures of an earlier run, which would be taken for this one's.

        Raises ResultsError for tables that are not an earlier run's.
        """
        records, table = self.folder / "predictions.jsonl", self.folder / "predictions.csv"
        try:
            lines = records.read_text(encoding="utf-8-sig").splitlines() if records.exists() else []
            pictures = [json.loads(line).get("picture") for line in lines]
            with table.open(encoding="utf-8-sig") if table.exists() else io.StringIO("name,") as file:
                ours = file.readline().startswith(("name,", "name;"))  # a spreadsheet may have saved it
        except (OSError, ValueError, AttributeError, RecursionError):
            ours = False
        if not ours:
            raise ResultsError(f"{records} or {table.name} there is no earlier run's: choose another folder for --out")
        for picture in pictures:
            picture = self.folder / _inside(str(picture or "-"))
            if picture.is_file() and picture.is_relative_to(self.folder / "pictures"):
                picture.unlink()

    def add(self, sample: Sample, predictions: "Predictions", i: int, record: dict) -> None:
        """What is said of one image."""
        if not self.folder:
            return
        if record["verdict"] != "good":
            name = self._free(sample.name)
            try:
                picture = draw(sample, predictions, i, record["regions"])
            except DataError as error:  # it was there a moment ago
                click.echo(str(error), err=True)
            else:
                with writing(self.folder / name) as temporary:
                    picture.save(temporary, "JPEG", quality=90)
                record["picture"] = name.as_posix()
        self._records.append(record)
        self._rows += predictions.of([i]).table().to_dict("records")

    def add_unreadable(self, name: str, sentence: str) -> None:
        """What is said of one that cannot be judged."""
        said = unreadable(name, sentence)
        self._records.append(said.record)
        self._rows.append({"name": said.name, "verdict": said.verdict, "remark": sentence})

    def _free(self, name: str) -> PurePosixPath:
        """A place for the picture, below the folder, that no other picture of this run has."""
        *folders, last = _inside(name).with_suffix("").parts
        folder = PurePosixPath("pictures", *map(file_name, folders))
        paths = (folder / f"{unique}.jpg" for unique in numbered(file_name(last)))
        free = next(path for path in paths if str(path).casefold() not in self._pictures)
        self._pictures.add(str(free).casefold())
        return free

    def write(self) -> None:
        """The two tables."""
        if not self.folder:
            return
        import pandas as pd

        columns = list(max(self._rows, key=len, default={"name": "", "verdict": ""}))
        if any("remark" in row for row in self._rows) and "remark" not in columns:
            columns.insert(columns.index("map_max"), "remark")
        with writing(self.folder / "predictions.csv") as temporary:
            table = pd.DataFrame(self._rows, columns=columns)
            if "label" in table:
                table = table.astype({"label": "Int64"})  # which unreadable ones have none of
            table.to_csv(temporary, index=False, errors="backslashreplace")
        with writing(self.folder / "predictions.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in self._records), encoding="utf-8")


def _inside(name: str) -> PurePosixPath:
    """A path without what would lead out of a folder that it is put behind."""
    inside = [part for part in PurePosixPath(name).parts if part not in ("/", "//", "..")]
    return PurePosixPath(*inside or ["_"])


def draw(sample: Sample, predictions: "Predictions", i: int, regions: Sequence[dict]) -> Image.Image:
    """The photograph, what is above the map's threshold outlined, and boxes around it with each one's index.

    Raises DataError if it cannot be read.
    """
    photograph = read_rgb(sample.source, bits=predictions.transform.bits, notes=Notes(), name=sample.where)
    scale = min(1.0, PICTURE / max(photograph.size))
    if scale < 1:
        photograph = photograph.resize([max(1, round(side * scale)) for side in photograph.size])
    line = max(1, round(max(photograph.size) / 500))
    if predictions.alarm_threshold_pixel is not None:
        laid = predictions.transform.place(predictions.maps[i], photograph.size[::-1])
        above = laid > predictions.alarm_threshold_pixel
        pixels = np.array(photograph)
        pixels[above & ~scipy.ndimage.binary_erosion(above, iterations=line)] = OUTLINE
        photograph = Image.fromarray(pixels)
    pen, font = ImageDraw.Draw(photograph), ImageFont.load_default(max(12, 8 * line))
    for region in regions:
        left, top, right, bottom = (side * scale for side in region["box"])
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=OUTLINE, width=line)
        if region["index"] is not None:
            at = (left + 2 * line, top + line)
            pen.text(at, f"{region['index']:.2f}", OUTLINE, font, stroke_width=line, stroke_fill=(255, 255, 255))
    return photograph
