"""Scenes to images: trace the rays, light the source, blur, expose."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from deeplense.lensing import deflection, haloes, light, multipole, observe, raytrace
from deeplense.lensing.compiled import hold
from deeplense.lensing.deflection import Deflection
from deeplense.simulate import survey
from deeplense.simulate.observation import Exposure
from deeplense.simulate.preset import Preset, Sphere, Vortex, World
from deeplense.simulate.scene import Scenes


def deflect(scenes: Scenes, world: World, kind: int, theta_x: Tensor, theta_y: Tensor) -> list[Deflection]:
    """The deflections of the smooth lens and of one kind of substructure, arcsec, shape (B, H, W) each."""
    s = scenes
    macro = (s["theta_E_macro"], s["e1"], s["e2"], s["center_x"], s["center_y"])
    fields = [
        deflection.deflect_sie(theta_x, theta_y, *macro),
        deflection.deflect_shear(theta_x, theta_y, s["gamma1"], s["gamma2"]),
    ]
    for m in (3, 4):
        if getattr(world.lens, f"a_{m}").value != 0:
            strength = s[f"a_{m}"] * s["theta_E_macro"]
            center = s["center_x"], s["center_y"]
            fields.append(multipole.deflect_multipole(theta_x, theta_y, m, strength, s[f"phi_{m}"], *center))
    if kind:
        fields.append(_deflect_substructure(s, world.sphere if kind == 1 else world.vort, theta_x, theta_y))
    return fields


def _deflect_substructure(s: Scenes, priors: Sphere | Vortex, theta_x: Tensor, theta_y: Tensor) -> Deflection:
    if isinstance(priors, Vortex):
        ends = (s["vortex_x1"], s["vortex_y1"], s["vortex_x2"], s["vortex_y2"])
        return deflection.deflect_string(theta_x, theta_y, s["vortex_theta_E"], *ends)
    place = s["sub_x"], s["sub_y"]
    if priors.profile == "point":
        return deflection.deflect_points(theta_x, theta_y, s["sub_theta_E"], *place)
    if priors.profile == "nfw":
        return haloes.deflect_nfw(theta_x, theta_y, s["sub_alpha_Rs"], s["sub_Rs"], *place)
    return haloes.deflect_tnfw(theta_x, theta_y, s["sub_alpha_Rs"], s["sub_Rs"], s["sub_r_trunc"], *place)


def trace(scenes: Scenes, world: World, kind: int, theta_x: Tensor, theta_y: Tensor) -> Deflection:
    """Where rays meet the source, arcsec, shape (B, H, W): through the lens, or all planes of the line of sight."""
    lens = partial(deflect, scenes, world, kind)
    if not scenes.los_room:
        return raytrace.trace(theta_x, theta_y, *lens(theta_x, theta_y))
    planes: list[Callable[[Tensor, Tensor], Deflection]] = []
    for plane, haloes_in in enumerate(_planes_of_haloes(scenes)):
        macro = lens if scenes.los_main == plane else None
        planes.append(partial(_deflect_plane, scenes["los_kappa"][:, plane], haloes_in, macro))
    return raytrace.trace_planes(theta_x, theta_y, planes, scenes["los_chi"])


def _planes_of_haloes(scenes: Scenes) -> list[tuple[Tensor, ...]]:
    """What a halo's deflection takes beside positions, for each plane of the line of sight."""
    names = ("los_alpha_Rs", "los_Rs", "los_r_trunc", "los_x", "los_y")
    given = [scenes[name] for name in names if scenes[name].shape[1]]
    return list(zip(*(column.split(scenes.los_room, 1) for column in given), strict=True))


def _deflect_plane(
    kappa: Tensor, found: tuple[Tensor, ...], lens: Callable[..., list[Deflection]] | None, x: Tensor, y: Tensor
) -> Deflection:
    """Haloes of a plane, the sheet that makes up for their mean mass, and the lens if it is there."""
    # Held in one shape in all planes: compiled code has one piece for all haloes, and works out no position again.
    x, y = (hold(p.expand(len(kappa), *p.shape[-2:]).contiguous()) for p in (x, y))
    fields = [deflection.deflect_sheet(x, y, kappa)]
    if found[0].shape[1]:
        fields.append((haloes.deflect_tnfw if len(found) > 4 else haloes.deflect_nfw)(x, y, *found))
    fields += lens(x, y) if lens is not None else []
    alpha_x, alpha_y = fields[0]
    for more_x, more_y in fields[1:]:
        alpha_x, alpha_y = alpha_x + more_x, alpha_y + more_y
    return alpha_x, alpha_y


def draw_light(scenes: Scenes, preset: Preset, world: World, exposure: Exposure, kind: int) -> Tensor:
    """Mean electrons per second and pixel of the lensed source before the PSF, shape (B, 1, H, W)."""
    s, rays = scenes, exposure.supersampling
    theta = raytrace.make_grid(preset.num_pix, preset.pixel_scale, rays, s["theta_E"].dtype, s["theta_E"].device)
    beta = trace(s, world, kind, *theta)
    counts = light.magnitude_to_counts(s["magnitude"], exposure.zero_point[0]) * preset.pixel_scale**2
    return raytrace.bin_pixels(_draw_source(s, *beta, counts), rays)[:, None]


def _draw_source(s: Scenes, beta_x: Tensor, beta_y: Tensor, flux: Tensor) -> Tensor:
    """The surface brightness of the source, a Sersic profile or an observed galaxy, shape (B, H, W)."""
    if "source_image" in s.values:
        return survey.galaxy(s, beta_x, beta_y, flux)
    amplitude = flux / light.sersic_flux(torch.ones_like(flux), s["R_sersic"], s["n_sersic"])
    shape = (s["R_sersic"], s["n_sersic"], s["source_e1"], s["source_e2"], s["source_x"], s["source_y"])
    return light.sersic(beta_x, beta_y, amplitude, *shape)


def render(scenes: Scenes, preset: Preset, world: World | survey.SurveyWorld, exposure: Exposure, kind: int) -> Tensor:
    """Mean electrons per second and pixel behind the PSF, shape (B, C, H, W)."""
    if isinstance(world, World):
        return blur(draw_light(scenes, preset, world, exposure, kind), scenes, preset, exposure)
    return blur(survey.render(scenes, preset, exposure), scenes, preset, exposure)


def blur(image: Tensor, scenes: Scenes, preset: Preset, exposure: Exposure) -> Tensor:
    """Convolve each image and band with its PSF, shape (B, C, H, W)."""
    if exposure.psf_kernel is not None:
        return observe.blur(image, exposure.psf_kernel.to(image)[None])
    fwhm = scenes["psf_fwhm"].flatten() / preset.pixel_scale
    if exposure.psf_beta is not None:
        kernel = observe.moffat_kernel(fwhm, exposure.psf_beta, exposure.psf_radius)
        return observe.blur(image, kernel.unflatten(0, image.shape[:2]))
    return observe.blur_gaussian(image.flatten(0, 1), fwhm * observe.FWHM_TO_SIGMA, exposure.psf_radius).view_as(image)


def photograph(
    scenes: Scenes, preset: Preset, world: World | survey.SurveyWorld, exposure: Exposure, kind: int, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """:func:`render`, then :func:`expose`: what a simulator does with scenes of one kind, in one piece to compile."""
    image, snr = expose(render(scenes, preset, world, exposure, kind), scenes, exposure, noise)
    # What a survey's detector spoils comes before the scaling.
    return scale(image) if exposure.scaling == "minmax" and isinstance(world, World) else image, snr


def expose(image: Tensor, scenes: Scenes, exposure: Exposure, noise: Tensor) -> tuple[Tensor, Tensor]:
    """One observation of the noiseless image, and its signal-to-noise ratio.

    Args:
        image: electrons per second, shape (B, C, H, W).
        noise: standard normal deviates, shape (B, layers, C, H, W): see ``Exposure.num_layers``.

    Returns:
        electrons above the mean sky (mean electrons per second without noise), shape (B, C, H, W), and the total S/N of
        the image, shape (B,).
    """
    time = scenes["exposure_time"][:, :, None, None]
    sky = image.new_tensor(exposure.sky)[:, None, None] * time
    read_variance = image.new_tensor(exposure.read_variance)[:, None, None] + (exposure.background_rms * time) ** 2
    signal = image * time
    variance = signal + sky + read_variance
    snr = observe.signal_to_noise(signal, variance.sqrt())
    if exposure.noise == "none":
        return image, snr
    if exposure.noise == "twice":
        mean = (signal + sky + variance.sqrt() * noise[:, 0]).clamp_min(0)
        return observe.poisson(mean, noise[:, 1]) - sky, snr
    electrons = observe.poisson(signal + sky, noise[:, 0], least=exposure.least_sky) - sky
    if noise.shape[1] > 1:
        electrons = electrons + noise[:, 1] * read_variance.sqrt()
    return electrons, snr


def scale(image: Tensor) -> Tensor:
    """Each channel of each image mapped to [0, 1], shape (B, C, H, W)."""
    low, high = image.amin((2, 3), keepdim=True), image.amax((2, 3), keepdim=True)
    return (image - low) / (high - low)
