"""Seconds of every stage of fit and predict, beside the floor: decode, resize and the bare backbone's forward pass.

    python benchmarks/stages.py --data DATA --category bottle --backbone resnet18 --weights resnet18.pth

Every figure is the median of `--repeat` passes over all images, all in one run: compare them with each other, not with
another machine's. `floor` is what no implementation can avoid; everything else is what PatchCore adds to it.
"""

import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import click
import numpy as np
import pandas as pd
import torch

import patchcore_kit as pk
from patchcore_kit import coreset
from patchcore_kit.datasets import normalise, read_batches
from patchcore_kit.detector import map_operator
from patchcore_kit.metrics import pixel_metrics

STAGES = ("floor", "decode, resize", "backbone", "embedding", "coreset", "search", "maps", "all", "metrics")
PLAIN_STEPS = 150  # of the plain loop, whose steps all cost the same; the whole of it would take minutes


def seconds(repeat: int, stage: Callable[[], object]) -> float:
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        stage()
        times.append(time.perf_counter() - started)
    return median(times)


def plain_loop(features: torch.Tensor, steps: int) -> None:
    """Greedy k-center one row at a time, squared norms computed once: the usual way to write it."""
    norms = features.square().sum(1)
    distances = torch.full_like(norms, torch.inf)
    distances[0] = 0
    for _ in range(steps):
        i = int(distances.argmax())
        torch.minimum(distances, norms - 2 * (features @ features[i]) + norms[i], out=distances)


def network_stages(detector: pk.PatchCore, samples: list, repeat: int) -> tuple[dict[str, float], torch.Tensor]:
    """(seconds of each stage from the files to the patch rows, the rows)."""
    read = detector.transform.image
    images = list(read_batches(samples, read, detector.batch_size))
    maps = [detector.backbone(normalise(batch)) for batch in images]  # also warms everything up
    rows = torch.cat([detector.embedding(m) for m in maps])

    def floor():
        for batch in read_batches(samples, read, detector.batch_size):
            detector.backbone(normalise(batch))

    times = {
        "floor": seconds(repeat, floor),
        "decode, resize": seconds(repeat, lambda: list(read_batches(samples, read, detector.batch_size))),
        "backbone": seconds(repeat, lambda: [detector.backbone(normalise(batch)) for batch in images]),
        "embedding": seconds(repeat, lambda: [detector.embedding(m) for m in maps]),
    }
    return times, rows


def fit_stages(detector: pk.PatchCore, samples: list, repeat: int) -> tuple[dict[str, float], float]:
    """(seconds of each stage of fit, how many times as fast as the plain loop the batched greedy is)."""
    times, rows = network_stages(detector, samples, repeat)
    choose = {"sampler": detector.sampler, "percentage": detector.percentage, "progress": False}
    times["coreset"] = seconds(repeat, lambda: coreset.select(rows, **choose))
    projected, k = coreset.project(rows, 128), int(len(rows) * detector.percentage)
    plain = seconds(repeat, lambda: plain_loop(projected, PLAIN_STEPS)) * k / PLAIN_STEPS
    batched = seconds(repeat, lambda: pk.greedy_coreset(projected, k, progress=False))
    times["all"] = seconds(repeat, lambda: detector.fit(samples))
    return times, plain / batched


def predict_stages(detector: pk.PatchCore, samples: list, repeat: int) -> dict[str, float]:
    """Seconds of each stage of predict, and of the metrics after it."""
    times, rows = network_stages(detector, samples, repeat)
    queries = rows.split(detector.batch_size * detector.grid_[0] * detector.grid_[1])
    patches = np.random.default_rng(0).random((len(samples), *detector.grid_), dtype=np.float32)
    down, across = (map_operator(n, m) for n, m in zip(detector.transform.size, detector.grid_, strict=True))
    times["search"] = seconds(repeat, lambda: [detector.bank_.search(part) for part in queries])
    times["maps"] = seconds(repeat, lambda: down @ patches @ across.T)
    times["all"] = seconds(repeat, lambda: detector.predict(samples))
    predictions = detector.predict(samples)
    times["metrics"] = seconds(repeat, lambda: pixel_metrics(predictions.maps, predictions.masks))
    return times


def peak_gigabytes() -> float:
    """This process's peak of resident memory; of Linux's figures the one that does not count its parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text()).group(1)) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9  # bytes on macOS


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Data folder.  [default: MVTec AD, else the sample data]")
@click.option("--category", help="[default: the first]")
@click.option("--backbone", default="resnet18", show_default=True)
@click.option(
    "--weights", default="random", show_default=True, help="A weights file, or 'random' (the times are the same)."
)
@click.option("--percentage", default=0.1, show_default=True)
@click.option("--repeat", default=3, show_default=True)
@click.option(
    "--memory", is_flag=True, hidden=True, help="Only fit and predict once, and print gigabytes above the imports."
)
def main(data, category, backbone, weights, percentage, repeat, memory):
    """Time every stage of PatchCore on one category."""
    imports = peak_gigabytes()
    data = data or pk.find_data() or pk.draw_sample_data(pk.work_folder() / "data" / "sample")
    category = pk.load_category(data, category or pk.list_categories(data)[0])
    detector = pk.PatchCore(pk.load_backbone(backbone, weights=weights), percentage=percentage, progress=False)
    if memory:
        detector.fit(category.train).predict(category.test)
        click.echo(peak_gigabytes() - imports)
        return
    with torch.inference_mode():
        fit, coreset_ratio = fit_stages(detector, category.train, repeat)
        predict = predict_stages(detector, category.test, repeat)
    again = [sys.executable, __file__, *sys.argv[1:], "--memory"]
    own = subprocess.run(again, check=True, capture_output=True, text=True)
    click.echo(
        f"{category.name}: {len(category.train)} training, {len(category.test)} test images; {backbone}, "
        f"{percentage:.0%}, {torch.get_num_threads()} threads; medians of {repeat}\n"
    )
    table = pd.DataFrame({"fit": fit, "predict": predict}).reindex(STAGES)
    for phase in ("fit", "predict"):
        table[f"{phase}, share"] = table[phase] / table.loc["all", phase]
    click.echo(table.to_string(float_format="{:.2f}".format, na_rep=""))
    click.echo(f"\nfit / floor: {fit['all'] / fit['floor']:.2f}")
    click.echo(f"predict / floor: {predict['all'] / predict['floor']:.2f}")
    click.echo(f"embedding / backbone: {fit['embedding'] / fit['backbone']:.3f}")
    click.echo(f"coreset, plain loop with cached norms / batched: {coreset_ratio:.1f}")
    click.echo(f"peak memory of fit and predict above the imports: {float(own.stdout):.2f} GB")


if __name__ == "__main__":
    main()
