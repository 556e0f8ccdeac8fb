import numpy as np
import pytest
import torch

import patchcore_kit as pk
from patchcore_kit.memory_bank import torch_search


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(300, 24)).astype(np.float32)


@pytest.fixture
def queries():
    return torch.randn(50, 24, generator=torch.Generator().manual_seed(0))


def test_nearest_first_and_squared(rows, queries):
    distances, indices = pk.MemoryBank(rows).search(queries, 3)
    wanted = torch.cdist(queries, torch.from_numpy(rows)).square().sort(dim=1)
    assert (indices == wanted.indices[:, :3].numpy()).all()
    assert distances == pytest.approx(wanted.values[:, :3].numpy(), rel=1e-4)


def test_the_search_for_gpus_finds_the_same(rows, queries):
    distances, indices = pk.MemoryBank(rows).search(queries, 4)
    other, found = torch_search(queries, torch.from_numpy(rows), 4)
    assert (found.numpy() == indices).all()
    assert other.numpy() == pytest.approx(distances, rel=1e-4)


def test_rows_and_their_origins(rows):
    bank = pk.MemoryBank(rows, images=np.arange(300) // 100, cells=np.arange(300) % 100)
    assert len(bank) == 300
    assert (bank.rows == rows).all()
    assert (bank.rows_at(np.array([[3, 5], [0, 299]])) == rows[[[3, 5], [0, 299]]]).all()
    assert (bank.images[150], bank.cells[150]) == (1, 50)
    assert bank.scale == pytest.approx(np.square(rows - rows.mean(0)).sum(1).mean(), rel=1e-5)


@pytest.mark.parametrize("k", [0, 301])
def test_more_neighbours_than_rows(rows, queries, k):
    with pytest.raises(pk.SettingsError, match=f"cannot search {k} neighbours in a bank of 300 rows"):
        pk.MemoryBank(rows).search(queries, k)
