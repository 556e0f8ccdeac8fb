"""A model's life after its first day: growing, a new lamp, bad images among the good ones.

    python benchmarks/life.py --data data/mvtec_anomaly_detection -c bottle --backbone resnet18

Grown: fitted on half of the training images and extended by the other half, and by ten steps, beside a fit of all; the
covering radius is the largest distance of a training patch to the bank, in the projection that the coreset is chosen
in. Lamp: images darkened by a third; of the training images 20 were kept out of the fit. Contaminated: defective test
images join the training images, one for nine, and leave the test.
"""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
import pandas as pd
import torch
from common import choose_category
from PIL import Image

import patchcore_kit as pk
from patchcore_kit import coreset
from patchcore_kit.patches import products

SHOWN = ("instance_auroc", "full_pixel_auroc", "full_pro", "alarm_f1", "alarm_false_alarms", "alarm_missed")
LAMP = 20  # images for new thresholds, or half of the training images
DARKER = 2 / 3


def timed(step: Callable[[], pk.PatchCore]) -> tuple[pk.PatchCore, float]:
    """What a step returns, and how long it took."""
    started = time.perf_counter()
    return step(), time.perf_counter() - started


@torch.inference_mode()
def covering_radius(detector: pk.PatchCore, samples: list[pk.Sample]) -> float:
    """Largest distance of a patch of these images, all that the detector has learnt, to its bank."""
    parts = [samples[i : i + detector.batch_size] for i in range(0, len(samples), detector.batch_size)]
    maps = (detector.backbone(pk.load_images(part, detector.transform)) for part in parts)
    rows = torch.cat([rows.clone() for rows in detector.embedding.each(maps)])
    patches = coreset.project(rows, detector.projection, detector.seed)
    cells = detector.grid_[0] * detector.grid_[1]
    bank = patches[torch.from_numpy(detector.bank_.images * cells + detector.bank_.cells)]
    least = torch.cat([products(part, -bank, bank.square().sum(1) / 2).amin(1) for part in patches.split(1024)])
    return float((patches.square().sum(1) + 2 * least).clamp(min=0).max().sqrt())


def row(name: str, detector: pk.PatchCore, test: list[pk.Sample], **more: float) -> dict:
    """A row of a table: the metrics on test images, and what else is known."""
    metrics = pk.evaluate(detector.predict(test))
    return {"": name} | {key: metrics[key] for key in SHOWN} | more


def grown(new: Callable[..., pk.PatchCore], category: pk.Category) -> list[dict]:
    """A fit of all, one extension by half, ten extensions."""
    train, half = category.train, len(category.train) // 2
    whole, fitting = timed(lambda: new().fit(train))
    one = new().fit(train[:half])
    one, extending = timed(lambda: one.extend(train[half:]))
    first, *steps = [[train[i] for i in part] for part in np.array_split(np.arange(len(train)), min(11, len(train)))]
    ten = new().fit(first)
    for step in steps:
        ten.extend(step)
    models = {"all at once": (whole, 1.0), "half, then half": (one, extending / fitting), "in ten steps": (ten, np.nan)}
    return [
        row(name, model, category.test, radius=covering_radius(model, train), time=share)
        for name, (model, share) in models.items()
    ]


def lamp(new: Callable[..., pk.PatchCore], category: pk.Category, folder: Path) -> list[dict]:
    """Before and after `recalibrate`, and a fit of darkened images, on darkened test images."""

    def darkened(samples: list[pk.Sample]) -> list[pk.Sample]:
        changed = []
        for sample in samples:
            path = folder / category.name / sample.name  # the folder says which category it is of
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.open(sample.path).convert("RGB").point(lambda value: value * DARKER).save(path.with_suffix(".png"))
            changed.append(pk.Sample(sample.name, path.with_suffix(".png"), sample.mask_path, sample.defect))
        return changed

    kept_out = min(LAMP, len(category.train) // 2)
    train, test = category.train[:-kept_out], darkened(category.test)
    model = new().fit(train)
    remarked = model.predict(test).remarks
    rows = [row("before", model, test, remarked=np.mean([bool(remark) for remark in remarked]))]
    model.recalibrate(darkened(category.train[-kept_out:]))
    remarked = model.predict(test).remarks
    rows.append(row("recalibrated", model, test, remarked=np.mean([bool(remark) for remark in remarked])))
    return [*rows, row("fitted anew", new().fit(darkened(train)), test, remarked=0.0)]


def contaminated(new: Callable[..., pk.PatchCore], category: pk.Category, seed: int) -> list[dict]:
    """Clean and contaminated training, with and without `contamination`, on the test images that are left."""
    bad = [sample for sample in category.test if sample.label == 1]
    count = min(round(0.11 * len(category.train)), len(bad) - 1)
    joined = set(np.random.default_rng(seed).choice(len(bad), count, replace=False).tolist())
    test = [sample for sample in category.test if sample.label == 0]
    test += [sample for i, sample in enumerate(bad) if i not in joined]
    rows = []
    for name, more in (("clean", []), (f"with {count} bad", [bad[i] for i in sorted(joined)])):
        for share in (0, 0.05, 0.1):
            model = new(contamination=share).fit([*category.train, *more])
            found = [suspect for suspect in model.suspects_ if "/good/" not in suspect]
            suspects = {"suspects": len(model.suspects_), "of them bad": len(found)}
            rows.append(row(f"{name}, contamination={share}", model, test, **suspects))
    return rows


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), help="[default: what is found]")
@click.option("--category", "-c", help="[default: the first]")
@click.option("--backbone", default="starter", show_default=True)
@click.option("--weights", help="The network's: a file, or random.")
@click.option("--scoring", type=click.Choice(["distance", "density"]), default="density", show_default=True)
@click.option("--part", type=click.Choice(["grown", "lamp", "contaminated"]), multiple=True, help="[default: all]")
@click.option("--percentage", default=0.1, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(
    data: Path | None,
    category: str | None,
    backbone: str,
    weights: str | None,
    scoring: str,
    part: tuple[str],
    percentage: float,
    seed: int,
) -> None:
    _, images = choose_category(data, category)
    network = pk.load_backbone(backbone, weights=weights)

    def new(contamination: float = 0) -> pk.PatchCore:
        settings = {"scoring": scoring, "contamination": contamination, "seed": seed, "progress": False}
        return pk.PatchCore(network, percentage=percentage, **settings)

    with TemporaryDirectory() as folder:
        tables = {
            "grown": lambda: grown(new, images),
            "lamp": lambda: lamp(new, images, Path(folder)),
            "contaminated": lambda: contaminated(new, images, seed),
        }
        for name in part or tables:
            table = pd.DataFrame(tables[name]()).set_index("")
            click.echo(f"{name}: {images.name}, {backbone} ({network.weights}), {scoring}")
            click.echo(table.to_string(float_format="{:.4f}".format))


if __name__ == "__main__":
    main()
