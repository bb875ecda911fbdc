"""The picture sections of a finder's report: what ranks highest, and what should not rank where it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from deeplense.evaluate.page import Section, Table, Tile
from deeplense.evaluate.pictures import Display, beside, overlay, to_rgb

TILES = 12


@dataclass(frozen=True)
class Gallery:
    """What the picture sections need.

    Attributes:
        images: raw values, shape (N, C, H, W), or None: then there are tables in place of pictures.
        names: of the images, or None.
        kind: what each shows, in words.
        probability: of being a lens, shape (N,).
        explain: images (B, C, H, W) -> heat maps (B, H, W), or None.
        display: how images are shown.
    """

    images: np.ndarray | None
    names: Sequence[str] | None
    kind: Sequence[str]
    probability: np.ndarray
    explain: Callable[[np.ndarray], np.ndarray] | None
    display: Display

    def section(self, title: str, text: str, chosen: np.ndarray) -> Section:
        """Some images, with name, kind and probability, and where there is one the heat map beside each."""
        if self.images is not None and self.explain is not None:
            text += " Beside each picture, bright: what speaks for a lens, relative to its own maximum."
        rows = [(self._name(i), self.kind[i], _probability(self.probability[i])) for i in chosen]
        if self.images is None:
            return Section(title, text, tables=[Table(("Image", "Kind", "Probability"), rows)])
        heats = self.explain(self.images[chosen]) if self.explain and len(chosen) else [None] * len(chosen)
        tiles = [
            Tile(self._picture(i, heat), name, (kind, f"probability {p}"))
            for i, heat, (name, kind, p) in zip(chosen, heats, rows, strict=True)
        ]
        return Section(title, text, tiles=tiles)

    def _name(self, i: int) -> str:
        return str(self.names[i]) if self.names is not None else f"image {i}"

    def _picture(self, i: int, heat: np.ndarray | None) -> np.ndarray:
        assert self.images is not None
        rgb = to_rgb(self.images[i], display=self.display)
        return rgb if heat is None else beside(rgb, overlay(rgb, heat))


def _probability(p: float) -> str:
    """Three figures, and near one those of the distance from it."""
    return f"{p:.3g}" if p < 0.9995 else f"1 − {1 - p:.1g}" if p < 1 else "1"


def candidates_section(gallery: Gallery, score: np.ndarray) -> Section:
    """The most lens-like images of all."""
    best = np.argsort(-score, kind="stable")[:TILES]
    return gallery.section("Top candidates", "The most lens-like images, whatever they are.", best)


def false_section(gallery: Gallery, score: np.ndarray, label: np.ndarray) -> Section | None:
    """The non-lenses that rank highest; None without any."""
    others = np.flatnonzero(label == 0)
    worst = others[np.argsort(-score[others], kind="stable")][:TILES]
    text = "Of what is no lens, that which ranks highest."
    return gallery.section("Most lens-like non-lenses", text, worst) if len(worst) else None


def missed_section(gallery: Gallery, score: np.ndarray, label: np.ndarray) -> Section | None:
    """The lenses that rank lowest; None without any."""
    lenses = np.flatnonzero(label == 1)
    worst = lenses[np.argsort(score[lenses], kind="stable")][:TILES]
    return gallery.section("Least lens-like lenses", "The lenses that rank lowest.", worst) if len(worst) else None
