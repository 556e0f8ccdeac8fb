"""The scripts on real grey images of every shape, and the workshop's two cells; bottle is in `test_readme.py`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import patchcore_kit as pk
from utils import commandline_args, get_evaluate_args, get_train_args

REPOSITORY = Path(__file__).resolve().parents[1]

# the original workshop's cells, as they stand there; `...` are a participant's own arguments
TRAINER_CELL = """
from bin.run_patchcore import main as trainer
with commandline_args(*get_train_args(...)):
    try:
        trainer()
    except SystemExit:
        print("Done.")
"""
EVALUATOR_CELL = """
from bin.load_and_evaluate_patchcore import main as evaluator
with commandline_args(*get_evaluate_args(...)):
    try:
        evaluator()
    except SystemExit:
        print("Done.")
"""


@pytest.mark.parametrize("percentage", ["0.02", pytest.param("0.1", marks=pytest.mark.long)])
@pytest.mark.parametrize("size", ["256", "224x224"])
def test_grey_images_of_every_shape(surface, resnet18_file, tmp_path, size, percentage):
    network = ["patch_core", "-b", "resnet18", "--weights", resnet18_file]
    sampler = ["sampler", "-p", percentage, "approx_greedy_coreset"]
    data = ["dataset", "--resize", size, "-d", "magnetic_tile", "mvtec", surface]
    options = ["--save_predictions"]
    if (size, percentage) != ("256", "0.02"):
        options.append("--save_segmentation_images")  # as long as all the rest
    command = [sys.executable, "bin/run_patchcore.py", *options, tmp_path, *network, *sampler, *data]
    done = subprocess.run(list(map(str, command)), cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "mvtec_magnetic_tile" in done.stdout, done.stderr
    row = pk.read_results(tmp_path / "project/group/results.csv").loc["mvtec_magnetic_tile"]
    if size == "256":
        assert "_mask.png (and 27 more): the defect lies outside the central crop" in done.stderr
        assert "_mask.png (and 1 more): the defect is too thin" in done.stderr  # slivers at the border
    else:  # the whole image
        assert re.search(r"_mask\.png: the defect is too thin for the rule 'inside' at this size", done.stderr)
        assert row["instance_auroc"] > 0.84
        assert row["full_pixel_auroc"] > 0.69


def test_the_workshops_cells(sample_root, tmp_path, capsys):
    small = {"backbone": "resnet18", "resize": 72, "imagesize": 64, "results_path": tmp_path, "weights": "random"}
    train_args = get_train_args(sample_root, ["pill", "weave"], **small)
    exec(TRAINER_CELL, {"commandline_args": commandline_args, "get_train_args": lambda _: train_args})
    models = tmp_path / "step1" / "0000" / "models"
    small = {"resize": 72, "imagesize": 64, "results_path": tmp_path / "evaluation", "weights": "random"}
    evaluate_args = get_evaluate_args(sample_root, ["pill", "weave"], models, **small)
    exec(EVALUATOR_CELL, {"commandline_args": commandline_args, "get_evaluate_args": lambda _: evaluate_args})
    assert capsys.readouterr().out.count("Done.") == 2
    trained, evaluated = (pk.read_results(f / "results.csv") for f in (models.parent, tmp_path / "evaluation"))
    assert trained["instance_auroc"].equals(evaluated["instance_auroc"])
    assert (tmp_path / "evaluation/predictions/mvtec_pill.npz").is_file()


def test_arguments_are_as_typed():
    args = get_train_args("data", ["bottle"], resize=(150, 750), gpu=[0], save_models=False, resume=True)
    assert " ".join(args) == (
        "--seed 0 --log_project step1 --log_group 0000 --gpu 0 --resume experiments patch_core -b wideresnet50 "
        "-le layer2 -le layer3 sampler -p 0.1 approx_greedy_coreset dataset --resize 150x750 -d bottle mvtec data"
    )
    args = get_evaluate_args("data", ["bottle", "pill"], ["a", "b"])
    assert " ".join(args) == (
        "--seed 0 --save_predictions evaluation patch_core_loader -p a -p b "
        "dataset --resize 256 --imagesize 224 -d bottle -d pill mvtec data"
    )


def test_arguments_for_many_jobs():
    sizes = {"resize": [128, 256], "imagesize": [112, 224], "log_group": ["a", "b"]}
    args = get_train_args("data", ["bottle"], **sizes, save_models=False, jobs=4)
    assert " ".join(args) == (
        "--seed 0 --log_project step1 --log_group a --log_group b --jobs 4 experiments patch_core -b wideresnet50 "
        "-le layer2 -le layer3 sampler -p 0.1 approx_greedy_coreset dataset --resize 128 --imagesize 112 "
        "--resize 256 --imagesize 224 -d bottle mvtec data"
    )
    args = get_evaluate_args("data", ["bottle"], ["a"], resize=None, scheduler="tcp://host:8786")
    assert " ".join(args) == (
        "--seed 0 --scheduler tcp://host:8786 --save_predictions evaluation patch_core_loader -p a "
        "dataset -d bottle mvtec data"
    )
    for resize, imagesize in (([128, 256], 224), ([150, 750], 224), (256, [112, 224])):
        with pytest.raises(pk.SettingsError, match="give lists of one length, or a pair"):
            get_train_args("data", ["bottle"], resize=resize, imagesize=imagesize)


def test_arguments_are_put_back():
    before = list(sys.argv)
    with pytest.raises(KeyError), commandline_args("a", "b"):
        assert sys.argv[1:] == ["a", "b"]
        raise KeyError
    assert sys.argv == before
