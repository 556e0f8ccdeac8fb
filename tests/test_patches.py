import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

from patchcore_kit.backbones import tf32
from patchcore_kit.errors import SettingsError
from patchcore_kit.patches import PatchEmbedding, PatchRows


def by_unfolding(maps, pretrain, target, patchsize):
    """The definition, step by step: gather neighbourhoods, resize them, average, merge, average."""
    padding = (patchsize - 1) // 2
    layers = []
    for x in maps:
        b, c, h, w = x.shape
        h, w = (n + 2 * padding - patchsize + 1 for n in (h, w))
        patches = F.unfold(x, patchsize, padding=padding).view(b, c * patchsize**2, h, w)
        if not layers:
            size = (h, w)
        patches = F.interpolate(patches, size=size, mode="bilinear", align_corners=False)
        rows = patches.permute(0, 2, 3, 1).reshape(-1, 1, c * patchsize**2)
        layers.append(F.adaptive_avg_pool1d(rows, pretrain))
    return F.adaptive_avg_pool1d(torch.cat(layers, dim=2), target)[:, 0]


@pytest.mark.parametrize(
    ("shapes", "pretrain", "target", "patchsize"),
    [
        ([(512, 28, 28), (1024, 14, 14)], 1024, 1024, 3),  # wide ResNet-50
        ([(128, 10, 10), (256, 5, 5)], 1024, 384, 3),
        ([(24, 9, 7), (40, 5, 4), (112, 3, 2)], 512, 500, 3),  # averages that cross from layer to layer
        ([(64, 8, 8), (37, 4, 4)], 1000, 700, 5),
        ([(5, 6, 6)], 64, 100, 1),  # more values than there are channels
        ([(48, 8, 6), (96, 4, 3)], 100, 64, 2),  # even patch size
        ([(30, 4, 4), (30, 8, 8)], 50, 33, 3),  # the finer layer second
    ],
)
def test_equals_the_definition(shapes, pretrain, target, patchsize):
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, *shape, generator=generator) for shape in shapes]
    embedding = PatchEmbedding(
        [shape[0] for shape in shapes],
        pretrain_embed_dimension=pretrain,
        target_embed_dimension=target,
        patchsize=patchsize,
    )
    wanted = by_unfolding(maps, pretrain, target, patchsize)
    height, width = embedding.grid(maps)
    out = torch.full((2 * height * width, target), torch.nan)  # whatever was there before does not matter
    assert embedding(maps, out=out) is out
    assert torch.allclose(out, wanted, atol=1e-5)
    first, last = (rows.clone() for rows in embedding.each([maps, [x[1:] for x in maps]]))  # its last batch is smaller
    assert torch.allclose(first, wanted, atol=1e-5)
    assert torch.allclose(last, wanted[height * width :], atol=1e-5)
    assert torch.allclose(embedding([x.to(memory_format=torch.channels_last) for x in maps]), wanted, atol=1e-5)
    weight = torch.randn(16, target, generator=generator) / target**0.5
    assert torch.allclose(embedding.project(maps, weight), wanted @ weight.T, atol=1e-5)


def test_no_patch_left():
    with pytest.raises(SettingsError, match="patchsize 2 leaves no patch"):
        PatchEmbedding([8], patchsize=2)([torch.zeros(1, 8, 1, 1)])


@pytest.mark.parametrize("name", ["pretrain_embed_dimension", "target_embed_dimension", "patchsize"])
def test_sizes_below_one(name):
    with pytest.raises(SettingsError, match=f"{name} is 0"):
        PatchEmbedding([8], **{name: 0})


@pytest.mark.parametrize(("noise", "alike"), [(0, True), (3e-4, True), (0.1, False)])
def test_rounding_in_a_shorter_batch_makes_no_other_image(noise, alike):
    """As of a GPU that computes a single image in another way."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 5, 6, 6, generator=generator)
    last = image + noise * torch.rand(image.shape, generator=generator)
    rows = PatchRows(PatchEmbedding([5]), [[image.repeat(8, 1, 1, 1)], [last]], "float32")
    assert rows.alike(1e-3) == alike


def test_float16_refuses_what_it_cannot_hold():
    maps = torch.full((1, 5, 6, 6), 7e4)
    with pytest.raises(SettingsError, match=r"cannot hold features up to 7e\+04: choose 'float32'"):
        PatchRows(PatchEmbedding([5]), [[maps]], "float16")


def test_threads_take_turns_in_what_they_tell_gpus():
    seen, place = [], torch.backends.cuda.matmul
    before = place.allow_tf32

    def run(allowed):
        for _ in range(50):
            with tf32(torch.device("cuda"), allowed):
                time.sleep(1e-4)
                seen.append(place.allow_tf32 == allowed)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, [True, False, True, False]))
    assert len(seen) == 200 and all(seen) and place.allow_tf32 == before


@pytest.mark.parametrize("allowed", [True, False])
def test_gpus_are_told_whether_they_may_round(allowed):
    places = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [place.allow_tf32 for place in places]
    with tf32(torch.device("cuda"), allowed):
        assert [place.allow_tf32 for place in places] == [allowed, allowed]
        with tf32(torch.device("cpu"), not allowed):
            assert [place.allow_tf32 for place in places] == [allowed, allowed]
        with tf32(torch.device("cuda"), not allowed):
            assert [place.allow_tf32 for place in places] == [not allowed, not allowed]
        assert [place.allow_tf32 for place in places] == [allowed, allowed]
    assert [place.allow_tf32 for place in places] == before
