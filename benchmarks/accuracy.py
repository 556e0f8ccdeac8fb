"""What the fast search, float16 storage and bfloat16 change, beside the flat search in float32.

    python benchmarks/accuracy.py --data data/mvtec_anomaly_detection -c bottle --whole data/surface

Metrics are those of PatchCore with ResNet-18 at 224x224. Excess is how much larger a distance to the nearest row is
than the flat search's on the same rows, over all patches of the test images.
"""

from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch

import patchcore_kit as pk

FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
VARIANTS = {
    "flat, float32": {"search": "flat"},
    "fast, float32 (default)": {},
    "the same, seed 1": {"seed": 1},  # for scale: how much chance does
    "the same, seed 2": {"seed": 2},
    "fast, float16": {"storage": "float16"},
    "fast, bfloat16 network": {"precision": "bfloat16"},
}
METRICS = ("instance_auroc", "full_pixel_auroc", "full_pro")


def excess(detector: pk.PatchCore, samples: list[pk.Sample]) -> dict[str, float]:
    """How much larger than the flat search's the distances are, relative to them."""
    bank = detector.bank_
    flat = pk.MemoryBank(bank.rows, search="flat", storage=detector.storage)
    ratios = []
    with torch.inference_mode():
        for i in range(0, len(samples), detector.batch_size):
            images = pk.load_images(samples[i : i + detector.batch_size], detector.transform)
            rows = detector.embedding(detector.backbone(images))
            found, exact = (one.search(rows, images=len(images))[0] for one in (bank, flat))
            ratios.append((found / exact - 1).ravel())
    ratios = np.concatenate(ratios)
    return {
        "excess, mean": ratios.mean(),
        "excess, 99.9 %": np.quantile(ratios, 0.999),
        "excess, largest": ratios.max(),
        "nearest missed": (ratios > 1e-3).mean(),
    }


@click.command(help=__doc__)
@click.option("--data", type=FOLDER, help="A data folder, cut as usual.")
@click.option("--category", "-c", multiple=True, help="Of that folder.  [default: all]")
@click.option("--whole", type=FOLDER, help="A data folder whose images are shown whole.")
@click.option("--weights", help="ResNet-18's: a file, or random.")
@click.option("--sampler", default="approx_greedy_coreset", show_default=True)
@click.option("--percentage", default=0.1, show_default=True)
def main(
    data: Path | None, category: tuple[str], whole: Path | None, weights: str | None, sampler: str, percentage: float
) -> None:
    cases = [(data, name, 256) for name in (category or pk.list_categories(data) if data else ())]
    cases += [(whole, name, (224, 224)) for name in (pk.list_categories(whole) if whole else ())]
    networks = {p: pk.load_backbone("resnet18", weights=weights, precision=p) for p in ("float32", "bfloat16")}
    for folder, name, resize in cases:
        images, table = pk.load_category(folder, name), {}
        for variant, settings in VARIANTS.items():
            settings = settings | {"resize": resize, "sampler": sampler, "percentage": percentage}
            network = networks[settings.pop("precision", "float32")]
            detector = pk.PatchCore(network, **settings, progress=False).fit(images.train)
            metrics = pk.evaluate(detector.predict(images.test))
            table[variant] = {key: metrics[key] for key in METRICS}
            if detector.search == "fast":
                table[variant] |= excess(detector, images.test)
        click.echo(f"\n{name}, {sampler}, {percentage:.0%}: {len(detector.bank_)} rows")
        click.echo(pd.DataFrame(table).T.to_string(float_format="{:.5f}".format, na_rep=""))


if __name__ == "__main__":
    main()
