"""What density scores change, beside the reference's: image AUROC with and without the 3x3 mean, pixel AUROC and PRO.

    python benchmarks/scoring.py --data data/mvtec_anomaly_detection -c bottle --whole data/surface

Every figure is the mean over `--seeds` seeds of the coreset; both scores are taken from the same bank and the same
search.
"""

from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch

import patchcore_kit as pk
from patchcore_kit.metrics import image_metrics, pixel_metrics
from patchcore_kit.scoring import largest_mean, map_operator, relative

FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


def patch_scores(detector: pk.PatchCore, samples: list[pk.Sample]) -> dict[str, np.ndarray]:
    """Of each scoring the patches' (N, H, W), from one search."""
    distances, nearest = [], []
    with torch.inference_mode():
        for start in range(0, len(samples), detector.batch_size):
            images = pk.load_images(samples[start : start + detector.batch_size], detector.transform)
            rows = detector.embedding(detector.backbone(images))
            found = detector.bank_.search(rows, images=len(images))
            distances.append(found[0][:, 0])
            nearest.append(found[1][:, 0])
    distances, nearest = np.concatenate(distances), np.concatenate(nearest)
    scores = {"distance": distances, "density": relative(distances, nearest, detector.bank_.spacing)}
    return {scoring: values.reshape(len(samples), *detector.grid_) for scoring, values in scores.items()}


def measure(detector: pk.PatchCore, category: pk.Category) -> list[dict]:
    """A row for each scoring."""
    labels = np.array([sample.label for sample in category.test])
    masks = np.stack([detector.transform.mask(sample) for sample in category.test])
    down, across = (map_operator(n, m) for n, m in zip(detector.transform.size, detector.grid_, strict=True))
    rows = []
    for scoring, patches in patch_scores(detector, category.test).items():
        pixels = pixel_metrics((down @ torch.from_numpy(patches) @ across.T).numpy(), masks, seed=None)
        rows.append(
            {
                "scoring": scoring,
                "image AUROC": image_metrics(patches.max(axis=(1, 2)), labels, seed=None)["instance_auroc"],
                "with 3x3": image_metrics(largest_mean(patches), labels, seed=None)["instance_auroc"],
                "pixel AUROC": pixels["full_pixel_auroc"],
                "PRO": pixels["full_pro"],
            }
        )
    return rows


@click.command(help=__doc__)
@click.option("--data", type=FOLDER, multiple=True, help="A data folder, cut as usual.")
@click.option("--category", "-c", multiple=True, help="Of those folders.  [default: all]")
@click.option("--whole", type=FOLDER, help="A data folder whose images are shown whole.")
@click.option("--backbone", default="resnet18", show_default=True)
@click.option("--weights", help="The network's: a file, or random.")
@click.option("--percentage", default=0.1, show_default=True)
@click.option("--size", default=224, show_default=True, help="Of the images, in pixels.")
@click.option("--seeds", default=5, show_default=True)
def main(
    data: tuple[Path],
    category: tuple[str],
    whole: Path | None,
    backbone: str,
    weights: str | None,
    percentage: float,
    size: int,
    seeds: int,
) -> None:
    cases = [
        (folder, name, round(size * 8 / 7)) for folder in data for name in (category or pk.list_categories(folder))
    ]
    cases += [(whole, name, (size, size)) for name in (pk.list_categories(whole) if whole else ())]
    network, rows = pk.load_backbone(backbone, weights=weights), []
    for folder, name, resize in cases:
        images = pk.load_category(folder, name)
        for seed in range(seeds):
            settings = {"percentage": percentage, "resize": resize, "imagesize": size, "seed": seed, "progress": False}
            detector = pk.PatchCore(network, scoring="density", **settings).fit(images.train)
            label = f"{folder.name}/{name}{',whole' if isinstance(resize, tuple) else ''}"
            rows += [{"category": label, "seed": seed} | row for row in measure(detector, images)]
    table = pd.DataFrame(rows)
    means = table.groupby(["category", "scoring"], sort=False).mean(numeric_only=True).drop(columns="seed")
    if len(cases) > 1:
        means = pd.concat([means, pd.concat({"Mean": means.groupby("scoring", sort=False).mean()}, names=["category"])])
    click.echo(f"{backbone} ({network.weights}), {percentage:.0%}, {size} pixels, means of {seeds} seeds")
    click.echo(means.to_string(float_format="{:.4f}".format))


if __name__ == "__main__":
    main()
