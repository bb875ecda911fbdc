"""The report of a lens finder: what a survey gets, which lenses are missed, what is taken for them, and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplense.errors import DataError
from deeplense.evaluate import finder_gallery, finder_sections
from deeplense.evaluate.arrays import as_float, check_lengths
from deeplense.evaluate.page import plain, provenance_section, write_report
from deeplense.evaluate.pictures import Display
from deeplense.evaluate.population import kind_of, population_scores
from deeplense.evaluate.ranking import ranking_scores
from deeplense.evaluate.rare import calibration_scores
from deeplense.evaluate.report import training_section
from deeplense.evaluate.thresholds import check_scores

if TYPE_CHECKING:
    import pyarrow as pa

Explain = Callable[[np.ndarray], np.ndarray]
SURVEY = Display("last", "asinh")


def finder_report(
    out: Path,
    *,
    title: str,
    score: Any,
    probability: Any,
    label: Any,
    classes: Sequence[str],
    images: np.ndarray | None = None,
    names: Sequence[str] | None = None,
    params: pa.Table | None = None,
    prevalence: float | None = None,
    as_validated: tuple[Any, float] | None = None,
    provenance: Mapping[str, Any] | None = None,
    history: Sequence[Mapping[str, Any]] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    explain: Explain | None = None,
    display: Display | None = None,
) -> dict[str, Any]:
    """Judge a finder's output, and write `metrics.json` and `report.html` into `out`.

    Args:
        score: higher means more lens-like, shape (N,), for images that were used neither for training nor for choosing
            the model.
        probability: of being a lens, shape (N,).
        label: 1 for a lens, 0 for anything else, shape (N,).
        classes: names of the two classes, that of lenses last.
        images: raw values, shape (N, C, H, W), for the galleries; memory-mapped is fine.
        names: N file names or object ids.
        params: the truth table; completeness is drawn against its columns, false positives are counted by its kinds.
        prevalence: the share of lenses that the probabilities are for; that of these images if None.
        as_validated: the probabilities as they are for the share of lenses of the validation images, and that share.
        provenance: what led to this result; nested groups are folded away in the report.
        history: the rows of the run's metrics.csv.
        bootstrap: number of resamples for the intervals.
        explain: images (B, C, H, W) -> heat maps in [0, 1], (B, H, W), to be shown beside each picture.
        display: how the images are shown; if None, from blue to red with an asinh stretch.

    Returns:
        The metrics, in plain JSON values, as written.

    Raises:
        DataError: NaN among the scores, or parts that do not fit together.
        RunError: `out` cannot be written to.
    """
    score, label = check_scores(score, label)
    check_lengths(label, images=images, names=names, rows_of_params=params)
    if len(classes) != 2:
        raise DataError(f"a finder has two classes, that of lenses last; got {list(classes)}")
    scores = ranking_scores(score, label, probability, prevalence=prevalence, bootstrap=bootstrap, seed=seed)
    if as_validated is not None:
        scores["calibration"]["as_validated"] = _validated(*as_validated, label, seed)
    metrics = plain(
        {"title": title, "classes": list(classes), **scores, "population": population_scores(score, label, params)}
        | {"provenance": provenance}
    )
    probability, kind = as_float(probability), kind_of(params, classes, label)
    gallery = finder_gallery.Gallery(images, names, kind, probability, explain, display or SURVEY)
    content = (
        finder_sections.headline_section(metrics),
        finder_sections.survey_section(metrics, score, label),
        finder_sections.found_section(metrics),
        finder_sections.mistaken_section(metrics),
        finder_sections.calibration_section(metrics, probability, label, prevalence, as_validated),
        finder_gallery.candidates_section(gallery, score),
        finder_gallery.false_section(gallery, score, label),
        finder_gallery.missed_section(gallery, score, label),
        training_section(history or ()),
        provenance_section(provenance) if provenance else None,
    )
    subtitle = f"Lens finder judged on {len(label):,} images: {metrics['n_lenses']:,} {classes[1]}, "
    subtitle += f"{metrics['n_others']:,} {classes[0]}"
    write_report(out, title, [section for section in content if section], metrics, subtitle)
    return metrics


def _validated(probability: Any, prevalence: float, label: np.ndarray, seed: int) -> dict[str, Any]:
    """How well probabilities for the validation images' share of lenses suit these images, as they stand."""
    scores = calibration_scores(probability, label, bootstrap=0, seed=seed)
    return {"prevalence": prevalence} | {
        name: scores[name]["value"] for name in ("ece", "ece_mass", "brier", "log_loss")
    }
