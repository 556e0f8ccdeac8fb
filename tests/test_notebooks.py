"""The notebooks as committed: clean, of one shape, and run from top to bottom in fresh kernels, each one first.

`make test` runs them on a few small images, `make test-notebooks-full` on the whole sample data and on MVTec AD.
"""

import re
import shutil
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import patchcore_kit as pk

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
NO_NETWORK = """
import socket
connect = socket.socket.connect
def connect_here(self, address):
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"{address} is not this machine")
    return connect(self, address)
socket.socket.connect = connect_here
"""


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", ())]


def run(name, work, monkeypatch, **environment):
    """Run a notebook in an empty work folder, without a network, and once more its turn, with the answer it gives."""
    monkeypatch.setenv("PATCHCORE_WORK", str(work))
    for key, value in environment.items():
        monkeypatch.setenv(key, str(value))
    notebook = read(name)
    (answer,) = re.findall(r"<summary>Answer</summary>\n\n```python\n(.*?)```", markdown(notebook), re.DOTALL)
    (check,) = tagged(notebook, "check")
    notebook.cells += [nbformat.v4.new_code_cell(source) for source in (answer, check.source)]
    notebook.cells.insert(0, nbformat.v4.new_code_cell(NO_NETWORK))
    started = time.monotonic()
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    for cell, after in pairwise(notebook.cells):  # a sentence on what a picture shows
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", ())):
            assert after.cell_type == "markdown", cell.source
    assert printed(check).splitlines()[-1].startswith("Not yet: ")
    assert printed(notebook.cells[-1]).splitlines()[-1] == "Right."
    return notebook, time.monotonic() - started


def markdown(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


def test_all_are_there():
    numbers = sorted(int(name[4]) for name in NAMES if name.startswith("task"))
    assert numbers == [1, 2, 3, 4, 5, 6, 7] and len(NAMES) == 8 and "workshop" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_committed_clean(name):
    staged = subprocess.run(["git", "show", f":notebooks/{name}.ipynb"], cwd=FOLDER, capture_output=True, check=False)
    notebook = nbformat.reads(staged.stdout.decode() or (FOLDER / f"{name}.ipynb").read_text(), as_version=4)
    assert notebook.metadata.kernelspec.name == "python3" and notebook.metadata.kernelspec.language == "python"
    assert not notebook.metadata.get("widgets")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


@pytest.mark.parametrize("name", NAMES)
def test_shape(name):
    notebook, text = read(name), markdown(read(name))
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
    for part in ("**Goal:**", "**You will**", "**Time:**", "**Guess first:**", "## Your turn", "## Next"):
        assert part in text, part
    (parameters,) = tagged(notebook, "parameters")
    for line in parameters.source.splitlines():
        assert re.fullmatch(r"[A-Z_]+(, [A-Z_]+)* = [^#]+  # \S.*", line), line
    code = [cell.source.splitlines() for cell in notebook.cells if cell.cell_type == "code"]
    assert max(map(len, code)) <= 12 and sorted(map(len, code))[len(code) // 2] <= 4
    assert not [line for lines in code for line in lines if line.startswith(("def ", "class ", "!", "%"))]
    cells = "\n".join(f"\n@{cell.cell_type}\n{cell.source}" for cell in notebook.cells)
    for section in re.split(r"^## ", cells, flags=re.MULTILINE)[1:]:
        assert "@code" not in section or re.search(r"@markdown\s+\S", section[section.rindex("@code") :]), section


@pytest.mark.parametrize("name", NAMES)
def test_runs_small_each_one_first(name, tmp_path, monkeypatch):
    run(name, tmp_path, monkeypatch, PATCHCORE_SMALL=1)


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
def test_runs_at_full_size(name, tmp_path, monkeypatch, capsys):
    _, seconds = run(name, tmp_path, monkeypatch)
    with capsys.disabled():
        print(f"{name}: {seconds:.0f} s on the sample data")
    assert seconds < 120


@pytest.mark.parametrize("name", ["task3_distributions", "task5_worst"])
def test_runs_on_parts_without_masks(name, tmp_path, monkeypatch):
    parts = pk.draw_sample_data(tmp_path / "parts", ("pill",), train=8, good=4, defective=6, progress=False)
    shutil.rmtree(parts / "pill/ground_truth")
    run(name, tmp_path, monkeypatch, MVTEC_ROOT="parts")


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
def test_runs_on_mvtec(name, tmp_path, monkeypatch, mvtec, capsys):
    notebook, seconds = run(name, tmp_path, monkeypatch, MVTEC_ROOT=mvtec)
    with capsys.disabled():
        print(f"{name}: {seconds:.0f} s on MVTec AD's bottle")
    assert "[OK] data: " + str(mvtec) in "".join(printed(cell) for cell in notebook.cells if cell.cell_type == "code")
