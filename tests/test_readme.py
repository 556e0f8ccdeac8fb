"""Every command and code block of the README is run.

`make` is only resolved here, or it would start the tests again; .ci/run calls it. Blocks with docker are run by
test_docker.py.
"""

import os
import re
import subprocess
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

import patchcore_kit as pk
from patchcore_kit.images import BITS, IMAGE_SUFFIXES

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGES = ("data.md", "thresholds.md", "life.md", "command_line.md")
DATA, THRESHOLDS, LIFE, COMMANDS = ((REPOSITORY / "docs" / name).read_text(encoding="utf-8") for name in PAGES)


def blocks(language, text=README):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def bash(command, folder):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PATCHCORE_", "MVTEC_"))}
    return subprocess.run(
        ["bash", "-ec", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def clone(tmp_path_factory, bottles, resnet18_file):
    """What a user has after setting up: the repository, an environment, MVTec AD and weights where the README says."""
    folder = tmp_path_factory.mktemp("clone")
    for name in (
        "Makefile",
        "Pipfile.lock",
        "pyproject.toml",
        "bin",
        "utils.py",
        "patchcore_kit",
        ".venv",
        "benchmarks",
    ):
        (folder / name).symlink_to(REPOSITORY / name)
    (folder / "data").mkdir()
    (folder / "data/mvtec_anomaly_detection").symlink_to(bottles)
    (folder / "weights").symlink_to(resnet18_file.parent)
    return folder


def test_make_targets_exist():
    targets = set(re.findall(r"(?:`|^)make ([a-z-]+)", README, re.MULTILINE))
    assert {"workshop", "lab", "test", "benchmark", "sample-data", "help"} <= targets
    for target in targets:
        done = bash(f"make --dry-run {target}", REPOSITORY)
        assert done.returncode == 0, done.stderr


def test_commands(clone):
    commands = [block for block in blocks("sh") if not block.startswith(("make ", "docker ", "printf "))]
    assert len(commands) == 2
    # the reference's network, but with weights that are at hand
    script = "".join(commands).replace("-b wideresnet50", f"-b resnet18 --weights {clone / 'weights/resnet18.pth'}")
    script = script.replace("patch_core_loader", f"patch_core_loader --weights {clone / 'weights/resnet18.pth'}")
    done = bash(script, clone)
    assert done.returncode == 0, done.stderr
    first, second = (pk.read_results(clone / f / "results.csv") for f in ("experiments/step1/demo", "evaluation"))
    assert first.loc["mvtec_bottle", "instance_auroc"] == second.loc["mvtec_bottle", "instance_auroc"] > 0.99
    for name in ("models", "predictions", "segmentation_images"):
        assert (clone / "experiments/step1/demo" / name).is_dir()


def test_python(tmp_path, monkeypatch):
    pk.draw_sample_data(tmp_path / "data/sample", ("pill",), progress=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATCHCORE_WORK", str(tmp_path))
    monkeypatch.setenv("PATCHCORE_SMALL", "1")
    monkeypatch.delenv("MVTEC_ROOT", raising=False)
    script = blocks("python")
    assert len(script) == 4
    with mpl.rc_context():  # start() sets the style of figures
        exec("".join(script), {})
    trained, evaluated = (
        pk.read_results(f"{folder}/results.csv") for folder in ("experiments/step1/0000", "evaluation")
    )
    metrics = list(pk.METRICS)
    assert trained.loc["mvtec_pill", metrics].tolist() == evaluated.loc["mvtec_pill", metrics].tolist()
    assert pk.PatchCore.load("models/pill").grid_ == (28, 28)
    assert len(list(Path("pictures").iterdir())) == 12


def test_python_of_the_page_on_data(tmp_path, monkeypatch):
    pk.draw_sample_data(tmp_path / "data/sample", ("pill",), train=4, good=2, defective=2, progress=False)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec("".join(blocks("python", DATA)), names)
    assert names["laid"].shape == (256, 256) and np.isnan(names["laid"][0]).all() and names["laid"][128, 128] > 0


def test_python_of_the_page_on_a_models_life(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec("".join(blocks("python", LIFE)), names)
    assert len(names["detector"].train_names_) == 30 and len(names["detector"].calibration_.scores) == 10
    assert "the nearest normal patch is in" in capsys.readouterr().out


def test_python_of_the_page_on_thresholds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec("".join(blocks("python", THRESHOLDS)), {})
    out = capsys.readouterr().out
    assert out.count(" false alarms, from 40 good images") == 2 and "extrapolated from 40 good images" in out
    assert "verdict_f1" in out


@pytest.mark.parametrize(
    ("text", "folder"),
    [(README, REPOSITORY), *((page, REPOSITORY / "docs") for page in (DATA, THRESHOLDS, LIFE, COMMANDS))],
    ids=["README", "data", "thresholds", "life", "command line"],
)
def test_links_lead_somewhere(text, folder):
    for link in re.findall(r"\]\(([^)]+)\)", text):
        link, *_ = link.partition("#") if link.startswith("../") or ".md#" in link else [link]
        if link.startswith("#"):
            headings = [h.lower().replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
            assert link[1:] in headings
        elif not link.startswith("https://"):
            assert (folder / link).exists()


def test_the_page_on_data_names_what_there_is():
    assert all(
        f"`{suffix}`" in DATA or suffix in (".png", ".bmp", ".tif", ".tiff", ".webp") for suffix in IMAGE_SUFFIXES
    )
    assert {int(bits) for bits in re.findall(r"\b(8|10|12|14|16|24|31|32)\b", DATA)} >= set(BITS)


def test_every_option_of_the_table_exists():
    from patchcore_kit import app, cli

    commands = (cli.run_patchcore, *cli.run_patchcore.commands.values(), *app.main.commands.values())
    known = {name for command in commands for parameter in command.params for name in parameter.opts}
    assert set(re.findall(r"`(--[a-z_]+)", README)) - {"--help"} <= known
