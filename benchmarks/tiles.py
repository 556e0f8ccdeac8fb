"""Large images: what tiles cost in memory and time, whether they change the map, and which defects they find.

    python benchmarks/tiles.py
    python benchmarks/tiles.py --only defects --side 1024

Parts are drawn: a brushed plate with drilled holes, none like another, and as a defect one pit or burr of 12 pixels.
Every measurement is a process of its own; memory is what its peak is above the imports.
"""

import patchcore_kit as pk  # before torch

# isort: split
import json
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import scipy.ndimage
from common import in_own_process, peak_gigabytes, weights_file
from PIL import Image
from sklearn.metrics import roc_auc_score

from patchcore_kit.tiles import Tiling

DEFECT = 12  # pixels across
HOLES = 200  # pixels from one to the next


def part(size: tuple[int, int], seed: int, *, defect: bool = False) -> np.ndarray:
    """(H, W) -> (H, W, 3) uint8: a brushed plate with holes."""
    rng = np.random.default_rng(seed)
    brushed = scipy.ndimage.gaussian_filter1d(rng.standard_normal(size, dtype=np.float32), 25, axis=1)
    grey = 150 + 55 * brushed + 6 * rng.standard_normal(size, dtype=np.float32)
    grey *= np.linspace(rng.uniform(0.93, 1), rng.uniform(1, 1.07), size[1], dtype=np.float32)
    holes = [(y, x) for y in range(HOLES // 2, size[0], HOLES) for x in range(HOLES // 2, size[1], HOLES)]
    for middle in holes:
        blob(grey, np.add(middle, rng.uniform(-4, 4, 2)), rng.uniform(28, 30), -95.0)
    if defect:
        middle = np.add(holes[rng.integers(len(holes))], rng.choice([-1, 1], 2) * rng.uniform(50, HOLES // 2, 2))
        middle = middle.clip(2 * DEFECT, np.subtract(size, 2 * DEFECT))
        blob(grey, middle, DEFECT / 2, rng.choice([-70.0, 80.0]))
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def blob(grey: np.ndarray, middle: np.ndarray, radius: float, change: float) -> None:
    """Add a round spot with a soft edge of a pixel."""
    (top, bottom), (left, right) = (
        (max(0, int(at - radius - 2)), min(side, int(at + radius + 3)))
        for at, side in zip(middle, grey.shape, strict=True)
    )
    y, x = np.ogrid[top:bottom, left:right]
    away = np.hypot(y - middle[0], x - middle[1])
    grey[top:bottom, left:right] += change * (radius + 0.5 - away).clip(0, 1)


def web(task: dict) -> dict:
    """Fit and predict images of one size in this process."""
    backbone, size = pk.load_backbone("resnet18", weights=task["weights"]), tuple(task["size"])
    imports = peak_gigabytes()
    train, test = ([part(size, seed) for seed in seeds] for seeds in (range(4), range(100, 102)))
    detector = pk.PatchCore(backbone, percentage=0.01, progress=False, **task["settings"])
    started = time.perf_counter()
    detector.fit(train, memory=task["memory"])
    fitted, middle = time.perf_counter(), peak_gigabytes()
    found = detector.predict(test)
    predicted, most = time.perf_counter(), peak_gigabytes()
    detector.save(Path(task["folder"]) / "model")
    for number, image in enumerate(test):
        Image.fromarray(image).save(Path(task["folder"]) / f"{number}.png", compress_level=1)
    return {
        "fit, s an image": (fitted - started) / len(train), "predict, s an image": (predicted - fitted) / 2,
        "images, GB": (len(train) + len(test)) * train[0].nbytes / 1e9, "imports, GB": imports,
        "fit, GB above": middle - imports, "all, GB above": most - imports,
        "tiles": len(detector.tiling_), "bank": len(detector.bank_), "map": "x".join(map(str, found.maps.shape[1:])),
    }  # fmt: skip


def opened(task: dict) -> dict:
    """Predict files by a saved model in this process, one after another."""
    files, imports = sorted(Path(task["folder"]).glob("*.png")), peak_gigabytes()
    detector = pk.PatchCore.load(Path(task["folder"]) / "model", task["weights"], progress=False)
    started = time.perf_counter()
    for file in files:
        detector.predict(file)
    seconds = (time.perf_counter() - started) / len(files)
    return {"predict, s an image": seconds, "imports, GB": imports, "all, GB above": peak_gigabytes() - imports}


def same(task: dict) -> dict:
    """The largest difference between the map by tiles and by one pass, as a share of the map's largest value."""
    backbone, size = pk.load_backbone("resnet18", weights=task["weights"]), tuple(task["size"])
    train, test = ([part(size, seed) for seed in range(4)], [part(size, 9, defect=True), part(size, 10)])
    settings = {"resize": size, "percentage": 0.01, "search": "flat", "progress": False}
    one = pk.PatchCore(backbone, **settings).fit(train)
    whole, found = one.predict(test), {}
    for overlap in task["overlaps"]:
        cut = pk.PatchCore(backbone, tiles=(2, 2), overlap=overlap, **settings)
        cut.fit(train[:1])
        cut.bank_ = one.bank_
        away = distance_to_seams(cut.tiling_, size)
        wrong = np.abs(cut.predict(test).maps - whole.maps).max(axis=0) / whole.maps.max()
        found[str(overlap)] = {"anywhere": float(wrong.max())} | {
            f"{pixels} pixels from seams": float(wrong[away > pixels].max()) for pixels in (16, 32, 64)
        }
    return found


def distance_to_seams(tiling: Tiling, size: tuple[int, int]) -> np.ndarray:
    """(H, W) pixels from each to the nearest that another tile answers for."""
    tiles = tiling.tile_of(np.arange(tiling.cells)).reshape(tiling.grid)
    for axis in (0, 1):
        tiles = tiles.repeat(size[axis] // tiling.grid[axis], axis)
    return np.max([scipy.ndimage.distance_transform_edt(tiles == tile) for tile in np.unique(tiles)], axis=0)


def defects(task: dict) -> dict:
    """Image AUROC of small defects, by the way that images are seen."""
    backbone, size = pk.load_backbone("resnet18", weights=task["weights"]), tuple(task["size"])
    train = [part(size, seed) for seed in range(task["train"])]
    bad = np.arange(task["test"]) % 2
    test = [part(size, 1000 + seed, defect=bool(one)) for seed, one in enumerate(bad)]
    found = {}
    for name, settings in task["ways"].items():
        if isinstance(settings.get("resize"), list):
            settings["resize"] = tuple(settings["resize"])
        started = time.perf_counter()
        detector = pk.PatchCore(backbone, percentage=0.01, progress=False, **settings).fit(train)
        scores = detector.predict(test).scores
        found[name] = {"image AUROC": roc_auc_score(bad, scores), "seconds": time.perf_counter() - started}
    return found


MEASURES = {"web": web, "opened": opened, "same": same, "defects": defects}


@click.command(help=__doc__)
@click.option("--only", type=click.Choice(["web", "same", "defects"]), help="One of the measurements.  [default: all]")
@click.option("--side", default=2000, show_default=True, help="Of the parts with defects, and of the web's width.")
@click.option("--length", default=8000, show_default=True, help="Of the web.")
@click.option("--images", default=20, show_default=True, help="Parts that are tested, half of them with a defect.")
@click.option("--one", is_flag=True, hidden=True, help="Measure what standard input says.")
def main(only: str | None, side: int, length: int, images: int, one: bool) -> None:
    if one:
        name, task = json.load(sys.stdin)
        click.echo(json.dumps(MEASURES[name](task)))
        return
    with tempfile.TemporaryDirectory() as folder:
        weights = str(weights_file("resnet18", Path(folder))[0])
        ways = {
            "256 pixels": {"resize": [256, 256]},
            "512 pixels": {"resize": [512, 512]},
            "tiles of 448": {"tile": 448, "overlap": 64},
        }
        webs = {"size": [side, length], "settings": {"tile": 448}, "folder": folder}
        tasks = [
            ("web", "at once", webs | {"memory": None}),
            ("web", "streamed", webs | {"memory": "300MB"}),
            ("same", "the same map", {"size": [960, 960], "overlaps": [0, 32, 64, 128]}),
            ("defects", "defects", {"size": [side, side], "train": 6, "test": images, "ways": ways}),
        ]
        for name, title, task in tasks:
            if only in (None, name):
                found = in_own_process(__file__, [name, task | {"weights": weights}])
                if name == "web":
                    found["saved and opened"] = in_own_process(__file__, ["opened", task | {"weights": weights}])
                click.echo(f"{title}: {json.dumps(found, indent=4)}")


if __name__ == "__main__":
    main()
