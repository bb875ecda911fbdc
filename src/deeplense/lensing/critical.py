"""Critical curves and caustics: where images of a source merge, and where such sources lie."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from deeplense.lensing.raytrace import magnify
from deeplense.lensing.smooth import SmoothLens

Curve = np.ndarray  # (M, 2), x and y in arcsec


def critical_curves(lens: SmoothLens, p: Tensor, reach: float, num: int = 400) -> tuple[list[Curve], list[Curve]]:
    """Critical curves in the image plane and their caustics in the source plane, arcsec.

    Args:
        p: parameters of one lens, shape (P,).
        reach: half the side of the square that is searched, arcsec.
        num: positions along its sides.
    """
    from contourpy import contour_generator

    axis = torch.linspace(-reach, reach, num, dtype=torch.float64)
    theta_y, theta_x = torch.meshgrid(axis, axis, indexing="ij")
    row = p.double()[None]
    inverse = 1 / magnify(lambda x, y: lens.deflect(row, x, y), theta_x, theta_y)[0]
    # An isothermal centre is no critical curve, though 1 / mu leaps there from minus infinity.
    lines = [np.asarray(line, float) for line in contour_generator(axis, axis, inverse.clamp(-10, 10).numpy()).lines(0)]
    curves: list[Curve] = [line for line in lines if np.ptp(line) > reach / 20]
    return curves, [_trace(lens, row, curve) for curve in curves]


def _trace(lens: SmoothLens, row: Tensor, curve: Curve) -> Curve:
    x, y = torch.from_numpy(curve.T.copy())[:, None]
    alpha_x, alpha_y = lens.deflect(row, x, y)
    return torch.stack([(x - alpha_x).flatten(), (y - alpha_y).flatten()], 1).numpy()
