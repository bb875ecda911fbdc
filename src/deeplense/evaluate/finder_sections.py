"""The sections of a finder's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deeplense.evaluate import ranking_plots as plots
from deeplense.evaluate.page import Picture, Section, Stat, Table
from deeplense.evaluate.ranking import HEADLINE
from deeplense.evaluate.ranking_plots import one_in
from deeplense.evaluate.rare import reliability
from deeplense.evaluate.report import DASH, span, stat


def headline_section(metrics: Mapping[str, Any]) -> Section:
    """False positives at 80 % completeness first, then what else a survey asks for, with intervals and warnings."""
    reached = metrics["at_completeness"][str(HEADLINE)]
    ece = metrics["calibration"]["ece"]
    rates = [stat(f"Recall at FPR {rate}", figure) for rate, figure in metrics["tpr_at_fpr"].items() if figure]
    stats = [
        _false_positives(reached, metrics["n_others"]),
        stat("AUC", metrics["auc"], digits=4),
        stat("Average precision, as in this set", metrics["average_precision"]),
        *rates,
        stat("TPR10: recall with fewer than 10 false positives", metrics["tpr_10"]),
        stat("TPR0: recall without a false positive", metrics["tpr_0"]),
        Stat("Calibration error (ECE)", f"{ece['value']:.4f}", f"chance gives up to {ece['chance_95']:.4f}"),
    ]
    return Section("", stats=stats, notes=metrics["notes"])


def _false_positives(reached: Mapping[str, Any], others: int) -> Stat:
    label, figure = f"False positives at {HEADLINE:.0%} completeness".replace("%", " %"), reached["false_positives"]
    if figure is None:
        return Stat(label, DASH, "not defined for these labels")
    interval = "" if figure["low"] is None else f"95 % CI {figure['low']:,.0f}\u2060{DASH}\u2060{figure['high']:,.0f}; "
    rate = f"a rate of {reached['fpr']['value']:.2g}"
    return Stat(label, f"{figure['value']:,.0f}", f"{interval}of {others:,} non-lenses, {rate}")


def survey_section(metrics: Mapping[str, Any], score: np.ndarray, label: np.ndarray) -> Section:
    """Ranking at three prevalences, at three completenesses, and at the top of the list."""
    title = "What a survey gets"
    if metrics["auc"] is None:
        return Section(title, "Nothing can be ranked: lenses and non-lenses are both needed.")
    text = (
        "Purity depends on how rare lenses are. It is given for skies with other shares of lenses than this set has by "
        "letting non-lenses count more. A tie of a lens and a non-lens never counts in the finder's favour. TPR0 and "
        "TPR10 (arXiv:1802.03609) depend on the number of non-lenses: compare them between sets of one size only."
    )
    pictures = [
        Picture(
            plots.roc_log(score, label, metrics),
            "Lenses found against the share of non-lenses that is taken for one, on a logarithmic axis; marked with "
            "95 % intervals: the recall at false positive rates that this set can measure.",
        ),
        Picture(
            plots.purity_curves(score, label, metrics),
            "Purity against completeness in skies where lenses are as rare as said; bands: 95 % intervals.",
        ),
    ]
    return Section(title, text, tables=[_prevalence_table(metrics), _top_table(metrics)], figures=pictures)


def _prevalence_table(metrics: Mapping[str, Any]) -> Table:
    wanted = (0.5, 0.8, 0.9)
    columns = ("Lenses in the sky", "Average precision", *(f"Purity at {c:.0%}".replace("%", " %") for c in wanted))
    rows = []
    for row in metrics["at_prevalence"]:
        at = {point["completeness"]: point for point in row["purity"]}
        rows.append(
            (one_in(row["prevalence"]), _with_span(row["average_precision"]), *(_with_span(at[c]) for c in wanted))
        )
    own = [metrics["at_completeness"][str(c)]["purity"] for c in wanted]
    share = f"as in this set, {metrics['prevalence']:.1%}".replace("%", " %")
    rows.append((share, _with_span(metrics["average_precision"]), *map(_with_span, own)))
    caption = "Purity: share of lenses among the candidates, where 50, 80 and 90 % of the lenses are found."
    return Table(columns, rows, caption)


def _top_table(metrics: Mapping[str, Any]) -> Table:
    rows = [
        (f"{row['n']:,} best", _with_span(row["purity"]), _with_span(row["completeness"])) for row in metrics["top"]
    ]
    caption = f"The top of the list in this set, of which {metrics['n_lenses']:,} images are lenses."
    return Table(("Candidates", "Purity", "Completeness"), rows, caption)


def _with_span(figure: Mapping[str, Any] | None) -> str:
    if figure is None or figure["value"] is None:
        return DASH
    return f"{figure['value']:.3f}" + (f" ({span(figure)})" if figure["low"] is not None else "")


def found_section(metrics: Mapping[str, Any]) -> Section | None:
    """Completeness against what a lens is like; None without a truth table."""
    rows = metrics["population"]["completeness"]
    if not rows:
        return None
    text = (
        "Share of the lenses that are found at fixed false positive rates, in bins of equally many lenses; vertical: "
        "95 % Wilson intervals, horizontal: the bins."
    )
    names = list(dict.fromkeys(row["quantity"] for row in rows))
    by_name = [[row for row in rows if row["quantity"] == name] for name in names]
    pictures = [Picture(plots.completeness_curves(part), f"Completeness by {part[0]['title']}.") for part in by_name]
    return Section("Which lenses are found", text, figures=pictures, details=[_bin_table(row) for row in rows])


def _bin_table(row: Mapping[str, Any]) -> Table:
    columns = (row["title"], "Lenses", "Found", "Completeness", "95 % CI")
    rows = [
        (f"{part['from']:.4g} to {part['to']:.4g}", f"{part['n']:,}", f"{part['found']:,}",
         f"{part['completeness']:.3f}", span(part))
        for part in row["bins"]
    ]  # fmt: skip
    return Table(columns, rows, f"{row['title']}, at a false positive rate of {row['fpr']:g}")


def mistaken_section(metrics: Mapping[str, Any]) -> Section | None:
    """False positives by kind and by fault of the image; None without a truth table."""
    counted = metrics["population"]["false_positives"]
    if not counted or not counted[0]["kind"]:
        return None
    first, pictures, tables = counted[0], [], []
    for name, what in (("kind", "Kind of non-lens"), ("artefact", "Fault of the image")):
        if any(row["kind"] != "none" for row in first[name]):
            pictures.append(Picture(plots.kind_bars(first[name], what), f"{what}: false positives, of how many."))
            tables += [_kind_table(part[name], what, part["fpr"]) for part in counted]
    text = f"The {first['number']:,} false positives at a false positive rate of {first['fpr']:g}."
    return Section("What is taken for a lens", text, figures=pictures, details=tables)


def _kind_table(rows: Sequence[Mapping[str, Any]], what: str, fpr: float) -> Table:
    columns = (what, "Images", "False positives", "Share of the kind", "95 % CI", "Share of false positives")
    cells = [
        (row["kind"].replace("_", " "), f"{row['n']:,}", f"{row['chosen']:,}", f"{row['rate']:.4f}",
         f"{row['low']:.4f}\u2060{DASH}\u2060{row['high']:.4f}", f"{row['share']:.3f}")
        for row in rows
    ]  # fmt: skip
    return Table(columns, cells, f"{what}, at a false positive rate of {fpr:g}")


def calibration_section(
    metrics: Mapping[str, Any],
    probability: np.ndarray,
    label: np.ndarray,
    prevalence: float | None,
    as_validated: tuple[Any, float] | None,
) -> Section:
    """Whether the probabilities can be taken at their word, and for which share of lenses they are."""
    scores = metrics["calibration"]
    if 0 < metrics["n_lenses"] < metrics["n"]:
        share = f"{scores['prevalence']:.3g}"
        whose = "the share of lenses among these images" if prevalence is None else "as asked for"
    else:
        share, whose = "the validation images' share", "these images are all of one kind"
    text = (
        f"Probabilities are for a sky in which the share of lenses is {share} ({whose}). A perfectly calibrated finder "
        f"would show an ECE (15 bins) of up to {scores['ece']['chance_95']:.4f} on a sample of this size in 95 % of "
        "cases."
    )
    curves = {"these probabilities": reliability(probability, label, prevalence)}
    if as_validated is not None:
        curves["left at the validation share"] = reliability(as_validated[0], label)
    caption = (
        "Observed share of lenses against the stated probability, both in log-odds, with 95 % Wilson intervals; below, "
        "the number of images. Points under the dotted line are overconfident."
    )
    tables = [_calibration_table(scores)]
    if scores["top"]:
        tables.append(_rare_table(scores["top"]))
    return Section("Calibration", text, tables=tables, figures=[Picture(plots.reliability_odds(curves), caption)])


def _calibration_table(scores: Mapping[str, Any]) -> Table:
    left = scores.get("as_validated")
    named = (
        ("ECE, bins of equal width", "ece"),
        ("ECE, bins of equal number", "ece_mass"),
        ("Brier score", "brier"),
        ("Log-loss, nats", "log_loss"),
    )
    rows = [(name, f"{scores[key]['value']:.4f}", *([f"{left[key]:.4f}"] if left else [])) for name, key in named]
    others = [f"Left at validation's share, {left['prevalence']:.3g}"] if left else []
    return Table(["Score", "These probabilities", *others], rows)


def _rare_table(top: Sequence[Mapping[str, Any]]) -> Table:
    columns = ("Lenses in the sky", "Mean probability", "Lenses among them", "ECE", "Chance, 95 %")
    rows = [
        (one_in(row["prevalence"]), f"{row['mean_probability']:.3f}", f"{row['observed']:.3f}",
         f"{row['ece']['value']:.3f}", f"{row['ece']['chance_95']:.3f}")
        for row in top
    ]  # fmt: skip
    caption = "The most lens-like 1 % of a sky with other shares of lenses, the probabilities brought to it."
    return Table(columns, rows, caption)
