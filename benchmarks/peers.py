"""The kit beside its peers on the same images: seconds, gigabytes, AUROC, and ratios.

    python benchmarks/peers.py --reference ../patchcore-inspection --anomalib ../anomalib/bin/python

Each runs once in a process of its own: ResNet-18 up to layer3 on the CPU, 256/224 pixels, one neighbour. Images are
first enlarged to the size that MVTec AD's have, for reading them is part of everybody's work. Peak memory is counted
above what the imports take. A peer runs only if it is named; the kit needs neither.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
import pandas as pd
from common import choose_category, enlarge, weights_file

import patchcore_kit as pk
from patchcore_kit.metrics import image_metrics, pixel_metrics
from patchcore_kit.transforms import Transform

PEER = Path(__file__).resolve().with_name("one_peer.py")
PATH = click.Path(path_type=Path, exists=True)
TIMES = ["fit, s", "predict, s", "peak, GB"]


def run(command: list, samples: list[pk.Sample], masks: np.ndarray) -> dict[str, float]:
    """Run `one_peer.py` -> its seconds and gigabytes, and the AUROCs of its scores and maps."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.npz"
        subprocess.run([str(word) for word in (*command, "--out", out)], check=True)
        result = dict(np.load(out))
    at = {path: i for i, path in enumerate(result["paths"].tolist())}
    order = [at[str(sample.path)] for sample in samples]
    labels = np.array([sample.label for sample in samples])
    figures = (float(result[name]) for name in ("fit", "predict", "peak"))
    return dict(zip(TIMES, figures, strict=True)) | {
        "image AUROC": image_metrics(result["scores"][order], labels)["instance_auroc"],
        "pixel AUROC": pixel_metrics(result["maps"][order], masks)["full_pixel_auroc"],
    }


@click.command(help=__doc__)
@click.option("--data", type=PATH, help="Data folder.  [default: MVTec AD, else the sample data]")
@click.option("--category", help="[default: the first]")
@click.option("--percentage", default=0.1, show_default=True)
@click.option("--side", default=900, show_default=True, help="Of the enlarged images, in pixels.")
@click.option("--reference", type=PATH, help="A checkout of patchcore-inspection.")
@click.option("--anomalib", type=PATH, help="The Python of an environment that has anomalib.")
def main(data: Path, category: str, percentage: float, side: int, reference: Path, anomalib: Path) -> None:
    data, category = choose_category(data, category)
    runs = {
        "kit": (sys.executable, PEER, "kit"),
        "kit, float16": (sys.executable, PEER, "kit", "--storage", "float16"),
        "kit, bfloat16": (sys.executable, PEER, "kit", "--precision", "bfloat16"),
        "reference": reference and (sys.executable, PEER, "reference", "--checkout", reference),
        "anomalib": anomalib and (anomalib, PEER, "anomalib"),
    }
    table = {}
    with tempfile.TemporaryDirectory() as folder:
        category = enlarge(category, data, Path(folder), side)
        weights, origin = weights_file("resnet18", Path(folder))
        masks = np.stack([Transform().mask(sample) for sample in category.test])
        options = ["--data", folder, "--category", category.name, "--weights", weights, "--percentage", percentage]
        for name, command in runs.items():
            if command:
                table[name] = run([*command, *options], category.test, masks)
                click.echo(f"{name}: {table[name]}", err=True)
    table = pd.DataFrame(table)
    for name in table.columns[3:]:
        for own in table.columns[:3]:
            ratios = table.loc[TIMES, name] / table.loc[TIMES, own]
            table = pd.concat([table, ratios.rename(f"{name} / {own}")], axis=1)
    click.echo(f"{category.name} at {side}x{side} pixels, resnet18 ({origin} weights), {percentage:.0%}, CPU")
    click.echo(table.T.to_string(float_format="{:.3f}".format, na_rep=""))


if __name__ == "__main__":
    main()
