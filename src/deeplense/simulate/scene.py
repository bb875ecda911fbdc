"""One scene: every number that makes an image, drawn from the priors of a preset."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ellipk
from torch import Tensor

from deeplense.errors import ConfigError
from deeplense.simulate import substructure
from deeplense.simulate.preset import Preset, World
from deeplense.simulate.substructure import Truth

HALO_KEYS = ("sub_x", "sub_y", "sub_theta_E")
# Each kind of draw has a stream of its own, so that the noise does not depend on how many numbers a scene took.
SCENE, NOISE = 0, 1


def generator(seed: int, index: int, stream: int) -> np.random.Generator:
    """The random numbers of one image: a function of (seed, index) and of what they are for, and of nothing else."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, index, stream])))


def draw(preset: Preset, world: World, kind: int, strength: float, rng: np.random.Generator) -> Truth:
    """The parameters of one image by their names in CONVENTIONS (arcsec, mag); haloes as float64 arrays.

    ``theta_E`` is that of the whole lens, ``theta_E_macro`` that of the smooth ellipsoid which is rendered: less where
    the world asks for equal mass inside theta_E, since the substructure has its share of it.
    """
    lens, source = world.lens, world.source
    truth: Truth = {"theta_E": lens.theta_E.sample(rng)}
    truth["e1"], truth["e2"] = _ellipticity(lens.q.sample(rng), lens.phi.sample(rng))
    truth["gamma1"], truth["gamma2"] = _polar(lens.gamma.sample(rng), 2 * lens.phi_gamma.sample(rng))
    truth["center_x"], truth["center_y"] = lens.center_x.sample(rng), lens.center_y.sample(rng)
    truth["source_x"], truth["source_y"] = _polar(source.offset.sample(rng), source.offset_angle.sample(rng))
    truth["source_e1"], truth["source_e2"] = _ellipticity(source.q.sample(rng), source.phi.sample(rng))
    truth["R_sersic"], truth["n_sersic"] = source.R_sersic.sample(rng), source.n_sersic.sample(rng)
    truth["magnitude"] = source.magnitude.sample(rng)
    truth["psf_fwhm"] = world.observation.psf_fwhm.sample(rng)
    truth |= substructure.draw(kind, world, truth["theta_E"], strength, rng)
    truth["theta_E_macro"] = _macro(truth) if world.is_mass_matched else truth["theta_E"]
    if truth["theta_E_macro"] <= 0:
        raise ConfigError(f"strength={strength}: substructure would have all of the lens's mass; give a smaller factor")
    truth |= {"z_lens": preset.z_lens, "z_source": preset.z_source}
    return {key: value if isinstance(value, np.ndarray | int) else float(value) for key, value in truth.items()}


def _macro(truth: Truth) -> float:
    """The SIE's Einstein radius that leaves the projected mass inside theta_E as it would be without substructure.

    Inside a circle of radius theta an isothermal ellipsoid has c theta_E theta (in units of pi Sigma_crit). c is the
    mean of sqrt(q) / sqrt(q^2 cos^2 + sin^2) over the circle, a complete elliptic integral; it is 1 for a round lens.
    """
    theta_E, e = truth["theta_E"], math.hypot(truth["e1"], truth["e2"])
    q = (1 - e) / (1 + e)
    c = 2 / math.pi * math.sqrt(q) * ellipk(1 - q**2)
    inside = substructure.mass_inside(truth, theta_E, (truth["center_x"], truth["center_y"]))
    return theta_E - inside / (theta_E * c)


def _ellipticity(q: float, phi: float) -> tuple[float, float]:
    return _polar((1 - q) / (1 + q), 2 * phi)


def _polar(length: float, angle: float) -> tuple[float, float]:
    return length * math.cos(angle), length * math.sin(angle)


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes as tensors: parameters of shape (B,), haloes of shape (B, N) padded with ``theta_E = 0``."""

    values: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def __len__(self) -> int:
        return len(self.values["theta_E"])

    @classmethod
    def stack(
        cls, truths: Sequence[Truth], pad_to: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> Scenes:
        """Scenes with room for ``pad_to`` haloes each (more if one has more)."""
        width = max([pad_to, *(len(t["sub_x"]) for t in truths)])
        scalars = [name for name in truths[0] if name not in HALO_KEYS]
        # One transfer for all of them: a tensor made for each costs more than drawing the scenes.
        columns = torch.tensor([[t[name] for t in truths] for name in scalars], dtype=torch.float64).to(device, dtype)
        haloes = np.zeros((len(HALO_KEYS), len(truths), width))
        for row, truth in enumerate(truths):
            for key, name in enumerate(HALO_KEYS):
                haloes[key, row, : len(truth[name])] = truth[name]
        padded = torch.from_numpy(haloes).to(device, dtype)
        return cls(dict(zip(scalars, columns, strict=True)) | dict(zip(HALO_KEYS, padded, strict=True)))
