"""Which lenses are found, and what is taken for them: from the truth table of a simulated or labelled survey."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import norm

from deeplense.evaluate.thresholds import check_scores

if TYPE_CHECKING:
    import pyarrow as pa

RATES = (1e-2, 1e-3)  # false positive rates of the thresholds; those of which the set has at least one image are used
FEWEST, MOST_BINS = 20, 8  # lenses in a bin; bins


def threshold_at(score: np.ndarray, label: np.ndarray, rate: float) -> float:
    """The lowest score with a false positive rate of at most `rate`; infinite where even the highest has more."""
    others = np.sort(score[label == 0])[::-1]
    allowed = int(rate * len(others) * (1 + 1e-9))
    if allowed >= len(others):
        return float(score.min(initial=np.inf))
    # The next non-lens must stay out, and with it all that have its score.
    above = score[score > others[allowed]]
    return float(above.min(initial=np.inf))


def usable_rates(label: np.ndarray) -> list[float]:
    """Those of `RATES` at which the set has a whole false positive."""
    return [rate for rate in RATES if rate * np.sum(label == 0) >= 1]


def wilson(found: Any, number: Any, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval of a share, (low, high); from 0 to 1 where there is nothing to count.

    References:
        Wilson, Probable inference, the law of succession, and statistical inference (1927).
    """
    found, number, z2 = np.asarray(found, float), np.asarray(number, float), norm.ppf((1 + level) / 2) ** 2
    middle = (found + z2 / 2) / (number + z2)
    with np.errstate(divide="ignore", invalid="ignore"):
        half = np.sqrt(z2) / (number + z2) * np.sqrt(found * (number - found) / number + z2 / 4)
    half = np.where(number > 0, half, 0.5)
    # At 0 and at 1 the bound is that number, but for rounding.
    low, high = np.where(found > 0, middle - half, 0.0), np.where(found < number, middle + half, 1.0)
    return low, high


def population_scores(score: Any, label: Any, params: pa.Table | None) -> dict[str, Any]:
    """Completeness by what a lens is like and false positives by kind, in plain JSON values.

    `completeness` has, for each false positive rate that the set can measure and each quantity that the table holds,
    bins of equally many lenses with 95 % Wilson intervals; `false_positives` has, for each of those rates, the kinds of
    non-lenses and the faults of their images. Both are empty without a truth table.

    Args:
        score: higher means more lens-like, shape (N,).
        label: 1 for a lens, 0 for anything else, shape (N,).
        params: the truth table, one row an image.
    """
    score, label = check_scores(score, label)
    result: dict[str, Any] = {"completeness": [], "false_positives": []}
    if params is None or not 0 < label.sum() < len(label):
        return result
    for rate in usable_rates(label):
        is_chosen = score >= threshold_at(score, label, rate)
        for name, about in quantities(params.column_names).items():
            values = numbers(params, name)
            bins = completeness_bins(values[label == 1], is_chosen[label == 1])
            if bins:
                result["completeness"].append({"fpr": rate, "quantity": name, **about, "bins": bins})
        kinds = {name: kind_rows(texts(params, name), is_chosen, label) for name in ("kind", "artefact")}
        result["false_positives"].append({"fpr": rate, "number": int(is_chosen[label == 0].sum()), **kinds})
    return result


def quantities(columns: Sequence[str]) -> dict[str, dict[str, str]]:
    """The columns that completeness is drawn against, with words and unit for the axis."""
    known = {"theta_E": {"title": "Einstein radius", "unit": "arcsec"}}
    # One band is enough, the first: bluest, where a source outshines its lens most.
    magnitude = next((name for name in columns if name.startswith("source_magnitude")), "")
    band = magnitude.removeprefix("source_magnitude").strip("_")
    known[magnitude] = {"title": f"Source magnitude{f' in {band}' if band else ''}, unlensed", "unit": "AB mag"}
    known["snr"] = {"title": "Signal to noise of the image", "unit": ""}
    return {name: about for name, about in known.items() if name in columns}


def numbers(params: pa.Table, name: str) -> np.ndarray:
    """A column as float64, null as NaN, shape (N,); all NaN if it holds no numbers (a catalogue's may be anything)."""
    from pyarrow import types

    kind = params[name].type
    if not (types.is_integer(kind) or types.is_floating(kind)):
        return np.full(params.num_rows, np.nan)
    return np.array([np.nan if value is None else value for value in params[name].to_pylist()], np.float64)


def texts(params: pa.Table, name: str) -> np.ndarray | None:
    """A column as text, null and false as "", shape (N,); None if there is none."""
    if name not in params.column_names:
        return None
    values = params[name].to_pylist()
    return np.array(["" if value is None or value is False else str(value) for value in values], dtype=object)


def completeness_bins(values: np.ndarray, is_found: np.ndarray) -> list[dict[str, float]]:
    """Share of the lenses that are found in bins of about equally many, from the smallest value to the largest.

    Args:
        values: of each lens, shape (N,); NaN is left out.
        is_found: bool, shape (N,).

    Returns:
        For each bin `from`, `to` and `median` of the quantity, `n`, `found`, and `completeness` with `low` and `high`.
    """
    is_known = np.isfinite(values)
    values, is_found = values[is_known], is_found[is_known]
    count = min(MOST_BINS, len(values) // FEWEST) or min(len(values), 1)
    edges = np.unique(np.quantile(values, np.linspace(0, 1, count + 1))) if count else np.empty(0)
    if len(edges) < 2:
        return []
    which = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    bins = []
    for k in np.unique(which):
        inside = which == k
        n, found = int(inside.sum()), int(is_found[inside].sum())
        low, high = wilson(found, n)
        bins.append(
            {"from": float(edges[k]), "to": float(edges[k + 1]), "median": float(np.median(values[inside]))}
            | {"n": n, "found": found, "completeness": found / n, "low": float(low), "high": float(high)}
        )
    return bins


def kind_rows(kind: np.ndarray | None, is_chosen: np.ndarray, label: np.ndarray) -> list[dict[str, Any]]:
    """How many non-lenses of each kind are taken for lenses, most first; an empty name means "none".

    Returns:
        For each kind `n`, `chosen`, `rate` (share of the kind) with `low` and `high`, `share` of all false positives.
    """
    if kind is None:
        return []
    kind, is_chosen = kind[label == 0], is_chosen[label == 0]
    total, rows = int(is_chosen.sum()), []
    for name in sorted(set(kind)):
        n, chosen = int((kind == name).sum()), int(is_chosen[kind == name].sum())
        low, high = wilson(chosen, n)
        row: dict[str, Any] = {"kind": str(name) or "none", "n": n, "chosen": chosen, "rate": chosen / n}
        row |= {"low": float(low), "high": float(high), "share": chosen / total if total else 0.0}
        rows.append(row)
    return sorted(rows, key=lambda row: -row["chosen"])


def kind_of(params: pa.Table | None, classes: Sequence[str], label: np.ndarray) -> list[str]:
    """What each image shows, in words: its kind with the fault of the image, or else its class."""
    columns: Mapping[str, np.ndarray | None] = (
        {} if params is None else {name: texts(params, name) for name in ("kind", "artefact")}
    )
    kind, fault = columns.get("kind"), columns.get("artefact")
    words = [classes[k] if kind is None or not kind[i] else str(kind[i]) for i, k in enumerate(label)]
    if fault is None:
        return words
    return [f"{word}, {bad.replace('_', ' ')}" if bad else word for word, bad in zip(words, fault, strict=True)]
