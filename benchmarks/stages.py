"""Seconds of every stage of fit and predict, beside the floor: decode, resize and the bare network's forward pass.

    python benchmarks/stages.py --data DATA --category bottle --backbone resnet18 --device cuda:0

Images are first enlarged to the size that MVTec AD's have, for reading them is part of the work. `floor` is what no
implementation does without: reading them with the kit's threads, and torchvision's network as it is, in float32, up to
its last used layer. Everything else is what PatchCore adds to it, or the kit saves. Every figure is the median of
`--repeat` passes over all images, all in one run: compare them with each other, not with another machine's. GPU memory
is the peak during a whole fit and a whole predict, above what is there before. Single images are files, read as well.
"""

import patchcore_kit as pk  # before torch

# isort: split
import tempfile
from collections import deque
from pathlib import Path
from statistics import median

import click
import numpy as np
import pandas as pd
import torch
import torchvision
from common import choose_category, choose_device, device_name, enlarge, gpu_gigabytes, seconds, weights_file
from torchvision.models.feature_extraction import create_feature_extractor

from patchcore_kit import coreset
from patchcore_kit.detector import CALIBRATED, spread
from patchcore_kit.memory_bank import nearby, spacing
from patchcore_kit.metrics import pixel_metrics
from patchcore_kit.patches import PatchRows
from patchcore_kit.scoring import draw_maps
from patchcore_kit.transforms import normalise, read_batches
from patchcore_kit.weights import resolve

ALONE = 20  # images that are predicted one by one
PLAIN_STEPS = 150  # of the plain loop, whose steps all cost the same; the whole of it would take minutes


def plain_loop(features: torch.Tensor, steps: int) -> None:
    """Greedy k-center one row at a time, squared norms computed once: the usual way to write it."""
    norms = features.square().sum(1)
    distances = torch.full_like(norms, torch.inf)
    distances[0] = 0
    for _ in range(steps):
        i = int(distances.argmax())
        torch.minimum(distances, norms - 2 * (features @ features[i]) + norms[i], out=distances)


def network_stages(
    detector: pk.PatchCore, bare: torch.nn.Module, samples: list, repeat: int
) -> tuple[dict[str, float], list[list[torch.Tensor]]]:
    """(seconds of each stage from the files to the feature maps, the maps of each batch)."""

    def read():
        return read_batches(samples, detector.transform.image, detector.batch_size)

    def run(network, batches):
        return [network(normalise(batch, detector.backbone.device)) for batch in batches]

    images = list(read())
    maps = run(detector.backbone, images)  # also warms everything up
    run(bare, images[:1])
    times = {
        "floor": seconds(repeat, lambda: run(bare, read())),
        "decode, resize": seconds(repeat, lambda: list(read())),
        "bare network": seconds(repeat, lambda: run(bare, images)),
        "backbone": seconds(repeat, lambda: run(detector.backbone, images)),
    }
    return times, maps


def thresholds(detector: pk.PatchCore, rows: PatchRows, images: np.ndarray) -> None:
    """What `fit` does for them: the images are scored without their own rows."""
    detector.held_out_ = detector._hold_out(rows.only(images), images)
    detector._calibrate()


def fit_stages(detector: pk.PatchCore, bare: torch.nn.Module, samples: list, repeat: int) -> dict[str, float]:
    """Seconds of each stage of fit; the coreset's include the projection, its plain loop's are estimated from the first
    steps.
    """
    times, maps = network_stages(detector, bare, samples, repeat)
    rows = PatchRows(detector.embedding, maps, detector.storage)
    choose = {"sampler": detector.sampler, "percentage": detector.percentage, "progress": False}
    times["coreset"] = seconds(repeat, lambda: coreset.select(rows, **choose))
    kept = coreset.select(rows, **choose)
    times["embedding"] = seconds(repeat, lambda: rows.at(kept))
    bank = rows.at(kept)
    times["index"] = seconds(repeat, lambda: pk.MemoryBank(bank, device=bank.device, search=detector.search))
    projected = coreset.project(rows, 128)
    times["coreset, plain loop"] = seconds(repeat, lambda: plain_loop(projected, PLAIN_STEPS)) * len(kept) / PLAIN_STEPS
    times["all"] = seconds(repeat, lambda: detector.fit(samples))
    images = spread(len(samples), CALIBRATED)
    times["thresholds"] = seconds(repeat, lambda: thresholds(detector, rows, images))
    near = projected[torch.from_numpy(kept).to(projected.device)]
    times["spacing, for density scores"] = seconds(repeat, lambda: spacing(nearby(near, projected), near))
    return times


def predict_stages(detector: pk.PatchCore, bare: torch.nn.Module, samples: list, repeat: int) -> dict[str, float]:
    """Seconds of each stage of predict, and of the metrics after it."""
    times, maps = network_stages(detector, bare, samples, repeat)
    times["embedding"] = seconds(repeat, lambda: deque(detector.embedding.each(maps), maxlen=0))
    queries = [detector.embedding(batch) for batch in maps]
    patches = torch.rand(len(samples), *detector.grid_).numpy()
    images = [len(part) // patches[0].size for part in queries]
    banks = {"search": detector.bank_}
    if detector.bank_.device.type == "cpu":  # a GPU's search is flat
        banks["search, flat"] = pk.MemoryBank(detector.bank_.rows, search="flat")
    for name, bank in banks.items():
        times[name] = seconds(
            repeat,
            lambda bank=bank: [bank.search(part, images=n) for part, n in zip(queries, images, strict=True)],
        )
    times["maps"] = seconds(repeat, lambda: draw_maps(patches, detector.transform.size))
    times["masks"] = seconds(repeat, lambda: list(read_batches(samples, detector.transform.mask, detector.batch_size)))
    times["all"] = seconds(repeat, lambda: detector.predict(samples))
    predictions = detector.predict(samples)
    if predictions.masks is not None:
        times["metrics"] = seconds(repeat, lambda: pixel_metrics(predictions.maps, predictions.masks))
    return times


def alone(detector: pk.PatchCore, samples: list) -> float:
    """Median seconds of predicting one image file."""
    some = [samples[i].path for i in spread(len(samples), ALONE)]
    detector.predict(some[0])
    return median(seconds(1, lambda path=path: detector.predict(path)) for path in some)


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path), help="Data folder.  [default: MVTec AD, else the sample data]")
@click.option("--category", help="[default: the first]")
@click.option("--backbone", default="resnet18", show_default=True, help="A network of torchvision's.")
@click.option("--percentage", default=0.1, show_default=True)
@click.option("--sampler", default="approx_greedy_coreset", show_default=True)
@click.option("--precision", default="float32", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--side", default=900, show_default=True, help="Of the enlarged images, in pixels.")
@click.option("--repeat", default=3, show_default=True)
def main(
    data: Path,
    category: str,
    backbone: str,
    percentage: float,
    sampler: str,
    precision: str,
    device: str,
    side: int,
    repeat: int,
) -> None:
    data, category = choose_category(data, category)
    device, memory = choose_device(device), {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        category = enlarge(category, data, Path(folder), side)
        weights, origin = weights_file(backbone, Path(folder))
        network = pk.load_backbone(backbone, weights=weights, device=device, precision=precision)
        bare = create_feature_extractor(
            torchvision.models.get_model(resolve(backbone).architecture, weights=None).eval(), list(network.layers)
        ).to(device)
        settings = {"percentage": percentage, "sampler": sampler, "progress": False}
        detector = pk.PatchCore(network, **settings)
        if device.type == "cuda":
            memory["fit"] = gpu_gigabytes(lambda: detector.fit(category.train))
            memory["predict"] = gpu_gigabytes(lambda: detector.predict(category.test))
        fit = fit_stages(detector, bare, category.train, repeat)
        predict = predict_stages(detector, bare, category.test, repeat)
        single = alone(detector, category.test)
        cached = pk.PatchCore(network, **settings, cache=pk.ImageCache(Path(folder) / "cache")).fit(category.train)
        cached.predict(category.test)
        fit["all, images cached"] = seconds(repeat, lambda: cached.fit(category.train))
        predict["all, images cached"] = seconds(repeat, lambda: cached.predict(category.test))
    click.echo(
        f"{category.name}: {len(category.train)} training, {len(category.test)} test images of {side}x{side} pixels; "
        f"{backbone} ({origin} weights, {precision}), {sampler}, {percentage:.0%}: {len(detector.bank_)} rows; "
        f"{device_name(device)}, {torch.get_num_threads()} threads; medians of {repeat}\n"
    )
    table = pd.DataFrame({"fit": fit, "predict": predict}).reindex(list(dict.fromkeys([*fit, *predict])))
    for phase in ("fit", "predict"):
        table[f"{phase} / floor"] = table[phase] / table.loc["floor", phase]
    click.echo(table.to_string(float_format="{:.3f}".format, na_rep=""))
    click.echo(f"\npredict, one image alone: {1000 * single:.1f} ms")
    for phase, gigabytes in memory.items():
        click.echo(f"{phase}, peak GPU memory: {gigabytes:.2f} GB")


if __name__ == "__main__":
    main()
