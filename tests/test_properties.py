"""What must hold for anything at all: of everything that reads, of what is written and read, and of any order of steps.

Examples are drawn the same way every time, so a failure here is one on any machine.
"""

import json
import logging
import pickle
import tempfile
from functools import cache
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.extra import numpy as arrays
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from PIL import Image
from safetensors.torch import save as safetensors_bytes

import patchcore_kit as pk
from patchcore_kit import files, images, weights
from patchcore_kit import reference_format as rf
from patchcore_kit.arrays import read_arrays
from patchcore_kit.errors import short
from patchcore_kit.experiments import Outputs, run_folder, train
from patchcore_kit.predictions import COLUMNS, INTERVALS
from patchcore_kit.results import COSTS, SHARES, Results, read_results

set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "hypothesis")  # nothing is left in the checkout

always = {"derandomize": True, "deadline": None, "database": None, "phases": (Phase.explicit, Phase.generate)}
few = settings(**always, max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

TEXTS = st.text(max_size=20)
NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([2**63, -(2**63), 10**300, 1e308, -0.0]))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=8,
)
PARAMS = {
    "backbone.name": "starter",
    "layers_to_extract_from": ("layer2", "layer3"),
    "input_shape": (3, 32, 32),
    "pretrain_embed_dimension": 16,
    "target_embed_dimension": 8,
    "patchsize": 3,
    "patchstride": 1,
    "anomaly_scorer_num_nn": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("properties")


@pytest.fixture(scope="module")
def good(folder) -> dict[str, bytes]:
    """A file of each kind, by its name."""
    rows = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    (folder / "model").mkdir()
    rf.write_model(folder / "model", rf.SavedModel(PARAMS, rows, {}, {}))
    predictions(2).save(folder / "part.npz")
    Image.fromarray(PICTURES[0]).save(folder / "a.png")
    found = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return found | {"w.safetensors": safetensors_bytes({"a": torch.arange(4.0)})}


def pictures(seed: int, n: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    base = random.integers(0, 200, (8, 8, 3)).repeat(4, 0).repeat(4, 1)
    return [(base + random.integers(0, 50, base.shape)).astype(np.uint8) for _ in range(n)]


PICTURES = pictures(0, 8)
SEEN = [*pictures(0, 1), *pictures(1, 2)]


def predictions(n: int, seed: int = 0) -> pk.Predictions:
    maps = np.random.default_rng(seed).random((n, 4, 6)).astype(np.float32)
    return pk.Predictions(maps.max((1, 2)), maps, np.arange(n) % 2, None, tuple(f"test/a/{i}.png" for i in range(n)))


def refused_or_read(read, path: Path, error: type = pk.KitError):
    """What a reader gives, None if it refuses, in one sentence with the file's name."""
    try:
        return read(path)
    except error as refusal:
        assert len(str(refusal)) <= 300 + len(str(path))
        assert "\n" not in str(refusal)
        if isinstance(refusal, pk.KitError):
            assert path.name in str(refusal)
    return None


def damaged(kind: str):
    """Bytes: anything, or a good file of which a part is another."""
    pieces = st.tuples(st.integers(0, 2**16), st.binary(max_size=40), st.integers(0, 60))
    return st.one_of(st.binary(max_size=300), st.tuples(st.just(kind), pieces))


def content_of(drawn, good: dict[str, bytes]) -> bytes:
    if isinstance(drawn, bytes):
        return drawn
    name, (at, put, gone) = drawn
    at %= len(good[name]) + 1
    return good[name][:at] + put + good[name][at + gone :]


# whatever is read


@few
@given(drawn=damaged(rf.PARAMS_FILE))
def test_any_bytes_as_settings(folder, good, drawn):
    place = folder / "any"
    place.mkdir(exist_ok=True)
    (place / rf.PARAMS_FILE).write_bytes(content_of(drawn, good))
    found = refused_or_read(lambda path: rf.read_settings(path.parent), place / rf.PARAMS_FILE)
    assert found is None or all(fits(found[0][key]) for key, fits in rf.PARAMS.items())


@few
@given(key=st.sampled_from(list(PARAMS)), value=st.one_of(VALUES, st.lists(st.integers(), min_size=3, max_size=3)))
def test_any_values_as_settings(folder, key, value):
    place = folder / "any"
    place.mkdir(exist_ok=True)
    (place / rf.PARAMS_FILE).write_bytes(pickle.dumps(PARAMS | {key: value}))
    found = refused_or_read(lambda path: rf.read_settings(path.parent), place / rf.PARAMS_FILE)
    assert found is None or found[0][key] == value


@few
@given(drawn=damaged(rf.INDEX_FILE))
def test_any_bytes_as_rows(folder, good, drawn):
    place = folder / "rows"
    place.mkdir(exist_ok=True)
    (place / rf.PARAMS_FILE).write_bytes(good[rf.PARAMS_FILE])
    (place / rf.INDEX_FILE).write_bytes(content_of(drawn, good))
    found = refused_or_read(lambda path: rf.read_model(path.parent), place / rf.INDEX_FILE)
    assert found is None or (np.isfinite(found.rows).all() and found.rows.shape[1] == 8)


@few
@given(values=VALUES, drawn=st.one_of(st.none(), st.binary(max_size=50), TEXTS))
def test_any_json(folder, values, drawn):
    path = folder / "any.json"
    text = json.dumps(values).encode() if drawn is None else drawn if isinstance(drawn, bytes) else drawn.encode()
    path.write_bytes(text)
    found = refused_or_read(files.read_json, path, ValueError)
    if drawn is None:
        assert (found == values) if isinstance(values, dict) and is_finite(values) else (found is None)


def is_finite(values) -> bool:
    try:
        return bool(json.dumps(values, allow_nan=False))
    except ValueError:
        return False


@few
@given(drawn=damaged("part.npz"))
def test_any_bytes_as_predictions(folder, good, drawn):
    (folder / "any.npz").write_bytes(content_of(drawn, good))
    found = refused_or_read(pk.Predictions.load, folder / "any.npz", pk.ResultsError)
    assert found is None or (found.maps == predictions(2).maps).all()  # the archive has checksums


@few
@given(
    name=st.sampled_from(["scores", "maps", "labels", "names", "sizes"]),
    array=arrays.arrays(
        st.one_of(arrays.floating_dtypes(), arrays.integer_dtypes(), arrays.unicode_string_dtypes(max_len=4)),
        arrays.array_shapes(min_dims=0, max_dims=3, max_side=3),
    ),
)
def test_any_arrays_as_predictions(folder, name, array):
    some = predictions(2)
    known = {"scores": some.scores, "maps": some.maps, "labels": some.labels, "names": np.array(some.names)}
    np.savez(folder / "any.npz", **known | {"mask_rule": np.array(""), "weights": np.array(""), name: array})
    found = refused_or_read(pk.Predictions.load, folder / "any.npz", pk.ResultsError)
    if found is not None:
        assert len(found.scores) == len(found.maps) == len(found.labels) == len(found.names)
        assert np.isfinite(found.maps).all()
        assert len(found.table()) == 2


@few
@given(
    array=arrays.arrays(
        st.one_of(arrays.floating_dtypes(), arrays.integer_dtypes()), arrays.array_shapes(min_dims=0, max_dims=3)
    )
)
def test_arrays_are_read_as_they_were_written(folder, array):
    np.savez(folder / "any.npz", a=array)
    kinds = {"a": (array.dtype.kind, "." * array.ndim)}
    if array.ndim and array.dtype.kind == "f" and not np.isfinite(array).all():
        with pytest.raises(ValueError, match="not finite"):
            read_arrays(folder / "any.npz", kinds)
    else:
        again = read_arrays(folder / "any.npz", kinds)["a"]
        assert again.shape == array.shape
        assert again.dtype == array.dtype.newbyteorder("=")
        assert (again == array).all() or np.isnan(array)


@few
@given(text=st.one_of(st.text(max_size=200), st.text(alphabet=',"\n\r ;019.-einfa', max_size=200)))
def test_any_table(folder, text):
    (folder / "any.csv").write_bytes(("Row Names,instance_auroc,other\n" + text).encode("utf-8", "surrogatepass"))
    found = refused_or_read(read_results, folder / "any.csv", pk.ResultsError)
    if found is not None:
        shares = found["instance_auroc"].dropna()
        assert ((shares >= -1e-9) & (shares <= 1 + 1e-9)).all()


@few
@given(drawn=damaged("w.safetensors"), suffix=st.sampled_from([".pth", ".safetensors"]))
def test_any_bytes_as_weights(folder, good, drawn, suffix):
    path = folder / f"any{suffix}"
    path.write_bytes(content_of(drawn, good))
    found = refused_or_read(weights.read, path, pk.WeightsError)
    assert found is None or all(isinstance(name, str) for name in found)


@few
@given(drawn=damaged("a.png"))
def test_any_bytes_as_an_image(folder, good, drawn):
    (folder / "any.png").write_bytes(content_of(drawn, good))
    header = refused_or_read(images.read_header, folder / "any.png", pk.DataError)
    found = refused_or_read(images.read_rgb, folder / "any.png", pk.DataError)
    assert found is None or (found.mode == "RGB" and found.size == header.size)


# whatever is written


@few
@given(
    name=st.text(min_size=1, max_size=50),
    layers=st.lists(st.text(max_size=20), min_size=1, max_size=4),
    size=st.tuples(st.integers(1, rf.SIDE), st.integers(1, rf.SIDE)),
    number=st.integers(1, 255),
)
def test_settings_are_read_as_they_were_written(folder, name, layers, size, number):
    wanted = PARAMS | {"backbone.name": name, "input_shape": (3, *size), "patchsize": number}
    wanted |= {"layers_to_extract_from": tuple(layers), "anomaly_scorer_num_nn": number}
    place = folder / "again"
    place.mkdir(exist_ok=True)
    content = rf.params_bytes(wanted)
    try:
        (place / rf.PARAMS_FILE).write_bytes(content)
        found, extras = rf.read_settings(place)
    except pk.ModelError:
        assert len(content) > rf.LARGEST_PARAMS
        return
    assert (found, extras) == (wanted, {})
    assert rf.params_bytes(found) == content


FLOATS = st.floats(0, 2.0**40, width=32)


@few
@given(
    maps=arrays.arrays(np.float32, st.tuples(*[st.integers(1, 4)] * 3), elements=FLOATS),
    names=st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=4, max_size=4),
    labels=st.lists(st.integers(-1, 1), min_size=4, max_size=4),
    masked=st.booleans(),
)
def test_predictions_are_read_as_they_were_written(folder, maps, names, labels, masked):
    n = len(maps)
    masks = maps > maps.mean() if masked else None
    if masked:
        masks[:, 0, 0] = False  # each image has a good pixel
    before = pk.Predictions(maps.max((1, 2)), maps, np.array(labels[:n]), masks, tuple(names[:n]), remarks=())
    before.save(folder / "again.npz")
    content = (folder / "again.npz").read_bytes()
    after = pk.Predictions.load(folder / "again.npz")
    for name in ("scores", "maps", "labels", "masks"):
        one, other = getattr(before, name), getattr(after, name)
        assert (one is None and other is None) or one.tobytes() == other.tobytes()
    assert after.names == before.names
    after.save(folder / "again.npz")
    assert (folder / "again.npz").read_bytes() == content


LETTERS = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30)
SHARE = st.one_of(st.none(), st.floats(0, 1))
COST = st.one_of(st.none(), st.floats(0, 1e300))


def a_row(draw_share, draw_cost) -> dict:
    return {name: draw_share if name in SHARES else draw_cost for name in (*COLUMNS, *INTERVALS, *COSTS)}


@settings(few, max_examples=15)
@given(named=st.dictionaries(LETTERS, st.tuples(SHARE, COST), min_size=1, max_size=3))
def test_rows_stay_as_they_are_whatever_is_added(named):
    assume(all(name != "mvtec_" for name in named))
    with tempfile.TemporaryDirectory() as place:
        results = Results(Path(place), {"seed": 0})
        for name, drawn in named.items():
            results.add(f"mvtec_{name}", a_row(*drawn), made_from="0" * 16, outputs=("models",))
        before = (Path(place) / "results.csv").read_bytes()
        for count in (1, 2):
            again = Results(Path(place), {"seed": 0}, resume=True)
            for name, drawn in named.items():
                assert again.current(f"mvtec_{name}", "0" * 16, ("models",))
                for column, value in a_row(*drawn).items():
                    there = again.rows[f"mvtec_{name}"][column]
                    assert there == value or (value is None and pd.isna(there))
            again.add("mvtec_", a_row(0.5, 1.0), made_from="1" * 16)
            lines = (Path(place) / "results.csv").read_bytes().splitlines()
            kept = [line for line in before.splitlines()[1:] if not line.startswith(b"Mean")]
            assert set(kept) <= set(lines), count


@few
@given(name=st.text(max_size=300))
def test_names_of_runs(name):
    try:
        assert files.run_name("log_group", name) == name
    except pk.SettingsError as refusal:
        assert len(str(refusal)) <= 300
        assert not name or name[0] == "." or set(name) & {"/", "\0"} or len(name.encode(errors="replace")) > 200
    else:
        assert "/" not in name
        assert name not in ("", ".", "..")


@few
@given(name=st.text(st.characters(exclude_categories=[]), max_size=40))
def test_printable_names(name):
    shown = files.printable(name)
    assert shown.isprintable()
    assert files.printable(shown) == shown
    assert shown == name or not name.isprintable()
    shown.encode()


@few
@given(text=st.one_of(st.text(max_size=400), VALUES), most=st.integers(10, 120))
def test_short_texts(text, most):
    line = short(text, most)
    assert len(line) <= most
    assert "\n" not in line
    whole = " ".join(str(text).split())
    assert line == whole or len(whole) > most


# any order of steps


def detector() -> pk.PatchCore:
    dimensions = {"pretrain_embed_dimension": 16, "target_embed_dimension": 8}
    network = cache(pk.load_backbone)("starter")
    return pk.PatchCore(
        network, percentage=0.3, resize=32, imagesize=32, scoring="density", progress=False, workers=1, **dimensions
    )


def answer(model: pk.PatchCore) -> tuple:
    """All that a model says of the same pictures, to the bit."""
    found = model.predict(SEEN)
    thresholds = found.alarm_threshold, found.defective_threshold, found.alarm_threshold_pixel
    return found.scores.tobytes(), found.maps.tobytes(), thresholds, tuple(found.verdicts)


@cache
def wanted(learnt: tuple[tuple[int, ...], ...]) -> tuple:
    """The same of a model that has just learnt these pictures, in these steps."""
    first, *more = learnt
    model = detector().fit([PICTURES[i] for i in first])
    for some in more:
        model.extend([PICTURES[i] for i in some])
    return answer(model)


FIRST = st.sampled_from([(0, 1, 2, 3), (3, 2, 1, 0), (2, 3, 4, 5, 6)])
MORE = st.sampled_from([(4,), (5, 6), (7,)])


class Steps(RuleBasedStateMachine):
    """Whatever is saved, opened, resumed or evaluated: nothing but learning changes what a model says."""

    def __init__(self) -> None:
        super().__init__()
        self.place = tempfile.TemporaryDirectory()
        self.folder = Path(self.place.name)
        self.saved: dict[int, tuple] = {}
        self.table: bytes | None = None
        data = self.folder / "data" / "part"
        for below, listed in (("train/good", PICTURES[:4]), ("test/good", SEEN[:1]), ("test/dent", SEEN[1:])):
            (data / below).mkdir(parents=True)
            for i, picture in enumerate(listed):
                Image.fromarray(picture).save(data / below / f"{i}.png")
        self.category = pk.load_category(self.folder / "data", "part")

    def teardown(self) -> None:
        self.place.cleanup()

    @initialize(some=FIRST)
    def begins(self, some):
        self.fits(some)

    @rule(some=FIRST)
    def fits(self, some):
        self.model, self.learnt = detector().fit([PICTURES[i] for i in some]), (some,)

    @rule(some=MORE)
    @precondition(lambda self: len(self.learnt) < 3)
    def extends(self, some):
        self.model.extend([PICTURES[i] for i in some])
        self.learnt += (some,)

    @rule(slot=st.integers(0, 1))
    def saves(self, slot):
        self.model.save(self.folder / f"model {slot}")
        self.saved[slot] = self.learnt

    @rule(slot=st.integers(0, 1))
    @precondition(lambda self: self.saved)
    def opens(self, slot):
        slot = slot if slot in self.saved else min(self.saved)
        before = {path.name: path.read_bytes() for path in (self.folder / f"model {slot}").iterdir()}
        self.model, self.learnt = pk.load_detector(self.folder / f"model {slot}", progress=False), self.saved[slot]
        self.model.save(self.folder / f"model {slot}")  # what was opened is saved as it was
        assert before == {path.name: path.read_bytes() for path in (self.folder / f"model {slot}").iterdir()}

    @rule()
    def evaluates(self):
        found = self.model.predict(self.category.test)
        found.save(self.folder / "part.npz")
        again = pk.Predictions.load(self.folder / "part.npz")
        assert again.scores.tobytes() == found.scores.tobytes()
        assert pk.evaluate(again) == pk.evaluate(found)
        assert [str(again.explain(i)) for i in range(3)] == [str(found.explain(i)) for i in range(3)]

    @rule(takes_the_model=st.booleans())
    def resumes(self, takes_the_model):
        with run_folder(self.folder, "step1", "0000", resume=True) as run:
            train(
                [self.category], detector, Results(run, {"seed": 0}, resume=True), Outputs(True, True), progress=False
            )
        table = (run / "results.csv").read_bytes()
        assert table == (self.table or table), "it was made anew"
        self.table = table
        if takes_the_model:
            self.model = pk.load_detector(run / "models" / "mvtec_part", progress=False)
            self.learnt = ((0, 1, 2, 3),)

    @invariant()
    def says_what_it_has_learnt(self):
        if hasattr(self, "model"):
            assert answer(self.model) == wanted(self.learnt)


@pytest.fixture(autouse=True, scope="module")
def alone():
    """One thread, which small pictures are best read by, and no warnings of how few they are."""
    threads = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)
    torch.set_num_threads(threads[0])
    faiss.omp_set_num_threads(threads[1])


TestSteps = Steps.TestCase
TestSteps.settings = settings(
    **always, max_examples=15, stateful_step_count=12, suppress_health_check=list(HealthCheck)
)
