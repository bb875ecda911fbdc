"""The report of generated images: could a physicist tell them from the simulator's?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeplense.evaluate import fidelity_sections as sections
from deeplense.evaluate.fidelity import PixelAUC, compare
from deeplense.evaluate.fidelity_sets import Features, measure
from deeplense.evaluate.page import plain, provenance_section, write_report
from deeplense.evaluate.pictures import Display
from deeplense.evaluate.report import training_section


def fidelity_report(
    out: Path,
    *,
    title: str,
    generated: np.ndarray,
    held_out: np.ndarray,
    train: np.ndarray | None = None,
    features: Features | None = None,
    label: Any = None,
    held_label: Any = None,
    classes: Sequence[str] = (),
    pixel_scale: float | None = None,
    pixel_auc: PixelAUC | None = None,
    provenance: Mapping[str, Any] | None = None,
    history: Sequence[Mapping[str, Any]] | None = None,
    display: Display | None = None,
    splits: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """Judge generated images, and write `metrics.json` and `report.html` into `out`.

    Args:
        generated: shape (N, C, H, W).
        held_out: images that the model was not trained on, at least two for each generated one, shape (M, C, H, W).
        train: images that the model was trained on, shape (T, C, H, W); without them nothing is said on memorisation.
        features: images (n, C, H, W) -> features (n, D) and probabilities (n, K) of an independent classifier, trained
            neither on the generated nor on the held-out images; without it its parts are left out.
        label: the class that each generated image was asked to show, shape (N,).
        held_label: of the held-out images, shape (M,).
        classes: K names.
        pixel_scale: arcsec per pixel; without it, lengths are in pixels.
        pixel_auc: (a, b, seed) -> the AUC with which a network tells two sets of images apart.
        provenance: what led to this result; nested groups are folded away in the report.
        history: the rows of the run's metrics.csv.
        display: how images are shown; if None, one band in false colour, several as they are.
        splits: random splits of the held-out images.

    Returns:
        The metrics, in plain JSON values, as written: ``fidelity`` is what `fidelity.fidelity_scores` returns.

    Raises:
        DataError: images of different shapes, NaN among them, too few of them, or labels that do not fit.
        RunError: `out` cannot be written to.
    """
    given, held = (
        measure(images, of, features, pixel_scale) for images, of in ((generated, label), (held_out, held_label))
    )
    found = compare(given, held, train=train, classes=classes, pixel_auc=pixel_auc, seed=seed, splits=splits)
    unit, display = "arcsec" if pixel_scale else "pixels", display or Display()
    metrics = plain({"title": title, "n": found["n"], "classes": list(classes), "fidelity": found | {"unit": unit}})
    metrics["provenance"] = plain(provenance)
    content = (
        sections.headline_section(found),
        sections.picture_section(given, held, found, display),
        sections.score_section(found, unit),
        sections.shape_section(given, held, found, unit, pixel_scale),
        sections.class_section(given, held, found),
        sections.memory_section(given, held, train, found, display),
        training_section(history or ()),
        provenance_section(provenance) if provenance else None,
    )
    subtitle = f"{len(given):,} generated images judged against {len(held):,} held-out ones"
    write_report(out, title, [section for section in content if section], metrics, subtitle)
    return metrics
