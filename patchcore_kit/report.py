"""Predictions -> one HTML page, to read, print or send on: verdicts, where and why, in a file that needs nothing else.

Pictures lie in the page, which asks no network for anything, and names no one but those it was given. What a photograph
may cost is shared out before it is drawn: a page of many photographs has smaller pictures, not more bytes.
"""

import base64
import hashlib
import html
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from patchcore_kit.calibration import SURE, Threshold
from patchcore_kit.datasets import Sample, as_samples
from patchcore_kit.errors import ResultsError, SettingsError
from patchcore_kit.files import user_path, writing
from patchcore_kit.images import read_rgb
from patchcore_kit.notes import Notes
from patchcore_kit.plots import map_scale, score_label
from patchcore_kit.predictions import Predictions
from patchcore_kit.reasons import AROUND, Box, Region
from patchcore_kit.transforms import Transform

LIMIT = 5_000_000  # bytes of a page
MOST_STRANGE, MOST_GOOD, MOST_ROWS = 150, 300, 10_000  # photographs with large and small pictures, and in the table
WITHOUT_VERDICT = 24  # photographs that are shown large where no threshold says which
SHARE_GOOD, BYTES_GOOD = 0.3, 6000  # of the room at most for small pictures, and for each
SIDE = 360  # at which a photograph is shown: of a square with its area
FAR = 10.0  # times the threshold, where the histogram ends
CONTOURS = (1.0, 1.5, 2.0)  # times the threshold
SHARES = (0.5, 0.75)  # of the maps' range, without a threshold
FINE = 128  # points of a map's longer side that outlines are drawn through
CEILING, FLOOR, START, WIDE = 62, 200, 5.0, 93.0  # of the histogram: pixels from above, per cent from the left
VERDICTS = {"defective": ("■", "defective"), "look": ("▲", "to look at"), "good": ("●", "good"), None: ("", "")}
DESCENDING = ' aria-sort="descending"'
COLOURS = {"good": "#0072b2", "look": "#f0c350", "defective": "#d55e00", None: "#666666"}  # bars, dark at the edges


@dataclass(frozen=True, slots=True)
class _Size:
    """How much of a photograph is shown: its side in pixels, the JPEGs' quality, and regions with pictures."""

    side: int
    quality: int
    regions: int


LARGE = [
    _Size(*numbers)
    for numbers in (
        (420, 85, 5), (420, 75, 5), (400, 65, 5), (360, 60, 5), (320, 60, 4), (300, 55, 3), (280, 50, 2), (240, 50, 1),
        (200, 45, 1), (160, 40, 1), (120, 30, 0),
    )
]  # fmt: skip
SMALL = [_Size(*numbers) for numbers in ((120, 75, 0), (120, 60, 0), (96, 50, 0), (72, 40, 0), (48, 30, 0))]


def write_report(
    path: Path | str,
    samples: Sequence[Sample],
    predictions: Predictions,
    *,
    facts: Mapping[str, str] | None = None,
    failed: Sequence[tuple[str, str]] = (),
    title: str = "Report",
) -> None:
    """Write one HTML page about these predictions, below 5 MB, the same bytes whenever it is written again.

    samples: the photographs, in the order of the predictions. facts: what was judged with what, shown as a table.
    failed: name and reason of each photograph that could not be judged.

    Raises SettingsError for samples that the predictions were not made of, DataError for one that cannot be read,
    ResultsError if the page cannot be written, and for predictions that were saved by an earlier version.
    """
    samples = as_samples(samples)
    if tuple(sample.name for sample in samples) != predictions.names:
        raise SettingsError(
            f"{predictions} do not belong to these {len(samples)} samples: give those that they were made of, in order"
        )
    if samples and (predictions.transform is None or predictions.sizes is None):
        raise ResultsError("these predictions do not say how large the photographs were: predict again")
    content = _Page(samples, predictions, facts or {}, failed, title).text().encode("utf-8", "replace")
    with writing(user_path(path)) as temporary:
        temporary.write_bytes(content)


class _Page:
    """The page's parts, in the order in which they are read."""

    def __init__(
        self,
        samples: Sequence[Sample],
        predictions: Predictions,
        facts: Mapping[str, str],
        failed: Sequence[tuple[str, str]],
        title: str,
    ):
        self.samples = samples
        self.predictions = predictions
        self.facts = facts
        self.failed = failed
        self.title = title
        self.verdicts, self.index = predictions.verdicts, predictions.index
        self.judged = self.index is not None
        self.order = np.argsort(-predictions.scores, kind="stable").tolist()  # strangest first
        unlike_good = [i for i in self.order if self.verdicts[i] != "good"]
        strange = unlike_good if self.judged else self.order[:WITHOUT_VERDICT]
        self.strange, self.good = strange[:MOST_STRANGE], self.order[len(strange) :][:MOST_GOOD]
        self.left_out = len(strange) - len(self.strange), len(samples) - len(strange) - len(self.good)
        if predictions.alarm_threshold_pixel is None:
            low, high = map_scale(predictions)
            self.levels = [low + share * (high - low) for share in SHARES]
        else:
            self.levels = [times * predictions.alarm_threshold_pixel for times in CONTOURS]

    def text(self) -> str:
        """The page; pictures are drawn when all else is known, for what room that leaves."""
        strange, good = ("Defective, or to look at", "Good") if self.judged else ("The strangest", "The others")
        parts = {
            "What was judged, and with what": self._facts(),
            "What the thresholds promise": self._promises(),
            "All photographs at a glance": self._histogram(),
            "Could not be judged": self._failed(),
            strange: "",
            good: "",
            "Table of all photographs": self._table(),
        }
        room = max(LIMIT // 10, LIMIT - 2000 - _bytes(self._around(parts)))
        parts[good] = self._thumbnails(min(SHARE_GOOD * room, BYTES_GOOD * len(self.good)))
        parts[strange] = self._cards(room - _bytes(parts[good]))
        return self._around({heading: part for heading, part in parts.items() if part})

    def _around(self, parts: Mapping[str, str]) -> str:
        """The page with these parts, by heading."""
        links, sections = [], []
        for number, (heading, part) in enumerate(parts.items(), 1):
            links.append(f'<li><a href="#part{number}">{heading}</a></li>')
            sections.append(
                f'<section aria-labelledby="part{number}">\n<h2 id="part{number}" tabindex="-1">{heading}</h2>\n'
                f"{part}</section>\n"
            )
        return PAGE.substitute(
            title=_safe(self.title),
            style=STYLE,
            script=SCRIPT,
            hash=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
            summary=self._summary(),
            links="".join(links),
            sections="".join(sections),
        )

    # what is said at the top

    def _summary(self) -> str:
        """One sentence, and which photographs are unlike those of training."""
        n, more = len(self.samples), ""
        if self.failed:
            more = f"; {len(self.failed)} could not be judged"
        photographs = f"photograph{'s' * (n != 1)}"
        if not n:
            said = f"No photographs were judged{more}."
        elif self.judged:
            of = Counter(self.verdicts)
            are = "is" if of["defective"] == 1 else "are"
            of_all = f"{of['defective']} of {n} {photographs} {are} defective"
            said = f"{of_all}, {of['look']} to look at, {of['good']} good{more}."
        else:
            said = f"{n} {photographs} {_was(n)} scored{more}. The model has no threshold, so there are no verdicts."
        unlike = sum(map(bool, self.predictions.remarks))
        if unlike:
            said += (
                f" {unlike} {_was(unlike, 'is', 'are')} unlike all training images in brightness, sharpness or size, "
                "which makes a verdict less certain: a remark stands beside each."
            )
        return f'<p class="summary">{said}</p>'

    def _facts(self) -> str:
        facts = {str(name): str(value) for name, value in self.facts.items()}
        if self.predictions.weights and self.predictions.weights not in facts.values():
            facts["Weights of the network"] = self.predictions.weights
        rows = "".join(f'<tr><th scope="row">{_safe(k)}</th><td>{_safe(v)}</td></tr>\n' for k, v in facts.items())
        return f'<table class="facts"><tbody>\n{rows}</tbody></table>\n' if rows else ""

    def _promises(self) -> str:
        """Both thresholds in plain words, or that there are none."""
        if not self.judged:
            return (
                "<p>None: the model has no threshold, for lack of good images to take it from. Photographs are in the "
                "order of their scores, the strangest first; which of them are good, scores alone do not say.</p>\n"
            )
        known, p = self.predictions.calibration, self.predictions
        lines = [
            f"The index of a photograph is its score over the threshold, which is {p.alarm_threshold:.4g}. <b>To look "
            f"at</b> is what has an index above 1: at most {_percent(known.look.rate)} of good photographs should. "
            + _promise(known.look),
            f"<b>Defective</b> is what has an index above {p.defective_threshold / p.alarm_threshold:.2f}: at most "
            f"{_percent(known.defective.rate)} of good photographs should. " + _promise(known.defective),
            "The thresholds come from good photographs alone: how many defects stay below them, they do not say.",
        ]
        return "<ul>\n" + "".join(f"<li>{line}</li>\n" for line in lines) + "</ul>\n"

    def _histogram(self) -> str:
        """All indexes, or scores, with both thresholds; as bars and in words."""
        p = self.predictions
        if not len(p.scores):
            return ""
        values = self.index if self.judged else p.scores
        limits = {}
        if self.judged:
            limits = {"to look at above": 1.0, "defective above": p.defective_threshold / p.alarm_threshold}
        name = "index" if self.judged else score_label(p.scoring)
        middle = f"half of them up to {_short(float(np.median(values)))}" if len(values) > 1 else ""
        said = f"The {name} of {len(values)} photograph{'s' * (len(values) != 1)}: from {_short(values.min())} to "
        said += ", ".join(filter(None, [_short(values.max()), middle])) + "."
        if self.judged:
            of = Counter(self.verdicts)
            look, defective = (f"{limit:.2f}" for limit in limits.values())
            said += f" {of['good']} up to {look} (good, blue), {of['look']} from there to {defective} (to look at, "
            said += f"yellow), {of['defective']} above (defective, orange)."
        drawn = _bars(values, self.verdicts, limits, name, said)
        return f"<figure>\n{drawn}<figcaption>{_safe(said)}</figcaption>\n</figure>\n"

    def _failed(self) -> str:
        rows = "".join(f"<li><b>{_name(name)}</b>: {_safe(reason)}</li>\n" for name, reason in self.failed)
        return f"<ul>\n{rows}</ul>\n" if rows else ""

    # photographs

    def _cards(self, room: float) -> str:
        """The strange photographs, each with its reasons."""
        if not self.strange:
            return ""
        first = self._legend() + _only(len(self.strange), self.left_out[0])
        first += '<p class="switch"><label><input type="checkbox" id="marks" checked> Show the marks on the photographs'
        first += "</label></p>\n"
        return first + "".join(self._fitted(self.strange, self._card, LARGE, room - _bytes(first)))

    def _thumbnails(self, room: float) -> str:
        if not self.good:
            return ""
        first = _only(len(self.good), self.left_out[1])
        rows = self._fitted(self.good, self._thumbnail, SMALL, room - len(first))
        return f'{first}<ul class="thumbs">\n{"".join(rows)}</ul>\n'

    def _fitted(
        self,
        images: Sequence[int],
        drawer: Callable[[int, Image.Image], Callable[[_Size], str]],
        sizes: Sequence[_Size],
        room: float,
    ) -> Iterator[str]:
        """Each photograph as large as its share of the room lets it be; what one leaves, the next ones have."""
        at = 0
        for done, i in enumerate(images):
            sample, bits = self.samples[i], self.predictions.transform.bits
            photograph = read_rgb(sample.source, bits=bits, notes=Notes(), name=sample.where)  # noted when scored
            draw, share = drawer(i, photograph), room / (len(images) - done)
            while _bytes(text := draw(sizes[at])) > share and at < len(sizes) - 1:
                at += 1
            at = max(0, at - 1)  # the next one is much alike
            room -= _bytes(text)
            yield text

    def _legend(self) -> str:
        p = self.predictions
        if p.alarm_threshold_pixel is not None:
            where = "where the map of the photograph lies above its threshold, deeper from 1.5 and from 2 times on"
        else:
            low, high = SHARES
            where = f"where a map reaches {_percent(low)} and {_percent(high)} of the range of all maps"
        more = ""
        if p.evidence is not None:
            more = (
                " Boxes are regions, the strongest first. Beside them: the strangest patch of each, outlined, as the "
                "network saw it, and the patches of good training images that are most like it, with how far they are "
                "from it."
            )
        else:
            more = " There are no reasons beside: these predictions hold none, as those of an ensemble do not."
        if any(p.transform.seen(tuple(size)) < 1 for size in p.sizes.tolist()):
            more += " What is shaded the network has not seen."
        return f"<p>Strangest first. Outlined and tinted is {where}.{more}</p>\n"

    def _card(self, i: int, photograph: Image.Image) -> Callable[[_Size], str]:
        """A photograph with its verdict, marks and reasons, to be drawn at some size."""
        p, name, (width, height) = self.predictions, self.samples[i].name, photograph.size
        regions = p.explain(i).regions if p.evidence is not None else ()
        places = [_place(region.box, photograph.size) for region in regions]
        marked = "; ".join(f"region {number} {place}" for number, place in enumerate(places, 1))
        alt = f"Photograph {name}: {self._said(i)}" + (f". Marked: {marked}" if marked else "")
        shown, reduced = _shown_size(photograph.size), _reduced(photograph, LARGE[0].side)
        marks = _marks(regions, _outlines(p.maps[i], self.levels, p.transform, photograph.size), p.transform,
                       photograph.size, shown)  # fmt: skip
        count = f", {len(regions)} region{'s' * (len(regions) != 1)} marked" if regions else ""

        def draw(size: _Size) -> str:
            reasons = "".join(
                self._region(number, region, place, name, size)
                for number, (region, place) in enumerate(zip(regions, places, strict=True), 1)
            )
            listed = f'<ol class="regions">\n{reasons}</ol>\n' if reasons else ""
            picture = _jpeg(_reduced(reduced, size.side), size.quality)
            return (
                f'<article id="photo{i}" tabindex="-1" aria-labelledby="name{i}">\n<div class="head">'
                f'<h3 id="name{i}">{_name(name)}</h3>\n{self._verdict(i)}</div>\n{self._remark(i)}'
                f'<div class="pair">\n<figure class="photo"><div class="frame">'
                f'<img src="{picture}" alt="{_safe(alt)}" width="{shown[0]}" height="{shown[1]}">{marks}</div>'
                f"<figcaption>{width} x {height} pixels{count}</figcaption></figure>\n{listed}</div>\n</article>\n"
            )

        return draw

    def _region(self, number: int, region: Region, place: str, name: str, size: _Size) -> str:
        """One reason: in words, and as pictures where there is room for them."""
        left, top, right, bottom = region.box
        index = "" if region.index is None else f"index {region.index:.2f}, "
        words = f"{index}{place}, {region.area} pixels, from {left},{top} to {right},{bottom}"
        if region.index is not None and region.index <= 1:
            words += "; nothing in the map is above its threshold, so this is the strangest patch"
        nearest = region.nearest
        if not nearest:
            words += "; which training images are most like it, the model does not record"
        if number > size.regions:
            if nearest:
                words += f"; the nearest normal patch is in {nearest[0].name}, distance {nearest[0].distance:.3g}"
            return f"<li><p><b>Region {number}</b>: {_safe(words)}</p></li>\n"
        alt = f"Region {number} of {name}, {place}: the strangest patch and what lies around it"
        crops = [_crop(region.picture, size, alt, "strange", "this photograph")]
        crops += [
            _crop(
                one.picture, size, f"Normal patch {k} like region {number}, from training image {one.name}", "normal",
                f"{_name(one.name)}<br>distance {one.distance:.3g}",
            )
            for k, one in enumerate(nearest, 1)
        ]  # fmt: skip
        return f'<li><p><b>Region {number}</b>: {_safe(words)}</p>\n<div class="crops">\n{"".join(crops)}</div></li>\n'

    def _thumbnail(self, i: int, photograph: Image.Image) -> Callable[[_Size], str]:
        name, (width, height) = self.samples[i].name, _shown_size(photograph.size, SMALL[0].side)
        alt, reduced = _safe(f"Photograph {name}: {self._said(i)}"), _reduced(photograph, SMALL[0].side)

        def draw(size: _Size) -> str:
            picture = _jpeg(_reduced(reduced, size.side), size.quality)
            return (
                f'<li id="photo{i}" tabindex="-1"><figure>'
                f'<img src="{picture}" alt="{alt}" width="{width}" height="{height}">'
                f"<figcaption>{_name(name)}<br>{self._number(i)}{self._remark(i)}</figcaption></figure></li>\n"
            )

        return draw

    def _said(self, i: int) -> str:
        """Verdict and index, or score."""
        return ", ".join(filter(None, [VERDICTS[self.verdicts[i]][1], self._number(i)]))

    def _number(self, i: int) -> str:
        p = self.predictions
        return f"index {self.index[i]:.2f}" if self.judged else f"score {p.scores[i]:.4g}"

    def _verdict(self, i: int) -> str:
        verdict = self.verdicts[i]
        sign = f'<span aria-hidden="true">{VERDICTS[verdict][0]}</span> ' if verdict else ""
        said = self._said(i)
        return f'<p class="verdict {verdict or "none"}">{sign}{said[0].upper()}{said[1:]}</p>\n'

    def _remark(self, i: int) -> str:
        remark = self.predictions.remarks[i] if self.predictions.remarks else ""
        return f'<p class="remark"><b>Unlike training:</b> {_safe(remark)}</p>\n' if remark else ""

    # the table

    def _table(self) -> str:
        """A row for each photograph; a script makes its headings buttons that sort."""
        if not self.samples:
            return ""
        p, pictured = self.predictions, {*self.strange, *self.good}
        numbers = {"Score": p.scores} if not self.judged else {"Index": self.index, "Score": p.scores}
        remarks = any(p.remarks)
        heads = ["Photograph", *["Verdict"] * self.judged, *numbers, *["Remark"] * remarks]
        sorted_by = "Index" if self.judged else "Score"
        head = "".join(
            f'<th scope="col"{" data-numbers" * (name in numbers or name == "Verdict")}'
            f"{DESCENDING * (name == sorted_by)}>{name}</th>"
            for name in heads
        )
        ranks, rows = list(VERDICTS), []
        for i in self.order[:MOST_ROWS]:
            name = _name(p.names[i])
            cells = [f'<a href="#photo{i}">{name}</a>' if i in pictured else name]
            if self.judged:
                verdict = self.verdicts[i]
                cells.append(f'<td data-value="{-ranks.index(verdict)}">{VERDICTS[verdict][1]}')
            for values in numbers.values():
                cells.append(f'<td class="number" data-value="{values[i]:.6g}">{_short(values[i])}')
            if remarks:
                cells.append(f'<td class="said">{_safe(p.remarks[i])}')
            rows.append(f'<tr><th scope="row">{cells[0]}</th>{"".join(cell + "</td>" for cell in cells[1:])}</tr>\n')
        less = len(self.samples) - len(rows)
        said = f"<p>Only the strangest {len(rows)} are listed, {less} are not.</p>\n" if less else ""
        caption = f"Strangest first; {len(rows)} photograph{'s' * (len(rows) != 1)}"
        return (
            f'{said}<div class="scroller" tabindex="0" role="region" aria-label="Table of all photographs">\n'
            f'<table class="all"><caption>{caption}</caption>\n<thead><tr>{head}</tr></thead>\n'
            f'<tbody>\n{"".join(rows)}</tbody></table></div>\n<p id="sorted" role="status" class="unseen"></p>\n'
        )


# words


def _safe(text: object) -> str:
    return html.escape(str(text))


def _name(name: str) -> str:
    """A file's name, which may be written from right to left; lines break where it has parts."""
    return f"<bdi>{_safe(name).replace('/', '/<wbr>').replace('_', '_<wbr>')}</bdi>"


def _short(value: float) -> str:
    return f"{value:.2f}" if 0.1 <= abs(value) < 1000 else f"{value:.3g}"


def _only(shown: int, more: int) -> str:
    said = f"<p>Only the strangest {shown} are shown with pictures; {more} more {_was(more, 'is', 'are')} in the table"
    return f"{said} below.</p>\n" if more else ""


def _percent(share: float) -> str:
    return f"{100 * share:.3g}\u00a0%"


def _was(n: int, one: str = "was", more: str = "were") -> str:
    return one if n == 1 else more


def _promise(threshold: Threshold) -> str:
    """How far that can be relied on."""
    t, enough = threshold, ""
    if t.n < t.needed:
        enough = f" It takes {t.needed} to promise at most {_percent(t.rate)}."
    if t.extrapolated:
        return f"With {t.n} good images this is extrapolated, which promises nothing.{enough}"
    return (
        f"Going by {t.n} good images, the true share lies between {_percent(round(t.low, 3))} and "
        f"{_percent(round(t.high, 3))} ({_percent(SURE)} confidence).{enough}"
    )


def _place(box: Box, size: tuple[int, int]) -> str:
    """Where the middle of a box is in a photograph of (width, height), in words."""
    x, y = ((low + high) / 2 / pixels for low, high, pixels in zip(box[:2], box[2:], size, strict=True))
    down, across = ((low, "middle", high)[min(2, int(3 * at))] for at, low, high in
                    ((y, "top", "bottom"), (x, "left", "right")))  # fmt: skip
    return "in the middle" if down == across else f"at the {' '.join(w for w in (down, across) if w != 'middle')}"


# pictures


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def _shown_size(size: tuple[int, int], side: int = SIDE) -> tuple[int, int]:
    """(width, height) in proportion, with the area of a square of `side`, no side longer than twice that."""
    scale = min(side / (size[0] * size[1]) ** 0.5, 2 * side / max(size))
    return tuple(max(1, round(pixels * scale)) for pixels in size)


def _reduced(photograph: Image.Image, side: int) -> Image.Image:
    """A photograph at this size, or as small as it is."""
    size = _shown_size(photograph.size, side)
    return photograph if size >= photograph.size else photograph.resize(size, Image.Resampling.LANCZOS, reducing_gap=2)


def _jpeg(image: Image.Image, quality: int) -> str:
    """A picture as an address that holds it."""
    with io.BytesIO() as file:
        image.save(file, "JPEG", quality=quality, optimize=True)
        return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _crop(picture: np.ndarray, size: _Size, alt: str, kind: str, caption: str) -> str:
    """A patch with what lies around it. caption: in HTML."""
    height, width = picture.shape[:2]
    return (
        f'<figure class="crop {kind}"><div class="frame"><img src="{_jpeg(Image.fromarray(picture), size.quality)}" '
        f'alt="{_safe(alt)}" width="{width}" height="{height}"></div><figcaption>{caption}</figcaption>'
        "</figure>\n"
    )


def _marks(
    regions: Sequence[Region],
    outlines: Sequence[Sequence[np.ndarray]],
    transform: Transform,
    size: tuple[int, int],
    shown: tuple[int, int],
) -> str:
    """Outlines of the map, boxes of regions and what was not seen, to lay over a photograph of (width, height)."""
    across, down = (pixels / whole for pixels, whole in zip(shown, size, strict=True))
    width, height = shown
    parts = []
    left, top, right, bottom = _seen(transform, size)
    if (left, top, right, bottom) != (0, 0, *size):
        inside = f"M{left * across:.1f} {top * down:.1f}V{bottom * down:.1f}H{right * across:.1f}V{top * down:.1f}Z"
        parts.append(f'<path class="left-out" fill-rule="evenodd" d="M0 0H{width}V{height}H0Z{inside}"/>')
    for level, outline in enumerate(outlines):
        lines = "".join("M" + "L".join(f"{x * across:.1f} {y * down:.1f}" for x, y in line) + "Z" for line in outline)
        parts += [f'<path class="under" d="{lines}"/><path class="heat edge" d="{lines}"/>'] * (level == 0)
        parts += [f'<path class="heat" d="{lines}"/>'] * (level > 0)
    for number, region in enumerate(regions, 1):
        left, right = (x * across for x in region.box[::2])
        top, bottom = (y * down for y in region.box[1::2])
        box = f'x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}"'
        at = f'x="{min(left + 1, width - 16):.1f}" y="{top - 5 if top > 22 else min(top + 19, height - 4):.1f}"'
        parts.append(f'<rect class="under" {box}/><rect class="box" {box}/><text {at}>{number}</text>')
    return f'<svg class="marks" viewBox="0 0 {width} {height}" aria-hidden="true">{"".join(parts)}</svg>'


def _seen(transform: Transform, size: tuple[int, int]) -> Box:
    """What the network sees of a photograph of (width, height)."""
    (across, left), (down, top) = _laid(transform, size)
    height, width = transform.size
    ends = (left + width) * across, (top + height) * down
    return max(0, round(left * across)), max(0, round(top * down)), *map(min, map(round, ends), size)


def _outlines(
    values: np.ndarray, levels: Sequence[float], transform: Transform, size: tuple[int, int]
) -> list[list[np.ndarray]]:
    """For each level that a map reaches the closed lines (n, 2) around what is above, as `Transform.place` lays it."""
    step = max(1, round(max(values.shape) / FINE))
    coarse = np.pad(values[::step, ::step], 1, constant_values=float(values.min()))  # so that lines close at the edges
    levels = [level for level in levels if coarse.min() < level < coarse.max()]
    if not levels:
        return []
    drawn = Figure().add_subplot().contour(coarse, levels)
    (across, left), (down, top) = _laid(transform, size)
    found = []
    for path in drawn.get_paths():
        lines = [(line - 1) * step + 0.5 for line in path.to_polygons(closed_only=False)]
        found.append([np.stack([(x + left) * across, (y + top) * down], axis=1) for x, y in (one.T for one in lines)])
    return found


def _laid(transform: Transform, size: tuple[int, int]) -> tuple[tuple[float, int], tuple[float, int]]:
    """Across and down: pixels of a photograph of (width, height) for one of the network's, and of these left out."""
    whole, cut = transform.resized(size[::-1])[::-1], transform.size[::-1]
    return tuple((pixels / w, round((w - c) / 2)) for pixels, w, c in zip(size, whole, cut, strict=True))


# the histogram


def _bars(
    values: np.ndarray, verdicts: np.ndarray, limits: Mapping[str, float], name: str, said: str, bins: int = 32
) -> str:
    """A histogram that is as wide as there is room; its letters keep their size, for x is in per cent."""
    end = max(1.25 * max(limits.values(), default=0), float(values.max())) or 1.0
    top = min(end, max(FAR, 1.25 * max(limits.values()))) if limits else end
    edges = np.linspace(0, top, bins + 1)
    counts = {
        verdict: np.histogram(values[verdicts == verdict].clip(0, top), edges)[0]
        for verdict in COLOURS
        if (verdicts == verdict).any()
    }
    most = max(1, int(sum(counts.values()).max()))
    parts = []
    for share in (0.5, 1.0):
        y = _up(share)
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>')
        if share == 1 or most % 2 == 0:
            parts.append(f'<text x="0" y="{y - 4}">{share * most:.0f}</text>')
    floor = np.zeros(bins)
    for verdict, of_verdict in counts.items():
        for b in np.flatnonzero(of_verdict):
            y, low = _up((floor[b] + of_verdict[b]) / most), _up(floor[b] / most)
            parts.append(
                f'<rect x="{_along(b / bins)}" width="{WIDE / bins - 0.25:.2f}%" y="{y}" height="{low - y:.1f}" '
                f'fill="{COLOURS[verdict]}"/>'
            )
        floor += of_verdict
    parts.append(f'<line class="axis" x1="0" x2="100%" y1="{FLOOR}" y2="{FLOOR}"/>')
    for tick in MaxNLocator(4).tick_values(0, top):
        if tick <= top:
            more = " and more" if end > top and tick == top else ""
            anchor = "end" if tick > 0.9 * top else "middle" if tick else "start"
            where = f'x="{_along(tick / top)}" y="{FLOOR + 18}" text-anchor="{anchor}"'
            parts.append(f"<text {where}>{tick:g}{more}</text>")
    parts.append(f'<text x="50%" y="{FLOOR + 38}" text-anchor="middle">{_safe(name)}</text>')
    for row, (words, limit) in enumerate(limits.items()):
        x, y, anchor = _along(limit / top), 14 + 18 * row, "end" if limit > 0.55 * top else "start"
        gap = -5 if anchor == "end" else 5
        parts.append(
            f'<line class="limit" x1="{x}" x2="{x}" y1="{y - 10}" y2="{FLOOR}"/>'
            f'<text x="{x}" dx="{gap}" y="{y}" text-anchor="{anchor}">{words} {limit:.2f}</text>'
        )
    label = _safe(f"Histogram. {said}")
    return (
        f'<svg class="bars" width="100%" height="{FLOOR + 46}" role="img" aria-label="{label}">{"".join(parts)}</svg>\n'
    )


def _up(share: float) -> float:
    return round(FLOOR - share * (FLOOR - CEILING), 1)


def _along(share: float) -> str:
    return f"{START + share * WIDE:.2f}%"


# what does not change

PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
script-src 'sha256-$hash'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<a class="skip" href="#main">Skip to the report</a>
<header>
<h1>$title</h1>
$summary
<nav aria-label="Parts of this page"><ul>$links</ul></nav>
</header>
<main id="main" tabindex="-1">
$sections</main>
<script>$script</script>
</body>
</html>
""")

STYLE = """\
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1rem; background: #fff; color: #1c1c1c;
  font: 1rem/1.5 system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0.5rem 0; font-size: 1.9rem; line-height: 1.2; }
h2 { margin: 2.5rem 0 0.75rem; padding-bottom: 0.25rem; border-bottom: 2px solid #d0d0d0; font-size: 1.35rem; }
h3 { margin: 0; font-size: 1.05rem; }
p { margin: 0.5rem 0; }
a { color: #00508a; }
:focus-visible { outline: 3px solid #0b57d0; outline-offset: 2px; }
[tabindex="-1"]:focus { outline: none; }
.skip { position: absolute; left: -999rem; }
.skip:focus { left: 1rem; top: 0.5rem; padding: 0.5rem 1rem; background: #fff; z-index: 2; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.summary { font-size: 1.2rem; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; margin: 1rem 0; padding: 0; list-style: none; }
figure { margin: 0; }
figcaption { margin-top: 0.25rem; font-size: 0.875rem; color: #444; }
table { border-collapse: collapse; }
th, td { padding: 0.3rem 0.75rem; border-bottom: 1px solid #d0d0d0; text-align: left; vertical-align: top; }
.facts th { font-weight: 600; padding-left: 0; }
.bars { display: block; overflow: visible; font-size: 13px; }
.bars text { fill: #1c1c1c; }
.bars rect { stroke: #222; stroke-width: 0.5; }
.bars .grid { stroke: #ddd; }
.bars .axis { stroke: #444; }
.bars .limit { stroke: #222; stroke-width: 1.5; stroke-dasharray: 5 3; }
article { margin: 1.25rem 0; padding: 1rem; border: 1px solid #c8c8c8; border-radius: 6px; break-inside: avoid; }
.head { display: flex; flex-wrap: wrap; gap: 0.25rem 1rem; align-items: center; }
.verdict { margin: 0; padding: 0.1rem 0.6rem; border: 2px solid; border-radius: 4px;
  font-weight: 700; }
.defective { color: #9c3400; background: #fff1e8; }
.look { color: #6b4e00; background: #fff8dc; }
.none { color: #1c1c1c; background: #f2f2f2; }
.remark { margin: 0.4rem 0; padding: 0.3rem 0.6rem; border-left: 5px solid #7a3b8f; background: #f8effb;
  color: #4d1f5c; }
.pair { display: flex; flex-wrap: wrap; gap: 1rem 1.5rem; align-items: flex-start; margin-top: 0.5rem; }
.photo { flex: 0 1 auto; max-width: 100%; }
.frame { position: relative; display: inline-block; max-width: 100%; line-height: 0; vertical-align: top; }
.frame img, .thumbs img { max-width: 100%; height: auto; }
.marks { position: absolute; inset: 0; width: 100%; height: 100%; }
.marks rect, .marks path { fill: none; vector-effect: non-scaling-stroke; }
.marks .under { stroke: #fff; stroke-width: 4; stroke-opacity: 0.75; }
.marks .heat { fill: #ff4d00; fill-opacity: 0.13; }
.marks .edge { stroke: #c02000; stroke-width: 1.5; }
.marks .box { stroke: #111; stroke-width: 1.5; stroke-dasharray: 6 3; }
.marks text { font: 700 18px system-ui, sans-serif; fill: #111; stroke: #fff; stroke-width: 4; paint-order: stroke; }
.marks .left-out { fill: #777; fill-opacity: 0.55; stroke: #111; stroke-width: 1; }
body:has(#marks:not(:checked)) .marks { visibility: hidden; }
.regions { flex: 1 1 18rem; min-width: 0; margin: 0; padding: 0; list-style: none; }
.regions li + li { margin-top: 1rem; }
.regions p { margin: 0 0 0.4rem; font-size: 0.9375rem; }
.crops { display: grid; grid-template-columns: repeat(4, minmax(0, 8.5rem)); gap: 0.5rem; }
.crop .frame { display: block; }
.crop img { display: block; width: 100%; border: 1px solid #888; }
.crop .frame::after { content: ""; position: absolute; inset: $inset; border: 2px solid #00508a;
  outline: 1px solid #fff; }
.crop.strange .frame::after { border-color: #c02000; }
.crop figcaption { font-size: 0.8125rem; line-height: 1.3; }
.thumbs { display: grid; grid-template-columns: repeat(auto-fill, minmax(7.5rem, 1fr)); gap: 1rem; margin: 0;
  padding: 0; list-style: none; }
.thumbs figcaption { font-size: 0.8125rem; line-height: 1.35; }
.thumbs .remark { font-size: 0.8125rem; }
.scroller { overflow-x: auto; max-width: 100%; }
.all { width: 100%; }
.all caption { padding: 0 0 0.5rem; text-align: left; color: #444; }
.all th, .all td { overflow-wrap: normal; }
.all thead th { border-bottom: 2px solid #888; white-space: nowrap; }
.all tbody th { font-weight: 400; }
.all .said { min-width: 16rem; }
.all .number { font-variant-numeric: tabular-nums; }
.all button { padding: 0.2rem 0; border: 0; background: none; color: #00508a; font: inherit; font-weight: 600;
  cursor: pointer; }
.all button::after { content: " \\2195"; }
.all [aria-sort="ascending"] button::after { content: " \\2191"; }
.all [aria-sort="descending"] button::after { content: " \\2193"; }
@media (max-width: 30rem) {
  body { padding: 0.75rem; }
  article { padding: 0.75rem; }
  .crops { grid-template-columns: repeat(2, minmax(0, 1fr)); }
}
@media print {
  @page { margin: 15mm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .skip, nav, .switch { display: none; }
  .verdict, .remark, .bars, .marks, .crop .frame { print-color-adjust: exact; }
  .marks { visibility: visible !important; }
  .photo img { max-width: 70mm; }
  h2, h3 { break-after: avoid; }
  li, tr, figure { break-inside: avoid; }
  .scroller { overflow: visible; }
  .all button::after { content: "" !important; }
  a { color: inherit; text-decoration: none; }
}
""".replace("$inset", f"{50 - 50 / AROUND:g}%")

SCRIPT = """
"use strict";
const table = document.querySelector("table.all");
for (const head of table ? table.tHead.rows[0].cells : []) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => sort(head));
}
function sort(head) {
  const before = head.getAttribute("aria-sort"), numbers = "numbers" in head.dataset;
  const order = before ? (before === "ascending" ? "descending" : "ascending") : (numbers ? "descending" : "ascending");
  const sign = order === "ascending" ? 1 : -1, body = table.tBodies[0];
  const value = row => {
    const cell = row.cells[head.cellIndex];
    return numbers ? Number(cell.dataset.value) : cell.textContent;
  };
  const words = new Intl.Collator("en", { numeric: true });
  const compare = (a, b) => numbers ? value(a) - value(b) : words.compare(value(a), value(b));
  body.append(...[...body.rows].sort((a, b) => sign * compare(a, b)));
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  table.caption.textContent = `Sorted by ${head.textContent}, ${order}; ${body.rows.length} photographs`;
  document.getElementById("sorted").textContent = table.caption.textContent;
}
"""
