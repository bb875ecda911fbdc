"""From pixels to rays and back: grids, the lens equation beta = theta - alpha(theta), and magnification."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplense.lensing.deflection import Deflection


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
    return theta_x, theta_y


def trace(theta_x: Tensor, theta_y: Tensor, *deflections: Deflection) -> tuple[Tensor, Tensor]:
    """Source-plane position beta = theta - sum of alpha, arcsec, shape (B, H, W)."""
    beta_x, beta_y = theta_x, theta_y
    for alpha_x, alpha_y in deflections:
        beta_x, beta_y = beta_x - alpha_x, beta_y - alpha_y
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
