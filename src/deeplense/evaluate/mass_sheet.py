"""How far a fitted deflection is from the true one, by what images can tell: the mass-sheet degeneracy taken out.

Images stay the same when the source plane is scaled by lambda and shifted by b, and the deflection becomes
``lambda alpha + (1 - lambda) theta + b``: a sheet of mass is put in, and the lens made weaker for it. No fit can know
lambda and b, hence the best are found before errors are counted. With beta = theta - alpha the difference to the truth
is ``beta_true - (lambda beta_fit - b)``: a regression of the true source plane on the fitted one.

References:
    Falco, Gorenstein & Shapiro, On model-dependent bounds on H0 from gravitational images, ApJ 289 (1985) L1.
    Schneider & Sluse, Mass-sheet degeneracy, power-law models and external convergence, arXiv:1306.0901, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deeplense.errors import DataError
from deeplense.lensing.deflection import Deflection


@dataclass(frozen=True)
class MassSheet:
    """What is left of the difference of two deflections, and what was taken out.

    Attributes:
        rmse: root of the mean of |difference|^2, both components together, arcsec, float64, shape (B,).
        scale: the best lambda, float64, shape (B,); 1 where nothing had to be scaled.
    """

    rmse: Tensor
    scale: Tensor


def deflection_error(
    alpha_fit: Deflection, alpha_true: Deflection, theta_x: Tensor, theta_y: Tensor, radius: float
) -> MassSheet:
    """Error of a deflection inside a circle about the origin, after the best mass-sheet transformation of it.

    Because lambda may be anything, no fit is worse than lambda = 0, which sends all rays to one point. The mean square
    of a point mass's deflection grows with the logarithm of the resolution: where the truth has point masses, compare
    with its smooth part, or on one and the same grid.

    Args:
        alpha_fit, alpha_true: x and y, arcsec, shape (B, H, W) each.
        theta_x, theta_y: image-plane positions, arcsec, shape (H, W) or (B, H, W).
        radius: of the circle, arcsec; every image needs two positions in it.

    Raises:
        DataError: shapes that do not fit together, deflections that are not finite, or fewer than two positions.
    """
    fit, true, inside = _checked(alpha_fit, alpha_true, theta_x, theta_y, radius)
    weight = inside / inside.sum((-2, -1), keepdim=True)
    theta = torch.stack([theta_x, theta_y]).double().reshape(2, -1, *fit.shape[2:])
    beta_fit, beta_true = (_centred(theta - alpha, weight) for alpha in (fit, true))
    spread, shared = _mean(beta_fit**2, weight), _mean(beta_fit * beta_true, weight)
    # A fit that sends all rays to one point leaves nothing that could be scaled.
    scale = torch.where(spread > 0, shared / spread.clamp_min(torch.finfo(spread.dtype).tiny), 0.0)
    left = beta_true - scale[..., None, None] * beta_fit
    return MassSheet(_mean(left**2, weight).sqrt(), scale)


def no_lensing_error(alpha_true: Deflection, theta_x: Tensor, theta_y: Tensor, radius: float) -> MassSheet:
    """The same for alpha = 0, the naive baseline: what any lens model has to beat.

    No lensing, scaled by lambda, is a uniform sheet of mass with kappa = 1 - lambda, which magnifies and distorts
    nothing: the baseline is the best such sheet. For an isothermal sphere in the middle of the circle it leaves
    theta_E / 3, whatever the radius, with lambda = 1 - 4 theta_E / (3 radius). Arguments as `deflection_error`.
    """
    none = torch.zeros_like(alpha_true[0])
    return deflection_error((none, none), alpha_true, theta_x, theta_y, radius)


def _checked(
    alpha_fit: Deflection, alpha_true: Deflection, theta_x: Tensor, theta_y: Tensor, radius: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Both deflections as float64, shape (2, B, H, W), and whether a position counts, shape (H, W) or (B, H, W)."""
    fit, true = (torch.stack(tuple(alpha)).double() for alpha in (alpha_fit, alpha_true))
    if fit.shape != true.shape or fit.ndim != 4 or theta_x.shape not in (fit.shape[1:], fit.shape[2:]):
        raise DataError(
            f"deflections of shapes {tuple(fit.shape[1:])} and {tuple(true.shape[1:])} at positions of shape "
            f"{tuple(theta_x.shape)}; give (B, H, W) for both, at positions (H, W) or (B, H, W)"
        )
    inside = (theta_x**2 + theta_y**2 <= radius**2).double()
    if inside.sum((-2, -1)).min() < 2:
        raise DataError(f"fewer than two positions lie within {radius:g} arcsec of the centre; widen the radius")
    if not (torch.isfinite(fit).all() and torch.isfinite(true).all()):
        raise DataError("some deflections are NaN or infinite; look for a fit that diverged")
    return fit, true, inside


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of both components' sum, (2, B, H, W) -> (B,)."""
    return (values * weight).sum((0, -2, -1))


def _centred(beta: Tensor, weight: Tensor) -> Tensor:
    """Positions about their weighted mean, shape (2, B, H, W): the best shift b is the one that joins the means."""
    return beta - (beta * weight).sum((-2, -1), keepdim=True)
