"""The notebooks' questions: answers checked, wrong ideas named, hints in two steps, and how far a class has got.

    python questions.py FOLDER...     a table of the work folders of a class

What was answered to a question lies in report/answers/<question>.json of the work folder. Each function below takes a
participant's answer and what the notebook has, and prints what is to be said; the answer ... is none yet.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch

import patchcore_kit as pk
from patchcore_kit.errors import short
from patchcore_kit.files import read_json, writing
from patchcore_kit.plots import need

QUESTIONS = (
    "workshop", "by_hand_coreset", "by_hand_scores", "task1_train", "task2_evaluate", "task3_distributions",
    "task4_masks", "task5_worst", "task6_best", "task7_image_size", "own_parts",
)  # fmt: skip
ANSWERS = Path("report", "answers")
NUMBER = re.compile(r"\s*[-+]?[\d.]+(e[-+]?\d+)?\s*")


def workshop(answer: object, detector: pk.PatchCore, samples: Sequence[pk.Sample]) -> None:
    """The score of an image whose patches are all in the bank."""
    rows = pk.embed(detector.backbone, pk.load_images(samples[:1], detector.transform)).cpu()
    score = float(pk.MemoryBank(rows.numpy()).search(rows)[0].max())
    hints = "which row of that bank is nearest to a patch of this image", "how far is a patch from itself"
    ideas = {
        "1 is the limit of an index, this is a distance": 1,
        "that would be a distance to other patches, but its own are there, too": lambda answer: answer > score,
    }
    check("workshop", answer, lambda answer: abs(answer - score) < 1e-3, hints, ideas)


def by_hand_coreset(answer: object, features: torch.Tensor, starts: Sequence[int], k: int) -> list[int]:
    """The indices that greedy k-center chooses of (N, D) rows, in order -> those to go on with: the right ones."""
    right = pk.greedy_coreset(features, k, starts, progress=False).tolist()
    order = pk.greedy_coreset(features, k, [right[0]], progress=False).tolist()
    hints = (
        "in each turn take the row whose distance to what is covered is largest, then cover it too",
        "a row is as far as the nearest that is chosen: torch.minimum of the distances so far and those to the new one",
    )
    ideas = {
        f"those are {_length(answer)} rows, asked are {k}": lambda chosen: len(chosen) != k,
        "the same row is chosen again: a row that is covered keeps its smaller distance": lambda c: len(set(c)) < k,
        "the first is the farthest from the start points already, not one of them": lambda chosen: chosen[0] in starts,
        "the first is right; after it the distances so far still count: keep the smaller ones": lambda chosen: (
            chosen[1:5] == order[:4]
        ),
        "the first is right, the second is not": lambda chosen: chosen[0] == right[0] and chosen[1] != right[1],
    }
    answer = _plain(answer)
    done = check("by_hand_coreset", answer, lambda chosen: _same_choice(chosen, right), hints, ideas, list)
    return answer if done else right


def _same_choice(chosen: list, right: list) -> bool:
    """Where two rows are about equally far, rounding decides, and later ones may differ."""
    alike = len(set(chosen) & set(right)) >= 0.95 * len(right)
    return len(chosen) == len(right) and chosen[:5] == right[:5] and alike


def by_hand_scores(answer: object, detector: pk.PatchCore, samples: Sequence[pk.Sample]) -> None:
    """The scores of images."""
    right = detector.predict(samples).scores
    rows = pk.embed(detector.backbone, pk.load_images(samples, detector.transform))
    patches = torch.cdist(rows.cpu(), torch.as_tensor(detector.bank_.rows)).amin(1).square().view(len(samples), -1)
    mean = patches.mean(1)
    hints = (
        "of each patch the distance to its nearest row of the bank, squared; of each image its strangest patch",
        "torch.cdist(rows, bank).min(dim=1).values ** 2, then .view(images, patches).max(dim=1).values",
    )
    ideas = {
        f"those are {_length(answer)} scores of {len(samples)} images": lambda scores: len(scores) != len(samples),
        "those are distances, and the reference's scores are their squares": lambda s: _close(np.square(s), right),
        "an image is as strange as its strangest patch, not as all of them on average": lambda s: _close(s, mean),
    }
    check("by_hand_scores", _plain(answer), lambda scores: _close(scores, right), hints, ideas, list)


def _close(scores: Sequence[float], right: Sequence[float]) -> bool:
    return np.shape(scores) == np.shape(right) and bool(np.allclose(scores, right, rtol=1e-3, atol=1e-3))


def _plain(answer: object) -> object:
    """An array or a tensor as a list."""
    return answer.tolist() if isinstance(answer, np.ndarray | torch.Tensor) else answer


def _length(answer: object) -> int:
    return len(answer) if hasattr(answer, "__len__") else 0


def task1_train(answer: object, detector: pk.PatchCore) -> None:
    """A detector that keeps half as many patches."""

    def share(mine: pk.PatchCore) -> float:
        return len(mine.bank_) / len(detector.bank_) if hasattr(mine, "bank_") else 0

    def right(mine: pk.PatchCore) -> bool:
        close = max(0.01, 1 / len(detector.bank_))  # what is left of a patch is dropped
        return abs(share(mine) - 0.5) < close and mine.percentage < detector.percentage

    hints = "percentage is the share of all patches that the bank keeps", "PERCENTAGE / 2 keeps half as many"
    ideas = {
        "it is not fitted yet: .fit(category.train) fills its memory bank": lambda mine: not share(mine),
        "it keeps as many patches as before": lambda mine: share(mine) == 1,
        "percentage=0.5 keeps half of all patches, not half as many as before": lambda mine: mine.percentage == 0.5,
        "it keeps more than before": lambda mine: share(mine) > 1,
        "it has fewer images to learn from, and keeps the same share": lambda mine: (
            mine.percentage == detector.percentage
        ),
    }
    check("task1_train", answer, right, hints, ideas, pk.PatchCore)


def task2_evaluate(answer: object, predictions: pk.Predictions) -> None:
    """The AUROC as a function of the scores of good and of defective images. Raises DataError if it is not defined."""
    need(predictions, "nothing to check", "image")
    scores, labels = predictions.scores, predictions.labels
    few = np.array([1, 2, 2, 5]), np.array([2, 3, 4])  # 12 pairs: 7 in order, 2 of equal scores

    def gives(*wins: float) -> Callable:
        return lambda mine: any(abs(mine(*few) - n / 12) < 1e-6 for n in wins)

    def right(mine: Callable) -> bool:
        return (
            gives(8)(mine)
            and abs(mine(scores[labels == 0], scores[labels == 1]) - predictions.metrics["instance_auroc"]) < 1e-6
        )

    hints = (
        "bad[:, None] > good compares all pairs",
        "the mean of all comparisons is the share; == finds the equal ones, which count half",
    )
    ideas = {
        "a pair of equal scores counts half": gives(7, 9),
        "that is the share of the pairs the other way round": gives(3, 4, 5),
        "that is how many pairs, asked is their share": gives(84, 96),
    }
    with suppress(Exception):  # told below
        answer = ... if answer(*few) is ... else answer
    check("task2_evaluate", answer, right, hints, ideas, Callable)


def task3_distributions(answer: object, metrics: pd.DataFrame) -> None:
    """The metric with the largest spread of a table (categories, metrics)."""
    if not metrics.notna().any(axis=None):
        print("nothing to check: no metrics")
        return
    hints = (
        "take of each column the largest value minus the smallest",
        "(max() - min()) of the table, and idxmax() of that",
    )
    ideas = {
        "that is no column of the table": lambda name: name not in metrics,
        "that is where the mean is lowest": metrics.mean().idxmin(),
        "that is where the lowest value is": metrics.min().idxmin(),
        "that is where the standard deviation is largest": metrics.std().fillna(0).idxmax(),
    }
    check("task3_distributions", answer, (metrics.max() - metrics.min()).idxmax(), hints, ideas)


def task4_masks(answer: object, predictions: pk.Predictions) -> None:
    """The threshold that misses no defective image. Raises DataError if there are no good or no defective ones."""
    need(predictions, "nothing to check", "image")
    good, bad = (predictions.scores[predictions.labels == label] for label in (0, 1))
    pixel, own = predictions.pixel_threshold, predictions.alarm_threshold

    def right(threshold: float) -> bool:
        alarms = (good >= threshold).sum() == (good >= bad.min()).sum()
        return threshold != pixel and threshold <= bad.min() and bool(alarms)

    hints = (
        "which defective image has the lowest score",
        "predictions.scores[predictions.labels == 1] are those of all defects",
    )
    ideas = {
        "that is the threshold of the pixels, images have another": lambda t: t == pixel,
        "that one has the best F1, which may miss some": lambda t: t == predictions.image_threshold,
        "that is the model's own, which has seen no defect": lambda t: t == own,
        "it finds all defects, and raises more false alarms than that takes": lambda t: t <= bad.min(),
        "it misses defective images": lambda t: t > bad.min(),
    }
    check("task4_masks", answer, right, hints, ideas)


def task5_worst(answer: object, predictions: pk.Predictions) -> None:
    """How many verdicts by the best F1 are wrong. Raises DataError if there are none."""
    need(predictions, "nothing to check", "image")
    table = predictions.table()
    bad, called = table["label"] == 1, table["verdict_f1"] == "defective"
    hints = (
        "label is 1 for defective images, verdict_f1 says what they were called",
        "count where these two do not agree",
    )
    ideas = {
        "those are the missed defects alone": (bad & ~called).sum(),
        "those are the false alarms alone": (~bad & called).sum(),
        "those are the right verdicts": (bad == called).sum(),
        "that is a share, asked is how many": (bad != called).mean(),
        "those are wrong by the model's own threshold, not by the best F1": (bad != (table["verdict"] != "good")).sum(),
    }
    check("task5_worst", answer, (bad != called).sum(), hints, ideas)


def task6_best(answer: object, found: np.ndarray, truth: np.ndarray) -> None:
    """The intersection over union of two masks."""
    both, either = (found & truth).sum(), (found | truth).sum()
    hints = "& and | combine two masks, sum() counts pixels", "the pixels in both, over those in at least one"
    ideas = {
        "that is over what was found: the precision": both / max(1, found.sum()),
        "that is over the defect: the recall": both / truth.sum(),
        "that counts the shared pixels twice: the Dice coefficient, or F1": 2 * both / (found.sum() + truth.sum()),
        "that is the share of pixels that agree, with all the good ones": (found == truth).mean(),
        "that is rounded: compute it": lambda iou: abs(iou - both / either) < 0.005,
        "that is a number of pixels, asked is a share": lambda iou: iou > 1,
    }
    check("task6_best", answer, both / either, hints, ideas)


def task7_image_size(answer: object) -> None:
    """How many times more comparisons at twice the size."""
    hints = (
        "count the comparisons: patches of the image, times rows of the bank",
        "patches and rows each grow four times",
    )
    ideas = {
        "so many times more patches has the image, but the bank grows as well": 4,
        "so many times longer is a side of the image": 2,
        "the two growths multiply": 8,
    }
    check("task7_image_size", answer, 16, hints, ideas)


def own_parts(answer: object, predictions: pk.Predictions) -> None:
    """How many good photographs are lacking until the model's lower threshold can promise its rate."""
    if predictions.calibration is None:
        print("nothing to check: the model has no threshold")
        return
    known, upper = predictions.calibration.look, predictions.calibration.defective
    hints = (
        "the lines below Fit say how many could promise it",
        f"from how many it takes, subtract the {known.n} that are there",
    )
    ideas = {
        "so many are there": known.n,
        "so many it takes in all, some are there already": known.needed,
        "that is for the upper threshold": lambda more: more in (upper.needed, upper.needed - upper.n),
        "there are too few": 0,
        "there are enough already: then 0 more": lambda more: more < 0,
    }
    check("own_parts", answer, max(0, known.needed - known.n), hints, ideas)


def check(
    question: str,
    answer: object,
    right: object,
    hints: tuple[str, str],
    ideas: Mapping[str, object],
    kind: type = float,
) -> bool:
    """Say whether an answer is right -> whether it is; if not, say which wrong idea it fits, or a hint.

    The second hint comes after another answer.

    question: under which name answers are kept. right: the answer, or a function of an answer that says whether it
    holds. ideas: what to say of wrong answers, each as `right`. kind: of the answer where `right` is a function; where
    it is none, that of `right`. Numbers are equal within a millionth.
    """
    if answer is ...:
        print("Not answered yet: replace the dots above by your answer, then run both cells.")
        return False
    if not callable(right):
        kind = str if isinstance(right, str) else float
    said = _wrong_kind(answer, kind)
    try:
        if said is None and _fits(answer, right):
            _keep(question, answer, right=True)
            print("Right.")
            return True
        said = said or next((text for text, wrong in ideas.items() if _fits(answer, wrong)), None)
    except Exception as error:  # whatever a participant's code raises
        said = f"trying it raises {type(error).__name__}: {short(error)}"
    tries = _keep(question, answer, right=False)
    print("Not yet:", said or hints[0] if tries < 2 else "; ".join([*([said] if said else []), hints[1]]))
    return False


def _wrong_kind(answer: object, kind: type) -> str | None:
    """What is wrong with an answer of another kind, None with one of this."""
    if kind is float:
        if isinstance(answer, str):
            return f"{answer!r} is a text, not a number" + ": write it without quotes" * bool(NUMBER.fullmatch(answer))
        value = answer.item() if np.ndim(answer) == 0 and hasattr(answer, "item") else answer
        if type(value) in (int, float):
            return "nan is not a number" if math.isnan(value) else None
    elif isinstance(answer, kind):
        return None
    names = {float: "a number", str: "a text, in quotes", Callable: "a function", list: "a list"}
    return f"{short(repr(answer))} is of the kind {type(answer).__name__}, not {names.get(kind, f'a {kind.__name__}')}"


def _fits(answer: object, value: object) -> bool:
    if callable(value):
        return bool(value(answer))
    if isinstance(value, str):
        return answer == value
    return bool(np.isclose(float(answer), float(value), rtol=1e-6, atol=1e-6))


def _keep(question: str, answer: object, *, right: bool) -> int:
    """Add an answer to those of its question -> how many different wrong ones there are."""
    path = pk.work_folder() / ANSWERS / f"{question}.json"
    kept = _kept(path)
    if right:
        kept["right"] = kept["right"] or f"{datetime.now():%Y-%m-%d %H:%M}"
    elif (text := short(repr(answer))) not in kept["wrong"]:
        kept["wrong"].append(text)
    try:
        with writing(path) as temporary:
            temporary.write_text(json.dumps(kept), encoding="utf-8")
    except pk.ResultsError as error:
        print(f"this answer is not kept: {error}")
    return len(kept["wrong"])


def _kept(path: Path) -> dict:
    """{"right": when, or None, "wrong": answers}; of a file that cannot be read nothing, and says so."""
    try:
        kept = read_json(path)
        return {"right": kept["right"], "wrong": list(kept["wrong"])}
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, KeyError) as error:
        print(f"cannot read {path} ({short(error)}): its answers do not count")
    return {"right": None, "wrong": []}


def progress() -> pd.DataFrame:
    """A row for each question of this work folder: when it was answered right, and which wrong answers it has got."""
    table = answers_of(pk.work_folder())
    return table.assign(right=table["right"].fillna("not yet"), wrong=table["wrong"].map(", ".join))


def answers_of(folder: Path) -> pd.DataFrame:
    """The same of any work folder: `right` is None if not yet, `wrong` a list."""
    rows = {name: _kept(folder / ANSWERS / f"{name}.json") for name in QUESTIONS}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["right", "wrong"]).rename_axis("question")


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(folders: tuple[Path, ...]) -> None:
    """A column for each work folder, a row for each question: right or not yet, and how many answers were wrong."""
    columns = {}
    for folder in folders:
        table = answers_of(folder)
        wrong = table["wrong"].map(len)
        said = np.where(table["right"].notna(), "right", np.where(wrong > 0, "not yet", ""))
        cells = [f"{word}, {n} wrong" if n else word for word, n in zip(said, wrong, strict=True)]
        right = int(table["right"].notna().sum())
        columns[str(folder)] = dict(zip(table.index, cells, strict=True)) | {"right in all": f"{right} of {len(table)}"}
    click.echo(pd.DataFrame(columns).to_string())


if __name__ == "__main__":
    main()
