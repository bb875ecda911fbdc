"""Fit a model to images: Levenberg-Marquardt for a whole batch at once, in which finished images cost nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# p (B, P) -> images (B, H, W) and their derivatives (B, P, H, W), each image a function of its own row.
Linearised = Callable[[Tensor], tuple[Tensor, Tensor]]
# An image is finished when a step lowers its chi^2 by less than this share, or when no step does.
TOLERANCE, START, HOPELESS = 1e-6, 1e-2, 1e8
# Added to a normal matrix with a diagonal of ones before it is inverted: what rounding leaves undetermined.
RIDGE = 1e-10


@dataclass(frozen=True)
class Fit:
    """The best parameters found for each image.

    Attributes:
        parameters: shape (B, P).
        residual: (model - data) / sigma, shape (B, H, W).
        chi2: sum of squared residuals over the number of pixels that count, shape (B,).
        covariance: of the parameters by the curvature of chi^2 at the end, float64, shape (B, P, P).
    """

    parameters: Tensor
    residual: Tensor
    chi2: Tensor
    covariance: Tensor


def forward_mode(model: Callable[[Tensor], Tensor]) -> Linearised:
    """Image and derivatives of a differentiable ``model``: p (B, P) -> (B, H, W), by one forward pass a column."""

    def linearise(p: Tensor) -> tuple[Tensor, Tensor]:
        directions = torch.eye(p.shape[1], dtype=p.dtype, device=p.device)
        columns = [torch.func.jvp(model, (p,), (d.expand_as(p).contiguous(),))[1] for d in directions]
        return model(p), torch.stack(columns, 1)

    return linearise


def fit(
    model: Callable[[Tensor], Tensor] | None,
    data: Tensor,
    sigma: Tensor,
    start: Tensor,
    steps: int = 30,
    *,
    linearise: Linearised | None = None,
    bounds: tuple[Tensor, Tensor] | None = None,
) -> Fit:
    """Minimise chi^2 of ``model(parameters)`` against each image by damped Gauss-Newton steps.

    Args:
        model: parameters (B, P) -> images (B, H, W), differentiable, each image a function of its own row; may be None
            where ``linearise`` is given.
        data, sigma: images and their noise, shape (B, H, W); pixels of infinite noise do not count.
        start: first guess, shape (B, P).
        linearise: image and derivatives in one, where they are cheaper than by forward-mode differentiation.
        bounds: least and largest value of each parameter, shape (P,) each: steps end there.

    References: Marquardt, J. SIAM 11 (1963) 431. The damping falls by 5 after a good step, and rises by 6 after a bad.
    """
    if linearise is None:
        assert model is not None
        linearise = forward_mode(model)
    weight = 1 / sigma
    state = _State.begin(linearise, data, weight, _inside(start, bounds))
    for _ in range(steps):
        rows = state.active.nonzero()[:, 0]
        if not len(rows):
            break
        trial = _inside(state.parameters[rows] - state.step(rows, bounds), bounds)
        state.advance(rows, _State.begin(linearise, data[rows], weight[rows], trial))
    number = weight.flatten(1).count_nonzero(1)
    return Fit(state.parameters, state.residual, state.chi2 / number, _covariance(state.normal))


@dataclass
class _State:
    """Where each image of a batch stands."""

    parameters: Tensor
    residual: Tensor
    chi2: Tensor
    normal: Tensor  # J^T J, float64, (B, P, P)
    gradient: Tensor  # J^T r, float64, (B, P)
    damping: Tensor
    active: Tensor

    @classmethod
    def begin(cls, linearise: Linearised, data: Tensor, weight: Tensor, p: Tensor) -> _State:
        image, jacobian = linearise(p)
        # What infinite noise weighs is 0, whatever the pixel says: it may be NaN.
        residual = torch.where(weight > 0, (image - data) * weight, 0.0)
        jacobian = torch.where(weight > 0, jacobian.transpose(0, 1) * weight, 0.0).transpose(0, 1).flatten(2)
        normal, gradient = jacobian @ jacobian.mT, jacobian @ residual.flatten(1)[:, :, None]
        chi2 = residual.double().square().sum((1, 2)).to(p.dtype)
        ones = torch.ones_like(chi2)
        return cls(p, residual, chi2, normal.double(), gradient[:, :, 0].double(), START * ones, ones > 0)

    def step(self, rows: Tensor, bounds: tuple[Tensor, Tensor] | None) -> Tensor:
        """(J^T J + damping diag(J^T J))^-1 J^T r of some images, shape (B, P)."""
        gradient = self.gradient[rows]
        free = ~_held(self.parameters[rows], gradient, bounds)
        normal, scale = _unit(self.normal[rows] * (free[:, :, None] & free[:, None, :]))
        damped = normal + torch.diag_embed(self.damping[rows, None].expand_as(scale))
        solution, info = torch.linalg.solve_ex(damped, (gradient * free / scale)[:, :, None])
        return torch.where((info == 0)[:, None], solution[:, :, 0] / scale, 0.0).to(self.parameters.dtype)

    def advance(self, rows: Tensor, trial: _State) -> None:
        """Go where it is better, and try smaller steps where it is not."""
        before, after = self.chi2[rows], trial.chi2.nan_to_num(torch.inf)
        better = after < before
        # A small gain says nothing while it is the damping that makes steps small.
        stays = better & (before - after < TOLERANCE * before) & (self.damping[rows] <= START)
        good = rows[better]
        for name in ("parameters", "residual", "chi2", "normal", "gradient"):
            getattr(self, name)[good] = getattr(trial, name)[better]
        damping = torch.where(better, self.damping[rows] / 5, self.damping[rows] * 6).clamp(1e-8)
        self.damping[rows], self.active[rows] = damping, ~stays & (damping < HOPELESS)


def best(fits: list[Fit]) -> Fit:
    """Of several fits to the same images, the one with the least chi^2 for each image."""
    which = torch.stack([f.chi2 for f in fits]).nan_to_num(torch.inf).argmin(0)
    row = torch.arange(len(which), device=which.device)
    return Fit(*(torch.stack([getattr(f, name) for f in fits])[which, row] for name in Fit.__dataclass_fields__))


def _inside(p: Tensor, bounds: tuple[Tensor, Tensor] | None) -> Tensor:
    return p.clone() if bounds is None else p.clamp(*bounds)


def _held(p: Tensor, gradient: Tensor, bounds: tuple[Tensor, Tensor] | None) -> Tensor:
    """Which parameters are at a bound that chi^2 wants to leave, bool, (B, P): the others step as if they were fixed.

    A step for all that is cut off at the bound afterwards would be a wrong one for the others.
    """
    if bounds is None:
        return torch.zeros_like(p, dtype=torch.bool)
    return ((p <= bounds[0]) & (gradient > 0)) | ((p >= bounds[1]) & (gradient < 0))


def _unit(normal: Tensor) -> tuple[Tensor, Tensor]:
    """J^T J with a diagonal of ones, and the scale of each parameter; one without effect is left to itself."""
    diagonal = normal.diagonal(dim1=1, dim2=2)
    scale = torch.where(diagonal > 0, diagonal, 1.0).sqrt()
    return normal / (scale[:, :, None] * scale[:, None, :]) + torch.diag_embed((diagonal == 0).double()), scale


def _covariance(normal: Tensor) -> Tensor:
    """The inverse of the normal matrix; scatter is infinite where a parameter has no effect, or the matrix none."""
    unit, scale = _unit(normal)
    # Rounding in single precision may leave a matrix that is not positive: its inverse has variances below zero.
    factor, info = torch.linalg.cholesky_ex(unit + RIDGE * torch.eye(unit.shape[1]).to(unit))
    inverse = torch.cholesky_inverse(factor) / (scale[:, :, None] * scale[:, None, :])
    is_good = (info == 0) & inverse.isfinite().all(2).all(1)
    lost = (normal.diagonal(dim1=1, dim2=2) == 0) | ~is_good[:, None]
    return torch.where(is_good[:, None, None], inverse, 0.0) + torch.diag_embed(torch.where(lost, torch.inf, 0.0))
