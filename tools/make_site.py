"""Make a site of README, docs and executed notebooks in site/, which needs no network to be read: make site.

Pages keep the folders of the repository, so their links hold: a notebook becomes a page, and whatever else a page links
to lies beside them. Every link and anchor is checked. Notebooks run on the built-in data, on a few small images unless
`--full` is given, in a folder of their own.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILDER = ROOT / ".site" / "bin" / "zensical"
SERVE = "python3 -m http.server --bind 127.0.0.1 --directory site"  # browsers let no page on a disk search others
FIRST = ("README", "setup", "workshop")  # the order of pages, as far as it is not that of the alphabet
SETTINGS = """
[project]
site_name = "PatchCore Kit"
docs_dir = "pages"
site_dir = "site"
use_directory_urls = false
nav = {nav}

[project.theme]
font = false
features = ["navigation.sections", "navigation.top", "content.code.copy"]
palette = [
  {{ media = "(prefers-color-scheme: light)", scheme = "default" }},
  {{ media = "(prefers-color-scheme: dark)", scheme = "slate" }},
]

[project.markdown_extensions]
md_in_html = {{}}
tables = {{}}
pymdownx.highlight = {{}}
pymdownx.superfences = {{}}
toc = {{ slugify = {{ object = "pymdownx.slugs.slugify", kwds = {{ case = "lower" }} }} }}
"""


def pages() -> list[Path]:
    """All that become pages, in the order of the navigation."""
    patterns = ("README.md", "docs/*.md", "notebooks/*.ipynb", "benchmarks/README.md", "C*.md")
    return [page for pattern in patterns for page in sorted(ROOT.glob(pattern), key=_order)]


def _order(page: Path) -> tuple[int, str]:
    return FIRST.index(page.stem) if page.stem in FIRST else len(FIRST), page.stem


def executed(notebook: Path, work: Path, *, full: bool) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, with what its cells print, and the pictures that they draw by name.

    Raises SystemExit where a cell fails.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    from nbconvert import MarkdownExporter

    print(f"running {notebook.relative_to(ROOT)}", flush=True)
    settings = {"PATCHCORE_WORK": str(work)} | ({} if full else {"PATCHCORE_SMALL": "1"})
    environment = {name: value for name, value in os.environ.items() if name != "MVTEC_ROOT"} | settings
    content = nbformat.read(notebook, as_version=4)
    where = {"metadata": {"path": str(notebook.parent)}}
    quiet = ["--log-level=ERROR"]  # the kernel's own log
    client = NotebookClient(content, resources=where, extra_arguments=quiet, coalesce_streams=True)
    try:
        client.execute(env=environment)
    except CellExecutionError as error:
        raise SystemExit(f"no site: {notebook} stops with {error.ename}: {error.evalue}") from None
    text, resources = MarkdownExporter().from_notebook_node(content, {"unique_key": notebook.stem})
    return text.replace(f"{work}/", "").replace(f"{ROOT}/", ""), resources["outputs"]


def adapted(text: str) -> str:
    """Links to notebooks lead to their pages, what can be opened is Markdown as well, tables look as all others do."""
    text = re.sub(r"(\]\([^):]+)\.ipynb", r"\1.md", text)
    return text.replace("<details>", "<details markdown>").replace('<table border="1" class="dataframe">', "<table>")


def links(text: str) -> Iterator[str]:
    """Relative ones, outside code."""
    prose = re.sub(r"^```.*?^```|`[^`\n]+`", "", text, flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if not re.match(r"[a-z]+:", link):
            yield link


def lay_out(folder: Path, work: Path, *, full: bool) -> None:
    """Write the pages into a folder, and beside them their pictures and the files that they link to."""
    for page in pages():
        notebook = page.suffix == ".ipynb"
        text, pictures = executed(page, work, full=full) if notebook else (page.read_text(encoding="utf-8"), {})
        beside = {(page.parent / link.partition("#")[0]).resolve() for link in links(text)}
        files = {file: file.read_bytes() for file in beside if file.is_file() and file not in pages()}
        files |= {page.with_name(name): picture for name, picture in pictures.items()}
        files[page.with_suffix(".md")] = adapted(text).encode()
        for file, content in files.items():
            place = folder / file.relative_to(ROOT)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)


def navigation() -> list[str | dict[str, list[str]]]:
    """The pages by folder."""
    found: dict[str, list[str]] = {}
    for page in pages():
        name = page.relative_to(ROOT).with_suffix(".md")
        found.setdefault(name.parent.name.capitalize() or "Project", []).append(name.as_posix())
    first, *others = found.pop("Project")
    return [first, *({title: names} for title, names in found.items()), {"Project": others}]


def build(scratch: Path) -> Path:
    """A site of the pages in scratch/pages. Raises SystemExit where a link, an anchor or a picture leads nowhere."""
    nav = json.dumps(navigation()).replace('": ', '" = ')
    (scratch / "zensical.toml").write_text(SETTINGS.format(nav=nav), encoding="utf-8")
    done = subprocess.run([BUILDER, "build", "--strict"], cwd=scratch, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        said, _, why = done.stderr.partition("Traceback")
        raise SystemExit(f"{said}no site: {(why or said).splitlines()[-1]}")
    for page in (scratch / "pages").rglob("*.md"):
        for link in links(page.read_text(encoding="utf-8")):
            if not (page.parent / link.partition("#")[0]).exists():  # pictures and other files, which it does not check
                raise SystemExit(f"no site: {page.relative_to(scratch / 'pages')} links to {link}, which is not there")
    return scratch / "site"


def main(*, full: bool) -> None:
    """The site, made anew."""
    place = ROOT / "site"
    with tempfile.TemporaryDirectory() as folder:
        scratch, work = Path(folder, "scratch"), Path(folder, "work")
        work.mkdir()
        lay_out(scratch / "pages", work, full=full)
        made = build(scratch)
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(made, place)
    print(f"open {place / 'index.html'}; for the search in it say {SERVE}, and open the link that it prints")


if __name__ == "__main__":
    main(full="--full" in sys.argv[1:])
