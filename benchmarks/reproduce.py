"""The published figures, made again: every category of MVTec AD that is found, and how far the kit is from them.

    python benchmarks/reproduce.py
    python benchmarks/reproduce.py --backbone resnet18

Trains with the settings that the reference's figures were published for (layer2 and layer3, 10 %, 256/224 pixels, seed
0) into experiments/reproduce/DATA/BACKBONE, where the same command goes on after a stop.
"""

from pathlib import Path

import click
import pandas as pd

import patchcore_kit as pk
from patchcore_kit.cli import run_patchcore
from patchcore_kit.weights import resolve
from utils import get_train_args

PUBLISHED_FOR = "wideresnet50"
METRICS = ["instance_auroc", "full_pixel_auroc", "anomaly_pixel_auroc"]


def find_categories() -> tuple[Path, list[str]]:
    """MVTec AD's folder, and which of its categories are there. Raises DataError where there is no MVTec AD."""
    data = pk.find_data()
    if data is None:
        raise pk.DataError(
            "MVTec AD, which the published figures are for, is not found: put it into "
            f"{pk.work_folder() / 'data' / 'mvtec_anomaly_detection'}, or name its folder in MVTEC_ROOT"
        )
    names = pk.list_categories(data)
    strange = [name for name in names if f"mvtec_{name}" not in pk.published_results().index]
    if strange:
        raise pk.DataError(
            f"{data} is not MVTec AD, which the published figures are for, because of its {strange[0]}: name another "
            "folder in MVTEC_ROOT"
        )
    return data, names


def beside_published(table: pd.DataFrame) -> pd.DataFrame:
    """METRICS by category, and their means, as texts: each value, and how far it is from the published one."""
    apart = table - pk.published_results().loc[table.index, METRICS]
    table, apart = (pd.concat([t, t.mean().rename("Mean").to_frame().T]) for t in (table, apart))
    texts = table.map("{:.4f}".format) + apart.map(" ({:+.4f})".format)
    return texts.where(table.notna(), "")


@click.command(help=__doc__)
@click.option("--backbone", default=PUBLISHED_FOR, show_default=True)
@click.option("--gpu", type=int, multiple=True, help="Number of the GPU to use.  [default: none]")
def main(backbone: str, gpu: tuple[int, ...]) -> None:
    try:
        data, names = find_categories()
        other = resolve(backbone).architecture != resolve(PUBLISHED_FOR).architecture
        folder = pk.work_folder() / "experiments" / "reproduce" / data.resolve().name / backbone
        place = {"results_path": folder.parents[1], "log_project": folder.parent.name, "log_group": folder.name}
        args = get_train_args(data, names, **place, backbone=backbone, gpu=gpu, save_models=False, resume=True)
        run_patchcore.main(args, standalone_mode=False)
        table = pk.read_results(folder / "results.csv").loc[[f"mvtec_{name}" for name in names], METRICS]
    except pk.KitError as error:
        raise click.ClickException(str(error)) from None
    click.echo("\nin brackets: how far that is from what the reference has published")
    click.echo(beside_published(table).to_string())
    if len(names) < (all_there := len(pk.published_results()) - 1):
        click.echo(f"{len(names)} of the {all_there} categories are here, and Mean is of these, here and published")
    if other:
        click.echo(f"the published figures are {PUBLISHED_FOR}'s, so {backbone} differs by the network as well")


if __name__ == "__main__":
    main()
