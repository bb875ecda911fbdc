"""The report of measured lenses: how far off, how sure, what the models explain, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeplense.errors import DataError
from deeplense.evaluate import measurement_sections as sections
from deeplense.evaluate.arrays import as_float, check_labels, check_lengths
from deeplense.evaluate.measurements import Statistic, gather, intervals, measurement_scores
from deeplense.evaluate.page import plain, provenance_section, write_report
from deeplense.evaluate.report import training_section


def measurement_report(
    out: Path,
    *,
    title: str,
    truth: Mapping[str, Any],
    estimate: Mapping[str, Any],
    sigma: Mapping[str, Any],
    label: Any,
    classes: Sequence[str],
    names: Sequence[str] | None = None,
    chi2: Any = None,
    images: np.ndarray | None = None,
    model: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    pixel_scale: float | None = None,
    deflection: Mapping[str, Any] | None = None,
    controls: Mapping[str, Any] | None = None,
    wide: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    history: Sequence[Mapping[str, Any]] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Judge measured lenses, and write `metrics.json` and `report.html` into `out`.

    Args:
        truth, estimate, sigma: by parameter, shape (N,) each; truths that are not estimated are passed over.
        label: class numbers, shape (N,).
        classes: K names.
        names: N file names or object ids.
        chi2: chi^2 of each model over the number of pixels, shape (N,); None where no model was made.
        images, model: in the same unit, shape (N, H, W) or (N, 1, H, W); memory-mapped is fine.
        residual: (data - model) / noise, shape as the images.
        pixel_scale: arcsec; without it the axes of pictures are in pixels.
        deflection: by name, RMSE of the deflection in arcsec, shape (N,), as `mass_sheet` measures it: the fit's first,
            then what stands beside it, such as no lensing.
        controls: classifiers beside one another, as `paired.side_by_side` returns them.
        wide: half of the 95 % intervals by parameter, shape (N,); 1.96 sigma without.
        provenance: what led to this result; nested groups are folded away in the report.
        history: the rows of the run's metrics.csv.
        bootstrap: number of resamples for the intervals.

    Returns:
        The metrics, in plain JSON values, as written: those of `measurements.measurement_scores`, with `deflection`
        and `controls`.

    Raises:
        DataError: values that are not finite, or parts that do not fit together.
        RunError: `out` cannot be written to.
    """
    label = check_labels(label, len(classes))
    check_lengths(label, names=names, images=images, model_images=model, residuals=residual)
    pictures = {"images": _flat(images), "model": _flat(model), "residual": _flat(residual)}
    scores = measurement_scores(truth, estimate, sigma, label, classes, chi2, bootstrap, seed, wide)
    scores["deflection"] = deflection_scores(deflection or {}, label, bootstrap, seed)
    metrics = plain({"title": title, **scores, "controls": controls, "provenance": provenance})
    parts, chi2 = gather(truth, estimate, sigma, label, wide), None if chi2 is None else as_float(chi2)
    pixels = None if residual is None else int(np.prod(residual.shape[1:]))
    content = (
        sections.headline_section(metrics),
        sections.parameter_section(metrics, parts),
        sections.coverage_section(metrics, parts),
        sections.chi2_section(metrics, chi2, label, pixels),
        sections.deflection_section(metrics["deflection"]),
        sections.gallery_section(metrics, label, chi2, names, pictures, pixel_scale),
        sections.controls_section(metrics["controls"]),
        training_section(history or ()),
        provenance_section(provenance) if provenance else None,
    )
    counts = ", ".join(f"{np.sum(label == k):,} {name}" for k, name in enumerate(classes))
    subtitle = f"{len(parts)} parameters measured in {len(label):,} images: {counts}"
    write_report(out, title, [section for section in content if section], metrics, subtitle)
    return metrics


def deflection_scores(
    rmse: Mapping[str, Any], label: np.ndarray, bootstrap: int = 1000, seed: int = 0
) -> list[dict[str, Any]]:
    """Mean and median over images of the deflection's RMSE, arcsec, shape (N,), with intervals, for each name.

    Raises:
        DataError: NaN, or another number than there are labels.
    """
    wanted: dict[str, Statistic] = {"mean": np.mean, "median": np.median}
    values = {name: as_float(part) for name, part in rmse.items()}
    check_lengths(label, **{f"errors of the deflection, {name}": part for name, part in values.items()})
    for name, part in values.items():
        if not np.isfinite(part).all():
            raise DataError(f"{np.sum(~np.isfinite(part))} errors of the deflection, {name}, are NaN or infinite")
    return [
        {"name": name, "n": len(part)} | intervals(part, wanted, label, bootstrap, seed)
        for name, part in values.items()
    ]


def _flat(images: np.ndarray | None) -> np.ndarray | None:
    """Images of one band without the axis of the bands, shape (N, H, W)."""
    if images is None or images.ndim == 3:
        return images
    if images.ndim != 4 or images.shape[1] != 1:
        raise DataError(f"images have shape {images.shape}; pictures need (N, H, W) or (N, 1, H, W)")
    return images[:, 0]
