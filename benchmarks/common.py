"""What the benchmarks share: timing, peak memory, images of the original size."""

import re
import resource
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from PIL import Image

import patchcore_kit as pk


def seconds(repeat: int, stage: Callable[[], object]) -> float:
    """Median time of `repeat` calls."""
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        stage()
        times.append(time.perf_counter() - started)
    return median(times)


def peak_gigabytes() -> float:
    """This process's peak of resident memory; of Linux's figures the one that does not count its parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text()).group(1)) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9  # bytes on macOS


def enlarge(category: pk.Category, data: Path, folder: Path, side: int) -> None:
    """Copy a category into the data folder `folder`, its images and masks as PNGs of side x side pixels."""

    def copy(source: Path, how: Image.Resampling) -> None:
        target = (folder / source.relative_to(data)).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(source) as image:
            image.resize((side, side), how).save(target)

    samples = [*category.train, *category.test]
    jobs = [(sample.path, Image.Resampling.BICUBIC) for sample in samples]
    jobs += [(sample.mask_path, Image.Resampling.NEAREST) for sample in samples if sample.mask_path]
    with ThreadPoolExecutor() as pool:
        list(pool.map(copy, *zip(*jobs, strict=True)))
