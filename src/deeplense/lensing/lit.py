"""A smooth lens whose galaxy shines too: the lensed source and, over it, the light of the lens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from deeplense.errors import ConfigError
from deeplense.lensing import light
from deeplense.lensing.smooth import BOUNDS, SmoothLens, linear_sersic

# Parameters of the light, and those of a source that they are like.
LIGHT = {
    "light_x": "source_x",
    "light_y": "source_y",
    "light_R_sersic": "R_sersic",
    "light_n_sersic": "n_sersic",
    "light_e1": "source_e1",
    "light_e2": "source_e2",
    "light_flux": "flux",
}


@dataclass(frozen=True)
class LitLens:
    """Images of a smooth lens and a Sersic profile that is not lensed, as functions of parameters p, (B, P).

    Attributes:
        lens: the same without that light; its PSF has to be a kernel, or of a fixed width.

    Raises:
        ConfigError: the width of the PSF is a parameter.
    """

    lens: SmoothLens

    def __post_init__(self) -> None:
        if self.lens.camera.kernel is None and "psf_fwhm" in self.lens.names:
            raise ConfigError("with light of the lens the PSF has to be known: give a kernel, or fix psf_fwhm")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The columns of p: those of the lens, then of the light."""
        return (*self.lens.names, *LIGHT)

    def bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Least and largest value of each column, shape (P,)."""
        low, high = self.lens.bounds(like)
        extra = torch.tensor([BOUNDS.get(of, (-torch.inf, torch.inf)) for of in LIGHT.values()]).to(like).T
        return torch.cat([low, extra[0]]), torch.cat([high, extra[1]])

    def linearise(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, H, W) and their derivatives by each column of p, (B, P, H, W)."""
        image, jacobian = self.lens.linearise(p[:, : len(self.lens.names)])
        shine, slopes = self.shine(p)
        return image + shine, torch.cat([jacobian, slopes], 1)

    def shine(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """The lens's own light behind the PSF, (B, H, W), and its derivatives by its seven parameters."""
        own = dict(zip(LIGHT.values(), p[:, len(self.lens.names) :].unbind(1), strict=True))
        amplitude = own["flux"] * self.lens.camera.pixel_scale**2
        amplitude = amplitude / light.sersic_flux(torch.ones_like(amplitude), own["R_sersic"], own["n_sersic"])
        profile = (amplitude, *(own[k] for k in ("R_sersic", "n_sersic", "source_e1", "source_e2")))
        profile = (*profile, own["source_x"], own["source_y"])
        brightness, slopes = linear_sersic(*self.lens.camera.grid(like=p), profile, own)
        maps = torch.stack([brightness, *(slopes[of] for of in LIGHT.values())], 1)
        seen = self.lens.observe(maps, self.lens.values(p[:, : len(self.lens.names)])["psf_fwhm"])
        return seen[:, 0], seen[:, 1:]
