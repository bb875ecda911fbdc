"""Figures for reports and papers: matplotlib's object interface, no global state, colours safe for colour-blind eyes.

Text and axes are drawn in `INK` and `MUTED`, which the report turns into the colours of the page, dark or light.
Every figure has a size at which its text can be read on a phone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from sklearn import metrics

from deeplense.evaluate.arrays import check_probs
from deeplense.evaluate.calibrate import ReliabilityCurve

INK, MUTED = "#1b1c1e", "#76797f"
# Okabe & Ito (2008), without the yellow that vanishes on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
CELL = "#1a6ca8"  # dark enough for white text on any page
DASHES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)))
SIZE, SQUARE = (5.2, 4.3), (4.7, 4.6)  # inches
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "grid.color": MUTED,
    "grid.alpha": 0.22,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
}
QUANTITIES = {"loss": ("loss",), "score": ("auc", "acc", "f1", "precision", "recall")}

P = ParamSpec("P")
F = TypeVar("F", bound=Figure | None)


def styled(draw: Callable[P, F]) -> Callable[P, F]:
    """Let a function that draws a figure use our style, and leave matplotlib's settings as they were."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> F:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapper


def line_style(k: int) -> dict[str, Any]:
    """Colour and dashes of the k-th line of a figure: they differ in both."""
    return {"color": COLOURS[k % len(COLOURS)], "linestyle": DASHES[k % len(DASHES)]}


@styled
def roc_curves(probs: Any, label: Any, classes: Sequence[str]) -> Figure:
    """One-vs-rest ROC curve of each class that can be judged, their macro average, and the random line.

    Args:
        probs: shape (N, K).
        label: class numbers, shape (N,).
        classes: K names.
    """
    probs, label = check_probs(probs, label)
    figure = Figure(figsize=SQUARE, layout="constrained")
    axes = figure.add_subplot(xlabel="False positive rate", ylabel="True positive rate", aspect="equal")
    axes.set(xlim=(-0.01, 1), ylim=(0, 1.01))
    curves = _class_curves(probs, label)
    for k, (false, true) in curves.items():
        axes.plot(false, true, **line_style(k), label=f"{classes[k]}, AUC {metrics.auc(false, true):.3f}")
    if len(curves) > 1:
        false, true = macro_average(list(curves.values()))
        axes.plot(false, true, color=INK, lw=2.2, label=f"macro average, AUC {metrics.auc(false, true):.3f}")
    axes.plot([0, 1], [0, 1], color=MUTED, lw=1.4, ls=":", label="random, AUC 0.500")
    axes.grid(True)
    axes.legend(loc="lower right")
    return figure


def _class_curves(probs: np.ndarray, label: np.ndarray) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """(false positive rate, true positive rate) for each class that has members and non-members."""
    judgeable = [k for k in range(probs.shape[1]) if 0 < np.sum(label == k) < len(label)]
    return {k: metrics.roc_curve(label == k, probs[:, k])[:2] for k in judgeable}


def macro_average(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The mean true positive rate over ROC curves, at every false positive rate at which one of them bends."""
    # A vertical step has two rates at one place; leaning it by 1e-9 keeps both, and the area, in the interpolation.
    leaning = [(false + 1e-9 * np.arange(len(false)), true) for false, true in curves]
    grid = np.unique(np.concatenate([false for false, _ in leaning]))
    return grid, np.mean([np.interp(grid, false, true) for false, true in leaning], axis=0)


@styled
def reliability_diagram(before: ReliabilityCurve, after: ReliabilityCurve | None = None) -> Figure:
    """Share of right predictions against stated probability, above the share of images in each bin.

    Args:
        before: the curve of the network's own probabilities.
        after: the curve after temperature scaling.
    """
    figure = Figure(figsize=SIZE, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    upper.plot([0, 1], [0, 1], color=MUTED, lw=1.4, ls=":", label="perfectly calibrated")
    curves = {"as trained": before} if after is None else {"before scaling": before, "after scaling": after}
    for k, (name, curve) in enumerate(curves.items()):
        _draw_reliability(upper, lower, curve, name, k)
    start = min(0.5, *(np.floor(10 * curve.confidence.min()) / 10 for curve in curves.values()))
    upper.set(ylabel="Share that is right", ylim=(-0.03, 1.03), xlim=(start, 1.015))
    lower.set(xlabel="Probability of the predicted class", ylabel="Images")
    lower.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    upper.grid(True)
    upper.legend(loc="lower right" if start >= 0.3 else "upper left")
    return figure


def _draw_reliability(upper: Axes, lower: Axes, curve: ReliabilityCurve, name: str, k: int) -> None:
    errors = np.abs(np.stack([curve.low, curve.high]) - curve.accuracy)
    marker: dict[str, Any] = {"marker": "os"[k % 2], "markersize": 4.5, "elinewidth": 0.9, "linewidth": 0.7}
    upper.errorbar(curve.confidence, curve.accuracy, errors, **line_style(k), **marker, label=name)
    lower.plot(curve.confidence, curve.count / curve.count.sum(), **line_style(k), marker="os"[k % 2], ms=3, lw=0.7)
    lower.set_ylim(bottom=0)


@styled
def confusion_matrix(matrix: Any, classes: Sequence[str]) -> Figure:
    """Counts with their share of the true class.

    Args:
        matrix: counts, rows true classes and columns predicted ones, shape (K, K).
        classes: K names.
    """
    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=SQUARE, layout="constrained")
    axes = figure.add_subplot(xlabel="Predicted class", ylabel="True class", aspect="equal")
    for (row, column), count in np.ndenumerate(counts):
        _draw_cell(axes, row, column, int(count), float(shares[row, column]))
    size = len(classes)
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))
    axes.set_xticks(range(size), classes)
    axes.set_yticks(range(size), classes, rotation=90, va="center")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _draw_cell(axes: Axes, row: int, column: int, count: int, share: float) -> None:
    # Opacity, not a colour map, carries the share: it reads the same on a light and on a dark page.
    box = Rectangle((column - 0.485, row - 0.485), 0.97, 0.97, lw=0)
    box.set(facecolor=CELL, alpha=0.05 + 0.95 * share)
    axes.add_patch(box)
    colour = "white" if share > 0.7 else INK
    axes.text(column, row - 0.06, f"{count:,}", ha="center", va="center", fontsize=13, color=colour)
    axes.text(column, row + 0.2, f"{share:.1%}", ha="center", va="center", fontsize=9, color=colour)


@styled
def learning_curves(rows: Sequence[Mapping[str, Any]], quantity: str = "loss") -> Figure | None:
    """Losses or scores against the epoch; None where the history holds none.

    Args:
        rows: the rows of a run's metrics.csv; cells may be text, empty or missing, and need a column `epoch`.
        quantity: "loss" or "score", for columns with one of `QUANTITIES` in their name.
    """
    words = QUANTITIES[quantity]
    lines = {name: points for name, points in history(rows).items() if any(word in name for word in words)}
    if not lines:
        return None
    figure = Figure(figsize=(SIZE[0], 3.4), layout="constrained")
    axes = figure.add_subplot(xlabel="Epoch", ylabel=quantity.capitalize())
    for k, (name, (epochs, values)) in enumerate(lines.items()):
        axes.plot(
            epochs, values, **line_style(k), marker="o" if len(epochs) < 3 else None, label=name.replace("_", " ")
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(True)
    axes.legend()
    return figure


def history(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[float], list[float]]]:
    """(epochs, values) of each column of a metrics.csv: finite numbers only, the last of an epoch."""
    series: dict[str, dict[float, float]] = {}
    for row in rows:
        epoch = _number(row.get("epoch"))
        for name, cell in row.items():
            value = _number(cell)
            if epoch is not None and value is not None and name not in ("epoch", "step") and name[-5:] != "_step":
                series.setdefault(name, {})[epoch] = value
    return {name: (list(points), list(points.values())) for name, points in series.items()}


def _number(cell: Any) -> float | None:
    """A finite number, or None for an empty cell, a word, NaN and infinity."""
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None
    return value if np.isfinite(value) else None
