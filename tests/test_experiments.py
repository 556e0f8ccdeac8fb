from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

import patchcore_kit as pk
from patchcore_kit.experiments import Outputs, Results, evaluate_models, run_folder, train

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


def test_resuming_where_a_column_was_not_known_yet(tmp_path, categories, make_detector):
    train(categories[:1], make_detector, Results(tmp_path, SETTINGS), Outputs(), progress=False)
    table = pk.read_results(tmp_path / "results.csv")
    assert 100 < table.loc["mvtec_pill", "peak_mb"] < 10_000
    table.drop(columns="peak_mb").to_csv(tmp_path / "results.csv")
    assert Results(tmp_path, SETTINGS, resume=True).table()["peak_mb"].isna().all()
    train(categories, make_detector, Results(tmp_path, SETTINGS, resume=True), Outputs(), progress=False)
    assert pk.read_results(tmp_path / "results.csv")["peak_mb"].notna().tolist() == [False, True, True]


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
    evaluate_models(categories, [lambda: detector], Results(tmp_path, {}), Outputs(), progress=False)
    assert len(pk.read_results(tmp_path / "results.csv")) == 3
    with pytest.raises(pk.SettingsError, match="3 models for 2 categories"):
        evaluate_models(categories, [lambda: detector] * 3, Results(tmp_path, {}), Outputs(), progress=False)


def test_published_results_are_read_by_name(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text(
        "Row Names,instance_auroc,full_pixel_auroc,full_pro,anomaly_pixel_auroc,anomaly_pro\nMean,1,2,3,4,5\n"
    )
    assert pk.read_results(path).loc["Mean", "anomaly_pixel_auroc"] == 4
    with pytest.raises(pk.ResultsError, match="cannot read"):
        pk.read_results(tmp_path / "nowhere.csv")
    path.write_text("something else\n1\n")
    with pytest.raises(pk.ResultsError, match="cannot read"):
        pk.read_results(path)
