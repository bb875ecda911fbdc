"""Reduced deflection angles alpha(theta) and convergences kappa(theta) of the lenses that we use.

Positions are arcsec, shape (H, W) or (B, H, W). Parameters of one lens an image have shape (B,); those of many
haloes an image have shape (B, N), where a halo with ``theta_E = 0`` deflects nothing and serves as padding.
Names and conventions are lenstronomy's; caustics' ``Rein`` of the SIE is the same product-average radius.
"""

from __future__ import annotations

import torch
from caustics.lenses import func
from torch import Tensor

from deeplense.lensing.compiled import hold

Deflection = tuple[Tensor, Tensor]
# A ray that hits a centre, a point mass or the end of a string exactly would divide by zero; arcsec, as in lenstronomy.
SOFTENING = 1e-10


def _image(*parameters: Tensor) -> tuple[Tensor, ...]:
    """Shape (B,) -> (B, 1, 1), so that a parameter broadcasts over its image.

    To be called last, with what the pixels need (a cosine, not the angle): compiled code would otherwise work out every
    logarithm and cosine of the parameters again for each pixel, which is half of the cost of a lens.
    """
    if torch.compiler.is_compiling():
        parameters = tuple(hold(torch.stack(torch.broadcast_tensors(*parameters))))
    return tuple(p[..., None, None] for p in parameters)


def rotate(x: Tensor, y: Tensor, cos: Tensor, sin: Tensor) -> Deflection:
    """Components along the axes that are turned by an angle, given its cosine and sine (any shapes that broadcast)."""
    return x * cos + y * sin, y * cos - x * sin


def ellipticity_to_axis_ratio(e1: Tensor, e2: Tensor) -> tuple[Tensor, Tensor]:
    """Axis ratio q and angle phi (radian) of the major axis, from e = (1-q)/(1+q) exp(2i phi).

    A round lens has no angle: a small ellipticity is added to its e1, which keeps the gradients in e1 and e2 right. In
    single precision its deflection is then off by 1e-5, and these gradients by 1e-2 at worst.
    """
    tiny = torch.finfo(e1.dtype).eps ** 0.7
    e1 = e1 + tiny * (e1**2 + e2**2 < tiny**2 / 4).to(e1.dtype)
    e = torch.sqrt(e1**2 + e2**2)
    return (1 - e) / (1 + e), torch.atan2(e2, e1) / 2


def axis_ratio_to_ellipticity(q: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    """Ellipticity components e1, e2 from axis ratio q and angle phi (radian); inverse of the above."""
    e = (1 - q) / (1 + q)
    return e * torch.cos(2 * phi), e * torch.sin(2 * phi)


def deflect_sie(
    theta_x: Tensor, theta_y: Tensor, theta_E: Tensor, e1: Tensor, e2: Tensor, center_x: Tensor, center_y: Tensor
) -> Deflection:
    """Deflection of a singular isothermal ellipsoid.

    Args:
        theta_x, theta_y: image-plane positions, arcsec, shape (H, W) or (B, H, W).
        theta_E: product-average Einstein radius, arcsec, shape (B,).
        e1, e2: ellipticity components, shape (B,).
        center_x, center_y: arcsec, shape (B,).

    Returns:
        alpha_x, alpha_y: arcsec, shape (B, H, W).

    References: Keeton, A Catalog of Mass Models (astro-ph/0102341), eqs. 34-35.
    """
    q, phi = ellipticity_to_axis_ratio(e1, e2)
    theta_E, q, cos, sin, center_x, center_y = _image(theta_E, q, torch.cos(phi), torch.sin(phi), center_x, center_y)
    along, across = rotate(theta_x - center_x, theta_y - center_y, cos, sin)
    upright = torch.zeros((), dtype=q.dtype, device=q.device)
    alpha = func.reduced_deflection_angle_sie(upright, upright, q, upright, theta_E, along, across, SOFTENING)
    return rotate(alpha[0], alpha[1], cos, -sin)


def converge_sie(
    theta_x: Tensor, theta_y: Tensor, theta_E: Tensor, e1: Tensor, e2: Tensor, center_x: Tensor, center_y: Tensor
) -> Tensor:
    """Convergence kappa of the SIE, shape (B, H, W); arguments as in :func:`deflect_sie`."""
    q, phi = ellipticity_to_axis_ratio(e1, e2)
    theta_E, q, phi, center_x, center_y = _image(theta_E, q, phi, center_x, center_y)
    return func.convergence_sie(center_x, center_y, q, phi, theta_E, theta_x, theta_y)


def deflect_shear(theta_x: Tensor, theta_y: Tensor, gamma1: Tensor, gamma2: Tensor) -> Deflection:
    """Deflection of an external shear about the origin.

    Args:
        theta_x, theta_y: image-plane positions, arcsec, shape (H, W) or (B, H, W).
        gamma1, gamma2: shear components, shape (B,).

    Returns:
        alpha_x, alpha_y: arcsec, shape (B, H, W).

    References: Meneghetti, Introduction to Gravitational Lensing, eq. 3.80.
    """
    gamma1, gamma2 = _image(gamma1, gamma2)
    return func.reduced_deflection_angle_external_shear(0.0, 0.0, gamma1, gamma2, theta_x, theta_y)


def deflect_sheet(theta_x: Tensor, theta_y: Tensor, kappa: Tensor) -> Deflection:
    """Deflection of a sheet of mass that is the same everywhere, as seen from the origin, shape (B, H, W).

    Args:
        theta_x, theta_y: image-plane positions, arcsec, shape (H, W) or (B, H, W).
        kappa: its convergence, shape (B,); less than 0 where mass is missing.
    """
    (kappa,) = _image(kappa)
    return kappa * theta_x, kappa * theta_y


def deflect_points(theta_x: Tensor, theta_y: Tensor, theta_E: Tensor, x: Tensor, y: Tensor) -> Deflection:
    """Summed deflection of point masses.

    Haloes are added one after another: a (B, N, H, W) array would leave the cache and cost more than its arithmetic.

    Args:
        theta_x, theta_y: image-plane positions, arcsec, shape (H, W) or (B, H, W).
        theta_E: Einstein radii, arcsec, shape (B, N); 0 marks padding.
        x, y: positions of the masses, arcsec, shape (B, N).

    Returns:
        alpha_x, alpha_y: arcsec, shape (B, H, W).

    References: Meneghetti, Introduction to Gravitational Lensing, eq. 3.1.
    """
    shape = torch.broadcast_shapes((len(theta_E), 1, 1), theta_x.shape)
    alpha_x, alpha_y = theta_x.new_zeros(shape), theta_y.new_zeros(shape)
    strength, x, y = _image(theta_E**2, x, y)
    for n in range(theta_E.shape[1]):
        dx, dy = theta_x - x[:, n], theta_y - y[:, n]
        # One division a halo: caustics' form of the same takes a root and two, and these are most of a simulation.
        pull = strength[:, n] / (dx**2 + dy**2 + SOFTENING**2)
        alpha_x, alpha_y = alpha_x + pull * dx, alpha_y + pull * dy
    return alpha_x, alpha_y


def deflect_string(
    theta_x: Tensor, theta_y: Tensor, theta_E: Tensor, x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor
) -> Deflection:
    """Deflection of a uniform straight string of mass, the projection of a superfluid vortex, in closed form.

    With z = x + iy, ``conj(alpha)(z) = theta_E^2 / (z2 - z1) ln((z - z1) / (z - z2))``: the limit of infinitely many
    point masses on the line from z1 to z2 at the cost of one. The branch cut of the logarithm lies on the string,
    where the deflection really jumps.

    Args:
        theta_x, theta_y: image-plane positions, arcsec, shape (H, W) or (B, H, W).
        theta_E: Einstein radius of the whole mass, arcsec, shape (B,).
        x1, y1, x2, y2: ends of the string, arcsec, shape (B,); they must differ.

    Returns:
        alpha_x, alpha_y: arcsec, shape (B, H, W).
    """
    strength = theta_E**2 / ((x2 - x1) ** 2 + (y2 - y1) ** 2)
    along_x, along_y = strength * (x2 - x1), strength * (y2 - y1)
    along_x, along_y, x1, y1, x2, y2 = _image(along_x, along_y, x1, y1, x2, y2)
    dx1, dy1, dx2, dy2 = theta_x - x1, theta_y - y1, theta_x - x2, theta_y - y2
    log_abs = (torch.log(dx1**2 + dy1**2 + SOFTENING**2) - torch.log(dx2**2 + dy2**2 + SOFTENING**2)) / 2
    angle = torch.atan2(dy1 * dx2 - dx1 * dy2, dx1 * dx2 + dy1 * dy2)
    # conj(alpha) = theta_E^2 / |z2 - z1|^2 conj(z2 - z1) (log_abs + i angle); conjugating turns the sign of alpha_y.
    return along_x * log_abs + along_y * angle, along_y * log_abs - along_x * angle
