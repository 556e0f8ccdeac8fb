"""The charts of results tables: metrics by category and by image size, and what categories lack."""

import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from patchcore_kit.drawing import ACCENT, GOOD, OTHER, WIDTH, WORDS, describe
from patchcore_kit.errors import DataError, short
from patchcore_kit.metrics import mean_interval
from patchcore_kit.predictions import METRICS
from patchcore_kit.results import ROUNDING

LOGGER = logging.getLogger(__name__)

PUBLISHED = "published (wide ResNet-50, ImageNet)"
LONGEST = 22  # letters of a category's name beside a point or a line
FEW = 4  # points that are all named
MOST_NAMED = 6  # lines that are all named
REASONS = {"needs a mask": "masks missing", "needs good and defective": "of one kind only"}  # by how they begin
BESIDE = (  # points that a name is put from what it names, and which of its sides is there
    (6, 0, "left", "center"), (-6, 0, "right", "center"), (0, 4, "center", "bottom"), (0, -4, "center", "top"),
    (-9, 6, "right", "bottom"), (9, -6, "left", "top"), (-6, -6, "right", "top"),
)  # fmt: skip


def metric_distributions(
    table: pd.DataFrame, published: pd.DataFrame | None = None, metrics: Sequence[str] = METRICS
) -> np.ndarray:
    """How each metric of a results table spreads over its categories, on an axis of its own -> axes (metrics,).

    A point for each category, the lowest at the bottom, and through it a line, its interval. The lowest, the highest
    and outliers are named, equal ones together, all where there are few. From five categories on a box holds the middle
    half.
    published: another such table, drawn below, with the categories that both have. Raises DataError if no metric is
    defined.
    """
    metrics, rows = defined(table, metrics), _categories(table)
    lanes = {"this run": (rows, GOOD, "o")}
    if published is not None:
        others = _categories(published).reindex(rows.index).dropna(how="all")
        lanes[f"{PUBLISHED}: {len(others)} of these {len(rows)} categories"] = others, ACCENT, "D"
    figure, axes = _small_panels(metrics, 0.8 + 0.75 * len(lanes), columns=2)
    lines, drawn = {}, []
    for metric, ax in axes.items():
        known, shown, lane = rows.index[rows[metric].notna()], [], 0
        for label, (part, colour, marker) in lanes.items():
            values = part.loc[part.index.isin(known), metric].dropna().sort_values() if metric in part else ()
            if len(values):
                places = np.linspace(-0.3, 0.3, len(values)) * (len(values) > 1) - lane  # so that equal values are seen
                _middle_half(ax, values, lane)
                _error_bars(ax, part.loc[values.index], metric, places, colour)
                lines[label] = ax.plot(values, places, marker, color=colour, markersize=5, clip_on=False, zorder=3)[0]
                shown += [values, *_ends(part.loc[values.index], metric)]
                drawn.append((ax, values, places))
                lane += 1
        ax.set(yticks=[], xlim=_limits(shown), ylim=(0.5 - lane, 0.6))
        ax.spines["left"].set_visible(False)
        ax.locator_params(axis="x", nbins=5)
        ax.grid(axis="x", alpha=0.3)
        ax.set_title(metric, loc="left")
        ax.set_title(_lacking(rows, metric), loc="right", fontsize="small", color=WORDS[-1], parse_math=False)
    if len(lanes) > 1:
        figure.legend(lines.values(), lines, loc="outside upper left")
    said = "; ".join(f"{metric} {_range(rows[metric])}{_lacking(rows, metric, ', ')}" for metric in axes)
    notes = _on_intervals([part for part, *_ in lanes.values()], axes)
    more = "; ".join([*notes, "grey box, where there is one: the middle half, its line the median"])
    describe(figure, f"Metrics of {len(rows)} categories, a point for each: {said}.", _made_with(table), more)
    figure.draw_without_rendering()  # which says where the points are, so that names can keep clear of them
    for ax, values, places in drawn:
        _name_points(ax, values, places)
    return np.array(list(axes.values()))


def metric_dots(
    table: pd.DataFrame, metrics: Sequence[str] = METRICS, published: pd.DataFrame | None = None
) -> np.ndarray:
    """For each metric of a results table a panel with a point for each category, best first -> axes (panels,).

    Lines through the points are their intervals. Categories without a value come last, with the reason in place.
    published: another such table, drawn as diamonds. Raises DataError if no metric is defined.
    """
    metrics, rows = defined(table, metrics), _categories(table)
    others = None if published is None else _categories(published).reindex(rows.index)
    names = dict(zip(rows.index, (short(name, LONGEST) for name in rows.index), strict=True))
    columns = 3 if max(map(len, names)) < 15 else 2
    figure, axes = _small_panels(metrics, 0.22 * len(rows) + 0.9, columns)
    said = []
    for metric, ax in axes.items():
        values = rows[metric].dropna().sort_values()
        lacking = rows.index[rows[metric].isna()]
        places = np.arange(len(lacking), len(rows))
        shown = [values, *_ends(rows.loc[values.index], metric)]
        _error_bars(ax, rows.loc[values.index], metric, places, "black")
        ax.plot(values, places, "o", color=GOOD, clip_on=False, zorder=3)
        if others is not None and metric in others:
            shown.append(others.loc[values.index, metric])
            ax.plot(shown[-1], places, "D", color=ACCENT, markersize=4, clip_on=False, zorder=3)
        mean = f"mean{_over(rows, metric)} {values.mean():.3f}"
        ax.axvline(values.mean(), color="black", linestyle=":", linewidth=1)
        for place, name in enumerate(lacking):
            style = {"va": "center", "fontsize": "small", "color": WORDS[-1], "transform": ax.get_yaxis_transform()}
            ground = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            ax.text(0.02, place, _why(rows.loc[name], metric), bbox=ground, parse_math=False, **style)
        ax.set_yticks(range(len(rows)), [names[name] for name in (*lacking, *values.index)], parse_math=False)
        ax.set(xlim=_limits(shown), ylim=(-0.6, len(rows) - 0.4), title=f"{metric}\n{mean}")
        ax.locator_params(axis="x", nbins=4)
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", alpha=0.3)
        said.append(f"{metric} {mean}, {_range(values)}{_lacking(rows, metric, ', ')}")
    notes = ["dotted: mean", *_on_intervals([rows], axes)]
    if others is not None:
        notes.append(f"diamonds: {PUBLISHED}, {len(others.dropna(how='all'))} of these {len(rows)} categories")
    words = f"Metrics of {len(rows)} categories, best first: {'; '.join(said)}."
    describe(figure, words, _made_with(table), "; ".join(notes))
    return np.array(list(axes.values()))


def metrics_by_size(table: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Each of the columns against the image size, a grey line for each category and their mean in black -> axes.

    Lines are named at their ends: all, or of many the lowest and the highest. The mean has its interval, where all
    categories have one, and is hollow for pixels at sizes at which masks of defects are empty.
    table: a row for each category and size, with the columns `category` and `size` in pixels; where it has them,
    `masks` is the number of defective test images with a mask, and `empty_masks` of those whose mask is empty at that
    size. Raises DataError if none of the columns has values.
    """
    figure, axes = _small_panels(defined(table, columns), 2.4, columns=2)
    rows, empty, said = table.groupby("category").first(), _empty_masks(table), []
    for column, ax in axes.items():
        values = table.pivot(index="size", columns="category", values=column).dropna(axis="columns", how="all")
        mean, shown = values.mean(axis=1), [values.stack()]
        ax.plot(values, color=OTHER, linewidth=1, clip_on=False)
        ax.plot(mean, color="black", marker="o", markersize=4, clip_on=False)
        for size, of_size in table.dropna(subset=[column]).groupby("size"):
            ends = _ends(of_size, column)
            if ends and not any(end.isna().any() for end in ends):
                shown.append(pd.Series(mean_interval(of_size[column], *ends)))
                ax.vlines(size, *shown[-1], color="black", linewidth=1)
        if empty and column in METRICS and _kind_of(column) == "pixel":
            ax.plot(mean[mean.index.isin(empty)], "o", color="black", mfc="white", ms=5, clip_on=False, zorder=3)
        mean_of = f", mean{_over(rows, column)}\n{_lacking(rows, column)}" if _over(rows, column) else ""
        ax.set_title(f"{column}{mean_of}", parse_math=False)
        ax.set_xticks(values.index)
        ax.grid(alpha=0.3)
        ax.set_ylim(*(_limits(shown) if column in METRICS else (0, None)))
        last = values.ffill().iloc[-1].sort_values()
        last = last if len(last) <= MOST_NAMED else last.iloc[[0, -1]]
        _name_ends(ax, values.index[-1], last.to_dict() | {"mean": mean.iloc[-1]})
        means = ", ".join(f"{value:.3g} at {size}" for size, value in mean.items())
        said.append(f"{column} mean{_over(rows, column)} {means}{_lacking(rows, column, ', ')}")
    interval = " and, where there is one, its interval of 95 %" * any(ax.collections for ax in axes.values())
    notes = [f"image size in pixels; black: mean{interval}, grey: categories"]
    if any(column in METRICS and _kind_of(column) == "pixel" for column in axes):
        notes += [f"hollow: {sentence}" for sentence in empty.values()]
    words = f"Metrics of {len(rows)} categories by image size: {'; '.join([*said, *notes[1:]])}."
    describe(figure, words, _made_with(table), "\n".join(notes))
    return np.array(list(axes.values()))


# what is not defined


def defined(table: pd.DataFrame, metrics: Sequence[str]) -> list[str]:
    """Those of the metrics that a results table has values of; what its categories lack is logged, and why.

    Raises DataError, which says why, if it has no values of any.
    """
    rows = table.drop(index="Mean", errors="ignore")
    known = [metric for metric in metrics if metric in rows and rows[metric].notna().any()]
    lacking = [metric for metric in metrics if metric in rows and rows[metric].isna().any()]
    sentence = _lack(rows, lacking)
    if not known:
        raise DataError(sentence or f"no values of {', '.join(metrics)} in this table")
    if sentence:
        LOGGER.warning(sentence)
    return known


def _lack(rows: pd.DataFrame, metrics: Sequence[str]) -> str:
    """Which categories have no values of some of these metrics, and why the first of them; "" if no reason is known."""
    kinds = {_kind_of(metric) for metric in metrics if metric in METRICS}
    rows = rows[rows[metrics].isna().any(axis="columns")]
    reasons = [reason_of(text, kinds) for text in rows.get("undefined", pd.Series(dtype=str)).fillna("")]
    if not any(reasons):
        return ""
    names = rows["category"] if "category" in rows else rows.index.str.removeprefix("mvtec_")
    first, *others = dict.fromkeys(name for name, reason in zip(names, reasons, strict=True) if reason)
    what = f"values of {', '.join(metrics)}" if len(metrics) < 4 else f"{' and '.join(sorted(kinds))} metrics"
    return f"no {what} for {first}{f' and {len(others)} more' if others else ''}: {next(filter(None, reasons))}"


def _kind_of(metric: str) -> str:
    return "image" if metric.startswith("instance_") else "pixel"


def reason_of(undefined: str, kinds: Collection[str]) -> str:
    """Of what `undefined` says, "image metrics: ...; pixel metrics: ...", the reasons of some kinds."""
    told = re.findall(r"(\w+) metrics: (.*?)(?=; \w+ metrics: |$)", undefined, re.DOTALL)
    kinds = {*kinds, "all", *(["anomaly"] if "pixel" in kinds else [])}  # the last: pixels of defective images only
    return "; ".join(dict.fromkeys(reason for kind, reason in told if kind in kinds))


def _why(row: pd.Series, metric: str) -> str:
    """In two or three words why a category has no value of a metric."""
    known = row.get("undefined")
    reason = reason_of(known if isinstance(known, str) else "", {_kind_of(metric)})
    return next((words for start, words in REASONS.items() if reason.startswith(start)), reason or "no value")


def _over(rows: pd.DataFrame, metric: str) -> str:
    """Of how many categories a mean is, " of 1 of 3", "" if it is of all."""
    there = rows[metric].notna()
    return "" if there.all() else f" of {there.sum()} of {len(there)}"


def _lacking(rows: pd.DataFrame, metric: str, before: str = "") -> str:
    """Which categories have no value of a metric, and why, after some words; "" if all have one."""
    lacking = rows.index[rows[metric].isna()]
    if not len(lacking):
        return ""
    more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
    return f"{before}{_why(rows.loc[lacking[0]], metric)}: {short(lacking[0], LONGEST)}{more}"


def _empty_masks(table: pd.DataFrame) -> dict[int, str]:
    """Sizes at which masks of defects are empty -> a sentence that says how many."""
    if not {"masks", "empty_masks"} <= set(table):
        return {}
    sums = table.groupby("size")[["empty_masks", "masks"]].sum().astype(int)
    return {
        size: f"at {size}, {empty} of {masks} masks are empty: these defects do not count"
        for size, empty, masks in sums.itertuples()
        if empty
    }


# what charts share


def _small_panels(titles: Sequence[str], height: float, columns: int = 3) -> tuple[Figure, dict[str, Axes]]:
    """Axes by title, so many in a row, or two where that fills the rows."""
    columns = 2 if len(titles) == 4 else min(columns, len(titles))
    rows = -(-len(titles) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, rows * height), squeeze=False)
    for ax in axes.flat[len(titles) :]:
        ax.set_visible(False)
    return figure, dict(zip(titles, axes.flat, strict=False))


def _limits(shown: Iterable[pd.Series]) -> tuple[float, float]:
    """Ends of an axis: with some room around all values, and never beyond 0 and 1 where no value is."""
    values = pd.concat(list(shown)).dropna()
    low, high = values.min(), values.max()
    room = 0.05 * (high - low) or 0.02
    return max(0, low - room), min(1, high + room) if high <= 1 + ROUNDING else high + room


def _categories(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a results table by the names of their categories, without the mean."""
    rows = table.drop(index="Mean", errors="ignore")
    return rows.set_axis(rows.index.str.removeprefix("mvtec_"))


def _ends(rows: pd.DataFrame, metric: str) -> tuple[pd.Series, ...]:
    """The low and the high ends of a metric's intervals, () where the table has none."""
    return tuple(rows[f"{metric}_{end}"] for end in ("low", "high") if f"{metric}_{end}" in rows)


def _error_bars(ax: Axes, rows: pd.DataFrame, metric: str, places: Sequence, colour: str) -> None:
    if ends := _ends(rows, metric):
        ax.hlines(places, *ends, color=colour, linewidth=1)


def _on_intervals(parts: Iterable[pd.DataFrame], metrics: Collection[str]) -> list[str]:
    """What is said of the intervals of these metrics below a figure of some tables: nothing where there is none."""
    drawn = any(end.notna().any() for part in parts for metric in metrics for end in _ends(part, metric))
    return ["thin lines: intervals of 95 %"] * drawn


def _range(values: pd.Series) -> str:
    """From which categories' value to which others', in words."""
    low, high = (f"{end:.3f} ({_together(values.index[values == end])})" for end in (values.min(), values.max()))
    return f"from {low} to {high}"


def _together(names: Sequence[str]) -> str:
    """The names of equal values: all if that is short, else the first and how many more."""
    first, *others = sorted(names)
    all_names = ", ".join([first, *others])
    return all_names if len(all_names) <= LONGEST else short(first, LONGEST) + f" +{len(others)}" * bool(others)


def _middle_half(ax: Axes, values: pd.Series, lane: int) -> None:
    """A box in a lane that holds the middle half of many values, and a line at their median; nothing for few."""
    if len(values) > FEW:
        low, median, high = values.quantile([0.25, 0.5, 0.75])
        ax.fill_betweenx([-lane - 0.4, -lane + 0.4], low, high, color="#eeeeee", linewidth=0)
        ax.vlines(median, -lane - 0.4, -lane + 0.4, color="black")


def _worth_a_name(values: pd.Series) -> dict[str, str]:
    """Of sorted values by name: the names whose points are labelled -> the labels.

    All if there are few, else the lowest, the highest and those far outside, equal ones together.
    """
    if len(values) <= FEW:
        return {name: short(name, LONGEST) for name in values.index}
    low, high = values.quantile([0.25, 0.75])
    room = 1.5 * (high - low)  # the usual definition of outliers
    lowest, *_, highest = values
    worth = dict.fromkeys([lowest, highest, *values[(values < low - room) | (values > high + room)]])
    equal = {value: values.index[values == value] for value in worth}
    return {names[0 if value == lowest else -1]: _together(names) for value, names in equal.items()}


def _name_points(ax: Axes, values: pd.Series, places: np.ndarray) -> None:
    """Write names beside the points that are worth it, clear of other points and names; the ends' in any case."""
    pixel = ax.figure.dpi / 72  # of a point
    centres = dict(zip(values.index, ax.transData.transform(np.stack([values, places], axis=1)), strict=True))
    taken = [Bbox([centre - 3 * pixel, centre + 3 * pixel]) for centre in centres.values()]
    ends, inside = (values.index[0], values.index[-1]), ax.get_window_extent().expanded(1.02, 1.02)
    style = {"fontsize": "small", "path_effects": [withStroke(linewidth=2.5, foreground="white")], "zorder": 4}
    for name, label in _worth_a_name(values).items():
        text = ax.text(0, 0, label, parse_math=False, in_layout=False, **style)
        for x, y, across, up in BESIDE:
            place = ax.transData.inverted().transform(centres[name] + np.multiply((x, y), pixel))
            text.set(position=place, ha=across, va=up)
            box = text.get_window_extent()
            if inside.count_contains(box.corners()) == 4 and not box.count_overlaps(taken):
                break
        else:
            if name not in ends:
                text.remove()
                continue
        taken.append(box)


def _name_ends(ax: Axes, x: float, ends: Mapping[str, float]) -> None:
    """Write names at the right of lines that end at (x, y), moved apart as far as they would lie over each other."""
    low, high = ax.get_ylim()
    names, steps = sorted(ends, key=ends.get), 0.1 * (high - low) * np.arange(len(ends))
    places = np.array([ends[name] for name in names])
    apart = np.maximum.accumulate(places - steps) + steps  # each a step above the one before it
    apart = np.minimum.accumulate((apart - steps).clip(max=high - steps[-1])[::-1])[::-1] + steps
    for name, place, y in zip(names, places, apart, strict=True):
        line = {"arrowstyle": "-", "color": OTHER, "linewidth": 0.7, "shrinkA": 0}
        where = {"textcoords": ax.get_yaxis_transform(), "annotation_clip": False, "va": "center", "fontsize": "small"}
        ax.annotate(short(name, LONGEST), (x, place), (1.06, y), arrowprops=line, parse_math=False, **where)


def _made_with(table: pd.DataFrame) -> str:
    return ", ".join(table["weights"].dropna().unique()) if "weights" in table else "not recorded"
