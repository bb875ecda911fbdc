"""A smooth lens in front of a smooth source, as an image and with the image's derivatives in closed form.

The forward model of inversion: an isothermal ellipsoid with external shear, a Sersic source, a constant sky, a PSF. The
derivatives cost about as much as the image itself, so that some steps of Gauss and Newton take milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplense.errors import ConfigError
from deeplense.lensing import deflection, light, observe
from deeplense.lensing.deflection import Deflection, _image
from deeplense.lensing.observe import FWHM_TO_SIGMA

LENS = ("theta_E", "e1", "e2", "gamma1", "gamma2", "center_x", "center_y")
SOURCE = ("source_x", "source_y", "R_sersic", "n_sersic", "source_e1", "source_e2")
# Total flux of the source and level of the sky, in the unit of the image and, for the sky, per pixel.
NAMES = (*LENS, *SOURCE, "psf_fwhm", "flux", "sky")
# Where a fit may go: beyond, the formulae end (an axis ratio of 0) or the image no longer depends on the parameter.
BOUNDS = {
    "theta_E": (0.02, 20.0),
    "e1": (-0.6, 0.6),
    "e2": (-0.6, 0.6),
    "gamma1": (-0.6, 0.6),
    "gamma2": (-0.6, 0.6),
    "R_sersic": (0.005, 10.0),
    "n_sersic": (0.3, 8.0),
    "source_e1": (-0.6, 0.6),
    "source_e2": (-0.6, 0.6),
    "psf_fwhm": (0.01, 2.0),
}
Maps = dict[str, Tensor]


@dataclass(frozen=True)
class Camera:
    """How a scene becomes pixels.

    Attributes:
        shape: (height, width) in pixels; the origin of angles is the middle of the image.
        pixel_scale: arcsec.
        supersampling: rays per pixel and axis.
        psf_radius: pixels at which a Gaussian PSF is cut off.
        kernel: a pixelated PSF of sum 1, (K, K), K odd, in place of a Gaussian; ``psf_fwhm`` has no effect then.
    """

    shape: tuple[int, int]
    pixel_scale: float
    supersampling: int = 2
    psf_radius: int = 4
    kernel: Tensor | None = None

    def grid(self, supersampling: int | None = None, like: Tensor | None = None) -> Deflection:
        """theta_x, theta_y of the rays, arcsec, (H * S, W * S); x grows with the column, y with the row."""
        rays = supersampling or self.supersampling
        like = torch.empty(0) if like is None else like
        axes = [
            ((torch.arange(n * rays, dtype=torch.float64) - (n * rays - 1) / 2) * (self.pixel_scale / rays)).to(like)
            for n in self.shape
        ]
        theta_y, theta_x = torch.meshgrid(*axes, indexing="ij")
        return theta_x.contiguous(), theta_y.contiguous()


@dataclass(frozen=True)
class SmoothLens:
    """Images of smooth lenses as functions of parameters p, shape (B, P), whose columns are ``names``.

    Attributes:
        camera: pixels and PSF.
        fixed: parameters that are the same for all images and no columns of p: a round lens has ``{"e1": 0, "e2": 0}``.
        has_lens: False leaves the deflection out, alpha = 0: a control. The lens's parameters then have no effect.

    Raises:
        ConfigError: one of the fixed parameters does not exist.
    """

    camera: Camera
    fixed: Mapping[str, float] = field(default_factory=dict)
    has_lens: bool = True

    def __post_init__(self) -> None:
        if unknown := sorted(self.fixed.keys() - set(NAMES)):
            raise ConfigError(f"a smooth lens has no {unknown[0]!r}; it has {', '.join(NAMES)}")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The columns of p."""
        return tuple(name for name in NAMES if name not in self.fixed)

    def bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Least and largest value of each column, shape (P,)."""
        # A Gaussian narrower than this leaves sampled pixels as they are, so that none shows its width.
        known = BOUNDS | {"psf_fwhm": (0.8 * self.camera.pixel_scale, BOUNDS["psf_fwhm"][1])}
        pairs = [known.get(name, (-torch.inf, torch.inf)) for name in self.names]
        low, high = torch.tensor(pairs, dtype=like.dtype, device=like.device).T
        return low, high

    def values(self, p: Tensor) -> Maps:
        """Every parameter by name, shape (B,), the fixed ones included."""
        columns = dict(zip(self.names, p.unbind(1), strict=True))
        return {name: columns[name] if name in columns else p.new_full((len(p),), self.fixed[name]) for name in NAMES}

    def deflect(self, p: Tensor, theta_x: Tensor, theta_y: Tensor) -> Deflection:
        """alpha_x, alpha_y of ellipsoid and shear, arcsec, shape (B, H, W)."""
        v = self.values(p)
        if not self.has_lens:
            nothing = torch.zeros(len(p), *theta_x.shape[-2:]).to(p)
            return nothing, nothing
        lens = deflection.deflect_sie(theta_x, theta_y, v["theta_E"], v["e1"], v["e2"], v["center_x"], v["center_y"])
        shear = deflection.deflect_shear(theta_x, theta_y, v["gamma1"], v["gamma2"])
        return lens[0] + shear[0], lens[1] + shear[1]

    def converge(self, p: Tensor, theta_x: Tensor, theta_y: Tensor) -> Tensor:
        """Convergence kappa, shape (B, H, W)."""
        v = self.values(p)
        place = (v["e1"], v["e2"], v["center_x"], v["center_y"])
        return deflection.converge_sie(theta_x, theta_y, v["theta_E"], *place) * self.has_lens

    def render(self, p: Tensor) -> Tensor:
        """Images (B, H, W) in the unit of ``flux``; differentiable by torch."""
        v = self.values(p)
        theta_x, theta_y = self.camera.grid(like=p)
        alpha_x, alpha_y = self.deflect(p, theta_x, theta_y)
        brightness = light.sersic(theta_x - alpha_x, theta_y - alpha_y, *self._profile(v))
        return self._blur(self._bin(brightness), v["psf_fwhm"]) + v["sky"][:, None, None]

    def linearise(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, H, W) and their derivatives by each column of p, (B, P, H, W), in closed form."""
        v = self.values(p)
        brightness, slopes = self._slopes(v, p)
        wanted = [name for name in self.names if name in slopes]
        rays = torch.stack([brightness, *(slopes[name] for name in wanted)], 1)
        binned = self._bin(rays.flatten(0, 1)).unflatten(0, rays.shape[:2])
        blurred = self._blur_maps(binned, v["psf_fwhm"])
        columns = dict(zip(wanted, blurred[:, 1:].unbind(1), strict=True))
        columns["sky"] = torch.ones_like(blurred[:, 0])
        columns["psf_fwhm"] = self._blur_slope(binned[:, 0], v["psf_fwhm"])
        image = blurred[:, 0] + v["sky"][:, None, None]
        return image, torch.stack([columns[name] for name in self.names], 1)

    def observe(self, rays: Tensor, fwhm: Tensor) -> Tensor:
        """Maps of the brightness of rays, (B, M, H * S, W * S), on pixels and behind the PSF, (B, M, H, W)."""
        return self._blur_maps(self._bin(rays.flatten(0, 1)).unflatten(0, rays.shape[:2]), fwhm)

    def light_up(self, p: Tensor, data: Tensor, weight: Tensor) -> Tensor:
        """p with the flux and the sky that fit the data best, by linear least squares.

        Args:
            data, weight: images and one over the variance of each pixel, shape (B, H, W).
        """
        flux, sky = self.names.index("flux"), self.names.index("sky")
        one = p.clone()
        one[:, flux], one[:, sky] = 1.0, 0.0
        source = self.render(one)
        ss, s, n = ((weight * x).sum((1, 2)) for x in (source * source, source, torch.ones_like(source)))
        sd, d = (weight * source * data).sum((1, 2)), (weight * data).sum((1, 2))
        # A source that falls beside the image has no flux that could be told.
        det = (ss * n - s * s).clamp_min(1e-6 * ss * n + torch.finfo(p.dtype).tiny)
        lit = p.clone()
        # Not quite 0, where its logarithm has no gradient.
        least = 1e-6 * data.abs().sum((1, 2))
        lit[:, flux], lit[:, sky] = torch.maximum((n * sd - s * d) / det, least), (ss * d - s * sd) / det
        return lit

    def _profile(self, v: Maps) -> tuple[Tensor, ...]:
        area = self.camera.pixel_scale**2
        amplitude = v["flux"] * area / light.sersic_flux(torch.ones_like(v["flux"]), v["R_sersic"], v["n_sersic"])
        return amplitude, *(v[k] for k in ("R_sersic", "n_sersic", "source_e1", "source_e2", "source_x", "source_y"))

    def _slopes(self, v: Maps, p: Tensor) -> tuple[Tensor, Maps]:
        """Surface brightness of the rays and its derivatives by all but sky and PSF, (B, H * S, W * S)."""
        theta_x, theta_y = self.camera.grid(like=p)
        alpha, slopes_of_alpha = _linear_lens(theta_x, theta_y, v) if self.has_lens else ((0.0, 0.0), {})
        brightness, slopes = linear_sersic(theta_x - alpha[0], theta_y - alpha[1], self._profile(v), v)
        for name, (by_x, by_y) in slopes_of_alpha.items():
            # The source seen at theta - alpha moves against alpha, as it does against its own position.
            slopes[name] = slopes["source_x"] * by_x + slopes["source_y"] * by_y
        nothing = torch.zeros_like(brightness)
        return brightness, {name: slopes.get(name, nothing) for name in (*LENS, *SOURCE, "flux")}

    def _bin(self, rays: Tensor) -> Tensor:
        return F.avg_pool2d(rays[:, None], self.camera.supersampling)[:, 0] if self.camera.supersampling > 1 else rays

    def _blur(self, image: Tensor, fwhm: Tensor) -> Tensor:
        return self._blur_maps(image[:, None], fwhm)[:, 0]

    def _blur_maps(self, maps: Tensor, fwhm: Tensor) -> Tensor:
        """Convolve all maps (B, M, H, W) of an image with its PSF."""
        if self.camera.kernel is not None:
            return observe.blur(maps, self.camera.kernel.to(maps)[None, None])
        row = observe.gaussian_kernel(self._sigma(fwhm), self.camera.psf_radius)
        return _separable(maps, row, row)

    def _blur_slope(self, image: Tensor, fwhm: Tensor) -> Tensor:
        """Derivative of the blurred image by the FWHM, (B, H, W)."""
        if self.camera.kernel is not None:
            return torch.zeros_like(image)
        sigma, radius = self._sigma(fwhm), self.camera.psf_radius
        row = observe.gaussian_kernel(sigma, radius)
        offset2 = torch.arange(-radius, radius + 1).to(row) ** 2
        # Of a Gaussian w of sum 1: dw / dsigma = w (x^2 - <x^2>) / sigma^3.
        slope = row * (offset2 - (row * offset2).sum(1, keepdim=True)) / sigma[:, None] ** 3
        by_sigma = _separable(image[:, None], slope, row) + _separable(image[:, None], row, slope)
        return by_sigma[:, 0] * (FWHM_TO_SIGMA / self.camera.pixel_scale)

    def _sigma(self, fwhm: Tensor) -> Tensor:
        return fwhm * (FWHM_TO_SIGMA / self.camera.pixel_scale)


def _separable(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Convolve (B, M, H, W) along both axes with symmetric kernels of each image, (B, K); edge pixels go on."""
    batch, num = maps.shape[:2]
    radius = rows.shape[1] // 2
    padded = F.pad(maps.flatten(0, 1)[None], (radius,) * 4, mode="replicate")
    across, down = (k.repeat_interleave(num, 0)[:, None] for k in (rows, columns))
    blurred = F.conv2d(padded, across[:, :, None, :], groups=batch * num)
    return F.conv2d(blurred, down[:, :, :, None], groups=batch * num)[0].unflatten(0, (batch, num))


def _linear_lens(theta_x: Tensor, theta_y: Tensor, v: Maps) -> tuple[Deflection, dict[str, Deflection]]:
    """Deflection of ellipsoid and shear, and its derivative by each parameter of the lens, arcsec, (B, H, W).

    The ellipsoid is isothermal: its shear is minus kappa times the direction of the ray, so that its Jacobian is
    2 kappa t t^T with t the tangential unit vector about its centre. Turning it by phi then changes alpha by
    J alpha - 2 kappa J theta, J the quarter turn.

    References: Keeton (astro-ph/0102341), eqs. 33-35; Kormann, Schneider & Bartelmann, A&A 284 (1994) 285.
    """
    e1, e2 = v["e1"], v["e2"]
    q, phi = deflection.ellipticity_to_axis_ratio(e1, e2)
    e = (1 - q) / (1 + q)
    cos, sin, f2 = torch.cos(phi), torch.sin(phi), 1 - q**2
    by_e = -2 / (1 + e) ** 2  # dq / de
    scalars = (v["theta_E"], q, cos, sin, f2, v["center_x"], v["center_y"], v["gamma1"], v["gamma2"])
    theta_E, q, cos, sin, f2, center_x, center_y, gamma1, gamma2 = _image(*scalars)
    dx, dy = theta_x - center_x, theta_y - center_y
    x, y = deflection.rotate(dx, dy, cos, sin)
    r2 = (x * x + y * y).clamp_min(deflection.SOFTENING)
    psi = torch.sqrt(q * q * x * x + y * y).clamp_min(deflection.SOFTENING)
    f = torch.sqrt(f2)
    strength = theta_E * torch.sqrt(q) / f
    along, across = strength * torch.atan(f * x / psi), strength * torch.atanh(f * y / psi)
    by_q = 0.5 / q + q / f2
    along_q, across_q = along * by_q - strength * q / f * x / psi, across * by_q - strength / (q * f) * y / psi
    alpha_x, alpha_y = deflection.rotate(along, across, cos, -sin)
    q_x, q_y = deflection.rotate(along_q, across_q, cos, -sin)
    two_kappa = theta_E * torch.sqrt(q) / psi
    phi_x, phi_y = two_kappa * dy - alpha_y, alpha_x - two_kappa * dx
    per_r2 = two_kappa / r2
    xx, xy, yy = per_r2 * dy * dy, -per_r2 * dx * dy, per_r2 * dx * dx
    # Chain from q and phi to e1 and e2: e = |e|, phi = arg(e) / 2.
    e1, e2 = e * torch.cos(2 * phi), e * torch.sin(2 * phi)
    q_1, q_2, phi_1, phi_2 = _image(by_e * e1 / e, by_e * e2 / e, -e2 / (2 * e**2), e1 / (2 * e**2))
    slopes = {
        "theta_E": (alpha_x / theta_E, alpha_y / theta_E),
        "e1": (q_x * q_1 + phi_x * phi_1, q_y * q_1 + phi_y * phi_1),
        "e2": (q_x * q_2 + phi_x * phi_2, q_y * q_2 + phi_y * phi_2),
        "gamma1": (theta_x, -theta_y),
        "gamma2": (theta_y, theta_x),
        "center_x": (-xx, -xy),
        "center_y": (-xy, -yy),
    }
    shear_x, shear_y = gamma1 * theta_x + gamma2 * theta_y, gamma2 * theta_x - gamma1 * theta_y
    return (alpha_x + shear_x, alpha_y + shear_y), slopes


def linear_sersic(beta_x: Tensor, beta_y: Tensor, profile: tuple[Tensor, ...], v: Maps) -> tuple[Tensor, Maps]:
    """Brightness of the source and its derivatives by flux and shape at equal flux, (B, H, W).

    In e = e1 + i e2 the squared product-average radius is a form without angles,
    ((1 + |e|^2) r^2 - 2 e1 (x^2 - y^2) - 4 e2 x y) / (1 - |e|^2).
    """
    amplitude, R, n, e1, e2, center_x, center_y = profile
    b, power, log_unit = light.sersic_slope(R, n)
    log_peak = torch.log(amplitude.clamp_min(torch.finfo(R.dtype).tiny)) + b
    # ln of the flux of unit amplitude is b - 2n ln b + ln(2 pi n) + lgamma(2n) + 2 ln R.
    b_n = torch.full_like(b, 1.9992)
    flux_n = 1 / n + b_n - 2 * torch.log(b) - 2 * n * b_n / b + 2 * torch.special.digamma(2 * n)
    shape2 = e1**2 + e2**2
    scalars = (log_peak, b, power, log_unit, R, n, e1, e2, shape2, 1 - shape2, center_x, center_y, b_n - flux_n, b_n)
    log_peak, b, power, log_unit, R, n, e1, e2, shape2, D, center_x, center_y, n_0, b_n = _image(*scalars)
    dx, dy = beta_x - center_x, beta_y - center_y
    r2, minus, twice = dx * dx + dy * dy, dx * dx - dy * dy, 2 * dx * dy
    sharp = ((1 + shape2) * r2 - 2 * (e1 * minus + e2 * twice)) / D
    R2 = sharp.clamp_min(light.CORE**2)
    log_R2 = torch.log(R2)
    bE = b * torch.exp(log_R2 * power + log_unit)
    S = torch.exp(log_peak - bE)
    by_R2 = -S * bE * power / R2
    slopes = {
        "source_x": -by_R2 * 2 * ((1 + shape2) * dx - 2 * (e1 * dx + e2 * dy)) / D,
        "source_y": -by_R2 * 2 * ((1 + shape2) * dy - 2 * (e2 * dx - e1 * dy)) / D,
        "source_e1": by_R2 * 2 * (e1 * r2 - minus + e1 * sharp) / D,
        "source_e2": by_R2 * 2 * (e2 * r2 - twice + e2 * sharp) / D,
        "R_sersic": S * (bE / n - 2) / R,
        "n_sersic": S * (n_0 - bE * (b_n / b - (log_R2 / 2 - torch.log(R)) / (n * n))),
        "flux": S / _image(v["flux"])[0],
    }
    return S, slopes
