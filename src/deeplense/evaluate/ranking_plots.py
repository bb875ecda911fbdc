"""Figures of a lens finder: rates on logarithmic axes, because what matters to a survey happens once in a thousand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from deeplense.evaluate.bootstrap import cumulative
from deeplense.evaluate.calibrate import ReliabilityCurve
from deeplense.evaluate.plots import COLOURS, MUTED, SIZE, line_style, styled
from deeplense.evaluate.thresholds import purity_of

MARKS = "os^D"


def one_in(prevalence: float) -> str:
    """A share of lenses in words: "1 in 1,000", or "5.9 %" where lenses are common."""
    return f"1 in {1 / prevalence:,.0f}" if prevalence < 0.1 else f"{prevalence:.0%}".replace("%", " %")


def _curve(score: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(recall, false positive rate) of each threshold, the highest first, from none chosen to all."""
    lenses, others = (counts[0] for counts in cumulative(score, label == 1, np.ones((1, len(score)))))
    return np.append(0, lenses / lenses[-1]), np.append(0, others / others[-1])


@styled
def roc_log(score: np.ndarray, label: np.ndarray, metrics: Mapping[str, Any]) -> Figure:
    """ROC curve with a logarithmic false positive rate, the measured rates marked, and the random line.

    Args:
        score: higher means more lens-like, shape (N,).
        label: 1 for a lens, 0 for anything else, shape (N,).
        metrics: what `ranking.ranking_scores` says of them.
    """
    recall, rate = _curve(score, label)
    least = 0.5 / metrics["n_others"]  # what has no false positive stands here, half a step below one
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot(xlabel="False positive rate", ylabel="Recall (lenses found)", xscale="log")
    axes.step(
        np.maximum(rate, least), recall, where="post", **line_style(0), label=f"AUC {metrics['auc']['value']:.4f}"
    )
    random = np.geomspace(least, 1, 200)
    axes.plot(random, random, color=MUTED, lw=1.4, ls=":", label="random, AUC 0.5")
    for name, figure_of in metrics["tpr_at_fpr"].items():
        if figure_of is not None:
            _mark_rate(axes, float(name), figure_of)
    axes.set(xlim=(least, 1), ylim=(0, 1.02))
    axes.grid(True)
    _legend_above(axes)
    return figure


def _legend_above(axes: Axes) -> None:
    """The legend in one line over the axes, where it hides nothing."""
    number = len(axes.get_legend_handles_labels()[0])
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=number, borderaxespad=0.2, columnspacing=1.2)


def _mark_rate(axes: Axes, rate: float, figure_of: Mapping[str, Any]) -> None:
    value, low, high = (figure_of[key] for key in ("value", "low", "high"))
    bars = None if low is None else np.maximum([[value - low], [high - value]], 0)
    axes.errorbar([rate], [value], bars, color=COLOURS[1], marker="o", ms=5, elinewidth=1.2, capsize=3, zorder=3)
    # Beside the curve, which rises to the right.
    x, y, ha, va = (-6, 3, "right", "bottom") if value < 0.9 else (6, -6, "left", "top")
    axes.annotate(f"{value:.3f}", (rate, value), (x, y), textcoords="offset points", ha=ha, va=va, fontsize=9)


@styled
def purity_curves(score: np.ndarray, label: np.ndarray, metrics: Mapping[str, Any]) -> Figure:
    """Purity against completeness, in skies with each of the prevalences, with 95 % bands; arguments as `roc_log`."""
    recall, rate = (values[1:] for values in _curve(score, label))
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot(xlabel="Completeness (lenses found)", ylabel="Purity (candidates that are lenses)")
    for k, row in enumerate(metrics["at_prevalence"]):
        first = np.unique(recall, return_index=True)[1]  # for one completeness, the purest threshold
        purity = purity_of(recall, rate, row["prevalence"])[first]
        axes.plot(recall[first], purity, **line_style(k), label=f"lenses {one_in(row['prevalence'])}")
        band = [p for p in row["purity"] if p["low"] is not None]
        grid, low, high = ([p[name] for p in band] for name in ("completeness", "low", "high"))
        axes.fill_between(grid, low, high, color=COLOURS[k % len(COLOURS)], alpha=0.15, lw=0)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(True)
    _legend_above(axes)
    return figure


@styled
def completeness_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Completeness against one quantity, for each false positive rate, with 95 % Wilson intervals.

    Args:
        rows: those of `population.population_scores` for this quantity.
    """
    figure = Figure(figsize=(SIZE[0], 3.6), layout="constrained")
    unit = f" ({rows[0]['unit']})" if rows[0]["unit"] else ""
    axes = figure.add_subplot(xlabel=rows[0]["title"] + unit, ylabel="Completeness")
    for k, row in enumerate(rows):
        x, y, low, high, start, end = (
            np.array([part[name] for part in row["bins"]])
            for name in ("median", "completeness", "low", "high", "from", "to")
        )
        style: dict[str, Any] = {**line_style(k), "marker": MARKS[k % 4], "ms": 5, "elinewidth": 1.0, "lw": 1.2}
        errors = [np.maximum(y - low, 0), np.maximum(high - y, 0)]
        axes.errorbar(x, y, errors, **style, label=f"false positive rate {row['fpr']:g}")
        axes.hlines(y, start, end, color=style["color"], lw=0.8, alpha=0.5)
    axes.set_ylim(-0.03, 1.03)
    axes.grid(True)
    values = np.concatenate([[part["from"], part["to"]] for part in rows[0]["bins"]])
    if values.min() > 0 and values.max() > 20 * values.min():
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    _legend_above(axes)
    return figure


@styled
def kind_bars(rows: Sequence[Mapping[str, Any]], what: str = "Kind of non-lens") -> Figure:
    """How many non-lenses of each kind are taken for lenses, the most at the top.

    Args:
        rows: as `population.kind_rows` returns them.
        what: what the names are, for the axis.
    """
    rows = list(rows)[::-1]
    figure = Figure(figsize=(SIZE[0], 0.9 + 0.38 * len(rows)), layout="constrained")
    axes = figure.add_subplot(xlabel="False positives", ylabel=what)
    counts = [row["chosen"] for row in rows]
    names = [row["kind"].replace("_", " ") for row in rows]
    axes.barh(names, counts, color=COLOURS[0], height=0.68)
    most = max(*counts, 1)
    for place, row in enumerate(rows):
        share = f" ({row['rate']:.1%})".replace("%", " %") if row["chosen"] else ""
        text = f"{row['chosen']:,} of {row['n']:,}{share}"
        axes.text(row["chosen"] + 0.02 * most, place, text, va="center", fontsize=8.5)
    axes.set_xlim(0, 1.42 * most)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(True, axis="x")
    axes.tick_params(axis="y", length=0)
    return figure


@styled
def reliability_odds(curves: Mapping[str, ReliabilityCurve]) -> Figure:
    """Observed share of lenses against the stated probability, both in odds, above the number of images.

    Args:
        curves: by name, as `rare.reliability` returns them. A bin without a lens has an arrow down from its upper
            bound, one of lenses only an arrow up from its lower one.
    """
    figure = Figure(figsize=(SIZE[0], 4.8), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    ends = _decades(list(curves.values()))
    upper.plot(ends, ends, color=MUTED, lw=1.4, ls=":", label="perfectly calibrated")
    for k, (name, curve) in enumerate(curves.items()):
        _draw_odds(upper, curve, name, k, ends)
        lower.plot(np.clip(curve.confidence, *ends), curve.count, **line_style(k), marker=MARKS[k % 4], ms=3, lw=0.7)
    upper.set(xscale="logit", yscale="logit")
    for axis in (upper.xaxis, upper.yaxis):
        axis.set_major_locator(FixedLocator(_ticks(ends)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: _probability(value)))
    # A margin, or the marks of the outermost bins are cut.
    limits = (ends[0] / 1.5, 1 - (1 - ends[1]) / 1.5)
    upper.set(ylabel="Share that are lenses", xlim=limits, ylim=limits)
    lower.set(xlabel="Stated probability of being a lens", ylabel="Images", yscale="log")
    lower.set_ylim(bottom=0.7)
    for axes in (upper, lower):
        axes.grid(True)
    upper.legend(loc="upper left")
    return figure


def _draw_odds(axes: Axes, curve: ReliabilityCurve, name: str, k: int, ends: np.ndarray) -> None:
    x, style = np.clip(curve.confidence, *ends), {**line_style(k), "lw": 0.7, "marker": MARKS[k % 4], "ms": 4.5}
    inside = (curve.accuracy > 0) & (curve.accuracy < 1)
    y, low, high = (np.clip(values, *ends) for values in (curve.accuracy, curve.low, curve.high))
    errors = np.stack([np.maximum(y - low, 0), np.maximum(high - y, 0)])
    axes.errorbar(x[inside], y[inside], errors[:, inside], **style, elinewidth=0.9, label=name)
    for is_at_end, bound, marker, end in ((curve.accuracy == 0, high, "v", 0), (curve.accuracy == 1, low, "^", 1)):
        place = np.flatnonzero(is_at_end)
        colour: dict[str, Any] = {"color": style["color"]}
        axes.vlines(x[place], bound[place], np.full(len(place), ends[end]), lw=0.9, **colour)
        axes.plot(x[place], np.full(len(place), ends[end]), ls="", marker=marker, ms=4.5, mfc="none", **colour)


def _decades(curves: Sequence[ReliabilityCurve]) -> np.ndarray:
    """Powers of ten, from 0 and from 1, between which all points of the curves lie."""
    values = np.concatenate([part for curve in curves for part in (curve.confidence, curve.accuracy)])
    inside = values[(values > 0) & (values < 1)]
    below, above = inside.min(initial=0.1), (1 - inside).min(initial=0.1)
    ends = [10.0 ** np.floor(np.log10(max(end, 1e-7))) for end in (below, above)]
    return np.array([ends[0], 1 - ends[1]])


def _ticks(ends: np.ndarray) -> list[float]:
    powers = [10.0**-k for k in range(1, 8)]
    low, high = ([p for p in powers if p >= 0.99 * end] for end in (ends[0], 1 - ends[1]))
    # There is room for about eight labels, and those near one are long.
    low, high = low[:: 1 + len(low) // 6], high[:: 1 + (len(low) + len(high)) // 8]
    return [*low[::-1], 0.5, *(1 - p for p in high)]


def _probability(value: float) -> str:
    """0.01, 0.5, 0.99 as they are; a power of ten below a thousandth, and its distance from 1 above 0.999."""
    for end, prefix in ((value, ""), (1 - value, "1-")):
        if end < 0.00099:
            return f"${prefix}10^{{{round(np.log10(end))}}}$"
    return f"{value:.3g}"
