"""Time and memory against the number of training images and the coreset's percentage: a table, exponents, a plot.

    python benchmarks/growth.py --data DATA --category bottle --plot growth.png

Each point is a fit and a prediction of all test images in a process of its own; memory is what its peak is above the
imports. Where a category has too few training images, mirrored copies of them are added. An exponent e says that
something grows as the number of images, or the percentage, to the power of e.
"""

import patchcore_kit as pk  # before torch

# isort: split
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import pandas as pd
from common import choose_category, in_own_process, peak_gigabytes, weights_file
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator
from PIL import Image, ImageOps

from patchcore_kit import coreset

FIGURES = ("fit, s", "coreset, s", "predict, s", "peak, GB")


def training_images(category: pk.Category, count: int, folder: Path) -> list[Path]:
    """`count` images: the category's, then their mirrored copies."""
    images = [sample.path for sample in category.train]
    for path in images[: max(0, count - len(images))]:
        with Image.open(path) as image:
            ImageOps.mirror(image).save(folder / f"mirrored_{path.name}")
        images.append(folder / f"mirrored_{path.name}")
    return images[:count]


def measure(train: list[Path], test: list[Path], settings: dict) -> dict[str, float]:
    """Fit and predict once in this process."""
    import torch  # noqa: F401  # imports first: they do not count

    backbone = pk.load_backbone("resnet18", weights=settings.pop("weights"))
    detector = pk.PatchCore(backbone, **settings, progress=False)
    spent, select = [], coreset.select_first

    def timed(*args, **options):
        started = time.perf_counter()
        kept = select(*args, **options)
        spent.append(time.perf_counter() - started)
        return kept

    coreset.select_first = timed
    imports, started = peak_gigabytes(), time.perf_counter()
    detector.fit(train)
    fitted = time.perf_counter()
    detector.predict(test)
    done = time.perf_counter()
    return dict(zip(FIGURES, (fitted - started, spent[0], done - fitted, peak_gigabytes() - imports), strict=True))


def run(train: list[Path], test: list[Path], settings: dict) -> dict[str, float]:
    """`measure` in a process of its own."""
    return in_own_process(__file__, [[str(path) for path in train], [str(path) for path in test], settings])


def exponent(x: list[float], y: list[float]) -> float:
    """Of the power law through the points, by least squares of the logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def draw(table: pd.DataFrame, path: Path) -> None:
    """One panel per figure, against the images, a line for each percentage."""
    figure, axes = plt.subplots(1, len(FIGURES), figsize=(14, 3.4), layout="constrained")
    for axis, name in zip(axes, FIGURES, strict=True):
        for percentage, rows in table.groupby("percentage"):
            axis.plot(rows["images"], rows[name], marker="o", label=f"{percentage:.0%}")
        axis.set(xscale="log", yscale="log", title=name, xlabel="training images")
        axis.set_xticks(table["images"].unique(), table["images"].unique().astype(str), minor=False)
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend(title="coreset")
    figure.savefig(path, dpi=100)


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path), help="Data folder.  [default: MVTec AD, else the sample data]")
@click.option("--category", help="[default: the first]")
@click.option("--images", multiple=True, type=int, default=(50, 100, 200, 400), show_default=True)
@click.option("--percentages", "-p", multiple=True, type=float, default=(0.01, 0.05, 0.1, 0.25), show_default=True)
@click.option("--largest", default=391, show_default=True, help="Images of the runs that compare storages.")
@click.option("--plot", type=click.Path(path_type=Path), help="Where to draw.")
@click.option("--one", is_flag=True, hidden=True, help="Measure what standard input says.")
def main(
    data: Path, category: str, images: tuple[int], percentages: tuple[float], largest: int, plot: Path, one: bool
) -> None:
    if one:
        click.echo(json.dumps(measure(*json.load(sys.stdin))))
        return
    _, category = choose_category(data, category)
    test = [sample.path for sample in category.test]
    with tempfile.TemporaryDirectory() as folder:
        weights = str(weights_file("resnet18", Path(folder))[0])
        train = training_images(category, max(*images, largest), Path(folder))
        points = []
        for count, percentage in itertools.product(images, percentages):
            figures = run(train[:count], test, {"weights": weights, "percentage": percentage})
            points.append({"images": count, "percentage": percentage, **figures})
            click.echo(points[-1], err=True)
        storages = {s: run(train[:largest], test, {"weights": weights, "storage": s}) for s in ("float32", "float16")}
    table = pd.DataFrame(points)
    click.echo(f"{category.name}, resnet18, {len(test)} test images\n")
    click.echo(table.to_string(index=False, float_format="{:.2f}".format))
    by_images = {
        p: {name: exponent(rows["images"], rows[name]) for name in FIGURES} for p, rows in table.groupby("percentage")
    }
    by_percentage = {
        n: {name: exponent(rows["percentage"], rows[name]) for name in FIGURES} for n, rows in table.groupby("images")
    }
    for title, exponents in (("images, at each percentage", by_images), ("percentage, at each count", by_percentage)):
        click.echo(f"\nexponents by {title}")
        click.echo(pd.DataFrame(exponents).to_string(float_format="{:.2f}".format))
    click.echo(f"\n{largest} images, 10 %, by storage")
    click.echo(pd.DataFrame(storages).to_string(float_format="{:.2f}".format))
    if plot:
        draw(table, plot)
        click.echo(f"\nplot: {plot}")


if __name__ == "__main__":
    main()
