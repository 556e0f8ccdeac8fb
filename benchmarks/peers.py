"""The kit beside its peers on the same images: seconds, gigabytes, AUROC, and ratios.

    python benchmarks/peers.py --reference ../patchcore-inspection --anomalib ../anomalib/bin/python
    python benchmarks/peers.py --device cuda:0 --agreement

Each runs once in a process of its own: ResNet-18 up to layer3, 256/224 pixels, one neighbour. Images are first enlarged
to the size that MVTec AD's have, for reading them is part of everybody's work. Peak memory is counted above what the
imports take, a GPU's is all that torch holds of it; the reference's FAISS stays on the CPU. A peer runs only if it is
named; the kit needs neither.

--agreement compares the kit with itself instead: how far scores and maps are from those of a model fitted on the CPU,
with the flat search there, relative to them. There is that model with its own search; opened on the device; and one of
the same seed fitted on the device. A GPU's convolutions round their input to 10 bits (TF32): once it is told not to.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch
from common import choose_category, choose_device, device_name, enlarge, weights_file

import patchcore_kit as pk
from patchcore_kit.metrics import image_metrics, pixel_metrics
from patchcore_kit.scoring import SCORINGS
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
    names = dict(zip(TIMES, ("fit", "predict", "peak"), strict=True)) | ({"GPU, GB": "gpu"} if result["gpu"] else {})
    figures = {name: float(result[key]) for name, key in names.items()}
    return figures | aurocs(result["scores"][order], result["maps"][order], labels, masks)


def aurocs(scores: np.ndarray, maps: np.ndarray, labels: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """Those of images and of pixels."""
    return {
        "image AUROC": image_metrics(scores, labels)["instance_auroc"],
        "pixel AUROC": pixel_metrics(maps, masks)["full_pixel_auroc"],
    }


def agreement(category: pk.Category, weights: Path, percentage: float, device: torch.device, folder: Path) -> None:
    """Print, for both scorings, how far the kit on the device is from the kit on the CPU."""

    def fitted(place: torch.device | str, scoring: str) -> pk.PatchCore:
        network = pk.load_backbone("resnet18", weights=weights, device=place)
        return pk.PatchCore(network, percentage=percentage, scoring=scoring, progress=False).fit(category.train)

    def opened(place: torch.device | str) -> pk.PatchCore:
        return pk.PatchCore.load(folder, weights, device=str(place), progress=False)

    table = {}
    for scoring in SCORINGS:
        cpu = fitted("cpu", scoring)
        cpu.search = "flat"  # of what is saved
        cpu.save(folder)
        rows, expected = places(cpu), opened("cpu").predict(category.test)
        table[f"{scoring}, CPU"] = beside(rows, expected, cpu, category.test)
        for tf32 in (True, False) if device.type == "cuda" else (True,):
            torch.backends.cudnn.allow_tf32 = tf32
            for name, detector in (f"the same on {device}", opened(device)), (f"{device}", fitted(device, scoring)):
                name = f"{scoring}, {name}{'' if tf32 else ', no TF32'}"
                table[name] = beside(rows, expected, detector, category.test)
    click.echo(pd.DataFrame(table).T.to_string(float_format="{:.6f}".format))


def places(detector: pk.PatchCore) -> np.ndarray:
    """A number for each image and cell that a row of the bank came from."""
    return detector.bank_.images * np.prod(detector.grid_) + detector.bank_.cells


def beside(
    rows: np.ndarray, expected: pk.Predictions, detector: pk.PatchCore, samples: list[pk.Sample]
) -> dict[str, float]:
    """A row of `agreement`: a detector, and the places of the rows and the predictions of another."""
    found = detector.predict(samples)
    row = aurocs(found.scores, found.maps, found.labels, found.masks)
    for what in ("scores", "maps"):
        before = getattr(expected, what)
        apart = np.abs(getattr(found, what) - before) / np.abs(before).clip(1e-12)
        row |= {f"{what}, at most": apart.max(), f"{what}, median": np.median(apart)}
    common = len(np.intersect1d(places(detector), rows)) / len(rows)
    return row | {"rows in common": common, "threshold": detector.calibration_.look.value}


@click.command(help=__doc__)
@click.option("--data", type=PATH, help="Data folder.  [default: MVTec AD, else the sample data]")
@click.option("--category", help="[default: the first]")
@click.option("--percentage", default=0.1, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--side", default=900, show_default=True, help="Of the enlarged images, in pixels.")
@click.option("--reference", type=PATH, help="A checkout of patchcore-inspection.")
@click.option("--anomalib", type=PATH, help="The Python of an environment that has anomalib.")
@click.option("--agreement", "agree", is_flag=True, help="Compare the device with the CPU instead.")
def main(
    data: Path,
    category: str,
    percentage: float,
    device: str,
    side: int,
    reference: Path,
    anomalib: Path,
    agree: bool,
) -> None:
    data, category = choose_category(data, category)
    device = choose_device(device)
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
        title = f"{category.name} at {side}x{side} pixels, resnet18 ({origin} weights), {percentage:.0%}"
        if agree:
            click.echo(f"{title}, {device_name(device)}")
            agreement(category, weights, percentage, device, Path(folder) / "models")
            return
        masks = np.stack([Transform().mask(sample) for sample in category.test])
        options = ["--data", folder, "--category", category.name, "--weights", weights, "--percentage", percentage]
        options += ["--device", device]
        for name, command in runs.items():
            if command:
                table[name] = run([*command, *options], category.test, masks)
                click.echo(f"{name}: {table[name]}", err=True)
    table = pd.DataFrame(table)
    for name in table.columns[3:]:
        for own in table.columns[:3]:
            ratios = table.loc[TIMES, name] / table.loc[TIMES, own]
            table = pd.concat([table, ratios.rename(f"{name} / {own}")], axis=1)
    click.echo(f"{title}, {device_name(device)}")
    click.echo(table.T.to_string(float_format="{:.3f}".format, na_rep=""))


if __name__ == "__main__":
    main()
