"""The report of a classifier, section by section; other tasks reuse the sections that suit them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeplense.evaluate import plots
from deeplense.evaluate.arrays import check_lengths, check_logits
from deeplense.evaluate.calibrate import apply_temperature, reliability_curve
from deeplense.evaluate.page import Picture, Section, Stat, Table, Tile, plain, provenance_section, write_report
from deeplense.evaluate.scores import classification_scores

__all__ = ["Picture", "Section", "Stat", "Table", "Tile", "classification_report", "write_report"]

MISTAKES = 12
DASH = "–"
CALIBRATION_SCORES = ("ece", "log_loss", "brier")


def classification_report(
    out: Path,
    *,
    title: str,
    logits: Any,
    label: Any,
    classes: Sequence[str],
    images: np.ndarray | None = None,
    names: Sequence[str] | None = None,
    temperature: float = 1.0,
    provenance: Mapping[str, Any] | None = None,
    history: Sequence[Mapping[str, Any]] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    losses: Mapping[str, float | None] | None = None,
) -> dict[str, Any]:
    """Judge a classifier's output, and write `metrics.json` and `report.html` into `out`.

    Scores are those of the calibrated probabilities softmax(logits / temperature); `calibration` sets them beside
    the uncalibrated ones.

    Args:
        logits: shape (N, K), from images that were used neither for training nor for choosing the model.
        label: class numbers, shape (N,).
        classes: K names.
        images: raw values, shape (N, C, H, W), for the gallery of mistakes; memory-mapped is fine.
        names: N file names or object ids.
        temperature: as fitted on the validation split.
        provenance: what led to this result; nested groups are folded away in the report.
        history: the rows of the run's metrics.csv.
        bootstrap: number of resamples for the intervals.
        losses: parts of the loss that the network was trained with, and their means; None where there is none.

    Returns:
        The metrics, in plain JSON values, as written.

    Raises:
        DataError: NaN among the logits, or parts that do not fit together.
        RunError: `out` cannot be written to.
    """
    logits, label = check_logits(logits, label)
    check_lengths(label, images=images, names=names)
    before, after = apply_temperature(logits, 1.0), apply_temperature(logits, temperature)
    scores = classification_scores(after, label, classes, bootstrap, seed)
    unscaled = classification_scores(before, label, classes, bootstrap=0, seed=seed)
    metrics = plain(
        {"title": title, **scores, "calibration": _compared(unscaled, scores, temperature), "provenance": provenance}
    ) | ({} if losses is None else {"losses": plain(losses)})
    sections = (
        headline_section(metrics),
        class_section(metrics, after, label),
        calibration_section(metrics, before, after, label),
        training_section(history or (), losses),
        mistakes_section(after, label, classes, images, names),
        provenance_section(provenance) if provenance else None,
    )
    write_report(out, title, [section for section in sections if section], metrics, _subtitle(metrics))
    return metrics


def _compared(before: Mapping[str, Any], after: Mapping[str, Any], temperature: float) -> dict[str, Any]:
    pair = {"before": before, "after": after}
    return {"temperature": temperature} | {
        when: {name: scores[name]["value"] for name in CALIBRATION_SCORES} for when, scores in pair.items()
    }


def _subtitle(metrics: Mapping[str, Any]) -> str:
    present = [f"{row['n']:,} {name}" for name, row in metrics["per_class"].items()]
    images = "1 image" if metrics["n"] == 1 else f"{metrics['n']:,} images"
    return f"Classifier judged on {images}: {', '.join(present)}"


def headline_section(metrics: Mapping[str, Any]) -> Section:
    """Macro AUC first, then what else a reader asks for, with intervals and warnings."""
    calibration, ece = metrics["calibration"], metrics["ece"]
    errors = Stat(
        "Calibration error (ECE)",
        f"{calibration['before']['ece']:.3f} → {ece['value']:.3f}",
        f"before → after scaling; chance gives up to {ece['chance_95']:.3f}",
    )
    stats = [
        stat("Macro AUC, one vs rest", metrics["auc_macro"]),
        stat("Accuracy", metrics["accuracy"]),
        errors,
        stat("Micro AUC", metrics["auc_micro"]),
        stat("Average precision, macro", metrics["average_precision_macro"]),
        stat("F1, macro", metrics["f1_macro"]),
        stat("Log-loss, nats", metrics["log_loss"]),
        stat("Brier score, 0 to 2", metrics["brier"]),
    ]
    return Section("", stats=stats, notes=metrics["notes"])


def stat(label: str, figure: Mapping[str, Any] | None, digits: int = 3) -> Stat:
    """A headline number of a score `{"value", "low", "high"}`; a dash where there is none."""
    if figure is None:
        return Stat(label, DASH, "not defined for these labels")
    interval = f"95 %\u00a0CI {span(figure, digits)}" if figure["low"] is not None else ""
    return Stat(label, f"{figure['value']:.{digits}f}", interval)


def span(figure: Mapping[str, Any], digits: int = 3) -> str:
    """The interval of a score, as text; empty without one."""
    low, high = figure["low"], figure["high"]
    return "" if low is None else f"{low:.{digits}f}\u2060{DASH}\u2060{high:.{digits}f}"


def class_section(metrics: Mapping[str, Any], probs: np.ndarray, label: np.ndarray) -> Section:
    """Which classes are told apart: table, ROC curves, confusion matrix."""
    classes = metrics["classes"]
    counts = Picture(
        plots.confusion_matrix(metrics["confusion"], classes),
        "Confusion matrix: images, and their share of the true class.",
    )
    curves = Picture(
        plots.roc_curves(probs, label, classes),
        "Receiver operating characteristic of each class against the rest, and their macro average.",
    )
    figures = [counts] if metrics["auc_macro"] is None else [curves, counts]
    return Section("Class by class", tables=[class_table(metrics)], figures=figures)


def class_table(metrics: Mapping[str, Any]) -> Table:
    """One row a class: number of images, AUC with its interval, average precision, precision, recall, F1."""
    columns = ("Class", "Images", "AUC", "95 % CI", "Average precision", "Precision", "Recall", "F1")
    rows = [
        (
            name,
            f"{row['n']:,}",
            _three(row["auc"]),
            span(row["auc"]) or DASH if row["auc"] else DASH,
            *(_three(row[score]) for score in ("average_precision", "precision", "recall", "f1")),
        )
        for name, row in metrics["per_class"].items()
    ]
    return Table(columns, rows, "One-vs-rest scores; a class is predicted where its probability is the largest.")


def _three(score: Any) -> str:
    value = score["value"] if isinstance(score, Mapping) else score
    return DASH if value is None else f"{value:.3f}"


def calibration_section(
    metrics: Mapping[str, Any], before: np.ndarray, after: np.ndarray, label: np.ndarray
) -> Section:
    """Whether the probabilities can be taken at their word, before and after temperature scaling."""
    calibration = metrics["calibration"]
    bins = int(np.clip(len(label) // 20, 5, 15))  # about twenty images a bin, or the points are noise
    temperature = calibration["temperature"]
    scaling = f"softmax(logits / T) with T = {temperature:.3f}, fitted on the validation split"
    text = (
        f"Probabilities are {scaling if temperature != 1 else 'softmax(logits), without temperature scaling'}. A "
        f"perfectly calibrated model would show an ECE (15 bins) of up to {metrics['ece']['chance_95']:.3f} on a "
        "sample of this size in 95 % of cases."
    )
    rows = [
        (name, *(f"{calibration[when][key]:.4f}" for when in ("before", "after")))
        for name, key in (("ECE", "ece"), ("Log-loss, nats", "log_loss"), ("Brier score", "brier"))
    ]
    caption = (
        f"Reliability in {bins} bins, with 95 % Wilson intervals; below, the share of images in each bin. Points "
        "under the diagonal are overconfident."
    )
    figure = plots.reliability_diagram(reliability_curve(before, label, bins), reliability_curve(after, label, bins))
    table = Table(("Score", "Before scaling", "After scaling"), rows)
    return Section("Calibration", text, tables=[table], figures=[Picture(figure, caption)])


def training_section(
    history: Sequence[Mapping[str, Any]], losses: Mapping[str, float | None] | None = None
) -> Section | None:
    """Losses and scores by epoch, and what parts the loss has on the judged images; None without any of them."""
    captions = {
        "loss": "Loss at the end of each epoch.",
        "score": "Scores at the end of each epoch.",
    }
    drawn = {quantity: plots.learning_curves(history, quantity) for quantity in captions}
    figures = [Picture(figure, captions[quantity]) for quantity, figure in drawn.items() if figure]
    stats = [
        stat(f"Loss: {name}", None if mean is None else {"value": mean, "low": None})
        for name, mean in (losses or {}).items()
    ]
    return Section("Training", stats=stats, figures=figures) if figures or stats else None


def mistakes_section(
    probs: np.ndarray,
    label: np.ndarray,
    classes: Sequence[str],
    images: np.ndarray | None = None,
    names: Sequence[str] | None = None,
) -> Section:
    """The wrong answers that the model was surest of, as pictures, or as a table without images."""
    title, chosen, confidence = "Most confident mistakes", probs.argmax(axis=1), probs.max(axis=1)
    worst = confident_mistakes(probs, label)
    if not len(worst):
        return Section(title, "There are none: every image was classified correctly.")
    wrong = int((chosen != label).sum())
    text = f"{wrong:,} of {len(label):,} images were classified wrongly ({wrong / len(label):.1%})."
    rows = [
        (str(names[i]) if names is not None else f"image {i}", classes[label[i]], classes[chosen[i]], confidence[i])
        for i in worst
    ]
    if images is None:
        table = Table(
            ("Image", "True class", "Predicted", "Probability"), [(*row[:3], f"{row[3]:.3f}") for row in rows]
        )
        return Section(title, text, tables=[table])
    tiles = [
        Tile(np.asarray(images[i]), name, (f"true {true}", f"predicted {predicted}", f"probability {p:.3f}"))
        for i, (name, true, predicted, p) in zip(worst, rows, strict=True)
    ]
    return Section(title, text + " Those with the highest probability for the wrong class come first.", tiles=tiles)


def confident_mistakes(probs: np.ndarray, label: np.ndarray, most: int = MISTAKES) -> np.ndarray:
    """Indices of wrong predictions, the most probable first, at most `most` of them."""
    wrong = np.flatnonzero(probs.argmax(axis=1) != label)
    return wrong[np.argsort(-probs[wrong].max(axis=1), kind="stable")][:most]
