import dataclasses
import hashlib
import json
import pickle
import subprocess
import sys
import zlib

import faiss
import numpy as np
import pytest

import patchcore_kit as pk
from patchcore_kit import reference_format as rf


def params(**changes):
    usual = {
        "backbone.name": "wideresnet50",
        "layers_to_extract_from": ("layer2", "layer3"),
        "input_shape": (3, 224, 224),
        "pretrain_embed_dimension": 1024,
        "target_embed_dimension": 1024,
        "patchsize": 3,
        "patchstride": 1,
        "anomaly_scorer_num_nn": 1,
    }
    return usual | changes


ENSEMBLE = {"target_embed_dimension": 384, "layers_to_extract_from": ["layer2", "layer3"]}


@pytest.mark.parametrize(
    ("changes", "size", "digest"),
    [
        ({}, 228, "3cddb4fe0c5b830a634abd810e36d7221c1d0d7743ff9920e8a3809545187bcb"),
        (
            ENSEMBLE | {"backbone.name": "wideresnet101"},
            231,
            "3250f10f80a0588884907aa04eb9c7a81b8a33ee0be271bbd4a607f35c540e5c",
        ),
        (
            ENSEMBLE
            | {
                "backbone.name": "densenet201",
                "layers_to_extract_from": ["features.denseblock2", "features.denseblock3"],
            },
            257,
            "f6e1bf9a89736ba8050fd5920421abc36070482490337e30a1995e49b24fc243",
        ),
    ],
)
def test_settings_equal_the_published_files(changes, size, digest):
    """Sizes and sha256 of patchcore_params.pkl in the reference's published models."""
    content = rf.params_bytes(params(**changes))
    assert len(content) == size
    assert hashlib.sha256(content).hexdigest() == digest


@pytest.fixture
def model():
    rows = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)
    settings = params(target_embed_dimension=8)
    extras = dict.fromkeys(rf.EXTRAS, 1) | dict.fromkeys(("sampler", "weights", "weights_fingerprint"), "some")
    extras |= {"resize": 256, "grid": [2, 5], "training_images": ["a", "b", "c"]}
    return rf.SavedModel(settings, rows, extras, {"images": np.arange(30) // 10, "cells": np.arange(30) % 10})


@pytest.fixture
def folder(tmp_path, model):
    rf.write_model(tmp_path, model)
    return tmp_path


@pytest.fixture
def theirs(folder):
    """As the reference writes it, without checksums."""
    (folder / rf.EXTRAS_FILE).unlink()
    (folder / rf.ARRAYS_FILE).unlink()
    return folder


def test_reference_files_are_written_byte_for_byte(golden, tmp_path):
    theirs = golden / "reference_model/models/mvtec_bottle"
    rf.write_model(tmp_path, rf.read_model(theirs))
    for name in (rf.PARAMS_FILE, rf.INDEX_FILE):
        assert (tmp_path / name).read_bytes() == (theirs / name).read_bytes()


def test_written_and_read(folder, model):
    again = rf.read_model(folder)
    assert again.params == model.params
    assert again.extras == model.extras
    assert (again.rows == model.rows).all()
    assert again.arrays.keys() == model.arrays.keys()
    for name, values in model.arrays.items():
        assert (again.arrays[name] == values).all()


def test_arrays_of_other_rows_are_refused(folder, model):
    rf.write_model(folder, dataclasses.replace(model, arrays=model.arrays | {"spacing": np.ones(29)}))
    with pytest.raises(pk.ModelError, match=r"patchcore_kit\.npz \(spacing is of .*, which has 29 where 30 belong\)"):
        rf.read_model(folder)


def test_index_is_what_the_reference_reads(folder, model):
    index = faiss.read_index(str(folder / rf.INDEX_FILE))
    assert (folder / rf.INDEX_FILE).stat().st_size == 45 + 4 * model.rows.size
    assert index.search(model.rows, 1)[1].ravel().tolist() == list(range(30))


def test_the_reference_lacks_what_the_kit_adds(folder):
    (folder / rf.EXTRAS_FILE).unlink()
    (folder / rf.ARRAYS_FILE).unlink()
    again = rf.read_model(folder)
    assert again.extras == {}
    assert again.arrays == {}


def test_ensembles(tmp_path, model):
    for i in range(3):
        rf.write_model(tmp_path, model, rf.ensemble_prefix(i, 3))
    assert rf.prefixes(tmp_path) == ["Ensemble-1-3_", "Ensemble-2-3_", "Ensemble-3-3_"]
    (tmp_path / f"Ensemble-2-3_{rf.PARAMS_FILE}").unlink()
    with pytest.raises(pk.ModelError, match=r"lacks Ensemble-2-3_patchcore_params.pkl"):
        rf.prefixes(tmp_path)


def refused(folder, message):
    with pytest.raises(pk.ModelError, match=message):
        rf.read_model(folder)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("value", [Evil(), np.float64(1), print])
def test_pickles_that_import_anything_are_refused(theirs, value, capsys):
    (theirs / rf.PARAMS_FILE).write_bytes(pickle.dumps(params(patchsize=value)))
    refused(theirs, "patchcore_params.pkl is not a PatchCore settings file .*it asks for")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a PatchCore settings file"),
        (b"\x80\x05nonsense", "not a PatchCore settings file"),
        (pickle.dumps([1, 2]), "no usable 'backbone.name'"),
        (pickle.dumps({"backbone.name": "x"}), "no usable 'layers_to_extract_from'"),
        (pickle.dumps(params(patchsize="3")), "no usable 'patchsize'"),
        (pickle.dumps(params(target_embed_dimension=8, patchstride=2)), "patchstride 2"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git-LFS pointer"),
    ],
)
def test_settings_files_that_cannot_be_used(theirs, content, message):
    (theirs / rf.PARAMS_FILE).write_bytes(content)
    refused(theirs, f"patchcore_params.pkl.*{message}")


def test_index_files_that_cannot_be_used(theirs, model):
    path = theirs / rf.INDEX_FILE
    content = path.read_bytes()
    for damaged in (b"", b"nonsense", content[:40], content[:-40]):
        path.write_bytes(damaged)
        refused(theirs, r"search_index.faiss is not a FAISS index")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0")
    refused(theirs, r"search_index.faiss is a Git-LFS pointer")
    faiss.write_index(faiss.IndexFlatL2(9), str(path))
    refused(theirs, "holds a IndexFlatL2 of dimension 9")
    faiss.write_index(faiss.IndexFlatIP(8), str(path))
    refused(theirs, "holds a IndexFlatIP")
    faiss.write_index(faiss.IndexFlatL2(8), str(path))
    refused(theirs, "is not a FAISS index of some rows")
    for rows in (np.full((3, 8), np.nan), np.full((3, 8), -np.inf), np.full((3, 8), 1e20)):  # squared, infinite
        index = faiss.IndexFlatL2(8)
        index.add(rows.astype(np.float32))
        faiss.write_index(index, str(path))
        refused(theirs, "holds rows that are not finite")
    path.write_bytes(rf.INDEX_HEADER.pack(b"IxF2", 8, 2**26, 0, 0, True, faiss.METRIC_L2, 2**29))
    refused(theirs, "is not a FAISS index")  # 45 bytes that claim 2 GB
    path.unlink()
    refused(theirs, r"no file .*search_index.faiss")


def nested(depth):
    return b"\x80\x04" + b"]" * depth + b"a" * (depth - 1) + b"."


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04Nr\xff\xff\xff\x0f.",  # a place in the memo, for which 2 GB would be made
        nested(30_000),  # a list in a list in a list
        b"\x80\x04)" + b"q\x00h\x00\x86" * 40 + b".",  # a pair of itself, forty times over: 2**40 to look at
        b"\x80\x04\x8d\xff\xff\xff\xff\x00\x00\x00\x00a.",  # a text of 4 GB
        pickle.dumps(params(**{"backbone.name": "x" * 70_000})),
        pickle.dumps(params(target_embed_dimension=10**9)),
        pickle.dumps(params(input_shape=(3, 10**6, 10**6))),
        pickle.dumps(params(patchsize=True)),
        pickle.dumps(params(anomaly_scorer_num_nn=10**30)),
    ],
)
def test_settings_that_claim_too_much(theirs, content):
    (theirs / rf.PARAMS_FILE).write_bytes(content)
    with pytest.raises(pk.ModelError, match=r"patchcore_params\.pkl") as refusal:
        rf.read_model(theirs)
    assert len(str(refusal.value)) < 300


def test_a_bit_in_any_file_is_noticed(folder, model):
    random, noticed = np.random.default_rng(0), 0
    for name in (rf.PARAMS_FILE, rf.INDEX_FILE, rf.EXTRAS_FILE, rf.ARRAYS_FILE):
        content = (folder / name).read_bytes()
        for bit in random.choice(8 * len(content), 60, replace=False):
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            (folder / name).write_bytes(changed)
            try:
                again = rf.read_model(folder)
            except pk.ModelError as error:
                assert "checksum differs" in str(error) or "cannot read" in str(error)
                noticed += 1
            else:  # a letter of the word that leads to the checksums
                assert name == rf.EXTRAS_FILE
                assert again.extras | model.extras == again.extras
        (folder / name).write_bytes(content)
    assert noticed >= 235
    rf.read_model(folder)


HELD_OUT = {
    "held_out_images": np.arange(3), "held_out_distances": np.ones((3, 10, 1), "f4"),
    "held_out_nearest": np.zeros((3, 10), int), "held_out_cells": np.zeros((3, 4), int),
    "held_out_rows": np.ones((3, 4, 8), "f2"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"reserve_rows": np.ones((2, 7), "f2")}, "reserve_rows is of"),
        ({"reserve_rows": np.ones((2, 8), np.longdouble)}, "reserve_rows is "),
        ({"reserve_rows": np.ones((2, 8), "f2"), "reserve_images": np.zeros(3, int)}, "reserve_images is of"),
        ({"held_out_rows": HELD_OUT["held_out_rows"][:1]}, "held_out_"),
        ({"held_out_nearest": np.zeros((0, 10), int)}, "held_out_"),
        ({"held_out_distances": -HELD_OUT["held_out_distances"]}, "held_out_distances from -1"),
        ({"appearance": np.ones((0, 2), "f4"), "photograph_sizes": np.ones((0, 2), int)}, "appearance of no image"),
        ({"appearance": np.ones((3, 2), "f4")}, "alone of appearance and photograph_sizes"),
        ({"training_sizes": np.zeros((3, 2), int)}, "training_sizes from 0 to 0"),
        ({"training_sizes": np.ones((2, 2), int)}, "training_sizes is of"),
        ({"spacing": np.zeros(30, "f4")}, "spacing of 0"),
        ({"near": -np.ones((30, 9), "f4")}, "near from -1"),
    ],
)
def test_arrays_that_do_not_belong_together(folder, model, arrays, message):
    rf.write_model(folder, dataclasses.replace(model, arrays=model.arrays | HELD_OUT))
    rf.read_model(folder)
    rf.write_model(folder, dataclasses.replace(model, arrays=model.arrays | HELD_OUT | arrays))
    refused(folder, rf"patchcore_kit\.npz \(.*{message}")


def test_the_kits_arrays_without_its_settings(folder):
    (folder / rf.EXTRAS_FILE).unlink()  # else it would be taken for the reference's, at a size that is guessed
    refused(folder, r"no file .*patchcore_kit\.json: copy the whole model folder")


def test_arrays_of_other_floats_and_orders_are_those_of_torch(folder, model):
    rf.write_model(folder, dataclasses.replace(model, arrays={"near": np.ones((30, 9)), "spacing": np.ones(30, ">f4")}))
    again = rf.read_model(folder).arrays
    assert {name: values.dtype.str for name, values in again.items()} == {"near": "<f4", "spacing": "<f4"}


@pytest.mark.parametrize("checksums", [None, 5, [], "x"])
def test_checksums_that_are_none(folder, checksums):
    extras = json.loads((folder / rf.EXTRAS_FILE).read_text())
    (folder / rf.EXTRAS_FILE).write_text(json.dumps(extras | {"checksums": checksums}))
    refused(folder, r"patchcore_kit\.json \(checksums is")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 10**30}, "bits is 1000"),
        ({"precision": "float8"}, "precision is 'float8'"),
        ({"resize": 100}, r"says resize 100, but the settings beside it images of \[224, 224\]"),
    ],
)
def test_settings_of_the_kit_that_cannot_be(folder, model, changes, message):
    rf.write_model(folder, dataclasses.replace(model, extras=model.extras | {"resize": 256} | changes))
    refused(folder, rf"patchcore_kit\.json.*{message}")


def test_more_neighbours_than_rows(theirs):
    (theirs / rf.PARAMS_FILE).write_bytes(pickle.dumps(params(target_embed_dimension=8, anomaly_scorer_num_nn=31)))
    refused(theirs, "has 30 rows, but the settings beside it ask for the nearest 31")


def test_files_of_two_models_are_no_model(folder, model, tmp_path):
    (tmp_path / "other").mkdir()
    rf.write_model(tmp_path / "other", dataclasses.replace(model, rows=model.rows + 1))
    (folder / rf.INDEX_FILE).write_bytes((tmp_path / "other" / rf.INDEX_FILE).read_bytes())
    refused(folder, r"search_index\.faiss \(its checksum differs\)")


def test_an_ensemble_of_millions(tmp_path):
    (tmp_path / f"Ensemble-1-30000000_{rf.PARAMS_FILE}").touch()
    with pytest.raises(pk.ModelError, match="ensemble of 30000000: there can be 2 to 64"):
        rf.prefixes(tmp_path)


def test_only_a_models_own_files_are_replaced(folder, model):
    rf.check_replaceable(folder)
    for name in (".git", ".env", ".DS_Store.txt", "notes.txt", f"my_{rf.PARAMS_FILE}", f"{rf.INDEX_FILE}.bak"):
        (folder / name).touch()
        with pytest.raises(pk.ResultsError, match=f"holds other files .{name}"):
            rf.check_replaceable(folder)
        (folder / name).unlink()


def test_own_files_that_are_damaged(folder):
    content = (folder / rf.ARRAYS_FILE).read_bytes()
    for damaged in (b"", content[:50], content[:-50]):
        (folder / rf.ARRAYS_FILE).write_bytes(damaged)
        refused(folder, r"cannot read .*patchcore_kit.npz")
    for damaged in ("", "{", "[1]", "1", '{"resize": 256}'):
        (folder / rf.EXTRAS_FILE).write_text(damaged)
        refused(folder, r"cannot read .*patchcore_kit.json")


def test_names_that_only_look_like_an_ensemble(tmp_path):
    (tmp_path / f"Ensemble-a-b_{rf.PARAMS_FILE}").touch()
    with pytest.raises(pk.ModelError, match="no model in"):
        rf.prefixes(tmp_path)


def test_folders_without_a_model(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(pk.ModelError, match=f"no model in {folder}"):
            rf.prefixes(folder)


# large banks


@pytest.fixture(scope="module")
def large(random_resnet18, sample_root):
    """A detector with all 2048 patches of 8 images, the images to score, and their scores."""
    category = pk.load_category(sample_root, "weave")
    settings = {"resize": 144, "imagesize": 128, "target_embed_dimension": 160, "progress": False}
    detector = pk.PatchCore(random_resnet18, "identity", **settings).fit(category.train)
    return detector, category.test, detector.predict(category.test)


@pytest.fixture
def mapped(large, tmp_path, monkeypatch):
    """Its folder, of which the rows and the lists are large."""
    monkeypatch.setattr(rf, "LARGE", 2**19)
    large[0].save(tmp_path / "model")
    return tmp_path / "model"


def test_large_banks_stay_in_their_files(large, mapped, monkeypatch):
    detector, images, predictions = large
    again = pk.PatchCore.load(mapped, progress=False)
    assert isinstance(rf._bytes(mapped / rf.INDEX_FILE), np.memmap)
    assert not again.bank_.stored.flags.writeable and (again.bank_.rows == detector.bank_.rows).all()
    found = again.predict(images)
    assert (found.scores == predictions.scores).all() and (found.maps == predictions.maps).all()
    again.save(mapped.parent / "other")
    for name in rf.FILES:
        if name not in (rf.ARRAYS_FILE, rf.EXTRAS_FILE):  # which hold times
            assert (mapped / name).read_bytes() == (mapped.parent / "other" / name).read_bytes()
    monkeypatch.setattr(rf, "LARGE", 2**40)
    read = pk.PatchCore.load(mapped, progress=False)
    assert read.bank_.stored.flags.writeable and (read.predict(images).scores == predictions.scores).all()
    read.save(mapped)
    assert not (mapped / rf.LISTS_FILE).exists()
    assert (pk.PatchCore.load(mapped, progress=False).predict(images).scores == predictions.scores).all()


def test_large_banks_of_the_reference_are_mapped(large, mapped):
    for name in (rf.EXTRAS_FILE, rf.ARRAYS_FILE, rf.LISTS_FILE):
        (mapped / name).unlink()
    again = pk.PatchCore.load(mapped, "random", resize=144, progress=False)
    assert not again.bank_.stored.flags.writeable
    assert again.predict(large[1]).scores == pytest.approx(large[2].scores, rel=1e-5)


def test_a_mapped_model_outlives_its_folder(large, mapped, random_resnet18):
    _, images, predictions = large
    again = pk.PatchCore.load(mapped, progress=False)
    other = pk.PatchCore(random_resnet18, resize=144, imagesize=128, progress=False).fit(images)
    other.save(mapped)
    assert (again.predict(images).scores == predictions.scores).all()
    again.save(mapped)  # over what has replaced it
    assert (pk.PatchCore.load(mapped, progress=False).predict(images).scores == predictions.scores).all()


def rewrite(folder, name, content):
    """A file of a model with a checksum that is right."""
    (folder / name).write_bytes(content)
    extras = json.loads((folder / rf.EXTRAS_FILE).read_text())
    extras["checksums"][name] = f"{zlib.crc32(content):08x}"
    (folder / rf.EXTRAS_FILE).write_text(json.dumps(extras))


def test_lists_that_cannot_be_used(mapped):
    content = (mapped / rf.LISTS_FILE).read_bytes()
    for damaged in (content[:-1], content[:-8] + b"12345678"):
        (mapped / rf.LISTS_FILE).write_bytes(damaged)
        with pytest.raises(pk.ModelError, match=r"patchcore_kit\.lists \(its checksum differs\)"):
            pk.PatchCore.load(mapped, progress=False)
    generator = np.random.default_rng(0)
    for damaged in (b"", content[:1000], content[:-4], bytes(len(content)), generator.bytes(len(content))):
        rewrite(mapped, rf.LISTS_FILE, damaged)
        with pytest.raises(
            pk.ModelError, match=r"model cannot be used \(the lists of its fast search are of other rows"
        ):
            pk.PatchCore.load(mapped, progress=False)
    (mapped / rf.LISTS_FILE).unlink()
    with pytest.raises(pk.ModelError, match=r"no file .*patchcore_kit\.lists"):
        pk.PatchCore.load(mapped, progress=False)


def test_mapped_rows_that_cannot_be_used(mapped):
    content = (mapped / rf.INDEX_FILE).read_bytes()
    for damaged, message in ((content[:-4], "is not a FAISS index"), (content[:-4] + b"\0\0\xc0\x7f", "not finite")):
        rewrite(mapped, rf.INDEX_FILE, damaged)
        with pytest.raises(pk.ModelError, match=message):
            pk.PatchCore.load(mapped, progress=False)


WORKER = r"""
import re, sys
import numpy as np, torch
from patchcore_kit import reference_format as rf
from patchcore_kit.memory_bank import MemoryBank

rf.LARGE = 2**20
saved = rf.read_model(sys.argv[1])
bank = MemoryBank(saved.rows, prepared=saved.arrays | {"search_lists": saved.lists[0]})
bank.search(torch.from_numpy(np.array(saved.rows[:100] + 1)))
print("open", flush=True)
sys.stdin.readline()  # until both are
sizes = {}
for part in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", open("/proc/self/smaps").read(), flags=re.MULTILINE):
    for name in (rf.INDEX_FILE, rf.LISTS_FILE):
        if name in part:
            for key, size in re.findall(r"^(Rss|Private|Anonymous)\w*: +(\d+) kB", part, re.MULTILINE):
                sizes[key] = sizes.get(key, 0) + int(size)
print(sizes["Rss"], sizes["Private"], sizes["Anonymous"], flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of a process's memory")
def test_processes_share_what_they_map(folder, model, monkeypatch):
    monkeypatch.setattr(rf, "LARGE", 2**20)
    rows = np.random.default_rng(0).normal(size=(6000, 256)).astype(np.float32)
    bank = pk.MemoryBank(rows)
    settings = params(target_embed_dimension=256)
    rf.write_model(folder, rf.SavedModel(settings, bank.stored, model.extras, bank.prepared, bank.lists))
    command = [sys.executable, "-c", WORKER, str(folder)]
    workers = [subprocess.Popen(command, stdin=-1, stdout=-1, text=True) for _ in range(2)]
    assert [worker.stdout.readline() for worker in workers] == ["open\n"] * 2
    sizes = (folder / rf.INDEX_FILE).stat().st_size + (folder / rf.LISTS_FILE).stat().st_size
    for worker in workers:
        worker.stdin.write("\n")
        worker.stdin.flush()
    found = [list(map(int, worker.stdout.readline().split())) for worker in workers]
    for worker in workers:
        worker.communicate("\n")
    for there, own, copied in found:
        assert 1024 * there > 0.95 * sizes
        assert 1024 * own < 0.05 * sizes and copied == 0
