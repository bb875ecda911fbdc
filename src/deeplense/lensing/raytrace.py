"""From pixels to rays and back: grids, the lens equation beta = theta - alpha(theta), and magnification."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplense.errors import ConfigError
from deeplense.lensing.compiled import hold
from deeplense.lensing.deflection import Deflection, _image


def make_grid(
    num_pix: int,
    pixel_scale: float,
    supersampling: int = 1,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Positions of the rays of a square image about its centre.

    Returns:
        theta_x, theta_y: arcsec, shape (S, S), S = num_pix * supersampling; x grows with the column, y with the row.
    """
    n = num_pix * supersampling
    axis = (torch.arange(n, dtype=torch.float64, device=device) - (n - 1) / 2) * (pixel_scale / supersampling)
    theta_y, theta_x = torch.meshgrid(axis.to(dtype), axis.to(dtype), indexing="ij")
    # Stored positions make one long loop of an image in compiled code, which vectors fill to the end.
    return hold(theta_x.contiguous()), hold(theta_y.contiguous())


def trace(theta_x: Tensor, theta_y: Tensor, *deflections: Deflection) -> tuple[Tensor, Tensor]:
    """Source-plane position beta = theta - sum of alpha, arcsec, shape (B, H, W)."""
    beta_x, beta_y = theta_x, theta_y
    for alpha_x, alpha_y in deflections:
        beta_x, beta_y = beta_x - alpha_x, beta_y - alpha_y
    return beta_x, beta_y


def trace_planes(
    theta_x: Tensor, theta_y: Tensor, planes: Sequence[Callable[[Tensor, Tensor], Deflection]], distances: Tensor
) -> tuple[Tensor, Tensor]:
    """Source-plane position of rays that several planes deflect, one behind another, in a flat universe.

    A ray arrives at plane i at theta_i = theta - sum over j < i of (D_ji D_s) / (D_i D_js) alpha_j, where the factor
    is (1 - chi_j / chi_i) chi_s / (chi_s - chi_j) in comoving distances chi. Two running sums, of w_j alpha_j and of
    w_j chi_j alpha_j with w_j = chi_s / (chi_s - chi_j), thus serve all planes behind: the cost is that of `trace`.

    Args:
        theta_x, theta_y: image-plane positions, arcsec, shape (H, W) or (B, H, W).
        planes: front to back, alpha(theta_x, theta_y) of each in arcsec, reduced to the source: what the plane would
            deflect if it were alone; shape (B, H, W).
        distances: comoving distances of the planes, then of the source, any unit, shape (P + 1,) or (B, P + 1), rising.

    Returns:
        beta_x, beta_y: arcsec, shape (B, H, W); with one plane the same as `trace`.

    Raises:
        ConfigError: there is not one distance for each plane and one for the source.

    References: Schneider, Ehlers & Falco, Gravitational Lenses (1992), eq. 9.7.
    """
    if distances.shape[-1] != len(planes) + 1:
        expected = f"{len(planes)} planes need {len(planes) + 1} distances, the last that of the source"
        raise ConfigError(f"distances of shape {tuple(distances.shape)}: {expected}")
    source = distances[..., -1:]
    weight = source / (source - distances[..., :-1])
    weight, moment, inverse = _image(weight, weight * distances[..., :-1], 1 / distances[..., :-1])
    beta_x, beta_y = near_x, near_y = theta_x, theta_y
    far_x, far_y = torch.zeros_like(theta_x), torch.zeros_like(theta_y)
    for i, deflect in enumerate(planes):
        w, m, per_chi = (p[..., i, :, :] for p in (weight, moment, inverse))
        alpha_x, alpha_y = deflect(near_x + far_x * per_chi, near_y + far_y * per_chi)
        beta_x, beta_y = beta_x - alpha_x, beta_y - alpha_y
        near_x, near_y = near_x - w * alpha_x, near_y - w * alpha_y
        far_x, far_y = far_x + m * alpha_x, far_y + m * alpha_y
    return beta_x, beta_y


def bin_pixels(image: Tensor, supersampling: int) -> Tensor:
    """Mean brightness of each pixel over its rays: (B, S*H, S*W) -> (B, H, W)."""
    return image if supersampling == 1 else F.avg_pool2d(image[:, None], supersampling)[:, 0]


def magnify(deflect: Callable[[Tensor, Tensor], Deflection], theta_x: Tensor, theta_y: Tensor) -> Tensor:
    """Signed magnification mu = 1 / det(d beta / d theta), shape of the deflection.

    Args:
        deflect: alpha(theta_x, theta_y) in arcsec, each output pixel a function of its own position.
        theta_x, theta_y: image-plane positions, arcsec, shape (H, W) or (B, H, W).

    References: Narayan & Bartelmann (astro-ph/9606001), eq. 45-47.
    """
    # The views that make a grid share memory, which forward-mode derivatives do not take.
    theta_x, theta_y = theta_x.contiguous(), theta_y.contiguous()
    one, zero = torch.ones_like(theta_x), torch.zeros_like(theta_x)
    xx, yx = torch.func.jvp(deflect, (theta_x, theta_y), (one, zero))[1]
    xy, yy = torch.func.jvp(deflect, (theta_x, theta_y), (zero, one))[1]
    return 1 / ((1 - xx) * (1 - yy) - xy * yx)
