"""docs/architecture.md and its picture say what the imports say."""

import ast
import re
import sys
from itertools import chain, pairwise
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.append(str(REPOSITORY / "tools"))

import architecture  # noqa: E402

PAGE = (REPOSITORY / "docs/architecture.md").read_text(encoding="utf-8")
MODULES = {path.stem: path for path in (REPOSITORY / "patchcore_kit").rglob("*.py") if path.stem != "__init__"}


@pytest.fixture(scope="module")
def order() -> list[str]:
    """The modules as they are read: line by line, from left to right."""
    return [name for line in architecture.layers() for part in line for name in part if name != "."]


def imports(path: Path) -> set[str]:
    """Modules of the kit that a file imports, at its top, within functions, and for editors alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "patchcore_kit":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("patchcore_kit."):
            found.add(node.module.split(".")[-1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[-1] for alias in node.names if alias.name.startswith("patchcore_kit.")}
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path} imports by dots, which no test follows"
    return found & MODULES.keys()


def test_every_module_is_drawn_once(order):
    assert sorted(order) == sorted(MODULES), "LAYERS of tools/architecture.py name other modules than there are"


def test_modules_import_only_from_above(order):
    place = {name: number for number, name in enumerate(order)}
    for name, path in MODULES.items():
        for used in imports(path):
            assert place[used] < place[name], f"{name} imports {used}, which is drawn below or to its right"


def test_arrows_are_imports():
    for start, end, _ in architecture.flow():
        assert start in imports(MODULES[end]) or end in imports(MODULES[start]), f"{start} and {end} have no import"


def test_boxes_lie_apart():
    rows = {}
    for x, y, width in architecture.places().values():
        rows.setdefault(y, []).append((x - width / 2, x + width / 2))
    assert all(right + 4 <= left for row in rows.values() for (_, right), (left, _) in pairwise(sorted(row)))


def test_the_picture_is_up_to_date():
    assert architecture.PATH.read_text(encoding="utf-8") == architecture.picture(), "run python tools/architecture.py"


def test_the_table_has_every_module_once_by_group():
    first, *lines, last = architecture.layers()
    parts = [*first, *(part for column in zip(*lines, strict=True) for part in column), *last]
    table = PAGE.partition("## Modules")[2].partition("\n## ")[0]
    names = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert names == [name for part in parts for name in part if name != "."]


def test_the_package_lists_every_module_by_group():
    first, *lines, last = architecture.layers()
    groups = zip(architecture.GROUPS, (first, *zip(*lines, strict=True), last), strict=True)
    wanted = [word for group, parts in groups for word in (*group.split(), *chain.from_iterable(parts)) if word != "."]
    listed = ast.get_docstring(ast.parse((REPOSITORY / "patchcore_kit/__init__.py").read_text(encoding="utf-8")))
    assert listed.partition("docs/architecture.md):")[2].split() == wanted
