"""The notebooks' questions find the ideas behind wrong answers, and give their hints in two steps."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import patchcore_kit as pk
import questions
from patchcore_kit.calibration import Calibration

REPOSITORY = Path(__file__).resolve().parents[1]
CASES = {  # a right answer, and wrong ones with words of what is said of each
    "workshop": (0, {1: "limit of an index", 7.5: "its own are there", -3: "nearest to a patch"}),
    "task3_distributions": (
        "full_pro",
        {"auroc": "no column of the table", "instance_ap": "mean is lowest", "instance_f1": "minus the smallest"},
    ),
    "task4_masks": (
        4.0,
        {
            2.5: "threshold of the pixels", 9.0: "best F1", 6.0: "the model's own", 0.5: "more false alarms",
            float("inf"): "misses defective", 4.5: "misses defective",
        },
    ),
    "task5_worst": (
        3,
        {1: "missed defects alone", 2: "false alarms alone", 5: "right verdicts", 3 / 8: "a share", 9: "label is 1"},
    ),
    "task6_best": (
        0.4,
        {
            2 / 3: "precision", 0.5: "recall", 4 / 7: "Dice", 0.7: "with all the good ones", 2: "number of pixels",
            0.1: "& and |", 0.403: "rounded",
        },
    ),
    "task7_image_size": (
        16,
        {4: "the bank grows as well", 2: "side of the image", 8: "multiply", 196: "count the comparisons"},
    ),
    "own_parts": (
        49,
        {10: "so many are there", 59: "takes in all", -49: "0 more", 5: "below Fit", 299: "upper", 0: "too few"},
    ),
}  # fmt: skip
KINDS = {
    "workshop": {
        "0": "'0' is a text, not a number: write it without quotes",
        "abc": "'abc' is a text, not a number",
        None: "None is of the kind NoneType, not a number",
    },
    "task3_distributions": {5: "5 is of the kind int, not a text, in quotes"},
    "task4_masks": {"4": "without quotes", (1.0, 2.0): "of the kind tuple, not a number", (4.0,): "of the kind tuple"},
    "task5_worst": {float("nan"): "nan is not a number"},
    "task7_image_size": {"16": "'16' is a text", True: "not a number"},
}


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    """A work folder in which nothing is answered yet."""
    monkeypatch.setenv("PATCHCORE_WORK", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def fitted(sample_root, random_resnet18):
    category = pk.load_category(sample_root, "pill")
    detector = pk.PatchCore(random_resnet18, percentage=0.05, imagesize=64, resize=64, projection=None, progress=False)
    return detector.fit(category.train), category


def predictions():
    """Eight images; by the best F1 one defect is missed, and two good images are called defective."""
    scores = np.array([1, 2, 10, 11, 4, 9, 12, 13], dtype=np.float32)
    maps = np.zeros((8, 4, 4), dtype=np.float32)
    maps[4:, 0, 0], maps[:, 3, 3] = 2.5, 1
    masks = maps == 2.5
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    made = pk.Predictions(scores, maps, labels, masks, ("test/a/0.png",) * 8)
    assert made.image_threshold == 9 or made.image_threshold == 4
    return made


class At(pk.Predictions):
    """With thresholds that are all different."""

    image_threshold, pixel_threshold, alarm_threshold, defective_threshold = 9.0, 2.5, 6.0, 99.0


def ask(question, fitted):
    """question -> a function of an answer."""
    some = predictions()
    at = At(some.scores, some.maps, some.labels, some.masks, some.names)
    metrics = pd.DataFrame(
        {"instance_ap": [0.3, 0.3, 0.3], "full_pro": [0.2, 0.9, 0.9], "instance_f1": [0.5, 0.9, 0.9]}, list("abc")
    )
    detector, category = fitted
    found, truth = np.zeros((2, 10), dtype=bool)
    found[:3], truth[1:5] = True, True  # 2 in both, 5 in at least one
    known = replace(some, calibration=Calibration(np.arange(1.0, 11), np.arange(1.0, 11), 0.05))
    return {
        "workshop": lambda answer: questions.workshop(answer, detector, category.train),
        "task3_distributions": lambda answer: questions.task3_distributions(answer, metrics),
        "task4_masks": lambda answer: questions.task4_masks(answer, at),
        "task5_worst": lambda answer: questions.task5_worst(answer, at),
        "task6_best": lambda answer: questions.task6_best(answer, found, truth),
        "task7_image_size": questions.task7_image_size,
        "own_parts": lambda answer: questions.own_parts(answer, known),
    }[question]


@pytest.mark.parametrize("question", CASES)
def test_wrong_ideas_are_found(question, fitted, work, capsys):
    put, (right, wrong) = ask(question, fitted), CASES[question]
    put(...)
    assert capsys.readouterr().out.startswith("Not answered yet: replace the dots")
    assert not (work / "report").exists()
    for answer, said in wrong.items():
        put(answer)
        out = capsys.readouterr().out
        assert out.startswith("Not yet: ") and said in out, (answer, out)
        (work / f"report/answers/{question}.json").unlink()  # each as the first
    put(right)
    assert capsys.readouterr().out == "Right.\n"
    if isinstance(right, float):
        put(np.float32(right))
        assert capsys.readouterr().out == "Right.\n"


@pytest.mark.parametrize("question", KINDS)
def test_answers_of_another_kind(question, fitted, capsys):
    for answer, said in KINDS[question].items():
        ask(question, fitted)(answer)
        out = capsys.readouterr().out
        assert out.startswith("Not yet: ") and said in out and out.count("\n") == 1, out


def test_the_second_hint_comes_after_another_answer(work, capsys):
    for answer, said in {5: "count the comparisons", 6: "patches and rows each grow four times"}.items():
        for _ in range(2):  # the same again is no other answer
            questions.task7_image_size(answer)
            out = capsys.readouterr().out
            assert said in out, out
        assert "16" not in out
    questions.task7_image_size(8)
    assert capsys.readouterr().out == "Not yet: the two growths multiply; patches and rows each grow four times\n"
    questions.task7_image_size(16)
    questions.task7_image_size(4)  # once right, right
    table = questions.progress()
    assert table.loc["task7_image_size", "wrong"] == "5, 6, 8, 4" and "-" in table.loc["task7_image_size", "right"]
    assert list(table.index) == list(questions.QUESTIONS) and (table["right"] == "not yet").sum() == len(table) - 1


def pairs(good, bad, ties=0.5):
    good, bad = np.asarray(good), np.asarray(bad)
    return (bad[:, None] > good).mean() + ties * (bad[:, None] == good).mean()


def test_auroc_of_pairs(capsys):
    some = predictions()
    wrong = {
        "half": [lambda g, b: pairs(g, b, 0), lambda g, b: pairs(g, b, 1)],
        "the other way round": [lambda g, b: pairs(b, g)],
        "asked is their share": [lambda g, b: pairs(g, b) * len(g) * len(b)],
        "bad[:, None] > good": [lambda g, b: 1.0, lambda g, b: (np.mean(b) > np.mean(g)) * 1.0],
        "trying it raises ZeroDivisionError": [lambda g, b: 1 / 0],
        "not a function": [0.5, 1.0],
    }
    for said, answers in wrong.items():
        for answer in answers:
            questions.task2_evaluate(answer, some)
            out = capsys.readouterr().out
            assert out.startswith("Not yet: ") and (said in out or "their mean" in out), (said, out)
            (questions.pk.work_folder() / "report/answers/task2_evaluate.json").unlink()
    questions.task2_evaluate(lambda good, bad: ..., some)
    assert capsys.readouterr().out.startswith("Not answered yet")
    questions.task2_evaluate(pairs, some)
    assert capsys.readouterr().out == "Right.\n"


def test_half_the_memory(fitted, capsys):
    detector, category = fitted
    half = lambda share: pk.PatchCore(  # noqa: E731
        detector.backbone, percentage=share, imagesize=64, resize=64, progress=False
    )
    wrong = {
        "not fitted yet": half(0.025),
        "as many patches as before": detector,
        "half of all": half(0.5).fit(category.train),
        "keeps more": half(0.1).fit(category.train),
        "fewer images": half(0.05).fit(category.train[::2]),
        "of the kind type, not a PatchCore": pk.PatchCore,
        "0.5 is of the kind float": 0.5,
    }
    for said, answer in wrong.items():
        questions.task1_train(answer, detector)
        out = capsys.readouterr().out
        assert said in out, (said, out)
    questions.task1_train(half(0.025).fit(category.train), detector)
    assert capsys.readouterr().out == "Right.\n"


def k_center(features, starts, k, *, keep_starts=True, cover=True):
    nearest, chosen = torch.cdist(features, features[starts]).mean(dim=1), []
    while len(chosen) < k:
        farthest = int(nearest.argmax())
        to_it = torch.cdist(features, features[[farthest]])[:, 0]
        nearest = torch.minimum(nearest, to_it) if cover and (keep_starts or chosen) else to_it
        chosen.append(farthest)
    return chosen


def test_patchcore_by_hand(fitted, capsys):
    """Ten lines give the kit's coreset and its scores."""
    detector, category = fitted
    features = pk.embed(detector.backbone, pk.load_images(category.train, detector.transform))
    k = int(len(features) * detector.percentage)
    starts = np.random.default_rng(0).choice(len(features), 10, replace=False)
    right = k_center(features, starts, k)
    wrong = {
        f"asked are {k}": right[:-1],
        "chosen again": [right[0]] * k,
        "not one of them": [int(starts[0]), *right[1:]],
        "keep the smaller": k_center(features, starts, k, keep_starts=False),
        "the second is not": [right[0], right[2], right[1], *right[3:]],
        "of the kind int": 5,
    }
    for said, answer in wrong.items():
        assert questions.by_hand_coreset(answer, features, starts, k)[:5] == right[:5]  # to go on with
        out = capsys.readouterr().out
        assert said in out, (said, out)
    for answer in (right, np.array(right), torch.tensor(right)):
        questions.by_hand_coreset(answer, features, starts, k)
        assert capsys.readouterr().out == "Right.\n"

    rows = pk.embed(detector.backbone, pk.load_images(category.test, detector.transform))
    distances = torch.cdist(rows, features[right]).min(dim=1).values.view(len(category.test), -1)
    wrong = {
        "their squares": distances.amax(1),
        "not as all of them": (distances**2).mean(1),
        f"{len(category.test)} images": distances.flatten() ** 2,
        "torch.cdist(rows, bank)": [-1] * len(category.test),
    }
    for said, answer in wrong.items():
        questions.by_hand_scores(answer, detector, category.test)
        out = capsys.readouterr().out
        assert said in out, (said, out)
    questions.by_hand_scores((distances**2).amax(1), detector, category.test)
    assert capsys.readouterr().out == "Right.\n"


def test_the_instructors_table(work, capsys):
    questions.task7_image_size(4)
    questions.task7_image_size(16)
    capsys.readouterr()
    (work / "other/report/answers").mkdir(parents=True)
    (work / "other/report/answers/task6_best.json").write_text('{"right": null, "wrong": ["2"]}')
    (work / "other/report/answers/task5_worst.json").write_text("{")
    command = [sys.executable, REPOSITORY / "questions.py", work, work / "other"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "task5_worst.json" in out.splitlines()[0] and "its answers do not count" in out.splitlines()[0]
    lines = {line.split()[0]: line.split("  ") for line in out.splitlines()[2:]}
    assert "right, 1 wrong" in " ".join(lines["task7_image_size"]) and "not yet, 1 wrong" in " ".join(
        lines["task6_best"]
    )
    assert " ".join(out.splitlines()[-1].split()) == "right in all 1 of 11 0 of 11"


def test_an_answer_that_cannot_be_kept_is_checked_all_the_same(work, capsys):
    (work / "report").write_text("no folder")
    questions.task7_image_size(16)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("this answer is not kept: ") and said[1:] == ["Right."]


def test_what_is_kept_is_plain(work):
    questions.task7_image_size("16")
    kept = json.loads((work / "report/answers/task7_image_size.json").read_text())
    assert kept == {"right": None, "wrong": ["'16'"]}
