"""Draw the picture of docs/architecture.md, the modules and the way of the data: python tools/architecture.py."""

from pathlib import Path

PATH = Path(__file__).resolve().parents[1] / "docs" / "architecture.svg"

# Every module once, dots are free places. A line is a layer: modules import only those above or to their left. The
# first and the last line are groups of their own, the others have a part of each of three.
GROUPS = ("files and safety", "data", "method", "results", "front ends")
LAYERS = """
errors notes progress arrays files reference_format
images sample_data     | weights starter calibration  | metrics
masks folders          | backbones tiles scoring      |
datasets data_check    | patches . appearance         |
transforms image_cache | coreset memory_bank suspects | drawing reasons
                       | cover growth model_folder    | predictions
                       | streaming detector           | results executors
                       | ensemble                     | charts plots
                       |                              | experiments report
interrupts judgements watch widgets app cli
"""
# The way of the data: from, to and what is handed over. One of the two imports the other.
FLOW = """
images masks
masks datasets
folders datasets
datasets transforms: samples
transforms detector: images
weights backbones
starter backbones
backbones patches: maps
patches coreset: rows
patches memory_bank
coreset detector: indices
memory_bank detector: distances
detector predictions: scores
metrics predictions
reasons predictions
predictions results: metrics
predictions plots
results charts
detector ensemble
ensemble experiments
plots report
"""

ROW, BOX, NAME, GAP = 64, 30, 22, 12  # heights in pixels: a line, a module, a group's name; and between groups
COLUMNS = (244, 360, 244)  # widths of the three groups side by side
WHOLE = sum(COLUMNS) + 2 * GAP
STYLE = """
:root { --ink: #1b1f24; --edge: #c3cad3; --box: #fff; --group: #f1f4f8; --way: #0b62c4 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --edge: #444c56; --box: #21262d; --group: #161b22; --way: #6cb6ff }
}
text { fill: var(--ink); font: 14px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; text-anchor: middle }
.name { font: bold 14px system-ui, sans-serif; text-anchor: start }
.what { fill: var(--way); font: 13px system-ui, sans-serif }
.what { paint-order: stroke; stroke: var(--group); stroke-width: 4px }
.group { fill: var(--group) }
.box { fill: var(--box); stroke: var(--edge) }
.way { fill: none; stroke: var(--way); stroke-width: 1.6; marker-end: url(#head) }
#head { fill: var(--way) }
"""


def layers() -> list[list[list[str]]]:
    """The modules by line and group."""
    return [[part.split() for part in line.split("|")] for line in LAYERS.strip("\n").splitlines()]


def flow() -> list[tuple[str, str, str]]:
    """(from, to, what is handed over or "")."""
    parts = (line.partition(":") for line in FLOW.strip().splitlines())
    return [(*way.split(), what.strip()) for way, _, what in parts]


def places() -> dict[str, tuple[float, float, float]]:
    """Module -> the middle of its box and the box's width."""
    found = {}
    for row, line in enumerate(layers()):
        x = GAP
        for part, room in zip(line, COLUMNS if len(line) > 1 else (WHOLE,), strict=True):
            widths = {name: 8.4 * len(name) + 16 for name in part if name != "."}
            free = (room - sum(widths.values())) / max(len(part), 1)
            for name in part:
                # places of one size stand in columns; in a whole line gaps of one size look better
                place = room / len(part) if len(line) > 1 else widths[name] + free
                if name in widths:
                    found[name] = round(x + place / 2, 1), _top(row) + ROW / 2, round(widths[name], 1)
                x += place
            x += GAP if part else room + GAP
    return found


def _top(row: int) -> int:
    """Of a line: below the names of the groups that begin above it."""
    return GAP + NAME + ROW * row + (GAP + NAME) * ((row > 0) + (row == len(layers()) - 1))


def picture() -> str:
    """The whole as SVG."""
    last = len(layers()) - 1
    across = [(GAP + sum(COLUMNS[:i]) + i * GAP, width, 1, last - 1) for i, width in enumerate(COLUMNS)]
    behind, words, boxes = [], [], []
    for name, (x, width, first, end) in zip(
        GROUPS, [(GAP, WHOLE, 0, 0), *across, (GAP, WHOLE, last, last)], strict=True
    ):
        y, height = _top(first) - NAME, _top(end) + ROW - _top(first) + NAME
        behind.append(f'<rect class="group" x="{x}" y="{y}" width="{width}" height="{height}" rx="8"/>')
        words.append(f'<text class="name" x="{x + 12}" y="{y + 20}">{name}</text>')
    for start, end, what in flow():
        (x, y, width), (to_x, to_y, to_width) = places()[start], places()[end]
        if to_y > y:
            arriving = sorted(places()[other][0] for other, *to in flow() if to[0] == end)
            to_x += 16 * (arriving.index(x) - (len(arriving) - 1) / 2)
            y, to_y = y + BOX / 2, to_y - BOX / 2 - 3
            way = f"{x},{(y + to_y) / 2} {to_x},{(y + to_y) / 2}"
        else:  # to the right
            x, to_x = x + width / 2, to_x - to_width / 2 - 3
            way = f"{(x + to_x) / 2:.1f},{y} {(x + to_x) / 2:.1f},{to_y}"
        behind.append(f'<path class="way" d="M{x:.1f},{y} C{way} {to_x:.1f},{to_y}"/>')
        words.append(f'<text class="what" x="{(x + to_x) / 2:.1f}" y="{(y + to_y) / 2 + 4}">{what}</text>')
    for name, (x, y, width) in places().items():
        boxes.append(
            f'<rect class="box" x="{x - width / 2:.1f}" y="{y - BOX / 2}" width="{width}" height="{BOX}" rx="5"/>'
            f'<text x="{x}" y="{y + 5}">{name}</text>'
        )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WHOLE + 2 * GAP} {_top(last) + ROW + GAP}">',
        f"<style>{STYLE}</style>",
        '<marker id="head" viewBox="0 0 8 8" refX="5" refY="4" markerWidth="6" markerHeight="6" orient="auto">',
        '<path d="M0,0 L8,4 L0,8 z"/></marker>',
    )
    return "\n".join([*head, *behind, *words, *boxes, "</svg>", ""])


if __name__ == "__main__":
    PATH.write_text(picture(), encoding="utf-8")
