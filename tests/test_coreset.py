import numpy as np
import pytest
import torch

import patchcore_kit as pk
from patchcore_kit import coreset
from patchcore_kit.coreset import select


def plain_loop(features, k, starts):
    """Greedy k-center one row at a time, as the paper's Algorithm 1 has it."""
    distances = torch.cdist(features, features[starts]).mean(1)
    chosen = []
    for _ in range(k):
        chosen.append(int(distances.argmax()))
        distances = torch.minimum(distances, torch.cdist(features, features[chosen[-1:]])[:, 0])
        distances[chosen] = -1
    return np.array(chosen)


@pytest.mark.parametrize(("n", "d", "k"), [(1, 3, 1), (12, 4, 12), (500, 2, 120), (3000, 16, 400), (5000, 64, 60)])
def test_equals_the_plain_loop(n, d, k):
    features = torch.randn(n, d, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    starts = np.arange(min(10, n))
    assert (pk.greedy_coreset(features, k, starts, progress=False) == plain_loop(features, k, starts)).all()


@pytest.mark.parametrize("n", [6, 7, 8, 9, 15])
def test_equals_the_plain_loop_around_the_size_of_a_pass(monkeypatch, n):
    monkeypatch.setattr(coreset, "CANDIDATES", 7)
    features = torch.randn(n, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    starts = np.arange(3)
    assert (pk.greedy_coreset(features, n, starts, progress=False) == plain_loop(features, n, starts)).all()


def test_equals_the_plain_loop_in_many_small_passes(monkeypatch):
    monkeypatch.setattr(coreset, "CANDIDATES", 7)
    monkeypatch.setattr(coreset, "BLOCK", 64)
    features = torch.randn(800, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    starts = np.arange(10)
    assert (pk.greedy_coreset(features, 200, starts, progress=False) == plain_loop(features, 200, starts)).all()


@pytest.mark.parametrize("pivots", [1, 7, 150])
def test_equals_the_plain_loop_where_shells_are_left_out(monkeypatch, pivots):
    monkeypatch.setattr(coreset, "CANDIDATES", 7)
    monkeypatch.setattr(coreset, "PIVOTS", pivots)
    monkeypatch.setattr(coreset, "SHELL", 5)
    monkeypatch.setattr(coreset, "ROWS", 64)
    generator = torch.Generator().manual_seed(1)
    clusters = torch.randn(30, 1, 3, generator=generator, dtype=torch.float64) * 9
    features = (clusters + torch.randn(30, 27, 3, generator=generator, dtype=torch.float64)).flatten(0, 1)
    computed = []
    baddbmm = torch.baddbmm

    def counted(bias, rows, picks, **options):
        computed.append(rows.shape[0] * rows.shape[1] * picks.shape[2])
        return baddbmm(bias, rows, picks, **options)

    monkeypatch.setattr(torch, "baddbmm", counted)
    starts = np.arange(10)
    assert (pk.greedy_coreset(features, 300, starts, progress=False) == plain_loop(features, 300, starts)).all()
    assert 0 < sum(computed) < 0.9 * 300 * len(features)  # at least a tenth of all distances was never computed


@pytest.mark.parametrize("sampler", ["greedy_coreset", "approx_greedy_coreset"])
def test_rows_that_stand_for_others(monkeypatch, sampler):
    """A spread adds to the square of how far a row is from the choices; none is the sampler's own choice."""
    monkeypatch.setattr(coreset, "CANDIDATES", 7)
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(400, 5, generator=generator, dtype=torch.float64)
    spreads = 4 * torch.rand(400, generator=generator, dtype=torch.float64)
    first, _ = coreset.SAMPLERS[sampler].choose(rows, 0, 400, 1, 0, False)
    squares = torch.cdist(rows, rows).square()
    found, uncovered = coreset.select_again(rows, torch.zeros(400), 120, sampler, 0, False)
    assert (found == coreset.SAMPLERS[sampler].choose(rows, 0, 400, 120, 0, False)[0]).all() and found[0] == first[0]
    found, uncovered = coreset.select_again(rows, spreads, 120, sampler, 0, False)
    for count in range(20, 120):  # from there on the start does not count
        far = squares[found[:count]].amin(0) + spreads
        far[found[:count]] = -1
        assert far[found[count]] == pytest.approx(float(far.max()))
    left = np.delete(np.arange(400), found)
    assert torch.allclose(uncovered[left], squares[found].amin(0)[left])


def test_the_estimate_grows_with_the_work():
    features = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    few, many = (coreset.estimate_seconds(features, k) for k in (4, 1600))
    assert 0 < few < many < 10


def test_duplicates_are_chosen_once():
    features = torch.randn(20, 8, generator=torch.Generator().manual_seed(0)).repeat(5, 1)
    chosen = pk.greedy_coreset(features, 100, progress=False)
    assert sorted(chosen) == list(range(100))
    assert set(chosen[:20] % 20) == set(range(20))  # every distinct row comes before the first copy


def test_seed_draws_the_start_and_the_projection():
    features = torch.randn(2000, 200, generator=torch.Generator().manual_seed(0))
    one, again, other = (select(features, seed=seed, progress=False) for seed in (0, 0, 1))
    assert (one == again).all()
    assert (one != other).any()


def test_no_projection_and_arrays():
    features = torch.randn(300, 200, generator=torch.Generator().manual_seed(0))
    plain = pk.greedy_coreset(features.numpy(), 30, seed=3, progress=False)
    assert (select(features, percentage=0.1, projection=None, seed=3, progress=False) == plain).all()


@pytest.mark.parametrize("sampler", ["greedy_coreset", "approx_greedy_coreset", "random"])
def test_samplers_keep_the_percentage(sampler):
    features = torch.randn(1005, 20, generator=torch.Generator().manual_seed(0))
    chosen = select(features, sampler, 0.1, progress=False)
    assert len(set(chosen.tolist())) == 100  # int(1005 * 0.1), as the reference counts


def test_greedy_covers_better_than_random():
    features = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    radius = {
        sampler: torch.cdist(features, features[select(features, sampler, 0.05, projection=None, progress=False)])
        .amin(1)
        .max()
        for sampler in ("approx_greedy_coreset", "random")
    }
    assert radius["approx_greedy_coreset"] < radius["random"]


def test_row_norms_equal_those_of_the_matrix():
    features = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    norms = torch.cdist(features, features).norm(dim=1)
    assert torch.allclose(coreset._matrix_row_norms(features), norms, rtol=1e-5)


def test_identity_keeps_all_in_order():
    assert (select(torch.zeros(7, 2), "identity", 0.1) == np.arange(7)).all()


@pytest.mark.parametrize(
    ("sampler", "percentage", "message"),
    [
        ("nosuch", 0.1, "unknown sampler 'nosuch'"),
        ("random", 0, "percentage is 0"),
        ("random", 2, "percentage is 2"),
        ("approx_greedy_coreset", -0.1, "percentage is -0.1"),
        ("approx_greedy_coreset", 0.01, "keeps none of 20 patches"),
    ],
)
def test_settings_that_cannot_work(sampler, percentage, message):
    with pytest.raises(pk.SettingsError, match=message):
        select(torch.zeros(20, 2), sampler, percentage)


def test_seeds_that_cannot_work():
    for seed in (-1, 0.5, None):
        with pytest.raises(pk.SettingsError, match=f"seed is {seed}"):
            pk.greedy_coreset(torch.zeros(20, 2), 2, seed=seed)


def test_more_than_there_are():
    with pytest.raises(pk.SettingsError, match="cannot choose 21 of 20 rows"):
        pk.greedy_coreset(torch.zeros(20, 2), 21)


def test_arrays_and_tensors_alike():
    rows = np.random.default_rng(0).random((200, 40), dtype=np.float32)
    for sampler in coreset.SAMPLERS:
        chosen = [coreset.select(kind, sampler, 0.1, projection=16) for kind in (rows, torch.from_numpy(rows))]
        assert (chosen[0] == chosen[1]).all()
