"""The source on a grid of pixels, by regularised linear inversion, for a lens that is given.

A source that is linear between its pixels is seen through the lens as a linear map of them. Among all sources the one
that fits best is noise; a penalty on differences between neighbours keeps it smooth, and the evidence says how much.

References:
    Warren & Dye, Semilinear gravitational lens inversion, astro-ph/0302587.
    Suyu, Marshall, Hobson & Blandford, A Bayesian analysis of regularised source inversions, astro-ph/0601493, eq. 19.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import linalg
from scipy.optimize import minimize_scalar
from torch import Tensor

from deeplense.errors import DataError
from deeplense.lensing.deflection import Deflection
from deeplense.lensing.smooth import SmoothLens

# Natural logarithm of the strengths that are tried, about the one that makes data and penalty equally stiff.
STRENGTHS = (-14.0, 10.0)
# Added to the penalty so that a source of nothing but a constant is not free of cost.
FLAT = 1e-4


@dataclass(frozen=True)
class SourceFit:
    """The most likely source for one image.

    Attributes:
        source: surface brightness, flux of a pixel of the image per arcsec^2 times its area, shape (S, S).
        extent: (left, right, bottom, top) of its outermost pixel centres in the source plane, arcsec.
        model: the image it predicts, shape (H, W).
        residual: (data - model) / sigma, 0 where nothing was measured, shape (H, W).
        chi2: mean of its square over the pixels that count.
        log_evidence: natural logarithm of the probability of the data, given lens and strength.
        strength: of the penalty.
        degrees: source pixels that the data determine, the effective number of free parameters.
    """

    source: np.ndarray
    extent: tuple[float, float, float, float]
    model: np.ndarray
    residual: np.ndarray
    chi2: float
    log_evidence: float
    strength: float
    degrees: float


def reconstruct(
    lens: SmoothLens,
    p: Tensor,
    data: Tensor,
    sigma: Tensor,
    center: tuple[float, float],
    half: float,
    pixels: int = 30,
    strength: float | None = None,
) -> SourceFit:
    """The source that a lens makes most likely.

    Args:
        p: parameters of the lens, shape (P,); those of its source do not matter.
        data: image without sky and lens light, shape (H, W).
        sigma: noise, infinite where a pixel does not count, shape (H, W).
        center, half: of the square on which the source may lie, arcsec; rays outside of it are dark.
        pixels: of the square along each axis.
        strength: of the penalty; the most probable one if None.

    Raises:
        DataError: no pixel counts.
    """
    weight = torch.where(sigma.isfinite(), 1 / sigma, 0.0).double().flatten().numpy()
    if not weight.any():
        raise DataError("no pixel is left to fit: make the mask smaller")
    maps = response(lens, p, center, half, pixels).numpy()
    used = weight > 0
    scaled = maps[:, used] * weight[used]
    target = np.where(used, data.double().flatten().numpy(), 0.0)[used] * weight[used]
    F, D, H = scaled @ scaled.T, scaled @ target, penalty(pixels)
    scale = np.trace(F) / np.trace(H)

    if strength is None:
        strength = scale * float(np.exp(_most_probable(F, D, H, scale, target)))
    source, evidence, factor = _solve(F, D, H, strength, target)
    degrees = len(source) - strength * np.trace(linalg.cho_solve(factor, H))
    evidence += (np.linalg.slogdet(H)[1] - len(target) * np.log(2 * np.pi)) / 2 + np.log(weight[used]).sum()
    model = source @ maps
    residual = np.where(used, (data.double().flatten().numpy() - model) * weight, 0.0)
    x, y = center
    return SourceFit(
        source.reshape(pixels, pixels),
        (x - half, x + half, y - half, y + half),
        model.reshape(data.shape),
        np.nan_to_num(residual).reshape(data.shape),
        float(np.mean(residual[used] ** 2)),
        float(evidence),
        float(strength),
        float(degrees),
    )


def response(lens: SmoothLens, p: Tensor, center: tuple[float, float], half: float, pixels: int) -> Tensor:
    """The image of each source pixel, float64, shape (S * S, H * W)."""
    p = p.double()[None]
    theta_x, theta_y = lens.camera.grid(like=p)
    alpha_x, alpha_y = lens.deflect(p, theta_x, theta_y)
    index, share = bilinear((theta_x - alpha_x, theta_y - alpha_y), center, half, pixels)
    rays = torch.zeros(pixels**2, theta_x.numel(), dtype=torch.float64)
    place = torch.arange(theta_x.numel()).expand(4, -1)
    rays.index_put_((index.flatten(), place.flatten()), share.flatten(), accumulate=True)
    fwhm = lens.values(p)["psf_fwhm"]
    parts = rays.unflatten(1, theta_x.shape).split(64)
    return torch.cat([lens.observe(part[None], fwhm)[0] for part in parts]).flatten(1)


def bilinear(beta: Deflection, center: tuple[float, float], half: float, pixels: int) -> tuple[Tensor, Tensor]:
    """Numbers (4, R) of the source pixels around each ray, and their shares (4, R), which are 0 outside of the grid."""
    step = 2 * half / (pixels - 1)
    column, row = (((b.flatten() - c + half) / step) for b, c in zip(beta, center, strict=True))
    left, below = column.floor().clamp(0, pixels - 2), row.floor().clamp(0, pixels - 2)
    u, v = column - left, row - below
    inside = (u >= 0) & (u <= 1) & (v >= 0) & (v <= 1)
    share = torch.stack([(1 - u) * (1 - v), u * (1 - v), (1 - u) * v, u * v]) * inside
    first = (below * pixels + left).long()
    return torch.stack([first, first + 1, first + pixels, first + pixels + 1]), share


def penalty(pixels: int) -> np.ndarray:
    """The matrix H of s^T H s: squared differences between neighbours, and a little of s^2, shape (S^2, S^2)."""
    difference = np.diff(np.eye(pixels), axis=0)
    square, one = difference.T @ difference, np.eye(pixels)
    return np.asarray(np.kron(one, square) + np.kron(square, one) + FLAT * np.eye(pixels**2))


def _most_probable(F: np.ndarray, D: np.ndarray, H: np.ndarray, scale: float, target: np.ndarray) -> float:
    """Logarithm of the strength over ``scale`` that has the largest evidence."""

    def negative(log_strength: float) -> float:
        return -_solve(F, D, H, scale * np.exp(log_strength), target)[1]

    return float(minimize_scalar(negative, bounds=STRENGTHS, method="bounded", options={"xatol": 0.1}).x)


def _solve(
    F: np.ndarray, D: np.ndarray, H: np.ndarray, strength: float, target: np.ndarray
) -> tuple[np.ndarray, float, tuple[np.ndarray, bool]]:
    """Source, logarithm of the evidence but for constants, and factor of F + strength H, in the paper's symbols."""
    factor = linalg.cho_factor(F + strength * H, lower=True)
    s = linalg.cho_solve(factor, D)
    # |L s - d|^2 / sigma^2 from what is there already.
    chi2 = target @ target - 2 * s @ D + s @ F @ s
    log_det = 2 * np.log(np.diag(factor[0])).sum()
    return s, float(-(chi2 + strength * s @ H @ s + log_det - len(s) * np.log(strength)) / 2), factor
