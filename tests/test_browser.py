"""The workshop's notebooks as a student meets them: in JupyterLab, in a real browser."""

import http.client
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

import patchcore_kit as pk

REPOSITORY = Path(__file__).resolve().parents[1]
WORKSHOP = "notebooks/workshop.ipynb"
TASK = "notebooks/task4_masks.ipynb"  # the one with a slider
OWN = "notebooks/own_parts.ipynb"  # the one that photographs are uploaded to
NOTEBOOKS = tuple(sorted(path.stem for path in (REPOSITORY / "notebooks").glob("*.ipynb")))
TOKEN = "a-token-of-the-workshop"
CHROMIUM = shutil.which("chromium")
# the picture as it is drawn on the screen: a new address alone would not show that it changed
PIXELS = """picture => {
    if (!picture.complete || !picture.naturalWidth) return "";
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight];
    canvas.getContext("2d").drawImage(picture, 0, 0);
    return canvas.toDataURL();
}"""
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH")


def wait(done, seconds, what):
    """The first true answer of `done`."""
    end = time.monotonic() + seconds
    while not (answer := done()):
        assert time.monotonic() < end, f"no {what} within {seconds} s"
        time.sleep(0.2)
    return answer


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def lab(work, tmp_path_factory):
    """The address of a JupyterLab in a work folder like a user's, without the settings of whoever runs this."""
    shutil.copytree(REPOSITORY / "notebooks", work / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for name in ("bin", "utils.py", "questions.py", "README.md", "docs"):
        (work / name).symlink_to(REPOSITORY / name)
    own = tmp_path_factory.mktemp("settings")
    # without TQDM_DISABLE: bars are part of what is tested
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("PATCHCORE_", "MVTEC_", "JUPYTER", "TQDM_"))}
    environment = kept | {
        "PATCHCORE_WORK": str(work),
        "PATCHCORE_SMALL": "1",
        "JUPYTER_CONFIG_DIR": str(own / "config"),
        "JUPYTER_DATA_DIR": str(own / "data"),
        "JUPYTER_RUNTIME_DIR": str(own / "runtime"),
        "IPYTHONDIR": str(own / "ipython"),
    }
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment |= {"JUPYTER_PORT": str(port), "JUPYTER_TOKEN": TOKEN}
    config = REPOSITORY / "jupyter/jupyter_server_config.py"
    command = [sys.executable, "-m", "jupyterlab", f"--config={config}", f"--ServerApp.root_dir={work}"]

    def answers():
        assert server.poll() is None, log.read_text(encoding="utf-8")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/api")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    log = own / "log"
    with log.open("w", encoding="utf-8") as file:
        server = subprocess.Popen(command, cwd=work, env=environment, stdout=file, stderr=subprocess.STDOUT)
        try:
            wait(answers, 60, "answer from JupyterLab")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()  # it ends its kernels first
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


@pytest.fixture(scope="module")
def browser():
    flags = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += ["--disable-domain-reliability", "--no-first-run", "--no-proxy-server"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A new window as large as a student's laptop."""
    context = browser.new_context(viewport={"width": 1366, "height": 768})
    context.set_default_timeout(30_000)
    expect.set_options(timeout=30_000)
    yield context.new_page()
    context.close()


@pytest.fixture
def shoot(page, tmp_path, request):
    folder = Path(os.environ.get("PATCHCORE_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)

    def shoot(name):
        page.screenshot(path=folder / f"{name}.png")
        print(f"screenshot: {folder / name}.png")

    yield shoot
    shoot(f"{request.node.name}_end")  # after a failure: what could be seen then


def open_notebook(page, lab, path):
    page.goto(f"{lab}/lab/tree/{path}?token={TOKEN}&reset")  # reset: without the tabs of the test before
    notebook = page.locator(".jp-NotebookPanel:visible")
    expect(notebook.locator(".jp-MarkdownOutput h1").first).to_be_visible()
    # the status bar's word; before it, Run All may ask which kernel to start
    expect(page.get_by_role("button", name="| Idle")).to_be_visible(timeout=60_000)
    return notebook


def choose(page, menu, entry):
    page.get_by_role("menuitem", name=menu, exact=True).click()
    page.locator(".lm-Menu").get_by_text(entry, exact=True).click()


def code_cells(page, lab, path):
    """The code cells as the server has them: also those that the page does not draw."""
    cells = page.request.get(f"{lab}/api/contents/{path}?token={TOKEN}").json()["content"]["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def run_all(page, lab, notebook, path):
    """Run every cell, save, and return the code cells that were saved."""
    count = len(code_cells(page, lab, path))
    prompts = notebook.locator(".jp-CodeCell .jp-InputArea-prompt")
    red = notebook.locator("[data-mime-type='application/vnd.jupyter.stderr']")  # tracebacks too

    # not the kernel's state, which is idle also between two cells
    def ended():
        numbered = [text for text in prompts.all_text_contents() if re.fullmatch(r"\[\d+\]:", text)]
        return len(numbered) == count or red.count()

    choose(page, "Run", "Run All Cells")
    wait(ended, 240, "end of Run All Cells")
    assert red.all_text_contents() == []
    # not before it is saved: the server takes a file that is still being written for a broken one and renames it
    with page.expect_response(lambda response: response.request.method == "PUT" and path in response.url) as saving:
        choose(page, "File", "Save Notebook")
    assert saving.value.ok, saving.value.text()
    return code_cells(page, lab, path)


def test_task(page, lab, shoot):
    notebook = open_notebook(page, lab, TASK)
    shoot("task_opened")
    cells = run_all(page, lab, notebook, TASK)
    assert all(cell["execution_count"] for cell in cells)
    outputs = [output for cell in cells for output in cell["outputs"]]
    # warnings and, where a bar is not a widget, its text go to stderr
    assert [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"] == []
    expect(notebook.get_by_text("Error displaying widget")).to_have_count(0)

    figure = notebook.locator(".jp-OutputArea .jp-RenderedHTMLCommon img[alt]").first
    figure.hover()  # scrolls until it is there; cells far away have no height yet, so that one scroll may miss
    expect(figure).to_be_in_viewport(ratio=0.5)
    shoot("task_figure")
    drawn = "pictures => pictures.every(picture => picture.naturalWidth > 0)"
    wait(lambda: notebook.locator("img").evaluate_all(drawn), 10, "drawing of every picture")

    slider = notebook.locator(".widget-slider")
    explorer = notebook.locator(".widget-box", has=page.locator(".widget-slider")).first
    picture = explorer.locator("img").first
    # not the slider's own number, which follows it also when nothing else does
    texts = explorer.locator(".widget-html-content, .widget-label:not(.widget-slider *)")
    picture.hover()
    expect(slider).to_be_in_viewport()
    for way, move in {
        "mouse": lambda: slider.locator(".noUi-base").click(position={"x": 30, "y": 2}),
        "keyboard": lambda: slider.get_by_role("slider").press("End"),
    }.items():
        text, pixels = texts.all_text_contents(), picture.evaluate(PIXELS)
        move()
        wait(lambda before=text: texts.all_text_contents() != before, 10, f"new text after the {way}")
        wait(lambda before=pixels: picture.evaluate(PIXELS) not in ("", before), 10, f"new picture after the {way}")
        shoot(f"task_slider_{way}")
    pixels = picture.evaluate(PIXELS)
    images = explorer.locator("select")
    images.select_option(index=images.evaluate("select => select.selectedIndex ? 0 : 1"))
    wait(lambda: picture.evaluate(PIXELS) not in ("", pixels), 10, "new picture after choosing another image")
    shoot("task_slider_image")

    answer = notebook.locator("details").first
    inside = answer.locator(":not(summary)").first
    expect(inside).to_be_hidden()
    answer.locator("summary").click()
    expect(inside).to_be_visible()
    shoot("task_answer")
    expect(page.locator(".jp-Dialog")).to_have_count(0)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Five good photographs, and a folder of three to judge, in folders, all of the same name."""
    root = tmp_path_factory.mktemp("parts")
    pill = pk.draw_sample_data(root, ("pill",), train=5, good=1, defective=2, size=200, progress=False) / "pill"
    return sorted(pill.glob("train/good/*")), pill / "test"


def drag(page, place, files, *steps):
    """Files and folders hang on the pointer over a place, as the system tells the browser."""
    place.scroll_into_view_if_needed()
    at = place.bounding_box()
    where = {"x": at["x"] + at["width"] / 2, "y": at["y"] + at["height"] / 2}
    data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
    session = page.context.new_cdp_session(page)
    for step in steps:
        session.send("Input.dispatchDragEvent", {"type": step, **where, "data": data})
    session.detach()


def test_own_parts(page, lab, parts, shoot, tmp_path):
    good, to_judge = parts
    notebook = open_notebook(page, lab, OWN)
    notebook.locator(".jp-CodeCell", has_text="utils.own_photographs").click()
    choose(page, "Run", "Run All Above Selected Cell")
    boxes = notebook.locator(".patchcore-upload")
    expect(boxes).to_have_count(2, timeout=60_000)
    with page.expect_file_chooser() as chooser:
        boxes.nth(0).get_by_role("button").click()
    assert chooser.value.is_multiple()
    chooser.value.set_files(good)
    expect(boxes.nth(0)).to_contain_text("data/own/good holds 5 photographs5 of 5 saved")
    with page.expect_file_chooser() as chooser:  # again: nothing is doubled
        boxes.nth(0).get_by_role("button").click()
    chooser.value.set_files(good[:1])
    expect(boxes.nth(0)).to_contain_text("000.png is there already")

    (tmp_path / "list.png").write_bytes(b"no image" * 1_500_000)  # 12 MB, more than servers take as they are
    box = boxes.nth(1).get_by_role("button")
    drag(page, box, [to_judge, tmp_path / "list.png"], "dragEnter", "dragOver")
    expect(boxes.nth(1)).to_have_css("outline-style", "solid")
    shoot("own_dragged")
    drag(page, box, [to_judge, tmp_path / "list.png"], "drop")
    expect(boxes.nth(1)).to_have_css("outline-style", "none")
    expect(boxes.nth(1)).to_contain_text("data/own/to_judge holds 3 photographs3 of 4 saved")
    expect(boxes.nth(1)).to_contain_text("000.png is saved as 000_2.png")
    expect(boxes.nth(1)).to_contain_text("not saved: cannot read image list.png (it is text)")
    shoot("own_uploaded")

    cells = run_all(page, lab, notebook, OWN)
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"] == []
    assert "5 good photographs, 3 to judge\n" in [output.get("text") for output in outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    for name, said in {"table": "The strangest first", "why": "Is there something left"}.items():
        notebook.locator(".jp-MarkdownCell", has_text=said).hover()
        shoot(f"own_{name}")
    expect(notebook.locator(".jp-RenderedHTMLCommon table", has_text="verdict").locator("tbody tr")).to_have_count(3)
    drawn = "pictures => pictures.every(picture => picture.naturalWidth > 0)"
    wait(lambda: notebook.locator("img").evaluate_all(drawn), 10, "drawing of every picture")

    link = notebook.get_by_role("link", name="Download the report")
    link.scroll_into_view_if_needed()
    with page.expect_download() as download:
        link.click()
    assert download.value.suggested_filename == "own_parts.html"
    report = tmp_path / "own_parts.html"
    download.value.save_as(report)
    shoot("own_report_link")
    expect(page.locator(".jp-Dialog")).to_have_count(0)
    apart = page.context.browser.new_context(offline=True)  # of its own: JupyterLab complains when its server is gone
    read = apart.new_page()
    read.goto(report.as_uri())
    expect(read.get_by_role("heading", level=1)).to_have_text("Own parts")
    assert read.locator("img").count() >= 3
    wait(lambda: read.locator("img").evaluate_all(drawn), 10, "drawing of every picture")
    apart.close()


def write(page, cell, source):
    """Type into a code cell, in place of what is there."""
    cell.locator(".cm-content").click()
    page.keyboard.press("Control+A")
    page.keyboard.insert_text(source)


def run_cell(page, cell):
    """Run one cell -> what it prints."""
    prompt = cell.locator(".jp-InputArea-prompt")
    before = prompt.inner_text()
    cell.locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    wait(
        lambda: re.fullmatch(r"\[\d+\]:", prompt.inner_text()) and prompt.inner_text() != before, 60, "end of the cell"
    )
    return cell.locator(".jp-OutputArea").inner_text()


def cell_of(notebook, text):
    return notebook.locator(".jp-CodeCell", has_text=text).first


def reopen(page, lab, path, pictures):
    """What was saved is whole without its kernel: every picture, and no widget that is not there."""
    notebook = open_notebook(page, lab, path)

    def shown():  # cells come one after the other, so some may join while the others are scrolled through
        for cell in notebook.locator(".jp-Cell").all():
            cell.scroll_into_view_if_needed()
        return notebook.locator(".jp-OutputArea img").count() >= pictures

    wait(shown, 30, f"drawing of {pictures} pictures")
    expect(notebook.get_by_text("Error displaying widget")).to_have_count(0)
    expect(notebook.locator("[data-mime-type='application/vnd.jupyter.stderr']")).to_have_count(0)
    return notebook


def pictures_of(cells):
    return sum("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"])


@pytest.mark.parametrize(
    "names",
    [("task4_masks",), pytest.param(NOTEBOOKS, marks=pytest.mark.long)],
    ids=["one", "all"],
)
def test_half_a_day(page, lab, work, names, shoot, tmp_path):
    for name in names:
        path = f"notebooks/{name}.ipynb"
        cells = run_all(page, lab, open_notebook(page, lab, path), path)
        assert [
            o for c in cells for o in c["outputs"] if o["output_type"] == "error" or o.get("name") == "stderr"
        ] == []
        reopen(page, lab, path, pictures_of(cells))
        shoot(f"half_day_{name}_reopened")

    # answers, after lunch: the kernel is new
    notebook = open_notebook(page, lab, TASK)
    choose(page, "Run", "Run All Cells")
    question, answer = cell_of(notebook, "questions.task4_masks"), cell_of(notebook, "my_threshold = ")
    expect(question.locator(".jp-OutputArea")).to_contain_text("Not answered yet", timeout=120_000)
    for source, said in {
        "'8'": "Not yet: '8' is a text, not a number: write it without quotes",
        "predictions.pixel_threshold": "that is the threshold of the pixels",
        "predictions.scores[predictions.labels == 1].min()": "Right.",
    }.items():
        write(page, answer, f"my_threshold = {source}")
        run_cell(page, answer)
        assert said in run_cell(page, question)
    shoot("half_day_answered")

    # another size: its results lie beside the others, which the next task takes, and says so
    notebook = open_notebook(page, lab, "notebooks/task1_train.ipynb")
    parameters = cell_of(notebook, "RESIZE, IMAGESIZE")
    sources = [cell["source"] for cell in code_cells(page, lab, "notebooks/task1_train.ipynb")]
    source = next(text for text in sources if text.startswith("CATEGORIES = "))
    write(page, parameters, source.replace("256, 224", "64, 56"))
    choose(page, "Run", "Run All Cells")
    expect(cell_of(notebook, "trainer()").locator(".jp-OutputArea")).to_contain_text("Done.", timeout=120_000)
    assert (work / "experiments/step1/sample_small-starter-56/results.csv").is_file()
    notebook = open_notebook(page, lab, "notebooks/task2_evaluate.ipynb")
    cell_of(notebook, "pk.read_results").click()
    choose(page, "Run", "Run All Above Selected Cell")
    said = "results of experiments/step1/0000; there are also experiments/step1/sample_small-starter-56: RUN ="
    expect(cell_of(notebook, "utils.task1_run").locator(".jp-OutputArea")).to_contain_text(said, timeout=60_000)
    shoot("half_day_another_size")

    # a parameter of the wrong kind: one sentence, and the cell that says so is in view
    notebook = open_notebook(page, lab, "notebooks/task1_train.ipynb")
    write(page, cell_of(notebook, "RESIZE, IMAGESIZE"), source.replace("pk.list_categories(DATA)", '"pill"'))
    choose(page, "Run", "Run All Cells")
    error = notebook.locator("[data-mime-type='application/vnd.jupyter.stderr']")
    expect(error).to_have_text("CATEGORIES is 'pill', which is no list: write ['pill']", timeout=60_000)
    expect(error).to_be_in_viewport()
    shoot("half_day_wrong_kind")

    # other data at noon, with results of its own; then the first again
    mvtec = work / "data/mvtec_anomaly_detection"
    pk.draw_sample_data(mvtec, ("wood",), train=6, good=3, defective=3, size=96, progress=False)
    write(page, cell_of(notebook, "RESIZE, IMAGESIZE"), source)
    choose(page, "Kernel", "Restart Kernel and Run All Cells…")
    page.get_by_role("button", name="Confirm Kernel Restart").click()
    trained = cell_of(notebook, "trainer()").locator(".jp-OutputArea")
    expect(trained).to_contain_text("experiments/step1/mvtec_anomaly_detection-starter-224", timeout=120_000)
    shoot("half_day_other_data")
    mvtec.rename(tmp_path / "away")
    notebook = open_notebook(page, lab, TASK)
    choose(page, "Run", "Run All Cells")
    expect(cell_of(notebook, "questions.task4_masks").locator(".jp-OutputArea")).to_contain_text(
        "Not answered yet", timeout=120_000
    )
    expect(error).to_have_count(0)


def test_a_stop_is_a_sentence(page, lab, shoot):
    """The square button, while a cell far down runs; the page is at its top."""
    notebook = open_notebook(page, lab, "notebooks/task1_train.ipynb")
    trainer = cell_of(notebook, "trainer()")
    write(page, trainer, "import time\ntime.sleep(60)  # trainer()")
    choose(page, "Run", "Run All Cells")
    before = cell_of(notebook, "utils.get_train_args").locator(".jp-InputArea-prompt")
    expect(before).to_have_text(re.compile(r"\[\d+\]:"), timeout=60_000)
    notebook.locator(".jp-MarkdownOutput h1").first.scroll_into_view_if_needed()
    choose(page, "Kernel", "Interrupt Kernel")
    error = notebook.locator("[data-mime-type='application/vnd.jupyter.stderr']")
    expect(error).to_have_text("Stopped. Run the cell again to go on.")
    expect(error).to_be_in_viewport()
    shoot("stopped")


def test_links_open_the_tasks(page, lab, shoot):
    notebook = open_notebook(page, lab, WORKSHOP)
    shoot("workshop_opened")
    tab = page.locator(".lm-DockPanel-tabBar .lm-TabBar-tab")
    tasks = sorted(path.name for path in (REPOSITORY / "notebooks").glob("task*.ipynb"))
    assert tasks
    tasks.append(Path(OWN).name)
    for count, task in enumerate(tasks, 2):
        notebook.locator(f".jp-MarkdownOutput a[href*='/{task}']").first.click()
        opened = tab.filter(has_text=task)
        expect(opened).to_have_class(re.compile("lm-mod-current"))
        expect(notebook.locator(".jp-MarkdownOutput h1").first).to_be_visible()
        expect(tab).to_have_count(count)
        tab.filter(has_text=Path(WORKSHOP).name).click()
    shoot("workshop_tabs")
    assert len(page.context.pages) == 1
    expect(page.locator(".jp-Dialog")).to_have_count(0)
