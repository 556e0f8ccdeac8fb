"""The figures of `gpu.py`, what matters most first: fit, predict, the network, how far all is from the CPU's."""

import patchcore_kit as pk  # before torch

# isort: split
import copy
import cProfile
import json
import logging
import os
import platform
import pstats
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import cycle, islice, product
from pathlib import Path

import click
import faiss
import numpy as np
import torch
import torchvision
from common import choose_device, device_name, peak_gigabytes, seconds, wait_for_gpu
from PIL import Image

from patchcore_kit import coreset
from patchcore_kit.appearance import measure
from patchcore_kit.backbones import PRECISIONS, find_device, tf32
from patchcore_kit.datasets import as_samples
from patchcore_kit.detector import CALIBRATED
from patchcore_kit.errors import short
from patchcore_kit.files import writing
from patchcore_kit.patches import PatchRows
from patchcore_kit.reasons import find_regions, packed
from patchcore_kit.scoring import draw_maps
from patchcore_kit.suspects import spread
from patchcore_kit.transforms import Transform, normalise

NETWORKS = ("wideresnet50", "resnet18")
COMPARED = 4  # of them, with the CPU's scores
TOP = 10  # lines of a profile
STEP, COMPILING = 5, 90  # seconds that must be left for another step, and for one with torch.compile
GOALS = {  # of the first case
    "predict of frames, batches of 64, images/s": "at least 1000 (published: 76 on an RTX A6000, Batzner et al. 2024)",
    "fit on 209 frames, s": "under 1",
}

Figures = Iterator[tuple[str, float | str]]
"""What was measured, and how much of it: each as soon as it is known."""


@dataclass(frozen=True)
class Amounts:
    """How much is measured.

    sizes: of images, in pixels. train, test: different images. frames, files: images in a batch, and how many are
    predicted so, again and again the same. side: of photographs, in pixels. repeat: passes that the median is of.
    """

    sizes: tuple[int, ...] = (224, 320)
    train: int = 209  # as many as MVTec AD's bottle has
    test: int = 64
    frames: tuple[tuple[int, int], ...] = ((1, 32), (8, 128), (64, 640))
    files: tuple[tuple[int, int], ...] = ((1, 16), (8, 64), (64, 128))
    side: int = 900
    repeat: int = 3


FULL = Amounts()
SMALL = Amounts(sizes=(64,), train=12, test=8, frames=((1, 2), (4, 8)), files=((1, 2), (4, 8)), side=100, repeat=1)


class Report:
    """Prints figures as rows of markdown tables, and writes all so far as JSON after each.

    deadline: on the clock of `time.perf_counter`, after which no step is begun.
    """

    def __init__(self, out: Path, deadline: float) -> None:
        self.out, self.deadline = out, deadline
        self.content = {"machine": {}, "figures": {}, "not measured": {}}
        self._rows = self.content["machine"]

    def table(self, title: str) -> None:
        """Begin another table."""
        self._rows = self.content["figures"].setdefault(title, {})
        click.echo(f"\n{title}\n\n| | |\n|---|---:|")

    def row(self, name: str, value: float | str) -> None:
        """A row of the table: numbers to three digits, in JSON as they are."""
        self._rows[name] = value
        number = value if isinstance(value, str) else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
        click.echo("| {} | {} |".format(*(text.replace("|", "/") for text in (name, number))))
        self.write()

    def step(self, title: str, name: str, what: Callable[[], Figures], needs: float = STEP) -> None:
        """Measure something for a table, if so many seconds are left; if it fails the error is its figure."""
        if time.perf_counter() + needs > self.deadline:
            self.content["not measured"].setdefault(title, []).append(name)
            self.write()
            return
        if self._rows is not self.content["figures"].get(title):
            self.table(title)
        try:
            for figure, value in what():
                self.row(figure, value)
        except Exception as error:  # of the kit, of CUDA, of a compiler: the other figures are as good without it
            self.row(name, f"{type(error).__name__}: {short(error)}")

    def write(self) -> None:
        """All so far, as JSON."""
        with writing(self.out) as temporary:
            temporary.write_text(json.dumps(self.content, indent=1))


def photographs(count: int, side: int) -> list[np.ndarray]:
    """(side, side, 3) uint8: one drawn surface, each time shifted and lit a little differently, with a grain."""
    rng = np.random.default_rng(0)
    shift, surface = max(1, side // 16), 0
    for cells in (8, 64):  # large blots and fine ones
        blots = Image.fromarray(rng.integers(60, 196, (cells, cells, 3), dtype=np.uint8))
        surface = surface + np.asarray(blots.resize((side + shift, side + shift), Image.Resampling.BICUBIC)) / 2

    def view(number: int) -> np.ndarray:
        own = np.random.default_rng((0, number))
        top, left = own.integers(0, shift + 1, 2)
        grain = own.integers(-4, 5, (side, side, 1)) + own.normal(0, 2)
        return (surface[top : top + side, left : left + side] + grain).clip(0, 255).astype(np.uint8)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(view, range(count)))


@lru_cache(maxsize=1)
def images(amounts: Amounts) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Photographs to learn from, and others like them."""
    drawn = photographs(amounts.train + amounts.test, amounts.side)
    return drawn[: amounts.train], drawn[amounts.train :]


@dataclass(frozen=True)
class Case:
    """A network, a size of images in pixels, a share of the patches that is kept; and what can be measured of it."""

    name: str
    size: int
    percentage: float
    device: torch.device
    amounts: Amounts

    def __str__(self) -> str:
        return f"{self.name}, {self.size} pixels, {self.percentage:.0%}"

    @cached_property
    def network(self) -> pk.Backbone:
        """With random weights, always the same."""
        return pk.load_backbone(self.name, weights="random", device=self.device)

    @cached_property
    def resize(self) -> int:
        """Pixels of a frame, from which the image is cut: 256 for 224."""
        return round(self.size * 8 / 7)

    @cached_property
    def frames(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """(resize, resize, 3) uint8, to learn from and to predict."""
        whole = Transform(self.resize, self.resize)
        return tuple([whole.image(sample) for sample in as_samples(some)] for some in images(self.amounts))

    @cached_property
    def detector(self) -> pk.PatchCore:
        """Not fitted yet, in batches of the largest size."""
        settings = {"percentage": self.percentage, "resize": self.resize, "imagesize": self.size, "progress": False}
        return pk.PatchCore(self.network, batch_size=self.amounts.frames[-1][0], **settings)

    @cached_property
    def batch(self) -> np.ndarray:
        """The largest batch as the network sees it: (B, H, W, 3) uint8."""
        samples = as_samples(list(islice(cycle(self.frames[1]), self.detector.batch_size)))
        return np.stack([self.detector.transform.image(sample) for sample in samples])

    def seconds(self, what: Callable[[], object]) -> float:
        """The median of several passes, after one to warm up."""
        what()
        return seconds(self.amounts.repeat, what)

    def memory(self, phase: str, what: Callable[[], object]) -> Figures:
        """Peak of what torch holds of a GPU's memory, the network among it."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            what()
            yield f"{phase}, peak GPU memory, GB", torch.cuda.max_memory_allocated() / 1e9

    def peak(self) -> Figures:
        """Of this process, so far."""
        yield "peak host memory so far, GB", peak_gigabytes()

    def fit(self) -> Figures:
        """From frames in memory to the bank and its thresholds."""
        train = self.frames[0]
        yield f"fit on {len(train)} frames, s", self.seconds(lambda: self.detector.fit(train))
        yield "rows of the bank", len(self.detector.bank_)
        yield from self.memory("fit", lambda: self.detector.fit(train))

    def predict(self) -> Figures:
        """From frames in memory to scores, maps and reasons."""
        yield from self.rates("frames", self.frames[1], self.amounts.frames)
        yield from self.memory("predict", lambda: self.detector.predict(self.frames[1]))
        verdicts = self.detector.predict(self.frames[1]).verdicts
        yield "share of the images that stand out, whose reasons are found", float((verdicts != "good").mean())
        one = self.frames[1][0]
        yield "predict of one frame alone, ms", 1000 * self.seconds(lambda: self.detector.predict(one))

    def rates(
        self, of: str, things: Sequence, batches: Sequence[tuple[int, int]], network: pk.Backbone | None = None
    ) -> Figures:
        """Images a second of predict, by batch; of another network where one is given."""
        detector = copy.copy(self.detector)
        detector.backbone = network or detector.backbone
        for size, count in batches:
            some, detector.batch_size = list(islice(cycle(things), count)), size
            taken = self.seconds(lambda some=some: detector.predict(some))
            yield f"predict of {of}, batches of {size}, images/s", count / taken

    def alone(self, run: Callable[[torch.Tensor], object] | None = None, what: str = "network alone") -> Figures:
        """Images a second of the network, from images on the device to maps there, by batch."""
        batch = normalise(self.batch, self.device)
        for size, _ in self.amounts.frames:
            part = batch[:size]
            yield f"{what}, batches of {size}, images/s", size / self.seconds(lambda x=part: (run or self.network)(x))

    def agreement(self) -> Figures:
        """How far scores and maps are from those of the same model on the CPU, with the search that compares all."""
        flat, some = copy.copy(self.detector), self.frames[1][:COMPARED]
        flat.search = "flat"  # of what is saved
        with tempfile.TemporaryDirectory() as folder:
            flat.save(folder)
            expected = pk.PatchCore.load(folder, device="cpu", progress=False).predict(some)
        found = self.detector.predict(some)
        for what in ("scores", "maps"):
            cpu, here = (getattr(one, what) for one in (expected, found))
            yield (
                f"{what}: largest difference from the CPU's over the largest",
                float(np.abs(here - cpu).max() / cpu.max()),
            )

    def large(self) -> Figures:
        """Images a second of predict from photographs, which are resized: in memory, and in files."""
        photos, side = images(self.amounts)[1], self.amounts.side
        yield from self.rates(f"photographs of {side}x{side} in memory", photos, self.amounts.files[-1:])
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
            for form, suffix in (("PNG", ".png"), ("JPEG", ".jpg")):
                paths = [Path(folder) / f"{i:03}{suffix}" for i in range(len(photos))]
                list(pool.map(lambda photo, path: Image.fromarray(photo).save(path, quality=95), photos, paths))
                yield from self.rates(f"{form} files of {side}x{side}", paths, self.amounts.files)

    def stages(self) -> Figures:
        """Milliseconds of each stage, of the largest batch: what is not the network's, and on which side it is."""
        detector, batch, n = self.detector, self.batch, len(self.batch)
        samples, threads = as_samples(list(islice(cycle(self.frames[1]), n))), os.cpu_count()
        maps = self.network(normalise(batch, self.device))
        rows = detector.embedding(maps)
        patches = detector.bank_.search(rows)[0].reshape(n, *detector.grid_)
        drawn = draw_maps(patches, detector.transform.size)
        limit = detector.calibration_.pixel.value if detector.calibration_ else None
        stages = {
            f"frames to network input, one of {threads} threads": lambda: [
                detector.transform.image(s) for s in samples
            ],
            "appearance": lambda: measure(batch, self.device),
            "to the device, normalised": lambda: normalise(batch, self.device),
            "network": lambda: self.network(normalise(batch, self.device)),
            "patch rows": lambda: detector.embedding(maps),
            "search": lambda: detector.bank_.search(rows, images=n),
            "maps": lambda: draw_maps(patches, detector.transform.size),
            "regions of one image, on the CPU": lambda: find_regions(drawn[0], patches[0], limit),
            "JPEGs of training images, on the CPU": lambda: packed(batch),
        }
        for name, stage in stages.items():
            yield f"stage of {n} images: {name}, ms", 1000 * self.seconds(stage)

    def fit_stages(self) -> Figures:
        """Milliseconds of what a fit does with its feature maps."""
        detector, train = self.detector, as_samples(self.frames[0])
        read = np.stack([detector.transform.image(sample) for sample in train])
        parts = np.array_split(read, -(-len(read) // detector.batch_size))
        rows = PatchRows(
            detector.embedding, (self.network(normalise(part, self.device)) for part in parts), detector.storage
        )
        projected = coreset.project(rows, detector.projection, detector.seed)
        some = spread(len(train), CALIBRATED)
        stages = {
            "projection": lambda: coreset.project(rows, detector.projection, detector.seed),
            "coreset": lambda: coreset.select_first(
                detector.sampler, projected, len(rows), self.percentage, progress=False
            ),
            "thresholds": lambda: detector._hold_out(rows.only(some), some),
        }
        for name, stage in stages.items():
            yield f"stage of a fit: {name}, ms", 1000 * self.seconds(stage)

    def profile(self) -> Figures:
        """Where a predict spends the device's time, and the main thread's."""
        some = list(islice(cycle(self.frames[1]), 4 * self.detector.batch_size))
        on_gpu = self.device.type == "cuda"
        kinds = torch.profiler.ProfilerActivity
        wait_for_gpu()
        with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA] if on_gpu else [kinds.CPU]) as seen:
            started = time.perf_counter()
            self.detector.predict(some)
            wait_for_gpu()
            taken = time.perf_counter() - started
        field, kind = ("self_device_time_total", "CUDA") if on_gpu else ("self_cpu_time_total", "CPU")
        events = [(getattr(e, field), e.count, e.key) for e in seen.key_averages() if e.device_type.name == kind]
        where = f"profile of {len(some)} images, {kind}"
        yield f"{where}: busy, share of the time", sum(event[0] for event in events) / 1e6 / taken
        for us, count, key in sorted(events, reverse=True)[:TOP]:
            yield f"{where}: {key:.90}, {count} times, ms", us / 1000
        host = cProfile.Profile()
        host.runcall(self.detector.predict, some)
        stats = pstats.Stats(host).get_stats_profile().func_profiles.items()
        for name, one in sorted(stats, key=lambda item: -item[1].tottime)[:TOP]:
            where = f"{Path(one.file_name).name} {name}"
            yield f"profile of {len(some)} images, main thread: {where}, {one.ncalls} times, ms", 1000 * one.tottime

    def bare(
        self, model: Callable[[torch.Tensor], list[torch.Tensor]], layout: torch.memory_format | None = None
    ) -> Callable[[torch.Tensor], list[torch.Tensor]]:
        """What runs a network in float32, with its values unchecked, on images of its own layout or of another."""

        def run(images: torch.Tensor) -> list[torch.Tensor]:
            with tf32(self.device, False):
                return model(images.contiguous(memory_format=layout or self.network._layout))

        return run

    def variants(self) -> dict[str, Callable[[], Figures]]:
        """The network in other ways than the kit's, which show what these would gain; most need a GPU."""
        network, cuda = self.network, self.device.type == "cuda"

        def benchmarked(images: torch.Tensor) -> list[torch.Tensor]:
            with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
                return network._network(images.contiguous(memory_format=network._layout))

        def channels_last() -> Figures:
            model = copy.deepcopy(network._network).to(memory_format=torch.channels_last)
            return self.alone(self.bare(model, torch.channels_last), "network alone, channels last")

        def other(precision: str) -> Figures:
            network = pk.load_backbone(self.name, weights="random", device=self.device, precision=precision)
            yield from self.alone(network, f"network alone, {precision}")
            yield from self.rates(f"frames, {precision}", self.frames[1], self.amounts.frames[-1:], network)

        found = {precision: partial(other, precision) for precision in PRECISIONS if precision != network.precision} | {
            "without the check of its values": lambda: self.alone(
                self.bare(network._network), "network alone, its values unchecked"
            ),
            "channels last": channels_last,
        }
        if cuda:
            found |= {
                "cuDNN's choice by trying": lambda: self.alone(benchmarked, "network alone, cuDNN's fastest"),
                "CUDA graph": self.graph,
            }
        return found

    def graph(self) -> Figures:
        """The network as one CUDA graph, with its values unchecked."""
        batch = normalise(self.batch, self.device)
        for size, _ in self.amounts.frames:
            fixed, graph = batch[:size].clone(memory_format=self.network._layout), torch.cuda.CUDAGraph()
            with tf32(self.device, False):
                stream = torch.cuda.Stream()
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    self.network._network(fixed)
                torch.cuda.current_stream().wait_stream(stream)
                with torch.cuda.graph(graph):
                    self.network._network(fixed)

            def run(x=batch[:size], fixed=fixed, graph=graph):
                fixed.copy_(x)
                graph.replay()

            yield f"network alone, a CUDA graph, batches of {size}, images/s", size / self.seconds(run)

    def compiled(self) -> Figures:
        """The network by torch.compile, with its values unchecked."""
        return self.alone(
            self.bare(torch.compile(self.network._network, dynamic=False)), "network alone, torch.compile"
        )


def machine(device: torch.device) -> dict[str, str | int]:
    """What the figures are of."""
    return {
        "device": device_name(device),
        "cores": os.cpu_count() or 1,
        "threads of torch": torch.get_num_threads(),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "faiss": faiss.__version__,
    }


@torch.inference_mode()
def measure_all(place: str, small: bool, deadline: float, out: Path) -> None:
    """Everything, until the deadline on the clock of `time.perf_counter`; into tables and the file `out`.

    Raises SettingsError for a device that is not there, ResultsError if the file cannot be written.
    """
    logging.getLogger("patchcore_kit").setLevel(logging.ERROR)  # it tells much of drawn photographs
    device, amounts, started = choose_device(str(find_device(place))), SMALL if small else FULL, time.perf_counter()
    report = Report(out, deadline)
    click.echo("| | |\n|---|---:|")
    for name, value in machine(device).items():
        report.row(name, str(value))
    settings = [(name, size, share) for share, size, name in product((0.1, 0.01), amounts.sizes, NETWORKS)]
    for number, (name, size, share) in enumerate(settings):
        case = Case(name, size, share, device, amounts)
        steps = {"fit": case.fit, "predict": case.predict, "network alone": case.alone, "agreement": case.agreement}
        if number == 0:
            first, more = str(case), {"stages": case.stages, "stages of a fit": case.fit_stages}
            steps |= more | {"profile": case.profile} | case.variants()
        if number < len(NETWORKS):
            steps["large"] = case.large
        for step, what in (steps | {"memory": case.peak}).items():
            report.step(str(case), step, what)
    if device.type == "cuda":
        report.step(first, "torch.compile", Case(*settings[0], device, amounts).compiled, COMPILING)
    report.table("All of it")
    report.row("time, s", time.perf_counter() - started)
    for figure, goal in GOALS.items():
        found = report.content["figures"].get(first, {}).get(figure, "not measured")
        report.row(f"{first}: {figure}, {goal}", found)
    for title, steps in report.content["not measured"].items():
        report.row(f"{title}: no time was left for", ", ".join(steps))
