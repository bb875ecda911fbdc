"""Classes of substructure, with the lens equation as a second lesson: the brief's physics-guided test."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplense.config import Config
from deeplense.data.module import Batch, LensDataModule
from deeplense.data.transform import d4_matrices
from deeplense.errors import ConfigError
from deeplense.models import two_heads
from deeplense.tasks.arc import agree, brightest_pixels, deflect_alike
from deeplense.tasks.base import Columns
from deeplense.tasks.schedule import rising_weight
from deeplense.tasks.substructure import SubstructureTask

logger = logging.getLogger(__name__)

PIXEL_SCALE = 0.05  # arcsec, of the Common Test: where images do not say theirs


class LensEquationTask(SubstructureTask):
    """A second head says alpha at the brightest pixel of the arc, and beta = theta - alpha has to be a source position.

    Outputs are (B, K + 2): logits, and alpha in units of ``physics.largest``. The loss of an image is its cross-entropy
    + w(t) Smooth-L1 of the lens equation, where t is the share of all steps that are done. By ``physics.against`` beta
    is compared with the true source position ("source"), or the betas of the brightest pixels in ``physics.pixels``
    sectors with each other, if alpha is that of a round isothermal lens ("arc": :func:`deeplense.tasks.arc.agree`).
    Images without an arc, or without a true source position, count by their cross-entropy alone.
    """

    prepares_ahead = False  # the arc is looked for in the image as it is
    _pixel_scale = PIXEL_SCALE

    @classmethod
    def wanted(cls, config: Config) -> tuple[str, ...]:
        _check(config)  # before images are read
        return ("source_x", "source_y") if learns_from(config) == "source" else ()

    @property
    def pixel_scale(self) -> float:
        """Of the images that it was trained on, arcsec."""
        return float(self.calibration.get("pixel_scale", self._pixel_scale))

    def build(self, architecture: dict[str, Any] | None) -> nn.Module:
        _check(self.config)
        return two_heads.build(self.config.model, self.in_channels, len(self.classes), architecture)

    def know(self, data: LensDataModule) -> None:
        super().know(data)
        self._pixel_scale = data.train.pixel_scale or PIXEL_SCALE
        if data.train.pixel_scale is None:
            logger.warning('the images do not say their pixel scale: deflections are for %g" a pixel', PIXEL_SCALE)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        with self.trainer.profiler.profile("augment"):  # type: ignore[attr-defined]
            images, moved = self.augment.traced(batch["image"])
        loss = self.step({**batch, "moved": moved}, images)["loss"].mean()
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(images), sync_dist=True)
        return loss

    def step(self, batch: Batch, images: Tensor) -> Columns:
        output = self(images)
        return {**self.losses(output, {**batch, "image": images}), **self.truth(output, batch)}

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return self.losses(output, batch)["loss"]

    def losses(self, output: Tensor, batch: Batch) -> Columns:
        """The ``loss`` of each image, and its parts ``class_loss`` and ``physics_loss``, NaN where there is none."""
        class_loss = super().loss(self._logits(output), batch)
        physics_loss, is_known = self.lens_equation(self.alpha(output), batch)
        loss = class_loss + self.weight * torch.where(is_known, physics_loss, 0.0)
        return {"loss": loss, "class_loss": class_loss, "physics_loss": physics_loss.masked_fill(~is_known, torch.nan)}

    def lens_equation(self, alpha: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Smooth-L1 of the source position that a deflection (B, 2) implies, and whether there is one, (B,) each.

        Args:
            batch: the images that the network saw, ``params`` where known, and ``moved`` of :meth:`Augment.traced`.
        """
        still = torch.eye(2, 3, device=alpha.device).expand(len(alpha), 2, 3)
        linear, center = batch.get("moved", still).split([2, 1], dim=-1)
        pixels, crop = self.config.physics.pixels, self.preprocess.crop
        theta, is_arc = brightest_pixels(batch["image"], pixels, center[..., 0], crop)
        theta, center = self.pixel_scale * theta, self.pixel_scale * center[..., 0]
        if learns_from(self.config) == "arc":
            return agree(theta - deflect_alike(alpha, theta, center), is_arc)
        true = batch.get("params", torch.full_like(alpha, torch.nan))
        true = (linear * true[:, None]).sum(dim=-1) + center
        is_known = is_arc[:, 0] & true.isfinite().all(dim=1)
        true = torch.where(is_known[:, None], true, 0.0)
        return F.smooth_l1_loss(theta[:, 0] - alpha, true, reduction="none").mean(dim=1), is_known

    @property
    def weight(self) -> float:
        """w(t) of now; that of the end where nothing is being trained."""
        trainer = self._trainer
        share = 1.0 if trainer is None else trainer.global_step / trainer.estimated_stepping_batches
        return rising_weight(self.config.physics, share)

    def alpha(self, output: Tensor) -> Tensor:
        """The deflection at the brightest pixel, x and y, arcsec, (B, 2)."""
        return self.config.physics.largest * output[:, len(self.classes) :].float()

    def _logits(self, output: Tensor) -> Tensor:
        return output[:, : len(self.classes)]

    def score(self, validated: Columns) -> float:
        return super().score({**validated, "output": self._logits(validated["output"])})

    def calibrate(self, validated: Columns) -> dict[str, Any]:
        logits = self._logits(validated["output"])
        return {**super().calibrate({**validated, "output": logits}), "pixel_scale": self.pixel_scale}

    def columns(self, output: Tensor) -> Columns:
        """Probabilities and class as of a substructure run; ``alpha_x``, ``alpha_y`` at the brightest pixel, arcsec."""
        alpha_x, alpha_y = self.alpha(output).unbind(dim=1)
        return {**super().columns(self._logits(output)), "alpha_x": alpha_x, "alpha_y": alpha_y}

    def _answers(self, prepared: Tensor, elements: Sequence[int]) -> Tensor:
        """As of every classifier; alpha of a turned image is turned back before the mean is taken."""
        answers = super()._answers(prepared, elements)
        logits, alpha = answers[..., : len(self.classes)], answers[..., len(self.classes) :]
        turns = d4_matrices()[list(elements), None].to(alpha)
        # Sums, for a matrix product is of half precision on a GPU and of 8 bits in a quantised network.
        return torch.cat([logits, (alpha[..., None] * turns).sum(dim=-2)], dim=-1)


def learns_from(config: Config) -> str:
    """What beta is compared with: the true "source" position, or the other pixels of the "arc"."""
    is_simulated = str(config.data.path).startswith("preset:")
    against = config.physics.against
    return ("source" if is_simulated else "arc") if against == "auto" else against


def _check(config: Config) -> None:
    """Raises ConfigError for settings that this task cannot have."""
    if config.train.ensemble > 1 or config.train.freeze:
        raise ConfigError("two heads are trained as one, and all of them: set train.ensemble=1 train.freeze=0")
    augment = config.augment
    if augment.shift or augment.shear or augment.crop != (1.0, 1.0):
        raise ConfigError(
            "augment.shift, shear and crop would move the image away from its lens equation; flips, quarter_turns, "
            "degrees, translate, scale, blur and noise are allowed"
        )
