"""The memory bank: the rows kept, where each came from, the search for the nearest, and how far apart good ones lie.

Distances are squared Euclidean, as FAISS and the reference have them.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import chain

import faiss
import numpy as np
import torch
import torch.nn.functional as F

from patchcore_kit.backbones import tf32
from patchcore_kit.errors import SettingsError, check_choice
from patchcore_kit.patches import products

SEARCHES = ("fast", "flat")
STORAGES = ("float32", "float16")
COMPONENTS = 128  # principal components of the rows, by which the fast search chooses candidates
REACH = 0.7  # it looks into clusters farther away than the nearest one by up to so many of the clusters' radii
MOST = 128  # clusters that it looks into, the nearest ones
CANDIDATES = 2  # times the fourth root of M: rows it compares in full, for each neighbour that is asked for
FEW = 512  # rows up to which there is nothing to gain
SAMPLE = 4096  # rows that the components are taken from
SLACK = 2**-8  # of all lengths, by which rounding, most of it to float16, may change one of them
ROWS = 2**14  # rows turned into float32 at a time
QUERIES = 512  # compared in full at a time
WIDTH = 64  # rows that a query is compared with at a time where there is no end of them
BLOCK = 2**27  # distances computed at once on a GPU: half a gigabyte
WHOLE = 64  # rows there are filled up to a multiple of: its products of matrices are slow otherwise
SUMMED = 2**-12  # of both lengths, by which adding up may change a product there
FEWER = 64  # rows that may be the nearest there, and are compared one by one; of more, all are
PAIRS = 2**16  # compared so at a time
NEIGHBOURS = 9  # whose distances make a row's spacing
AROUND = 5  # rows of the bank, itself among them, over which it is averaged: one row's is uneven
PREPARED = ("search_axes", "search_origin", "search_centres", "search_reach")
CLUSTERS, PROBES = 400, 8  # of all patches, and how many of them are searched for the neighbours
LISTS = struct.Struct("<4sQQ4sQ")  # how FAISS begins inverted lists: kind, lists, bytes of a code, kind, lists


def check(search: str, storage: str) -> None:
    """Raises SettingsError for an unknown search or storage."""
    check_choice("search", search, SEARCHES)
    check_choice("storage", storage, STORAGES)


class MemoryBank:
    """Rows (M, D) with a nearest-neighbour search: by FAISS on the CPU, by torch on a GPU, where the rows stay.

    rows: (M, D), as float32 or float16. An array that may not be written to, as a mapped file is, is used where it
        lies if it is float32, whatever the storage, or is stored as it is; others are copied.
    images, cells: (M,) the training image and the cell of its grid, row by row, that each row came from; None where
        that is not known (models of the reference do not record it).
    search: "flat" compares every query with every row, which a GPU always does. "fast" compares in full only about
        twice the fourth root of M rows, those that are nearest in 128 principal components, sought in a few of about
        sqrt(M) clusters. It may find the second nearest instead; benchmarks/README.md says how often, and by how much.
    storage: "float32", or "float16" for half the memory and distances within 0.1 %.
    spacing: (M,) how far apart good patches lie around each row (see `spacing`), None where nobody asks for it.
    prepared: what a bank of the same rows has found out for the fast search (see there), which takes seconds. With its
        `lists` as well, `search_lists` in one array of bytes that is used where it lies, no row need be looked at.

    Raises SettingsError for an unknown search or storage, ValueError for lists that are of other rows or damaged.
    """

    def __init__(
        self,
        rows: np.ndarray | torch.Tensor,
        images: np.ndarray | None = None,
        cells: np.ndarray | None = None,
        device: torch.device | str = "cpu",
        *,
        search: str = "fast",
        storage: str = "float32",
        spacing: np.ndarray | None = None,
        prepared: Mapping[str, np.ndarray] | None = None,
    ):
        check(search, storage)
        self.images, self.cells, self.spacing = images, cells, spacing
        self.device = torch.device(device)
        self._candidates = None
        if self.device.type != "cpu":
            dtype = getattr(torch, storage)
            if isinstance(rows, np.ndarray):  # a mapped one comes block by block
                there = torch.empty(rows.shape, dtype=dtype, device=self.device)
                for part, block in zip(there.split(ROWS), _blocks(rows), strict=True):
                    part.copy_(block)
                rows = there
            self._flat = _TorchIndex(rows.to(self.device, dtype))
            return
        rows = rows.cpu().numpy() if isinstance(rows, torch.Tensor) else rows
        in_place = rows.dtype in (np.float32, storage) and rows.flags.c_contiguous and not rows.flags.writeable
        self._rows = rows if in_place else np.array(rows, dtype=storage, order="C")
        d, half = rows.shape[1], faiss.ScalarQuantizer.QT_fp16
        whole = self._rows.dtype == np.float32
        self._flat = faiss.IndexFlatL2(d) if whole else faiss.IndexScalarQuantizer(d, half)
        codes, none = self._rows.reshape(-1).view(np.uint8), self._flat.codes.owner  # there is nothing that FAISS owns
        self._flat.codes = faiss.MaybeOwnedVectorUInt8.create_view(faiss.swig_ptr(codes), len(codes), none)
        self._flat.ntotal = len(rows)
        if search == "fast" and len(rows) > FEW:
            self._candidates = _Candidates(self._rows, prepared or {})

    @property
    def rows(self) -> np.ndarray:
        """(M, D) float32: a copy of what is stored."""
        return self.stored.astype(np.float32)

    def rows_at(self, indices: np.ndarray) -> np.ndarray:
        """(...,) indices -> (..., D) float32."""
        if self.device.type != "cpu":
            return self._flat.rows[torch.from_numpy(indices).to(self._flat.rows.device)].float().cpu().numpy()
        return self._rows[indices].astype(np.float32, copy=False)

    @property
    def stored(self) -> np.ndarray:
        """(M, D) as they are stored, float32 or float16: the bank's own memory, or a copy of a GPU's."""
        return self._rows if self.device.type == "cpu" else self._flat.rows.cpu().numpy()

    def __len__(self) -> int:
        return self._flat.ntotal

    @property
    def prepared(self) -> dict[str, np.ndarray]:
        """What the fast search has found out about the rows, by name; nothing where there is none."""
        return self._candidates.arrays() if self._candidates else {}

    @property
    def lists(self) -> Iterable[np.ndarray]:
        """What else it has found out, of each row, as bytes that follow one another; nothing where there is none."""
        return self._candidates.packed() if self._candidates else ()

    @cached_property
    def scale(self) -> float:
        """Mean squared distance of the rows to their mean (1 if they are all equal): an ensemble divides by it."""
        blocks, total = _blocks(self.stored), np.zeros((2, self.stored.shape[1]))
        first = next(blocks).double()
        for block in chain([first], (block.double() for block in blocks)):
            block = block - first.mean(0)
            total += torch.stack([block.sum(0), block.square().sum(0)]).numpy()
        mean, square = total / len(self)
        return max(0.0, float((square - mean**2).sum())) or 1.0

    def search(
        self, queries: torch.Tensor, k: int = 1, *, images: int = 1, left_out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(Q, D) -> squared distances (Q, k), nearest first, and the rows' indices (Q, k).

        images: how many the queries are the patches of, equally many each. For the patch of each whose distance, the
            mean of its k, is the largest, the fast search gives the same as the flat one.
        left_out: (M,) bool, rows that are not looked at, as if the bank did not have them. For the strangest patches
            the fast search is then what it is for all.

        Raises SettingsError if the bank holds fewer than k rows.
        """
        there = len(self) - (0 if left_out is None else int(left_out.sum()))
        if not 1 <= k <= there:
            raise SettingsError(f"cannot search {k} neighbours in a bank of {there} rows: ask for 1 to {there}")
        if self.device.type != "cpu":
            return self._flat.search(queries, k, left_out)
        chosen = None if left_out is None else faiss.IDSelectorBitmap(np.packbits(~left_out, bitorder="little"))
        flat = None if chosen is None else faiss.SearchParameters(sel=chosen)
        queries = queries.cpu().contiguous()
        if not self._candidates:
            return self._flat.search(queries.numpy(), k, params=flat)
        indices = self._candidates(queries, k * round(CANDIDATES * len(self) ** 0.25), chosen)
        queries = queries.numpy()
        distances, indices = _nearest(self._distances(queries, indices), indices, k)
        few = np.flatnonzero(indices[:, -1] < 0)  # the clusters looked into held too few
        if len(few):
            distances[few], indices[few] = self._flat.search(queries[few], k, params=flat)
        if left_out is not None:
            return distances, indices
        settled = np.zeros(len(queries), dtype=bool)
        settled[few] = True
        first = np.arange(images) * (len(queries) // images)
        while True:
            strangest = first + distances.mean(axis=1).reshape(images, -1).argmax(axis=1)
            again = strangest[~settled[strangest]]
            if not len(again):
                return distances, indices
            distances[again], indices[again] = self._exact(queries[again], distances[again, -1], k)
            settled[again] = True

    def _exact(self, queries: np.ndarray, within: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(Q, D), (Q,) squared distances that k rows are within -> squared distances (Q, k) and indices (Q, k)."""
        found = []
        for query, rows in zip(queries, self._candidates.within(queries, within), strict=True):
            if len(rows) < k:  # by what is not a number
                found.append(self._flat.search(query[None], k))
                continue
            rows = np.pad(rows, (0, -len(rows) % WIDTH), constant_values=-1).reshape(-1, WIDTH)
            distances = self._distances(np.broadcast_to(query, (len(rows), len(query))), rows)
            found.append(_nearest(distances.reshape(1, -1), rows.reshape(1, -1), k))
        return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))

    def _distances(self, queries: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """(Q, D), (Q, n) indices of rows -> (Q, n) squared distances, infinite where an index is -1."""
        distances = np.empty(indices.shape, dtype=np.float32)
        for start in range(0, len(queries), QUERIES):
            x, y, out = (array[start : start + QUERIES] for array in (queries, indices, distances))
            x, rows, places = np.ascontiguousarray(x), self._rows, y.clip(0)
            if rows.dtype == np.float16:  # FAISS compares float32
                used, places = np.unique(places, return_inverse=True)
                rows = self.rows_at(used)
            each = np.arange(len(x)).repeat(y.shape[1])
            pointers = [faiss.swig_ptr(array) for array in (x, each, rows.reshape(-1), places, out)]
            faiss.pairwise_indexed_L2sqr(x.shape[1], y.size, *pointers)
        distances[indices < 0] = np.inf
        return distances


def _nearest(distances: np.ndarray, indices: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(Q, n) distances and indices -> those of the k least, least first."""
    least = distances.argsort(axis=1)[:, :k]
    return np.take_along_axis(distances, least, axis=1), np.take_along_axis(indices, least, axis=1)


def _blocks(rows: np.ndarray) -> Iterator[torch.Tensor]:
    """(M, D) -> its rows, in order, as float32, a few at a time."""
    for start in range(0, len(rows), ROWS):
        yield torch.from_numpy(np.array(rows[start : start + ROWS], dtype=np.float32))


class _Candidates:
    """Which rows may be the nearest to a query: those with the nearest principal components, in the nearest clusters.

    How many clusters is up to the query: those whose centre is farther away than the nearest centre by at most 0.7
    times the clusters' radius, the root mean square of their rows' distances to the centre. That is 6 of 128 on
    MVTec's bottle, for most of its patches lie well inside a cluster, and half of them on magnetic tiles, whose lie
    between many. The nearest 128 are enough in larger banks.

    Of each row it keeps the components, in float16 and by cluster, and the length of its rest: what is left of it, from
    the rows' mean, beside the components. Components and rest are at right angles, and two rests are at least as far
    apart as their lengths: so rows that cannot be near are told without comparing them (`within`).
    """

    def __init__(self, rows: np.ndarray, prepared: Mapping[str, np.ndarray]) -> None:
        """Finds out of the rows (M, D) what is not prepared. Raises ValueError as MemoryBank."""
        known = all(name in prepared for name in PREPARED)
        if known:
            self.axes, self.origin, self.centres, self.reach = (torch.from_numpy(prepared[name]) for name in PREPARED)
        else:
            self._find(rows)
        clusters, components = self.centres.shape
        self.index, self.scan = (faiss.index_factory(components, f"IVF{clusters},SQfp16") for _ in range(2))
        for index in (self.index, self.scan):
            index.quantizer.add(self.centres.numpy())
            index.train(self.centres.numpy())  # there is nothing left to find
        self.index.nprobe, self.scan.nprobe = min(MOST, clusters), clusters
        self.index.parallel_mode = 3  # a query at a time; 0 would be one thread alone
        self.scan.parallel_mode = 1  # a cluster at a time, for there are few queries
        if known and prepared.get("search_lists") is not None:
            self._open(prepared["search_lists"], *rows.shape)
        else:
            self._add(rows)
        self.scan.replace_invlists(self.index.invlists, False)
        self.scan.ntotal = self.index.ntotal

    def _find(self, rows: np.ndarray) -> None:
        import scipy.linalg  # a fifth of a second that a first verdict need not wait for

        sample = self._sample(rows)
        d, components = rows.shape[1], min(COMPONENTS, rows.shape[1])
        mean = sample.mean(0)
        spread = ((sample - mean).T @ (sample - mean)).numpy()
        self.axes = torch.from_numpy(scipy.linalg.eigh(spread, subset_by_index=(d - components, d - 1))[1].T.copy())
        self.origin = -self.axes @ mean
        clusters = min(round(len(rows) ** 0.5), len(rows) // 39)  # FAISS wants 39 rows for each
        some = rows[:: max(1, len(rows) // (128 * clusters))]
        sample = torch.cat([self.turn(block) for block in _blocks(some)])
        index = faiss.index_factory(components, f"IVF{clusters},SQfp16")
        index.train(sample.numpy())
        self.centres = torch.from_numpy(index.quantizer.reconstruct_n(0, clusters))
        near = torch.cat([self.to_centres(block).amin(1) for block in sample.split(ROWS)])
        self.reach = REACH * near.square().mean().sqrt()

    def _sample(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(rows[:: -(-len(rows) // SAMPLE)], dtype=np.float32))

    def _add(self, rows: np.ndarray) -> None:
        """Look at every row."""
        self.mean, rests = self._sample(rows).mean(0), []
        for block in _blocks(rows):
            turned = self.turn(block)
            rests.append(self._rest(block, turned).numpy())
            nearest = self.to_centres(turned).argmin(1)
            # as `add`, which takes longer to find the clusters
            self.index.add_core(len(block), faiss.swig_ptr(turned.numpy()), None, faiss.swig_ptr(nearest.numpy()))
        self.rests = np.concatenate(rests)

    def _rest(self, rows: torch.Tensor, turned: torch.Tensor) -> torch.Tensor:
        """(N, D) and their components (N, d) -> (N,) the lengths of what is left."""
        return ((rows - self.mean).square().sum(1) - turned.square().sum(1)).clamp_(min=0).sqrt_()

    def packed(self) -> Iterator[np.ndarray]:
        """FAISS's inverted lists as it writes them, then rests and mean: bytes, in parts that are not copied."""
        lists, clusters = self.index.invlists, len(self.centres)
        sizes = np.array([lists.list_size(i) for i in range(clusters)], dtype="<u8")
        header = LISTS.pack(b"ilar", clusters, lists.code_size, b"full", clusters)
        yield from (np.frombuffer(header, np.uint8), sizes.view(np.uint8))
        for i, size in enumerate(sizes.tolist()):
            if size:
                yield faiss.rev_swig_ptr(lists.get_codes(i), size * lists.code_size)
                yield faiss.rev_swig_ptr(lists.get_ids(i), size).view(np.uint8)
        yield from (self.rests.view(np.uint8), self.mean.numpy().view(np.uint8))

    def _open(self, content: np.ndarray, count: int, d: int) -> None:
        """Take what `packed` has made of `count` rows where it lies. FAISS reads only what it must be."""
        clusters, code = len(self.centres), self.index.code_size
        ends = np.cumsum([LISTS.size, 8 * clusters, count * (code + 8), 4 * count, 4 * d])
        header = LISTS.pack(b"ilar", clusters, code, b"full", clusters)
        if ends[-1] != len(content) or content[: LISTS.size].tobytes() != header:
            raise ValueError("the lists of its fast search are of other rows, or cut off")
        _, sizes, _, rests, mean = np.split(content, ends[:-1])
        sizes = sizes.view("<u8")
        if (sizes > count).any() or sizes.sum() != count:
            raise ValueError("the lists of its fast search have other lengths than there are rows")
        self.content = content  # which FAISS does not keep alive
        lists = faiss.read_InvertedLists(faiss.ZeroCopyIOReader(faiss.swig_ptr(content), int(ends[2])))
        there = np.zeros(count, dtype=bool)
        for i, size in enumerate(sizes.tolist()):
            numbers = faiss.rev_swig_ptr(lists.get_ids(i), size) if size else np.arange(0)
            if size and not 0 <= numbers.min() <= numbers.max() < count:
                raise ValueError("the lists of its fast search name rows that are not there")
            there[numbers] = True
        if not there.all():
            raise ValueError("the lists of its fast search lack rows")
        self.index.replace_invlists(lists, True)
        self.index.ntotal = count
        self.rests, self.mean = rests.view("<f4"), torch.from_numpy(np.array(mean.view("<f4")))

    def arrays(self) -> dict[str, np.ndarray]:
        """How it is stored, by key."""
        return {name: getattr(self, name.removeprefix("search_")).numpy() for name in PREPARED}

    def turn(self, rows: torch.Tensor) -> torch.Tensor:
        """(N, D) -> (N, d) principal components."""
        return products(rows, self.axes, self.origin).contiguous()

    def to_centres(self, turned: torch.Tensor) -> torch.Tensor:
        """(N, d) -> (N, clusters) distances."""
        squares = products(turned, -2 * self.centres, self.centres.square().sum(1))
        return squares.add_(turned.square().sum(1, keepdim=True)).clamp_(min=0).sqrt_()

    def __call__(self, queries: torch.Tensor, n: int, chosen: faiss.IDSelector | None = None) -> np.ndarray:
        """(Q, D) -> (Q, n) indices of rows, -1 where there are fewer in the clusters near enough; chosen: of these."""
        turned = self.turn(queries)
        # the nearest first: fewer rows come and go
        distances, probes = self.to_centres(turned).topk(self.index.nprobe, largest=False)
        probes.masked_fill_(distances > distances[:, :1] + self.reach, -1)
        if chosen is None:
            return self.index.search_preassigned(turned.numpy(), n, probes.numpy(), None)[1]
        found = np.empty((len(queries), n), dtype=np.int64)
        distances, to_centres = np.empty(found.shape, dtype=np.float32), np.zeros(probes.shape, dtype=np.float32)
        how = faiss.SearchParametersIVF(sel=chosen, nprobe=probes.shape[1])
        # what search_preassigned calls, which cannot leave out rows
        x, lists, *rest = map(faiss.swig_ptr, (turned.numpy(), probes.numpy(), to_centres, distances, found))
        self.index.search_preassigned_c(len(queries), x, n, lists, *rest, False, how)
        return found

    def within(self, queries: np.ndarray, distances: np.ndarray) -> Iterator[np.ndarray]:
        """(Q, D), (Q,) squared distances -> the rows that may be so near, of each query; no other row is."""
        queries = torch.from_numpy(queries)
        turned = self.turn(queries)
        rests, far = self._rest(queries, turned).numpy(), (queries - self.mean).norm(dim=1).numpy()
        reach = np.sqrt(distances)
        most = (reach + SLACK * (far + reach)) ** 2
        for query, rest, bound in zip(turned.numpy(), rests, most, strict=True):
            _, least, rows = self.scan.range_search(query[None], float(bound))
            yield np.sort(rows[least + (self.rests[rows] - rest) ** 2 <= bound])


class _TorchIndex:
    """What a bank needs of a flat FAISS index, exact, in torch, with the rows (M, D) wherever they are.

    A GPU multiplies matrices several times as fast where it may round their values to 10 bits (TF32). So products of
    rounded vectors say which rows may be the nearest, and these are compared as they are: with x' and y' for x and y,
    x.y differs from x'.y' by at most |x - x'| |y| + |x'| |y - y'| (Cauchy-Schwarz), and by what adding up may lose.
    Vectors are taken from the rows' mean, for the shorter they are the less they lose. Beside the rows that takes M * D
    values of float32.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows, self.ntotal = rows, len(rows)
        self.mean = rows.mean(0, dtype=torch.float32)
        whole = -(-len(rows) // WHOLE) * WHOLE
        self._doubled = torch.zeros(whole, rows.shape[1], device=rows.device)
        self._norms = torch.full((whole,), torch.inf, device=rows.device)
        self._longest = self._lost = torch.zeros((), device=rows.device)
        for start in range(0, len(rows), ROWS):
            y = rows[start : start + ROWS] - self.mean
            here, rounded = slice(start, start + len(y)), _rounded(y)
            self._doubled[here], self._norms[here] = -2 * rounded, y.square().sum(1)
            self._longest = self._longest.maximum(y.norm(dim=1).amax())
            self._lost = self._lost.maximum((y - rounded).norm(dim=1).amax())

    def search(
        self, queries: torch.Tensor, k: int, left_out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(Q, D) -> squared distances (Q, k), nearest first, and indices (Q, k); left_out: (M,) bool."""
        queries, norms, most, found = queries.to(self.rows.device), self._norms, max(k, FEWER), []
        if left_out is not None:
            out = torch.from_numpy(left_out).to(norms.device)
            norms = norms.masked_fill(F.pad(out, (0, len(norms) - len(out))), torch.inf)
        for part in queries.split(max(1, BLOCK // len(norms))):
            near = self._near(part, norms, k)
            if near.count_nonzero() > most * len(part):
                near[near.sum(1) > most] = False
            query, row = near.nonzero(as_tuple=True)
            count = torch.bincount(query, minlength=len(part))
            many = (count < k) | (count > most)  # fewer of those left out just now, and where values are no numbers
            if many.any():
                few = ~many[query]
                others = self._nearest(part, many.nonzero()[:, 0], norms, min(most, self.ntotal))
                query, row = (torch.cat(both) for both in zip((query[few], row[few]), others, strict=True))
                query, order = query.sort(stable=True)
                row, count = row[order], torch.bincount(query, minlength=len(part))
            place = torch.arange(len(query), device=query.device) - (count.cumsum(0) - count)[query]
            found.append(self._compared(part, query, row, place, most, k))
        distances, indices = (torch.cat(parts) for parts in zip(*found, strict=True))
        return distances.cpu().numpy(), indices.cpu().numpy()

    def _near(self, queries: torch.Tensor, norms: torch.Tensor, k: int) -> torch.Tensor:
        """(Q, D) -> (Q, M and what fills it up) bool: the rows that may be among the k nearest."""
        x = queries - self.mean
        rounded = _rounded(x)
        change = 2 * ((x - rounded).norm(dim=1) * self._longest + rounded.norm(dim=1) * self._lost)
        change += SUMMED * x.norm(dim=1) * self._longest
        with tf32(x.device, True):
            near = F.linear(rounded, self._doubled, norms)  # squared distances less |x|^2
        least = near.amin(1) if k == 1 else near.topk(k, largest=False).values[:, -1]
        return near <= (least + 2 * change)[:, None]

    def _compared(
        self, queries: torch.Tensor, query: torch.Tensor, row: torch.Tensor, place: torch.Tensor, most: int, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(Q, D), and P pairs of a query and the row that has this place among its `most` ones -> as `search`."""
        distances = queries.new_full((len(queries), most), torch.inf)
        rows = torch.zeros_like(distances, dtype=torch.int64)
        rows[query, place] = row
        for q, r, p in zip(*(x.split(PAIRS) for x in (query, row, place)), strict=True):
            distances[q, p] = (queries[q] - self.rows[r]).square_().sum(1)
        distances, places = distances.topk(k, largest=False)
        return distances, rows.gather(1, places)

    def _nearest(
        self, queries: torch.Tensor, some: torch.Tensor, norms: torch.Tensor, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(Q, D), (n,) indices of them -> pairs: with the k nearest of each by products that are not rounded."""
        x, blocks = -2 * (queries[some] - self.mean), (self.rows.split(ROWS), norms[: self.ntotal].split(ROWS))
        near = [products(x, rows - self.mean, lengths) for rows, lengths in zip(*blocks, strict=True)]
        rows = torch.cat(near, dim=1).topk(k, largest=False).indices.flatten()
        there = norms[rows].isfinite()
        return some.repeat_interleave(k)[there], rows[there]


def _rounded(x: torch.Tensor) -> torch.Tensor:
    """Values to 10 bits behind the first, as TF32 has them."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def nearby(bank: torch.Tensor, patches: torch.Tensor, seed: int = 0, *, among: bool = True) -> np.ndarray:
    """(M, d) rows of the bank, (N, d) patches -> (M, 9) squared distances to the nearest, or as many as there are.

    among: the rows are among the patches, and each is not its own neighbour. Neighbours are sought in a few of 400
    clusters, around patches drawn by seed: some are missed, which makes the distances larger by 1 to 5 %.
    """
    near = _neighbours(bank, patches, NEIGHBOURS + among, seed)[0]
    return near[:, 1:] if among else near


def spacing(near: np.ndarray, bank: torch.Tensor, seed: int = 0) -> np.ndarray:
    """(M, 9) what `nearby` has found around each row of the bank (M, d) -> (M,) how far apart patches lie there.

    That is the mean of a row's squared distances to its 9 nearest patches (REB's local density: Lyu et al. 2023,
    arXiv 2308.12577), averaged over the row and its 4 nearest rows of the bank.
    """
    mean = near.sum(1) / max(1, near.shape[1])
    return mean[_neighbours(bank, bank, AROUND, seed)[1]].mean(1)


def _neighbours(queries: torch.Tensor, rows: torch.Tensor, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(Q, d), (N, d) -> squared distances (Q, k) to the nearest rows, or those of all that there are, and indices."""
    k = min(k, len(rows))
    if rows.device.type != "cpu":
        return _TorchIndex(rows).search(queries, k)
    index = clustered(rows, CLUSTERS, seed)
    index.nprobe = min(PROBES, index.nlist)
    distances, indices = index.search(queries.numpy(), k)
    few = np.flatnonzero(indices[:, -1] < 0)
    if len(few):
        index.nprobe = index.nlist
        distances[few], indices[few] = index.search(queries[torch.from_numpy(few)].numpy(), k)
    return distances, indices


def clustered(rows: torch.Tensor, clusters: int, seed: int) -> faiss.IndexIVFScalarQuantizer:
    """(N, d) rows, on the CPU -> an index in float16 of at most so many clusters, around rows drawn by seed."""
    some = np.random.default_rng(seed).choice(len(rows), max(1, min(clusters, len(rows) // 40)), replace=False)
    centres = torch.unique(rows[torch.from_numpy(some)], dim=0)  # of equal ones all but one would be searched in vain
    bias = centres.square().sum(1) / 2
    nearest = torch.cat([products(block, -centres, bias).argmin(1) for block in rows.split(QUERIES)])
    quantizer = faiss.IndexFlatL2(rows.shape[1])
    quantizer.add(centres.numpy())
    half = faiss.ScalarQuantizer.QT_fp16
    index = faiss.IndexIVFScalarQuantizer(quantizer, rows.shape[1], len(centres), half, faiss.METRIC_L2, False)
    index.train(centres.numpy())
    # as `add`, which takes three times as long to find the clusters
    index.add_core(len(rows), faiss.swig_ptr(rows.numpy()), None, faiss.swig_ptr(nearest.numpy()))
    return index
