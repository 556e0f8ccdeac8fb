"""The report as a text, and as a person meets it: in a real browser that has no network."""

import dataclasses
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

import patchcore_kit as pk
from patchcore_kit import report
from patchcore_kit.calibration import Calibration
from patchcore_kit.report import LIMIT, write_report

CHROMIUM = shutil.which("chromium")
BAD = "<img src=x onerror=alert(1)>.png"
VOID = ("meta", "img", "br", "wbr", "input")


class Page(HTMLParser):
    """What a page holds: its tags with attributes, and its text outside of script and style."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.texts.append(data)

    @property
    def text(self):
        return " ".join("".join(self.texts).split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def category(sample_root):
    return pk.load_category(sample_root, "weave")


@pytest.fixture(scope="module")
def detector(category):
    backbone = pk.load_backbone("starter")
    return pk.PatchCore(backbone, scoring="density", resize=(128, 128), progress=False).fit(category.train)


@pytest.fixture(scope="module")
def predictions(detector, category):
    """With a look, some defective and some good ones, and a remark."""
    found = detector.predict(category.test)
    scores = found.scores
    ranked = np.sort(scores)
    good = np.linspace(0.5, 1, 100) * ranked[5]
    good[-2:] = ranked[7] * 1.001
    known = Calibration(good, found.calibration.peaks, 0.05)
    remarks = ("darker than all training images (brightness 50%)", *found.remarks[1:])
    found = dataclasses.replace(found, calibration=known, remarks=remarks)
    assert set(found.verdicts) == {"good", "look", "defective"}
    return found


@pytest.fixture
def write(tmp_path, category):
    def write(predictions, samples=None, **more):
        path = tmp_path / "out" / "report.html"
        write_report(path, category.test if samples is None else samples, predictions, **more)
        content = path.read_bytes()
        assert len(content) < LIMIT
        return Page(content.decode())

    return write


def test_everything_is_said(write, predictions):
    failed = [("new/1.png", "cannot read image: it is empty")]
    page = write(predictions, facts={"Model": "models/weave", "Date": "today"}, failed=failed, title="Weave & co")
    of = [(predictions.verdicts == verdict).sum() for verdict in ("defective", "look", "good")]
    assert f"{of[0]} of 10 photographs are defective, {of[1]} to look at, {of[2]} good; 1 could not" in page.text
    for said in ("Weave & co", "models/weave", "today", "new/1.png: cannot read image: it is empty", "darker than all"):
        assert said in page.text
    look = predictions.calibration.look
    assert (
        "at most 5\u00a0% of good photographs" in "".join(page.texts) and f"Going by {look.n} good images" in page.text
    )
    limit = f"{predictions.defective_threshold / predictions.alarm_threshold:.2f}"
    assert f"defective above {limit}" in page.text and f"index above {limit}" in page.text
    for i, name in enumerate(predictions.names):
        assert page.text.count(name) >= 2  # with its picture, and in the table
        assert f"index {predictions.index[i]:.2f}" in page.text
        for number, region in enumerate(predictions.explain(i).regions, 1):
            assert f"Region {number}: index {region.index:.2f}" in page.text
            for normal in region.nearest:
                assert f"{normal.name}distance {normal.distance:.3g}" in page.text  # on two lines


def test_strangest_first(write, predictions):
    page = write(predictions)
    heads = [int(attributes["id"][5:]) for attributes in page.all("article")]
    assert heads == [i for i in np.argsort(-predictions.scores) if predictions.verdicts[i] != "good"]


def test_every_picture_lies_in_the_page_and_says_what_it_is(write, predictions):
    page = write(predictions)
    pictures = page.all("img")
    crops = sum(1 + len(r.nearest) for i in range(10) for r in predictions.explain(i).regions)
    assert len(pictures) == 10 + crops
    for picture in pictures:
        assert picture["src"].startswith("data:image/jpeg;base64,")
        assert re.search(r"\.png", picture["alt"]) and re.search("index|[Rr]egion", picture["alt"])
    (drawn,) = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert f"from {predictions.index.min():.2f} to {predictions.index.max():.2f}" in drawn["aria-label"]


def test_it_asks_for_nothing(write, predictions, tmp_path):
    page = write(predictions)
    text = (tmp_path / "out" / "report.html").read_text()
    assert (
        "http:" not in text
        and "https:" not in text
        and "url(" not in text
        and "//" not in re.sub(r"base64,[\w+/=]*", "", text)
    )
    for _, attributes in page.tags:
        for name in ("href", "src"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
        assert not any(name.startswith("on") for name in attributes)
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-" in policy


def test_headings_are_in_order_and_links_lead_somewhere(write, predictions):
    page = write(predictions, failed=[("a", "b")])
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    named = [attributes["aria-labelledby"] for _, attributes in page.tags if "aria-labelledby" in attributes]
    assert {link["href"][1:] for link in page.all("a")} | set(named) <= set(ids)
    assert page.all("html")[0]["lang"] == "en"


def test_names_and_words_are_harmless(write, predictions, category):
    names = (BAD, "$strange </section> & \u202e \udcff.png", *predictions.names[2:])
    samples = [dataclasses.replace(s, name=name) for s, name in zip(category.test, names, strict=True)]
    evil = dataclasses.replace(
        predictions,
        names=names,
        remarks=(BAD,) * 10,
        evidence=dataclasses.replace(predictions.evidence, names=(BAD,) * len(predictions.evidence.names)),
    )
    more = {"facts": {BAD: BAD}, "failed": [(BAD, BAD)], "title": f"{BAD} $summary </title>"}
    page = write(evil, samples, **more)
    usual = write(predictions, facts={"a": "b"}, failed=[("a", "b")])
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert len(page.all("img")) == len(usual.all("img")) and len(page.all("script")) == 1
    assert BAD in page.text and "$summary" in page.text and "$strange </section> &" in page.text


def test_the_same_bytes_again(write, predictions, tmp_path):
    first = [write(predictions, facts={"a": "b"}) and (tmp_path / "out" / "report.html").read_bytes() for _ in range(2)]
    assert first[0] == first[1]


# kinds of predictions


def test_without_a_threshold(write, predictions):
    page = write(dataclasses.replace(predictions, calibration=None))
    assert "10 photographs were scored. The model has no threshold, so there are no verdicts." in page.text
    assert "What the thresholds promise None" in page.text
    heads = page.text.split("Table of all photographs")[-1]
    assert "Verdict" not in heads and "defective" not in page.text.replace("test/", "") and "index" not in page.text
    assert [int(a["id"][5:]) for a in page.all("article")] == np.argsort(-predictions.scores).tolist()
    assert "Region 1" in page.text


def test_the_others_are_small_without_a_threshold(write, predictions, monkeypatch):
    monkeypatch.setattr(report, "WITHOUT_VERDICT", 3)
    page = write(dataclasses.replace(predictions, calibration=None))
    assert len(page.all("article")) == 3 and "The others" in page.text and len(page.all("li")) > 7


@pytest.mark.parametrize("judged", [True, False])
def test_maps_of_an_ensemble_have_no_reasons(write, predictions, judged):
    known = {} if judged else {"calibration": None}
    page = write(dataclasses.replace(predictions, evidence=None, **known))
    assert "these predictions hold none" in page.text and "Region 1" not in page.text
    assert any("heat" in path["class"] for path in page.all("path"))


@pytest.mark.parametrize("verdicts", ["good", "defective"])
def test_of_one_kind_only(write, predictions, verdicts):
    times = 100 if verdicts == "good" else 0.01
    known = predictions.calibration
    known = Calibration(known.scores * times, known.peaks * times, 0.05)
    page = write(dataclasses.replace(predictions, calibration=known))
    count = 10 if verdicts == "defective" else 0
    assert f"{count} of 10 photographs are defective, 0 to look at, {10 - count} good." in page.text
    assert len(page.all("article")) == count
    assert bool(count) == ("Strangest first. Outlined" in page.text)


def test_one_photograph_and_none(write, predictions, category):
    page = write(predictions.of([0]), category.test[:1])
    assert "of 1 photograph " in page.text and "1 photographs" not in page.text
    none = predictions.of(np.zeros(0, dtype=int))
    assert "No photographs were judged; 1 could not be judged." in write(none, [], failed=[("a", "b")]).text
    assert "No photographs were judged." in write(none, []).text


def test_labels_are_no_verdicts(write, predictions):
    hidden = dataclasses.replace(predictions, labels=np.full(10, -1), masks=None)
    assert write(hidden).tags == write(predictions).tags


def test_few_good_images_promise_nothing(write, predictions):
    few = dataclasses.replace(
        predictions, calibration=Calibration(predictions.scores[:5], predictions.scores[:5], 0.05)
    )
    page = write(few)
    assert "With 5 good images this is extrapolated, which promises nothing. It takes 59 to promise" in page.text


def test_frames_and_photographs_of_any_shape(write, detector):
    generator = np.random.default_rng(0)
    sizes = [(40, 400), (400, 40), (1, 30), (600, 500)]
    frames = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    page = write(detector.predict(frames), frames)
    for photograph in page.all("img"):
        assert max(int(photograph["width"]), int(photograph["height"])) <= 2 * report.SIDE
    assert "400 x 40 pixels" in page.text and "500 x 600 pixels" in page.text


def test_what_the_network_did_not_see_is_shaded(write, category):
    detector = pk.PatchCore(pk.load_backbone("starter"), resize=128, imagesize=96, progress=False).fit(category.train)
    page = write(dataclasses.replace(detector.predict(category.test), calibration=None))
    assert "shaded" in page.text
    shaded = [path["d"] for path in page.all("path") if path["class"] == "left-out"]
    side, cut = report.SIDE, report.SIDE / 8
    assert set(shaded) == {f"M0 0H{side}V{side}H0ZM{cut:.1f} {cut:.1f}V{side - cut:.1f}H{side - cut:.1f}V{cut:.1f}Z"}


def test_outlines_lie_where_placed_maps_are_above(detector, category):
    """Also on photographs that the network sees a part of, at another scale."""
    transform = pk.Transform(64, 48)
    maps = np.zeros((1, 48, 48), dtype=np.float32)
    maps[0, 10:20, 30:44] = 2
    known = Calibration(np.linspace(0.1, 1, 40), np.linspace(0.1, 1, 40), 0.05)
    placed = pk.Predictions(
        np.ones(1), maps, np.array([-1]), None, ("a",), calibration=known, transform=transform,
        sizes=np.array([[300, 400]]),
    )  # fmt: skip
    (line,) = report._outlines(maps[0], [placed.alarm_threshold_pixel], transform, (400, 300))[0]
    rows, columns = np.nonzero(np.nan_to_num(placed.placed(0)) > placed.alarm_threshold_pixel)
    assert line.min(0) == pytest.approx([columns.min(), rows.min()], abs=1.5)
    assert line.max(0) == pytest.approx([columns.max() + 1, rows.max() + 1], abs=1.5)


# many, and large ones


@pytest.fixture(scope="module")
def many(detector, tmp_path_factory, predictions):
    """200 noisy photographs, which are the hardest to make small, half of them defective, with five regions each."""
    folder = tmp_path_factory.mktemp("many")
    generator = np.random.default_rng(0)
    for n in range(4):
        Image.fromarray(generator.integers(0, 256, (600, 800, 3), dtype=np.uint8)).save(folder / f"{n}.png")
    samples = [pk.Sample(f"test/some kind of defect/{n}.png", folder / f"{n}.png") for n in range(4)]
    few = detector.predict(samples)
    pictures = generator.integers(0, 256, few.evidence.pictures[:1].shape, dtype=np.uint8)
    evidence = {name: getattr(few.evidence, name) for name in ("boxes", "peaks", "near", "distances")}
    rows = np.zeros(20, dtype=int)
    evidence = {name: values[rows] for name, values in evidence.items()}
    noisy = dataclasses.replace(few.evidence, images=np.repeat(range(4), 5), pictures=pictures[rows], **evidence)
    few = dataclasses.replace(few, evidence=noisy, remarks=("",) * 4)
    joined = pk.Predictions.joined([few] * 50)
    scores = np.linspace(2, 0.5, 200).astype(np.float32) * few.alarm_threshold
    scores[::2] += np.float32(few.defective_threshold)
    return samples * 50, dataclasses.replace(joined, scores=scores)


def test_200_photographs_are_below_5_mb(write, many):
    samples, predictions = many
    strange = (predictions.verdicts != "good").sum()
    assert 100 <= strange <= report.MOST_STRANGE + 60
    page = write(predictions, samples)
    assert len(page.all("article")) == min(strange, report.MOST_STRANGE)
    told = f"Only the strangest {report.MOST_STRANGE} are shown with pictures; {strange - report.MOST_STRANGE} more"
    assert (told in page.text) == (strange > report.MOST_STRANGE)
    assert len(page.all("tr")) == 1 + 1 + 200  # of facts, headings, photographs


def test_what_is_left_out_is_told(write, many, monkeypatch):
    samples, predictions = many
    for name, number in (("MOST_STRANGE", 2), ("MOST_GOOD", 3), ("MOST_ROWS", 4)):
        monkeypatch.setattr(report, name, number)
    strange = int((predictions.verdicts != "good").sum())
    page = write(predictions, samples)
    assert f"Only the strangest 2 are shown with pictures; {strange - 2} more are in the table" in page.text
    assert f"Only the strangest 3 are shown with pictures; {200 - strange - 3} more are in the table" in page.text
    assert "Only the strangest 4 are listed, 196 are not." in page.text


# what cannot be written


def test_what_does_not_belong_together(predictions, category, tmp_path):
    with pytest.raises(pk.SettingsError, match="do not belong to these 3 samples"):
        write_report(tmp_path / "a.html", category.test[:3], predictions)
    with pytest.raises(pk.ResultsError, match="predict again"):
        write_report(tmp_path / "a.html", category.test, dataclasses.replace(predictions, transform=None))
    gone = [dataclasses.replace(sample, path=tmp_path / "gone.png") for sample in category.test]
    with pytest.raises(pk.DataError, match=r"gone\.png"):
        write_report(tmp_path / "a.html", gone, predictions)
    assert list(tmp_path.iterdir()) == []


def test_where_it_cannot_be_written(predictions, category, tmp_path):
    (tmp_path / "file").write_text("a thesis")
    with pytest.raises(pk.ResultsError, match="cannot write"):
        write_report(tmp_path / "file" / "a.html", category.test, predictions)
    with pytest.raises(pk.ResultsError, match="Is a directory"):
        write_report(tmp_path, category.test, predictions)


# in a browser


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs chromium on the PATH")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, write, predictions, category, tmp_path):
    """Open a report with everything in it, at some width, without a network; nothing may be asked for or complained."""
    contexts, asked, said = [], [], []

    def opened(width, **settings):
        names = ("test/" + "long" * 30 + BAD, *predictions.names[1:])
        samples = [dataclasses.replace(s, name=name) for s, name in zip(category.test, names, strict=True)]
        facts = {"Model": "models/" + "weave" * 30, BAD: BAD}
        write(dataclasses.replace(predictions, names=names), samples, facts=facts, failed=[(BAD, "x" * 200)])
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, **settings))
        contexts[-1].set_offline(True)
        page = contexts[-1].new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message) or dialog.dismiss())
        page.goto((tmp_path / "out" / "report.html").as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == [] and all(url.startswith(("file:", "data:")) for url in asked)


def test_sorting_by_keyboard(opened, predictions):
    page = opened(1200)
    column = "rows => rows.map(row => row.cells[{}].textContent)"
    rows, heads = page.locator("table.all tbody tr"), page.locator("table.all thead th")
    assert heads.evaluate_all("heads => heads.map(head => head.getAttribute('aria-sort'))") == [
        None, None, "descending", None, None,
    ]  # fmt: skip
    page.locator("button", has_text="Photograph").focus()
    for order in ("ascending", "descending"):
        page.keyboard.press("Enter")
        assert heads.first.get_attribute("aria-sort") == order
        assert page.locator("[aria-sort]").count() == 1
        names = rows.evaluate_all(column.format(0))
        assert names == sorted(names, reverse=order == "descending")
        assert f"Sorted by Photograph, {order}" in page.locator("#sorted").text_content()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    verdicts = rows.evaluate_all(column.format(1))
    assert verdicts == sorted(verdicts, key=("defective", "to look at", "good").index)
    page.locator("button", has_text="Index").click()
    values = rows.evaluate_all("rows => rows.map(row => Number(row.cells[2].dataset.value))")
    assert values == pytest.approx(sorted(predictions.index.tolist(), reverse=True), rel=1e-4)


def test_tab_goes_down_the_page_and_is_seen(opened):
    page = opened(1200)
    places, seen = [], 0
    where = """() => { const one = document.activeElement, box = one.getBoundingClientRect();
        const style = getComputedStyle(one);
        const all = [...document.querySelectorAll('*')];
        return [one.tagName, all.indexOf(one), style.outlineStyle, box.left >= 0 && box.width > 0]; }"""
    for _ in range(40):
        page.keyboard.press("Tab")
        tag, place, outline, visible = page.evaluate(where)
        if tag == "BODY":
            break
        assert outline == "solid" and visible, tag
        places.append(place)
        seen += tag in ("A", "BUTTON", "INPUT", "DIV")
    assert places == sorted(places) and len(set(places)) == len(places) == seen
    assert len(places) == 1 + 7 + 1 + 1 + 5 + 10  # skip link, parts, switch, table, its headings, its rows
    page.keyboard.press("Home")
    page.reload()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_marks_can_be_hidden(opened):
    page = opened(1200)
    marks = page.locator("svg.marks").first
    assert marks.is_visible()
    page.get_by_label("Show the marks").uncheck()
    assert not marks.is_visible()


@pytest.mark.parametrize("scripts", [True, False])
@pytest.mark.parametrize("width", [320, 360, 800])
def test_nothing_is_wider_than_the_window(opened, width, scripts):
    page = opened(width, java_script_enabled=scripts)
    box = page.locator("html").bounding_box()
    assert box["width"] <= width
    if scripts:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("table.all tbody tr").count() == 10
    assert page.locator("table.all button").count() == (5 if scripts else 0)


CONTRAST = """() => {
    const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
    const light = colour => numbers(colour).slice(0, 3).map(v => v / 255)
        .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = element => {
        for (; element; element = element.parentElement) {
            const colour = getComputedStyle(element).backgroundColor;
            if (numbers(colour)[3] !== 0) return colour;
        }
        return "rgb(255, 255, 255)";
    };
    const low = [];
    for (const one of document.querySelectorAll("body *:not(script)")) {
        if (![...one.childNodes].some(node => node.nodeType === 3 && node.data.trim())) continue;
        const style = getComputedStyle(one);
        const colour = one.closest("svg") ? style.fill : style.color;
        const [a, b] = [light(colour), light(ground(one))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) low.push(one.outerHTML.slice(0, 80));
    }
    return low;
}"""


def test_letters_stand_out_and_pictures_load(opened):
    page = opened(1200)
    assert page.evaluate(CONTRAST) == []
    assert page.locator("img").evaluate_all("all => all.every(one => one.complete && one.naturalWidth > 0)")


def test_it_prints(opened, tmp_path):
    page = opened(1200)
    page.get_by_label("Show the marks").uncheck()
    content = page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert content.startswith(b"%PDF") and content.count(b"/Type /Page\n") + content.count(b"/Type /Page/") >= 2
    page.emulate_media(media="print")
    assert page.locator("svg.marks").first.is_visible()  # what was hidden on the screen only
    assert not page.locator("nav").is_visible()
