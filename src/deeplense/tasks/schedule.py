"""Optimisers and learning-rate schedules, by name; and how the weight of a part of a loss rises."""

from __future__ import annotations

import math
from typing import Any

from scipy.special import expit
from torch import nn, optim
from torch.optim import lr_scheduler

from deeplense.config import OptimConfig, PhysicsConfig


def configure(config: OptimConfig, network: nn.Module, steps: int, is_fused: bool = True) -> dict[str, Any]:
    """What Lightning's ``configure_optimizers`` returns, for a run of ``steps`` optimiser steps.

    Args:
        is_fused: update all weights in one kernel.
    """
    kind = {"adam": optim.Adam, "adamw": optim.AdamW}[config.name]
    optimizer = kind(_groups(network, config.weight_decay), lr=config.lr, fused=is_fused)
    return {"optimizer": optimizer, "lr_scheduler": _schedule(config, optimizer, steps)}


def _groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Only kernels decay: biases and normalisation gains are left alone."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _schedule(config: OptimConfig, optimizer: optim.Optimizer, steps: int) -> dict[str, Any]:
    if config.schedule == "plateau":
        plateau = lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="max", factor=config.plateau_factor, patience=config.plateau_patience
        )
        return {"scheduler": plateau, "interval": "epoch", "monitor": "val_score"}
    if config.schedule == "onecycle":
        share = config.warmup or 0.3  # torch's default
        return {"scheduler": lr_scheduler.OneCycleLR(optimizer, config.lr, steps, pct_start=share), "interval": "step"}
    return {"scheduler": lr_scheduler.LambdaLR(optimizer, lambda s: factor(config, s, steps)), "interval": "step"}


def factor(config: OptimConfig, step: int, steps: int) -> float:
    """The learning rate of a step as a share of the largest: a linear rise, then constant or half a cosine."""
    rise = max(round(config.warmup * steps), 0)
    if step < rise:
        return (step + 1) / (rise + 1)
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min((step - rise) / max(steps - rise, 1), 1.0)))


def rising_weight(physics: PhysicsConfig, share: float) -> float:
    """The weight of the lens equation after a share of all steps: a sigmoid."""
    return float(physics.weight * expit((share - physics.midpoint) / physics.rise))
