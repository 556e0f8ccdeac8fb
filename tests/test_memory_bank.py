import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

import patchcore_kit as pk
from patchcore_kit import memory_bank


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


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_the_index_for_gpus_finds_the_same(rows, queries, monkeypatch, storage):
    bank = pk.MemoryBank(rows, storage=storage)
    distances, indices = bank.search(queries, 4)
    monkeypatch.setattr(memory_bank, "BLOCK", 7 * 320)  # seven queries at a time
    bank._flat = memory_bank._TorchIndex(torch.from_numpy(rows).to(getattr(torch, storage)))
    bank.device = torch.device("cuda")  # only told so: its queries then stay tensors
    other, found = bank.search(queries, 4)
    assert (found == indices).all()
    assert other == pytest.approx(distances, rel=1e-4)
    assert bank.rows == pytest.approx(rows, rel=1e-3, abs=1e-4)
    assert (bank.rows_at(indices) == bank.rows[indices]).all()


def test_the_index_for_gpus_keeps_to_its_device():
    with FakeTensorMode(), torch.inference_mode():  # shapes and devices without values, or a GPU
        index = memory_bank._TorchIndex(torch.empty(300, 24, device="cuda", dtype=torch.float16))
        assert {index.mean.device.type, index._doubled.device.type, index._norms.device.type} == {"cuda"}
        assert index._doubled.shape == (320, 24)


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))],
)
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("alike", [0.01, 0.1, 10])
def test_the_index_for_gpus_is_exact_where_rounding_is_not(alike, k, device):
    generator = torch.Generator().manual_seed(0)
    rows = 100 + alike * torch.randn(3000, 64, generator=generator) + 20 * torch.randn(1, 64, generator=generator)
    rows[::3] += 5 * torch.randn(1000, 64, generator=generator)
    queries = rows[:500] + 0.3 * alike * torch.randn(500, 64, generator=generator)
    left_out = np.arange(3000) % 2 == 0
    distances, indices = memory_bank._TorchIndex(rows.to(device)).search(queries, k, left_out)
    wanted = (queries[:, None].double() - rows.double()).square().sum(2)
    wanted[:, left_out] = torch.inf
    wanted = wanted.sort(1)
    assert (indices == wanted.indices[:, :k].numpy()).mean() > 0.999
    assert distances == pytest.approx(wanted.values[:, :k].numpy(), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("k", [1, 3])
def test_the_index_for_gpus_sees_what_rounding_hides(k):
    """Values just below half of what rounding keeps, all of one sign: the largest error there is."""
    generator = torch.Generator().manual_seed(0)
    near = (1 + 2**-11 * torch.rand(400, 64, generator=generator)) * torch.randint(1, 3, (1, 64), generator=generator)
    rows = torch.cat([near, -near])  # whose mean is 0
    queries = near[:100] + 2**-12 * torch.rand(100, 64, generator=generator)
    index = memory_bank._TorchIndex(rows)
    wanted = torch.cdist(queries.double(), rows.double()).topk(k, largest=False).indices
    assert index._near(queries, index._norms, k).gather(1, wanted).all()
    by_rounded = (index._norms + memory_bank._rounded(queries) @ index._doubled.T).topk(k, largest=False).indices
    assert (by_rounded != wanted).any()
    index._longest, index._lost = torch.zeros(()), torch.zeros(())
    assert not index._near(queries, index._norms, k).gather(1, wanted).all()


def test_the_index_for_gpus_is_asked_for_nothing():
    index = memory_bank._TorchIndex(torch.randn(100, 8))
    assert [found.shape for found in index.search(torch.empty(0, 8), 2)] == [(0, 2), (0, 2)]


def test_the_index_for_gpus_tells_what_is_no_number():
    rows = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    queries = rows[:5].clone()
    queries[2, 3] = torch.nan
    distances, _ = memory_bank._TorchIndex(rows).search(queries, 1)
    assert (np.isfinite(distances[:, 0]) == [True, True, False, True, True]).all()
    rows[7] = torch.inf
    assert not np.isfinite(memory_bank._TorchIndex(rows).search(queries[:2], 1)[0]).any()


@pytest.fixture(scope="module")
def clusters():
    """4000 rows of 200 dimensions around 20 centres, and 10 images of 30 queries among them."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(20, 200, generator=generator) * 2
    rows = centres[torch.arange(4000) % 20] + torch.randn(4000, 200, generator=generator)
    queries = centres[torch.arange(300) % 20] + 1.2 * torch.randn(300, 200, generator=generator)
    return rows, queries


@pytest.mark.parametrize("storage", ["float32", "float16"])
@pytest.mark.parametrize("k", [1, 3])
def test_the_fast_search_misses_little_and_no_image_score(clusters, storage, k):
    rows, queries = clusters
    distances, _ = pk.MemoryBank(rows, storage=storage).search(queries, k, images=10)
    exact, _ = pk.MemoryBank(rows, search="flat").search(queries, k)
    loss = distances / exact - 1
    assert loss.min() > -1e-3  # none is too small, but for float16's rounding
    assert loss.mean() < 0.002
    scores, exact_scores = (d.mean(axis=1).reshape(10, 30).max(axis=1) for d in (distances, exact))
    assert scores == pytest.approx(exact_scores, rel=1e-5 if storage == "float32" else 1e-3)


def test_more_neighbours_than_the_clusters_looked_into_hold(clusters, monkeypatch):
    monkeypatch.setattr(memory_bank, "REACH", 0)  # one cluster
    rows, queries = clusters
    _, indices = pk.MemoryBank(rows).search(queries, 200)
    assert (indices >= 0).all()
    assert (np.sort(indices)[:, 1:] > np.sort(indices)[:, :-1]).all()


def test_float16_rows_come_back_as_they_are(clusters):
    rows, _ = clusters
    bank = pk.MemoryBank(rows.half(), storage="float16")
    assert (bank.rows == rows.half().float().numpy()).all()
    assert (pk.MemoryBank(bank.rows, storage="float16").rows == bank.rows).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"search": "quick"}, "unknown search 'quick'"), ({"storage": "int8"}, "unknown storage 'int8'")],
)
def test_settings_that_do_not_exist(rows, options, message):
    with pytest.raises(pk.SettingsError, match=message):
        pk.MemoryBank(rows, **options)


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


# without an image's own rows


@pytest.mark.parametrize("storage", ["float32", "float16"])
@pytest.mark.parametrize("search", ["flat", "fast", "gpu"])
def test_rows_of_an_image_left_out_are_as_if_never_there(storage, search, monkeypatch):
    generator = np.random.default_rng(0)
    rows, images = generator.normal(size=(1200, 24)).astype(np.float32), np.arange(1200) % 6
    queries = torch.from_numpy(rows[images == 2] + 0.01)
    bank = pk.MemoryBank(rows, images, search="flat" if search == "gpu" else search, storage=storage)
    if search == "gpu":
        bank._flat = memory_bank._TorchIndex(torch.from_numpy(rows).to(getattr(torch, storage)))
        bank.device = torch.device("cuda")  # only told so
    distances, indices = bank.search(queries, 2, left_out=bank.images == 2)
    others = pk.MemoryBank(rows[images != 2], search="flat", storage=storage)
    wanted, _ = others.search(queries, 2)
    assert (images[indices] != 2).all()
    assert np.mean(np.isclose(distances, wanted, rtol=1e-3)) > (0.99 if search == "fast" else 0.9999)
    assert (bank.search(queries, 1)[1][:, 0] == np.flatnonzero(images == 2)).mean() > 0.99  # there again


def test_what_is_prepared_is_taken_as_it_is(monkeypatch):
    rows = np.random.default_rng(0).normal(size=(1200, 24)).astype(np.float32)
    bank = pk.MemoryBank(rows)
    monkeypatch.setattr(memory_bank._Candidates, "_find", None)  # nothing is sought again
    again = pk.MemoryBank(rows, prepared=bank.prepared)
    queries = torch.from_numpy(rows[:300] + 0.3)
    for ours, theirs in zip(again.search(queries, 3), bank.search(queries, 3), strict=True):
        assert (ours == theirs).all()
    assert pk.MemoryBank(rows, search="flat").prepared == {}


def in_one(parts):
    return np.concatenate(list(parts))


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_rows_are_used_where_they_lie(clusters, storage):
    rows = clusters[0].numpy().astype(storage)
    rows.flags.writeable = False
    bank = pk.MemoryBank(rows, storage=storage)
    assert np.shares_memory(bank.stored, rows)
    copied = pk.MemoryBank(clusters[0].numpy().astype(storage), storage=storage)
    ours, theirs = (one.search(clusters[1], 2) for one in (bank, copied))
    assert not np.shares_memory(copied.stored, rows)
    assert (ours[0] == theirs[0]).all() and (ours[1] == theirs[1]).all()
    rows = clusters[0].numpy().astype("float16")
    rows.flags.writeable = False
    assert pk.MemoryBank(rows).stored.dtype == np.float32  # it is not what is asked for, so it is copied


def test_lists_are_used_where_they_lie(clusters, monkeypatch):
    rows, queries = clusters
    bank = pk.MemoryBank(rows)
    lists = in_one(bank.lists)
    lists.flags.writeable = False
    monkeypatch.setattr(memory_bank._Candidates, "_add", None)  # no row is looked at
    again = pk.MemoryBank(rows, prepared=bank.prepared | {"search_lists": lists})
    for k, images in ((1, 10), (3, 1)):
        ours, theirs = (one.search(queries, k, images=images) for one in (again, bank))
        assert (ours[0] == theirs[0]).all() and (ours[1] == theirs[1]).all()
    assert (in_one(again.lists) == lists).all()
    assert not in_one(pk.MemoryBank(rows, search="flat").lists or [np.zeros(0)]).size


def another(lists, place, value):
    """The same bytes but for a number of 8 bytes, at a place that is counted in them."""
    changed = lists.copy()
    changed[place : place + 8].view("<u8")[:] = value
    return changed


def test_lists_that_are_damaged_or_of_other_rows(clusters):
    rows, _ = clusters
    bank = pk.MemoryBank(rows)
    lists, header, count = in_one(bank.lists), memory_bank.LISTS.size, len(bank.prepared["search_centres"])
    first = header + 8 * count + 256 * int(lists[header : header + 8].view("<u8")[0])  # number in the first list
    second = int(lists[first + 8 : first + 16].view("<u8")[0])
    damaged = {
        "cut off": [lists[:0], lists[:40], lists[:-1], np.append(lists, lists[:1])],
        "of other rows": [another(lists, place, 2**60) for place in (0, 4, 12, 24)],
        "other lengths": [another(lists, header + 8 * i, size) for i in (0, count - 1) for size in (0, 2**64 - 1)],
        "not there": [another(lists, first, number) for number in (len(rows), 2**63, 2**64 - 1)],
        "lack rows": [another(lists, first, second)],
    }  # fmt: skip
    for message, contents in damaged.items():
        for content in contents:
            with pytest.raises(ValueError, match=message):
                pk.MemoryBank(rows, prepared=bank.prepared | {"search_lists": content})
    with pytest.raises(ValueError, match="of other rows"):
        pk.MemoryBank(rows[:-1], prepared=bank.prepared | {"search_lists": lists})


@pytest.mark.parametrize("offset", [0, 1])
def test_rows_that_may_not_be_written_to_stay_where_they_are(clusters, offset):
    rows, queries = clusters
    content = bytes(offset) + rows.numpy().tobytes()  # as behind the header of a file: at no multiple of four
    there = np.frombuffer(content, np.float32, offset=offset).reshape(rows.shape)
    wanted = pk.MemoryBank(rows.clone()).search(queries, 2, images=10)
    for storage in ("float32", "float16"):
        bank = pk.MemoryBank(there, storage=storage)
        assert np.shares_memory(bank.stored, there)
        for ours, theirs in zip(bank.search(queries, 2, images=10), wanted, strict=True):
            assert (ours == theirs).all()
    assert not np.shares_memory(pk.MemoryBank(rows).stored, rows.numpy())


@pytest.mark.parametrize("dimension", [30, 200])  # fewer than there are components, and more
@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_no_near_row_is_ruled_out_and_most_others_are(clusters, storage, dimension):
    rows, queries = (x[:, :dimension] + 20 for x in clusters)  # far from the origin, as features are
    bank = pk.MemoryBank(rows, storage=storage)
    between = torch.cdist(queries, torch.from_numpy(bank.rows), compute_mode="donot_use_mm_for_euclid_dist").square()
    least = between.kthvalue(3, dim=1).values
    found = list(bank._candidates.within(queries.numpy(), least.numpy()))
    for rows_, distances, most in zip(found, between, least, strict=True):
        assert set(torch.nonzero(distances <= most)[:, 0].tolist()) <= set(rows_.tolist())
    assert np.mean([len(rows_) for rows_ in found]) < 0.1 * len(rows)


def test_the_strangest_patch_is_settled_whatever_the_candidates_are(clusters, monkeypatch):
    rows, queries = clusters
    exact = pk.MemoryBank(rows, search="flat").search(queries, 2)[0].mean(axis=1).reshape(10, 30).max(axis=1)
    monkeypatch.setattr(memory_bank._Candidates, "__call__", lambda self, x, n, _: np.arange(n)[None].repeat(len(x), 0))
    found = pk.MemoryBank(rows).search(queries, 2, images=10)[0].mean(axis=1).reshape(10, 30).max(axis=1)
    assert found == pytest.approx(exact, rel=1e-5)


def test_too_few_rows_are_left(rows):
    bank = pk.MemoryBank(rows, np.arange(300) // 299)
    with pytest.raises(pk.SettingsError, match="cannot search 2 neighbours in a bank of 1 rows"):
        bank.search(torch.zeros(1, 24), 2, left_out=bank.images == 0)


# spacing


def spacing_of(patches, kept):
    bank = patches[torch.from_numpy(kept)]
    return memory_bank.spacing(memory_bank.nearby(bank, patches), bank)


def spacing_by_hand(patches, kept):
    between = torch.cdist(patches[kept], patches).square()
    near = between.topk(10, largest=False).values[:, 1:].mean(1)
    around = torch.cdist(patches[kept], patches[kept]).topk(5, largest=False).indices
    return near[around].mean(1).numpy()


def test_spacing_is_the_mean_of_nine_neighbours_over_five_rows():
    patches = torch.randn(290, 16, generator=torch.Generator().manual_seed(0))  # 7 clusters: all are searched
    kept = np.arange(0, 290, 9)
    assert spacing_of(patches, kept) == pytest.approx(spacing_by_hand(patches, kept), rel=2e-3)


def test_spacing_of_many_is_nearly_that():
    generator = torch.Generator().manual_seed(0)
    scales = 10 ** torch.linspace(-1, 0.5, 100).repeat_interleave(200)[:, None]
    patches = torch.randn(100, 16, generator=generator).repeat_interleave(200, 0) * 3
    patches = patches + scales * torch.randn(20_000, 16, generator=generator)
    kept = np.arange(0, 20_000, 10)
    ours, wanted = spacing_of(patches, kept), spacing_by_hand(patches, kept)
    assert np.corrcoef(np.log(ours), np.log(wanted))[0, 1] > 0.999
    assert -0.001 < np.mean(ours / wanted) - 1 < 0.05
    assert (spacing_of(patches, kept) == ours).all()


@pytest.mark.parametrize("n", [1, 2, 9, 500])
def test_spacing_of_equal_or_few_patches_is_a_number(n):
    assert spacing_of(torch.ones(n, 8), np.arange(n)).tolist() == [0] * n
    found = spacing_of(torch.randn(n, 8), np.arange(n))
    assert np.isfinite(found).all() and (found > 0).all() == (n > 1)
