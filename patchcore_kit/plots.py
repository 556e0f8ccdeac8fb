"""Every figure of the notebooks, and the pictures that evaluation writes: data in, axes or an image out.

Heat maps that belong together share one colour scale, which is drawn beside them: where the model has a threshold from
good images, that one is in the middle of it, so good parts stay dark. Metrics have their intervals of 95 %. Good images
and pixels are blue, defective ones orange: a pair that colour-blind eyes tell apart. What a network had a part in says
with which weights. What the data does not allow to draw, for lack of masks or of test images, is told in a sentence: a
log line where the rest is drawn, a DataError where nothing is.
"""

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from patchcore_kit.datasets import Sample, as_samples
from patchcore_kit.errors import DataError, ResultsError, SettingsError
from patchcore_kit.files import file_name, names_in, numbered, user_path, writing
from patchcore_kit.images import read_rgb
from patchcore_kit.metrics import mean_interval
from patchcore_kit.notes import Notes
from patchcore_kit.predictions import METRICS, Predictions
from patchcore_kit.progress import Line, line_of
from patchcore_kit.reasons import AROUND, Box, Explanation
from patchcore_kit.transforms import Transform

LOGGER = logging.getLogger(__name__)

COLOURS = "magma"  # even in lightness: readable in grey and by colour-blind eyes
GOOD, DEFECTIVE, ACCENT, OTHER = "#0072b2", "#d55e00", "#cc79a7", "#999999"  # of Okabe and Ito's palette
KINDS = {0: GOOD, 1: DEFECTIVE, -1: OTHER}  # by label
GAP, HEADER, SCALE = 6, 18, 14  # pixels between panels, above them, and the width of the colour scale
PUBLISHED = "published (wide ResNet-50, ImageNet)"
UNITS = {"distance": "squared distance", "density": "relative distance", "index": "index"}  # by scoring
HOTTEST = 2  # times the threshold from good images: drawn brightest
WIDTH = 9  # inches: what a notebook shows without shrinking
FINEST = 1000  # pixels of a photograph's longer side that are drawn, about
COVER = 0.45  # of a photograph, that the brightest of a map hides
LOW = 0.12  # share of a photograph's height that a number takes
SOFTWARE = "patchcore_kit"  # which pictures say that they were made with, so that no other file is replaced by one
LONGEST = 36  # letters of a photograph's name in a title
STYLE = {
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "axes.axisbelow": True,
    "font.size": 10,
    "legend.frameon": False,
}


# the data


def image_grid(samples: Sequence[Sample], transform: Transform, columns: int = 6) -> np.ndarray:
    """The images as the network sees them, with their defects outlined where there are masks -> axes (rows, columns).

    Raises DataError without images.
    """
    samples, notes = as_samples(samples), Notes()
    if not samples:
        raise DataError("no images to show: the list of samples is empty")
    rows = -(-len(samples) // columns)
    _, axes = _images(rows, columns, transform.size)
    for ax, sample in zip(axes.flat, samples, strict=False):
        ax.imshow(transform.image(sample, notes=notes))
        mask = transform.mask(sample)
        if mask.any():
            ax.contour(mask, levels=[0.5], colors=DEFECTIVE, linewidths=1)
        ax.set_title(sample.defect or "unknown", fontsize="small", color=KINDS[sample.label])
    for ax in axes.flat[len(samples) :]:
        ax.set_visible(False)
    notes.tell()
    return axes


def image_sizes(sample: Sample, transforms: Sequence[Transform]) -> np.ndarray:
    """One image as the network sees it at several sizes, its own pixels kept -> axes (transforms,)."""
    _, axes = _images(1, len(transforms), transforms[0].size)
    for ax, transform in zip(axes[0], transforms, strict=True):
        ax.imshow(transform.image(sample), interpolation="nearest")
        ax.set_title("{} x {} pixels".format(*transform.size), fontsize="small")
    return axes[0]


# the method, in pictures


def patch_grid(image: np.ndarray, grid: tuple[int, int]) -> Axes:
    """An (H, W, 3) image with the cells of the patch grid (down, across) drawn on it."""
    _, ax = plt.subplots(figsize=(WIDTH / 2, WIDTH / 2))
    ax.imshow(image)
    height, width = image.shape[:2]
    ax.set_xticks(np.linspace(0, width, grid[1] + 1)[1:-1] - 0.5, [])
    ax.set_yticks(np.linspace(0, height, grid[0] + 1)[1:-1] - 0.5, [])
    ax.grid(color="white", linewidth=0.5, alpha=0.7)
    ax.tick_params(length=0)
    ax.set_title(f"{grid[0]} x {grid[1]} patches")
    return ax


def coreset_scatter(rows: np.ndarray, chosen: np.ndarray, weights: str) -> Axes:
    """(N, D) patch features and (k,) indices of those that are kept, drawn in their two main directions (PCA)."""
    from sklearn.decomposition import PCA  # here and below: a second that most users need not wait for

    figure, ax = plt.subplots(figsize=(WIDTH * 0.7, WIDTH * 0.5))
    x, y = PCA(2, random_state=0).fit_transform(rows).T
    ax.scatter(x, y, s=4, color=OTHER, alpha=0.4, linewidths=0, label=f"all {len(rows)} patches")
    ax.scatter(x[chosen], y[chosen], s=10, color=ACCENT, label=f"the {len(chosen)} that are kept")
    ax.set(xlabel="first main direction", ylabel="second", title="patch features")
    ax.legend()
    _note(figure, weights)
    return ax


def heat_maps(image: np.ndarray, maps: Mapping[str, np.ndarray], weights: str) -> np.ndarray:
    """An (H, W, 3) image and titled heat maps of it, of any resolution, on one colour scale -> axes (1 + maps,)."""
    figure, axes = _images(1, 1 + len(maps), image.shape[:2])
    axes = axes[0]
    axes[0].imshow(image)
    axes[0].set_title("image")
    scale = Normalize(min(m.min() for m in maps.values()), max(m.max() for m in maps.values()))
    for ax, (title, values) in zip(axes[1:], maps.items(), strict=True):
        ax.imshow(values, COLOURS, scale)
        ax.set_title(title)
    _colour_bar(figure, axes, scale)
    _note(figure, weights)
    return axes


# metrics


def metric_distributions(
    table: pd.DataFrame, published: pd.DataFrame | None = None, metrics: Sequence[str] = METRICS
) -> Axes:
    """How each metric of a results table spreads over its categories: a box, and a point for each category.

    Lines through the points are their intervals. published: another such table, drawn beside it. Raises DataError if no
    metric is defined.
    """
    metrics = defined(table, metrics)
    tables = {"this run": (table, GOOD)} | ({} if published is None else {PUBLISHED: (published, ACCENT)})
    figure, ax = plt.subplots(figsize=(WIDTH, 0.55 * len(metrics) + 1.2))
    room = 0.8 / len(tables)
    for i, (label, (rows, colour)) in enumerate(tables.items()):
        rows = rows.drop(index="Mean", errors="ignore")
        for place, metric in enumerate(metrics):
            if metric in rows:
                y, values = place + (i + 0.5) * room - 0.4, rows[metric].dropna()
                if len(values) > 1:
                    ax.boxplot(
                        values, positions=[y], widths=room * 0.7, orientation="horizontal", whis=(0, 100),
                        manage_ticks=False, medianprops={"color": colour, "linewidth": 2},
                    )  # fmt: skip
                apart = y + np.linspace(-0.2, 0.2, len(values)) * room  # so that equal values are seen
                _error_bars(ax, rows.loc[values.index], metric, apart, colour)
                ax.scatter(values, apart, s=16, color=colour, linewidths=0, label=label)
                label = None  # one entry in the legend
    ax.set_yticks(range(len(metrics)), metrics)
    ax.invert_yaxis()
    ax.set_title("a point for each category; the box holds the middle half, the line is the median")
    ax.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower left", ncols=2)
    _note(figure, _made_with(table))
    return ax


def metric_bars(
    table: pd.DataFrame, metrics: Sequence[str] = METRICS, published: pd.DataFrame | None = None
) -> np.ndarray:
    """For each metric of a results table a panel with a bar for each category, best first -> axes (panels,).

    Lines at the ends of the bars are their intervals. published: another such table, drawn as diamonds. Raises
    DataError if no metric is defined.
    """
    rows = table.drop(index="Mean", errors="ignore")
    rows.index = rows.index.str.removeprefix("mvtec_")
    figure, axes = _small_panels(defined(rows, metrics), 0.22 * len(rows) + 0.7)
    for metric, ax in axes.items():
        values = rows[metric].dropna().sort_values()
        shown = [values, *_ends(rows.loc[values.index], metric)]
        ax.barh(values.index, values, color=GOOD)
        _error_bars(ax, rows.loc[values.index], metric, values.index, "black")
        if published is not None and metric in published:
            shown.append(published[metric].rename(index=lambda name: name.removeprefix("mvtec_")).reindex(values.index))
            ax.plot(shown[-1], values.index, "D", color=ACCENT, markersize=4, clip_on=False)
        # bars that start at 0 would all look alike
        ax.set_xlim(max(0, min(series.min() for series in shown) - 0.05), max(series.max() for series in shown) or 1)
        ax.axvline(values.mean(), color="black", linestyle=":", linewidth=1)
        ax.set_title(f"{metric}, mean {values.mean():.3f}")
        ax.tick_params(axis="y", length=0)
    _note(figure, _made_with(table), "dotted: mean" + ("" if published is None else f", diamonds: {PUBLISHED}"))
    return np.array(list(axes.values()))


def metrics_by_size(table: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Each of the columns against the image size, a grey line for each category and their mean in black -> axes.

    The mean has its interval, where all categories have one. table: a row for each category and size, with the columns
    `category` and `size` in pixels. Raises DataError if none of the columns has values.
    """
    figure, axes = _small_panels(defined(table, columns), 2.2)
    for column, ax in axes.items():
        values = table.pivot(index="size", columns="category", values=column)
        ax.plot(values, color=OTHER, linewidth=1)
        ax.plot(values.mean(axis=1), color="black", marker="o", markersize=4)
        for size, rows in table.dropna(subset=[column]).groupby("size"):
            ends = _ends(rows, column)
            if ends and not any(end.isna().any() for end in ends):
                ax.vlines(size, *mean_interval(rows[column], *ends), color="black", linewidth=1)
        ax.set_title(column)
        ax.set_xticks(values.index)
        ax.grid(alpha=0.3)
        if column not in METRICS:
            ax.set_ylim(bottom=0)
    _note(figure, _made_with(table), "image size in pixels; black: mean and its interval of 95 %, grey: categories")
    return np.array(list(axes.values()))


# scores


def image_histogram(predictions: Predictions) -> Axes:
    """Image scores, good against defective, and the thresholds: F1-optimal, and the model's own from good images.

    Raises DataError without both labels.
    """
    need(predictions, "no image histogram", "image")
    figure, ax = plt.subplots(figsize=(WIDTH, 3.2))
    known = predictions.labels >= 0
    _histogram(ax, predictions.scores[known], predictions.labels[known] == 1)
    _thresholds(ax, predictions)
    ax.figure.legend(loc="outside right upper")  # beside the bars, whatever their shape
    ax.set(xlabel=f"image score ({UNITS[predictions.scoring]})", ylabel="images")
    ax.set_title(f"image AUROC {_with_interval(predictions, 'instance_auroc')}")
    _note(figure, predictions.weights)
    return ax


def pixel_histogram(predictions: Predictions) -> Axes:
    """Pixel scores, good against defective, in logarithmic numbers, and the thresholds, as `image_histogram`.

    Raises DataError without masks.
    """
    need(predictions, "no pixel histogram", "pixel")
    figure, ax = plt.subplots(figsize=(WIDTH, 3.2))
    _histogram(ax, predictions.maps.ravel(), predictions.masks.ravel())
    _threshold(ax, predictions.pixel_threshold, "F1-optimal threshold", "--")
    _threshold(ax, predictions.alarm_threshold_pixel, "from good images", ":")
    ax.figure.legend(loc="outside right upper")
    ax.set(xlabel=f"pixel score ({UNITS[predictions.scoring]})", ylabel="pixels", yscale="log")
    ax.set_title(f"pixel AUROC {_with_interval(predictions, 'full_pixel_auroc')}")
    _note(figure, predictions.weights)
    return ax


def roc_curve(predictions: Predictions) -> Axes:
    """The ROC curve of the image scores, and where the F1-optimal threshold lies on it.

    Raises DataError without both labels.
    """
    need(predictions, "no ROC curve", "image")
    from sklearn.metrics import RocCurveDisplay

    figure, ax = plt.subplots(figsize=(WIDTH * 0.5, WIDTH * 0.45))
    known = predictions.labels >= 0
    labels, scores = predictions.labels[known], predictions.scores[known]
    RocCurveDisplay.from_predictions(labels, scores, name="image scores", ax=ax, curve_kwargs={"color": GOOD})
    found = scores >= predictions.image_threshold
    ax.plot(found[labels == 0].mean(), found[labels == 1].mean(), "o", color=ACCENT, label="F1-optimal threshold")
    ax.set(xlabel="good images called defective", ylabel="defective images found")
    ax.legend(loc="lower right")
    _note(figure, predictions.weights)
    return ax


def scores_by_defect(predictions: Predictions) -> Axes:
    """A point for each image's score, in a line for each kind of defect, and the thresholds that there are.

    Raises DataError without images.
    """
    need(predictions, "no scores")
    table = predictions.table()
    kinds = sorted(table["defect"].unique(), key=lambda kind: (kind != "good", kind))
    figure, ax = plt.subplots(figsize=(WIDTH * 0.8, 0.4 * len(kinds) + 1.2))
    for i, kind in enumerate(kinds):
        of_kind = table[table["defect"] == kind]
        shift = np.linspace(-0.2, 0.2, len(of_kind))  # so that equal values are seen
        ax.scatter(of_kind["score"], i + shift, s=20, c=of_kind["label"].map(KINDS), alpha=0.8, linewidths=0)
    ax.set_yticks(range(len(kinds)), kinds)
    ax.invert_yaxis()
    _thresholds(ax, predictions)
    if ax.get_legend_handles_labels()[1]:
        figure.legend(loc="outside right upper")
    ax.set(xlabel=f"image score ({UNITS[predictions.scoring]})")
    ax.grid(axis="x", alpha=0.3)
    _note(figure, predictions.weights)
    return ax


# examples


def examples(
    samples: Sequence[Sample],
    transform: Transform,
    predictions: Predictions,
    indices: Sequence[int],
    *,
    scale: tuple[float, float] | None = None,
) -> np.ndarray:
    """Original, anomaly map, binarised map and ground truth of the images with these indices -> axes (images, 4).

    All maps share one scale, as of `save_segmentation_images`. What is not known, threshold or masks, is left out, and
    why is logged; where only some images lack a mask, those of the others are shown.
    Raises DataError without images, SettingsError for samples or a transform that the predictions were not made with,
    and without indices.
    """
    need(predictions, "no examples")
    samples = as_samples(samples)
    if transform.size != predictions.maps.shape[1:] or tuple(s.name for s in samples) != predictions.names:
        raise SettingsError(
            f"{predictions} do not belong to {len(samples)} samples at {'x'.join(map(str, transform.size))}: give the "
            "samples and the sizes that they were made with"
        )
    if not len(indices):
        raise SettingsError("no examples to show: give the indices of some images")
    drawn, threshold = [samples[i] for i in indices], mask_threshold(predictions)
    pictures = [panels(transform.image(samples[i], notes=Notes()), predictions, i, threshold) for i in indices]
    if predictions.masks is None and any(sample.mask_path for sample in drawn):  # not all have one, but some
        of_predictions = replace(transform, mask_rule=predictions.mask_rule)
        for sample, shown in zip(drawn, pictures, strict=True):
            if sample.mask_path or sample.label == 0:
                shown["ground truth"] = of_predictions.mask(sample)
    titles = list(max(pictures, key=len))
    missing = ["binarised maps"] * (threshold is None) + ["ground truth"] * ("ground truth" not in titles)
    if missing and (predictions.labels >= 0).any():  # else nobody expects them
        LOGGER.warning("no %s: %s", " and no ".join(missing), _reason(predictions.metrics["undefined"], ["pixel"]))
    figure, axes = _images(len(indices), len(titles), transform.size)
    scale = Normalize(*map_scale(predictions, scale))
    for i, row, shown in zip(indices, axes, pictures, strict=True):
        for ax, title in zip(row, titles, strict=True):
            if title in shown:
                values = shown[title]
                ax.imshow(values, *((COLOURS, scale) if values.dtype.kind == "f" else ("gray", Normalize(0, 1))))
            else:
                ax.text(0.5, 0.5, "no mask", color="gray", ha="center", va="center", transform=ax.transAxes)
            ax.set_title(title if ax in axes[0] else "")
        name = samples[i].name.removeprefix("test/")
        row[0].set_ylabel(f"{name}\n{_said_of(predictions, i)}", fontsize="small")
    _colour_bar(figure, axes, scale, UNITS[predictions.scoring])
    _note(figure, predictions.weights)
    return axes


def explanation(explanation: Explanation) -> np.ndarray:
    """Each region as the network saw it, and beside it the normal patches that are most like it -> axes (regions, ...).

    The patches themselves are outlined, in the middle; what lies around is shown on the same scale. Raises DataError
    for an image without regions, as good ones are.
    """
    regions = explanation.regions
    if not regions:
        raise DataError(f"no regions to show: {explanation.name} is {explanation.verdict or 'not explained'}")
    columns = 1 + max(len(region.nearest) for region in regions)
    figure, axes = _images(len(regions), columns, regions[0].picture.shape[:2])
    for number, (region, row) in enumerate(zip(regions, axes, strict=True), 1):
        index = "" if region.index is None else f"\nindex {region.index:.2f}"
        shown = [(region.picture, f"region {number}{index}", DEFECTIVE)]
        shown += [(one.picture, f"{one.name}\ndistance {one.distance:.3g}", GOOD) for one in region.nearest]
        for ax, (picture, title, colour) in zip(row, shown, strict=False):
            ax.imshow(picture)
            side = len(picture) / AROUND
            corner = ((len(picture) - side) / 2 - 0.5,) * 2
            for line, width in (("white", 4), (colour, 2)):  # seen on dark ground, too
                ax.add_patch(plt.Rectangle(corner, side, side, fill=False, edgecolor=line, linewidth=width))
            ax.set_title(title, fontsize="small", color=colour)
        for ax in row[len(shown) :]:
            ax.set_visible(False)
    figure.set_figheight(figure.get_figheight() + 0.35 * len(regions))  # titles of two lines in each row
    said = "" if explanation.verdict is None else f": {explanation.verdict}, index {explanation.index:.2f}"
    figure.suptitle("\n".join(filter(None, [f"{explanation.name}{said}", explanation.remark])), fontsize="medium")
    return axes


def mask_threshold(predictions: Predictions) -> float | None:
    """Where maps are cut to masks: at the F1-optimal threshold, without masks at the one from good images."""
    known = predictions.pixel_threshold
    return predictions.alarm_threshold_pixel if known is None else known


def _said_of(predictions: Predictions, i: int) -> str:
    """Score of the i-th image, index and verdict where the model has thresholds."""
    score, verdict = f"score {predictions.scores[i]:.3g}", predictions.verdicts[i]
    return score if verdict is None else f"{score}, index {predictions.index[i]:.2f}\n{verdict}"


def panels(image: np.ndarray, predictions: Predictions, i: int, threshold: float | None) -> dict[str, np.ndarray]:
    """Title -> (H, W, 3) image, anomaly map, binarised map, ground truth of the i-th prediction; these two if known."""
    shown = {"image": image, "anomaly map": predictions.maps[i]}
    if threshold is not None:
        shown[f"map >= {threshold:.3g}"] = predictions.maps[i] >= threshold
    if predictions.masks is not None:
        shown["ground truth"] = predictions.masks[i]
    return shown


def over_photographs(samples: Sequence[Sample], predictions: Predictions, indices: Sequence[int]) -> np.ndarray:
    """Photographs under their maps, outlined at the model's threshold, up to three in a row -> axes (images,).

    Axes count the photographs' own pixels; boxes are the regions of `Predictions.explain`. Grey is what the network has
    not seen. Raises DataError without images or for one that cannot be read, SettingsError for samples that the
    predictions were not made of, and without indices, ResultsError for predictions that were saved by an earlier
    version.
    """
    need(predictions, "no photographs")
    samples, threshold = as_samples(samples), predictions.alarm_threshold_pixel
    if tuple(sample.name for sample in samples) != predictions.names:
        raise SettingsError(
            f"{predictions} do not belong to these {len(samples)} samples: give those that they were made of, in order"
        )
    if not len(indices):
        raise SettingsError("no photographs to show: give the indices of some")
    if predictions.transform is None or predictions.sizes is None:
        raise ResultsError("these predictions do not say how large the photographs were: predict again")
    limit = threshold or 1  # by which maps are divided
    scale, columns = Normalize(*(value / limit for value in map_scale(predictions))), min(3, len(indices))
    tallest = max((predictions.sizes[i].tolist() for i in indices), key=lambda size: size[0] / size[1])
    figure, axes = _images(-(-len(indices) // columns), columns, tallest)
    for ax, i in zip(axes.flat, indices, strict=False):
        sample = samples[i]
        photograph = read_rgb(sample.source, bits=predictions.transform.bits, notes=Notes(), name=sample.where)
        _under_map(ax, photograph, predictions.placed(i) / limit, scale, None if threshold is None else 1)
        for number, region in enumerate(predictions.explain(i).regions if predictions.evidence else (), 1):
            _numbered_box(ax, region.box, number)
        said, verdict = f"score {predictions.scores[i]:.3g}", predictions.verdicts[i]
        if verdict is not None:
            said = f"{verdict}, index {predictions.index[i]:.2f}"
        ax.set_title(f"{_shortened(sample.name)}\n{said}", fontsize="small", parse_math=False)
    for ax in axes.flat[len(indices) :]:
        ax.set_visible(False)
    _colour_bar(figure, axes, scale, UNITS[predictions.scoring if threshold is None else "index"])
    _note(figure, predictions.weights)
    return axes.flat[: len(indices)]


def _under_map(ax: Axes, photograph: Image.Image, values: np.ndarray, scale: Normalize, level: float | None) -> None:
    """A photograph, and over it an (H, W) map that hides it the less the lower it is, outlined at a level."""
    step = max(1, max(photograph.size) // FINEST)
    extent = (-0.5, photograph.width - 0.5, photograph.height - 0.5, -0.5)
    ax.imshow(photograph.reduce(step), extent=extent)
    values = values[::step, ::step]
    heat = scale(np.nan_to_num(values)).data.clip(0, 1)
    shown = mpl.colormaps[COLOURS](heat)
    shown[..., 3] = COVER * heat
    shown[np.isnan(values)] = (0.5, 0.5, 0.5, 0.7)
    ax.imshow(shown, extent=extent)
    if level is not None and min(values.shape) > 1 and np.nanmin(values) < level < np.nanmax(values):
        down, across = (np.arange(n) * step for n in values.shape)
        for colour, width in (("white", 3), (DEFECTIVE, 1.2)):  # seen on any ground
            ax.contour(across, down, values, levels=[level], colors=colour, linewidths=width)
    ax.set(xlim=extent[:2], ylim=extent[2:])


def _numbered_box(ax: Axes, box: Box, number: int) -> None:
    left, top, right, bottom = box
    for colour, width, style in (("white", 2.5, "-"), ("black", 1, (0, (4, 3)))):
        edges = {"edgecolor": colour, "linewidth": width, "linestyle": style}
        ax.add_patch(plt.Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, **edges))
    below = top < LOW * ax.get_ylim()[0]  # else its number would stand outside
    at, offset = ((left, bottom), (0, -2)) if below else ((left, top), (0, 2))
    place = {"textcoords": "offset points", "va": "top" if below else "bottom", "fontsize": "small"}
    ax.annotate(str(number), at, offset, path_effects=[withStroke(linewidth=2.5, foreground="white")], **place)


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST else f"...{name[-LONGEST:]}"


# what is not defined


def need(predictions: Predictions, what: str, kind: str = "") -> None:
    """Raises DataError, which says why, if there are no images, or the metrics of a kind (image, pixel) are undefined.

    what: is then missing; the sentence begins with it, as "no histogram".
    """
    if not predictions.names:
        raise DataError(f"{what}: no test images")
    if kind and predictions.metrics[f"{kind}_threshold"] is None:
        raise DataError(f"{what}: {_reason(predictions.metrics['undefined'], [kind])}")


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
    kinds = {"image" if metric.startswith("instance_") else "pixel" for metric in metrics if metric in METRICS}
    rows = rows[rows[metrics].isna().any(axis="columns")]
    reasons = [_reason(text, kinds) for text in rows.get("undefined", pd.Series(dtype=str)).fillna("")]
    if not any(reasons):
        return ""
    names = rows["category"] if "category" in rows else rows.index.str.removeprefix("mvtec_")
    first, *others = dict.fromkeys(name for name, reason in zip(names, reasons, strict=True) if reason)
    what = f"values of {', '.join(metrics)}" if len(metrics) < 4 else f"{' and '.join(sorted(kinds))} metrics"
    return f"no {what} for {first}{f' and {len(others)} more' if others else ''}: {next(filter(None, reasons))}"


def _reason(undefined: str, kinds: Collection[str]) -> str:
    """Of what `undefined` says, "image metrics: ...; pixel metrics: ...", the reasons of some kinds."""
    told = re.findall(r"(\w+) metrics: (.*?)(?=; \w+ metrics: |$)", undefined, re.DOTALL)
    kinds = {*kinds, "all", *(["anomaly"] if "pixel" in kinds else [])}  # the last: pixels of defective images only
    return "; ".join(dict.fromkeys(reason for kind, reason in told if kind in kinds))


# what figures share


def _images(rows: int, columns: int, size: tuple[int, int]) -> tuple[Figure, np.ndarray]:
    """Axes (rows, columns) without ticks for images of one size (H, W), as wide as a notebook shows them."""
    height = rows * (0.82 * WIDTH / columns * size[0] / size[1] + 0.1) + 0.5  # beside a colour bar, below titles
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    return figure, axes


def _small_panels(titles: Sequence[str], height: float) -> tuple[Figure, dict[str, Axes]]:
    """Axes by title, two or three in a row."""
    columns = 2 if len(titles) == 4 else min(3, len(titles))
    rows = -(-len(titles) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, rows * height), squeeze=False)
    for ax in axes.flat[len(titles) :]:
        ax.set_visible(False)
    return figure, dict(zip(titles, axes.flat, strict=False))


def _colour_bar(figure: Figure, axes: np.ndarray, scale: Normalize, unit: str = UNITS["distance"]) -> None:
    bar = mpl.cm.ScalarMappable(scale, COLOURS)
    figure.colorbar(bar, ax=axes, label=unit, fraction=0.04, aspect=figure.get_figheight() / 0.15)


def _histogram(ax: Axes, values: np.ndarray, defective: np.ndarray) -> None:
    """Two histograms with the same bins."""
    bins = np.histogram_bin_edges(values, bins=50)
    for name, colour, part in (("good", GOOD, values[~defective]), ("defective", DEFECTIVE, values[defective])):
        ax.hist(part, bins, color=colour, alpha=0.6, label=f"{name} ({len(part)})")


def _thresholds(ax: Axes, predictions: Predictions) -> None:
    """Those of image scores, as far as there are any."""
    _threshold(ax, predictions.image_threshold, "F1-optimal threshold", "--")
    _threshold(ax, predictions.alarm_threshold, "look above", ":")
    _threshold(ax, predictions.defective_threshold, "defective above", "-.")


def _threshold(ax: Axes, value: float | None, name: str, style: str) -> None:
    if value is not None:
        ax.axvline(value, color="black", linestyle=style, label=f"{name} {value:.3g}")


def _ends(rows: pd.DataFrame, metric: str) -> tuple[pd.Series, ...]:
    """The low and the high ends of a metric's intervals, () where the table has none."""
    return tuple(rows[f"{metric}_{end}"] for end in ("low", "high") if f"{metric}_{end}" in rows)


def _error_bars(ax: Axes, rows: pd.DataFrame, metric: str, places: Sequence, colour: str) -> None:
    if ends := _ends(rows, metric):
        ax.hlines(places, *ends, color=colour, linewidth=1, alpha=0.6)


def _with_interval(predictions: Predictions, metric: str) -> str:
    value, low, high = (predictions.metrics[name] for name in (metric, f"{metric}_low", f"{metric}_high"))
    return f"{value:.3f}" if low is None else f"{value:.3f} ({low:.3f} to {high:.3f})"


def _made_with(table: pd.DataFrame) -> str:
    return ", ".join(table["weights"].dropna().unique()) if "weights" in table else "not recorded"


def _note(figure: Figure, weights: str, more: str = "") -> None:
    """What a figure was made with, small, below it."""
    figure.supxlabel(f"{more}   weights: {weights}".strip(), x=1, ha="right", fontsize="small", color="gray")


# pictures in files


def segmentation_image(shown: Mapping[str, np.ndarray], low: float, high: float, caption: str = "") -> Image.Image:
    """Titled panels of one height, left to right, with the colour scale of the heat maps at the right.

    shown: title -> array: (H, W, 3) uint8 as it is, (H, W) bool in black and white, (H, W) float as a heat map in
    which `low` is dark and `high` bright. caption: a line below.
    """
    colours = mpl.colormaps[COLOURS]
    height, width = next(iter(shown.values())).shape[:2]
    font = ImageFont.truetype(
        Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 11
    )  # has letters of all kinds
    labels = f"{high:.3g}", f"{low:.3g}"
    room = SCALE + GAP + int(max(font.getlength(label) for label in labels))
    size = (len(shown) * (width + GAP) + room + GAP, HEADER + height + (HEADER if caption else GAP))
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    x = GAP
    for title, values in shown.items():
        if values.dtype == bool:
            values = values.astype(np.uint8) * 255
        elif values.dtype != np.uint8:
            values = colours((values - low) / (high - low or 1), bytes=True)[..., :3]
        draw.rectangle((x - 1, HEADER - 1, x + width, HEADER + height), outline="silver")  # white on white has an edge
        picture.paste(Image.fromarray(values), (x, HEADER))
        draw.text((x, 2), title, "black", font)
        x += width + GAP
    ramp = np.repeat(np.linspace(1, 0, height)[:, None], SCALE, axis=1)
    picture.paste(Image.fromarray(colours(ramp, bytes=True)[..., :3]), (x, HEADER))
    for label, y in zip(labels, (HEADER, HEADER + height - 14), strict=True):
        draw.text((x + SCALE + 3, y), label, "black", font)
    draw.text((GAP, HEADER + height + 2), caption, "black", font)
    return picture


def save_segmentation_images(
    folder: Path | str,
    samples: Sequence[Sample],
    transform: Transform,
    predictions: Predictions,
    *,
    scale: tuple[float, float] | None = None,
    progress: bool | Line = True,
) -> None:
    """One PNG per image: original, anomaly map, binarised map, ground truth; the last two as far as known.

    samples: what was predicted, in the same order. scale: the values that are drawn darkest and brightest in all maps;
    if None, 0 and twice the threshold from good images, and of a model without one the smallest and the largest of
    these predictions, by which the strangest always glows, however good. Files are named as the reference names them,
    by the last four parts of the image's path, with `.png` behind those of other kinds, and a number behind a name that
    another picture has already. Very long names are cut, with a checksum behind.

    Raises ResultsError if they cannot be written, or if one would replace a file that is no such picture.
    """
    samples = as_samples(samples)
    low, high = map_scale(predictions, scale)
    threshold = mask_threshold(predictions)
    mark = PngImagePlugin.PngInfo()
    mark.add_text("Software", SOFTWARE)
    names: set[str] = set()
    with line_of(progress, f"drawn: {len(samples)} pictures") as line, line.bar("draw pictures", len(samples)) as bar:
        for i, sample in enumerate(samples):
            shown = panels(
                transform.image(sample, notes=Notes()), predictions, i, threshold
            )  # noted when it was scored
            said = _said_of(predictions, i).replace("\n", ": ")
            caption = f"{sample.name}   {said}   weights: {predictions.weights}"
            picture = segmentation_image(shown, low, high, caption)
            parts = Path(sample.name).parts if sample.path is None else sample.path.parts
            stem = file_name("_".join(parts[-4:]).removesuffix(".png"))
            name = next(name for name in numbered(stem) if name.casefold() not in names)
            names.add(name.casefold())
            path = user_path(folder) / f"{name}.png"
            if path.exists():
                check_picture(path)
            with writing(path) as temporary:
                picture.save(temporary, "PNG", compress_level=3, pnginfo=mark)
            bar.update()


def check_pictures(folder: Path) -> None:
    """Raises ResultsError if a folder holds anything but pictures of `save_segmentation_images`: it would be lost."""
    for name in names_in(folder):
        check_picture(folder / name)


def check_picture(path: Path) -> None:
    """Raises ResultsError for a file that is no picture of `save_segmentation_images`."""
    try:
        with path.open("rb") as file, Image.open(file, formats=["PNG"]) as image:
            ours = image.info.get("Software") == SOFTWARE
    except (OSError, SyntaxError, ValueError):
        ours = False
    if not ours:
        raise ResultsError(
            f"{path} would be replaced, but is no picture of the kit's, or an earlier version's: move its folder away"
        )


def map_scale(predictions: Predictions, scale: tuple[float, float] | None = None) -> tuple[float, float]:
    """The values drawn darkest and brightest: those given, else 0 to twice the model's threshold, else the extremes."""
    if scale is None and predictions.alarm_threshold_pixel is not None:
        return 0.0, HOTTEST * predictions.alarm_threshold_pixel
    if scale is None:
        return float(predictions.maps.min(initial=np.inf)), float(predictions.maps.max(initial=-np.inf))
    low, high = scale
    if not low < high:
        raise SettingsError(
            f"scale is {scale!r}: give the values that are drawn darkest and brightest, (0, 20) for one"
        )
    return float(low), float(high)
