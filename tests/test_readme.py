"""The README and the pages in docs/: every command and code block is run, Python as in a new notebook in notebooks/.

`make` is only resolved here, or it would start the tests again; .ci/run calls it. Blocks with docker are run by
test_docker.py, those of command_line.md by test_app.py.
"""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient

import patchcore_kit as pk
from patchcore_kit.images import BITS, IMAGE_SUFFIXES

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = {
    path.name: path.read_text(encoding="utf-8")
    for path in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))
}
README, DATA, SCRIPTS = (PAGES[name] for name in ("README.md", "data.md", "scripts.md"))
TRIED_ELSEWHERE = {"command_line.md", "instructor.md", "architecture.md", "comparison.md"}
OURS = {name: text for name, text in PAGES.items() if name not in TRIED_ELSEWHERE}


def blocks(language, text):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def environment(**settings):
    """Without the settings of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PATCHCORE_", "MVTEC_"))}
    return kept | {name: str(value) for name, value in settings.items()}


def bash(command, folder):
    command = ["bash", "-ec", command]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)


def test_a_door_of_300_words():
    door, *_ = README.partition("\n## The seven tasks\n")
    assert len(door.split()) <= 300 and len(README.split()) < 900
    for needed in ("docker compose up", "make lab", "notebooks/workshop.ipynb", "docs/setup.md"):
        assert needed in door


def test_the_readme_leads_to_every_page_and_notebook():
    there = (path for pattern in ("docs/*.md", "notebooks/*.ipynb") for path in REPOSITORY.glob(pattern))
    linked = re.findall(r"\]\(([^)]+)\)", README)
    assert {path.relative_to(REPOSITORY).as_posix() for path in there} <= set(linked)


# commands


@pytest.fixture(scope="module")
def clone(tmp_path_factory, bottles, resnet18_file):
    """What a user has after setting up: the repository, an environment, MVTec AD and weights where the pages say."""
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
    targets = set(re.findall(r"(?:`|\] |^)make ([a-z-]+)", "\n".join(PAGES.values()), re.MULTILINE))
    assert {"workshop", "lab", "test", "benchmark", "sample-data", "help"} <= targets
    for target in targets:
        done = bash(f"make --dry-run {target}", REPOSITORY)
        assert done.returncode == 0, done.stderr


def test_commands(clone):
    commands = [block for text in OURS.values() for block in blocks("sh", text)]
    commands = [block for block in commands if not block.startswith(("make ", "docker ", "printf "))]
    assert len(commands) == 2
    # the reference's network, but with weights that are at hand
    script = "".join(commands).replace("-b wideresnet50", f"-b resnet18 --weights {clone / 'weights/resnet18.pth'}")
    script = script.replace("patch_core_loader", f"patch_core_loader --weights {clone / 'weights/resnet18.pth'}")
    done = bash(script, clone)
    assert done.returncode == 0, done.stderr
    first, second = (
        pk.read_results(clone / f / "results.csv") for f in ("experiments/demo/bottle", "evaluation/bottle")
    )
    metrics = list(first.columns[:11])
    assert first[metrics].equals(second[metrics])
    assert first.loc["mvtec_bottle", "instance_auroc"] >= 0.999
    assert first.loc["mvtec_bottle", "full_pixel_auroc"] >= 0.976
    for name in ("models", "predictions", "segmentation_images"):
        assert (clone / "experiments/demo/bottle" / name).is_dir()
    named = set(re.findall(r"`([a-z_0-9]+)`", SCRIPTS))
    assert {re.sub("_(low|high)$", "", column) for column in first.columns} <= named


def test_every_option_of_the_table_exists():
    from patchcore_kit import app, cli

    commands = (cli.run_patchcore, *cli.run_patchcore.commands.values(), *app.main.commands.values())
    known = {name for command in commands for parameter in command.params for name in parameter.opts}
    named = {option for text in OURS.values() for option in re.findall(r"`(--[a-z_]+)", text)}
    assert "--no_image_cache" in named and named - {"--help"} <= known


# Python


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the repository: its work folder is the copy, without any setting that says so."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("patchcore_kit", "bin", "notebooks"):
        ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
    for module in REPOSITORY.glob("*.py"):
        shutil.copy(module, folder)
    return folder


@pytest.fixture(scope="module")
def kernel(checkout):
    """A notebook's, one for all pages: most of the time of a short one is the start and the imports."""
    manager = AsyncKernelManager()
    settings = environment(PYTHONPATH=checkout, PATCHCORE_SMALL=1)
    asyncio.run(manager.start_kernel(cwd=str(checkout / "notebooks"), env=settings))
    yield manager
    asyncio.run(manager.shutdown_kernel(now=True))


def run(kernel, folder, *cells):
    """Run cells as a new notebook in a folder would -> what they print."""
    new = f"%reset -f\n%cd -q {folder}"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in (new, *cells)])
    client = NotebookClient(notebook, km=kernel, timeout=300)
    try:
        client.execute()
    finally:
        client.kc.stop_channels()
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream")


# what holds then: in Python, and how often something is printed
HOLDS = {
    "README.md": (
        """verdicts, labels = predictions.verdicts, predictions.labels
assert len(labels) == 30 and (verdicts[labels == 1] == "good").sum() == 2
assert verdicts[labels == 0].tolist() == ["look"] + ["good"] * 11 and (work / "models/weave").is_dir()""",
        {"0.949": 1, "verdict": 1},
    ),
    "python.md": (
        "assert again.grid_ == (28, 28) and len(list((work / 'pictures').iterdir())) == 12\n"
        "assert len(streamed.bank_) == 3136 and len(tiled.tiling_) == 16",
        {},
    ),
    "data.md": ("assert laid.shape == (256, 256) and np.isnan(laid[0]).all() and laid[128, 128] > 0", {}),
    "life.md": (
        "assert len(detector.train_names_) == 30 and len(detector.calibration_.scores) == 10",
        {"the nearest normal patch is in": 1},
    ),
    "thresholds.md": (
        "",
        {" false alarms, from 40 good images": 2, "extrapolated from 40 good images": 1, "verdict_f1": 1},
    ),
    "scripts.md": (
        """import patchcore_kit as pk
trained, evaluated = (pk.read_results(f"{folder}/results.csv") for folder in (RUN, "evaluation/demo"))
metrics = list(pk.METRICS)
assert trained.loc["mvtec_pill", metrics].tolist() == evaluated.loc["mvtec_pill", metrics].tolist()""",
        {"Done.": 2, "[OK] packages": 1},
    ),
}


def test_python_of_every_page_is_tried():
    assert {name for name, text in OURS.items() if blocks("python", text)} == set(HOLDS)


@pytest.mark.parametrize("page", HOLDS)
def test_python_in_a_new_notebook(page, kernel, checkout):
    notebooks = sorted((checkout / "notebooks").iterdir())
    holds, printed = HOLDS[page]
    out = run(kernel, checkout / "notebooks", *blocks("python", PAGES[page]), holds)
    assert {text: out.count(text) for text in printed} == printed, out
    assert sorted((checkout / "notebooks").iterdir()) == notebooks  # all that it writes goes to the work folder


def test_python_from_the_repositorys_folder(kernel, checkout):
    run(kernel, checkout, *blocks("python", README))


def test_python_of_the_library_alone(checkout, tmp_path):
    """Installed it has no repository around it, and all goes into the current folder."""
    shutil.copytree(checkout / "patchcore_kit", tmp_path / "site/patchcore_kit")
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", *blocks("python", README)],
        cwd=tmp_path / "empty",
        env=environment(PYTHONPATH=tmp_path / "site"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "empty").iterdir()} == {"data", "models"}


# what the pages say


@pytest.mark.parametrize("page", OURS)
def test_links_lead_somewhere(page):
    folder = REPOSITORY if page == "README.md" else REPOSITORY / "docs"
    for link in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        if link.startswith("https://"):
            continue
        path, _, heading = link.partition("#")
        assert not path or (folder / path).exists(), link
        text = (folder / path).read_text(encoding="utf-8") if path and heading else PAGES[page]
        headings = [h.lower().replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
        assert not heading or heading in headings, link


def test_the_page_on_data_names_what_there_is():
    assert all(
        f"`{suffix}`" in DATA or suffix in (".png", ".bmp", ".tif", ".tiff", ".webp") for suffix in IMAGE_SUFFIXES
    )
    assert {int(bits) for bits in re.findall(r"\b(8|10|12|14|16|24|31|32)\b", DATA)} >= set(BITS)
