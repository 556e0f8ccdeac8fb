from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

import patchcore_kit as pk
from patchcore_kit.experiments import Outputs, evaluate_models, run_folder, train
from patchcore_kit.results import Results

SETTINGS = {"percentage": 0.1}


@pytest.fixture
def make_detector(random_resnet18):
    return lambda: pk.PatchCore(random_resnet18, resize=72, imagesize=64, progress=False)


@pytest.fixture(scope="module")
def categories(sample_root):
    return [pk.load_category(sample_root, name) for name in pk.list_categories(sample_root)]


def test_run_folders_are_numbered(tmp_path):
    made = []
    for _ in range(3):
        with run_folder(tmp_path, "step1", "0000") as folder:
            (folder / "results.csv").touch()
            made.append(folder.relative_to(tmp_path).as_posix())
    assert made == ["step1/0000", "step1/0000_0", "step1/0000_1"]
    with run_folder(tmp_path, "step1", "0000", resume=True) as folder:
        assert folder == tmp_path / "step1" / "0000"


def test_runs_that_start_together_get_a_folder_each(tmp_path):
    def claim(_):
        with run_folder(tmp_path, "p", "g") as folder:
            (folder / "results.csv").touch()
            return folder

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(claim, range(40)))) == 40


@pytest.mark.parametrize("error", [pk.DataError("bad image"), KeyboardInterrupt(), ValueError("bug")])
def test_a_run_that_fails_at_once_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)), run_folder(tmp_path / "results", "p", "g"):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_results_folder(tmp_path):
    (tmp_path / "results").touch()
    with (
        pytest.raises(pk.ResultsError, match=r"results cannot be written"),
        run_folder(tmp_path / "results", "p", "g"),
    ):
        pass


def test_everything_is_written(tmp_path, categories, make_detector):
    outputs = Outputs(models=True, predictions=True, images=True)
    train(categories, make_detector, Results(tmp_path, SETTINGS), outputs, progress=False)
    table = pd.read_csv(tmp_path / "results.csv")
    assert table.columns[:4].tolist() == ["Row Names", "instance_auroc", "full_pixel_auroc", "anomaly_pixel_auroc"]
    assert table["Row Names"].tolist() == ["mvtec_pill", "mvtec_weave", "Mean"]
    numbers = table.set_index("Row Names")["instance_auroc"]
    assert numbers["Mean"] == pytest.approx(numbers[:2].mean())
    assert table["weights"].tolist()[:2] == ["random", "random"]
    for category in categories:
        name = f"mvtec_{category.name}"
        pictures = list((tmp_path / "segmentation_images" / name).iterdir())
        assert len(pictures) == len(category.test)
        saved = pk.Predictions.load(tmp_path / "predictions" / f"{name}.npz")
        assert pk.evaluate(saved)["instance_auroc"] == numbers[name]
        detector = pk.load_detector(tmp_path / "models" / name, progress=False)
        assert (detector.predict(category.test).scores == saved.scores).all()
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]


def test_an_interrupted_run_keeps_what_it_has_and_goes_on(tmp_path, categories, make_detector):
    made = []

    def interrupted():
        if made:
            raise KeyboardInterrupt
        made.append(make_detector())
        return made[0]

    with pytest.raises(KeyboardInterrupt):
        train(categories, interrupted, Results(tmp_path, SETTINGS), Outputs(models=True), progress=False)
    assert pk.read_results(tmp_path / "results.csv").index.tolist() == ["mvtec_pill", "Mean"]
    before = (tmp_path / "models/mvtec_pill/patchcore_kit.npz").stat().st_mtime_ns

    results = Results(tmp_path, SETTINGS, resume=True)
    train(categories, make_detector, results, Outputs(models=True), progress=False)
    assert pk.read_results(tmp_path / "results.csv").index.tolist() == ["mvtec_pill", "mvtec_weave", "Mean"]
    assert (tmp_path / "models/mvtec_pill/patchcore_kit.npz").stat().st_mtime_ns == before


def test_resuming_makes_what_was_not_asked_for_before(tmp_path, categories, make_detector):
    train(categories[:1], make_detector, Results(tmp_path, SETTINGS), Outputs(), progress=False)
    outputs = Outputs(models=True, predictions=True, images=True)
    train(categories[:1], make_detector, Results(tmp_path, SETTINGS, resume=True), outputs, progress=False)
    for file in ("models/mvtec_pill", "predictions/mvtec_pill.npz", "segmentation_images/mvtec_pill"):
        assert (tmp_path / file).exists()


def test_a_row_of_an_earlier_version_is_kept_until_it_is_made_anew(tmp_path, categories, make_detector, caplog):
    train(categories, make_detector, Results(tmp_path, SETTINGS), Outputs(), progress=False)
    table = pk.read_results(tmp_path / "results.csv")
    assert 100 < table.loc["mvtec_pill", "peak_mb"] < 10_000
    table.drop(columns=["peak_mb", "made_from", "outputs", "checksum"]).to_csv(tmp_path / "results.csv")
    assert Results(tmp_path, SETTINGS, resume=True).table()["peak_mb"].isna().all()
    train(categories[:1], make_detector, Results(tmp_path, SETTINGS, resume=True), Outputs(), progress=False)
    assert "mvtec_pill: its row was changed, or is an earlier version's, so it is made anew" in caplog.text
    after = pk.read_results(tmp_path / "results.csv")
    assert after["peak_mb"].notna().tolist() == [True, False, True]
    assert after.loc["mvtec_weave", "instance_auroc"] == table.loc["mvtec_weave", "instance_auroc"]


def test_resuming_with_other_settings_is_refused(tmp_path, categories, make_detector):
    train(categories[:1], make_detector, Results(tmp_path, SETTINGS), Outputs(), progress=False)
    with pytest.raises(pk.SettingsError, match=r"was made with percentage 0.1, not 0.2"):
        Results(tmp_path, {"percentage": 0.2}, resume=True)


def test_a_category_without_test_images(tmp_path, categories, make_detector):
    blind = pk.Category("blind", categories[0].path, categories[0].train, [])
    train([blind], make_detector, Results(tmp_path, SETTINGS), Outputs(models=True), progress=False)
    row = pk.read_results(tmp_path / "results.csv").loc["mvtec_blind"]
    assert pd.isna(row["instance_auroc"])
    assert row["undefined"] == "all metrics: no test images"
    assert (tmp_path / "models/mvtec_blind").is_dir()


def test_one_model_for_many_categories(tmp_path, categories, make_detector):
    detector = make_detector().fit(categories[0].train)
    detector.save(tmp_path / "model")
    settings, opened = {"models": ["model"]}, []
    results = Results(tmp_path, settings)
    evaluate_models(
        categories, [tmp_path / "model"], lambda p: opened.append(p) or detector, results, Outputs(), progress=False
    )
    assert len(pk.read_results(tmp_path / "results.csv")) == 3
    assert opened == [tmp_path / "model"]
    with pytest.raises(pk.SettingsError, match="3 models for 2 categories"):
        evaluate_models(categories, [tmp_path / "model"] * 3, pk.load_detector, results, Outputs(), progress=False)


def test_published_results_are_read_by_name(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text(
        "Row Names,instance_auroc,full_pixel_auroc,full_pro,anomaly_pixel_auroc,anomaly_pro\nMean,.1,.2,.3,.4,.5\n"
    )
    assert pk.read_results(path).loc["Mean", "anomaly_pixel_auroc"] == 0.4
    with pytest.raises(pk.ResultsError, match="cannot read"):
        pk.read_results(tmp_path / "nowhere.csv")
    path.write_text("something else\n1\n")
    with pytest.raises(pk.ResultsError, match="cannot read"):
        pk.read_results(path)


# how sure, and by kind of defect


def row(value, low=None, high=None):
    return {"instance_auroc": value, "instance_auroc_low": low, "instance_auroc_high": high, "weights": "w"}


def test_the_mean_has_an_interval_where_all_rows_have_one(tmp_path):
    results = Results(tmp_path, SETTINGS)
    results.add("mvtec_a", row(0.9, 0.8, 0.95))
    results.add("mvtec_b", row(0.7, 0.6, 0.8))
    mean = pk.read_results(tmp_path / "results.csv").loc["Mean"]
    assert mean["instance_auroc"] == pytest.approx(0.8)
    assert mean["instance_auroc_low"] == pytest.approx(0.8 - (0.1**2 + 0.1**2) ** 0.5 / 2)
    assert mean["instance_auroc_high"] == pytest.approx(0.8 + (0.05**2 + 0.1**2) ** 0.5 / 2)
    results.add("mvtec_c", row(0.5))  # one class only, or of an earlier version
    assert pd.isna(pk.read_results(tmp_path / "results.csv").loc["Mean", "instance_auroc_low"])


def test_rows_that_the_intervals_do_not_tell_apart_are_tied():
    rows = {"mvtec_a": row(0.7, 0.6, 0.8), "mvtec_b": row(0.75, 0.65, 0.85), "mvtec_c": row(0.95, 0.9, 0.98)}
    rows |= {"mvtec_d": row(0.72), "Mean": row(0.8, 0.7, 0.9)}
    table = pd.DataFrame.from_dict(rows, orient="index")
    assert pk.tied(table, "instance_auroc", "mvtec_a") == ["mvtec_b"]
    assert pk.tied(table, "instance_auroc", "mvtec_c") == []
    assert pk.tied(table, "instance_auroc", "mvtec_d") == []  # not known
    assert pk.tied(table[["instance_auroc"]], "instance_auroc", "mvtec_a") == []


def test_every_metric_of_each_kind_of_defect(tmp_path, categories, make_detector):
    results = Results(tmp_path, SETTINGS)
    train(categories, make_detector, results, Outputs(predictions=True), progress=False)
    table = pk.read_results(tmp_path / "defects.csv")
    assert set(table.index) == {f"mvtec_{category.name}" for category in categories}
    assert set(pk.METRICS) < set(table.columns)
    for category in categories:
        kinds = table.loc[f"mvtec_{category.name}"].set_index("defect")
        defects = [sample.defect for sample in category.test if sample.label == 1]
        assert kinds["images"].to_dict() == {kind: defects.count(kind) for kind in set(defects)}
        predictions = pk.Predictions.load(tmp_path / f"predictions/mvtec_{category.name}.npz")
        kind = defects[0]
        alone = predictions.of([s.defect in ("good", kind) for s in category.test])
        assert kinds.loc[kind, "instance_auroc"] == pytest.approx(pk.evaluate(alone)["instance_auroc"])
        assert kinds.loc[kind, "full_pro"] == pytest.approx(pk.evaluate(alone)["full_pro"])
    again = Results(tmp_path, SETTINGS, resume=True)
    again.add("mvtec_other", row(1.0))
    assert len(pk.read_results(tmp_path / "defects.csv")) == len(table)


def test_runs_of_earlier_versions_are_resumed_with_the_scores_they_had(tmp_path):
    Results(tmp_path, SETTINGS).add("mvtec_a", row(0.9))
    now = SETTINGS | {"scoring": "distance", "alarm_rate": 0.05}
    assert list(Results(tmp_path, now, resume=True).rows) == ["mvtec_a"]
    with pytest.raises(pk.SettingsError, match="was made with scoring distance, not density"):
        Results(tmp_path, now | {"scoring": "density"}, resume=True)
