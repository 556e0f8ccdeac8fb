"""The benchmark's commands run, and their figures are there; how large they are is for an idle machine to say."""

import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def test_stages(sample_root):
    command = [
        sys.executable,
        "benchmarks/stages.py",
        "--data",
        str(sample_root),
        "--category",
        "pill",
        "--repeat",
        "1",
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for stage in ("floor", "decode, resize", "backbone", "embedding", "coreset", "search", "maps", "all", "metrics"):
        assert re.search(rf"^{stage} +\d+\.\d\d", done.stdout, re.MULTILINE), stage
    for ratio in ("fit / floor", "predict / floor", "embedding / backbone", "cached norms / batched", "the imports"):
        figure = re.search(rf"{ratio}: (\d+\.\d+)", done.stdout)
        assert float(figure.group(1)) > 0, ratio


def test_backbones(sample_root, resnet18_file, monkeypatch):
    monkeypatch.setenv("PATCHCORE_WEIGHTS", str(resnet18_file.parent))
    options = ["--data", str(sample_root), "--whole", str(sample_root), "--repeat", "1"]
    command = [sys.executable, "benchmarks/backbones.py", *options]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"starter +resnet18 +random, same shape", done.stdout)
    for row in ("ms/image", "ms alone", "MB", "sample: image AUROC", "sample: pixel AUROC"):
        assert re.search(rf"^{row}( +\d+\.\d+){{3}}$", done.stdout, re.MULTILINE), row
