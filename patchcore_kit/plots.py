"""Every figure of the notebooks, and the pictures that evaluation writes: data in, axes or an image out.

Heat maps that belong together share one colour scale, which is drawn beside them: where the model has a threshold from
good images, that one is in the middle of it, so good parts stay dark. Metrics have their intervals of 95 %. Good images
and pixels are blue, defective ones orange: a pair that colour-blind eyes tell apart, as all eyes do in grey. All words
are level. What a network had a part in says with which weights. What the data does not allow to draw, for lack of masks
or of test images, is told in a sentence: a log line where the rest is drawn, a DataError where nothing is.

Every figure says in words what it shows: its label, which `show_alt_texts` gives to notebooks. Results tables are drawn
by `charts`, whose functions are here as well.
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from matplotlib.patheffects import withStroke
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from patchcore_kit.charts import defined, metric_distributions, metric_dots, metrics_by_size, reason_of  # noqa: F401
from patchcore_kit.datasets import Sample, as_samples
from patchcore_kit.detector import PatchCore
from patchcore_kit.drawing import ACCENT, DEFECTIVE, GOOD, OTHER, STYLE, WIDTH, WORDS, describe, show_alt_texts  # noqa: F401
from patchcore_kit.errors import DataError, ResultsError, SettingsError, short
from patchcore_kit.files import file_name, names_in, numbered, user_path, writing
from patchcore_kit.images import read_rgb
from patchcore_kit.notes import Notes
from patchcore_kit.predictions import Predictions
from patchcore_kit.progress import Line, line_of
from patchcore_kit.reasons import AROUND, Box, Explanation, around, cell_box, unpacked
from patchcore_kit.scoring import SCORINGS
from patchcore_kit.transforms import Transform, load_images

LOGGER = logging.getLogger(__name__)

COLOURS = "magma"  # even in lightness: readable in grey and by colour-blind eyes
KINDS = {0: GOOD, 1: DEFECTIVE, -1: OTHER}  # by label
GAP, HEADER, SCALE = 6, 18, 14  # pixels between panels, above them, and the width of the colour scale
UNITS = {name: rule.unit for name, rule in SCORINGS.items()} | {"index": "index"}  # of scores, by scoring
HOTTEST = 2  # times the threshold from good images: drawn brightest
FINEST = 1000  # pixels of a photograph's longer side that are drawn, about
COVER = 0.45  # of a photograph, that the brightest of a map hides
LOW = 0.12  # share of a photograph's height that a number takes
SOFTWARE = "patchcore_kit"  # which pictures say that they were made with, so that no other file is replaced by one
LONGEST = 36  # letters of a photograph's name in a title
MOST_TOLD = 8  # images that the words for a figure go through
MOST_ROWS = 500  # of a memory bank, that are drawn
BARS = 50  # of a histogram, about
Limit = tuple[float | None, str, str]
"""A threshold, None where there is none, its name, and the style of its line."""


# the data


def image_grid(samples: Sequence[Sample], transform: Transform, columns: int = 6) -> np.ndarray:
    """The images as the network sees them, with their defects outlined where there are masks -> axes (rows, columns).

    Raises DataError without images.
    """
    samples, notes = as_samples(samples), Notes()
    if not samples:
        raise DataError("no images to show: the list of samples is empty")
    rows = -(-len(samples) // columns)
    figure, axes = _images(rows, columns, transform.size)
    outlined = 0
    for ax, sample in zip(axes.flat, samples, strict=False):
        ax.imshow(transform.image(sample, notes=notes))
        mask = transform.mask(sample)
        if mask.any():
            outlined += 1
            for colour, width in (("white", 2.5), (DEFECTIVE, 1.2)):  # seen on any ground
                ax.contour(mask, levels=[0.5], colors=colour, linewidths=width)
        ax.set_title(sample.defect or "unknown", fontsize="small", color=WORDS[sample.label])
    for ax in axes.flat[len(samples) :]:
        ax.set_visible(False)
    notes.tell()
    kinds = Counter(sample.defect or "unknown" for sample in samples)
    said = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
    describe(figure, f"{len(samples)} images: {said}; the defects of {outlined} are outlined.")
    return axes


def image_sizes(sample: Sample, transforms: Sequence[Transform]) -> np.ndarray:
    """One image as the network sees it at several sizes, its own pixels kept -> axes (transforms,)."""
    figure, axes = _images(1, len(transforms), transforms[0].size)
    for ax, transform in zip(axes[0], transforms, strict=True):
        ax.imshow(transform.image(sample), interpolation="nearest")
        ax.set_title("{} x {} pixels".format(*transform.size), fontsize="small")
    defect = sample.defect or "unknown"
    figure.suptitle(defect, fontsize="medium", color=WORDS[sample.label], parse_math=False)
    sizes = ", ".join(ax.get_title() for ax in axes[0])
    describe(figure, f"{sample.name}, {defect}, as the network sees it at {sizes}.")
    return axes[0]


# the method, in pictures


def patch_grid(image: np.ndarray, grid: tuple[int, int]) -> Axes:
    """An (H, W, 3) image with the cells of the patch grid (down, across) drawn on it."""
    figure, ax = plt.subplots(figsize=(WIDTH / 2, WIDTH / 2))
    ax.imshow(image)
    _draw_grid(ax, image.shape[:2], grid)
    ax.set_title(f"{grid[0]} x {grid[1]} patches")
    describe(figure, f"An image, cut by a grid into {grid[0]} x {grid[1]} patches.")
    return ax


def coreset_scatter(rows: np.ndarray, chosen: np.ndarray, weights: str) -> Axes:
    """(N, D) patch features and (k,) indices of those that are kept, drawn in their two main directions (PCA)."""
    figure, ax = plt.subplots(figsize=(WIDTH * 0.7, WIDTH * 0.5))
    x, y = _main_directions(rows, rows)[0].T
    ax.scatter(x, y, s=4, color=OTHER, linewidths=0, label=f"all {len(rows)} patches")
    ax.scatter(x[chosen], y[chosen], s=10, color=GOOD, linewidths=0, label=f"the {len(chosen)} that are kept")
    ax.set(xlabel="first main direction", title="patch features")
    _y_label(ax, "second")
    figure.legend(loc="outside right upper", markerscale=2)
    said = f"{len(rows)} patches as points, in the two directions in which their features differ most"
    describe(figure, f"{said}; the {len(chosen)} that the memory bank keeps are marked.", weights)
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
    _colour_bar(figure, axes[None], scale)
    peaks = ", ".join(f"{title} up to {values.max():.3g}, {_peak(values)}" for title, values in maps.items())
    describe(figure, f"An image and its heat maps, with their highest values: {peaks}.", weights)
    return axes


def method(detector: PatchCore, good: Sequence[Sample], sample: Sample) -> np.ndarray:
    """How a fitted detector learns from good images, of which up to three are shown, and judges another one -> axes.

    Raises DataError without good images or for one that cannot be read, ModelError for a detector that is not fitted.
    """
    predictions, bank, grid, good = detector.predict([sample]), detector.bank_, detector.grid_, as_samples(good)[:3]
    if not good:
        raise DataError("no good images to show: the list of samples is empty")
    *pictures, image = (detector.transform.image(one) for one in (*good, sample))
    with torch.inference_mode():
        seen = load_images([*good, sample], detector.transform).to(detector.backbone.device)
        *learnt, judged = detector.embedding(detector.backbone(seen)).cpu().split(math.prod(grid))
    distances, nearest = (found[:, 0] for found in bank.search(judged))
    cell, near = int(distances.argmax()), nearest[distances.argmax()]
    kept = bank.rows_at(np.linspace(0, len(bank) - 1, min(len(bank), MOST_ROWS)).astype(int))
    pair = np.stack([judged[cell].numpy(), bank.rows_at(nearest[[cell]])[0]])
    patches, kept, pair = _main_directions(np.concatenate([kept, pair]), torch.cat(learnt).numpy(), kept, pair)

    figure = plt.figure(figsize=(WIDTH, 5.5), layout="none")
    for top, words in ((0.985, "Learn from good images alone"), (0.485, "Judge another image")):
        figure.text(0.01, top, words, fontsize="large", fontweight="bold", va="top")
    for i, picture in reversed(list(enumerate(pictures))):  # as cards, the first one on top
        _placed(figure, (0.015 + 0.02 * i, 0.625 + 0.025 * i, 0.16), picture)
    _draw_grid(_placed(figure, (0.335, 0.625, 0.16), pictures[0]), image.shape[:2], grid)
    ax = figure.add_axes((0.645, 0.625, 0.34, 0.31), xticks=[], yticks=[])
    ax.scatter(*patches.T, s=4, color=OTHER, linewidths=0)
    ax.scatter(*kept.T, s=9, color=GOOD, linewidths=0)
    ax.plot(*pair.T, color="black", linewidth=1.5)
    ax.plot(*pair[0], "D", color=DEFECTIVE, markeredgecolor="black", markersize=8)
    ax = _placed(figure, (0.015, 0.125, 0.16), image)
    _draw_grid(ax, image.shape[:2], grid)
    _frame(ax, cell_box(cell, grid, image.shape[:2]), DEFECTIVE)
    pairs = [(around(image, cell, grid), DEFECTIVE)]
    if detector.photographs_ and bank.images is not None:
        photograph = unpacked(detector.photographs_[bank.images[near]])
        pairs.append((around(photograph, bank.cells[near], grid), GOOD))
    for i, (picture, colour) in enumerate(pairs):
        ax = _placed(figure, (0.27 + 0.12 * i, 0.18, 0.112), picture)
        _frame(ax, _middle(picture), colour)
    for left, values in ((0.575, distances.reshape(grid)), (0.815, predictions.maps[0])):
        _placed(figure, (left, 0.125, 0.16), mpl.colormaps[COLOURS](values / (values.max() or 1)))

    score, verdict = f"{predictions.scores[0]:.3g}", predictions.verdicts[0]
    for at, words in {
        (0.015, 0.61): f"{len(detector.train_names_) or len(good)} good images",
        (0.335, 0.61): f"{grid[0]} x {grid[1]} patches of each,\n{judged.shape[1]} numbers for a patch",
        (0.645, 0.61): f"memory bank: {len(bank)} patches, some drawn in blue, in\n"
        "two main directions; orange: the one framed below",
        (0.015, 0.11): "a new image, its patches,\nthe strangest one framed",
        (0.27, 0.165): "that patch, and beside it the\nnearest one in the bank: their\n"
        f"distance, {distances[cell]:.3g}, is its score",
        (0.575, 0.11): "the distances of\nall patches",
        (0.815, 0.11): f"anomaly map; image score\n{score}{f', {_called(verdict)}' if verdict else ''}",
    }.items():
        figure.text(*at, words, va="top", fontsize="small", linespacing=1.3)
    for start, end, words in (
        ((0.235, 0.77), (0.325, 0.77), "network"), ((0.505, 0.77), (0.635, 0.77), "coreset"),
        ((0.185, 0.27), (0.26, 0.27), "network"), ((0.635, 0.68), (0.46, 0.385), "  nearest"),
        ((0.51, 0.27), (0.565, 0.27), "each"), ((0.745, 0.27), (0.805, 0.27), "smooth"),
    ):  # fmt: skip
        arrow = {"arrowstyle": "-|>", "mutation_scale": 14, "linewidth": 1.5, "color": "black"}
        figure.add_artist(FancyArrowPatch(start, end, **arrow))
        middle, level = np.mean([start, end], axis=0), start[1] == end[1]
        place = {"ha": "center", "va": "bottom"} if level else {"ha": "left", "va": "top"}  # beside a slanted one
        figure.text(middle[0], middle[1] + 0.015 * level, words, fontsize="small", **place)
    said = (
        f"The method: good images are cut into {grid[0]} x {grid[1]} patches each, which a network describes by "
        f"{judged.shape[1]} numbers; {len(bank)} of them are the memory bank. A patch of {sample.name} is as strange "
        f"as it is far from the nearest of these. The strangest, {_peak(distances.reshape(grid))}, has the distance "
        f"{distances[cell]:.3g}. All distances, smoothed, are the anomaly map; the score of the image is {score}."
    )
    describe(figure, said, predictions.weights)
    return np.array(figure.axes)


def _placed(figure: Figure, place: tuple[float, float, float], picture: np.ndarray) -> Axes:
    """A picture at a place of a figure: left, bottom and the side of the square that it fits in, as shares of it."""
    left, bottom, side = place
    height, width = side * np.array(picture.shape[:2]) / max(picture.shape[:2])
    height *= figure.get_figwidth() / figure.get_figheight()
    ax = figure.add_axes((left, bottom, width, height), xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color="white", linewidth=2)
    ax.imshow(picture)
    return ax


# scores


def image_histogram(predictions: Predictions) -> Axes:
    """Image scores, good against defective, and the thresholds: F1-optimal, and the model's own from good images.

    Each threshold is the edge of a bar: what lies right of it is above it. Raises DataError without both labels.
    """
    need(predictions, "no image histogram", "image")
    known = predictions.labels >= 0
    scores, defective = predictions.scores[known], predictions.labels[known] == 1
    ax = _histogram(predictions, "image", scores, defective, _image_thresholds(predictions))
    ax.yaxis.get_major_locator().set_params(integer=True)
    return ax


def pixel_histogram(predictions: Predictions) -> Axes:
    """Pixel scores, good against defective, in logarithmic numbers, and the thresholds, as `image_histogram`.

    Raises DataError without masks.
    """
    need(predictions, "no pixel histogram", "pixel")
    best, own = predictions.pixel_threshold, predictions.alarm_threshold_pixel
    thresholds = [(best, "F1-optimal threshold", "--"), (own, "from good images", ":")]
    ax = _histogram(predictions, "pixel", predictions.maps.ravel(), predictions.masks.ravel(), thresholds)
    ax.set(yscale="log", ylim=(0.5, None))
    return ax


def roc_curve(predictions: Predictions) -> Axes:
    """The ROC curve of the image scores, and where the F1-optimal threshold lies on it.

    Raises DataError without both labels.
    """
    need(predictions, "no ROC curve", "image")
    from sklearn.metrics import RocCurveDisplay

    figure, ax = plt.subplots(figsize=(WIDTH * 0.5, WIDTH * 0.5))
    known = predictions.labels >= 0
    labels, scores = predictions.labels[known], predictions.scores[known]
    curve = {"color": GOOD, "clip_on": False}
    RocCurveDisplay.from_predictions(labels, scores, name="image scores", ax=ax, curve_kwargs=curve)
    found = scores >= predictions.image_threshold
    alarms, hits = found[labels == 0].mean(), found[labels == 1].mean()
    ax.plot(alarms, hits, "o", color=ACCENT, markeredgecolor="black", clip_on=False, label="F1-optimal threshold")
    ax.set(xlabel="good images called defective", xlim=(0, 1), ylim=(0, 1))
    _y_label(ax, "defective images found")
    ax.legend(loc="lower right")
    said = f"ROC curve of the image scores, area {predictions.metrics['instance_auroc']:.3f}"
    at = f"at the F1-optimal threshold {hits:.0%} of the defective images are found"
    describe(figure, f"{said}; {at}, and {alarms:.0%} of the good ones called defective.", predictions.weights)
    return ax


def scores_by_defect(predictions: Predictions, *, own: bool = True) -> Axes:
    """A point for each image's score, in a line for each kind of defect, and the thresholds that there are.

    own: draw the model's own, from good images, beside the F1-optimal one. Raises DataError without images.
    """
    need(predictions, "no scores")
    table = predictions.table()
    kinds = sorted(table["defect"].unique(), key=lambda kind: (kind != "good", kind))
    figure, ax = plt.subplots(figsize=(WIDTH * 0.8, 0.4 * len(kinds) + 1.2))
    said = []
    for i, kind in enumerate(kinds):
        of_kind = table[table["defect"] == kind]
        shift = np.linspace(-0.2, 0.2, len(of_kind))  # so that equal values are seen
        ax.scatter(of_kind["score"], i + shift, s=20, c=of_kind["label"].map(KINDS), linewidths=0, zorder=3)
        low, high = of_kind["score"].agg(["min", "max"])
        said.append(f"{len(of_kind)} {kind or 'unknown'} from {low:.3g} to {high:.3g}")
    ax.set_yticks(range(len(kinds)), [short(kind, LONGEST) for kind in kinds])
    ax.invert_yaxis()
    _draw_thresholds(ax, _image_thresholds(predictions)[: None if own else 1])
    labels = ax.get_legend_handles_labels()[1]
    if labels:
        figure.legend(loc="outside right upper")
    ax.set(xlabel=f"image {score_label(predictions.scoring)}")
    ax.grid(axis="x", alpha=0.3)
    describe(figure, f"Image scores by kind: {'; '.join([*said, *labels])}.", predictions.weights)
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
        LOGGER.warning("no %s: %s", " and no ".join(missing), reason_of(predictions.metrics["undefined"], ["pixel"]))
    figure, axes = _images(len(indices), len(titles), transform.size, beside=1.4)
    scale = Normalize(*map_scale(predictions, scale))
    said = []
    for i, row, shown in zip(indices, axes, pictures, strict=True):
        for ax, title in zip(row, titles, strict=True):
            if title in shown:
                values = shown[title]
                ax.imshow(values, *((COLOURS, scale) if values.dtype.kind == "f" else ("gray", Normalize(0, 1))))
            else:
                ax.text(0.5, 0.5, "no mask", color=WORDS[-1], ha="center", va="center", transform=ax.transAxes)
            ax.set_title(title if ax in axes[0] else "")
        beside = [short(samples[i].name.removeprefix("test/"), LONGEST), *_said_of(predictions, i).split("\n")]
        style = {"rotation": 0, "ha": "right", "va": "center", "fontsize": "small", "parse_math": False}
        row[0].set_ylabel("\n".join(beside), **style)
        areas = [f"{title}: {shown[title].mean():.1%} of the image" for title in titles[2:] if title in shown]
        said.append(", ".join([*beside, f"map highest {_peak(predictions.maps[i])}", *areas]))
    _colour_bar(figure, axes, scale, UNITS.get(predictions.scoring, "score"))
    describe(figure, f"{len(indices)} images, a row each: {', '.join(titles)}. {_first(said)}", predictions.weights)
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
            _frame(ax, _middle(picture), colour)
            ax.set_title(title, fontsize="small", color=WORDS[int(colour == DEFECTIVE)], parse_math=False)
        for ax in row[len(shown) :]:
            ax.set_visible(False)
    figure.set_figheight(figure.get_figheight() + 0.35 * len(regions))  # titles of two lines in each row
    said = "" if explanation.verdict is None else f": {explanation.verdict}, index {explanation.index:.2f}"
    title = "\n".join(filter(None, [f"{explanation.name}{said}", explanation.remark]))
    figure.suptitle(title, fontsize="medium", parse_math=False)
    pictures = [one.picture for region in regions for one in (region, *region.nearest)]
    if any(map(_goes_beyond, pictures)):
        note = "beyond the edge of a photograph its last pixels are repeated"
        figure.supxlabel(note, x=0.99, ha="right", fontsize="small", color=WORDS[-1])
    beside = []
    for number, region in enumerate(regions, 1):
        nearest = ", ".join(f"{one.name} at a distance of {one.distance:.3g}" for one in region.nearest)
        beside.append(f"region {number}, most like {nearest or 'none that is known'}")
    describe(figure, f"Regions of {'; '.join(title.splitlines())}. {_first(beside)}")
    return axes


def mask_threshold(predictions: Predictions) -> float | None:
    """Where maps are cut to masks: at the F1-optimal threshold, without masks at the one from good images."""
    known = predictions.pixel_threshold
    return predictions.alarm_threshold_pixel if known is None else known


def _said_of(predictions: Predictions, i: int) -> str:
    """Score of the i-th image, index and verdict where the model has thresholds."""
    score, verdict = f"score {predictions.scores[i]:.3g}", predictions.verdicts[i]
    return score if verdict is None else f"{score}, index {predictions.index[i]:.2f}\n{_called(verdict)}"


def _called(verdict: str) -> str:
    """A verdict as it is told below an image's name, where "good" alone would read as a fact."""
    return verdict if verdict == "look" else f"called {verdict}"


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
    told = []
    for ax, i in zip(axes.flat, indices, strict=False):
        sample = samples[i]
        photograph = read_rgb(sample.source, bits=predictions.transform.bits, notes=Notes(), name=sample.where)
        _under_map(ax, photograph, predictions.placed(i) / limit, scale, None if threshold is None else 1)
        regions = predictions.explain(i).regions if predictions.evidence else ()
        for number, region in enumerate(regions, 1):
            _numbered_box(ax, region.box, number)
        said, verdict = f"score {predictions.scores[i]:.3g}", predictions.verdicts[i]
        if verdict is not None:
            said = f"{verdict}, index {predictions.index[i]:.2f}"
        ax.set_title(f"{_shortened(sample.name)}\n{said}", fontsize="small", parse_math=False)
        told.append(f"{sample.name}: {said}, {len(regions)} regions marked, map highest {_peak(predictions.maps[i])}")
    for ax in axes.flat[len(indices) :]:
        ax.set_visible(False)
    _colour_bar(figure, axes, scale, UNITS.get(predictions.scoring if threshold is None else "index", "score"))
    describe(figure, f"{len(indices)} photographs under their anomaly maps. {_first(told)}", predictions.weights)
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
        raise DataError(f"{what}: {reason_of(predictions.metrics['undefined'], [kind])}")


# what figures share


def _first(said: Sequence[str]) -> str:
    """The first of many things that are said of images, and how many more there are."""
    more = [f"and {len(said) - MOST_TOLD} more"] if len(said) > MOST_TOLD else []
    return "; ".join([*said[:MOST_TOLD], *more]) + "."


def _peak(values: np.ndarray) -> str:
    """Where an (H, W) map has its highest value, in words."""
    place = np.unravel_index(values.argmax(), values.shape)
    down, across = (3 * at // n for at, n in zip(place, values.shape, strict=True))
    if down == across == 1:
        return "in the middle"
    return "at the " + " ".join(filter(None, (("top", "", "bottom")[down], ("left", "", "right")[across])))


def _images(rows: int, columns: int, size: tuple[int, int], beside: float = 0) -> tuple[Figure, np.ndarray]:
    """Axes (rows, columns) without ticks for images of one size (H, W), as wide as a notebook shows them.

    beside: inches for words at the left.
    """
    height = (0.84 * WIDTH - beside) / columns * size[0] / size[1]  # beside a colour bar
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, rows * (height + 0.1) + 0.5), squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    return figure, axes


def _draw_grid(ax: Axes, size: tuple[int, int], grid: tuple[int, int]) -> None:
    """The cells of a patch grid (down, across) on an image of (H, W)."""
    ax.set_xticks(np.linspace(0, size[1], grid[1] + 1)[1:-1] - 0.5, [])
    ax.set_yticks(np.linspace(0, size[0], grid[0] + 1)[1:-1] - 0.5, [])
    ax.grid(color="white", linewidth=0.5, alpha=0.7)
    ax.tick_params(length=0)


def _frame(ax: Axes, box: tuple[float, float, float, float], colour: str) -> None:
    """A frame around a box (left, top, right, bottom) of an image, seen on dark ground, too."""
    left, top, right, bottom = box
    for line, width in (("white", 4), (colour, 2)):
        edges = {"fill": False, "edgecolor": line, "linewidth": width}
        ax.add_patch(plt.Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, **edges))


def _middle(picture: np.ndarray) -> tuple[float, float, float, float]:
    """The box of the patch that is in the middle of a picture of `reasons.around`."""
    ends = len(picture) / 2 * (1 - 1 / AROUND), len(picture) / 2 * (1 + 1 / AROUND)
    return ends[0], ends[0], ends[1], ends[1]


def _goes_beyond(picture: np.ndarray) -> bool:
    """Whether a picture of `reasons.around` goes beyond its photograph's edge: the lines at its own edge are equal."""
    turned = picture.swapaxes(0, 1)
    return any((lines == lines[0]).all() for lines in (picture[:2], picture[-2:], turned[:2], turned[-2:]))


def _main_directions(rows: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Each of the others (n, D) in the two directions in which rows (N, D) differ most -> (n, 2)."""
    from sklearn.decomposition import PCA  # here and below: a second that most users need not wait for

    fitted = PCA(2, random_state=0).fit(rows)
    return [fitted.transform(other) for other in others]


def _colour_bar(figure: Figure, axes: np.ndarray, scale: Normalize, unit: str = UNITS["distance"]) -> None:
    """Beside the first row of axes (rows, columns), however many there are."""
    place = {"shrink": 1 / len(axes), "anchor": (0, 1), "fraction": 0.04, "aspect": 12}
    bar = figure.colorbar(mpl.cm.ScalarMappable(scale, COLOURS), ax=axes, **place)
    bar.ax.set_title(unit.replace(" ", "\n"), loc="left", fontsize="small")


def score_label(scoring: str) -> str:
    """What scores are called beside an axis: with their unit, unless this installation does not have their rule."""
    return f"score ({UNITS[scoring]})" if scoring in UNITS else "score"


def _y_label(ax: Axes, words: str) -> None:
    """What the vertical axis counts, level, above it."""
    ax.set_ylabel(words, rotation=0, ha="left", va="bottom")
    ax.yaxis.set_label_coords(0, 1.02)


def _histogram(
    predictions: Predictions, what: str, values: np.ndarray, defective: np.ndarray, thresholds: Sequence[Limit]
) -> Axes:
    """Scores of images or pixels, good and defective, in the same bars, of nearly equal widths.

    The first threshold is the edge of a bar, of the others, which count as good themselves, the next value above.
    """
    best, *others = (np.float32(value) for value, *_ in thresholds if value is not None)
    low, high = np.histogram_bin_edges(values, bins=1)
    inner = [edge for edge in (best, *np.nextafter(others, np.float32(np.inf))) if low < edge < high]
    parts = [
        np.linspace(a, b, 1 + math.ceil(BARS * (b - a) / (high - low)))[:-1]
        for a, b in pairwise(sorted({low, *inner, high}))
    ]
    edges = np.concatenate([*parts, [high]])
    figure, ax = plt.subplots(figsize=(WIDTH, 3.2))
    hatched = {"facecolor": "none", "edgecolor": DEFECTIVE, "hatch": "////", "linewidth": 1.5}
    said, above = [], values >= best
    for name, part, style in (("good", ~defective, {"color": GOOD}), ("defective", defective, hatched)):
        some = values[part]
        counts = np.histogram(some, edges)[0].astype(float)
        counts[counts == 0] = np.nan  # or the outline would run along the axis
        ax.stairs(counts, edges, fill=True, label=f"{name} ({len(some):,})", **style)
        said.append(
            f"{len(some)} {name} {what}s from {some.min():.3g} to {some.max():.3g}, "
            f"{(above & part).sum()} of them from the F1-optimal threshold {best:.3g} on"
        )
    _draw_thresholds(ax, thresholds)
    figure.legend(loc="outside right upper")  # beside the bars, whatever their shape
    ax.set(xlabel=f"{what} {score_label(predictions.scoring)}")
    _y_label(ax, f"{what}s")
    auroc = _with_interval(predictions, {"image": "instance_auroc", "pixel": "full_pixel_auroc"}[what])
    ax.set_title(f"{what} AUROC {auroc}")
    describe(figure, f"Histogram of {what} scores: {'; '.join(said)}; {what} AUROC {auroc}.", predictions.weights)
    return ax


def _image_thresholds(predictions: Predictions) -> list[Limit]:
    """Those of image scores, as far as there are any."""
    values = predictions.image_threshold, predictions.alarm_threshold, predictions.defective_threshold
    return list(zip(values, ("F1-optimal threshold", "look above", "defective above"), ("--", ":", "-."), strict=True))


def _draw_thresholds(ax: Axes, thresholds: Sequence[Limit]) -> None:
    for value, name, style in thresholds:
        if value is not None:
            halo = [withStroke(linewidth=2, foreground="white")]  # seen on bars, of which it hides next to nothing
            drawn = {"color": "black", "linestyle": style, "linewidth": 1, "path_effects": halo}
            ax.axvline(value, label=f"{name} {value:.3g}", **drawn)


def _with_interval(predictions: Predictions, metric: str) -> str:
    value, low, high = (predictions.metrics[name] for name in (metric, f"{metric}_low", f"{metric}_high"))
    return f"{value:.3f}" if low is None else f"{value:.3f} ({low:.3f} to {high:.3f})"


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
