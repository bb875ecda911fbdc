"""The sections of a fidelity report: each score of the generated images beside its floor, and pictures for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from deeplense.evaluate import fidelity_plots as draw
from deeplense.evaluate.distances import nearest
from deeplense.evaluate.fidelity_parts import BAND
from deeplense.evaluate.fidelity_sets import Measured
from deeplense.evaluate.page import Picture, Section, Stat, Table
from deeplense.evaluate.pictures import Display
from deeplense.evaluate.report import DASH, span

NEIGHBOURS = 6
# Scores in the order of the table, with their names; "{unit}" is that of the ring radius.
TITLES = {
    "frechet": "Feature distance (Frechet)",
    "kernel": "Kernel distance (MMD²; 0 is alike)",
    "precision": "Precision (generated images among held-out ones)",
    "recall": "Recall (held-out images among generated ones)",
    "density": "Density (1 is alike)",
    "coverage": "Coverage",
    "two_sample_auc": "Two-sample AUC of features (0.5 is alike)",
    "pixel_auc": "Two-sample AUC of a network on pixels (0.5 is alike)",
    "pixels": "Pixel values, W₁ / σ",
    "ring_radius": "Ring radius, W₁ ({unit})",
    "ring_radius_relative": "Ring radius, W₁ / mean radius",
    "ellipticity": "Ellipticity, W₁",
    "ellipticity_relative": "Ellipticity, W₁ / σ",
    "flux": "Flux, W₁ (brightness)",
    "flux_relative": "Flux, W₁ / σ",
    "noise": "Noise, W₁ (brightness)",
    "noise_relative": "Noise, W₁ / σ",
    "power_deviation": f"Power spectrum, largest |ratio − 1| from {BAND[0]} to {BAND[1]} cycles per image",
    "power_shape_deviation": "Power spectrum, the same of spectra over their sums",
    "profile_deviation": "Radial profile, largest difference / height",
}


def headline_section(found: Mapping[str, Any]) -> Section:
    """Distance as a multiple of its floor, whether the sets are told apart, memorisation, classes recovered."""
    scores, recovered, memory = found["scores"], found["recovered"], found["memorisation"]
    stats = [
        _multiple("Feature distance", scores.get("frechet")),
        _alike("Two-sample AUC, features", scores.get("two_sample_auc")),
        _alike("Two-sample AUC, pixels", scores.get("pixel_auc")),
        _memory(memory),
        _recovered(recovered),
        _multiple("Ring radius, W₁", scores["ring_radius"]),
        _multiple("Pixel values, W₁", scores["pixels"]),
        _share("Power spectrum, largest deviation", scores["power_deviation"]),
    ]
    return Section("", stats=[stat for stat in stats if stat], notes=found["notes"])


def _multiple(label: str, score: Mapping[str, Any] | None) -> Stat | None:
    if score is None:
        return None
    value = DASH if score["ratio"] is None else f"{score['ratio']:.2f} × floor"
    return Stat(label, value, f"{figures(score['value'])}; held out against held out {figures(score['floor'])}")


def _alike(label: str, score: Mapping[str, Any] | None) -> Stat | None:
    if score is None:
        return None
    return Stat(label, f"{score['value']:.3f}", f"0.5 is alike, 1 told apart; floor {score['floor']:.3f}")


def _memory(memory: Mapping[str, Any] | None) -> Stat | None:
    if memory is None:
        return None
    note = f"1 is none, less is copied; 95\u00a0%\u00a0CI {span(memory)}; floor {memory['floor']:.3f}"
    return Stat("Memorisation ratio", f"{memory['value']:.3f}", note)


def _recovered(recovered: Mapping[str, Any] | None) -> Stat | None:
    if recovered is None:
        return None
    generated, held_out = recovered["generated"], recovered["held_out"]
    on_held_out = f"; of held-out images {_percent(held_out['accuracy'])}" if held_out else ""
    note = f"95\u00a0%\u00a0CI {span(generated)}{on_held_out}"
    return Stat("Class recovered", _percent(generated["accuracy"]), note)


def _share(label: str, score: Mapping[str, Any]) -> Stat:
    note = f"from {BAND[0]} to {BAND[1]} cycles per image; floor {_percent(score['floor'])}"
    return Stat(label, _percent(score["value"]), note)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%"


def figures(value: float | None) -> str:
    """Three figures of a number of any size."""
    if value is None:
        return DASH
    text = f"{value:,.0f}" if abs(value) >= 100 or value == 0 else f"{value:#.3g}"
    return text.replace("-", "−")


def score_section(found: Mapping[str, Any], unit: str) -> Section:
    """Every score: of the generated images, of the floor, and how many times the floor it is."""
    text = (
        f"Each score compares {found['n']:,} generated with {found['n']:,} held-out images, and for the floor "
        f"{found['n']:,} other held-out images with the same ones: the mean of "
        f"{found['splits']} random splits. The floor is what a perfect generator would get. W₁ is the Wasserstein "
        "distance of two distributions, σ the standard deviation among held-out images. All splits share the generated "
        "images: of few of them, a ratio may lie well off 1 by chance."
    )
    named = {
        title.format(unit=unit): found["scores"][name] for name, title in TITLES.items() if name in found["scores"]
    }
    named |= _whole_set_scores(found)
    rows = [(title, *(figures(score[part]) for part in ("value", "floor", "ratio"))) for title, score in named.items()]
    ranges = [(title, _range(score, ""), _range(score, "floor_")) for title, score in named.items()]
    table = Table(("Score", "Generated", "Floor", "Ratio"), rows)
    caption = "The least and the most of the splits; of memorisation and classes recovered, the 95 % intervals"
    folded = Table(("Score", "Generated", "Floor"), ranges, caption)
    return Section("Generated against held out, beside the floor", text, tables=[table], details=[folded])


def _whole_set_scores(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Memorisation and classes recovered in the form of the other scores."""
    rows = {}
    if found["memorisation"]:
        rows["Memorisation ratio (1 is none)"] = {**found["memorisation"], "ratio": None}
    if found["recovered"] and found["recovered"]["held_out"]:
        asked, known = found["recovered"]["generated"], found["recovered"]["held_out"]
        floor = {"floor": known["accuracy"], "floor_low": known["low"], "floor_high": known["high"]}
        rows["Class recovered, share"] = {**asked, "value": asked["accuracy"], **floor, "ratio": None}
    return rows


def _range(score: Mapping[str, Any], prefix: str) -> str:
    return f"{figures(score[prefix + 'low'])} to {figures(score[prefix + 'high'])}"


def picture_section(generated: Measured, held_out: Measured, found: Mapping[str, Any], display: Display) -> Section:
    """Images side by side."""
    grids = draw.image_grids(generated, held_out, found["classes"], display)
    captions = ("Held-out images: the first, not chosen.", "Generated images: the first, not chosen; the same stretch.")
    return Section("Side by side", figures=[Picture(*pair) for pair in zip(grids, captions, strict=True)])


def shape_section(
    generated: Measured, held_out: Measured, found: Mapping[str, Any], unit: str, pixel_scale: float | None
) -> Section:
    """What a physicist would measure: power spectra, profiles, pixel values, sizes and shapes."""
    pictures = (
        Picture(
            draw.power_spectra(found["power"], generated.power, held_out.power),
            "Isotropic power spectra after a Hann window, mean and central 68 % of the images; below, the ratio of the "
            f"means, what held-out images give among themselves, and ±10 % from {BAND[0]} to {BAND[1]} cycles.",
        ),
        Picture(
            draw.radial_profiles(generated.profile, held_out.profile, pixel_scale),
            "Brightness averaged over rings about the image centre, mean and central 68 % of the images.",
        ),
        Picture(draw.pixel_values(generated.images, held_out.images), "Distribution of pixel values."),
        Picture(
            draw.number_histograms(generated.numbers, held_out.numbers, unit),
            "Flux-weighted ring radius, ellipticity (a² − b²) / (a² + b²), flux above the sky and noise of each image. "
            "Outliers are drawn at the ends.",
        ),
    )
    return Section("What can be measured in the images", figures=pictures)


def class_section(generated: Measured, held_out: Measured, found: Mapping[str, Any]) -> Section | None:
    """What an independent classifier sees: classes recovered, and its features; None without one."""
    if generated.features is None or held_out.features is None:
        return None
    plane = draw.projection(generated.features, held_out.features)
    pictures = [Picture(plane, "The classifier's features on the principal axes of the held-out images.")]
    if found["recovered"]:
        matrix = np.asarray(found["recovered"]["generated"]["confusion"])
        names = found["classes"] or [str(k) for k in range(len(matrix))]
        pictures.insert(0, Picture(draw.class_matrix(matrix, names), "Generated images, and their share of the class."))
    return Section("What an independent classifier sees", figures=pictures)


def memory_section(
    generated: Measured, held_out: Measured, train: np.ndarray | None, found: Mapping[str, Any], display: Display
) -> Section | None:
    """The generated images nearest to training images, beside their neighbours; None without training images."""
    if train is None:
        return None
    memory = found["memorisation"]
    text = (
        f"The nearest of {min(found['n'], len(train)):,} training images is {memory['value']:.3f} times as far away as "
        f"the nearest of as many held-out ones (95 % interval {span(memory)}); for held-out images in place of "
        f"generated ones it is {memory['floor']:.3f}. Distances are Euclidean, of all pixels.\n\n"
        f"Of {memory['n']:,} generated images, {memory['near_copies']:,} lie relatively nearer to one of all "
        f"{len(train):,} training images than any held-out image does; one is expected by chance."
    )
    rows, titles = nearest_rows(generated.images, train, held_out.images)
    caption = (
        "The generated images nearest to training images, the nearest training image, and the nearest held-out one; "
        f"above, the ratio of the distances to these two. There are {len(train):,} training and {len(held_out):,} "
        "held-out images."
    )
    return Section("Memorisation", text, figures=[Picture(draw.neighbours(rows, titles, display), caption)])


def nearest_rows(
    generated: np.ndarray, train: np.ndarray, held_out: np.ndarray
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The generated images nearest to training images, their neighbours, and how far these are, training / held out."""
    near, which = nearest(generated, train)
    chosen = np.argsort(near, kind="stable")[:NEIGHBOURS]
    far, others = nearest(generated[chosen], held_out)
    rows = {"generated": generated[chosen], "training": train[which[chosen]], "held out": held_out[others]}
    return rows, [f"{ratio:.2f}" for ratio in near[chosen] / np.maximum(far, 1e-300)]
