"""The sections of a report on measured lenses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deeplense.evaluate import measurement_plots as draw
from deeplense.evaluate.fidelity_sections import figures
from deeplense.evaluate.measurements import CATASTROPHIC, LEVELS, Measured
from deeplense.evaluate.page import Picture, Section, Stat, Table
from deeplense.evaluate.report import DASH

MAIN = ("theta_E", "e1", "e2", "gamma1", "gamma2")  # what is drawn, of the parameters that there are
MOST = 6  # parameters with a figure or a colour
ROWS = 3  # of the gallery, for each class
SCORES = {
    "bias": "Bias",
    "scatter": "Scatter",
    "median": "Median error",
    "robust_scatter": "Robust scatter",
    "rmse": "RMSE",
}
GAP = "\u00a0"


def main_names(names: Sequence[str]) -> list[str]:
    """The parameters that figures show: those of `MAIN`, or without them the first."""
    return [name for name in MAIN if name in names] or list(names)[:MOST]


def value_and_interval(figure: Mapping[str, Any] | None, unit: str = "") -> str:
    """A value with its 95 % interval, to two figures of the interval's half-width; a dash where there is none."""
    if figure is None or figure["value"] is None:
        return DASH
    space = GAP + unit if unit else ""
    value, low, high = (figure[key] for key in ("value", "low", "high"))
    if low is None or high <= low:
        return figures(value) + space
    digits = int(np.clip(1 - np.floor(np.log10((high - low) / 2)), 0, 6))
    text, *bounds = (f"{number:.{digits}f}".replace("-", "−") for number in (value, low, high))
    return f"{text}{space} ({bounds[0]} to {bounds[1]})"


def _percent(share: Mapping[str, float]) -> str:
    return value_and_interval({key: 100 * number for key, number in share.items()}, "%")


def _label(row: Mapping[str, Any]) -> str:
    return f"{row['title']} ({row['unit']})" if row["unit"] else row["title"]


def headline_section(metrics: Mapping[str, Any]) -> Section:
    """The Einstein radius first, or whatever else was measured; then uncertainties, chi^2 and deflection."""
    lead = main_names(list(metrics["parameters"]))[0]
    row = metrics["parameters"][lead]
    scores, title, unit = row["all"], row["title"], row["unit"]
    naive = f"predicting the mean: {figures(scores['naive']['scatter'])}{GAP}{unit}"
    stats = [
        _stat(f"{title}: scatter of the error", scores["scatter"], unit, naive),
        _stat(f"{title}: bias", scores["bias"], unit),
        _stat(f"{title}: robust scatter", scores["robust_scatter"], unit),
        *_failures(scores["catastrophic"]),
        *(_covered(metrics["parameters"], lead, str(level)) for level in LEVELS),
        *_chi2_stats(metrics["chi2"]),
        *_deflection_stats(metrics["deflection"]),
    ]
    return Section("", stats=stats, notes=metrics["notes"])


def _stat(label: str, figure: Mapping[str, Any], unit: str, note: str = "") -> Stat:
    """A headline number with its interval under it."""
    value, _, interval = value_and_interval(figure, unit).partition(" (")
    parts = [f"95{GAP}%{GAP}CI {interval[:-1]}"] if interval else []
    return Stat(label, value, "; ".join([*parts, note] if note else parts))


def _failures(share: Mapping[str, float] | None) -> list[Stat]:
    label = f"Failures: errors above {CATASTROPHIC:g}{GAP}%"
    return [] if share is None else [_stat(label, {key: 100 * number for key, number in share.items()}, "%")]


def _covered(parameters: Mapping[str, Any], lead: str, level: str) -> Stat:
    """How often the leading parameter's interval holds the truth, and the range over all parameters."""
    shares = {key: 100 * value for key, value in parameters[lead]["all"]["coverage"][level].items()}
    every = [100 * row["all"]["coverage"][level]["value"] for row in parameters.values()]
    label = f"Truth inside the {100 * float(level):.0f}{GAP}% interval"
    return _stat(label, shares, "%", f"over all parameters {min(every):.1f} to {max(every):.1f}{GAP}%")


def _chi2_stats(chi2: Mapping[str, Any] | None) -> list[Stat]:
    rows = chi2["by_class"] if chi2 else {}
    return [_stat(f"χ² per pixel, {name}", row["mean"], "") for name, row in rows.items()]


def _deflection_stats(rows: Sequence[Mapping[str, Any]] | None) -> list[Stat]:
    others = "; ".join(f"{row['name']} {figures(row['mean']['value'])}" for row in (rows or ())[1:])
    return [_stat("RMSE of the deflection", rows[0]["mean"], "arcsec", others)] if rows else []


def parameter_section(metrics: Mapping[str, Any], parts: Mapping[str, Measured]) -> Section:
    """Bias and scatter of every parameter beside the naive baseline, by class, and truth against fit."""
    text = (
        "Errors are fit − truth; where the unit is %, relative to the truth. Bias is their mean, scatter their "
        "standard deviation, robust scatter 1.4826 times the median absolute deviation. The naive baseline says the "
        "mean of these lenses for each of them. In brackets: 95 % bootstrap intervals."
    )
    names = main_names(list(parts))
    caption = "{}: fit against truth; below, the errors. Outliers are drawn at the ends of the axes."
    pictures = [Picture(draw.truth_and_fit(parts[name]), caption.format(parts[name].title)) for name in names]
    tables = [_accuracy_table(metrics["parameters"]), _class_table(metrics["parameters"][names[0]])]
    parameters = metrics["parameters"]
    details = [_full_table(parameters, name) for name in (None, *_present(parameters))]
    return Section("What is measured, and how well", text, tables=tables, figures=pictures, details=details)


def _present(parameters: Mapping[str, Any]) -> list[str]:
    """The classes that have scores, in their order."""
    return list(dict.fromkeys(name for row in parameters.values() for name in row["by_class"]))


def _accuracy_table(parameters: Mapping[str, Any]) -> Table:
    columns = ("Parameter", "Bias", "Scatter", "Robust scatter", "Naive scatter")
    rows = []
    for row in parameters.values():
        scores = row["all"]
        pair = (value_and_interval(scores[name]) for name in ("bias", "scatter"))
        robust = figures(scores["robust_scatter"]["value"])
        rows.append((_label(row), *pair, robust, figures(scores["naive"]["scatter"])))
    return Table(columns, rows, "All images; RMSE, and what is not shown of the intervals, is folded away below.")


def _class_table(row: Mapping[str, Any]) -> Table:
    """The leading parameter by class."""
    has_failures = row["all"]["catastrophic"] is not None
    failures = (f"Errors above {CATASTROPHIC:g} %",) if has_failures else ()
    columns = ("Class", "Images", "Bias", "Scatter", "Robust scatter", *failures)
    groups = {**row["by_class"], "all": row["all"]}
    rows = [
        (name, f"{scores['n']:,}", *(value_and_interval(scores[key]) for key in ("bias", "scatter", "robust_scatter")))
        + ((_percent(scores["catastrophic"]),) if has_failures else ())
        for name, scores in groups.items()
    ]
    return Table(columns, rows, f"{_label(row)}, by class.")


def _full_table(parameters: Mapping[str, Any], name: str | None) -> Table:
    """Every score of every parameter with its interval, of one class, or of all."""
    rows = []
    for row in parameters.values():
        scores = row["all"] if name is None else row["by_class"].get(name)
        if scores:
            cells = (value_and_interval(scores[key]) for key in SCORES)
            naive = (figures(scores["naive"][key]) for key in ("scatter", "rmse"))
            rows.append((_label(row), f"{scores['n']:,}", *cells, *naive))
    caption = f"Every score with its 95 % interval: {'all images' if name is None else f'class {name}'}"
    return Table(("Parameter", "Images", *SCORES.values(), "Naive scatter", "Naive RMSE"), rows, caption)


def coverage_section(metrics: Mapping[str, Any], parts: Mapping[str, Measured]) -> Section:
    """Whether the stated uncertainties can be taken at their word."""
    text = (
        "An interval of 68 % should hold the truth of 68 % of the lenses: fewer means that uncertainties are too "
        "small, more that they are too large. The table takes intervals as stated, the curves those of a Gaussian of "
        "this sigma; in brackets, 95 % Wilson intervals. Pull: (fit\u00a0−\u00a0truth)\u00a0/\u00a0σ."
    )
    measured = list(parts.values())
    pictures = [
        Picture(
            draw.coverage_curves(measured, main_names(list(parts))),
            "Share of truths inside the central interval against what it should be; below, the difference. Lines under "
            "the dotted one are overconfident.",
        ),
        Picture(
            draw.pull_histograms(measured),
            "Pulls of each parameter against the unit Gaussian; those beyond ±5 are counted in the outermost bins.",
        ),
    ]
    classes = [
        name for name in metrics["classes"] if any(name in r["by_class"] for r in metrics["parameters"].values())
    ]
    details = [_coverage_table(metrics["parameters"], name) for name in classes]
    tables = [_coverage_table(metrics["parameters"], None)]
    return Section("Are the uncertainties right?", text, tables=tables, figures=pictures, details=details)


def _coverage_table(parameters: Mapping[str, Any], name: str | None) -> Table:
    intervals = (f"Inside the {100 * level:.0f} % interval" for level in LEVELS)
    rows = []
    for row in parameters.values():
        scores = row["all"] if name is None else row["by_class"].get(name)
        if scores:
            shares = (_percent(scores["coverage"][str(level)]) for level in LEVELS)
            pull = (f"{scores['pull'][key]:.2f}".replace("-", "−") for key in ("mean", "scatter"))
            rows.append((row["title"], *shares, *pull))
    caption = "" if name is None else f"Uncertainties, class {name}"
    return Table(("Parameter", *intervals, "Mean pull", "Scatter of the pull"), rows, caption)


def chi2_section(
    metrics: Mapping[str, Any], chi2: np.ndarray | None, label: np.ndarray, pixels: int | None
) -> Section | None:
    """How well the models explain the images; None without chi^2."""
    if chi2 is None:
        return None
    text = (
        "χ² over the number of pixels is 1 where nothing is left but noise, a little below because parameters were "
        "fitted. What a smooth model cannot explain raises it."
    )
    groups = {**metrics["chi2"]["by_class"], "all": metrics["chi2"]["all"]}
    rows = [(name, f"{scores['n']:,}", value_and_interval(scores["mean"])) for name, scores in groups.items()]
    caption = "χ² per pixel of each class. The largest 1 % are counted in the last bin."
    picture = Picture(draw.chi2_histograms(chi2, label, metrics["classes"], pixels), caption)
    tables = [Table(("Class", "Images", "Mean (95 % interval)"), rows)]
    return Section("Do the models explain the images?", text, tables=tables, figures=[picture])


def deflection_section(rows: Sequence[Mapping[str, Any]] | None) -> Section | None:
    """Error of the deflection field, mass-sheet degeneracy taken out; None where it was not measured."""
    if not rows:
        return None
    text = (
        "Root of the mean |α_fit − α_true|² inside a circle, in arcsec, after the best mass-sheet transformation of "
        "the fit (arXiv:1306.0901), which images cannot tell from the truth. No lensing at all, so transformed, is a "
        "uniform sheet of mass: the naive baseline."
    )
    cells = [
        (row["name"], f"{row['n']:,}", value_and_interval(row["mean"]), value_and_interval(row["median"]))
        for row in rows
    ]
    table = Table(("Deflection", "Images", "Mean RMSE (arcsec)", "Median RMSE (arcsec)"), cells)
    return Section("Is the deflection right?", text, tables=[table])


def gallery_section(
    metrics: Mapping[str, Any],
    label: np.ndarray,
    chi2: np.ndarray | None,
    names: Sequence[str] | None,
    pictures: Mapping[str, np.ndarray | None],
    pixel_scale: float | None,
) -> Section | None:
    """Data, model and residual of the first images of each class; None without images, or without anything beside them.

    Args:
        pictures: "images", "model" and "residual", shape (N, H, W) each, or None.
    """
    images, model, residual = (pictures[what] for what in ("images", "model", "residual"))
    if images is None or (model is None and residual is None):
        return None
    figures_of = []
    for k in np.unique(label):
        chosen = np.flatnonzero(label == k)[:ROWS]
        fitted, left = (None if part is None else part[chosen] for part in (model, residual))
        titles = [_row_title(i, names, chi2) for i in chosen]
        figure = draw.fit_gallery(images[chosen], titles, fitted, left, pixel_scale)
        figures_of.append(Picture(figure, f"Class {metrics['classes'][k]}: the first images, not chosen."))
    text = "Data and model of a row have one stretch; residuals are in units of the noise, from −5 (blue) to +5 (red)."
    return Section("Data, model, residual", text, figures=figures_of)


def _row_title(i: int, names: Sequence[str] | None, chi2: np.ndarray | None) -> str:
    name = str(names[i]) if names is not None else f"image {i}"
    return name if chi2 is None else f"{name}\nχ² / N {chi2[i]:.2f}"


def controls_section(found: Mapping[str, Any] | None) -> Section | None:
    """Classifiers beside their controls; None without them.

    Args:
        found: what `paired.side_by_side` returns.
    """
    if found is None:
        return None
    text = (
        f"Macro one-vs-rest AUC on the same {found['n']:,} images. The difference is that from {found['reference']!r}; "
        "its 95 % interval is of a bootstrap in which all see the same resamples. With several seeds, scores are their "
        "means, and the intervals are over images alone: the scatter over seeds stands beside them."
    )
    return Section("Controls", text, tables=[controls_table(found)])


def controls_table(found: Mapping[str, Any]) -> Table:
    """One row a classifier: seeds, macro AUC, its difference from the reference, accuracy."""
    columns = ("Classifier", "Seeds", "Macro AUC", "Difference", "Accuracy", "Scatter over seeds")
    rows = []
    for row in found["rows"]:
        auc, difference, accuracy = (value_and_interval(row[key]) for key in ("auc_macro", "difference", "accuracy"))
        scatter = DASH if row["seed_scatter"] is None else figures(row["seed_scatter"])
        rows.append((row["name"], str(row["seeds"]), auc, difference, accuracy, scatter))
    return Table(columns, rows)
