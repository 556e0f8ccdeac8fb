"""The command line as it is typed: what it writes, and that bad input gives one sentence and nothing half-written."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

import patchcore_kit as pk
from patchcore_kit import reference_format as rf
from patchcore_kit.cli import load_and_evaluate_patchcore, run_patchcore

NETWORK = ["patch_core", "-b", "resnet18", "--weights", "random"]
STARTER = ["patch_core", "-b", "starter"]
SIZE = ["--resize", "72", "--imagesize", "64"]


def run(command, *args, code=0):
    result = CliRunner().invoke(command, [str(a) for a in args])
    if code == 0 and result.exception:
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def train_args(results, data, *, options=(), network=NETWORK, sampler=("approx_greedy_coreset",), dataset=SIZE):
    return [*options, results, *network, "sampler", *sampler, "dataset", *dataset, "mvtec", data]


@pytest.fixture
def data(sample_root, tmp_path):
    """A data set of one's own, to break."""
    shutil.copytree(sample_root, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def trained(sample_root, tmp_path_factory):
    results = tmp_path_factory.mktemp("trained")
    options = ("--save_patchcore_model", "--save_predictions", "--log_project", "step1", "--log_group", "0000")
    run(run_patchcore, *train_args(results, sample_root, options=options))
    return results / "step1" / "0000"


def test_training_then_evaluating_gives_the_same_numbers(trained, sample_root, tmp_path):
    models = [part for name in ("pill", "weave") for part in ("-p", trained / "models" / f"mvtec_{name}")]
    result = run(
        load_and_evaluate_patchcore,
        *("--save_predictions", "--save_segmentation_images", tmp_path / "evaluation"),
        *("patch_core_loader", *models, "dataset", "-d", "pill", "-d", "weave", "mvtec", sample_root),
    )
    before, after = (pk.read_results(folder / "results.csv") for folder in (trained, tmp_path / "evaluation"))
    metrics = ["instance_auroc", "full_pixel_auroc", "anomaly_pixel_auroc", "full_pro", "pixel_threshold"]
    pd.testing.assert_frame_equal(before[metrics], after[metrics], check_exact=True)
    for name in ("mvtec_pill", "mvtec_weave"):
        one, other = (
            pk.Predictions.load(f / "predictions" / f"{name}.npz") for f in (trained, tmp_path / "evaluation")
        )
        assert (one.maps == other.maps).all()
        assert any((tmp_path / "evaluation/segmentation_images" / name).iterdir())
    assert "weights: random" in result.output  # whoever reads the table must know
    assert "mask rule: inside" in result.output


def test_options_for_speed_and_memory_reach_the_model(sample_root, tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHCORE_WORK", str(tmp_path))  # where the image cache is
    chosen = ["--precision", "bfloat16", "--search", "flat", "--storage", "float16"]
    for options, kept in (((), 18), (("--no_image_cache",), 0)):  # 8 training and 10 test images
        dataset = ("--resize", "18", "--imagesize", "16", "-d", "pill", *options)
        network = [*NETWORK, "-le", "layer2", *chosen]
        run(
            run_patchcore,
            *train_args(tmp_path, sample_root, options=("--save_patchcore_model",), network=network, dataset=dataset),
        )
        _, extras = rf.read_settings(tmp_path / "project/group/models/mvtec_pill", "")
        assert {f"--{name}": extras[name] for name in ("precision", "search", "storage")} == dict(
            zip(chosen[::2], chosen[1::2], strict=True)
        )
        assert len(list((tmp_path / ".cache").rglob("*.image"))) == kept
        shutil.rmtree(tmp_path / "project")
        shutil.rmtree(tmp_path / ".cache", ignore_errors=True)


def test_tiles_and_streams_reach_the_model(sample_root, tmp_path):
    options, few = ("--save_patchcore_model",), ("-p", "0.5", "--memory", "15MB", "approx_greedy_coreset")
    dataset = ("--tile", "64", "--overlap", "16", "--aligned", "-d", "pill")
    run(run_patchcore, *train_args(tmp_path / "a", sample_root, options=options, network=STARTER, dataset=dataset))
    detector = pk.load_detector(tmp_path / "a/project/group/models/mvtec_pill", progress=False)
    assert (detector.cut.tile, detector.cut.overlap, detector.cut.aligned) == (64, 16, True)
    with Image.open(next((sample_root / "pill/train/good").iterdir())) as image:
        assert detector.transform.size == image.size[::-1], "as large as they are"
    dataset = ("--tile", "1x2", "--resize", "64x96", "-d", "pill")
    args = train_args(tmp_path / "b", sample_root, options=options, network=STARTER, sampler=few, dataset=dataset)
    run(run_patchcore, *args)
    folder = tmp_path / "b/project/group"
    detector = pk.load_detector(folder / "models/mvtec_pill", progress=False)
    assert (detector.cut.tiles, detector.cut.overlap, detector.transform.size) == ((1, 2), None, (64, 96))
    assert len(detector.bank_) == 8 * 96 // 2
    assert not (folder / "checkpoints").exists()


@pytest.mark.parametrize(
    "dataset, sampler, said",
    [
        (["--overlap", "16", *SIZE], [], "--overlap is for tiles: give --tile as well"),
        (["--aligned", *SIZE], [], "--aligned is for tiles: give --tile as well"),
        (["--tile", "64", *SIZE], [], "--tile shows images whole: give --resize as height x width, or leave it out"),
        (["--tile", "60", "--resize", "128x128"], [], "tile is 60: it must be a multiple of 16"),
        (SIZE, ["--memory", "much"], "memory is 'much': give a number of bytes, or one with a unit, as '2GB'"),
    ],
)
def test_tiles_and_streams_that_cannot_be(sample_root, tmp_path, dataset, sampler, said):
    args = train_args(
        tmp_path / "results", sample_root, dataset=[*dataset, "-d", "pill"], sampler=[*sampler, "approx_greedy_coreset"]
    )
    result = CliRunner().invoke(run_patchcore, [str(a) for a in args])
    assert result.exit_code in (1, 2) and said in " ".join(result.output.split())


def test_a_killed_stream_goes_on_when_its_run_is_resumed(sample_root, tmp_path, monkeypatch, caplog):
    """What a kill leaves: a checkpoint, and no row."""
    caplog.set_level("INFO")
    sampler = ("--memory", "15MB", "approx_greedy_coreset")
    args = train_args(tmp_path, sample_root, network=STARTER, sampler=sampler, dataset=[*SIZE, "-d", "pill"])
    monkeypatch.setattr("patchcore_kit.streaming._settle", lambda *args: 1 / 0)
    assert CliRunner().invoke(run_patchcore, [str(a) for a in args]).exception
    assert (tmp_path / "project/group/checkpoints/mvtec_pill/settings.json").exists()
    monkeypatch.undo()
    run(run_patchcore, "--resume", *args)
    assert not (tmp_path / "project/group/checkpoints").exists()
    assert pk.read_results(tmp_path / "project/group/results.csv").index.tolist() == ["mvtec_pill", "Mean"]


def test_density_scores_and_the_alarm_rate_reach_the_model(sample_root, tmp_path, caplog):
    network = [*NETWORK, "--scoring", "density", "--alarm_rate", "0.2"]
    options = ("--save_patchcore_model", "--save_predictions")
    result = run(run_patchcore, *train_args(tmp_path, sample_root, options=options, network=network))
    folder = tmp_path / "project/group"
    for name in ("pill", "weave"):
        detector = pk.load_detector(folder / f"models/mvtec_{name}", progress=False)
        assert (detector.scoring, detector.alarm_rate) == ("density", 0.2)
        predictions = pk.Predictions.load(folder / f"predictions/mvtec_{name}.npz")
        table = pd.read_csv(folder / f"predictions/mvtec_{name}.csv")
        assert table["verdict"].tolist() == predictions.verdicts.tolist()
        assert table["index"].to_numpy() == pytest.approx(predictions.index)
        row = pk.read_results(folder / "results.csv").loc[f"mvtec_{name}"]
        assert row["alarm_threshold"] == pytest.approx(predictions.alarm_threshold)
        said = (
            f"mvtec_{name}: at the threshold from good images {row['alarm_false_alarms']:.0%} of the good test images"
        )
        assert said in caplog.text
    assert "alarm_false_alarms" in result.output and "alarm_missed" in result.output
    models = [argument for n in ("pill", "weave") for argument in ("-p", folder / f"models/mvtec_{n}")]
    dataset = ["dataset", "-d", "pill", "-d", "weave", "mvtec", sample_root]
    run(load_and_evaluate_patchcore, tmp_path / "again", "patch_core_loader", *models, *dataset)
    same = ["instance_auroc", "full_pro", "alarm_threshold", "instance_auroc_low", "full_pro_5"]
    before, after = (pk.read_results(path / "results.csv")[same] for path in (folder, tmp_path / "again"))
    pd.testing.assert_frame_equal(before, after)


@pytest.mark.parametrize("options", [["--scoring", "lof"], ["--alarm_rate", "0"], ["--alarm_rate", "5"]])
def test_scorings_and_rates_that_cannot_work(sample_root, tmp_path, options):
    result = CliRunner().invoke(
        run_patchcore, [str(a) for a in train_args(tmp_path, sample_root, network=[*NETWORK, *options])]
    )
    assert result.exit_code and not list(tmp_path.iterdir())


def test_training_again_and_resuming(trained, sample_root):
    options = ("--resume", "--save_patchcore_model", "--log_project", "step1", "--log_group", "0000")
    before = {p: p.stat().st_mtime_ns for p in trained.rglob("*") if p.is_file()}
    run(run_patchcore, *train_args(trained.parent.parent, sample_root, options=options))
    assert {p: p.stat().st_mtime_ns for p in trained.rglob("*") if p.is_file()} == before
    fresh = ("--log_project", "step1", "--log_group", "0000")
    run(run_patchcore, *train_args(trained.parent.parent, sample_root, options=fresh, dataset=[*SIZE, "-d", "pill"]))
    assert pk.read_results(trained.parent / "0000_0" / "results.csv").index.tolist() == ["mvtec_pill", "Mean"]


def test_resuming_with_other_data_or_settings_is_refused(trained, data):
    options = ("--resume", "--save_patchcore_model", "--log_project", "step1", "--log_group", "0000")
    for changes, message in (
        ({"dataset": ["--resize", "80", "--imagesize", "64"]}, "was made with resize 72, not 80"),
        ({"sampler": ["-p", "0.2", "approx_greedy_coreset"]}, "was made with percentage 0.1, not 0.2"),
        ({}, "was made with data sample, not data"),
    ):
        result = run(run_patchcore, *train_args(trained.parent.parent, data, options=options, **changes), code=1)
        assert message in result.output


def test_an_interrupted_run_says_how_to_go_on(sample_root, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("patchcore_kit.detector.PatchCore.fit", interrupt)
    result = run(run_patchcore, *train_args(tmp_path / "results", sample_root), code=130)
    assert "the same command with --resume goes on (if it has made a folder with a number" in result.output
    monkeypatch.setattr("patchcore_kit.cli.in_notebook", lambda: True)  # says what to do there itself
    assert run(run_patchcore, *train_args(tmp_path / "results", sample_root), code=130).output == ""


def test_a_notebook_hears_what_is_odd_and_no_more(sample_root, tmp_path, caplog):
    args = [*SIZE, "-d", "pill"]
    logging.getLogger("patchcore_kit").setLevel(logging.WARNING)  # as utils.start does
    run(run_patchcore, *train_args(tmp_path, sample_root, dataset=args))
    assert not [record for record in caplog.records if record.levelno < logging.WARNING]
    logging.getLogger("patchcore_kit").setLevel(logging.NOTSET)
    run(run_patchcore, *train_args(tmp_path, sample_root, dataset=args))
    assert "mvtec_pill: instance_auroc" in caplog.text


def test_ensemble_with_seeds_of_its_own(sample_root, tmp_path):
    network = [
        *("patch_core", "-b", "resnet18.seed-1", "-b", "resnet18.seed-2", "--weights", "random"),
        *("-le", "0.layer2", "-le", "1.layer2", "-le", "1.layer3", "--target_embed_dimension", "384"),
    ]
    args = train_args(
        tmp_path, sample_root, options=["--save_patchcore_model"], network=network, dataset=[*SIZE, "-d", "pill"]
    )
    run(run_patchcore, *args)
    folder = tmp_path / "project/group/models/mvtec_pill"
    first, second = (rf.read_model(folder, prefix) for prefix in rf.prefixes(folder))
    assert [m.params["backbone.name"] for m in (first, second)] == ["resnet18", "resnet18"]
    assert [m.params["layers_to_extract_from"] for m in (first, second)] == [["layer2"], ["layer2", "layer3"]]
    assert [m.extras["seed"] for m in (first, second)] == [1, 2]
    assert first.extras["weights_fingerprint"] != second.extras["weights_fingerprint"]
    model = ["patch_core_loader", "-p", folder, "dataset", "-d", "pill", "mvtec", sample_root]
    run(load_and_evaluate_patchcore, tmp_path / "evaluation", *model)
    numbers = [
        pk.read_results(f / "results.csv")["instance_auroc"] for f in (folder.parents[1], tmp_path / "evaluation")
    ]
    assert numbers[0].equals(numbers[1])


@pytest.mark.parametrize("sampler", ["identity", "greedy_coreset", "random"])
def test_every_sampler_and_rectangular_images(sample_root, tmp_path, sampler):
    args = train_args(
        tmp_path, sample_root, sampler=["-p", "0.2", sampler], dataset=["--resize", "32x64", "-d", "pill"]
    )
    run(run_patchcore, *args)
    rows = 8 * 4 * 8
    kept = pk.read_results(tmp_path / "project/group/results.csv").loc["mvtec_pill", "bank_rows"]
    assert kept == (rows if sampler == "identity" else int(rows * 0.2))


def test_images_without_masks(data, tmp_path):
    shutil.rmtree(data / "pill" / "ground_truth")
    args = train_args(tmp_path / "results", data, dataset=[*SIZE, "--num_workers", "0", "-d", "pill"])
    result = run(run_patchcore, *args)
    row = pk.read_results(tmp_path / "results/project/group/results.csv").loc["mvtec_pill"]
    assert row["instance_auroc"] > 0
    assert pd.isna(row["full_pixel_auroc"])
    assert "\nmvtec_pill: pixel metrics: needs a mask of every defective image" in result.output


# bad input


def refused(tmp_path, message, *args, command=run_patchcore, code=1):
    """One sentence with the message, a code that is not 0, and a results folder that is not even there."""
    result = run(command, *args, code=code)
    assert message in result.output
    assert "Traceback" not in result.output
    lines = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    assert not (tmp_path / "results").exists()


def test_missing_folder(tmp_path):
    refused(tmp_path, f"no data folder {tmp_path / 'nowhere'}", *train_args(tmp_path / "results", tmp_path / "nowhere"))


def test_missing_category(data, tmp_path):
    args = train_args(tmp_path / "results", data, dataset=[*SIZE, "-d", "pil"])
    refused(tmp_path, "no category 'pil'", *args)


def test_a_category_in_the_place_of_the_data(data, tmp_path):
    args = train_args(tmp_path / "results", data / "pill")
    refused(tmp_path, f"no categories in {data / 'pill'}, each a folder with train or test in it: give {data}", *args)


def test_a_file_that_the_system_refuses(data, tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("patchcore_kit.weights.is_lfs_pointer", refuse)
    monkeypatch.setattr("patchcore_kit.cli.list_categories", refuse)
    refused(tmp_path, f"cannot use {data} (Permission denied)", *train_args(tmp_path / "results", data))


def test_empty_category(data, tmp_path):
    for image in (data / "weave/train/good").iterdir():
        image.unlink()
    refused(tmp_path, "no training images in", *train_args(tmp_path / "results", data))


@pytest.mark.parametrize("keep", [100, 3000])
def test_corrupt_and_truncated_images(data, tmp_path, keep):
    image = data / "pill/train/good/003.png"
    image.write_bytes(image.read_bytes()[:keep])
    args = train_args(tmp_path / "results", data, dataset=[*SIZE, "-d", "pill"])
    refused(tmp_path, f"cannot read image {image}", *args)


def test_a_damaged_test_image_leaves_no_part_of_its_category(data, tmp_path):
    image = data / "weave/test/good/001.png"
    image.write_bytes(image.read_bytes()[:3000])
    options = ["--save_predictions", "--save_segmentation_images"]
    result = run(run_patchcore, *train_args(tmp_path / "results", data, options=options), code=1)
    assert f"Error: cannot read image {image}" in result.output
    folder = tmp_path / "results/project/group"
    assert pk.read_results(folder / "results.csv").index.tolist() == ["mvtec_pill", "Mean"]  # what was done is kept
    assert not [p for p in folder.rglob("*") if "weave" in p.name or p.name.startswith(".")]


def test_mask_of_another_size(data, tmp_path):
    mask = next((data / "pill/ground_truth").rglob("*.png"))
    Image.fromarray(np.zeros((9, 9), dtype=np.uint8)).save(mask)
    refused(tmp_path, f"mask {mask} is 9x9 but its image", *train_args(tmp_path / "results", data))


def test_mask_without_an_image(data, tmp_path):
    mask = next((data / "pill/ground_truth").rglob("*.png"))
    shutil.copy(mask, mask.with_name("999_mask.png"))
    refused(tmp_path, f"mask {mask.with_name('999_mask.png')} has no image", *train_args(tmp_path / "results", data))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": [*NETWORK, "-le", "layer9"]}, "layer9"),
        ({"network": ["patch_core", "-b", "resnet19", "--weights", "random"]}, "resnet19"),
        ({"network": [*NETWORK[:3], "--weights", "nowhere.pth"]}, "nowhere.pth"),
        ({"network": [*NETWORK, "-b", "resnet18"]}, "layer 'layer2' belongs to no backbone"),
        ({"network": ["patch_core", "-b", "resnet18.seed-x"]}, "'x' is no seed"),
        (
            {"network": ["patch_core", "-b", "resnet18.seed-99999999999999999999", "--weights", "random"]},
            "seed is 9999",
        ),
        ({"network": [*NETWORK, "--patchsize", "0"]}, "patchsize is 0"),
        ({"network": [*NETWORK, "--faiss_on_gpu"]}, "--faiss_on_gpu needs a GPU"),
        ({"sampler": ["nosuch"]}, "unknown sampler 'nosuch'"),
        ({"sampler": ["-p", "0", "random"]}, "percentage is 0"),
        ({"sampler": ["-p", "2", "random"]}, "percentage is 2"),
        ({"dataset": ["--resize", "64", "--imagesize", "72"]}, "imagesize 72 cannot be cut"),
        ({"dataset": ["--resize", "0"]}, "resize is 0"),
        ({"options": ["--gpu", "0", "--gpu", "1"]}, "--gpu is given 2 times"),
        ({"options": ["--gpu", "99"]}, "99"),
    ],
)
def test_settings_that_cannot_work(sample_root, tmp_path, changes, message):
    refused(tmp_path, message, *train_args(tmp_path / "results", sample_root, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": [*NETWORK, "--preprocessing", "conv"]}, "'conv' is not supported"),
        ({"network": [*NETWORK, "--aggregation", "mlp"]}, "'mlp' is not supported"),
        ({"network": [*NETWORK, "--patchscore", "mean"]}, "'mean' is not supported"),
        ({"network": [*NETWORK, "--patchoverlap", "0.5"]}, "0.5 is not supported"),
        ({"network": [*NETWORK, "-pa", "3"]}, "is not supported"),
        ({"dataset": [*SIZE, "--augment"]}, "is not supported"),
        ({"dataset": [*SIZE, "--train_val_split", "0.9"]}, "0.9 is not supported"),
        ({"dataset": ["--resize", "big"]}, "'big' is no size"),
        ({"dataset": ["--resize", "50x80", "--imagesize", "40"]}, "give one of them"),
        ({"options": ["--log_online"]}, "--log_online"),
        ({"options": ["--seed", "-1"]}, "--seed"),
    ],
)
def test_options_that_do_nothing_are_refused(sample_root, tmp_path, changes, message):
    refused(tmp_path, message, *train_args(tmp_path / "results", sample_root, **changes), code=2)


def test_missing_steps(sample_root, tmp_path):
    refused(tmp_path, "the step 'sampler' is missing", tmp_path / "results", *NETWORK, code=2)


def test_resuming_an_evaluation(trained, sample_root, data, tmp_path):
    model = ["patch_core_loader", "-p", trained / "models/mvtec_pill", "dataset", "-d", "pill", "mvtec"]
    command = [load_and_evaluate_patchcore, "--resume", tmp_path / "evaluation"]
    run(*command, *model, sample_root)
    before = (tmp_path / "evaluation/results.csv").stat().st_mtime_ns
    run(*command, *model, sample_root)
    assert (tmp_path / "evaluation/results.csv").stat().st_mtime_ns == before
    assert "was made with data sample, not data" in run(*command, *model, data, code=1).output
    model[4:4] = ["--resize", "72"]
    assert "was made with resize None, not 72" in run(*command, *model, sample_root, code=1).output


def test_models_saved_for_other_settings(trained, sample_root, tmp_path):
    model = trained / "models/mvtec_pill"
    for size, message in ((["--resize", "80"], "was trained with resize 72"), (["--imagesize", "60"], "imagesize 64")):
        args = ["patch_core_loader", "-p", model, "dataset", *size, "-d", "pill", "mvtec", sample_root]
        refused(tmp_path, message, tmp_path / "results", *args, command=load_and_evaluate_patchcore)
    args = ["patch_core_loader", "-p", tmp_path, "dataset", "-d", "pill", "mvtec", sample_root]
    refused(tmp_path, f"no model in {tmp_path}", tmp_path / "results", *args, command=load_and_evaluate_patchcore)
    args = ["patch_core_loader", "-p", model, "-p", tmp_path, "dataset", "mvtec", sample_root]
    refused(tmp_path, f"no model in {tmp_path}", tmp_path / "results", *args, command=load_and_evaluate_patchcore)
    two = ["patch_core_loader", "-p", model, "-p", model, "dataset", "-d", "pill", "mvtec", sample_root]
    refused(tmp_path, "2 models for 1 categories", tmp_path / "results", *two, command=load_and_evaluate_patchcore)


def read_only(folder: Path, code: str, *args) -> subprocess.CompletedProcess:
    """Run Python code where `folder` cannot be written: by its permission bits, or for root, whom they do not stop,
    by mounting it read-only, for that process alone."""
    command = [sys.executable, "-c", code, *map(str, args)]
    if os.geteuid() == 0:
        mount = f"mount -t tmpfs -o ro none '{folder}'"
        if subprocess.run(["unshare", "--mount", "sh", "-c", mount], capture_output=True, check=False).returncode:
            pytest.skip("root may not mount a read-only folder here")
        command = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$0" "$@"', *command]
    folder.chmod(0o555)
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", ["run_patchcore", "load_and_evaluate_patchcore"])
def test_results_folder_that_cannot_be_written(trained, sample_root, tmp_path, command):
    locked = tmp_path / "locked"
    locked.mkdir()
    if command == "run_patchcore":
        args = train_args(locked, sample_root)
    else:
        model = trained / "models/mvtec_pill"
        args = [locked, "patch_core_loader", "-p", model, "dataset", "-d", "pill", "mvtec", sample_root]
    code = f"import sys; from patchcore_kit import cli; cli.{command}(sys.argv[1:])"
    result = read_only(locked, code, *args)
    assert result.returncode == 1, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert str(locked) in errors[0]
    assert "choose a results folder that you may write to" in errors[0]
    assert list(locked.iterdir()) == []


def test_depth_on_the_command_line(data, tmp_path, caplog):
    for path in (data / "pill").rglob("*.png"):
        if "ground_truth" not in path.parts:
            Image.fromarray(np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16).save(path)
    options = ["--save_patchcore_model", "--log_project", "a"]
    run(run_patchcore, *train_args(tmp_path, data, options=options, dataset=[*SIZE, "-d", "pill"]))
    model = tmp_path / "a/group/models/mvtec_pill"
    assert "12 bits are assumed" in caplog.text and pk.load_transform(model).bits == 12
    for bits, code in (("12", 0), ("10", 1)):
        args = ["patch_core_loader", "-p", model, "dataset", "--bits", bits, "-d", "pill", "mvtec", data]
        output = run(load_and_evaluate_patchcore, tmp_path / "evaluation", *args, code=code).output
        assert code == 0 or "was trained with 12 bits, not 10" in output
    options = ["--save_patchcore_model", "--log_project", "b"]
    args = train_args(tmp_path, data, options=options, dataset=[*SIZE, "--bits", "14", "-d", "pill"])
    caplog.clear()
    run(run_patchcore, *args)
    assert "assumed" not in caplog.text
    assert pk.load_transform(tmp_path / "b/group/models/mvtec_pill").bits == 14


def test_only_what_was_made_is_named(data, tmp_path):
    shutil.rmtree(data / "pill" / "test")
    shutil.rmtree(data / "pill" / "ground_truth")
    options = ["--save_segmentation_images", "--save_predictions", "--save_patchcore_model"]
    output = run(run_patchcore, *train_args(tmp_path, data, options=options, dataset=[*SIZE, "-d", "pill"])).output
    assert "models: " in output and "segmentation images: " not in output and "predictions: " not in output


def test_the_log_says_how_many_good_images_are_called_defective(sample_root, tmp_path, caplog):
    run(run_patchcore, *train_args(tmp_path, sample_root, dataset=[*SIZE, "-d", "pill"]))
    share = pk.read_results(tmp_path / "project/group/results.csv").loc["mvtec_pill", "image_false_alarms"]
    assert f"at the F1-optimal threshold {share:.0%} of the good images are called defective" in caplog.text


def test_paths_in_the_home_folder(trained, sample_root, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").symlink_to(sample_root)
    (tmp_path / "model").symlink_to(trained / "models/mvtec_pill")
    args = ["patch_core_loader", "-p", "~/model", "dataset", "-d", "pill", "mvtec", "~/data"]
    run(load_and_evaluate_patchcore, "~/evaluation", *args)
    assert (tmp_path / "evaluation/results.csv").is_file()


def test_a_model_of_another_category_is_told(trained, sample_root, tmp_path, caplog):
    args = ["patch_core_loader", "-p", trained / "models/mvtec_pill", "dataset", "-d", "weave", "mvtec", sample_root]
    run(load_and_evaluate_patchcore, tmp_path / "evaluation", *args)
    assert caplog.text.count("is of another category than the model's, pill") == 1
