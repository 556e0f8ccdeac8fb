"""What the kit does on a GPU: images a second, seconds of a fit, memory, how far its scores are from the CPU's.

    python benchmarks/gpu.py                         # on a machine with an NVIDIA GPU, no network, six minutes
    python benchmarks/gpu.py --wheels FOLDER         # where packages are missing, such as faiss-cpu and timm
    python benchmarks/gpu.py --device cpu --small    # few small images: that all of it runs

Networks have random weights and images are drawn, so nothing has to be there but the kit and the packages it needs.
Frames are uint8 images in memory, of the size that they are cut from (256 pixels for 224), so nothing is resized;
larger ones and files are. Everything is on the clock, from the decoded image, or the file, to scores and maps in NumPy
and the reasons of the images that stand out. Figures are medians after a warm-up; they are printed, and written as
JSON, one by one as they are known. What fails has its error in the table, and what there is no time for is named.
"""

import importlib
import importlib.metadata
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import click

REPOSITORY = Path(__file__).resolve().parents[1]


def missing() -> list[str]:
    """The packages that the kit needs and this Python does not have."""
    needed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    there = {project(found.name) for found in importlib.metadata.distributions()}
    return [name for name in (re.match(r"[\w-]+", line).group() for line in needed) if name not in there]


def project(name: str) -> str:
    """A package's name as it is compared."""
    return name.lower().replace("_", "-")


def bring(wheels: Path | None, folder: str) -> None:
    """Install what is missing, as far as there are wheels of it, into the folder, without a network.

    Their own dependencies are not followed: a torch beside the one that is here would be the wrong one.
    Raises ClickException, a sentence, if that fails or what cannot be done without is still not there.
    """
    names, files = missing(), sorted(wheels.glob("*.whl")) if wheels else []
    files = [file for file in files if project(file.name.partition("-")[0]) in names]
    if files:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", folder]
        done = subprocess.run([*command, *files], capture_output=True, text=True, check=False)
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["pip gives no reason"])[-1]
            raise click.ClickException(f"cannot install {', '.join(file.name for file in files)} ({why})")
        sys.path.append(folder)
        importlib.invalidate_caches()
    sys.path.insert(1, str(REPOSITORY))  # the kit need not be installed
    try:
        for module in ("patchcore_kit", "torchvision", "patchcore_kit.detector"):  # the kit before torch
            importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"the kit needs {error.name}, which is not here: put wheels of what is missing ({', '.join(missing())}) "
            "into a folder and name it with --wheels"
        ) from None
    except Exception as error:  # a RuntimeError about an operator, of a torchvision that was built for another torch
        raise click.ClickException(
            f"torchvision, from which the kit takes networks, does not load here ({error}): bring the one "
            f"of the same release as torch {importlib.metadata.version('torch')}"
        ) from None


@click.command(help=__doc__)
@click.option("--device", default="cuda:0", show_default=True)
@click.option("--small", is_flag=True, help="Few small images, one pass: figures mean nothing.")
@click.option("--minutes", default=6.0, show_default=True, help="For all of it; what would take longer is only named.")
@click.option("--wheels", type=click.Path(path_type=Path, exists=True, file_okay=False), help="A folder of wheels.")
@click.option("--out", type=click.Path(path_type=Path), default="gpu.json", show_default=True, help="The JSON file.")
def main(device: str, small: bool, minutes: float, wheels: Path | None, out: Path) -> None:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        bring(wheels, folder)
        from gpu_figures import measure_all

        import patchcore_kit as pk  # what these import may have come just now

        try:
            measure_all(device, small, started + 60 * minutes, out)
        except pk.KitError as error:  # there is no such device, or nothing can be written
            raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
