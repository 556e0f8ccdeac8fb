"""Same seed, same files: the same bytes, wherever things lie; and the same to rounding, however they are computed.

Banks are large enough for the fast search, which looks into clusters that are found anew with every model.
"""

import shutil

import faiss
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from threadpoolctl import threadpool_limits

import patchcore_kit as pk
from patchcore_kit.cli import run_patchcore
from patchcore_kit.memory_bank import FEW

ROUNDING = 1e-5  # by which scores, maps and thresholds may differ with batches and threads: see docs/reliability.md


def trained(data, results, monkeypatch, *, scoring="distance", dataset=()):
    """The files of a run, by name; of the table what does not depend on the machine."""
    monkeypatch.setenv("PATCHCORE_WORK", str(results))
    outputs = ("--save_patchcore_model", "--save_predictions")
    network = ("patch_core", "-b", "starter", "--scoring", scoring)
    args = (*outputs, results, *network, "sampler", "approx_greedy_coreset", "dataset", *dataset, "mvtec", data)
    result = CliRunner().invoke(run_patchcore, [str(a) for a in args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    run = results / "project" / "group"
    found = {path.relative_to(run).as_posix(): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    table = pd.read_csv(run / "results.csv", dtype=str).drop(columns=[*pk.COSTS, "checksum"])
    return found | {"results.csv": table.to_csv().encode()}


@pytest.fixture(params=["distance", "density"])
def first(request, sample_root, tmp_path, monkeypatch):
    """(scoring, the files of a run as anybody would start it)."""
    files = trained(sample_root, tmp_path / "first", monkeypatch, scoring=request.param)
    model = pk.load_detector(tmp_path / "first/project/group/models/mvtec_pill", progress=False)
    assert len(model.bank_) > FEW and model.bank_.prepared
    return request.param, files


def test_workers_places_and_the_order_of_files(first, sample_root, tmp_path, monkeypatch):
    scoring, files = first
    elsewhere = tmp_path / "elsewhere" / sample_root.name
    for path in sorted(sample_root.rglob("*"), reverse=True):  # in another order, which folders may list them in
        if path.is_file():
            target = elsewhere / path.relative_to(sample_root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    dataset = ("--num_workers", "1", "--no_image_cache")
    assert trained(elsewhere, tmp_path / "second", monkeypatch, scoring=scoring, dataset=dataset) == files


def check_same(tmp_path, runs):
    """Models of the same patches, which say the same."""
    for name in ("pill", "weave"):
        one, other = (
            pk.load_detector(tmp_path / run / f"project/group/models/mvtec_{name}", progress=False) for run in runs
        )
        for of in ("images", "cells"):
            assert (getattr(one.bank_, of) == getattr(other.bank_, of)).all()
        np.testing.assert_allclose(one.bank_.rows, other.bank_.rows, rtol=ROUNDING, atol=ROUNDING)
        one, other = (
            pk.Predictions.load(tmp_path / run / f"project/group/predictions/mvtec_{name}.npz") for run in runs
        )
        np.testing.assert_allclose(one.scores, other.scores, rtol=ROUNDING)
        np.testing.assert_allclose(one.maps, other.maps, rtol=ROUNDING)
        assert one.alarm_threshold == pytest.approx(other.alarm_threshold, rel=ROUNDING)
        assert one.verdicts.tolist() == other.verdicts.tolist()


def test_the_size_of_batches(first, sample_root, tmp_path, monkeypatch):
    trained(sample_root, tmp_path / "second", monkeypatch, scoring=first[0], dataset=("--batch_size", "3"))
    check_same(tmp_path, ("first", "second"))


def test_the_number_of_threads(first, sample_root, tmp_path, monkeypatch):
    threads = torch.get_num_threads(), faiss.omp_get_max_threads()
    try:
        torch.set_num_threads(1)
        faiss.omp_set_num_threads(1)
        with threadpool_limits(1):
            trained(sample_root, tmp_path / "second", monkeypatch, scoring=first[0])
    finally:
        torch.set_num_threads(threads[0])
        faiss.omp_set_num_threads(threads[1])
    check_same(tmp_path, ("first", "second"))
