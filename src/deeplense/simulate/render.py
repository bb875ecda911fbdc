"""Scenes to images: trace the rays, light the source, blur, expose."""

from __future__ import annotations

import torch
from torch import Tensor

from deeplense.lensing import deflection, light, observe, raytrace
from deeplense.lensing.deflection import Deflection
from deeplense.simulate.preset import Observation, Preset
from deeplense.simulate.scene import Scenes


def deflect(scenes: Scenes, theta_x: Tensor, theta_y: Tensor, kind: int) -> list[Deflection]:
    """The deflections of the smooth lens and of one kind of substructure, arcsec, shape (B, H, W) each."""
    s = scenes
    macro = (s["theta_E_macro"], s["e1"], s["e2"], s["center_x"], s["center_y"])
    fields = [
        deflection.deflect_sie(theta_x, theta_y, *macro),
        deflection.deflect_shear(theta_x, theta_y, s["gamma1"], s["gamma2"]),
    ]
    if kind == 1:
        fields.append(deflection.deflect_points(theta_x, theta_y, s["sub_theta_E"], s["sub_x"], s["sub_y"]))
    if kind == 2:
        ends = (s["vortex_x1"], s["vortex_y1"], s["vortex_x2"], s["vortex_y2"])
        fields.append(deflection.deflect_string(theta_x, theta_y, s["vortex_theta_E"], *ends))
    return fields


def render(scenes: Scenes, preset: Preset, observation: Observation, kind: int) -> Tensor:
    """Mean source electrons per second and pixel behind the PSF, shape (B, H, W)."""
    s, rays = scenes, observation.supersampling
    dtype, device = s["theta_E"].dtype, s["theta_E"].device
    theta_x, theta_y = raytrace.make_grid(preset.num_pix, preset.pixel_scale, rays, dtype, device)
    beta_x, beta_y = raytrace.trace(theta_x, theta_y, *deflect(scenes, theta_x, theta_y, kind))
    counts = light.magnitude_to_counts(s["magnitude"], observation.magnitude_zero_point) * preset.pixel_scale**2
    amplitude = counts / light.sersic_flux(torch.ones_like(counts), s["R_sersic"], s["n_sersic"])
    shape = (s["R_sersic"], s["n_sersic"], s["source_e1"], s["source_e2"], s["source_x"], s["source_y"])
    image = raytrace.bin_pixels(light.sersic(beta_x, beta_y, amplitude, *shape), rays)
    sigma = s["psf_fwhm"] * (observe.FWHM_TO_SIGMA / preset.pixel_scale)
    return observe.blur_gaussian(image, sigma, observation.psf_radius)


def sky_counts(preset: Preset, observation: Observation) -> float:
    """Mean sky electrons per second and pixel."""
    counts = light.magnitude_to_counts(observation.sky_brightness, observation.magnitude_zero_point)
    return counts * preset.pixel_scale**2


def photograph(
    scenes: Scenes, preset: Preset, observation: Observation, kind: int, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """:func:`render`, then :func:`expose`: what a simulator does with scenes of one kind, in one piece to compile."""
    return expose(render(scenes, preset, observation, kind), preset, observation, noise)


def expose(image: Tensor, preset: Preset, observation: Observation, noise: Tensor) -> tuple[Tensor, Tensor]:
    """One observation of the noiseless image, and its signal-to-noise ratio.

    Args:
        image: electrons per second, shape (B, H, W).
        noise: standard normal deviates for photons and, where there is read noise, for it, shape (1 or 2, B, H, W).

    Returns:
        image as the preset scales it, shape (B, H, W), and the total S/N of the lensed source, shape (B,).
    """
    exposure = observation.exposure_time * observation.num_exposures
    sky = sky_counts(preset, observation) * exposure
    mean = image * exposure + sky
    electrons = observe.poisson(mean, noise[0], least=sky)
    variance = mean
    if observation.read_noise:
        read_variance = observation.num_exposures * observation.read_noise**2
        electrons = electrons + noise[1] * read_variance**0.5
        variance = mean + read_variance
    snr = observe.signal_to_noise(image * exposure, variance.sqrt())
    if observation.scaling == "minmax":
        low, high = electrons.amin((1, 2), keepdim=True), electrons.amax((1, 2), keepdim=True)
        return (electrons - low) / (high - low), snr
    return electrons - sky, snr
