"""The benchmark's commands run, and their figures are there; how large they are is for an idle machine to say.

Most run in this process, which has torch loaded already.
"""

import json
import re
import subprocess
import sys
import time
import zipfile
from importlib import import_module
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from click import ClickException
from click.testing import CliRunner
from PIL import Image

import patchcore_kit as pk
from patchcore_kit import coreset, reference_format

REPOSITORY = Path(__file__).resolve().parents[1]


def run(script, *options):
    """As a command of its own."""
    command = [sys.executable, f"benchmarks/{script}.py", *map(str, options)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def load(monkeypatch):
    """A script as a module, fresh for each test."""
    monkeypatch.setattr(sys, "path", [str(REPOSITORY / "benchmarks"), *sys.path])

    def load(script):
        for name in ("common", script):
            monkeypatch.delitem(sys.modules, name, raising=False)
        return import_module(script)

    return load


def run_here(module, *options):
    """In this process."""
    done = CliRunner().invoke(module.main, list(map(str, options)), catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def has_row(output, name, figures):
    """A row of a table with that many figures at its end."""
    return re.search(rf"^ *{re.escape(name)}( +-?\d+\.\d+){{{figures}}} *$", output, re.MULTILINE)


def test_stages(sample_root):
    options = ["--data", sample_root, "--category", "pill", "--side", 300, "--repeat", 1, "--device", "cpu"]
    output = run("stages", *options)
    for stage in ("floor", "decode, resize", "bare network", "backbone", "embedding", "all", "all, images cached"):
        assert has_row(output, stage, 4), stage
    for stage in ("coreset", "index", "coreset, plain loop", "search", "search, flat", "maps", "masks", "metrics"):
        assert has_row(output, stage, 2), stage
    assert re.search(r"CPU, \d+ threads", output)
    assert re.search(r"^predict, one image alone: \d+\.\d ms$", output, re.MULTILINE)


def test_growth(sample_root, tmp_path, load, monkeypatch):
    """Each point is measured in a process of its own; the first one is here as well, the others follow in this one."""
    growth, points = load("growth"), []
    apart = growth.run

    def run(train, test, settings):
        points.append(settings)
        if len(points) == 1:
            return apart(train, test, settings)
        return growth.measure(train, test, settings) | {"peak, GB": 0.1}  # tests before may have used more: it stays 0

    monkeypatch.setattr(growth, "run", run)
    monkeypatch.setattr(coreset, "select_first", coreset.select_first)  # which `measure` replaces
    options = ["--images", 4, "--images", 12, "-p", 0.1, "-p", 0.25, "--largest", 10]  # of 8: some are mirrored
    plot = tmp_path / "growth.png"
    output = run_here(growth, "--data", sample_root, "--category", "pill", *options, "--plot", plot)
    assert len(re.findall(r"^ +(4|12) +0\.(10|25)( +\d+\.\d+){4}$", output, re.MULTILINE)) == 4
    assert len(re.findall(r"^(fit|coreset|predict), s( +-?\d+\.\d\d){2}$", output, re.MULTILINE)) == 9
    assert "exponents by images" in output and "10 images, 10 %, by storage" in output
    with Image.open(plot) as image:
        assert image.width > 1000


def test_peers(sample_root, tmp_path):
    """The peers' own code is not here; a checkout that only answers shows that its figures end up in the table."""
    for module in ("__init__", "common", "datasets/__init__", "datasets/mvtec", "patchcore", "sampler"):
        (tmp_path / f"src/patchcore/{module}.py").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"src/patchcore/{module}.py").touch()
    (tmp_path / "src/patchcore/common.py").write_text("def FaissNN(on_gpu, threads): ...")
    (tmp_path / "src/patchcore/sampler.py").write_text("def ApproximateGreedyCoresetSampler(percentage, device): ...")
    (tmp_path / "src/patchcore/datasets/mvtec.py").write_text(
        """
import enum, pathlib, torch
DatasetSplit = enum.Enum("DatasetSplit", ["TRAIN", "TEST"])
class MVTecDataset(torch.utils.data.Dataset):
    def __init__(self, source, classname, resize, imagesize, split):
        folder = pathlib.Path(source) / classname / split.name.lower()
        self.data_to_iterate = [(classname, p.parent.name, str(p), None) for p in sorted(folder.glob("*/*.png"))]
    def __len__(self):
        return len(self.data_to_iterate)
    def __getitem__(self, i):
        return float(self.data_to_iterate[i][1] != "good")
"""
    )
    (tmp_path / "src/patchcore/patchcore.py").write_text(
        """
import numpy, torch
class PatchCore:
    def __init__(self, device): ...
    def load(self, **settings): assert settings["backbone"].name == "resnet18"
    def fit(self, loader): assert sum(len(batch) for batch in loader) == 8
    def predict(self, loader):
        scores = torch.cat(list(loader)).tolist()
        return scores, [numpy.full((224, 224), score) for score in scores], None, None
"""
    )
    options = ["--data", sample_root, "--category", "pill", "--side", 128, "--device", "cpu"]
    output = run("peers", *options, "--reference", tmp_path)
    for who in ("kit", "kit, float16", "kit, bfloat16", "reference"):
        assert has_row(output, who, 5), who
    assert re.search(r"^reference( +\S+){3} +1\.000", output, re.MULTILINE)  # its scores are perfect
    assert has_row(output, "reference / kit, float16", 3)
    assert "CPU" in output and "GPU, GB" not in output


def test_peers_agreement(sample_root, load):
    """On the CPU the kit is what it is there."""
    options = ["--data", sample_root, "--category", "pill", "--side", 128, "--device", "cpu", "--percentage", 0.02]
    output = run_here(load("peers"), *options, "--agreement")
    for scoring in ("distance", "density"):
        assert has_row(output, f"{scoring}, CPU", 8)
        for variant in ("the same on cpu", "cpu"):
            row = has_row(output, f"{scoring}, {variant}", 8).group()
            assert re.search(r"( +0\.0000\d\d){4} +1\.000000 ", row), variant


def test_accuracy(sample_root, load):
    options = ["--data", sample_root, "-c", "pill", "--weights", "random", "--percentage", 0.1]
    output = run_here(load("accuracy"), *options)
    assert "pill, approx_greedy_coreset, 10%: 627 rows" in output
    assert has_row(output, "flat, float32", 3)
    for variant in ("fast, float32 (default)", "fast, float16", "fast, bfloat16 network"):
        assert has_row(output, variant, 7), variant


def test_backbones(sample_root, resnet18_file, load, tmp_path, monkeypatch):
    pill = tmp_path / "sample/pill"
    pill.parent.mkdir()
    pill.symlink_to(sample_root / "pill")
    monkeypatch.setenv("PATCHCORE_WEIGHTS", str(resnet18_file.parent))
    options = ["--data", pill.parent, "--whole", pill.parent, "--repeat", 1]
    output = run_here(load("backbones"), *options)
    assert re.search(r"starter +resnet18 +random, same shape", output)
    for row in ("ms/image", "ms alone", "MB", "sample: image AUROC", "sample: pixel AUROC"):
        assert re.search(rf"^{row}( +\d+\.\d+){{3}}$", output, re.MULTILINE), row


def test_scoring(sample_root, load):
    options = ["--data", sample_root, "--whole", sample_root, "-c", "pill", "--weights", "random", "--seeds", 1]
    output = run_here(load("scoring"), *options, "--size", 64)
    assert "resnet18 (random), 10%, 64 pixels, means of 1 seeds" in output
    for scoring in ("distance", "density"):
        rows = re.findall(rf"^\S* +{scoring}((?: +[01]\.\d{{4}}){{4}})$", output, re.MULTILINE)
        assert len(rows) == 4  # pill cut, pill and weave whole, their mean


@pytest.fixture
def gpu(load, monkeypatch):
    """Its command, and where its figures come from, of ResNet-18 alone."""
    figures = load("gpu_figures")
    monkeypatch.setattr(figures, "NETWORKS", ("resnet18",))
    return load("gpu"), figures


def test_gpu(gpu, tmp_path):
    """On the CPU, which then agrees with itself."""
    output = run_here(gpu[0], "--device", "cpu", "--small", "--minutes", 60, "--out", tmp_path / "gpu.json")
    content = json.loads((tmp_path / "gpu.json").read_text())
    first, second = "resnet18, 64 pixels, 10%", "resnet18, 64 pixels, 1%"
    assert set(content["figures"]) == {first, second, "All of it"} and content["not measured"] == {}
    assert content["machine"]["device"] == "CPU"
    figures = content["figures"][first]
    assert figures["rows of the bank"] == 76 and content["figures"][second]["rows of the bank"] == 7
    for what in ("scores", "maps"):
        assert figures[f"{what}: largest difference from the CPU's over the largest"] == 0
    for of in ("frames", "PNG files of 100x100", "JPEG files of 100x100"):
        assert {f"predict of {of}, batches of {n}, images/s" for n in (1, 4)} <= set(figures)
    for beginning in ("network alone, channels last,", "stage of 4 images: search", "stage of a fit: coreset"):
        assert any(name.startswith(beginning) for name in figures), beginning
    assert sum(name.startswith("profile of 16 images, CPU: aten::") for name in figures) == 10
    assert all(value >= 0 for value in figures.values())  # and none is an error
    for name in figures:
        assert re.search(rf"^\| {re.escape(name)} \| \S+ \|$", output, re.MULTILINE), name
    assert "at least 1000 (published: 76 on an RTX A6000, Batzner et al. 2024) | not measured |" in output


def test_gpu_goes_on_after_a_failure_and_stops_in_time(gpu, tmp_path, monkeypatch):
    command, figures = gpu
    report = figures.Report(tmp_path / "gpu.json", time.perf_counter() + 60)

    def failing():
        yield "first", 1.0
        raise MemoryError("out of\nmemory")

    report.step("Case", "fit", failing)
    report.step("Case", "predict", lambda: [("second", 1234.5)])
    report.step("Case", "compile", failing, needs=90)
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert content["figures"] == {"Case": {"first": 1.0, "fit": "MemoryError: out of memory", "second": 1234.5}}
    assert content["not measured"] == {"Case": ["compile"]}

    output = run_here(command, "--device", "cpu", "--small", "--minutes", 0, "--out", tmp_path / "gpu.json")
    assert (
        "| resnet18, 64 pixels, 1%: no time was left for | fit, predict, network alone, agreement, memory |" in output
    )
    done = CliRunner().invoke(command.main, ["--device", "cuda:99", "--out", str(tmp_path / "gpu.json")])
    assert done.exit_code == 1 and re.fullmatch("Error: there is no cuda:99 on this machine .*\n", done.stderr)


def test_gpu_brings_what_is_missing(gpu, tmp_path, monkeypatch):
    command, _ = gpu
    assert command.missing() == []
    monkeypatch.setattr(command, "missing", lambda: ["tiny-package"])
    with zipfile.ZipFile(tmp_path / "tiny_package-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_package.py", "")
        wheel.writestr(
            "tiny_package-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-package\nVersion: 1.0\n"
        )
        wheel.writestr(
            "tiny_package-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_package-1.0.dist-info/RECORD", "")
    command.bring(tmp_path, str(tmp_path / "site"))
    assert (tmp_path / "site/tiny_package.py").exists() and sys.path[-1] == str(tmp_path / "site")

    def absent(name):
        raise ModuleNotFoundError("No module named 'faiss'", name="faiss")

    def unlike(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    for found, words in (
        (absent, r"the kit needs faiss, .* \(tiny-package\)"),
        (unlike, "nms does not exist.* as torch 2"),
    ):
        monkeypatch.setattr(command.importlib, "import_module", found)
        with pytest.raises(ClickException, match=words):
            command.bring(None, str(tmp_path))


def test_life(sample_root, load):
    output = run_here(load("life"), "--data", sample_root, "--category", "pill", "--percentage", 0.05)
    for table, names in {
        "grown": ("all at once", "half, then half", "in ten steps"),
        "lamp": ("before", "recalibrated", "fitted anew"),
        "contaminated": ("clean, contamination=0", "with 1 bad, contamination=0.1"),
    }.items():
        assert f"{table}: pill, starter (starter), density" in output
        assert all(name in output for name in names)


def test_large_banks(load, tmp_path, monkeypatch):
    large, threads = load("large_banks"), (torch.get_num_threads(), faiss.omp_get_max_threads())
    monkeypatch.setattr(reference_format, "LARGE", 2**17)  # it is mapped here; its workers read it
    monkeypatch.setattr(large, "two_workers", large.two_workers if sys.platform == "linux" else lambda *_: {})
    options = ["--dimension", 64, "--images", 2, "--weights", "random", "--folder", tmp_path]
    try:
        output = run_here(large, "--rows", 1000, *options)
    finally:
        torch.set_num_threads(threads[0])
        faiss.omp_set_num_threads(threads[1])
    assert "wood, random, rows of 64 values, 2 images" in output
    assert len(re.findall(r"^\| 1 000 \|( \S+ \|)+$", output, re.MULTILINE)) == 2
    assert re.search(r"^\| rows \| recall@1 \| .* \| flat \|$", output, re.MULTILINE)
    assert (tmp_path / "model/patchcore_kit.lists").exists()


def test_schedule(load):
    """Jobs of 4, 3, 2 and 1 on two workers; then with failures, and a store that is too slow."""
    schedule = load("schedule")
    costs, bytes_, usual = np.array([4.0, 3, 2, 1]), np.ones(4), {"bandwidth": 1e9, "hours_between_failures": 1e9}
    assert schedule.simulate(costs, bytes_, 2, **usual) == (5.0, 0.0)
    assert schedule.simulate(costs[::-1], bytes_, 2, **usual) == (6.0, 0.0), "the longest last is worse"
    assert schedule.simulate(costs, bytes_, 1, **usual)[0] == 10
    slow = usual | {"bandwidth": 0.4}  # 4 bytes in 10 s of work, two workers: half of what they could read
    assert schedule.simulate(costs, bytes_, 2, **slow)[0] == pytest.approx(10)
    end, lost = schedule.simulate(costs, bytes_, 2, **usual | {"hours_between_failures": 5 / 3600})
    assert lost > 0 and end > 5
    constants = schedule.Constants(network=0.04, reading=0.0, compare=0.0, choose=0.0, job=1.0, file=1e5)
    assert constants.cost(100, 1.0) == pytest.approx(1 + 0.04 * 250)
    table = schedule.table(constants, np.array([100, 300]), (0.5, 1.0), (1, 2))
    assert table["workers"].tolist() == [1, 2] and (table["longest first, hours"] <= table["hours"]).all()


def test_parts_and_streams_are_what_they_say(load, sample_root):
    tiles, streams = load("tiles"), load("streams")
    good, bad = tiles.part((256, 256), 7), tiles.part((256, 256), 7, defect=True)
    spot = np.argwhere((good != bad).any(axis=2))
    assert 90 < len(spot) < 200 and np.ptp(spot, axis=0).max() <= 14, "twelve pixels across"
    assert (tiles.part((256, 256), 8) != good).any()
    seen = []
    made = [np.asarray(image) for image in streams.made(pk.load_category(sample_root, "pill"), 20, seen, None)]
    assert len({image.tobytes() for image in made}) == 20 and made[0].shape == (256, 256, 3) and len(seen) == 2


@pytest.mark.long
def test_streams(sample_root, tmp_path):
    options = ("--data", sample_root, "--category", "pill")
    output = run("streams", *options, "--images", 300, "--memory", "20MB", "--plot", tmp_path / "plot.png")
    assert "killed at image 150: yes" in output and "the same bank: True" in output
    with Image.open(tmp_path / "plot.png") as plot:
        assert plot.size[0] == 900
    assert len(re.findall("^ *[0-9]+ .*stream", run("streams", *options, "--quality"), re.MULTILINE)) == 4


@pytest.mark.long
def test_tiles():
    output = run("tiles", "--side", 448, "--length", 896, "--images", 4)
    assert output.count("peak") == 0 and output.count("all, GB above") == 4 and '"tiles of 448"' in output
