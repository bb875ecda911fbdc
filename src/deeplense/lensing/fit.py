"""Fit a model to images: Levenberg-Marquardt for a whole batch at once, with forward-mode derivatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fit:
    """The best parameters found for each image.

    Attributes:
        parameters: shape (B, P).
        residual: (model - data) / sigma, shape (B, H, W).
        chi2: sum of squared residuals over the number of pixels, shape (B,).
    """

    parameters: Tensor
    residual: Tensor
    chi2: Tensor


def fit(model: Callable[[Tensor], Tensor], data: Tensor, sigma: Tensor, start: Tensor, steps: int = 30) -> Fit:
    """Minimise chi^2 of ``model(parameters)`` against each image by damped Gauss-Newton steps.

    Args:
        model: parameters (B, P) -> images (B, H, W), differentiable, each image a function of its own row.
        data, sigma: images and their noise, shape (B, H, W).
        start: first guess, shape (B, P).

    References: Marquardt, J. SIAM 11 (1963) 431. The damping falls by 5 after a good step, and rises by 6 after a bad.
    """
    parameters, damping = start.clone(), start.new_full((len(start),), 1e-2)

    def residuals(p: Tensor) -> Tensor:
        return ((model(p) - data) / sigma).flatten(1)

    residual = residuals(parameters)
    chi2 = residual.square().sum(1)
    for _ in range(steps):
        trial = parameters - _step(residuals, parameters, residual, damping)
        trial_residual = residuals(trial)
        trial_chi2 = trial_residual.square().sum(1).nan_to_num(torch.inf)
        better = trial_chi2 < chi2
        converged = better & (chi2 - trial_chi2 < 1e-7 * chi2)
        parameters = torch.where(better[:, None], trial, parameters)
        residual = torch.where(better[:, None], trial_residual, residual)
        chi2 = torch.where(better, trial_chi2, chi2)
        damping = torch.where(better, damping / 5, damping * 6).clamp(1e-8, 1e8)
        if converged.all():
            break
    return Fit(parameters, residual.reshape(data.shape), chi2 / data[0].numel())


def best(fits: list[Fit]) -> Fit:
    """Of several fits to the same images, the one with the least chi^2 for each image."""
    which = torch.stack([f.chi2 for f in fits]).argmin(0)
    row = torch.arange(len(which))
    return Fit(*(torch.stack([getattr(f, name) for f in fits])[which, row] for name in Fit.__dataclass_fields__))


def _step(residuals: Callable[[Tensor], Tensor], parameters: Tensor, residual: Tensor, damping: Tensor) -> Tensor:
    """(J^T J + damping diag(J^T J))^-1 J^T r, shape (B, P)."""
    # Rows are independent: one forward derivative gives a column of the Jacobian for all images.
    columns = [
        torch.func.jvp(residuals, (parameters,), (direction.expand_as(parameters).contiguous(),))[1]
        for direction in torch.eye(parameters.shape[1], dtype=parameters.dtype, device=parameters.device)
    ]
    jacobian = torch.stack(columns, dim=2)
    normal = jacobian.mT @ jacobian
    damped = normal + torch.diag_embed(damping[:, None] * normal.diagonal(dim1=1, dim2=2) + 1e-9)
    return torch.linalg.solve(damped, jacobian.mT @ residual[:, :, None])[:, :, 0]
