import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pandas as pd
import pytest
from PIL import Image

import patchcore_kit as pk
from patchcore_kit.executors import Outcome
from patchcore_kit.experiments import Outputs, evaluate_models, evaluation_folder, run_folder, train
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


def test_rows_stand_in_their_order_whichever_comes_first(tmp_path):
    Results(tmp_path, SETTINGS).add("mvtec_z", row(0.5))
    results = Results(tmp_path, SETTINGS, resume=True)
    results.expect(["mvtec_a", "mvtec_b", "mvtec_c"])
    defects = pd.DataFrame({"images": [3]}, index=pd.Index(["dent"], name="defect"))
    for name in ("mvtec_c", "mvtec_other", "mvtec_a", "mvtec_b"):
        results.add(name, row(0.9), defects)
    named = ["mvtec_a", "mvtec_b", "mvtec_c", "mvtec_other"]
    assert pk.read_results(tmp_path / "results.csv").index.tolist() == ["mvtec_z", *named, "Mean"]
    assert pk.read_results(tmp_path / "defects.csv").index.tolist() == named


def test_elsewhere_the_most_images_are_given_out_first(tmp_path, categories, make_detector):
    given = []

    class Elsewhere:
        def run(self, task, jobs):
            for number, job in enumerate(jobs):
                given.append(len(job.category.train))
                yield number, Outcome(error=pk.DataError("is not done"))

    some = [replace(category, train=category.train[:n]) for category, n in zip(categories, (2, 5), strict=True)]
    with pytest.raises(pk.KitError, match="2 of 2 categories are not done"):
        train(some, make_detector, Results(tmp_path, SETTINGS), Outputs(), executor=Elsewhere(), progress=False)
    assert given == [5, 2]


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


@pytest.mark.parametrize(
    ("project", "group"), [("p", "other/demo"), ("p", "../x"), ("p", ""), ("a/b", "g"), (".", "g")]
)
def test_names_of_runs_lead_nowhere_else(tmp_path, project, group):
    (tmp_path / "p" / "demo").mkdir(parents=True)
    (tmp_path / "p" / "other").mkdir()
    (tmp_path / "p" / "demo" / "results.csv").write_text("finished")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(pk.SettingsError, match=r"log_(group|project) is"), run_folder(tmp_path, project, group):
        pass
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "p" / "demo" / "results.csv").read_text() == "finished"


def test_two_runs_do_not_write_into_one_folder(tmp_path):
    with run_folder(tmp_path, "p", "g") as folder:
        (folder / "results.csv").touch()
        with (
            pytest.raises(pk.ResultsError, match="another run is writing"),
            run_folder(tmp_path, "p", "g", resume=True),
        ):
            pass
        with pytest.raises(pk.ResultsError, match="another run is writing"), evaluation_folder(folder):
            pass
    with run_folder(tmp_path, "p", "g", resume=True):
        pass


def _change(category, what):
    """One image of a category, changed in one bit; or one more; or one less."""
    if what == "bit":
        content = bytearray(category.train[0].path.read_bytes())
        content[-1] ^= 1  # of the checksum of PNG's last part, which no decoder looks at
        category.train[0].path.write_bytes(content)
    elif what == "mask":
        mask = next(sample.mask_path for sample in category.test if sample.mask_path)
        mask.write_bytes(mask.read_bytes() + b" ")
    elif what == "more":
        shutil.copy(category.train[0].path, category.path / "train" / "good" / "more.png")
    else:
        next(sample for sample in category.test if sample.label == 0).path.unlink()


@pytest.mark.parametrize("what", ["bit", "mask", "more", "less"])
def test_a_row_of_other_images_is_made_anew(tmp_path, sample_root, make_detector, what, caplog):
    data = shutil.copytree(sample_root, tmp_path / "data")
    load = lambda: [pk.load_category(data, name) for name in ("pill", "weave")]  # noqa: E731
    run, made = tmp_path / "run", []
    count = lambda: made.append(1) or make_detector()  # noqa: E731
    train(load(), count, Results(run, SETTINGS), Outputs(), progress=False)
    train(load(), count, Results(run, SETTINGS, resume=True), Outputs(), progress=False)
    assert len(made) == 2
    before = pk.read_results(run / "results.csv")
    _change(load()[0], what)
    train(load(), count, Results(run, SETTINGS, resume=True), Outputs(), progress=False)
    assert len(made) == 3  # pill alone
    assert "mvtec_pill: its images, masks or model have changed since, so it is made anew" in caplog.text
    after = pk.read_results(run / "results.csv")
    pd.testing.assert_series_equal(before.loc["mvtec_weave"], after.loc["mvtec_weave"])
    assert before.loc["mvtec_pill", "made_from"] != after.loc["mvtec_pill", "made_from"]


def test_a_row_that_was_changed_by_hand_is_made_anew(tmp_path, categories, make_detector, caplog):
    train(categories, make_detector, Results(tmp_path, SETTINGS), Outputs(), progress=False)
    text = (tmp_path / "results.csv").read_text()
    auroc = pk.read_results(tmp_path / "results.csv").loc["mvtec_pill", "instance_auroc"]
    (tmp_path / "results.csv").write_text(text.replace(f"mvtec_pill,{auroc}", "mvtec_pill,1.0"))
    train(categories, make_detector, Results(tmp_path, SETTINGS, resume=True), Outputs(), progress=False)
    assert "mvtec_pill: its row was changed" in caplog.text and "mvtec_weave: its row" not in caplog.text
    assert pk.read_results(tmp_path / "results.csv").loc["mvtec_pill", "instance_auroc"] == auroc


def test_outputs_of_an_earlier_row_are_not_taken_for_this_ones(tmp_path, sample_root, make_detector):
    data = shutil.copytree(sample_root, tmp_path / "data")
    run = tmp_path / "run"
    train([pk.load_category(data, "pill")], make_detector, Results(run, SETTINGS), Outputs(predictions=True))
    _change(pk.load_category(data, "pill"), "less")
    some = [pk.load_category(data, "pill")]
    train(some, make_detector, Results(run, SETTINGS, resume=True), Outputs())  # leaves the old predictions there
    train(some, make_detector, Results(run, SETTINGS, resume=True), Outputs(predictions=True))
    assert len(pk.Predictions.load(run / "predictions/mvtec_pill.npz").scores) == len(some[0].test)
    (run / "predictions/mvtec_pill.csv").unlink()
    train(some, make_detector, Results(run, SETTINGS, resume=True), Outputs(predictions=True))
    assert (run / "predictions/mvtec_pill.csv").is_file()


def test_an_evaluation_never_replaces_another_table(tmp_path, categories, make_detector):
    train(categories, make_detector, Results(tmp_path, SETTINGS), Outputs(models=True), progress=False)
    before = (tmp_path / "results.csv").read_bytes()
    with pytest.raises(pk.ResultsError, match="is of a training run: choose another results folder"):
        Results(tmp_path, {"models": ["a"]})
    assert (tmp_path / "results.csv").read_bytes() == before
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "results.csv").write_text("Row Names,instance_auroc\nmvtec_pill,0.5\n")
    with pytest.raises(pk.ResultsError, match="is of something else than this"):
        Results(tmp_path / "theirs", {"models": ["a"]})
    with pytest.raises(pk.ResultsError, match=r"cannot resume in .*theirs \(settings.json"):
        Results(tmp_path / "theirs", SETTINGS, resume=True)
    (tmp_path / "theirs" / "settings.json").write_text('{"percentage": 0.1}')
    results = Results(tmp_path / "theirs", SETTINGS, resume=True)  # the reference's table, which has other columns
    train(categories[1:], make_detector, results, Outputs(), progress=False)
    assert pk.read_results(tmp_path / "theirs" / "results.csv").loc["mvtec_pill", "instance_auroc"] == 0.5


def test_an_evaluation_of_a_model_that_was_replaced(tmp_path, categories, make_detector):
    some, models = categories[:1], [tmp_path / "model"]
    settings, outputs, opened = {"models": ["model"]}, Outputs(), []

    def open_model(path):
        opened.append(path)
        return pk.load_detector(path, progress=False)

    make_detector().fit(some[0].train).save(models[0])
    for _ in range(2):
        results = Results(tmp_path, settings, resume=True)
        evaluate_models(some, models, open_model, results, outputs, progress=False)
    assert len(opened) == 1
    make_detector().fit(some[0].train[:4]).save(models[0])
    evaluate_models(some, models, open_model, Results(tmp_path, settings, resume=True), outputs, progress=False)
    assert len(opened) == 2


@pytest.mark.parametrize("name", ["settings.json", "defects.csv"])
def test_an_evaluation_replaces_no_file_of_ones_own(tmp_path, name):
    (tmp_path / name).write_bytes(b"\xff mine")
    for resume in (False, True):
        with pytest.raises(pk.ResultsError, match=r"is of something else than this|cannot resume in"):
            Results(tmp_path, {"models": ["a"]}, resume=resume)


def test_a_run_that_is_refused_leaves_the_folder_of_the_one_at_work(tmp_path):
    with run_folder(tmp_path, "p", "g") as folder:
        for _ in range(2):
            refused = pytest.raises(pk.ResultsError, match="another run is writing")
            with refused, run_folder(tmp_path, "p", "g", resume=True):
                pass
        assert folder.is_dir()
    assert not folder.exists()


def test_a_table_that_a_spreadsheet_has_saved(tmp_path):
    results = Results(tmp_path, SETTINGS)
    results.add("mvtec_a", row(0.1 + 0.2), made_from="0012345678901234")
    path = tmp_path / "results.csv"
    text = path.read_text()
    first, *others = text.splitlines()
    path.write_text("\r\n".join([f"{first},note", *(f"{line},007" for line in others), ""]), "utf-8-sig", newline="")
    again = Results(tmp_path, SETTINGS, resume=True)
    assert again.current("mvtec_a", "0012345678901234")  # a column more, other ends of lines, a mark of the encoding
    again.add("mvtec_b", row(0.5))
    again.add("mvtec_a", row(0.6))
    notes = pd.read_csv(path, dtype=str).set_index("Row Names")["note"]
    assert notes["mvtec_a"] == "007" and pd.isna(notes["mvtec_b"])
    path.write_text(text.replace(",", ";"))
    with pytest.raises(pk.ResultsError, match="its columns are separated by ;, save it with commas"):
        pk.read_results(path)


def test_a_kind_of_defect_called_none_keeps_its_name(tmp_path):
    defects = pd.DataFrame({"images": [3, 4]}, index=pd.Index(["None", "NA"], name="defect"))
    Results(tmp_path, SETTINGS).add("mvtec_a", row(0.9), defects)
    Results(tmp_path, SETTINGS, resume=True).add("mvtec_b", row(0.8))
    assert pk.read_results(tmp_path / "defects.csv")["defect"].tolist() == ["None", "NA"]


def test_what_an_earlier_row_had_beside_it_is_made_anew_with_it(tmp_path, sample_root, make_detector):
    data, run = shutil.copytree(sample_root, tmp_path / "data"), tmp_path / "run"
    outputs = Outputs(models=True, predictions=True)
    train([pk.load_category(data, "pill")], make_detector, Results(run, SETTINGS), outputs, progress=False)
    _change(pk.load_category(data, "pill"), "more")
    some = [pk.load_category(data, "pill")]
    train(some, make_detector, Results(run, SETTINGS, resume=True), Outputs(), progress=False)
    assert len(pk.load_detector(run / "models/mvtec_pill", progress=False).train_names_) == len(some[0].train)


def test_litter_in_a_model_is_no_other_model(tmp_path, categories, make_detector):
    make_detector().fit(categories[0].train).save(tmp_path / "model")
    settings, opened = {"models": ["model"]}, []
    for litter in ("results", ".DS_Store", "._patchcore_kit.npz"):
        results = Results(tmp_path, settings, resume=True)
        evaluate_models(
            categories[:1],
            [tmp_path / "model"],
            lambda path: opened.append(path) or pk.load_detector(path, progress=False),
            results,
            Outputs(),
            progress=False,
        )
        (tmp_path / "model" / litter).touch()
    assert len(opened) == 1
    (tmp_path / "model" / "results").unlink()
    make_detector().fit(categories[0].train).save(tmp_path / "model")  # which replaces it all the same


def test_pictures_replace_pictures_only(tmp_path, categories, make_detector):
    outputs, folder = Outputs(images=True), tmp_path / "segmentation_images" / "mvtec_pill"
    train(categories[:1], make_detector, Results(tmp_path, SETTINGS), outputs, progress=False)
    train(categories[:1], make_detector, Results(tmp_path, SETTINGS), outputs, progress=False)
    Image.new("RGB", (8, 8)).save(folder / "mine.png")
    with pytest.raises(pk.ResultsError, match=r"mine.png would be replaced, but is no picture of the kit's"):
        train(categories[:1], make_detector, Results(tmp_path, SETTINGS), outputs, progress=False)
    assert (folder / "mine.png").is_file()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"Row Names,instance_auroc\nmvtec_a,1.5\n", "instance_auroc of mvtec_a is 1.5"),
        (b"Row Names,instance_auroc\nmvtec_a,-inf\n", "instance_auroc of mvtec_a is -inf"),
        (b"Row Names,instance_auroc\nmvtec_a,many\n", "many"),
        (b"Row Names,fit_seconds\nmvtec_a,-1\n", "fit_seconds of mvtec_a is -1"),
        (b"Row Names,instance_auroc\n,0.5\n", "a row without a name"),
        (b"Row Names,a,a\nmvtec_a,1,2\n", "3 columns, 2 of them different"),
        (b"Row Names," + b",".join(b"c%d" % i for i in range(20_000)), "20001 columns"),
        (b"\xff\xfe\x00", "codec"),
        (b"", "no column 'Row Names'"),
    ],
)
def test_tables_that_cannot_be(tmp_path, content, why):
    (tmp_path / "results.csv").write_bytes(content)
    with pytest.raises(pk.ResultsError, match=f"cannot read .*{why}") as refusal:
        pk.read_results(tmp_path / "results.csv")
    assert len(str(refusal.value)) < 300


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
