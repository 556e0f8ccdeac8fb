"""The fast search beside the flat one in banks of 100 000 to 4 million rows, and what opening them takes.

    python benchmarks/large_banks.py --folder /tmp/banks

Rows are all patches of drawn images (`sample_data`), no two of the same part; those of others, every second one with a
defect, are sought. Excess is how much larger a distance is than the flat search's. The proof is what it takes to know
that an image's score is exact; "flat, one" is the flat search for one patch, which proves the same. Seconds are those
of one thread's CPU, medians over the images. Excess and the flat search's time are of two images.

Memory is of two processes that have both opened the model and scored images, each: what is its own, above the imports,
and what they share. `--folder` keeps the rows (4 GB for 4 million of 256 values) for another run; a model of the same
size is beside them for a while.
"""

import patchcore_kit as pk  # before torch

# isort: split
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import click
import faiss
import numpy as np
import pandas as pd
import torch
from common import weights_file

from patchcore_kit import sample_data
from patchcore_kit.memory_bank import MemoryBank

BATCH = 8
SCORED = 2  # images, by each of the two processes
FLAT = 2  # images whose patches are all sought by the flat search, too


def draw(category: str, seed: int, defective: bool, number: int) -> np.ndarray:
    """One image (256, 256, 3); every second one with a defect, if any may have one."""
    defects = sample_data.DEFECTS[category]
    defect = defects[number // 2 % len(defects)] if defective and number % 2 else None
    return sample_data.paint(category, np.random.default_rng([seed, number]), defect)[0]


def patches(detector: pk.PatchCore, images: list[np.ndarray]) -> Iterator[torch.Tensor]:
    """(B*h*w, D) rows of the images, batch by batch."""
    with torch.inference_mode():
        for i in range(0, len(images), BATCH):
            yield detector.embedding(detector.backbone(pk.load_images(images[i : i + BATCH], detector.transform)))


def rows_of(detector: pk.PatchCore, category: str, count: int, folder: Path) -> np.ndarray:
    """(count, D) mapped: patches of as many images as it takes, from the folder if they are there."""
    path = folder / f"{category}_{detector.target_embed_dimension}.npy"
    if path.exists() and len(rows := np.load(path, mmap_mode="r")) >= count:
        return rows[:count]
    draft, cells = path.with_suffix(".draft"), 784
    images = -(-count // cells)
    shape = (images * cells, detector.target_embed_dimension)
    rows, start = np.lib.format.open_memmap(draft, "w+", np.float32, shape), 0
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        each = partial(pool.map, chunksize=BATCH) if images > BATCH else map  # the pool's processes start when asked
        for i in range(0, images, 64):
            job = partial(draw, category, 7, False)
            for part in patches(detector, list(each(job, range(i, min(i + 64, images))))):
                rows[start : start + len(part)] = part
                start += len(part)
            click.echo(f"{min(i + 64, images)} of {images} images drawn", err=True)
    rows.flush()
    draft.rename(path)
    return np.load(path, mmap_mode="r")[:count]


def seconds(stage: Callable[[], object]) -> tuple[float, object]:
    """CPU time of this process, and what the stage returns."""
    started = time.process_time()
    result = stage()
    return time.process_time() - started, result


def search(bank: MemoryBank, images: list[torch.Tensor]) -> dict[str, float]:
    """What the fast search misses and takes, each image (784, D) a search of its own."""
    flat, proofs, exact = MemoryBank(bank.stored, search="flat"), [], bank._exact

    def proof(*args):
        spent, found = seconds(lambda: exact(*args))
        proofs[-1] += spent
        return found

    bank._exact = proof
    ratios, scores, fast, one, each = [], [], [], [], []
    for number, rows in enumerate(images):
        proofs.append(0.0)
        spent, (found, _) = seconds(partial(bank.search, rows))
        fast.append(spent)
        strangest = rows[found[:, 0].argmax()][None]
        spent, (score, _) = seconds(partial(flat.search, strangest))
        one.append(spent)
        scores.append(abs(found.max() / score.item() - 1))
        if number < FLAT:
            spent, (wanted, _) = seconds(partial(flat.search, rows))
            each.append(spent)
            ratios.append(found / wanted - 1)
    ratios = np.concatenate(ratios)
    return {
        "recall@1": (ratios < 1e-4).mean(),
        "excess, mean": ratios.mean(),
        "excess, largest": ratios.max(),
        "image scores off by": max(scores),
        "ms an image": 1e3 * median(fast),
        "of it the proof": 1e3 * median(proofs),
        "flat, one": 1e3 * median(one),
        "flat": 1e3 * median(each),
    }


def memory() -> dict[str, float]:
    """Megabytes of this process: its own, and shared with others. On Linux."""
    text = Path("/proc/self/smaps_rollup").read_text()
    size = {key: int(value) / 1024 for key, value in re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE)}
    return {
        "own": size["Private_Clean"] + size["Private_Dirty"],
        "shared": size["Shared_Clean"] + size["Shared_Dirty"],
    }


def work(model: Path, weights: str, category: str) -> None:
    """Open the model, score images, and say what memory that takes once the parent has heard that of all."""
    images = [draw(category, 11, True, number) for number in range(SCORED)]
    before = memory()
    detector = pk.PatchCore.load(model, weights, progress=False)
    detector.predict(images)
    print("done", flush=True)
    sys.stdin.readline()
    after = memory()
    print(json.dumps({key: after[key] - before[key] for key in after}), flush=True)
    sys.stdin.readline()


def two_workers(model: Path, weights: str, category: str) -> dict[str, float]:
    """Megabytes of each of two processes that have opened the model."""
    command = [sys.executable, __file__, "--work", model, "--weights", weights, "--category", category]
    workers = [subprocess.Popen(command, stdin=-1, stdout=-1, text=True) for _ in range(2)]
    found = []
    for step in range(2):
        lines = [worker.stdout.readline() for worker in workers]
        if step:
            found = [json.loads(line) for line in lines]
        for worker in workers:
            worker.stdin.write("\n")
            worker.stdin.flush()
    for worker in workers:
        worker.communicate()
    return {f"MB {key}": max(one[key] for one in found) for key in found[0]}


def measure(
    detector: pk.PatchCore, rows: np.ndarray, images: list[torch.Tensor], model: Path, weights: str, category: str
) -> tuple[dict, dict]:
    """A bank of the rows: (what it takes to find out, store and open it), (what searching it takes)."""
    built, detector.bank_ = seconds(lambda: MemoryBank(rows))
    saved, _ = seconds(lambda: detector.save(model))
    opened, again = seconds(lambda: pk.PatchCore.load(model, weights, progress=False))
    taken = {"GB of rows": rows.nbytes / 1e9, "found out, s": built, "saved, s": saved, "opened, s": opened}
    taken |= two_workers(model, weights, category)
    return taken, search(again.bank_, images)


def table(figures: dict[int, dict[str, float]]) -> str:
    """As markdown, a line for each number of rows."""
    found = pd.DataFrame(figures).T
    lines = [["rows", *found.columns], ["---:"] * (1 + len(found.columns))]
    lines += [
        [f"{count:_}".replace("_", " "), *(f"{value:.4g}" for value in found.loc[count])] for count in found.index
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@click.command(help=__doc__)
@click.option("--rows", multiple=True, type=int, default=(100_000, 1_000_000, 4_000_000), show_default=True)
@click.option("--dimension", default=256, show_default=True, help="Values of a row.")
@click.option("--images", default=10, show_default=True, help="That are sought.")
@click.option("--category", default="wood", show_default=True, type=click.Choice(sample_data.CATEGORIES))
@click.option("--weights", help="ResNet-18's: a file, or random.  [default: those that are found]")
@click.option("--folder", type=click.Path(path_type=Path), help="Where rows and models lie.  [default: removed after]")
@click.option("--work", "model", type=click.Path(path_type=Path), hidden=True)
def main(
    rows: tuple[int],
    dimension: int,
    images: int,
    category: str,
    weights: str | None,
    folder: Path | None,
    model: Path | None,
) -> None:
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    if model:
        work(model, weights, category)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        weights = weights or str(weights_file("resnet18", Path(temporary))[0])
        backbone = pk.load_backbone("resnet18", weights=weights)
        settings = {"sampler": "identity", "target_embed_dimension": dimension, "progress": False}
        detector = pk.PatchCore(backbone, **settings).fit([draw(category, 5, False, i) for i in range(4)])
        detector.held_out_ = None  # what is nearest to them are rows of that bank
        every = rows_of(detector, category, max(rows), folder)
        sought = [part.clone() for i in range(images) for part in patches(detector, [draw(category, 9, True, i)])]
        taken, searched = {}, {}
        for count in rows:
            place = folder / "model"
            taken[count], searched[count] = measure(detector, every[:count], sought, place, weights, category)
            click.echo(f"{count}: {taken[count] | searched[count]}", err=True)
    click.echo(f"{category}, {backbone.weights}, rows of {dimension} values, {images} images\n")
    click.echo(f"{table(taken)}\n\n{table(searched)}")


if __name__ == "__main__":
    main()
