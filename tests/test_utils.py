"""What the notebooks share; the command lines themselves are run in test_scripts.py."""

import dataclasses
import shutil
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

import patchcore_kit as pk
import utils
from patchcore_kit.calibration import Calibration


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Less than `start` draws: it is enough to see which files are made."""
    folder = tmp_path_factory.mktemp("drawn") / "sample_small"
    few = {"train": 4, "good": 2, "defective": 2, "size": 128}
    return pk.draw_sample_data(folder, ("pill", "screw", "weave"), **few, progress=False)


@pytest.fixture
def work(tmp_path, drawn, monkeypatch):
    """An empty work folder; the current folder and matplotlib's settings come back afterwards."""
    monkeypatch.setattr(
        utils, "_draw_sample_data", lambda: shutil.copytree(drawn, Path("data/sample_small"), dirs_exist_ok=True)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATCHCORE_WORK", str(tmp_path))
    monkeypatch.setenv("PATCHCORE_SMALL", "1")
    monkeypatch.delenv("MVTEC_ROOT", raising=False)
    for name in ("TORCH_HOME", "HF_HOME", "PATCHCORE_WEIGHTS"):
        monkeypatch.setenv(name, str(tmp_path / "weights"))
    with mpl.rc_context():
        yield tmp_path


def test_start_says_what_there_is(work, sample_root, monkeypatch, capsys):
    data, gpus = utils.start()
    assert pk.list_categories(data) == ["pill", "screw", "weave"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "[OK] packages", f"[{'OK' if gpus else '--'}] GPU", "[--] data", "[--] published weights", "[--] trained models"
    ]  # fmt: skip
    monkeypatch.setenv("MVTEC_ROOT", "nowhere")
    utils.start()
    assert "[--] MVTEC_ROOT: no categories in nowhere\n" in capsys.readouterr().out
    (work / "weights").mkdir()
    (work / "weights/resnet18.pth").touch()
    monkeypatch.setenv("MVTEC_ROOT", str(sample_root))
    assert utils.start()[0] == sample_root
    assert "[OK] published weights: resnet18" in capsys.readouterr().out


def test_a_run_is_made_once_and_evaluated_once(work, capsys):
    data, _ = utils.start()
    run = utils.find_or_train(data, utils.task1_run(data))
    assert "trained now, with starter" in capsys.readouterr().out
    assert list(pk.read_results(run / "results.csv").index) == ["mvtec_pill", "mvtec_screw", "mvtec_weave", "Mean"]
    assert set(pk.read_results(run / "results.csv")["weights"].dropna()) == {"starter"}
    assert len(pk.find_models()) == 3
    made = (run / "results.csv").stat().st_mtime_ns
    assert utils.find_or_train(data, run) == run and (run / "results.csv").stat().st_mtime_ns == made

    folder = utils.find_or_evaluate(data, run)
    predictions = folder / "predictions/mvtec_pill.npz"
    evaluated = predictions.stat().st_mtime_ns
    utils.find_or_evaluate(data, run)
    assert predictions.stat().st_mtime_ns == evaluated  # it is there
    predictions.unlink()
    utils.find_or_evaluate(data, run)
    assert predictions.exists()  # what is missing is made
    evaluated = predictions.stat().st_mtime_ns
    capsys.readouterr()
    shutil.rmtree(run)
    utils.find_or_evaluate(data, utils.find_or_train(data, run))
    assert predictions.stat().st_mtime_ns > evaluated  # the models are newer
    dataclasses.replace(pk.Predictions.load(predictions), evidence=None).save(predictions)
    utils.find_or_evaluate(data, run)
    assert pk.Predictions.load(predictions).evidence is not None  # those of earlier versions had no reasons
    evaluated = predictions.stat().st_mtime_ns
    args = utils.get_evaluate_args(data, ["pill"], run / "models")  # another evaluation in the same place
    with utils.commandline_args(*args), pytest.raises(SystemExit):
        utils.load_and_evaluate_patchcore()
    assert "mvtec_weave" not in pk.read_results(folder / "results.csv").index
    utils.find_or_evaluate(data, run)
    assert "mvtec_weave" in pk.read_results(folder / "results.csv").index


def test_another_backbone_is_one_word(work, resnet18_file, monkeypatch):
    """Its results lie beside the starter's, and are found where the starter's are found."""
    monkeypatch.setenv("PATCHCORE_WEIGHTS", str(resnet18_file.parent))
    data, _ = utils.start()
    runs = [utils.find_or_train(data, utils.task1_run(data, name), backbone=name) for name in ("starter", "resnet18")]
    assert runs == [Path("experiments/step1/0000"), Path("experiments/step1/sample_small-resnet18-224")]
    for run, weights in zip(runs, ("starter", "resnet18.pth"), strict=True):
        evaluated = pk.read_results(utils.find_or_evaluate(data, run, utils.evaluation_folder(run)) / "results.csv")
        assert set(evaluated["weights"].dropna()) == {weights}


def test_a_run_of_some_categories_says_so(work, capsys):
    data, _ = utils.start()
    args = utils.get_train_args(data, ["pill"], backbone="resnet18", weights="random")
    with utils.commandline_args(*args), pytest.raises(SystemExit):
        utils.run_patchcore()
    run = utils.find_or_train(data, "experiments/step1/0000")
    assert "has no screw, weave: task 1 adds them" in capsys.readouterr().out
    assert list((utils.find_or_evaluate(data, run) / "predictions").glob("*.npz")) != []


def test_data_behind_a_link(work, sample_root, monkeypatch):
    """The script records where the link leads."""
    (work / "linked").symlink_to(sample_root)
    monkeypatch.setenv("MVTEC_ROOT", "linked")
    data, _ = utils.start()
    assert data.name == "linked"
    run = utils.find_or_train(data, "experiments/step1/mine")
    assert utils.find_or_train(data, run) == run
    made = (utils.find_or_evaluate(data, run) / "results.csv").stat().st_mtime_ns
    assert (utils.find_or_evaluate(data, run) / "results.csv").stat().st_mtime_ns == made


def test_a_run_of_other_data_is_not_mistaken_for_this(work, sample_root):
    run = utils.find_or_train(utils.start()[0], "experiments/step1/0000")
    with pytest.raises(pk.ResultsError, match="was made from sample_small, not sample: set RUN to another folder"):
        utils.find_or_train(sample_root, run)


def test_sizes_come_back_in_one_table(work):
    data, _ = utils.start()
    options = {"backbone": "resnet18", "weights": "random", "percentage": 0.05}
    table = utils.train_at_sizes(data, ["pill", "weave"], [56, 112], **options)
    assert table[["category", "size"]].to_numpy().tolist() == [
        ["pill", 56], ["weave", 56], ["pill", 112], ["weave", 112]
    ]  # fmt: skip
    assert table["bank_rows"].tolist() == [9, 9, 39, 39]
    assert (table["peak_mb"] > 100).all()
    again = utils.train_at_sizes(data, ["pill"], [56], **options)  # done before: nothing is trained
    assert again["fit_seconds"].tolist() == table["fit_seconds"].tolist()[:1]
    more = utils.train_at_sizes(data, ["pill"], [56], **(options | {"percentage": 0.1}))  # in a folder of its own
    assert more["bank_rows"].tolist() == [19]
    names = {path.name for path in Path("experiments/step7").iterdir()}
    assert names == {f"sample_small-resnet18-{end}" for end in ("56-5percent", "112-5percent", "56")}
    with pytest.raises(pk.ResultsError, match="give a weights file"):
        utils.train_at_sizes(data, ["pill"], [28], **(options | {"weights": "nowhere.pth"}))
    for sizes in (56, [], "56"):
        with pytest.raises(pk.SettingsError, match="sizes is "):
            utils.train_at_sizes(data, ["pill"], sizes, **options)


@pytest.mark.long
def test_sizes_that_are_trained_at_once(work):
    data, _ = utils.start()
    options = {"backbone": "starter", "percentage": 0.05}
    tables = [
        utils.train_at_sizes(data, ["pill", "weave"], [56, 112], project=f"with_{jobs}", jobs=jobs, **options)
        for jobs in (None, 2)
    ]
    same = ["category", "size", "bank_rows", "weights"]
    pd.testing.assert_frame_equal(*(table[same] for table in tables))
    one, other = (table["instance_auroc"].to_numpy() for table in tables)
    assert one == pytest.approx(other, abs=1e-3)  # threads differ, and so does rounding


def test_results_lie_by_data_and_settings(work, sample_root, capsys):
    """Another size, other data: each has a folder, which is found again, and the later tasks choose."""
    data, _ = utils.start()

    def train(data, names, **settings):
        run = utils.run_folder("step1", data, **settings)
        args = utils.get_train_args(data, names, log_group=run.name, backbone="starter", resume=True, **settings)
        with utils.commandline_args(*args), pytest.raises(SystemExit) as end:
            utils.run_patchcore()
        utils.ended(end.value)
        return run

    assert utils.task1_run(data) == Path("experiments/step1/0000")  # to be made
    for wrong in ({"percentage": "0.1"}, {"imagesize": "224"}, {"layers": 5}, {"backbone": None}):
        with pytest.raises(pk.SettingsError, match=next(iter(wrong)).upper()):
            utils.run_folder("step1", data, **wrong)
    for wrong in ("nowhere", 5, None):
        with pytest.raises(pk.SettingsError, match="RUN is "):
            utils.find_or_train(data, wrong)
    small = train(data, ["pill"], resize=64, imagesize=56)
    assert small == Path("experiments/step1/sample_small-starter-56")
    capsys.readouterr()
    assert utils.task1_run(data) == small and capsys.readouterr().out == ""  # there is nothing else
    first = train(data, ["pill"])
    other = train(sample_root, ["weave"])
    odd = train(data, ["pill"], resize=80, imagesize=56, percentage=0.05, layers=("layer2",))
    assert [run.name for run in (first, other, odd)] == [
        "0000", "sample-starter-224", "sample_small-starter-56-layer2-5percent-of80"
    ]  # fmt: skip
    assert utils.run_folder("step1", data, resize=64, imagesize=56) == small  # found again
    assert train(data, ["screw"], resize=64, imagesize=56) == small
    assert utils.trained_categories(small) == ["pill", "screw"]
    capsys.readouterr()
    assert utils.task1_run(data) == first
    said = capsys.readouterr().out
    assert said.startswith(f"results of {first}; there are also {small}") or f"also {odd}" in said
    assert utils.task1_run(sample_root) == other and capsys.readouterr().out == ""
    (small / "settings.json").write_text("{")
    assert utils.run_folder("step1", data, resize=64, imagesize=56).name == f"{small.name}_2"
    assert "remove it, or move its folder away" in capsys.readouterr().out


def test_other_data_of_the_same_name_is_told_by_its_categories(work, drawn, tmp_path):
    data, _ = utils.start()
    first = utils.find_or_train(data, utils.run_folder("step1", data))
    other = tmp_path / "elsewhere/sample_small"
    shutil.copytree(data / "pill", other / "nut")
    assert utils.run_folder("step1", other) == first.with_name("sample_small-starter-224")


WRONG = {
    "CATEGORIES": {
        "pill": "write \\['pill'\\]",
        (): "is an empty list",
        ("pil",): "unknown category 'pil'",
        None: "no list",
    },
    "CATEGORY": {"pil": "unknown category 'pil': there are pill, screw, weave", 3: "unknown category 3"},
    "SIZES": {
        224: r"SIZES is 224, which is no list: write \[224\]",
        (): "empty",
        ("224",): "whole number",
        (0,): "from 1",
    },
    "METRIC": {"auroc": "unknown metric 'auroc': there are instance_auroc", ("instance_auroc",): "unknown metric"},
    "METRICS": {"instance_auroc": "no list", ("auroc",): "unknown metric"},
    "BACKBONE": {5: "a name, as 'starter'", ("starter",): "a name"},
    "LAYERS": {"layer2": "no list", (2,): "a name"},
    "PERCENTAGE": {"0.1": "a share, above 0", 0: "above 0", 2: "at most 1", True: "a share"},
    "N": {0: "whole number from 1", "5": "whole number", 2.5: "whole number", True: "whole number"},
    "RESIZE": {"256": "whole number", (256,) * 2 + ("x",): "whole number"},
    "IMAGESIZE": {0: "whole number from 16", "224": "whole number", None: "whole number"},
    "RUN": {None: "the name of a folder", 5: "the name of a folder"},
    "GOOD": {5: "the name of a folder"},
    "DEVICE": {None: "a name"},
    "DIGITS": {-1: "whole number from 0", "3": "whole number"},
    "JOBS": {0: "whole number from 1", "2": "whole number"},
    "SCHEDULER": {8786: "an address, as 'tcp://host:8786'"},
}


@pytest.mark.parametrize("name", WRONG)
def test_parameters_of_the_wrong_kind(name, work):
    data, _ = utils.start()
    right = {"CATEGORIES": ["pill"], "CATEGORY": "", "SIZES": [112], "METRIC": "alarm_missed", "BACKBONE": "starter"}
    right |= {"METRICS": ["full_pro"], "LAYERS": ("layer2",), "PERCENTAGE": 0.1, "N": np.int64(5), "DIGITS": 0}
    right |= {"JOBS": None, "SCHEDULER": None}
    utils.check_parameters(data, **right)
    for value, said in WRONG[name].items():
        with pytest.raises(pk.SettingsError, match=said) as caught:
            utils.check_parameters(data, **(right | {name: value}))
        assert str(caught.value).count(". ") == 0


def test_no_list_of_categories_is_no_command():
    for categories in ("pill", [], None):
        with pytest.raises(pk.SettingsError, match="categories is "):
            utils.get_train_args("data", categories)
        with pytest.raises(pk.SettingsError, match="categories is "):
            utils.get_evaluate_args("data", categories, "models")
    with pytest.raises(pk.SettingsError, match="layers is 'layer2'"):
        utils.get_train_args("data", ["pill"], layers="layer2")


def test_how_a_script_has_ended(capsys):
    utils.ended(SystemExit(0))
    assert capsys.readouterr().out == "Done.\n"
    for code, said in {130: "Stopped. Run the cell again to go on.", 1: "It failed", 2: "It failed"}.items():
        with pytest.raises(pk.KitError, match=said):
            utils.ended(SystemExit(code))


@pytest.mark.parametrize(
    ("auroc", "pages"),
    [
        ({"a": 1.0, "b": 0.95, "c": 0.91, "d": 0.5}, "bcbc"),  # those from .9 to .97, the nearest to .94 first
        ({"a": 1.0, "b": 0.98, "c": 0.7}, "bbbb"),  # none: the nearest
        ({"a": None, "b": None}, "aaaa"),  # nothing known: the first
    ],
)
def test_pages_show_categories_that_are_nearly_right(auroc, pages, tmp_path):
    for name in auroc:
        (tmp_path / "data" / name / "train").mkdir(parents=True)
    table = pd.DataFrame({"instance_auroc": auroc}).add_prefix("mvtec_", axis="index").rename_axis("Row Names")
    table.to_csv(tmp_path / "results.csv")
    chosen = [utils.teaching_category(tmp_path / "data", page, tmp_path) for page in range(4)]
    assert "".join(chosen) == pages
    assert utils.teaching_category(tmp_path / "data") == "a"  # no results, and of no known data
    assert utils.teaching_category(tmp_path / "data", 0, tmp_path, ["a"]) == "a"


def test_pages_of_known_data(tmp_path):
    for root, names in {"sample": utils.SAMPLE_AUROC, "mvtec": ("bottle", "cable", "capsule", "pill")}.items():
        for name in names:
            (tmp_path / root / name / "train").mkdir(parents=True)
    assert [utils.teaching_category(tmp_path / "sample", page) for page in range(4)] == [
        "weave",
        "board",
        "screw",
        "weave",
    ]
    assert utils.teaching_category(tmp_path / "mvtec") == "pill"  # .967 as published


def test_arguments_for_models_of_any_size():
    args = utils.get_evaluate_args("data", ["a"], "models", resize=None)
    assert "--resize" not in args and "--imagesize" not in args


# data that lacks something


def test_categories_without_test_images_are_left_out(work, capsys):
    data, _ = utils.start()
    shutil.rmtree(data / "screw/test")
    shutil.rmtree(data / "screw/ground_truth")
    run = utils.find_or_train(data, "experiments/step1/mine")
    capsys.readouterr()
    folder = utils.find_or_evaluate(data, run)
    assert capsys.readouterr().out.startswith("screw: no test images to evaluate\n")
    assert list(pk.read_results(folder / "results.csv").index) == ["mvtec_pill", "mvtec_weave", "Mean"]
    made = (folder / "results.csv").stat().st_mtime_ns
    assert (utils.find_or_evaluate(data, run) / "results.csv").stat().st_mtime_ns == made
    for name in ("pill", "weave"):
        shutil.rmtree(data / name / "test")
        shutil.rmtree(data / name / "ground_truth")
    assert utils.find_or_evaluate(data, run, "none") == run and not Path("none").exists()
    assert utils.with_test_images(data, ["pill", "weave"]) == []
    assert "pill, weave: no test images to evaluate" in capsys.readouterr().out


def test_what_is_not_known_is_a_sentence(capsys):
    with utils.as_far_as_known():
        print("before")
        raise pk.DataError("no masks here")
    assert capsys.readouterr().out == "before\nno masks here\n"
    with pytest.raises(pk.ResultsError), utils.as_far_as_known():
        raise pk.ResultsError("something else")


def test_predictions_of_no_images():
    none = utils.no_predictions()
    assert len(none.table()) == 0 and set(none.table()) >= {"name", "defect", "label", "score"}
    assert not any(pk.evaluate(none)[metric] for metric in pk.METRICS)


@pytest.mark.parametrize(
    ("columns", "chosen", "says"),
    [
        (("margin", "score"), "margin", ""),
        (("iou", "margin", "score"), "margin", "iou is not defined: sorted by margin\n"),  # it has no values
        (("verdict", "other"), "other", "verdict is not defined: sorted by other\n"),  # neither is there
    ],
)
def test_first_column_that_is_known(columns, chosen, says, capsys):
    table = pd.DataFrame({"score": [1.0, 2], "margin": [0.5, np.nan], "iou": [np.nan, np.nan]})
    assert utils.first_known(table, *columns) == chosen
    assert capsys.readouterr().out == says
    assert utils.first_known(table[:0], *columns) == columns[-1] and capsys.readouterr().out == ""


def test_categories_are_picked_by_what_is_known(capsys):
    rows = {"instance_f1": [0.8, 0.9, 0.7], "full_pixel_f1": [0.1, 0.2, np.nan], "full_pro": [np.nan] * 3}
    table = pd.DataFrame(rows, ["mvtec_a", "mvtec_b", "mvtec_c"])
    table.loc["Mean"] = 1.0
    table.loc["Mean", "full_pro"] = np.nan
    assert utils.pick_category(table, "instance_f1") == "b"
    assert utils.pick_category(table, "instance_f1", worst=True) == "c"
    assert utils.pick_category(table, "full_pixel_f1", "instance_f1", worst=True) == "a"
    assert capsys.readouterr().out == ""
    assert utils.pick_category(table, "full_pro", "instance_f1") == "b"
    assert capsys.readouterr().out == "full_pro is not defined: chosen by instance_f1\n"
    assert utils.pick_category(table, "full_pro", worst=True) == "a"
    assert capsys.readouterr().out == "full_pro is not defined: the first category is taken\n"
    with pytest.raises(pk.SettingsError, match="unknown metric 'auroc': there are instance_f1"):
        utils.pick_category(table, "auroc")
    table["alarm_missed"] = [0.1, 0.5, 0.2, 0.3]  # of errors the least is best
    assert [utils.pick_category(table, "alarm_missed", worst=worst) for worst in (True, False)] == ["b", "a"]


def some_predictions(labels, scores):
    maps = np.ones((len(labels), 4, 4), np.float32) * np.array(scores, np.float32)[:, None, None]
    masks = np.zeros(maps.shape, bool)
    masks[np.array(labels) == 1, 0, 0] = True
    names = tuple(f"test/{'dent' if label == 1 else 'good'}/{i}.png" for i, label in enumerate(labels))
    return pk.Predictions(maps.max(axis=(1, 2)), maps, np.array(labels), masks, names)


def test_examples_are_defects_and_false_alarms():
    some = some_predictions([0, 0, 0, 1, 1, 1], [1, 5, 2, 3, 9, 4])
    for by in ("margin", "score", "map_max"):
        assert utils.examples_of(some, by, 2, worst=True).index.tolist() == [3, 5, 1, 2], by
        assert utils.examples_of(some, by, 2).index.tolist() == [4, 5, 0, 2], by
    assert utils.examples_of(some, "iou", 1, worst=True)["label"].tolist() == [1, 0]  # good ones by their score
    assert utils.examples_of(some, "iou", 9).index[3:].tolist() == [0, 2, 1]
    unknown = some_predictions([-1, -1, -1], [1, 5, 2])
    assert utils.examples_of(unknown, "margin", 2, worst=True).index.tolist() == [1, 2]
    assert len(utils.examples_of(utils.no_predictions(), "margin", 2)) == 0
    with pytest.raises(pk.SettingsError, match="unknown EXAMPLE_METRIC 'verdict': there are "):
        utils.examples_of(some, "verdict", 2)


def test_an_example_of_any_category(sample_root, capsys):
    category = pk.load_category(sample_root, "pill")
    assert utils.example_of(category).label == 1 and capsys.readouterr().out == ""
    kinds = [sample.defect for sample in category.test if sample.label == 1]

    class Judge:
        def predict(self, samples):
            assert [sample.name.rpartition("/")[2] for sample in samples] == ["000.png"] * len(set(kinds))
            return some_predictions([1] * len(samples), [sample.defect == kinds[-1] for sample in samples])

    assert utils.example_of(category, Judge()).defect == kinds[-1]  # the strangest of the first of each kind
    good = [sample for sample in category.test if sample.label == 0]
    assert utils.example_of(dataclasses.replace(category, test=good)) is good[0]
    assert capsys.readouterr().out == f"no defective test images: {good[0].name} instead\n"
    assert utils.example_of(dataclasses.replace(category, test=[])) is category.train[0]
    assert capsys.readouterr().out.startswith("no test images: train/good/000.png instead")


def test_categories_that_the_intervals_do_not_tell_apart_are_said_to_be_tied(capsys):
    values = {"f1": [0.8, 0.85, 0.2], "f1_low": [0.7, 0.75, 0.1], "f1_high": [0.9, 0.95, 0.3]}
    table = pd.DataFrame(values, ["mvtec_a", "mvtec_b", "mvtec_c"])
    assert utils.pick_category(table, "f1") == "b"
    assert capsys.readouterr().out == "b has the highest f1, but by the intervals of 95 % it is tied with a\n"
    assert utils.pick_category(table, "f1", worst=True) == "c"
    assert capsys.readouterr().out == ""


def test_thresholds_are_said_with_what_they_promise(capsys):
    utils.say_thresholds(utils.no_predictions())
    assert capsys.readouterr().out.startswith("the model has no threshold from good images")
    scores = np.arange(1.0, 101)
    known = dataclasses.replace(utils.no_predictions(), calibration=Calibration(scores, scores, 0.05))
    utils.say_thresholds(known)
    look, defective = capsys.readouterr().out.splitlines()
    assert look.startswith("look above 96 for 5% false alarms, from 100 good images: the true rate lies between")
    assert defective.startswith("defective above 100 for 1% false alarms")


def test_own_photographs_or_some_of_the_data(work, sample_root, capsys):
    folders = Path("own/good"), Path("own/new")
    good, judged = utils.own_photographs(sample_root, *folders, most=5)
    assert capsys.readouterr().out == f"own/good holds no photographs yet: it goes on with pill of {sample_root}\n"
    assert len(good) == 5 and {sample.label for sample in good} == {0}
    assert len(judged) == 10 and {(sample.label, sample.mask_path) for sample in judged} == {(-1, None)}
    folders[0].mkdir(parents=True)
    (folders[0] / ".DS_Store").touch()
    assert utils.own_photographs(sample_root, *folders, most=5)[0] == good  # nothing that counts
    capsys.readouterr()
    for n in (1, 2):
        shutil.copy(good[n].path, folders[0])
    good, judged = utils.own_photographs(sample_root, *folders)
    assert [sample.name for sample in good] == ["001.png", "002.png"] and judged == good
    assert good[0].label == 0 and capsys.readouterr().out.startswith("there are none to judge")
    shutil.copytree(folders[0], folders[1])
    (folders[1] / "001.png").unlink()
    good, judged = utils.own_photographs(sample_root, *folders)
    assert len(good) == 2 and [(sample.name, sample.label) for sample in judged] == [("002.png", -1)]
    assert capsys.readouterr().out == ""
    (folders[1] / "002.png").rename("elsewhere.png")
    (folders[1] / "notes.txt").touch()
    with pytest.raises(pk.DataError, match="no images in own/new"):
        utils.own_photographs(sample_root, *folders)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b'{"data": ' + b"[" * 30_000, b'{"data": NaN}'])
def test_settings_that_cannot_be_read(tmp_path, content):
    (tmp_path / "settings.json").write_bytes(content)
    with pytest.raises(pk.ResultsError, match=r"cannot read .*settings\.json \(.*remove it, or move its folder away"):
        utils._settings(tmp_path)
