"""The starter beside ResNet-18 and beside a random network of its own shape: how good, how fast, how large.

    python benchmarks/backbones.py --data data/sample --data data/mvtec_anomaly_detection
    python benchmarks/backbones.py --time dinov2_small:blocks.5,blocks.8 --time dinov3_convnext_tiny:stages.1,stages.2

AUROCs are those of PatchCore with a 10 % coreset at 224x224, means over the categories of each folder. Milliseconds are
of the bare network, medians of passes taken in turn. All in one run: compare them with each other. With --time there
are milliseconds alone, for which random weights do.
"""

import time
from pathlib import Path
from statistics import median

import click
import pandas as pd
import torch

import patchcore_kit as pk
from patchcore_kit.weights import find, resolve

FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
BATCHES = {"ms/image": 8, "ms alone": 1}


def milliseconds(networks: dict[str, pk.Backbone], batch: int, repeat: int) -> dict[str, float]:
    """Time of an image in a batch of 224x224 pixels, by network."""
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    times = {name: [] for name in networks}
    for turn in range(repeat + 3):
        for name, network in networks.items():
            started = time.perf_counter()
            network(images)
            if turn >= 3:  # the first ones warm up
                times[name].append(1000 * (time.perf_counter() - started) / batch)
    return {name: median(values) for name, values in times.items()}


def aurocs(network: pk.Backbone, folder: Path, resize: int | tuple[int, int]) -> pd.DataFrame:
    """Image and pixel AUROC of every category of a folder."""
    rows = {}
    for name in pk.list_categories(folder):
        category = pk.load_category(folder, name)
        detector = pk.PatchCore(network, resize=resize, progress=False).fit(category.train)
        metrics = pk.evaluate(detector.predict(category.test))
        rows[name] = [metrics["instance_auroc"], metrics["full_pixel_auroc"]]
        click.echo(f"{network!r} {name}: {rows[name][0]:.3f} {rows[name][1]:.3f}", err=True)
    return pd.DataFrame.from_dict(rows, orient="index", columns=["image AUROC", "pixel AUROC"], dtype=float)


@click.command(help=__doc__)
@click.option("--data", multiple=True, type=FOLDER, help="Data folders, cut as usual.  [default: the sample data]")
@click.option("--whole", multiple=True, type=FOLDER, help="Data folders whose images are shown whole.")
@click.option("--backbone", default="resnet18", show_default=True, help="What the starter is compared with.")
@click.option("--seed", default=0, show_default=True, help="Of the random network.")
@click.option("--repeat", default=30, show_default=True, help="Passes that are timed.")
@click.option("--time", "timed", multiple=True, metavar="NAME:LAYER,...", help="Only time these beside the starter.")
def main(
    data: tuple[Path, ...], whole: tuple[Path, ...], backbone: str, seed: int, repeat: int, timed: tuple[str, ...]
) -> None:
    if timed:
        networks = {"starter": pk.load_backbone("starter"), backbone: pk.load_backbone(backbone, weights="random")}
        for name, _, layers in (one.partition(":") for one in timed):
            networks[name] = pk.load_backbone(name, tuple(layers.split(",")), weights="random")
        times = {column: milliseconds(networks, batch, repeat) for column, batch in BATCHES.items()}
        click.echo(pd.DataFrame(times).T.to_string(float_format="{:.1f}".format))
        click.echo(f"\n{torch.get_num_threads()} threads")
        return
    other = resolve(backbone)
    networks = {
        "starter": pk.load_backbone("starter"),
        backbone: pk.load_backbone(backbone),
        "random, same shape": pk.load_backbone("starter", weights="random", seed=seed),
    }
    table = pd.DataFrame({column: milliseconds(networks, batch, repeat) for column, batch in BATCHES.items()})
    sizes = {"starter": find(resolve("starter"))[0], backbone: find(other)[0]}
    table["MB"] = {name: path.stat().st_size / 1e6 for name, path in sizes.items()} | {"random, same shape": 0}
    if not data and not whole:
        data = (pk.draw_sample_data(pk.work_folder() / "data" / "sample"),)
    for folder, resize in [*((folder, 256) for folder in data), *((folder, (224, 224)) for folder in whole)]:
        results = {name: aurocs(network, folder, resize) for name, network in networks.items()}
        by_category = pd.concat(results, axis=1)
        click.echo(f"\n{folder.name}\n{by_category.to_string(float_format='{:.3f}'.format)}\n")
        for metric in ("image AUROC", "pixel AUROC"):
            table[f"{folder.name}: {metric}"] = by_category.xs(metric, axis=1, level=1).mean()
    click.echo(table.T.to_string(float_format="{:.3f}".format))
    click.echo(f"\n{torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
