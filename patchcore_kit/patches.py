"""Feature maps [(B, C, h, w), ...] -> patch rows (B*H*W, D), the vectors that PatchCore compares.

The reference gathers the p x p neighbourhood of every cell (9 copies of the maps), resizes the copies of deeper
layers to the first layer's grid, averages each layer's C*p*p values down to `pretrain_embed_dimension`, and the
layers' together down to `target_embed_dimension`. All of that is linear, and averaging over a neighbourhood commutes
with resizing. So here each layer is one small convolution on its own grid, whose weights are the product of the two
averages, and then one resize of the result: the same numbers, without the copies.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np
import scipy.sparse
import torch
import torch.nn.functional as F

from patchcore_kit.backbones import Backbone, tf32
from patchcore_kit.errors import SettingsError, whole_number
from patchcore_kit.tiles import Tiling

GROUP_CHANNELS = 8  # channels that one group of the convolution reads; 4 to 16 measured equally fast


class PatchEmbedding:
    """The linear map from the feature maps of `channels` (C of each layer) to patch rows.

    Raises SettingsError for dimensions or a patch size below 1.
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        pretrain_embed_dimension: int = 1024,
        target_embed_dimension: int = 1024,
        patchsize: int = 3,
        device: torch.device | str = "cpu",
    ):
        pretrain_embed_dimension = whole_number("pretrain_embed_dimension", pretrain_embed_dimension, 1)
        target_embed_dimension = whole_number("target_embed_dimension", target_embed_dimension, 1)
        patchsize = whole_number("patchsize", patchsize, 1)
        self.pretrain_embed_dimension = pretrain_embed_dimension
        self.target_embed_dimension = target_embed_dimension
        self.patchsize = patchsize
        merge = _averages(len(channels) * pretrain_embed_dimension, target_embed_dimension).tocsc()
        self.layers = []
        for i, c in enumerate(channels):
            own = slice(i * pretrain_embed_dimension, (i + 1) * pretrain_embed_dimension)
            matrix = merge[:, own] @ _averages(c * patchsize**2, pretrain_embed_dimension)  # (D, C*p*p)
            self.layers.append(_LayerEmbedding(matrix, c, patchsize, device))

    def grid(self, maps: Sequence[torch.Tensor]) -> tuple[int, int]:
        """(H, W) of the patches: the first layer's cells (one fewer each way for an even patch size).

        Raises SettingsError if there are none.
        """
        lost = self.patchsize - 1 - 2 * ((self.patchsize - 1) // 2)
        if min(side for x in maps for side in x.shape[-2:]) <= lost:
            raise SettingsError(f"patchsize {self.patchsize} leaves no patch on maps this small: use larger images")
        return maps[0].shape[-2] - lost, maps[0].shape[-1] - lost

    def __call__(self, maps: Sequence[torch.Tensor], out: torch.Tensor | None = None) -> torch.Tensor:
        """[(B, C, h, w) of each layer] -> (B*H*W, D), image by image, row by row; written into `out` if given."""
        h, w = self.grid(maps)
        if out is None:
            out = torch.empty(len(maps[0]) * h * w, self.target_embed_dimension, device=maps[0].device)
        cells = out.view(len(maps[0]), h, w, -1)
        done = 0
        for layer, x in zip(self.layers, maps, strict=True):
            y = layer.convolve(x)  # (B, stop - start, h_l, w_l)
            y = y.contiguous(memory_format=torch.channels_last)  # a GPU is forty times as slow to resize others
            if y.shape[-2:] != (h, w):
                y = F.interpolate(y, size=(h, w), mode="bilinear", align_corners=False)
            y = y.permute(0, 2, 3, 1)
            shared = done - layer.start  # a value averaged over the end of one layer and the start of the next
            cells[..., layer.start : done] += y[..., :shared]
            cells[..., done : layer.stop] = y[..., shared:]
            done = layer.stop
        return out

    def each(self, batches: Iterable[Sequence[torch.Tensor]], tiling: Tiling | None = None) -> Iterator[torch.Tensor]:
        """The rows of every batch in turn. With tiles, the rows of one tile after another.

        On a CPU all are in the same memory, for new memory costs as much as the embedding: those of one batch are gone
        with the next.
        """
        memory, tile = (), 0
        for maps in batches:
            needed = len(maps[0]) * math.prod(self.grid(maps))
            if maps[0].is_cuda:
                rows = self(maps)
            elif needed > len(memory):
                memory = rows = self(maps)
            else:
                rows = self(maps, out=memory[:needed])
            yield from tiling.answers(rows, tile, len(maps[0])) if tiling else [rows]
            tile += len(maps[0])

    def project(self, maps: Sequence[torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
        """[(B, C, h, w) of each layer], (d, D) -> (B*H*W, d): `self(maps) @ weight.T`, projected before the resize."""
        size, total = self.grid(maps), 0
        for layer, x in zip(self.layers, maps, strict=True):
            y = layer.convolve(x).permute(0, 2, 3, 1)
            part = weight[:, layer.start : layer.stop].contiguous()
            y = products(y.flatten(0, 2), part).view(*y.shape[:3], -1).permute(0, 3, 1, 2)
            if y.shape[-2:] != size:
                y = F.interpolate(y, size=size, mode="bilinear", align_corners=False)
            total = total + y
        return total.permute(0, 2, 3, 1).reshape(-1, len(weight))


@torch.inference_mode()
def embed(
    backbone: Backbone,
    images: torch.Tensor,
    pretrain_embed_dimension: int = 1024,
    target_embed_dimension: int = 1024,
    patchsize: int = 3,
) -> torch.Tensor:
    """(B, 3, H, W), ImageNet-normalised -> (B*h*w, target_embed_dimension), the reference's features.

    Rows come image by image, cell by cell of the first layer's grid; neighbourhoods are zero-padded.
    """
    embedding = PatchEmbedding(
        backbone.channels,
        pretrain_embed_dimension=pretrain_embed_dimension,
        target_embed_dimension=target_embed_dimension,
        patchsize=patchsize,
        device=backbone.device,
    )
    return embedding(backbone(images.to(backbone.device)))


def _averages(n: int, m: int) -> scipy.sparse.csr_matrix:
    """(m, n): adaptive average pooling of n values to m; value i averages floor(i*n/m) to ceil((i+1)*n/m)."""
    i = np.arange(m)
    starts, stops = i * n // m, -((-(i + 1) * n) // m)
    lengths = stops - starts
    indptr = np.concatenate([[0], lengths.cumsum()])
    indices = np.arange(indptr[-1]) - np.repeat(indptr[:-1] - starts, lengths)
    return scipy.sparse.csr_matrix((np.repeat(1 / lengths, lengths), indices, indptr), shape=(m, n))


class _LayerEmbedding:
    """One layer's part of the embedding: a convolution in groups that fills the values `start` to `stop`.

    Each value reads a few neighbouring channels only. So the values are cut into groups of equal length and each
    group is given the equally many channels that it needs, which for the usual sizes are just consecutive blocks.
    """

    def __init__(self, matrix: scipy.sparse.spmatrix, channels: int, patchsize: int, device: torch.device | str):
        entries = matrix.tocoo()
        self.start, self.stop = int(entries.row.min()), int(entries.row.max()) + 1
        self.groups = max(1, channels // GROUP_CHANNELS)
        self.padding = (patchsize - 1) // 2
        length = -(-(self.stop - self.start) // self.groups)
        row, channel = entries.row - self.start, entries.col // patchsize**2
        first, last = np.full(self.groups, channels), np.zeros(self.groups, dtype=int)
        np.minimum.at(first, row // length, channel)
        np.maximum.at(last, row // length, channel)
        width = max(1, int((last - first).max()) + 1)
        first = first.clip(0, channels - width)
        weight = np.zeros((self.groups * length, width, patchsize**2), dtype=np.float32)
        weight[row, channel - first[row // length], entries.col % patchsize**2] = entries.data
        self.weight = torch.from_numpy(weight).unflatten(-1, (patchsize, patchsize)).to(device)
        reads = (first[:, None] + np.arange(width)).ravel()
        in_place = np.array_equal(reads, np.arange(channels))
        self.reads = None if in_place else torch.from_numpy(reads).to(device)

    def convolve(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> (B, stop - start, h', w')."""
        if self.reads is not None:
            x = x.index_select(1, self.reads)
        with tf32(x.device, False):
            y = F.conv2d(x, self.weight.to(x.dtype), padding=self.padding, groups=self.groups)
        return y[:, : self.stop - self.start]


def products(rows: torch.Tensor, others: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """(N, D), (M, D), (M,) -> (N, M): rows @ others.T + bias.

    On a CPU as a convolution of one pixel, for which oneDNN uses all that any processor has. Products of matrices are
    MKL's, which takes twice as long on AMD's.
    """
    if rows.device.type != "cpu":
        with tf32(rows.device, False):
            return F.linear(rows, others, bias)
    image = rows.view(1, len(rows), 1, -1).permute(0, 3, 1, 2)  # (1, D, N, 1), channels last
    return F.conv2d(image, others[:, :, None, None], bias)[0, :, :, 0].T


class PatchRows:
    """The patch rows of many images, held as the feature maps that they are computed from, which take less memory.

    Of ResNet-18 that is a fifth, of wide ResNet-50 three quarters. Iterating gives the rows batch by batch, (n, D)
    each, gone with the next; a pass over all images costs a tenth of the network's time or less.

    batches: feature maps of consecutive batches, of images or of their tiles. storage: "float32" or "float16", in
    which maps are held and rows are given out. tiling: None: images are not cut. `grid` is that of a whole image.
    Raises SettingsError for maps that float16 cannot hold.
    """

    def __init__(
        self,
        embedding: PatchEmbedding,
        batches: Iterable[Sequence[torch.Tensor]],
        storage: str,
        tiling: Tiling | None = None,
    ) -> None:
        self.embedding, self.dtype = embedding, getattr(torch, storage)
        self.batches = [[_stored(x, self.dtype) for x in maps] for maps in batches]
        self.tiling = tiling or Tiling.whole((0, 0), embedding.grid(self.batches[0]))
        self.grid = self.tiling.grid
        self.device = self.batches[0][0].device
        images = sum(len(maps[0]) for maps in self.batches) // len(self.tiling)
        self.shape = images * math.prod(self.grid), embedding.target_embed_dimension

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self.embedding.each(([x.float() for x in maps] for maps in self.batches), self.tiling)

    def project(self, weight: torch.Tensor) -> Iterator[torch.Tensor]:
        """(d, D) -> the rows' projections, batch by batch, (n, d) each."""
        tile = 0
        for maps in self.batches:
            projected = self.embedding.project([x.float() for x in maps], weight)
            yield from self.tiling.answers(projected, tile, len(maps[0]))
            tile += len(maps[0])

    def alike(self, rounding: float) -> bool:
        """Whether the network sees the same in all images, up to a share of a map's largest value.

        A shorter batch may be computed in another way, and so be rounded otherwise.
        """
        if len(self.tiling) == 1:
            pairs = (zip(maps, self.batches[0], strict=True) for maps in self.batches)
            pairs = ((x, y[:1]) for pair in pairs for x, y in pair)
        else:  # of every image the tiles come in batches of the same lengths
            length = next(n for n, end in enumerate(self._ends(), 1) if end == len(self.tiling))
            pairs = (zip(maps, self.batches[i % length], strict=True) for i, maps in enumerate(self.batches))
            pairs = chain.from_iterable(pairs)
        return all(float((x.float() - y.float()).abs().max()) <= rounding * float(y.abs().max()) for x, y in pairs)

    def _ends(self) -> np.ndarray:
        return np.cumsum([len(maps[0]) for maps in self.batches])

    def only(self, images: np.ndarray) -> "PatchRows":
        """The rows of these images, (n,) ascending indices, without the memory of the others."""
        tiles = len(self.tiling)
        images = (images[:, None] * tiles + np.arange(tiles)).ravel()
        ends = self._ends()
        starts = ends - [len(maps[0]) for maps in self.batches]
        here = [images[(i <= images) & (images < j)] - i for i, j in zip(starts, ends, strict=True)]
        batches = ([x[some] for x in maps] for maps, some in zip(self.batches, here, strict=True) if len(some))
        return PatchRows(self.embedding, batches, str(self.dtype).removeprefix("torch."), self.tiling)

    def at(self, indices: np.ndarray) -> torch.Tensor:
        """(k,) indices -> (k, D) rows, in that order."""
        kept, start = torch.empty(len(indices), self.shape[1], dtype=self.dtype, device=self.device), 0
        for rows in self:
            here = np.flatnonzero((start <= indices) & (indices < start + len(rows)))
            kept[here] = rows[indices[here] - start].to(self.dtype)
            start += len(rows)
        return kept


def _stored(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype == torch.float16 and (most := float(x.abs().amax())) > torch.finfo(dtype).max:
        raise SettingsError(f"storage is 'float16', which cannot hold features up to {most:.3g}: choose 'float32'")
    return x.to(dtype)
