"""What the benchmarks share: which category and weights, images of the original size, device, timing, peak memory."""

import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import torch
import torchvision
from PIL import Image

import patchcore_kit as pk
from patchcore_kit.weights import find, resolve


def choose_category(data: Path | None, name: str | None) -> tuple[Path, pk.Category]:
    """The data folder (MVTec AD, else the sample data) and a category of it (the first)."""
    data = data or pk.find_data() or pk.draw_sample_data(pk.work_folder() / "data" / "sample")
    return data, pk.load_category(data, name or pk.list_categories(data)[0])


def weights_file(name: str, folder: Path) -> tuple[Path, str]:
    """Weights that are found for a torchvision network and their name, else random ones, written into `folder`."""
    if found := find(resolve(name)):
        return found
    torch.manual_seed(0)
    torch.save(torchvision.models.get_model(resolve(name).architecture).state_dict(), folder / "random.pth")
    return folder / "random.pth", "random"


def enlarge(category: pk.Category, data: Path, folder: Path, side: int) -> pk.Category:
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
    os.sync()  # or the system writes them while something is timed
    return pk.load_category(folder, category.name)


def choose_device(name: str) -> torch.device:
    """The device of that name; a GPU becomes the one that `seconds` waits for."""
    device = torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
    return device


def device_name(device: torch.device) -> str:
    """What a table says of it: "CPU", or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def seconds(repeat: int, stage: Callable[[], object]) -> float:
    """Median time of `repeat` calls, to the end of what they have given a GPU to do."""
    times = []
    for _ in range(repeat):
        wait_for_gpu()
        started = time.perf_counter()
        stage()
        wait_for_gpu()
        times.append(time.perf_counter() - started)
    return median(times)


def wait_for_gpu() -> None:
    """Until a GPU has nothing left to do, if one is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def gpu_gigabytes(stage: Callable[[], object]) -> float:
    """Peak of what torch holds of the GPU's memory during a call, above what it holds before."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    stage()
    return (torch.cuda.max_memory_allocated() - before) / 1e9


def in_own_process(script: str, task: object) -> object:
    """What a benchmark says of a task, both as JSON, if it is started with `--one`.

    Raises CalledProcessError if it fails.
    """
    child = [sys.executable, script, "--one"]
    done = subprocess.run(child, input=json.dumps(task), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def peak_gigabytes() -> float:
    """This process's peak of resident memory; of Linux's figures the one that does not count its parent's."""
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found.group(1)) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9  # bytes on macOS
