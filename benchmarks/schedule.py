"""What a laptop or a cluster needs for many categories: constants measured here, and a schedule simulated with them.

    python benchmarks/schedule.py
    python benchmarks/schedule.py --constants constants.json    # measured before, on another machine

A job trains one category at one size and evaluates it, on one thread. It costs the network for each image, reading for
each image, comparing for each test image, and the choice of the coreset. Workers take one job after the other; a job
is lost and begun again when its worker fails. Images come from one store that all read at once: when its bandwidth is
used up everybody waits.
"""

import patchcore_kit as pk  # before torch

# isort: split
import heapq
import json
import math
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import click
import numpy as np
import pandas as pd
import torch
from common import choose_category, seconds, weights_file

from patchcore_kit import coreset
from patchcore_kit.transforms import normalise

CELLS = 784  # patches of an image at 224 pixels
STREAMED, REDUCTIONS = 449_000, 7  # rows of a bank in 2 GB, and how often a stream of 16 million patches reduces them
HARDER = 3  # times as long as greedy k-center takes for as many: these lie far apart already (benchmarks/streams.py)
FILTER = 0.1  # of the time to compare a patch with a bank, to compare it with a cover, by 128 values only: at most
TESTS = 0.5  # images to test, for each to train on
SIZES = (0.25, 0.5, 1.0, 2.04, 4.0)  # pixels of 112, 160, 224, 320 and 448, over those of 224


@dataclass(frozen=True)
class Constants:
    """Seconds on one thread.

    network, reading: of an image. compare: of a patch, over the square root of the bank's rows. choose: over the square
    root of patches times rows that are chosen. job: of a job whatever its images. file: bytes of an image.
    """

    network: float
    reading: float
    compare: float
    choose: float
    job: float
    file: float

    @classmethod
    def measured(cls, category: pk.Category, weights: str) -> "Constants":
        """On one thread of this machine, medians of five."""
        torch.set_num_threads(1)
        started = time.perf_counter()
        backbone = pk.load_backbone("resnet18", weights=weights)
        opened = time.perf_counter() - started
        detector = pk.PatchCore(backbone, progress=False, workers=1)
        images = np.stack([detector.transform.image(sample) for sample in category.train[:16]])
        reading = seconds(5, lambda: [detector.transform.image(sample) for sample in category.train[:16]]) / 16
        network = seconds(5, lambda: backbone(normalise(images))) / 16
        detector.fit(category.train)
        rows = detector.embedding(backbone(normalise(images)))
        compare = seconds(5, lambda: detector.bank_.search(rows, 1, images=16))
        compare /= len(rows) * math.sqrt(len(detector.bank_))
        projected = coreset.project(pk.embed(backbone, pk.load_images(category.train)), 128)
        k = len(projected) // 10
        choose = seconds(3, lambda: coreset.greedy_coreset(projected, k, progress=False))
        size = median(sample.path.stat().st_size for sample in category.train)
        return cls(network, reading, compare, choose / math.sqrt(len(projected) * k), opened + 0.5, float(size))

    def cost(self, images: int, size: float, percentage: float = 0.1) -> float:
        """Seconds of a job with so many images to train on, at `size` times the pixels of 224."""
        tests, rows = images * TESTS, images * CELLS * size
        bank, reductions, compared = rows * percentage, 1, min(images, 100) + tests
        if bank > STREAMED:  # into 2 GB: all are compared with the cover, which is reduced now and then
            bank, rows, compared = STREAMED, 1.5 * STREAMED, compared + images * FILTER
            reductions = REDUCTIONS * HARDER
        # a hundred good ones again, for the thresholds
        network = (images + min(images, 100) + tests) * self.network * size
        return (
            self.job
            + network
            + (images + tests) * self.reading
            + compared * CELLS * size * self.compare * math.sqrt(bank)
            + reductions * self.choose * math.sqrt(rows * bank)
        )


def simulate(
    costs: np.ndarray,
    bytes_: np.ndarray,
    workers: int,
    *,
    bandwidth: float,
    hours_between_failures: float,
    seed: int = 0,
) -> tuple[float, float]:
    """Jobs in this order, each to the first worker that is free -> seconds until the last is done, and work lost.

    bandwidth: bytes a second of the store. While more are read at once than it gives, all are slower by as much; that
    is taken from the mean over the whole, a lower bound of the wait. hours_between_failures: of one worker.
    """
    rng = np.random.default_rng(seed)
    slower = max(1.0, workers * bytes_.sum() / costs.sum() / bandwidth)
    free, end, lost = [(0.0, worker) for worker in range(workers)], 0.0, 0.0
    heapq.heapify(free)
    for cost in costs * slower:
        now, worker = heapq.heappop(free)
        while (failure := rng.exponential(3600 * hours_between_failures)) < cost:
            lost += failure
            heapq.heappush(free, (now + failure, worker))  # it comes back, and the job goes to whoever is free
            now, worker = heapq.heappop(free)
        heapq.heappush(free, (now + cost, worker))
        end = max(end, now + cost)
    return end, lost


def table(constants: Constants, images: np.ndarray, sizes: tuple[float, ...], workers: tuple[int, ...]) -> pd.DataFrame:
    """One row for each number of workers: hours in the order given and longest first, and how busy they are."""
    jobs = [(count, size) for size in sizes for count in images]
    costs = np.array([constants.cost(count, size) for count, size in jobs])
    bytes_ = np.array([count * (1 + TESTS) * constants.file for count, _ in jobs])
    rows = []
    for count in workers:
        given, longest = (
            simulate(costs[order], bytes_[order], count, bandwidth=1e8, hours_between_failures=200)
            for order in (np.arange(len(costs)), np.argsort(-costs, kind="stable"))
        )
        rows.append({
            "workers": count, "hours": given[0] / 3600, "longest first, hours": longest[0] / 3600,
            "busy": costs.sum() / count / longest[0], "read, MB/s": bytes_.sum() / longest[0] / 1e6,
            "longest job, hours": costs.max() / 3600,
        })  # fmt: skip
    return pd.DataFrame(rows)


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path), help="Data folder.  [default: MVTec AD, else the sample data]")
@click.option("--category", help="[default: the first]")
@click.option("--constants", "known", type=click.Path(exists=True, path_type=Path), help="A file of constants.")
def main(data: Path | None, category: str | None, known: Path | None) -> None:
    if known:
        constants = Constants(**json.loads(known.read_text(encoding="utf-8")))
    else:
        with tempfile.TemporaryDirectory() as folder:
            weights = str(weights_file("resnet18", Path(folder))[0])
            constants = Constants.measured(choose_category(data, category)[1], weights)
    click.echo(json.dumps(asdict(constants), indent=4))
    plant = np.random.default_rng(0).lognormal(math.log(2000), 1.2, 1000).clip(100, 50_000).astype(int)
    for title, images, sizes, workers in (
        ("a class: 15 categories of 240 images, five sizes", np.full(15, 240), SIZES, (1, 2, 4, 8, 15)),
        ("a plant: 400 categories of 100 to 50 000 images", plant[:400], (1.0,), (1, 8, 32, 128, 400)),
        ("a thousand categories", plant, (1.0,), (8, 32, 128, 512)),
    ):
        found = table(constants, images, sizes, workers)
        click.echo(f"\n{title}, {images.sum() * len(sizes)} images")
        click.echo(found.to_string(index=False, float_format="{:.2f}".format))


if __name__ == "__main__":
    main()
