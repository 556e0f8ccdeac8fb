import dataclasses
import os

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from PIL import Image

import patchcore_kit as pk
from patchcore_kit import charts, plots
from patchcore_kit.calibration import Calibration
from patchcore_kit.datasets import as_samples
from patchcore_kit.errors import short
from patchcore_kit.plots import GAP, HEADER, save_segmentation_images, segmentation_image
from patchcore_kit.reasons import Explanation, Normal, Region, around
from patchcore_kit.transforms import Transform


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def panel(picture, i, shape=(40, 50)):
    left = GAP + i * (shape[1] + GAP)
    return np.asarray(picture)[HEADER : HEADER + shape[0], left : left + shape[1]]


def test_panels_show_what_they_are_given(image):
    mask = np.zeros((40, 50), dtype=bool)
    mask[10:20, 5:9] = True
    picture = segmentation_image({"image": image, "mask": mask, "map": mask * 3.0}, 0, 3, "caption")
    assert (panel(picture, 0) == image).all()
    assert (panel(picture, 1) == mask[..., None] * 255).all()
    heat = panel(picture, 2).astype(int).sum(axis=2)
    assert heat[mask].min() > heat[~mask].max()


def test_maps_share_one_scale(image):
    weak, strong = np.full((40, 50), 1.0), np.full((40, 50), 10.0)
    colours = [panel(segmentation_image({"map": values}, 0, 10), 0)[0, 0] for values in (weak, strong)]
    assert colours[0].sum() < 100  # a good part does not glow because it is alone
    assert colours[1].sum() > 600


def test_constant_maps(image):
    segmentation_image({"image": image, "map": np.zeros((40, 50))}, 0, 0)


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_pictures_of_any_number_with_and_without_masks(tmp_path, image, count, masks):
    samples = []
    for i in range(count):
        path = tmp_path / "part" / "test" / "dent" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        samples.append(pk.Sample(f"test/dent/{i}.jpg", path, None, "dent"))
    maps = np.random.default_rng(0).random((count, 32, 40)).astype(np.float32)
    truth = maps > 0.5 if masks else None
    names = tuple(sample.name for sample in samples)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    predictions = pk.Predictions(np.ones(count), maps, np.ones(count, dtype=int), truth, names, weights="random")
    save_segmentation_images(tmp_path / "out", samples, Transform((32, 40)), predictions, progress=False)
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == [
        f"part_test_dent_{i}.jpg.png" for i in range(count)
    ]
    panels = 4 if masks else 2
    for path in (tmp_path / "out").glob("*.png"):
        with Image.open(path) as picture:
            assert picture.width > panels * 46
    assert (tmp_path / "out" / "thesis.txt").exists()


# figures


@pytest.fixture(autouse=True)
def headless():
    """Draw without a screen, and check that what was drawn can be: warnings of the layout are errors."""
    mpl.use("Agg")
    with mpl.rc_context(plots.STYLE):
        yield
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()
    plt.close("all")


@pytest.fixture(scope="module")
def category(sample_root):
    return pk.load_category(sample_root, "weave")


@pytest.fixture
def predictions(category):
    """Maps that glow where the defects are, dimly in one image."""
    masks = np.stack([Transform(64, 56).mask(sample) for sample in category.test])
    noise = np.random.default_rng(0).random(masks.shape).astype(np.float32)
    maps = noise + 4 * masks * np.linspace(0.2, 1, len(masks), dtype=np.float32)[:, None, None]
    labels = np.array([sample.label for sample in category.test])
    names = tuple(sample.name for sample in category.test)
    return pk.Predictions(maps.max(axis=(1, 2)), maps, labels, masks, names, weights="random")


@pytest.fixture
def table():
    rows = np.random.default_rng(0).random((3, len(pk.METRICS)))
    table = pd.DataFrame(rows, ["mvtec_bottle", "mvtec_cable", "mvtec_grid"], pk.METRICS)
    table.loc["Mean"] = table.mean()
    return table.assign(weights="random").rename_axis("Row Names")


def texts(figure):
    return " ".join(text.get_text() for text in figure.findobj(mpl.text.Text))


def test_examples_share_one_scale_and_the_tasks_order(category, predictions):
    axes = plots.examples(category.test, Transform(64, 56), predictions, [0, 5, 9])
    assert axes.shape == (3, 4)
    titles = [ax.get_title() for ax in axes[0]]
    assert titles[0::3] == ["image", "ground truth"] and titles[1] == "anomaly map" and titles[2].startswith("map >= ")
    scales = {ax.images[0].get_clim() for ax in axes[:, 1]}
    assert scales == {(float(predictions.maps.min()), float(predictions.maps.max()))}
    assert "weights: random" in texts(axes[0, 0].figure)
    for row, i in zip(axes, (0, 5, 9), strict=True):
        assert (row[3].images[0].get_array() == predictions.masks[i]).all()
        assert (row[2].images[0].get_array() == (predictions.maps[i] >= predictions.pixel_threshold)).all()


def without_masks(category, predictions, unmasked):
    """Samples and predictions as they are where the images of these indices have no mask."""
    samples = [
        dataclasses.replace(sample, mask_path=None) if i in unmasked else sample
        for i, sample in enumerate(category.test)
    ]
    names = tuple(sample.name for sample in samples if sample.label == 1 and not sample.mask_path)
    return samples, dataclasses.replace(predictions, masks=None, unmasked=names)


def test_examples_without_masks(category, predictions, caplog):
    samples, without = without_masks(category, predictions, range(10))
    assert plots.examples(samples, Transform(64, 56), without, [0]).shape == (1, 2)
    reason = f"needs a mask of every defective image, and {without.unmasked[0]} and 5 more have none"
    assert caplog.messages == [f"no binarised maps and no ground truth: {reason}"]


def test_examples_where_one_mask_is_missing(category, predictions, caplog):
    """The masks that are there are shown, by the same rule."""
    samples, without = without_masks(category, predictions, [1])
    good = next(i for i, sample in enumerate(samples) if sample.label == 0)
    axes = plots.examples(samples, Transform(64, 56), without, [0, 1, good])
    assert [ax.get_title() for ax in axes[0]] == ["image", "anomaly map", "ground truth"]
    assert (axes[0, 2].images[0].get_array() == predictions.masks[0]).all()
    assert not axes[1, 2].images and "no mask" in texts(axes[1, 2].figure)
    assert not axes[2, 2].images[0].get_array().any()
    (said,) = caplog.messages
    assert said.startswith("no binarised maps: needs a mask of every") and said.endswith(f"{samples[1].name} has none")


def test_examples_of_unknown_images_say_nothing(category, predictions, caplog):
    """Nobody expects a mask there."""
    samples = [dataclasses.replace(sample, mask_path=None, defect=None) for sample in category.test]
    unknown = dataclasses.replace(predictions, masks=None, labels=np.full(10, -1))
    assert plots.examples(samples, Transform(64, 56), unknown, [0]).shape == (1, 2)
    assert caplog.messages == []


def test_examples_of_something_else(category, predictions):
    with pytest.raises(pk.SettingsError, match="do not belong to 10 samples at 32x32"):
        plots.examples(category.test, Transform(32, 32), predictions, [0])
    with pytest.raises(pk.SettingsError, match="do not belong to 8 samples"):
        plots.examples(category.train, Transform(64, 56), predictions, [0])
    with pytest.raises(pk.SettingsError, match="no examples"):
        plots.examples(category.test, Transform(64, 56), predictions, [])


def test_histograms_count_everything_and_label_the_threshold(predictions):
    for draw, threshold, total in (
        (plots.image_histogram, predictions.image_threshold, len(predictions.scores)),
        (plots.pixel_histogram, predictions.pixel_threshold, predictions.maps.size),
    ):
        ax = draw(predictions)
        good, defective = (bars.get_data() for bars in ax.patches)
        assert np.nansum(good.values) + np.nansum(defective.values) == total
        (line,) = ax.lines
        assert list(line.get_xdata()) == [threshold, threshold]
        assert f"F1-optimal threshold {threshold:.3g}" in texts(ax.figure)


def test_no_bar_of_a_histogram_lies_on_both_sides_of_a_threshold(calibrated):
    for draw, values, labels, thresholds in (
        (plots.image_histogram, calibrated.scores, calibrated.labels == 1, ["image_threshold"]),
        (plots.image_histogram, calibrated.scores, calibrated.labels == 1, ["alarm_threshold", "defective_threshold"]),
        (plots.pixel_histogram, calibrated.maps, calibrated.masks, ["pixel_threshold"]),
        (plots.pixel_histogram, calibrated.maps, calibrated.masks, ["alarm_threshold_pixel"]),
    ):
        for threshold in (getattr(calibrated, name) for name in thresholds):
            called = values >= threshold if len(thresholds[0]) == 15 else values > threshold
            for bars, part in zip(draw(calibrated).patches, (~labels, labels), strict=True):
                counts, edges, _ = bars.get_data()
                right = edges[:-1] >= np.float32(threshold)
                assert np.nansum(counts[right]) == (called & part).sum()
                widths = np.diff(edges)
                assert len(counts) < 60 and np.median(widths) < 2 * widths.max()


def test_histograms_need_the_truth(predictions):
    good = dataclasses.replace(predictions, labels=np.zeros_like(predictions.labels), masks=None)
    for draw, what in (
        (plots.image_histogram, "no image histogram: needs good and defective images$"),
        (plots.roc_curve, "no ROC curve: needs good and defective images$"),
        (plots.pixel_histogram, "no pixel histogram: needs a mask of every defective image$"),
    ):
        with pytest.raises(pk.DataError, match=what):
            draw(good)


def test_figures_of_no_images():
    none = pk.Predictions(np.zeros(0), np.zeros((0, 1, 1)), np.zeros(0, dtype=int), None, ())
    for draw in (plots.image_histogram, plots.pixel_histogram, plots.roc_curve, plots.scores_by_defect):
        with pytest.raises(pk.DataError, match=r"^no .*: no test images$"):
            draw(none)
    with pytest.raises(pk.DataError, match="no examples: no test images"):
        plots.examples([], Transform(64, 56), none, [])


def test_reasons_are_told_apart(predictions):
    """Also where an image's name has the signs between them."""
    some = dataclasses.replace(
        predictions, labels=np.ones(10, dtype=int), masks=None, unmasked=("test/a; b metrics/0: 1.png",)
    )
    with pytest.raises(pk.DataError, match="no threshold: needs good and defective images"):
        plots.need(some, "no threshold", "image")
    with pytest.raises(pk.DataError, match=r"^no mask: needs a mask .*, and test/a; b metrics/0: 1\.png has none$"):
        plots.need(some, "no mask", "pixel")
    plots.need(some, "no images")


def test_scores_by_defect_has_good_first_and_every_image(predictions):
    ax = plots.scores_by_defect(predictions)
    kinds = [label.get_text() for label in ax.get_yticklabels()]
    assert kinds[0] == "good" and kinds[1:] == sorted(kinds[1:]) and len(kinds) > 2
    assert sum(len(points.get_offsets()) for points in ax.collections) == len(predictions.scores)


def test_roc_curve_shows_its_threshold(predictions):
    ax = plots.roc_curve(predictions)
    assert ax.get_xlim() == ax.get_ylim() == (0, 1)
    false_rate, true_rate = (float(data[0]) for data in ax.lines[-1].get_data())
    found = predictions.scores >= predictions.image_threshold
    assert true_rate == found[predictions.labels == 1].mean() and false_rate == found[predictions.labels == 0].mean()


def test_points_are_sorted_in_each_panel_without_the_mean(table):
    axes = plots.metric_dots(table)
    assert len(axes) == len(pk.METRICS)
    for metric, ax in zip(pk.METRICS, axes, strict=True):
        assert list(ax.lines[0].get_xdata()) == sorted(table[metric].drop("Mean"))  # best on top
        assert f"mean {table.loc['Mean', metric]:.3f}" in ax.get_title()
        low, high = ax.get_xlim()
        assert 0 <= low < table[metric].min() and table[metric].max() <= high <= 1


def test_published_figures_are_compared_with_the_same_categories(table, caplog):
    published = pk.published_results()
    table.loc["mvtec_cable", "full_pixel_auroc"] = np.nan
    (ax,) = plots.metric_dots(table, ["instance_auroc"], published)
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert list(ax.lines[1].get_xdata()) == [published.loc[f"mvtec_{name}", "instance_auroc"] for name in names]
    table = table.rename(index={"mvtec_grid": "mvtec_own"})
    axes = plots.metric_distributions(table, published, ["instance_auroc", "full_pixel_auroc", "full_pro"])
    assert [[len(line.get_xdata()) for line in ax.lines] for ax in axes] == [[3, 2], [2, 1], [3]]
    assert "published (wide ResNet-50, ImageNet): 2 of these 3 categories" in texts(axes[0].figure)


def many(count, seed=0, **columns):
    """A results table of so many categories with names of all lengths, all metrics and intervals."""
    random = np.random.default_rng(seed)
    values = (1 - random.random((count, len(pk.METRICS))) ** 3 * 0.5).round(2)  # some equal, most near 1
    names = [f"mvtec_{'part_number_' * (n % 3)}{n}" for n in range(count)]
    table = pd.DataFrame(values, names, pk.METRICS).rename_axis("Row Names")
    for metric in pk.METRICS[:6]:
        table[[f"{metric}_low", f"{metric}_high"]] = np.stack([table[metric] - 0.1, table[metric].clip(upper=1)], 1)
    return table.assign(weights="random", **columns)


@pytest.mark.parametrize("count", [1, 3, 8, 15])
def test_points_are_named_and_no_name_lies_over_another(count):
    table = many(count)
    for metric, ax in zip(pk.METRICS, plots.metric_distributions(table), strict=True):
        values = table[metric].rename(index=lambda name: name.removeprefix("mvtec_"))
        named = [text.get_text() for text in ax.texts]
        for end in (values.min(), values.max()):
            first, *others = sorted(values.index[values == end])
            more = f" +{len(others)}" if others and count > charts.FEW else ""
            assert {short(first, charts.LONGEST) + more, ", ".join([first, *others])} & set(named)
        assert len(named) == count if count <= charts.FEW else len(named) >= 2
        boxes = [text.get_window_extent() for text in ax.texts]
        assert not any(box.count_overlaps(boxes[:n]) for n, box in enumerate(boxes))
        low, high = ax.get_xlim()
        assert 0 <= low < values.min() and values.max() <= high <= 1


def test_equal_ends_are_named_together():
    names = [f"mvtec_{name}" for name in ("pill", "biscuit", "cap", "wood", "bottle_with_a_long_cap")]
    table = pd.DataFrame({"a": [1, 1, 0.9, 0.8, 0.7], "b": [1, 1, 0.5, 1, 1], "c": [1.0] * 5}, names)
    axes = plots.metric_distributions(table, None, ["a", "b", "c"])
    labels = [{text.get_text() for text in ax.texts} for ax in axes]
    assert labels == [{"biscuit, pill", "bottle_with_a_long_cap"}, {"biscuit +3", "cap"}, {"biscuit +4"}]
    assert "a from 0.700 (bottle_with_a_long_cap) to 1.000 (biscuit, pill)" in axes[0].figure.get_label()


def test_each_metric_has_an_axis_of_its_own(table):
    table["full_pro"], table["full_pixel_ap"] = [0.98, 0.99, 1, 0.99], [0.2, 0.3, 0.4, 0.3]
    axes = plots.metric_distributions(table, None, ["full_pro", "full_pixel_ap"])
    assert axes[0].get_xlim()[0] > 0.97 and axes[1].get_xlim()[1] < 0.5


def test_categories_without_values_are_named_with_the_reason(table):
    reason = "needs a mask of every defective image, and test/a/0.png and 1 more have none"
    table["undefined"] = [f"pixel metrics: {reason}", "", "image metrics: needs good and defective images", ""]
    table.loc["mvtec_bottle", "full_pro"], table.loc["mvtec_grid", "instance_auroc"] = np.nan, np.nan
    image, pixel = plots.metric_dots(table, ["instance_auroc", "full_pro"])
    for ax, name, why in ((image, "grid", "of one kind only"), (pixel, "bottle", "masks missing")):
        assert ax.get_yticklabels()[0].get_text() == name and [text.get_text() for text in ax.texts] == [why]
        assert "mean of 2 of 3 " in ax.get_title()
    (ax,) = plots.metric_distributions(table, None, ["full_pro"])
    assert ax.get_title("right") == "masks missing: bottle"
    rows = table.drop(index="Mean").assign(category=["a", "b", "c"])
    (ax,) = plots.metrics_by_size(pd.concat([rows.assign(size=1), rows.assign(size=2)]), ["full_pro"])
    assert ax.get_title() == "full_pro, mean of 2 of 3\nmasks missing: a"


def test_masks_that_a_small_size_empties_are_told():
    small, large = many(2, category=["a", "b"], size=112, masks=9), many(2, category=["a", "b"], size=224, masks=9)
    both = pd.concat([small.assign(empty_masks=[3, 5]), large.assign(empty_masks=0)])
    image, pixel = plots.metrics_by_size(both, ["instance_auroc", "full_pro"])
    (hollow,) = (line for line in pixel.lines if line.get_markerfacecolor() == "white" and len(line.get_xdata()))
    assert list(hollow.get_xdata()) == [112] and len(image.lines) == len(pixel.lines) - 1
    said = "at 112, 8 of 18 masks are empty: these defects do not count"
    assert said in texts(pixel.figure) and said in pixel.figure.get_label()
    (ax,) = plots.metrics_by_size(both, ["instance_auroc"])
    assert said not in texts(ax.figure)


@pytest.mark.parametrize(("count", "named"), [(3, 4), (15, 3)])
def test_lines_are_named_at_their_ends(count, named):
    rows = [many(count, seed, category=[f"c{n}" for n in range(count)], size=112 + seed) for seed in range(2)]
    axes = plots.metrics_by_size(pd.concat(rows), pk.METRICS)
    axes[0].figure.canvas.draw()
    for metric, ax in zip(pk.METRICS, axes, strict=True):
        names = [text.get_text() for text in ax.texts]
        assert len(names) == named and "mean" in names
        assert {f"c{n}" for n in (rows[1][metric].argmin(), rows[1][metric].argmax())} & set(names)
        boxes = [mpl.text.Text.get_window_extent(text) for text in ax.texts]  # without the line to it
        places = sorted((box.y0 + box.y1) / 2 for box in boxes)
        assert np.diff(places).min() > 0.9 * max(box.height for box in boxes) and ax.get_ylim()[1] <= 1


def test_the_published_table_is_the_references():
    """Its mean row, to all digits, from the reference's own results.csv."""
    published = pk.published_results()
    exact = (0.9916350567738738, 0.9811085868084706, 0.973575817834662, 0.943652127098289)
    assert published.loc["Mean"].tolist() == pytest.approx(exact, abs=5e-5)
    assert published.drop(index="Mean").mean().tolist() == pytest.approx(exact, abs=2e-4)


def test_metrics_that_are_not_defined_are_left_out(table):
    table["full_pro"] = np.nan
    assert len(plots.metric_dots(table)) == len(pk.METRICS) - 1
    with pytest.raises(pk.DataError, match="no values of full_pro in this table"):
        plots.metric_dots(table, ["full_pro"])


def test_what_categories_lack_is_told_with_the_reason(table, caplog):
    pixel = [metric for metric in pk.METRICS if not metric.startswith("instance_")]
    reason = "pixel metrics: needs a mask"
    table["undefined"] = [reason, "", f"image metrics: needs two; {reason}", ""]
    table.loc[["mvtec_bottle", "mvtec_grid"], pixel] = np.nan
    assert len(plots.metric_dots(table, ["instance_auroc", "full_pro"])) == 2  # cable has both
    assert len(plots.metric_dots(table, ["instance_auroc"])) == 1
    assert plots.defined(table, pk.METRICS) == list(pk.METRICS)
    assert caplog.messages == [
        "no values of full_pro for bottle and 1 more: needs a mask",
        "no pixel metrics for bottle and 1 more: needs a mask",
    ]
    caplog.clear()
    table["full_pro"] = np.nan
    assert plots.defined(table, ["instance_auroc", "full_pro"]) == ["instance_auroc"]
    with pytest.raises(pk.DataError, match="no values of full_pro for bottle and 1 more: needs a mask"):
        plots.metric_dots(table, ["full_pro"])
    rows = table.drop(index="Mean").assign(category=["a", "a", "b"], size=[1, 2, 1])
    with pytest.raises(pk.DataError, match="no values of full_pro for a and 1 more: needs a mask"):
        plots.metrics_by_size(rows, ["full_pro"])
    assert caplog.messages == ["no values of full_pro for bottle and 1 more: needs a mask"]


def test_costs_that_are_not_measured_have_no_reason(table, caplog):
    table[["fit_seconds", "peak_mb"]], table["undefined"] = (1.0, np.nan), "pixel metrics: needs a mask"
    assert plots.defined(table, ["fit_seconds", "peak_mb"]) == ["fit_seconds"]
    assert caplog.messages == []


def test_sizes_have_a_line_for_each_category_and_the_mean(table):
    rows = table.drop(index="Mean").assign(category=["a", "b", "c"], fit_seconds=2.0)
    both = pd.concat([rows.assign(size=112), rows.assign(size=224, instance_auroc=1.0)])
    axes = plots.metrics_by_size(both, ["instance_auroc", "fit_seconds"])
    assert [len(ax.lines) for ax in axes] == [4, 4]
    assert axes[0].lines[-1].get_ydata()[-1] == 1
    assert axes[1].get_ylim()[0] == 0


def test_the_other_figures(category):
    transform = Transform(64, 56)
    axes = plots.image_grid([*category.train[:2], *category.test[:2]], transform, columns=3)
    assert axes.shape == (2, 3) and [ax.get_visible() for ax in axes.flat] == [True] * 4 + [False] * 2
    outlined = [bool(ax.collections) for ax in axes.flat[:4]]
    assert outlined == [sample.mask_path is not None for sample in (*category.train[:2], *category.test[:2])]
    with pytest.raises(pk.DataError, match="no images"):
        plots.image_grid([], transform)
    image = transform.image(category.test[0])
    assert len(plots.patch_grid(image, (7, 7)).get_xticks()) == 6
    rows = np.random.default_rng(0).random((100, 8)).astype(np.float32)
    everything, kept = plots.coreset_scatter(rows, np.array([3, 5]), "random").collections
    assert (kept.get_offsets() == everything.get_offsets()[[3, 5]]).all()
    axes = plots.heat_maps(image, {"coarse": np.eye(7), "fine": 2 * np.eye(56)}, "random")
    assert {ax.images[0].get_clim() for ax in axes[1:]} == {(0, 2)}
    axes = plots.image_sizes(category.test[0], [Transform(32, 28), transform])
    assert [ax.images[0].get_array().shape for ax in axes] == [(28, 28, 3), (56, 56, 3)]
    assert category.test[0].defect == axes[0].figure.get_suptitle() != "good"


def test_pictures_never_overwrite_each_other(tmp_path, predictions):
    names = ("a/b/c/d/0.png", "x/b/c/d/0.png", "x/b/c/d/0.PNG", "b/c/d/0.png.png", "a_b/c/d/0.png")
    for name in names:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64)).save(path)
    paths = [tmp_path / "data" / name for name in names]
    some = pk.Predictions(predictions.scores[:5], predictions.maps[:5], predictions.labels[:5], None, names)
    save_segmentation_images(tmp_path / "pictures", paths, Transform(64, 56), some, progress=False)
    written = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert len(written) == 5 and "b_c_d_0.png" in written and "b_c_d_0_2.png" in written


def test_pictures_of_names_that_no_file_can_have_again(tmp_path, predictions):
    paths = [tmp_path / ("y" * 200) / name for name in (os.fsdecode(b"caf\xe9.png"), "x" * 240 + ".png")]
    paths[0].parent.mkdir()
    for path in paths:
        Image.new("RGB", (64, 64)).save(path)
    some = pk.Predictions(predictions.scores[:2], predictions.maps[:2], predictions.labels[:2], None, ("a", "b"))
    for _ in range(2):  # the second time over the first
        save_segmentation_images(tmp_path / "pictures", paths, Transform(64, 56), some, progress=False)
    written = [path.name for path in (tmp_path / "pictures").iterdir()]
    assert len(written) == 2 and all(len(name.encode()) <= 204 for name in written)
    (tmp_path / "pictures" / written[0]).write_text("mine")
    with pytest.raises(pk.ResultsError, match="would be replaced, but is no picture of the kit's"):
        save_segmentation_images(tmp_path / "pictures", paths, Transform(64, 56), some, progress=False)


def test_pictures_of_frames(tmp_path, predictions):
    frames = np.zeros((2, 64, 64, 3), dtype=np.uint8)
    some = pk.Predictions(
        predictions.scores[:2], predictions.maps[:2], predictions.labels[:2], None, ("frame 0", "frame 1")
    )
    save_segmentation_images(tmp_path, frames, Transform(64, 56), some, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frame 0.png", "frame 1.png"]
    assert plots.examples(frames, Transform(64, 56), some, [1]).shape == (1, 2)
    assert plots.image_grid(frames, Transform(64, 56)).shape == (1, 6)


def test_one_picture_alone_glows_only_above_a_given_scale(tmp_path, predictions):
    """By its own scale the strangest place is always bright; on a given one a good image stays dark."""
    frame = np.zeros((64, 64, 3), dtype=np.uint8)
    maps = np.linspace(0, 1, 56 * 56, dtype=np.float32).reshape(1, 56, 56)
    alone = pk.Predictions(maps.max(axis=(1, 2)), maps, np.array([-1]), None, ("frame 0",))
    brightest = []
    for scale in (None, (0, 20)):
        save_segmentation_images(tmp_path, frame, Transform(64, 56), alone, scale=scale, progress=False)
        picture = np.asarray(Image.open(tmp_path / "frame 0.png"))
        heat = picture[HEADER : HEADER + 56, 2 * GAP + 56 : 2 * GAP + 112]
        brightest.append(int(heat.sum(axis=2).max()))
    assert brightest[0] > 500 and brightest[1] < 100
    axes = plots.examples(frame, Transform(64, 56), alone, [0], scale=(0, 20))
    assert axes[0, 1].images[0].get_clim() == (0, 20)
    for wrong in ((1, 1), (2, 1)):
        with pytest.raises(pk.SettingsError, match="scale is"):
            plots.examples(frame, Transform(64, 56), alone, [0], scale=wrong)


# thresholds and scales from good images


@pytest.fixture
def calibrated(predictions):
    good = np.linspace(0.5, 1, 40, dtype=np.float32) * float(np.median(predictions.scores))
    return dataclasses.replace(predictions, calibration=Calibration(good, good / 2, 0.05), scoring="density")


def test_all_thresholds_are_drawn_and_named(calibrated):
    for draw, wanted in (
        (plots.image_histogram, ("image_threshold", "alarm_threshold", "defective_threshold")),
        (plots.scores_by_defect, ("image_threshold", "alarm_threshold", "defective_threshold")),
        (plots.pixel_histogram, ("pixel_threshold", "alarm_threshold_pixel")),
    ):
        ax = draw(calibrated)
        values = [getattr(calibrated, name) for name in wanted]
        assert [line.get_xdata()[0] for line in ax.lines] == values
        for value in values:
            assert f"{value:.3g}" in texts(ax.figure)
        assert "relative distance" in texts(ax.figure)
    ax = plots.scores_by_defect(calibrated, own=False)
    assert [line.get_xdata()[0] for line in ax.lines] == [calibrated.image_threshold]


def test_scores_of_a_rule_that_is_not_known_have_no_unit(category, calibrated):
    """As of predictions that a later version has saved."""
    foreign = dataclasses.replace(calibrated, scoring="later")
    assert plots.scores_by_defect(foreign).get_xlabel() == "image score"
    assert plots.pixel_histogram(foreign).get_xlabel() == "pixel score"
    axes = plots.examples(category.test, Transform(64, 56), foreign, [0])
    assert axes[0, 0].figure.axes[-1].get_title("left") == "score"


def test_the_scale_is_fixed_by_training(category, calibrated):
    assert plots.map_scale(calibrated) == (0, 2 * calibrated.alarm_threshold_pixel)
    assert plots.map_scale(calibrated.of([0])) == plots.map_scale(calibrated)  # whatever else was tested
    assert plots.map_scale(calibrated, (1, 5)) == (1, 5)
    axes = plots.examples(category.test, Transform(64, 56), calibrated, [0, 9])
    assert {ax.images[0].norm.vmax for ax in axes[:, 1]} == {2 * calibrated.alarm_threshold_pixel}
    for i, row in zip((0, 9), axes, strict=True):
        assert f"index {calibrated.index[i]:.2f}\n" in row[0].get_ylabel()


def test_verdicts_are_told_as_the_models(category, calibrated):
    """Below the name of a defective image "good" alone would read as a fact."""
    told = {"good": "called good", "look": "look", "defective": "called defective"}
    look = (calibrated.alarm_threshold + calibrated.defective_threshold) / 2
    scores = np.resize([0, look, 2 * calibrated.defective_threshold], 10).astype(np.float32)
    three = dataclasses.replace(calibrated, scores=scores)
    assert set(three.verdicts) == set(told)
    axes = plots.examples(category.test, Transform(64, 56), three, range(10))
    for verdict, row in zip(three.verdicts, axes, strict=True):
        assert row[0].get_ylabel().endswith(f"\n{told[verdict]}")


def test_without_masks_maps_are_cut_at_the_threshold_from_good_images(category, calibrated, caplog):
    alone = dataclasses.replace(calibrated, masks=None)
    samples = [dataclasses.replace(sample, mask_path=None) for sample in category.test]
    axes = plots.examples(samples, Transform(64, 56), alone, [9])
    assert axes[0, 2].get_title() == f"map >= {calibrated.alarm_threshold_pixel:.3g}"
    assert [line.split(":")[0] for line in caplog.messages] == ["no ground truth"]


def test_metrics_are_drawn_with_their_intervals():
    table = pd.DataFrame(
        {"f": [0.8, 0.9], "f_low": [0.7, 0.85], "f_high": [0.85, 0.95], "category": ["a", "b"], "size": [1, 1]},
        ["mvtec_a", "mvtec_b"],
    )
    (ax,) = plots.metric_dots(table, ["f"])
    (lines,) = ax.collections
    assert sorted((s[0][0], s[1][0]) for s in lines.get_segments()) == [(0.7, 0.85), (0.85, 0.95)]
    assert ax.get_xlim()[0] <= 0.7 and ax.get_xlim()[1] >= 0.95
    (ax,) = plots.metrics_by_size(table, ["f"])
    assert "mean and, where there is one, its interval of 95 %," in texts(ax.figure)
    (mean,) = ax.collections
    ((_, low), (_, high)) = mean.get_segments()[0]
    assert (low, high) == pytest.approx((0.85 - (0.1**2 + 0.05**2) ** 0.5 / 2, 0.85 + (0.05**2 + 0.05**2) ** 0.5 / 2))


@pytest.mark.parametrize("ends", [[], ["f_low", "f_high"]])
def test_intervals_are_told_only_where_they_are_drawn(ends):
    table = pd.DataFrame({"f": [0.8, 0.9], "category": ["a", "b"], "size": [1, 1]}, ["mvtec_a", "mvtec_b"])
    table[ends] = np.nan  # as of one image alone
    for draw in (
        plots.metric_dots,
        plots.metrics_by_size,
        lambda *given: plots.metric_distributions(given[0], None, given[1]),
    ):
        assert "interval" not in texts(draw(table, ["f"])[0].figure)
    table[["f_low", "f_high"]] = [[0.7, 0.9], [np.nan, np.nan]]
    for axes in (plots.metric_dots(table, ["f"]), plots.metric_distributions(table, None, ["f"])):
        assert "thin lines: intervals of 95 %" in texts(axes[0].figure)


# reasons


def region(pictures, names, index):
    """A region, and a normal patch of each of these names."""
    nearest = tuple(Normal(name, (8, 8, 16, 16), 3.25 + i, pictures[1 + i]) for i, name in enumerate(names))
    return Region((1, 2, 30, 40), 500, index, (8, 8, 16, 16), pictures[0], nearest)


@pytest.mark.parametrize("index", [2.5, None])
def test_reasons_are_shown_beside_normal_patches(index):
    pictures = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    names = ("train/good/0.png", "train/good/1.png", "train/good/2.png")
    regions = region(pictures, names, index), region(pictures[::-1], names[:1], index)
    verdict = None if index is None else "defective"
    axes = plots.explanation(Explanation("test/dent/0.png", verdict, index, "darker than all", regions))
    assert axes.shape == (2, 4)
    for row, shown in zip(axes, regions, strict=True):
        pairs = [(shown.picture, "region"), *((one.picture, one.name) for one in shown.nearest)]
        for ax, (picture, name) in zip(row, pairs, strict=False):
            assert (ax.images[0].get_array() == picture).all() and ax.get_title().startswith(name)
            for box in ax.patches:  # the patch itself, an eighth of the picture, in the middle
                assert (box.get_x(), box.get_width(), box.get_height()) == (27.5, 8, 8)
        assert [ax.get_visible() for ax in row] == [i < len(pairs) for i in range(4)]
    said = texts(axes[0, 0].figure)
    assert "distance 3.25" in said and "distance 5.25" in said and "darker than all" in said
    assert ("test/dent/0.png: defective, index 2.50" in said) == (index is not None) == ("region 2\nindex 2.50" in said)


def test_models_without_origins_show_the_region_alone():
    pictures = np.zeros((1, 24, 24, 3), dtype=np.uint8)
    axes = plots.explanation(Explanation("0.png", "look", 1.2, "", (region(pictures, (), 1.2),)))
    assert axes.shape == (1, 1)


def test_repeated_pixels_are_told():
    image, note = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), "its last pixels are repeated"
    inside, left, bottom = (around(image, cell, (16, 16)) for cell in (8 * 16 + 8, 8 * 16 + 3, 13 * 16 + 8))
    for pictures in ([inside, inside], [inside, left], [bottom, inside]):
        axes = plots.explanation(Explanation("0.png", "look", 1.2, "", (region(pictures, ["1.png"], 1.2),)))
        assert (note in texts(axes[0, 0].figure)) == (pictures[0] is not pictures[1])


def test_good_images_have_no_reasons():
    with pytest.raises(pk.DataError, match=r"no regions to show: test/good/0\.png is good"):
        plots.explanation(Explanation("test/good/0.png", "good", 0.5, "", ()))


def test_maps_over_photographs(tmp_path, sample_root):
    """In the photographs' own pixels, whatever the network has seen of them."""
    good = sorted(sample_root.glob("pill/train/good/*"))
    detector = pk.PatchCore(pk.load_backbone("starter"), resize=72, imagesize=64, scoring="density", progress=False)
    detector.fit(good)
    strange = Image.open(good[0]).resize((300, 200))
    strange.paste("red", (120, 90, 160, 130))
    strange.save(tmp_path / f"{'long' * 12}$_$.png")
    samples = as_samples([tmp_path / f"{'long' * 12}$_$.png", *good[:3]])
    predictions = detector.predict(samples)
    axes = plots.over_photographs(samples, predictions, [0, 1, 2, 3])
    assert len(axes) == 4 and len(axes[0].figure.axes) == 7  # two empty ones, and the colour bar
    first, second, *_ = axes
    assert first.get_xlim() == (-0.5, 299.5) and first.get_ylim() == (199.5, -0.5)
    name = f"...{samples[0].name[-36:]}"
    assert first.get_title() == f"{name}\ndefective, index {predictions.index[0]:.2f}"
    photograph, heat = (drawn.get_array() for drawn in first.images)
    assert photograph.shape == (200, 300, 3) and heat.shape == (200, 300, 4)
    unseen = np.isnan(predictions.placed(0))
    assert unseen.any() and (heat[unseen] == (0.5, 0.5, 0.5, 0.7)).all() and heat[~unseen][:, 3].max() <= plots.COVER
    region, *others = predictions.explain(0).regions
    box = first.patches[0].get_bbox()
    assert (box.x0, box.y0, box.x1, box.y1) == tuple(side - 0.5 for side in region.box)
    assert [text.get_text() for text in first.texts] == [str(n + 1) for n in range(len(others) + 1)]
    assert len(first.collections) == 2 and not second.patches and not second.texts  # outlined twice
    outline = np.concatenate([path.vertices for path in first.collections[0].get_paths()])
    assert predictions.placed(0)[tuple(outline.round().astype(int).T[::-1])] == pytest.approx(
        predictions.alarm_threshold_pixel, rel=0.3
    )


def test_photographs_without_threshold_reasons_or_sizes(sample_root):
    samples = as_samples(sorted(sample_root.glob("pill/train/good/*"))[:2])
    detector = pk.PatchCore(pk.load_backbone("starter"), resize=(64, 64), progress=False)
    predictions = detector.fit(samples).predict(samples)
    assert predictions.alarm_threshold is None
    (ax,) = plots.over_photographs(samples, predictions, [1])
    assert ax.get_title().endswith(f"score {predictions.scores[1]:.3g}") and len(ax.texts) == 1
    (ax,) = plots.over_photographs(samples, dataclasses.replace(predictions, evidence=None), [1])
    assert not ax.texts
    with pytest.raises(pk.ResultsError, match="predict again"):
        plots.over_photographs(samples, dataclasses.replace(predictions, transform=None), [1])
    with pytest.raises(pk.SettingsError, match="do not belong to these 1 samples"):
        plots.over_photographs(samples[:1], predictions, [0])
    with pytest.raises(pk.SettingsError, match="no photographs to show"):
        plots.over_photographs(samples, predictions, [])


def test_large_photographs_are_drawn_smaller(tmp_path, sample_root):
    path = tmp_path / "large.jpg"
    Image.open(next(sample_root.glob("pill/train/good/*"))).resize((2500, 40)).save(path)
    predictions = (
        pk.PatchCore(pk.load_backbone("starter"), resize=(32, 512), progress=False).fit([path]).predict([path])
    )
    (ax,) = plots.over_photographs([path], predictions, [0])
    assert ax.images[0].get_array().shape == (20, 1250, 3) and ax.get_xlim() == (-0.5, 2499.5)
