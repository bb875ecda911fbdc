"""What a smooth lens says of images: its parameters, and what of each image it cannot explain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplense.lensing import fit
from deeplense.lensing.fit import Linearised
from deeplense.lensing.noise import Noise
from deeplense.lensing.smooth import Camera, SmoothLens

# Images at a time: their rays then stay in the cache of a CPU.
CHUNK = 8


@dataclass(frozen=True)
class Inversion:
    """What was found in each image.

    Attributes:
        parameters: shape (B, P), the columns of ``SmoothLens.names``.
        covariance: of these by the curvature of chi^2, float64, shape (B, P, P): right where the model is.
        model: the image of the lens that was found, shape (B, H, W).
        residual: (image - model) / noise, shape (B, H, W).
        chi2: mean square of the residual, shape (B,).
    """

    parameters: Tensor
    covariance: Tensor
    model: Tensor
    residual: Tensor
    chi2: Tensor


def invert(
    lens: SmoothLens,
    images: Tensor,
    start: Tensor,
    noise: Noise,
    scatter: Tensor,
    steps: int = 12,
    on_chunk: Callable[[int], object] = int,
    compile: bool = False,
) -> Inversion:
    """Fit a smooth lens to each image, from a first guess.

    The noise of photons is that of what is expected, not of what was counted, since pixels that happen to be dark would
    count too much. What is expected is at first the smoothed image, then the model: the fit goes on with its noise.

    Args:
        images: shape (B, H, W).
        start: parameters, shape (B, P); flux and sky are ignored and solved for.
        scatter: of the sky, shape (B,).
        steps: of Levenberg and Marquardt at most; 0 evaluates the guess.
        on_chunk: is told how many images are done.
        compile: use torch.compile: half a minute of set-up, then four times faster.
    """
    # Compiled code is kept by the numbers of the camera: a kernel of pixels is none.
    linearise = _compiled(lens) if compile and lens.camera.kernel is None else lens.linearise
    parts = []
    for rows in torch.arange(len(images)).split(CHUNK):
        parts.append(_invert(lens, linearise, images[rows], start[rows], noise, scatter[rows], steps))
        on_chunk(len(rows))
    return Inversion(*(torch.cat([getattr(part, name) for part in parts]) for name in Inversion.__dataclass_fields__))


def evaluate(
    lens: SmoothLens, images: Tensor, p: Tensor, covariance: Tensor, noise: Noise, scatter: Tensor
) -> Inversion:
    """What a guess says of images, without a fit: only flux and sky are solved for; arguments as of :func:`invert`.

    Args:
        covariance: of the guess without flux and sky, shape (B, P - 2, P - 2).
    """
    sigma = noise.sigma(_smoothed(images), scatter)
    low, high = lens.bounds(p)
    p = lens.light_up(p.clamp(low, high), images, sigma**-2)
    model = lens.render(p)
    residual = (images - model) / noise.sigma(model - p[:, lens.names.index("sky")][:, None, None], scatter)
    return Inversion(p, F.pad(covariance.double(), (0, 2, 0, 2)), model, residual, residual.square().mean((1, 2)))


def _smoothed(images: Tensor) -> Tensor:
    """Images above their sky, averaged over 3x3 pixels."""
    sky = images.flatten(1).quantile(0.05, dim=1)[:, None, None]
    return F.avg_pool2d((images - sky)[:, None], 3, 1, 1)[:, 0]


def _invert(
    lens: SmoothLens,
    linearise: Linearised,
    images: Tensor,
    start: Tensor,
    noise: Noise,
    scatter: Tensor,
    steps: int,
) -> Inversion:
    sigma = noise.sigma(_smoothed(images), scatter)
    low, high = lens.bounds(start)
    p = lens.light_up(start.clamp(low, high), images, sigma**-2)
    how: dict[str, Any] = {"linearise": linearise, "bounds": (low, high)}
    found = fit.fit(None, images, sigma, p, steps, **how)
    # Noise of the model, from here on; the fit hardly moves, so that few steps will do.
    level = found.parameters[:, lens.names.index("sky")][:, None, None]
    sigma = noise.sigma(images + found.residual * sigma - level, scatter)
    found = fit.fit(None, images, sigma, found.parameters, min(steps, 4), **how)
    model = images + found.residual * sigma
    return Inversion(found.parameters, found.covariance, model, -found.residual, found.chi2)


def _compiled(lens: SmoothLens) -> Linearised:
    """The same derivatives from compiled code, which is made for a whole chunk: fewer images are filled up to one."""
    run = _compile(lens.camera, tuple(lens.fixed.items()), lens.has_lens)

    def linearise(p: Tensor) -> tuple[Tensor, Tensor]:
        number = len(p)
        image, jacobian = run(torch.cat([p, p[:1].expand(CHUNK - number, -1)]))
        return image[:number], jacobian[:number]

    return linearise


@lru_cache(maxsize=8)
def _compile(camera: Camera, fixed: tuple[tuple[str, float], ...], has_lens: bool) -> Linearised:
    return torch.compile(SmoothLens(camera, dict(fixed), has_lens).linearise, dynamic=False)
