"""The recipes of docs/architecture.md, followed to the letter on a copy of the package: one file and one test each."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = (REPOSITORY / "docs/architecture.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"^### An? (.+?)\n(.+?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))
# what the recipes take as given, and what follows from them without another line
AROUND = """
import csv
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from torch import nn

import patchcore_kit as pk
from patchcore_kit import coreset, plots
from patchcore_kit.cli import run_patchcore


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    return pk.draw_sample_data(folder, ("pill",), train=4, good=4, defective=6, size=64, progress=False)


@pytest.fixture
def table(root, tmp_path):
    category, lines = pk.load_category(root, "pill"), ["category,split,defect,image,mask"]
    for split, samples in (("train", category.train), ("test", category.test)):
        lines += [f"pill,{split},{each.defect},{each.path},{each.mask_path or ''}" for each in samples]
    path = tmp_path / "table.csv"
    path.write_text("\\n".join(lines))
    return path


def test_the_rest_follows(root, tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHCORE_WORK", str(tmp_path))
    network = ["--save_patchcore_model", str(tmp_path), "patch_core", "-b", "starter", "--scoring", "top"]
    data = ["sampler", "spread", "dataset", "--resize", "64", "--imagesize", "64", "mvtec", str(root)]
    done = CliRunner().invoke(run_patchcore, [*network, *data], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    row = pk.read_results(tmp_path / "project/group/results.csv").loc["mvtec_pill"]
    assert 0 <= row["instance_recall_5_low"] <= row["instance_recall_5"] <= 1
    detector = pk.load_detector(tmp_path / "project/group/models/mvtec_pill", progress=False)
    assert (detector.sampler, detector.scoring) == ("spread", "top")
    category = pk.load_category(root, "pill")
    before = len(detector.bank_)
    assert len(detector.extend(category.test[:2]).bank_) > before
    assert plots.image_histogram(detector.predict(category.test)).get_xlabel() == "image score (squared distance)"


def test_a_model_of_a_network_of_ones_own(root, tmp_path):
    torch.save(tiny().state_dict(), tmp_path / "tiny.pth")
    backbone = pk.load_backbone("tiny", ("layer2", "layer3"), weights=tmp_path / "tiny.pth")
    samples = pk.load_category(root, "pill").train
    pk.PatchCore(backbone, resize=64, imagesize=64, progress=False).fit(samples).save(tmp_path / "model")
    again = pk.PatchCore.load(tmp_path / "model", weights=tmp_path / "tiny.pth", progress=False)
    assert again.backbone.fingerprint == backbone.fingerprint
"""


def blocks(kind: str, text: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def follow(recipe: str, root: Path) -> list[str]:
    """Add the lines with a plus between those around them, as a person would -> the files that changed."""
    changed = []
    for name, hunks in re.findall(r"^--- (\S+)\n@@\n(.*)", "\n".join(blocks("diff", recipe)), re.MULTILINE | re.DOTALL):
        text = (root / name).read_text(encoding="utf-8")
        for hunk in hunks.split("@@\n"):
            lines = hunk.splitlines(keepends=True)
            before, after = ("".join(line[1:] for line in lines if line[0] in signs) for signs in (" ", " +"))
            assert text.count(before) == 1, f"{name} has this {text.count(before)} times:\n{before}"
            text = text.replace(before, after)
        (root / name).write_text(text, encoding="utf-8")
        changed.append(name)
    return changed


@pytest.mark.parametrize("name", ["sampler", "scoring rule", "metric", "backbone", "data set"])
def test_recipes_are_short_and_have_one_test(name):
    recipe = RECIPES[name]
    lines = [line for line in recipe.splitlines() if line.strip() and not line.startswith("```")]
    assert len(lines) < 20
    assert len(re.findall(r"^def test_", "".join(blocks("python", recipe)), re.MULTILINE)) == 1
    assert len(re.findall(r"^--- ", "".join(blocks("diff", recipe)), re.MULTILINE)) <= 1


def test_recipes(tmp_path):
    shutil.copytree(
        REPOSITORY / "patchcore_kit", tmp_path / "patchcore_kit", ignore=shutil.ignore_patterns("__pycache__")
    )
    changed = [name for recipe in RECIPES.values() for name in follow(recipe, tmp_path)]
    assert changed == [f"patchcore_kit/{name}.py" for name in ("coreset", "scoring", "metrics")]
    (tmp_path / "test_recipes.py").write_text(AROUND + "\n\n".join(blocks("python", "".join(RECIPES.values()))))
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_recipes.py"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "7 passed" in done.stdout, done.stdout + done.stderr
