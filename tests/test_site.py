"""The pages and the site that is made of them: links and anchors, and that nothing of it needs a network."""

import hashlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.append(str(REPOSITORY / "tools"))

import make_site as maker  # noqa: E402

COMMANDS = ("lab", "lint", "test", "benchmark", "site")


def texts(page: Path) -> str:
    """A page's Markdown, or that of a notebook."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    cells = (cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")
    return "\n\n".join("".join(cell["source"]) for cell in cells)


def anchors(page: Path) -> Iterator[str]:
    """What GitHub makes of the headings."""
    for heading in re.findall(r"^#+ (.+)", re.sub(r"^```.*?^```", "", texts(page), flags=re.M | re.S), re.M):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        yield re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")


def test_links_lead_somewhere():
    lost = []
    for page in maker.pages():
        for link in maker.links(texts(page)):
            file, _, anchor = link.partition("#")
            target = (page.parent / file).resolve() if file else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                lost.append(f"{page.relative_to(REPOSITORY)}: {link}")
    assert not lost


def test_every_page_of_docs_is_named_by_another():
    named = {
        (page.parent / link.partition("#")[0]).resolve() for page in maker.pages() for link in maker.links(texts(page))
    }
    assert {page for page in maker.pages() if page.suffix == ".md"} <= named | {REPOSITORY / "README.md"}


def test_the_site_needs_no_network_and_has_all_pages(tmp_path, monkeypatch):
    if not maker.BUILDER.exists():
        pytest.skip("needs what `make site` has installed")
    monkeypatch.setattr(maker, "executed", lambda notebook, work, full: (texts(notebook), {}))
    maker.lay_out(tmp_path / "pages", tmp_path, full=False)
    check(maker.build(tmp_path))


@pytest.mark.full
def test_make_site():
    done = subprocess.run(["make", "site"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    check(REPOSITORY / "site")
    assert "<img" in (REPOSITORY / "site/notebooks/task4_masks.html").read_text(encoding="utf-8")


def check(site: Path) -> None:
    """Each page is there, and none loads anything from elsewhere."""
    for page in maker.pages():
        name = "index" if page.stem == "README" else page.stem
        assert (site / page.relative_to(REPOSITORY).with_name(f"{name}.html")).is_file()
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"<(?:script|img|iframe)[^>]* src=\"?(?:https?:)?//", text), page
        assert not re.search(r"<link[^>]*rel=\"?(?:stylesheet|preconnect)\"?[^>]*href=\"?(?:https?:)?//", text), page


def test_contributing_names_commands_that_there_are():
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `make (\S+)` \|", text, re.MULTILINE) == list(COMMANDS)
    targets = re.findall(r"^([a-z-]+):.*## ", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"`make ([a-z-]+)`", text)) <= set(targets)


def test_citation():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["cff-version"] == "1.2.0" and {"message", "title"} < citation.keys()
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    (author,) = citation["authors"]
    assert f"Copyright 2026 {author['name']}" in (REPOSITORY / "NOTICE").read_text(encoding="utf-8")
    (paper,) = citation["references"]
    assert {"type", "title", "authors"} < paper.keys() and len(paper["authors"]) == 6
    assert project["version"] in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")


def test_licence_is_whole():
    """The text as the Apache Software Foundation publishes it."""
    published = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    assert hashlib.sha256((REPOSITORY / "LICENSE").read_bytes()).hexdigest() == published
