"""The notebooks as committed: clean, of one shape, and run from top to bottom in fresh kernels, each one first.

`make test` runs them on a few small images, `make test-notebooks-full` on the whole sample data and on MVTec AD. On
data that lacks masks or test images they show what there is, and say in a sentence why the rest is not shown.
"""

import asyncio
import re
import shutil
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from PIL import Image

import patchcore_kit as pk

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
OWN = "own_parts"  # needs no masks and no test images
NO_NETWORK = """
import socket
def connect_here(self, address, connect=socket.socket.connect):
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
    notebook.cells += answered(notebook)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(NO_NETWORK))
    started = time.monotonic()
    resources = {"metadata": {"path": str(FOLDER)}}
    client = NotebookClient(notebook, timeout=300, shutdown_kernel="immediate", resources=resources)
    client.execute()
    assert look_over(notebook) >= 2
    assert_answered(notebook)
    return notebook, time.monotonic() - started


def answered(notebook):
    """The cells of its turns, with the answers it gives."""
    answers = re.findall(r"<summary>Answer</summary>\n\n```python\n(.*?)```", markdown(notebook), re.DOTALL)
    pairs = zip(answers, tagged(notebook, "check"), strict=True)
    sources = [source for answer, check in pairs for source in (answer, check.source)]
    return [nbformat.v4.new_code_cell(source, metadata={"tags": ["again"]}) for source in sources]


def assert_answered(notebook):
    """Every question was open as shipped, and is right with the answer it gives."""
    for check in tagged(notebook, "check"):
        assert printed(check).splitlines()[-1].startswith("Not answered yet: ")
    for check in tagged(notebook, "again")[1::2]:
        assert printed(check).splitlines()[-1] == "Right."


def look_over(notebook):
    """Nothing on stderr, and a sentence on what a picture shows -> how many pictures there are."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    for cell, after in pairwise(notebook.cells):
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", ())):
            assert after.cell_type == "markdown", cell.source
    return sum("image/png" in output.get("data", {}) for output in outputs)


def markdown(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


def test_all_are_there():
    numbers = sorted(int(name[4]) for name in NAMES if name.startswith("task"))
    assert numbers == [1, 2, 3, 4, 5, 6, 7] and len(NAMES) == 10 and {"workshop", "by_hand", OWN} < set(NAMES)


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


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Three categories of even fewer images than PATCHCORE_SMALL draws."""
    numbers = {"train": 4, "good": 3, "defective": 3, "size": 128}
    folder = tmp_path_factory.mktemp("few") / "sample"
    return pk.draw_sample_data(folder, ("pill", "screw", "weave"), **numbers, progress=False)


@pytest.mark.parametrize("name", NAMES)
def test_runs_small_each_one_first(name, few, tmp_path, monkeypatch):
    """Two of them draw the data themselves."""
    data = {} if name in ("workshop", "task1_train") else {"MVTEC_ROOT": few}
    notebook, _ = run(name, tmp_path, monkeypatch, PATCHCORE_SMALL=1, **data)
    assert lacking(notebook) == []
    text = "".join(printed(cell) for cell in notebook.cells if cell.cell_type == "code")
    alarms = re.findall(r"^\d+% of the good images are called defective at that threshold$", text, re.MULTILINE)
    assert len(alarms) == (name == "task2_evaluate")


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
def test_runs_at_full_size(name, tmp_path, monkeypatch, capsys):
    _, seconds = run(name, tmp_path, monkeypatch)
    with capsys.disabled():
        print(f"{name}: {seconds:.0f} s on the sample data")
    assert seconds < 120


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
def test_runs_on_mvtec(name, tmp_path, monkeypatch, mvtec, capsys):
    notebook, seconds = run(name, tmp_path, monkeypatch, MVTEC_ROOT=mvtec)
    with capsys.disabled():
        print(f"{name}: {seconds:.0f} s on MVTec AD's bottle")
    assert "[OK] data: " + str(mvtec) in "".join(printed(cell) for cell in notebook.cells if cell.cell_type == "code")


# data that lacks something


@pytest.fixture(scope="module")
def kernel():
    """One for all of these runs: most of the time of a short one is the start and the imports."""
    manager = AsyncKernelManager()
    asyncio.run(manager.start_kernel(cwd=str(FOLDER)))
    yield manager
    asyncio.run(manager.shutdown_kernel(now=True))


def run_in(kernel, name, work, data, *, answer):
    """Run a notebook in an empty work folder, with no names left of others, and with `answer` its turn once more."""
    notebook = read(name)
    environment = {"PATCHCORE_WORK": str(work), "MVTEC_ROOT": str(data)}
    before = f"%reset -f\nimport os\nos.environ.update({environment!r})"
    cells = notebook.cells + (answered(notebook) if answer else [])
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in (before, NO_NETWORK)] + cells
    client = NotebookClient(notebook, km=kernel, timeout=300)
    try:
        client.execute()
    finally:
        client.kc.stop_channels()
    look_over(notebook)
    if answer:
        assert_answered(notebook)
    return notebook


def lacking(notebook):
    """The sentences that say what is not shown, and why."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "").strip("'") for output in outputs]
    said = re.compile(r"no |nothing |bottle: no test|\w+ is not defined: ")
    return [line for text in texts for line in text.splitlines() if said.match(line)]


# what each notebook says, in this order, of which {} is the reason
NO_PIXELS, NO_MAPS = "no pixel metrics for bottle: {}", "no binarised maps and no ground truth: {}"
WITHOUT_MASKS = {
    "workshop": [],
    "by_hand": [],
    "task1_train": [NO_PIXELS, NO_MAPS],
    "task2_evaluate": [NO_PIXELS, "no values of full_pixel_auroc, anomaly_pro for bottle: {}"],
    "task3_distributions": [NO_PIXELS] * 3 + ["nothing to compare: needs metrics of two categories"],
    "task4_masks": ["no pixel histogram: {}", NO_MAPS, "no slider: {}"],
    "task5_worst": [NO_MAPS],
    "task6_best": [
        "no values of full_pixel_auroc, anomaly_pro for bottle: {}", NO_MAPS,
        "no pixel histogram: {}", "no masks to compare: {}", "nothing to check: {}",
    ],
    "task7_image_size": [NO_PIXELS],
}  # fmt: skip
WITHOUT_ONE = {
    name: [text.replace(" and no ground truth", "") for text in texts] for name, texts in WITHOUT_MASKS.items()
}
NO_METRICS, NO_AUROC = "no image and pixel metrics for bottle: {}", "no values of instance_auroc for bottle: {}"
NO_THREE = "no values of instance_auroc, full_pixel_auroc, anomaly_pro for bottle: {}"
FIRST = "is not defined: the first category is taken"
WITHOUT_TEST = {
    "workshop": [
        "no defective test images, so good ones only",
        "no test images: train/good/000.png instead, one that it learns from", "no scores: {}", "no AUROC: {}",
    ],
    "task1_train": [NO_AUROC, NO_METRICS, "no examples: {}"],
    "by_hand": [],
    "task2_evaluate": [
        "bottle: {} to evaluate", "nothing to evaluate: {}", NO_METRICS, NO_THREE, "no table: {}", "no scores: {}",
        "no ROC curve: {}", "no verdicts: {}", "no verdicts: {}", "nothing to check: {}",
    ],
    "task3_distributions": [
        NO_METRICS, "no metrics to describe", NO_METRICS, NO_METRICS,
        "nothing to compare: needs metrics of two categories", "nothing to check: no metrics",
    ],
    "task4_masks": [
        "bottle: {} to evaluate", "no predictions: {}", "no predictions: {}", "no table: {}",
        "no image histogram: {}", "no verdicts: {}", "no reasons: {}", "no pixel histogram: {}", "no examples: {}",
        "no slider: {}", "nothing to check: {}",
    ],
    "task5_worst": [
        "bottle: {} to evaluate", NO_AUROC, f"instance_auroc {FIRST}", "no predictions: {}", "no scores: {}",
        "no table: {}", "no examples: {}", "no examples: {}", "no images: {}", "no reasons: {}", "no verdicts: {}",
        "no repair to measure: {}", "no scores: {}", "nothing to check: {}",
    ],
    "task6_best": [
        "bottle: {} to evaluate", NO_THREE, f"instance_auroc {FIRST}", "no predictions: {}", "no image histogram: {}",
        "no scores: {}", "no examples: {}", "no examples: {}", "no pixel histogram: {}", "no masks to compare: {}",
        "nothing to check: {}",
    ],
    "task7_image_size": [
        "no test images: train/good/000.png instead, one that it learns from", NO_METRICS,
        "no values of predict_seconds for bottle: {}",
    ],
}  # fmt: skip
IMAGES, PIXELS = "needs good and defective images", "needs good and defective pixels"
ALL_GOOD = "no regions to show: test/good/015.png is good"  # the strangest of bottle's
ONLY_GOOD = {
    "workshop": [
        "no defective test images, so good ones only", "no defective test images: test/good/000.png instead",
        f"no AUROC: {IMAGES}",
    ],
    "task1_train": [
        NO_AUROC.format(IMAGES), NO_METRICS, f"no binarised maps: {PIXELS}",
    ],
    "by_hand": [],
    "task2_evaluate": [
        NO_METRICS, NO_THREE, f"no ROC curve: {IMAGES}", f"no verdicts: {IMAGES}", f"nothing to check: {IMAGES}",
    ],
    "task3_distributions": [
        NO_METRICS, "no metrics to describe", NO_METRICS, NO_METRICS,
        "nothing to compare: needs metrics of two categories", "nothing to check: no metrics",
    ],
    "task4_masks": [
        f"no image histogram: {IMAGES}", ALL_GOOD, f"no pixel histogram: {PIXELS}",
        f"no binarised maps: {PIXELS}", f"no slider: {PIXELS}", f"nothing to check: {IMAGES}",
    ],
    "task5_worst": [
        NO_AUROC.format(IMAGES), f"instance_auroc {FIRST}",
        f"no binarised maps: {PIXELS}", ALL_GOOD, f"no verdicts: {IMAGES}", f"nothing to check: {IMAGES}",
    ],
    "task6_best": [
        NO_THREE, f"instance_auroc {FIRST}", f"no image histogram: {IMAGES}",
        f"no binarised maps: {PIXELS}", f"no pixel histogram: {PIXELS}", f"no masks to compare: {PIXELS}",
        f"nothing to check: {PIXELS}",
    ],
    "task7_image_size": ["no defective test images: test/good/000.png instead", NO_METRICS],
}  # fmt: skip
MASKS = "needs a mask of every defective image, and test"
REASONS = {
    "masks": (WITHOUT_MASKS, f"{MASKS}/broken_large/000.png and {{}} more have none"),
    "one mask": (WITHOUT_ONE, f"{MASKS}/broken_small/001.png has none"),
    "test images": (WITHOUT_TEST, "no test images"),
    "defective images": (ONLY_GOOD, f"{IMAGES}; {PIXELS}"),
}


def bottle_without(lacks, mvtec, root, few=None):
    """Links to MVTec AD's bottle, all images or a few of each kind, of which something is not there -> root."""
    for folder in sorted(path for path in (mvtec / "bottle").glob("*/*") if path.is_dir()):
        place = root / folder.relative_to(mvtec)
        place.mkdir(parents=True)
        for file in sorted(folder.iterdir())[:few]:
            (place / file.name).symlink_to(file.resolve())
    bottle = root / "bottle"
    if lacks == "one mask":
        (bottle / "ground_truth/broken_small/001_mask.png").unlink()
    else:
        shutil.rmtree(bottle / "ground_truth")
    if lacks == "test images":
        shutil.rmtree(bottle / "test")
    if lacks == "defective images":
        for folder in set((bottle / "test").iterdir()) - {bottle / "test/good"}:
            shutil.rmtree(folder)
    return root


def says_what_it_lacks(name, lacks, data, work, kernel):
    sentences, reason = REASONS[lacks]
    images = len(list(data.glob("bottle/test/[bc]*/*")))  # defective ones
    expected = [sentence.format(reason.format(images - 1)) for sentence in sentences[name]]
    answer = not any(sentence.startswith("nothing to check") for sentence in expected)
    if len(list(data.glob("bottle/train/*/*"))) > 2:  # so there is a threshold, which cuts maps without masks
        told = re.compile("no binarised maps( and no ground truth)?: ")
        expected = [told.sub(lambda said: "no ground truth: " if said[1] else "", line) for line in expected]
        expected = [line for line in expected if line not in (PIXELS, reason)]
    assert lacking(run_in(kernel, name, work, data, answer=answer)) == expected


@pytest.mark.parametrize("lacks", ["masks", "test images"])  # the two others on all of bottle
@pytest.mark.parametrize("name", WITHOUT_MASKS)
def test_runs_on_a_few_images_without(name, lacks, tmp_path, mvtec, kernel):
    says_what_it_lacks(name, lacks, bottle_without(lacks, mvtec, tmp_path / "parts", few=2), tmp_path, kernel)


@pytest.mark.full
@pytest.mark.parametrize("lacks", REASONS)
@pytest.mark.parametrize("name", WITHOUT_MASKS)
def test_runs_on_all_of_bottle_without(name, lacks, tmp_path, mvtec, kernel):
    says_what_it_lacks(name, lacks, bottle_without(lacks, mvtec, tmp_path / "parts"), tmp_path, kernel)


@pytest.mark.parametrize("name", ["task3_distributions", "task5_worst"])
def test_runs_on_drawn_parts_without_masks(name, tmp_path, kernel):
    parts = pk.draw_sample_data(tmp_path / "parts", ("pill",), train=8, good=4, defective=6, progress=False)
    shutil.rmtree(parts / "pill/ground_truth")
    run_in(kernel, name, tmp_path, parts, answer=True)


# photographs of one's own


def test_own_photographs_alone(tmp_path, sample_root, kernel):
    """Of sizes of their own, none to judge, and so few that there is no threshold."""
    good = tmp_path / "data/own/good"
    good.mkdir(parents=True)
    for path in sorted(sample_root.glob("weave/train/good/*"))[:2]:
        Image.open(path).resize((160, 96)).save(good / f"{path.stem}.jpg")
    notebook = run_in(kernel, OWN, tmp_path, sample_root, answer=False)
    assert lacking(notebook) == [
        "index is not defined: sorted by score",
        "nothing to check: the model has no threshold",
    ]
    text = "".join(printed(cell) for cell in notebook.cells if cell.cell_type == "code")
    assert "there are none to judge: it takes the good ones" in text and "2 good photographs, 2 to judge\n" in text
    assert "holds no photographs yet" not in text and "424 x 256 pixels" in text
    assert "000.jpg" in (tmp_path / "report/own_parts.html").read_text() and (tmp_path / "models/own").is_dir()


def test_no_photographs_but_data_without_test_images(tmp_path, mvtec, kernel):
    data = bottle_without("test images", mvtec, tmp_path / "parts", few=4)
    notebook = run_in(kernel, OWN, tmp_path, data, answer=True)
    text = "".join(printed(cell) for cell in notebook.cells if cell.cell_type == "code")
    assert f"data/own/good holds no photographs yet: it goes on with bottle of {data}" in text
    assert "4 good photographs, 4 to judge\n" in text
