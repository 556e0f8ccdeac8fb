"""A fit that streams: time per image and memory along the way, killed in the middle, and the bank it then ends with.

    python benchmarks/streams.py --images 20000 --memory 1.5GB --plot streams.png
    python benchmarks/streams.py --quality --data DATA --category bottle

The images are made as they are needed: good ones of a category, each turned, moved, brightened and with noise of its
own, so that no two are alike. A run is a process of its own; it takes frames 256 at a time, and its time is measured
from one such block to the next. With --quality the category's own images stream by, in a tenth of the memory that
their bank takes and in all of it; the covering radius is the largest distance of any of their patches to the bank.
Figures are means over the seeds.
"""

import patchcore_kit as pk  # before torch

# isort: split
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import click
import faiss
import numpy as np
import pandas as pd
from common import choose_category, in_own_process, peak_gigabytes, weights_file
from matplotlib import pyplot as plt
from PIL import Image, ImageEnhance

from patchcore_kit import coreset, cover
from patchcore_kit.images import read_rgb
from patchcore_kit.notes import Notes
from patchcore_kit.progress import Line
from patchcore_kit.streaming import AHEAD

SIDE = 280  # pixels that images are brought to before one is made of them


def made(
    category: pk.Category, count: int, seen: list[tuple[float, float, float]], die_at: int | None
) -> Iterator[Image.Image]:
    """Images without end; `seen` gets the times by the clock and of all cores, and the memory, block by block."""
    good = [read_rgb(sample.source, notes=Notes(), name=sample.where) for sample in category.train[:64]]
    good = [image.resize((SIDE, SIDE), Image.Resampling.BILINEAR) for image in good]
    for number in range(count):
        if number == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if number % AHEAD == 0:
            seen.append((time.perf_counter(), time.process_time(), resident_gigabytes()))
        rng = np.random.default_rng(number)
        image = good[number % len(good)].rotate(rng.uniform(-4, 4), Image.Resampling.BILINEAR)
        left, top = rng.integers(4, SIDE - 260, 2).tolist()
        image = ImageEnhance.Brightness(image.crop((left, top, left + 256, top + 256))).enhance(rng.uniform(0.93, 1.07))
        noise = rng.standard_normal((256, 256, 1), dtype=np.float32) * rng.uniform(0, 3)
        yield Image.fromarray((np.asarray(image, np.float32) + noise).clip(0, 255).astype(np.uint8))
    seen.append((time.perf_counter(), time.process_time(), resident_gigabytes()))


def resident_gigabytes() -> float:
    """What this process has of memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9


def stream(task: dict) -> dict:
    """One fit in this process."""
    _, category = choose_category(task["data"] and Path(task["data"]), task["category"])
    backbone = pk.load_backbone("resnet18", weights=task["weights"])
    detector, seen, reductions, reduce = pk.PatchCore(backbone, progress=False), [], [], cover.Cover.reduce

    def timed(self: cover.Cover, k: int, line: Line) -> list[np.ndarray]:
        started, rows = time.perf_counter(), self.held
        left = reduce(self, k, line)
        reductions.append((self.seen, rows, k, time.perf_counter() - started, self.radius))
        return left

    cover.Cover.reduce = timed
    imports, started = resident_gigabytes(), time.perf_counter()
    images = made(category, task["images"], seen, task["die_at"])
    detector.fit(images, memory=task["memory"], checkpoint=task["checkpoint"])
    seconds, peak = time.perf_counter() - started, peak_gigabytes()  # before the rows are copied
    digest = hashlib.sha256(detector.bank_.rows.tobytes() + detector.bank_.images.tobytes()).hexdigest()[:16]
    return {
        "seconds": seconds, "peak": peak, "imports": imports, "digest": digest,
        "bank": len(detector.bank_), "cells": detector.tiling_.cells, "seen": seen, "reductions": reductions,
    }  # fmt: skip


def run(task: dict) -> dict | None:
    """`stream` in a process of its own; None if it was killed."""
    try:
        return in_own_process(__file__, task)
    except subprocess.CalledProcessError as error:
        if error.returncode != -signal.SIGKILL:
            raise
        return None


def draw(found: dict, path: Path) -> None:
    """Time and memory against the images that have come."""
    clock, cores, memory = np.array(found["seen"]).T
    at = np.arange(len(clock)) * AHEAD
    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 5), sharex=True, layout="constrained")
    for times, name in ((clock, "by the clock"), (cores, "of all cores")):
        above.plot(at[1:-1], 1000 * np.diff(times)[:-1] / AHEAD, drawstyle="steps-pre", lw=1, label=name)
    above.legend()
    for seen, *_ in found["reductions"]:
        above.axvline(seen / found["cells"], color="tab:orange", lw=0.6, alpha=0.6)
    above.set(ylabel="ms an image", ylim=(0, None), title="time; orange: the cover is reduced")
    below.plot(at[:-1], memory[:-1], lw=1)
    below.set(ylabel="GB", ylim=(0, None), xlabel="images", title="memory of the process")
    for axis in (above, below):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


def quality(category: pk.Category, weights: str, resize: int | tuple[int, int], seeds: int) -> pd.DataFrame:
    """The category's own images: banks of the same size by the exact greedy choice and by a stream."""
    backbone, rows = pk.load_backbone("resnet18", weights=weights), []
    settings = {"resize": resize, "progress": False}
    exact = pk.PatchCore(backbone, **settings).fit(category.train)
    features = pk.embed(backbone, pk.load_images(category.train, exact.transform))
    projected = [coreset.project(features, 128, seed) for seed in range(seeds)]
    row = cover.Room.of(10**9, 1024, 128, "float32").size / 10**9
    for share in (1.0, 0.1):
        size = max(cover.FEWEST, int(len(exact.bank_) * share))
        memory = size / row * 1.0001
        for seed, scoring in product(range(seeds), ("distance", "density")):
            those = settings | {"scoring": scoring, "seed": seed}
            streamed = pk.PatchCore(backbone, **those).fit(category.train, memory=memory)
            k = len(streamed.bank_)
            same = pk.PatchCore(backbone, percentage=(k + 0.5) / len(features), **those)
            for name, detector in (("exact", same.fit(category.train)), ("stream", streamed)):
                found = pk.evaluate(detector.predict(category.test))
                rows.append({
                    "share": share, "rows": k, "scoring": scoring, "by": name,
                    "radius": radius(detector, projected[seed]),
                    "image AUROC": found["instance_auroc"], "pixel AUROC": found["full_pixel_auroc"],
                    "threshold": detector.calibration_.look.value,
                })  # fmt: skip
    means = pd.DataFrame(rows).groupby(["share", "rows", "scoring", "by"], sort=False).mean()
    return means.reset_index().drop(columns="share")


def radius(detector: pk.PatchCore, patches: "np.ndarray") -> float:
    """The largest distance of any of the projected patches (N, d) to those of the bank."""
    bank = detector.bank_.images * detector.tiling_.cells + detector.bank_.cells
    index = faiss.IndexFlatL2(patches.shape[1])
    index.add(patches[bank].numpy())
    return float(np.sqrt(index.search(patches.numpy(), 1)[0].max()))


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path), help="Data folder.  [default: MVTec AD, else the sample data]")
@click.option("--category", help="[default: the first]")
@click.option("--images", default=20_000, show_default=True)
@click.option("--memory", default="1.5GB", show_default=True)
@click.option("--plot", type=click.Path(path_type=Path), help="Where to draw.")
@click.option("--quality", "how_good", is_flag=True, help="Measure what a stream loses instead.")
@click.option("--squeezed", is_flag=True, help="Whole images at 224x224, with --quality.  [default: 256, 224 of it]")
@click.option("--seeds", default=1, show_default=True, help="That --quality averages over, from 0 on.")
@click.option("--one", is_flag=True, hidden=True, help="Measure what standard input says.")
def main(
    data: Path,
    category: str,
    images: int,
    memory: str,
    plot: Path,
    how_good: bool,
    squeezed: bool,
    seeds: int,
    one: bool,
) -> None:
    if one:
        click.echo(json.dumps(stream(json.load(sys.stdin))))
        return
    with tempfile.TemporaryDirectory() as folder:
        weights = str(weights_file("resnet18", Path(folder))[0])
        if how_good:
            chosen = choose_category(data, category)[1]
            resize = (224, 224) if squeezed else 256
            click.echo(f"{chosen.name}, resnet18\n\n{quality(chosen, weights, resize, seeds).to_string(index=False)}")
            return
        task = {
            "data": data and str(data),
            "category": category,
            "images": images,
            "memory": memory,
            "weights": weights,
        }
        whole = run(task | {"checkpoint": None, "die_at": None})
        clock, cores = (np.diff(times)[:-1] / AHEAD for times in list(zip(*whole["seen"], strict=True))[:2])
        first = int(whole["reductions"][0][0] / whole["cells"] / AHEAD) + 1 if whole["reductions"] else 0
        click.echo(
            f"{images} images, {images * whole['cells']} patches, a bank of {whole['bank']} in {memory}: "
            f"{whole['seconds']:.0f} s, peak {whole['peak']:.2f} GB, of that {whole['imports']:.2f} GB before the fit"
        )
        quarters = [np.array_split(1000 * times[first:], 4) for times in (clock, cores)]
        for number, (by_clock, of_cores) in enumerate(zip(*quarters, strict=True), 1):
            if not len(by_clock):  # too few images for that
                continue
            words = f"{by_clock.mean():.1f} ms an image, {of_cores.mean():.1f} ms of all cores"
            click.echo(f"quarter {number} since the bank is full: {words}")
        click.echo(
            f"{len(whole['reductions'])} reductions, {sum(r[3] for r in whole['reductions']):.0f} s of the whole"
        )
        if plot:
            draw(whole, plot)
        checkpoint = str(Path(folder) / "checkpoint")
        killed = run(task | {"checkpoint": checkpoint, "die_at": images // 2})
        again = run(task | {"checkpoint": checkpoint, "die_at": None})
        click.echo(
            f"killed at image {images // 2}: {'yes' if killed is None else 'no'}; gone on, {again['seconds']:.0f} s, "
            f"peak {again['peak']:.2f} GB; "
            f"the same bank: {again['digest'] == whole['digest']}"
        )


if __name__ == "__main__":
    main()
