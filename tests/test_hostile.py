import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import patchcore_kit as pk
from patchcore_kit import weights
from patchcore_kit.calibration import Calibration


def test_hostile_files_in_short():
    """`python tests/hostile.py` has ten thousand cases, in some minutes: see there."""
    script = Path(__file__).with_name("hostile.py")
    run = subprocess.run([sys.executable, script, "--cases", "600", "--seed", "1"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-5000:]
    _, cases, *outcomes = next(line for line in run.stdout.splitlines() if line.startswith("all ")).split()
    assert int(cases) == sum(map(int, outcomes)) >= 600
    assert int(outcomes[-1]) == 0


# what it has found


@pytest.mark.parametrize("content", [{0: torch.zeros(1)}, {("a", "b"): torch.zeros(1), None: torch.zeros(2)}])
def test_weights_whose_names_are_none(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(pk.WeightsError, match=r"w\.pth holds no weights by name"):
        weights.read(tmp_path / "w.pth")


def test_weights_of_8_bits_are_read_as_what_they_are(tmp_path):
    save_file({"a": torch.tensor([0.5, -2.0]).to(torch.float8_e4m3fn)}, tmp_path / "w.safetensors")
    found = weights.read(tmp_path / "w.safetensors")["a"]
    assert found.dtype == torch.float32
    assert found.tolist() == [0.5, -2]


def test_weights_without_values(tmp_path):
    torch.save({"a": torch.zeros(3, device="meta")}, tmp_path / "w.pth")
    with pytest.raises(pk.WeightsError, match=r"w\.pth cannot be read as weights \(a is quantized, or has no values"):
        weights.read(tmp_path / "w.pth")


def test_weights_are_not_unpacked(tmp_path):
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as file, zipfile.ZipFile(tmp_path / "bomb.pth", "w", 8) as bomb:
        for name in file.namelist():
            bomb.writestr(name, file.read(name))
    weights.read(tmp_path / "w.pth")
    with pytest.raises(pk.WeightsError, match=r"bomb\.pth cannot be read as weights"):
        weights.read(tmp_path / "bomb.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Row Names,images\n" + "a\n" * 100_001, "has 100002 lines"),
        ("Row Names,images\n" + "\r" * 100_001, "has 100002 lines"),
        ("Row Names,images\na,1e999\n", "images holds numbers that are not finite"),
        ("Row Names,images\na,-inf\n", "images holds numbers that are not finite"),
    ],
)
def test_tables_that_cannot_be(tmp_path, content, message):
    (tmp_path / "results.csv").write_text(content, newline="")
    with pytest.raises(pk.ResultsError, match=rf"results\.csv \(it {message}|results\.csv \({message}"):
        pk.read_results(tmp_path / "results.csv")


def test_good_scores_from_which_nothing_follows():
    ones = np.arange(1.0, 31)
    assert Calibration.of({"good_scores": ones * 0, "good_peaks": ones, "alarm_rate": np.array(0.05)}) is None
    with pytest.raises(ValueError, match="no threshold is finite"):
        Calibration.of({"good_scores": ones, "good_peaks": ones, "alarm_rate": np.array(1e-40)})
