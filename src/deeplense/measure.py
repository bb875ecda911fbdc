"""One observed image in, a mass model out: what ``deeplense fit`` does."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deeplense import __version__, weights
from deeplense.data import fits as fits_files
from deeplense.data.files import as_text, making_folder
from deeplense.data.npy import BadImage
from deeplense.data.read import read
from deeplense.errors import ConfigError, DataError, RunError
from deeplense.evaluate import coolest
from deeplense.evaluate.lens_pictures import measured_lens
from deeplense.lensing import fit, light
from deeplense.lensing.cosmology import angular_diameter_distances, theta_E_to_mass
from deeplense.lensing.critical import critical_curves
from deeplense.lensing.lit import LIGHT, LitLens
from deeplense.lensing.noise import corners
from deeplense.lensing.observe import FWHM_TO_SIGMA, gaussian_kernel
from deeplense.lensing.psf_file import read_psf
from deeplense.lensing.smooth import LENS, NAMES, Camera, SmoothLens
from deeplense.lensing.source_grid import Frame, SourceGrid, refine
from deeplense.tasks import InversionTask, LensTask, PhysicsTask
from deeplense.tasks.inversion import PARAMS

logger = logging.getLogger(__name__)
MODEL, FITTED, PICTURE = "lens.json", "lens.fits", "lens.png"
# Starts beside the network's: Einstein radii, and where the source stands, in units of them.
RADII, PLACES = (0.25, 0.4, 0.6, 0.8, 1.1, 1.4, 1.8, 2.4), ((0.05, 0.05), (0.25, 0.0), (-0.2, 0.2), (0.0, -0.25))
FIRST_STEPS, LAST_STEPS, KEPT = 15, 60, 6
# A round lens of a round, exponential source.
ROUND = dict.fromkeys(("e1", "e2", "gamma1", "gamma2", "source_e1", "source_e2"), 0.0) | {"n_sersic": 1.0}
# Pixels of the source, and how far it reaches in units of its half-light radius.
SOURCE_PIXELS, SOURCE_REACH = 30, 4.0


@dataclass(frozen=True)
class Cutout:
    """What of an observation is fitted.

    Attributes:
        image, sigma: shape (H, W); sigma is infinite where a pixel does not count.
        camera: pixels and PSF.
    """

    image: Tensor
    sigma: Tensor
    camera: Camera


@dataclass(frozen=True)
class MeasuredLens:
    """A fitted lens.

    Attributes:
        values, std: of each parameter by name; standard deviations are scaled up where chi^2 is above 1.
        model, residual, kappa: shape (H, W); the residual, (data - model) / noise, is NaN where a pixel did not count.
        source, source_extent: surface brightness, shape (S, S), and (left, right, bottom, top) of its pixel centres.
        chi2: sum of the squared residuals over the degrees of freedom.
        start: which start led there, "network" or "grid".
        log_evidence: of a source on pixels, ln P(data | lens); None with a Sersic source.
    """

    values: dict[str, float]
    std: dict[str, float]
    model: np.ndarray
    residual: np.ndarray
    kappa: np.ndarray
    source: np.ndarray
    source_extent: tuple[float, float, float, float]
    chi2: float
    start: str
    log_evidence: float | None = None


def measure(
    run: Path | str | None,
    image: Path | str,
    out: Path | str,
    *,
    pixel_scale: float | None = None,
    psf: str | None = None,
    psf_fwhm: float | None = None,
    noise_map: Path | str | None = None,
    mask: Path | str | None = None,
    mask_radius: float = 0.0,
    outer_radius: float | None = None,
    lens_light: bool = False,
    source: str = "sersic",
    z_lens: float | None = None,
    z_source: float | None = None,
) -> MeasuredLens:
    """Fit an isothermal ellipsoid with shear to one image and write ``lens.json``, ``lens.fits`` and ``lens.png``.

    Args:
        run: an inversion or physics run whose network says where to begin; a grid of starts is tried beside it, or
            alone if None.
        image: FITS, ``.npy`` or what else is read; one band, the lens in the middle.
        out: a new folder.
        pixel_scale: arcsec; that of the file's world coordinates if None.
        psf: a FITS file, as ``psf.fits`` or ``psf.fits[NAME]``.
        psf_fwhm: arcsec, of a Gaussian PSF, if there is no file; fitted if neither is given.
        noise_map: standard deviation of each pixel; that of the corners everywhere if None.
        mask: an image that is not 0 where pixels do not count.
        mask_radius: arcsec about the middle that do not count: the light of the lens.
        outer_radius: arcsec beyond which no pixel counts.
        lens_light: fit a Sersic profile to the light of the lens as well.
        source: "sersic", or "pixels" for a source on a grid, with which the lens is then improved.
        z_lens, z_source: redshifts; with both, ``lens.json`` says the mass within ``theta_E``.

    Raises:
        ConfigError, DataError, RunError: an input that cannot be used, or a folder that exists.
    """
    out = Path(out)
    if out.exists():
        raise RunError(f"{out} exists and is never overwritten: choose another --out")
    if not out.absolute().parent.is_dir():
        raise RunError(f"there is no folder {out.absolute().parent} to write {out.name} to")
    if source not in ("sersic", "pixels"):
        raise ConfigError(f"source={source!r}: give sersic or pixels")
    if lens_light and psf is None and psf_fwhm is None:
        raise ConfigError(
            "the light of the lens and the width of the PSF cannot both be fitted: give --psf or --psf-fwhm"
        )
    if psf is not None and psf_fwhm is not None:
        raise ConfigError("psf and psf_fwhm are two PSFs: give a file or the width of a Gaussian")
    if mask_radius < 0 or (outer_radius is not None and outer_radius <= mask_radius):
        raise ConfigError(f"mask_radius={mask_radius}, outer_radius={outer_radius}: nothing lies between them")
    redshifts = _redshifts(z_lens, z_source)
    task = None if run is None else _load(Path(run))
    cutout = cut(Path(image), pixel_scale, psf, noise_map, mask, mask_radius, outer_radius)
    lens = SmoothLens(cutout.camera, _fixed(cutout.camera, psf_fwhm))
    found = fit_cutout(cutout, lens, task, lens_light)
    if source == "pixels":
        found = with_pixels(found, cutout, lens)
    files = {"image": image, "psf": psf, "noise_map": noise_map, "mask": mask, "run": run}
    facts: dict[str, Any] = {"files": {name: as_text(path) for name, path in files.items() if path is not None}}
    facts |= {"mask_radius": mask_radius, "outer_radius": outer_radius, "source": source, **redshifts}
    _write(out, found, cutout, lens, facts)
    return found


def _redshifts(z_lens: float | None, z_source: float | None) -> dict[str, float | None]:
    given = [z for z in (z_lens, z_source) if z is not None]
    if not all(0 < z < 20 for z in given) or given != sorted(set(given)):
        raise ConfigError(f"z_lens={z_lens}, z_source={z_source}: give redshifts above 0, the source behind the lens")
    return {"z_lens": z_lens, "z_source": z_source}


def _load(run: Path) -> InversionTask:
    """What measures lenses in a run.

    Raises:
        RunError: it is of another kind.
    """
    task: LensTask = weights.load_task(run)
    if isinstance(task, PhysicsTask):
        return task.inverter
    weights.check_kind(run, task.config.task, InversionTask)
    assert isinstance(task, InversionTask)
    return task


def _fixed(camera: Camera, psf_fwhm: float | None) -> dict[str, float]:
    if camera.kernel is not None:
        return {"psf_fwhm": camera.pixel_scale}  # without effect
    if psf_fwhm is not None and not 0 < psf_fwhm < 10:
        raise ConfigError(f"psf_fwhm={psf_fwhm}: give arcsec, above 0 and below 10")
    return {} if psf_fwhm is None else {"psf_fwhm": psf_fwhm}


def cut(
    image: Path,
    pixel_scale: float | None,
    psf: str | None,
    noise_map: Path | str | None,
    mask: Path | str | None,
    mask_radius: float,
    outer_radius: float | None,
) -> Cutout:
    """Read and check everything that says something of the pixels; arguments as of :func:`measure`."""
    lens_set = read(image)
    if lens_set.images.shape[:2] != (1, 1):
        number, bands = lens_set.images.shape[:2]
        raise DataError(f"{image} holds {number} images of {bands} bands; a fit takes one image of one band")
    scale = pixel_scale if pixel_scale is not None else lens_set.pixel_scale
    if scale is None or not 0 < scale < 10:
        raise ConfigError(f"pixel scale {scale}: the file does not say it; give --pixel-scale, arcsec, above 0")
    data = torch.from_numpy(np.array(lens_set.images[0, 0])).double()
    sigma = _sigma(data, noise_map)
    sigma = torch.where(data.isfinite() & (sigma > 0), sigma, torch.inf)
    if mask is not None:
        sigma = torch.where(_like(mask, data, "mask") != 0, torch.inf, sigma)
    if outer_radius is not None:
        keep = [min(n, 2 * int(np.ceil(outer_radius / scale)) + n % 2) for n in data.shape]
        data, sigma = (_middle(part, keep) for part in (data, sigma))
    kernel = None if psf is None else torch.from_numpy(read_psf(psf, scale))
    if kernel is not None and len(kernel) > min(data.shape):
        raise ConfigError(f"the PSF has {len(kernel)} pixels, more than the image that is fitted ({tuple(data.shape)})")
    camera = Camera((data.shape[0], data.shape[1]), scale, 2, 6, kernel)
    radius = torch.hypot(*camera.grid(1, like=data))
    beyond = (radius < mask_radius) | (radius > (outer_radius or np.inf))
    sigma = torch.where(beyond, torch.inf, sigma)
    if int(sigma.isfinite().sum()) < 10 * len(NAMES):
        raise DataError("too few pixels are left to fit: make the masks smaller, or the image larger")
    return Cutout(data.nan_to_num(), sigma, camera)


def _sigma(data: Tensor, noise_map: Path | str | None) -> Tensor:
    if noise_map is None:
        scatter = float(corners(data[None])[1])
        logger.warning("no noise map: every pixel has the scatter of the image's corners, %.3g", scatter)
        return torch.full_like(data, scatter)
    sigma = _like(noise_map, data, "noise map")
    if not (sigma > 0).any():
        raise DataError(f"the noise map {noise_map} has no value above 0: it is the standard deviation of each pixel")
    return sigma.nan_to_num(torch.inf)


def _like(path: Path | str, data: Tensor, what: str) -> Tensor:
    """A map of the same shape as the data; unlike an image, it may be the same everywhere."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no {what} {path}")
    try:
        other = np.load(path, allow_pickle=False) if path.suffix == ".npy" else fits_files.read(path)
    except (BadImage, ValueError, EOFError) as reason:
        raise DataError(f"the {what} {path} cannot be used: {reason}") from reason
    if np.squeeze(other).shape != tuple(data.shape):
        raise DataError(f"the {what} {path} has the shape {np.squeeze(other).shape}, the image {tuple(data.shape)}")
    return torch.from_numpy(np.squeeze(other).astype(np.float64))


def _middle(image: Tensor, size: list[int]) -> Tensor:
    top, left = ((a - b) // 2 for a, b in zip(image.shape, size, strict=True))
    return image[top : top + size[0], left : left + size[1]]


@torch.no_grad()
def fit_cutout(cutout: Cutout, lens: SmoothLens, task: InversionTask | None, lens_light: bool) -> MeasuredLens:
    """From many starts, a few steps each with a round lens; from the best of them to the end with all parameters.

    A lens that may be as elliptical as it likes explains a bright knot first, and does not find the ring again.
    """
    simple = replace(lens, fixed={**lens.fixed, **ROUND})
    starts, names = _starts(cutout, lens, task)
    light_start = _light_start(starts) if lens_light else starts[:, :0]
    places = [lens.names.index(name) for name in simple.names]
    first = _fits(cutout, simple, torch.cat([starts[:, places], light_start], 1), FIRST_STEPS)
    order = first.chi2.nan_to_num(torch.inf).argsort()[:KEPT]
    full = starts.new_tensor([ROUND.get(name, 0.0) for name in lens.names]).repeat(len(order), 1)
    full[:, places] = first.parameters[order, : len(places)]
    rows, origin = torch.cat([full, first.parameters[order, len(places) :]], 1), [names[int(k)] for k in order]
    if task is not None:  # what the network says of shapes is lost on a round lens
        rows, origin = torch.cat([torch.cat([starts, light_start], 1)[:1], rows]), ["network", *origin]
    last = _fits(cutout, lens, rows, LAST_STEPS)
    best = int(last.chi2.nan_to_num(torch.inf).argmin())
    return _measured(cutout, lens, LitLens(lens) if lens_light else lens, last, best, origin[best])


def _fits(cutout: Cutout, lens: SmoothLens, starts: Tensor, steps: int) -> fit.Fit:
    """Each start to its end, a few at a time; starts with seven columns more have light of the lens."""
    model = LitLens(lens) if starts.shape[1] > len(lens.names) else lens
    low, high = model.bounds(starts)
    parts = [_fit(cutout, model, row, steps) for row in starts.clamp(low, high).split(8)]
    return fit.Fit(*(torch.cat([getattr(part, name) for part in parts]) for name in fit.Fit.__dataclass_fields__))


def _fit(cutout: Cutout, model: SmoothLens | LitLens, starts: Tensor, steps: int) -> fit.Fit:
    data, sigma = (part.expand(len(starts), -1, -1) for part in (cutout.image, cutout.sigma))
    lit = _brightened(cutout, model, starts)
    return fit.fit(None, data, sigma, lit, steps, linearise=model.linearise, bounds=model.bounds(starts))


def _brightened(cutout: Cutout, model: SmoothLens | LitLens, p: Tensor) -> Tensor:
    """The fluxes and the sky that fit best, by linear least squares; fluxes stay above 0."""
    places = [model.names.index(name) for name in ("flux", "light_flux", "sky") if name in model.names]
    weight = torch.where(cutout.sigma.isfinite(), 1 / cutout.sigma, 0.0).flatten()
    columns = model.linearise(p)[1][:, places].flatten(2) * weight
    target = (cutout.image.flatten() * weight).expand(len(p), -1)
    solution = torch.linalg.lstsq(columns.mT, target[:, :, None]).solution[:, :, 0].nan_to_num()
    total = cutout.image.abs().sum()
    new = p.clone()
    for k, place in enumerate(places):
        new[:, place] = solution[:, k] if model.names[place] == "sky" else solution[:, k].clamp_min(1e-4 * total)
    return new


def _starts(cutout: Cutout, lens: SmoothLens, task: InversionTask | None) -> tuple[Tensor, list[str]]:
    """First guesses, (M, P), and where each comes from."""
    reach = min(cutout.camera.shape) * cutout.camera.pixel_scale / 2
    rows = [(r, x, y) for r in RADII if r < reach for x, y in PLACES]
    typical = {"R_sersic": 0.2, "n_sersic": 1.0, "psf_fwhm": 2.5 * cutout.camera.pixel_scale, "flux": 1.0}
    starts = cutout.image.new_zeros(len(rows), len(lens.names))
    for k, name in enumerate(lens.names):
        starts[:, k] = typical.get(name, 0.0)
    for row, (radius, x, y) in enumerate(rows):
        for name, value in (("theta_E", radius), ("source_x", x * radius), ("source_y", y * radius)):
            starts[row, lens.names.index(name)] = value
    if task is None:
        return starts, ["grid"] * len(rows)
    said = dict(zip(PARAMS, _ask(task, cutout)[0], strict=True)) | {"flux": 1.0, "sky": 0.0}
    row_of_network = torch.stack([torch.as_tensor(said[name], dtype=starts.dtype) for name in lens.names])
    return torch.cat([row_of_network[None], starts]), ["network", *["grid"] * len(rows)]


def _ask(task: InversionTask, cutout: Cutout) -> Tensor:
    """What the network says of the image, on pixels and at the brightness that it was trained on, (1, P)."""
    shape = task.preprocess.input_size
    theta = Camera(shape, task.scope.pixel_scale).grid(1, like=cutout.image)
    half = [n * cutout.camera.pixel_scale / 2 for n in cutout.camera.shape]
    grid = torch.stack([theta[0] / half[1], theta[1] / half[0]], -1)[None]
    clean = torch.where(cutout.sigma.isfinite(), cutout.image, 0.0)
    image = F.grid_sample(clean[None, None], grid, align_corners=False, padding_mode="zeros").float()
    ratio = float(task.preprocess.std.mean()) / float((task.preprocess(image) * task.preprocess.std).std())
    return task.guess(image * ratio ** (2 if task.preprocess.stretch == "sqrt" else 1))[0].double()


def _light_start(starts: Tensor) -> Tensor:
    """A round galaxy in the middle, (M, 7)."""
    typical = {"light_R_sersic": 0.4, "light_n_sersic": 2.5, "light_flux": 1.0}
    return starts.new_tensor([typical.get(name, 0.0) for name in LIGHT]).expand(len(starts), -1)


def _measured(
    cutout: Cutout, lens: SmoothLens, model: SmoothLens | LitLens, found: fit.Fit, best: int, start: str
) -> MeasuredLens:
    p, used = found.parameters[best], cutout.sigma.isfinite()
    number = int(used.sum())
    chi2 = float(found.chi2[best]) * number / (number - len(p))
    std = found.covariance[best].diagonal().clamp_min(0).sqrt() * max(chi2, 1.0) ** 0.5
    values = lens.values(p[None, : len(lens.names)])
    named = {name: float(v) for name, v in values.items()} | dict(zip(model.names, p.tolist(), strict=True))
    scatter = dict.fromkeys(NAMES, 0.0) | dict(zip(model.names, std.tolist(), strict=True))
    image = model.linearise(p[None])[0][0]
    kappa = lens.converge(p[None, : len(lens.names)], *cutout.camera.grid(1, like=cutout.image))[0]
    residual = torch.where(used, (cutout.image - image) / cutout.sigma, torch.nan)
    brightness, extent = _sersic_source(named)
    source = brightness * cutout.camera.pixel_scale**2
    return MeasuredLens(named, scatter, image.numpy(), residual.numpy(), kappa.numpy(), source, extent, chi2, start)


def _sersic_source(values: Mapping[str, float]) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """The surface brightness of the source on a grid, flux per arcsec^2, and the grid's extent."""
    x, y, half = values["source_x"], values["source_y"], _source_half(values)
    axis = torch.linspace(-half, half, 121, dtype=torch.float64)
    beta_y, beta_x = torch.meshgrid(axis + y, axis + x, indexing="ij")
    keys = ("R_sersic", "n_sersic", "source_e1", "source_e2", "source_x", "source_y")
    shape = [torch.tensor([values[key]], dtype=torch.float64) for key in keys]
    amplitude = values["flux"] / light.sersic_flux(torch.ones(1, dtype=torch.float64), shape[0], shape[1])
    return light.sersic(beta_x, beta_y, amplitude, *shape)[0].numpy(), (x - half, x + half, y - half, y + half)


def _source_half(values: Mapping[str, float]) -> float:
    """Half the side of the square in which the source is shown or sought, arcsec: not farther than it is magnified."""
    return float(np.clip(SOURCE_REACH * values["R_sersic"], 0.25 * values["theta_E"], 0.5 * values["theta_E"]))


def with_pixels(found: MeasuredLens, cutout: Cutout, lens: SmoothLens) -> MeasuredLens:
    """The same lens with a source on a grid of pixels, and improved by it; sky and lens light are those of the fit."""
    p = torch.tensor([[found.values[name] for name in lens.names]], dtype=torch.float64)
    behind = found.model - lens.render(p)[0].numpy() + found.values["sky"]
    camera = cutout.camera
    frame = Frame(cutout.image.numpy() - behind, cutout.sigma.numpy(), _kernel(lens, p), camera.supersampling)
    theta_x, theta_y = camera.grid(like=p)

    def trace(of_lens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        changed = torch.cat([torch.from_numpy(of_lens)[None], p[:, len(LENS) :]], 1)
        alpha_x, alpha_y = lens.deflect(changed, theta_x, theta_y)
        return (theta_x - alpha_x[0]).numpy(), (theta_y - alpha_y[0]).numpy()

    start, (low, high) = p[0, : len(LENS)].numpy(), lens.bounds(p)
    bounds = (low[: len(LENS)].numpy(), high[: len(LENS)].numpy())
    # What a fit is sure of may be off all the same, where a Sersic profile cannot be the source.
    scale = np.clip([found.std[name] for name in LENS], 1e-3, 2e-2)
    grid = SourceGrid(found.values["source_x"], found.values["source_y"], 2 * _source_half(found.values), SOURCE_PIXELS)
    refined = refine(frame, trace, start, scale, bounds, grid)
    best, used = refined.reconstruction, np.isfinite(frame.sigma)
    chi2 = best.chi2 / max(best.num_data - best.num_effective - len(LENS), 1.0)
    std = np.sqrt(np.diag(refined.covariance) * max(chi2, 1.0))
    p[0, : len(LENS)] = torch.from_numpy(refined.parameters)
    return replace(
        found,
        values=found.values | dict(zip(LENS, refined.parameters.tolist(), strict=True)),
        std=found.std | dict(zip(LENS, std.tolist(), strict=True)),
        model=best.model + behind,
        residual=np.where(used, best.residual, np.nan),
        kappa=lens.converge(p, *camera.grid(1, like=p))[0].numpy(),
        source=best.source,
        source_extent=best.grid.extent,
        chi2=chi2,
        log_evidence=best.log_evidence,
    )


def _kernel(lens: SmoothLens, p: Tensor) -> np.ndarray:
    """The PSF as an image, shape (K, K)."""
    camera = lens.camera
    if camera.kernel is not None:
        return camera.kernel.double().numpy()
    sigma = lens.values(p)["psf_fwhm"] * (FWHM_TO_SIGMA / camera.pixel_scale)
    row = gaussian_kernel(sigma, camera.psf_radius)[0].numpy()
    return np.outer(row, row)


def _write(out: Path, found: MeasuredLens, cutout: Cutout, lens: SmoothLens, facts: dict[str, Any]) -> None:
    from astropy.io import fits

    scale = cutout.camera.pixel_scale
    p = torch.tensor([found.values[name] for name in lens.names], dtype=torch.float64)
    reach = max(cutout.camera.shape) * scale / 2
    critical, caustics = critical_curves(lens, p, reach)
    theta_E, std = found.values["theta_E"], found.std["theta_E"]
    title = f"theta_E = {theta_E:.3f} ± {std:.3f} arcsec, χ²/dof = {found.chi2:.2f}"
    curves: dict[str, Any] = {"critical": critical, "caustics": caustics, "source_extent": found.source_extent}
    maps = (cutout.image.numpy(), found.model, found.residual, found.source, found.kappa)
    figure = measured_lens(*maps, pixel_scale=scale, title=title, **curves)
    with making_folder(out) as folder:
        names = ("DATA", "MODEL", "RESIDUAL", "SOURCE", "KAPPA")
        units = [fits.ImageHDU(part.astype(np.float32), name=name) for name, part in zip(names, maps, strict=True)]
        for unit in units:
            unit.header["PIXSCALE"] = scale
        units[3].header["PIXSCALE"] = (found.source_extent[1] - found.source_extent[0]) / (len(found.source) - 1)
        fits.HDUList([fits.PrimaryHDU(), *units]).writeto(folder / FITTED)
        figure.savefig(folder / PICTURE, dpi=110)
        (folder / MODEL).write_text(json.dumps(to_json(found, scale, facts), indent=1) + "\n")


def to_json(found: MeasuredLens, pixel_scale: float, facts: Mapping[str, Any]) -> dict[str, Any]:
    """A measured lens in plain JSON values: COOLEST's entities, then our own names with standard deviations."""
    keys = {"x": "source_x", "y": "source_y", "R_sersic": "R_sersic", "n_sersic": "n_sersic", "flux": "flux"}
    z_lens, z_source = facts.get("z_lens"), facts.get("z_source")
    entities = coolest.mass_model(found.values, found.std, z_lens)
    source = keys | {"e1": "source_e1", "e2": "source_e2"}
    entities.append(coolest.light_model(found.values, found.std, "source", source, z_source))
    if "light_flux" in found.values:
        own = {key: f"light_{key}" for key in ("x", "y", "R_sersic", "n_sersic", "flux", "e1", "e2")}
        entities.append(coolest.light_model(found.values, found.std, "lens light", own, z_lens))
    parameters = {name: {"value": found.values[name], "std": _finite(found.std[name])} for name in found.values}
    return {
        "standard": "COOLEST",
        "mode": "MAP",
        "lensing_entities": entities,
        "parameters": parameters,
        "chi2_per_degree": found.chi2,
        "log_evidence": found.log_evidence,
        "pixel_scale": pixel_scale,
        "start": found.start,
        "deeplense": __version__,
        **({"mass_within_theta_E": _mass(found, z_lens, z_source)} if z_lens and z_source else {}),
        **facts,
    }


def _mass(found: MeasuredLens, z_lens: float, z_source: float) -> dict[str, float]:
    """Mass within the Einstein radius, Msun, and its standard deviation at these redshifts: it goes as theta_E^2."""
    mass = float(theta_E_to_mass(found.values["theta_E"], angular_diameter_distances(z_lens, z_source)))
    return {"value": mass, "std": 2 * mass * found.std["theta_E"] / found.values["theta_E"]}


def _finite(std: float) -> float | None:
    return std if np.isfinite(std) else None
