"""That every figure can be read by all: words for those who do not see it, and colours that can be told apart."""

import base64
import dataclasses
import inspect
import io

import matplotlib as mpl
import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from nbclient import NotebookClient
from PIL import Image

import patchcore_kit as pk
from patchcore_kit import charts, plots, widgets
from patchcore_kit.reasons import Explanation, Normal, Region

WHITE, BLACK, DARK, BUTTON = "#ffffff", "#000000", "#111111", "#424242"  # the last: of JupyterLab's dark theme


@pytest.fixture(autouse=True)
def headless():
    mpl.use("Agg")
    with mpl.rc_context(plots.STYLE):
        yield
    plt.close("all")


@pytest.fixture(scope="module")
def category(sample_root):
    return pk.load_category(sample_root, "pill")


@pytest.fixture(scope="module")
def detector(category):
    return pk.PatchCore(pk.load_backbone("starter"), resize=64, imagesize=56, progress=False).fit(category.train)


@pytest.fixture(scope="module")
def predictions(detector, category):
    return detector.predict(category.test)


@pytest.fixture(scope="module")
def table(predictions):
    rows = pd.DataFrame([pk.evaluate(predictions)] * 3, ["mvtec_bottle", "mvtec_cable", "mvtec_$grid$"])
    rows.loc["mvtec_cable", ["full_pro", "undefined"]] = np.nan, "pixel metrics: needs a mask of every defective image"
    return rows.assign(weights="starter")


@pytest.fixture(scope="module")
def by_size(table):
    rows = table.assign(category=table.index, fit_seconds=2.0, masks=6)
    return pd.concat([rows.assign(size=56, empty_masks=2), rows.assign(size=112, empty_masks=0)], ignore_index=True)


PICTURE = np.zeros((64, 64, 3), dtype=np.uint8)
NEAREST = Normal("train/0.png", (8, 8, 16, 16), 3.25, PICTURE)
STRANGE = Explanation(
    "test/0.png", "defective", 2.5, "", (Region((1, 2, 30, 40), 500, 2.5, (8, 8, 16, 16), PICTURE, (NEAREST,)),)
)
# every function that draws a figure, and words that must be among those that describe it
FIGURES = {
    "image_grid": (lambda s: plots.image_grid(s.category.train[:3], s.detector.transform), "3 images", "3 good"),
    "image_sizes": (
        lambda s: plots.image_sizes(s.category.test[0], [pk.Transform(32, 28), s.detector.transform]),
        "28 x 28 pixels", "56 x 56 pixels",
    ),
    "patch_grid": (lambda s: plots.patch_grid(np.zeros((56, 56, 3), dtype=np.uint8), (7, 7)), "7 x 7 patches"),
    "coreset_scatter": (lambda s: plots.coreset_scatter(np.eye(9), np.arange(5), "random"), "9 patches", "the 5 that"),
    "heat_maps": (
        lambda s: plots.heat_maps(np.zeros((9, 9, 3)), {"coarse": np.eye(3)[:1], "fine": 2 * np.eye(9)}, "random"),
        "coarse up to 1, at the top left", "fine up to 2, at the top left",
    ),
    "method": (
        lambda s: plots.method(s.detector, s.category.train[:3], s.category.test[0]),
        "7 x 7 patches", "memory bank", "the score of the image is",
    ),
    "metric_distributions": (lambda s: plots.metric_distributions(s.table), "3 categories", "masks missing: cable"),
    "metric_dots": (lambda s: plots.metric_dots(s.table, ["full_pro"]), "mean of 2 of 3", "masks missing: cable"),
    "metrics_by_size": (
        lambda s: plots.metrics_by_size(s.by_size, ["full_pro", "fit_seconds"]),
        "fit_seconds mean 2 at 56, 2 at 112", "at 56, 6 of 18 masks are empty",
    ),
    "image_histogram": (
        lambda s: plots.image_histogram(s.predictions), "4 good images", "6 defective images", "image AUROC",
    ),
    "pixel_histogram": (lambda s: plots.pixel_histogram(s.predictions), "good pixels from", "AUROC"),
    "roc_curve": (lambda s: plots.roc_curve(s.predictions), "% of the defective images are found"),
    "scores_by_defect": (lambda s: plots.scores_by_defect(s.predictions), "4 good from", "F1-optimal threshold"),
    "examples": (
        lambda s: plots.examples(s.category.test, s.detector.transform, s.predictions, [0, 1]),
        "2 images, a row each: image, anomaly map", "ground truth", "map highest",
    ),
    "explanation": (
        lambda s: plots.explanation(STRANGE), "defective, index 2.50", "region 1, most like train/0.png at a distance",
    ),
    "over_photographs": (
        lambda s: plots.over_photographs(s.category.test, s.predictions, [0, 1]), "2 photographs", "map highest",
    ),
}  # fmt: skip


def test_no_figure_is_left_out():
    drawing = {
        name
        for name, function in inspect.getmembers(plots, inspect.isfunction)
        if not name.startswith("_")
        and function.__module__ in (plots.__name__, charts.__name__)
        and inspect.signature(function).return_annotation in (mpl.axes.Axes, np.ndarray)
    }
    assert drawing == set(FIGURES)


@pytest.fixture
def stock(request, category, detector, predictions, table, by_size):
    return dataclasses.make_dataclass("Stock", ["category", "detector", "predictions", "table", "by_size"])(
        category, detector, predictions, table, by_size
    )


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_says_what_it_shows_and_writes_it_level(name, stock):
    draw, *words = FIGURES[name]
    drawn = draw(stock)
    figure = (drawn.flat[0] if isinstance(drawn, np.ndarray) else drawn).figure
    said = figure.get_label()
    assert 20 < len(said) < 2000 and all(word in said for word in words), said
    figure.canvas.draw()
    for text in figure.findobj(mpl.text.Text):
        if text.get_text() and text.get_visible():
            assert text.get_rotation() == 0, text
            colour = mpl.colors.to_hex(text.get_color())
            assert contrast(colour, WHITE) >= 4.5, (text, colour)
    assert figure.get_facecolor() == (1, 1, 1, 1)  # white also where the theme is dark


def test_words_for_many_images_end(category, detector, predictions):
    axes = plots.examples(category.test, detector.transform, predictions, range(10))
    assert axes[0, 0].figure.get_label().endswith("; and 2 more. weights: starter")


def test_a_colour_bar_is_as_high_as_one_row(category, detector, predictions):
    for n in (1, 6):
        axes = plots.examples(category.test, detector.transform, predictions, range(n))
        axes[0, 0].figure.canvas.draw()
        bar, first = axes[0, 0].figure.axes[-1].get_window_extent(), axes[0, 0].get_window_extent()
        assert bar.height < 1.3 * first.height and bar.y0 > first.y0 - 0.3 * first.height


def test_notebooks_keep_the_words(tmp_path, monkeypatch):
    """In the outputs' metadata, and as HTML, which JupyterLab shows, from one picture; also of one's own figures."""
    monkeypatch.chdir(tmp_path)
    cells = [
        "import numpy as np\nfrom matplotlib import pyplot as plt",
        "from patchcore_kit import plots\nplots.show_alt_texts()",
        "plots.patch_grid(np.zeros((8, 8, 3), dtype=np.uint8), (2, 4));",
        "plt.plot([1, 2], label='<mine>'); plt.gcf().set_label('a \"line\" < 3');",
        "plt.plot([2, 1]);",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=60, shutdown_kernel="immediate").execute()
    saved = nbformat.reads(nbformat.writes(notebook), as_version=4)
    outputs = [cell.outputs[-1] for cell in saved.cells[2:]]
    said = ["An image, cut by a grid into 2 x 4 patches.", 'a "line" < 3', "figure"]
    assert [output.metadata["image/png"]["alt"] for output in outputs] == said
    assert [output.data["text/plain"] for output in outputs] == said
    for output in outputs:
        assert f'src="data:image/png;base64,{output.data["image/png"].strip()}"' in output.data["text/html"]
        Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))).verify()
    assert 'alt="a &quot;line&quot; &lt; 3"' in outputs[1].data["text/html"]
    assert all(len(cell.outputs) == 1 for cell in saved.cells[2:])  # shown once


def luminance(colour):
    parts = np.array(mpl.colors.to_rgb(colour))
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)


def contrast(one, other):
    """As WCAG 2.2 defines it: from 1 to 21."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_colours_can_be_told_apart():
    assert contrast(WHITE, BLACK) == pytest.approx(21)
    assert min(contrast(colour, WHITE) for colour in plots.WORDS.values()) >= 4.5
    marks = (plots.GOOD, plots.DEFECTIVE, plots.ACCENT, plots.OTHER)
    assert min(contrast(colour, WHITE) for colour in marks) >= 3
    assert min(contrast(colour, plots.GOOD) for colour in marks[1:]) >= 3  # those that are drawn over or beside it
    assert min(contrast(widgets.FRAME, ground) for ground in (WHITE, DARK, BUTTON)) >= 3
    ground, *parts = (mpl.colors.to_hex(colour / 255) for colour in widgets.MASK)
    assert min(contrast(colour, ground) for colour in parts) >= 3
    assert min(contrast(one, other) for one in parts for other in parts if one != other) > 2


# of colour-blind eyes (Vienot, Brettel and Mollon 1999), on linear red, green and blue
BLIND = {
    "deutan": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
    "protan": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
}


@pytest.mark.parametrize("eyes", BLIND)
def test_found_missed_and_false_alarms_differ_for_colour_blind_eyes(eyes):
    linear = (widgets.MASK / 255.0) ** 2.2
    seen = (linear @ np.array(BLIND[eyes]).T).clip(0, 1) ** (1 / 2.2)
    differences = np.abs(seen[:, None] - seen).max(axis=2)
    assert differences[~np.eye(4, dtype=bool)].min() > 0.25
