"""`make reproduce` on a few real bottles, what it says where it cannot compare; the figures of docs/comparison.md."""

import re
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner

import patchcore_kit as pk
from patchcore_kit import weights

REPOSITORY = Path(__file__).resolve().parents[1]
COMPARISON = (REPOSITORY / "docs/comparison.md").read_text(encoding="utf-8")


@pytest.fixture
def reproduce(monkeypatch, tmp_path):
    """The script as a module, in a work folder that holds nothing."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    for name in ("MVTEC_ROOT", "PATCHCORE_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATCHCORE_WORK", str(tmp_path))
    return import_module("reproduce")


def run(module, *options, code=0):
    done = CliRunner().invoke(module.main, options)
    assert done.exit_code == code, done.output
    return done.output


def test_a_few_bottles(reproduce, mvtec, resnet18_file, tmp_path, monkeypatch):
    for folder in sorted(path for path in (mvtec / "bottle").glob("*/*") if path.is_dir()):
        place = tmp_path / "data/mvtec_anomaly_detection" / folder.relative_to(mvtec)
        place.mkdir(parents=True)
        for file in sorted(folder.iterdir())[:: 20 if folder.parent.name == "train" else 5]:
            (place / file.name).symlink_to(file)
    monkeypatch.setenv("PATCHCORE_WEIGHTS", str(resnet18_file.parent))
    output = run(reproduce, "--backbone", "resnet18")
    results = tmp_path / "experiments/reproduce/mvtec_anomaly_detection/resnet18/results.csv"
    before = results.read_bytes()
    for row in ("mvtec_bottle", "Mean"):
        own = pk.read_results(results).loc["mvtec_bottle", reproduce.METRICS]
        published = pk.published_results().loc["mvtec_bottle", reproduce.METRICS]
        cells = re.search(rf"^{row} +([\d.]+) \((.*?)\) +([\d.]+) \((.*?)\) +([\d.]+) \((.*?)\)$", output, re.MULTILINE)
        values = [float(cell) for cell in cells.groups()]
        assert values[::2] == pytest.approx(own.tolist(), abs=6e-5)
        assert values[1::2] == pytest.approx((own - published).tolist(), abs=6e-5)
        assert values[0] > 0.95
    assert "1 of the 15 categories are here, and Mean is of these, here and published" in output
    assert "the published figures are wideresnet50's, so resnet18 differs by the network as well" in output
    assert run(reproduce, "--backbone", "resnet18").endswith(output[output.index("\nin brackets") :])
    assert results.read_bytes() == before  # what is done is not done again


def test_all_categories_at_the_published_settings(reproduce, tmp_path, monkeypatch):
    """As if training gave the published figures, one of them a little less, another undefined."""
    published = pk.published_results()
    for name in published.index.drop("Mean"):
        (tmp_path / "mvtec" / name.removeprefix("mvtec_") / "train").mkdir(parents=True)
    monkeypatch.setenv("MVTEC_ROOT", str(tmp_path / "mvtec"))
    called = []

    class Training:
        @staticmethod
        def main(args, standalone_mode):
            called.append(" ".join(args))
            folder = tmp_path / "experiments/reproduce/mvtec/wideresnet50"
            folder.mkdir(parents=True)
            table = published.copy()
            table.loc["mvtec_pill", "instance_auroc"] -= 0.15
            table.loc["mvtec_wood", "full_pixel_auroc"] = None
            table.to_csv(folder / "results.csv")

    monkeypatch.setattr(reproduce, "run_patchcore", Training)
    output = run(reproduce)
    (line,) = called
    assert " --seed 0 " in f" {line}" and " --resume " in line and "--save_patchcore_model" not in line
    assert "patch_core -b wideresnet50 -le layer2 -le layer3 sampler -p 0.1 approx_greedy_coreset dataset" in line
    assert "--resize 256 --imagesize 224" in line and line.count(" -d ") == 15
    assert re.search(r"^mvtec_pill +0\.8167 \(-0\.1500\) +0\.9780 \(\+0\.0000\)", output, re.MULTILINE)
    assert re.search(r"^mvtec_wood +0\.9912 \(\+0\.0000\) +0\.9374 \(\+0\.0000\)$", output, re.MULTILINE)
    # the mean of what is there: a missing value is missing on both sides
    assert re.search(r"^Mean +0\.98\d\d \(-0\.0100\) +0\.98\d\d \(\+0\.0000\)", output, re.MULTILINE)
    assert "categories are here" not in output and "by the network" not in output


def test_no_data(reproduce, tmp_path):
    assert run(reproduce, code=1) == (
        "Error: MVTec AD, which the published figures are for, is not found: put it into "
        f"{tmp_path}/data/mvtec_anomaly_detection, or name its folder in MVTEC_ROOT\n"
    )


def test_other_data_is_not_compared(reproduce, sample_root, tmp_path, monkeypatch):
    """The sample data has a pill, too."""
    monkeypatch.setenv("MVTEC_ROOT", str(sample_root))
    output = run(reproduce, "--backbone", "starter", code=1)
    assert "is not MVTec AD, which the published figures are for, because of its weave: name another" in output
    assert not (tmp_path / "experiments").exists()


def test_no_weights(reproduce, mvtec, tmp_path, monkeypatch):
    monkeypatch.setenv("MVTEC_ROOT", str(mvtec))
    monkeypatch.setenv("PATCHCORE_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(weights, "_answers", lambda url, seconds: False)
    output = run(reproduce, code=1)
    assert output.startswith("Error: no weights for 'wideresnet50' here") and output.count("\n") == 1
    assert "put wide_resnet50_2-95faca4d.pth (from https://download.pytorch.org/models/" in output
    assert not (tmp_path / "experiments").exists()


def test_figures_of_the_comparison():
    """The measured ones are in the section of benchmarks/README.md that their row ends with."""
    benchmarks = (REPOSITORY / "benchmarks/README.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (\w+).*?\n(.*?)(?=^## |\Z)", benchmarks, re.MULTILINE | re.DOTALL))
    rows = re.findall(r"^\| .*? \| (.*) \| (Peers|GPU) \|$", COMPARISON, re.MULTILINE)
    assert len(rows) == 5
    for cells, section in rows:
        assert not [figure for figure in re.findall(r"\d+\.\d+", cells) if figure not in sections[section]]
    published = pk.published_results().loc["Mean"]
    assert f"{published['instance_auroc']:.4f} / {published['full_pixel_auroc']:.4f}" in COMPARISON


def test_files_that_the_comparison_names():
    named = set(re.findall(r"\b(?:tests|benchmarks|notebooks)/[\w.]*", COMPARISON))
    assert len(named) > 5 and not [name for name in named if not (REPOSITORY / name).exists()]
