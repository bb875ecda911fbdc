"""Observed galaxies, lensed or lensing: a folder of cutouts becomes clean, centred images on black, total flux 1 each.

A cutout holds a galaxy, noise and neighbours on a square frame. Lensed as it is, the frame and the noise would show
in the arcs: a network would learn them. So the galaxy is cut out along its own outline and the rest is set to zero.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from deeplense.data import fits, npy
from deeplense.data.files import as_text
from deeplense.data.npy import BadImage
from deeplense.errors import ConfigError, DataError, did_you_mean

logger = logging.getLogger(__name__)

Image = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Tenths of all galaxies: 80, 10 and 10 %.
PARTS = {"train": range(8), "val": range(8, 9), "test": range(9, 10)}
_SMOOTHING = 1.5  # pixels; about the width of the PSF of a well-sampled image
_THRESHOLD = 2.0  # outline of a galaxy, in units of the noise of the smoothed image
_BRIDGE = 3  # pixels; what is thinner than twice this is no part of a galaxy: threads of noise, bridges to neighbours
_TAPER = 8  # pixels outside the outline, or inside the frame, over which the light fades out
_MIN_SNR = 40.0  # of all light inside the outline, as if the noise of pixels were independent
_MIN_PEAK = 10.0  # brightest place of the smoothed image over its noise
_MIN_SIZE = 24  # pixels on a side: below, there is no border to measure the sky on
_MAX_NAN = 0.1  # share of the frame
_MAX_CUT = 0.1  # brightness where the frame cuts the galaxy, over that of its brightest place


@dataclass(frozen=True)
class GalaxyBank:
    """Galaxies to be lensed, brightest where their light has its centroid: the middle pixel of a square of odd size.

    Attributes:
        images: light of each galaxy, never negative, total flux 1 each, float32, shape (N, S, S).
        name: file names without their endings, length N.
        pixel_scale: arcsec per pixel, shape (N,).
        half_light_radius: radius of the circle about the middle that holds half of the flux, arcsec, shape (N,).
    """

    images: NDArray[np.float32]
    name: list[str]
    pixel_scale: NDArray[np.float64]
    half_light_radius: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def ellipticity(self) -> tuple[Image, Image]:
        """Components e1, e2 of each galaxy's shape by the second moments of its light, shape (N,) each."""
        return ellipticity(self.images)

    def fingerprint(self) -> str:
        """A hash of all pixels, names and scales: names the galaxies that images were made with."""
        digest = hashlib.sha256(repr((self.images.shape, self.name)).encode())
        digest.update(np.ascontiguousarray(self.images).tobytes())
        digest.update(self.pixel_scale.tobytes())
        return digest.hexdigest()[:16]


def read_galaxies(
    folder: Path | str, pixel_scale: float | None = None, part: str | None = None, seed: int = 0
) -> GalaxyBank:
    """Read and prepare the galaxies of a folder.

    Cutouts that cannot be used (unreadable, mostly NaN, no bright object in the middle, cut off by the frame) are left
    out and named in a warning.

    Args:
        folder: FITS files, or ``.npy`` of shape (H, W) or (1, H, W); one galaxy each, in the middle.
        pixel_scale: arcsec per pixel; None takes it from the world coordinates of each FITS file.
        part: "train", "val" or "test": 80, 10 and 10 % of the galaxies; None takes all. A hash of its name puts a
            galaxy on one side, whatever else lies in the folder, so that no source stands on both sides of a split.
        seed: names the division into parts.

    Raises:
        ConfigError: an unknown part, or a pixel scale that is not above 0.
        DataError: no folder, no galaxies in it or in this part of it, none that can be used, or no pixel scale.
    """
    if pixel_scale is not None and not 0 < pixel_scale < np.inf:
        raise ConfigError(f"pixel_scale={pixel_scale}: arcsec per pixel, above 0")
    files = _choose(Path(folder), _list(Path(folder)), part, seed)
    galaxies, left_out = [], []
    for file in files:
        try:
            galaxies.append(_Galaxy(_stem(file), *_read(file, pixel_scale)))
        except BadImage as reason:
            left_out.append(f"{as_text(file.name)}: {reason}")
    if left_out:
        logger.warning("%s: %d of %d galaxies left out; %s", folder, len(left_out), len(files), "; ".join(left_out))
    if not galaxies:
        raise DataError(f"none of the {len(files)} galaxies in {folder} can be used ({left_out[0]}): add better ones")
    return _bank(galaxies)


def part_of(name: str, seed: int = 0) -> str:
    """The side of a split on which a galaxy falls: a function of its name and the seed alone."""
    tenth = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") % 10
    return next(part for part, tenths in PARTS.items() if tenth in tenths)


def half_light_radius(image: Image) -> float:
    """Radius, in pixels, of the circle about the middle of the image that holds half of its flux."""
    growth = np.cumsum(image.ravel()[np.argsort(_radius(image.shape), axis=None)])
    inside = np.searchsorted(growth, growth[-1] / 2)
    # A disc of n pixels has the radius sqrt(n / pi): finer than the steps from ring to ring of pixels.
    return float(np.sqrt((inside + 0.5) / np.pi))


def ellipticity(images: NDArray[np.float32]) -> tuple[Image, Image]:
    """e = (1-q)/(1+q) exp(2i phi) from the second moments about the middle of images (N, S, S); rows grow upward."""
    x = np.arange(images.shape[-1]) - (images.shape[-1] - 1) / 2
    flux, across, up = images.sum((1, 2), dtype=np.float64), images.sum(1, dtype=np.float64), images.sum(2)
    xx, yy, xy = across @ x**2 / flux, up @ x**2 / flux, np.einsum("nij,i,j->n", images, x, x) / flux
    # (xx - yy + 2i xy) / (xx + yy) is (1 - q^2)/(1 + q^2) exp(2i phi).
    e = xx + yy + 2 * np.sqrt(np.maximum(xx * yy - xy**2, 0.0))
    return (xx - yy) / e, 2 * xy / e


class _Galaxy:
    """A prepared cutout."""

    def __init__(self, name: str, cutout: Image, pixel_scale: float) -> None:
        self.name, self.pixel_scale = name, pixel_scale
        self.image = prepare(cutout)

    @property
    def half_light_radius(self) -> float:
        return half_light_radius(self.image) * self.pixel_scale


def prepare(cutout: Image) -> Image:
    """The object in the middle of a cutout on black, its centroid on the middle pixel, total flux 1.

    Args:
        cutout: any unit of surface brightness, shape (H, W); NaN where there is no measurement.

    Returns:
        Square of odd size, just large enough.

    Raises:
        BadImage: too small, too much NaN, nothing significant in the middle, or cut off by the frame.
    """
    image = _subtract_sky(_fill_nan(cutout))
    smooth = ndimage.gaussian_filter(image, _SMOOTHING)
    noise, smooth_noise = _border_noise(image), _border_noise(smooth)
    if noise <= 0:
        raise BadImage("its border has no noise: not a cutout of the sky")
    outline, others = _segment(smooth, _THRESHOLD * smooth_noise)
    snr, peak = image[outline].sum() / (noise * np.sqrt(outline.sum())), smooth[outline].max() / smooth_noise
    if snr < _MIN_SNR or peak < _MIN_PEAK:
        raise BadImage(
            f"the object in the middle is too faint (signal-to-noise ratio {snr:.0f}, at its peak {peak:.0f})"
        )
    _check_whole(smooth, outline)
    light = _denoise(image, smooth, smooth_noise) * _fade(outline) * ~others
    return _centre(light.clip(min=0))


def _list(folder: Path) -> list[Path]:
    """Image files of a folder by name, no two of the same galaxy.

    Raises:
        DataError: no such folder, no images, or two files of one name.
    """
    try:
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} cannot be read as a folder of galaxies: {error.strerror}") from error
    files = [folder / name for name in names if name.lower().endswith((*fits.ENDINGS, ".npy"))]
    if not files:
        raise DataError(f"no galaxies in {folder}: expected FITS files or .npy, one galaxy each")
    stems = [_stem(file) for file in files]
    if twice := [stem for stem in stems if stems.count(stem) > 1]:
        raise DataError(f"{folder} holds two files of the galaxy {twice[0]!r}: keep one of them")
    return files


def _stem(file: Path) -> str:
    """The name of a galaxy: that of its file without the ending, so that another format is the same galaxy."""
    name = as_text(file.name)
    ending = next(end for end in sorted((*fits.ENDINGS, ".npy"), key=len, reverse=True) if name.lower().endswith(end))
    return name[: -len(ending)]


def _choose(folder: Path, files: list[Path], part: str | None, seed: int) -> list[Path]:
    """The files of a part.

    Raises:
        ConfigError: there is no such part.
        DataError: no galaxy falls into it.
    """
    if part is None:
        return files
    if part not in PARTS:
        raise ConfigError(f"there is no part {part!r} of the galaxies; {did_you_mean(part, PARTS)}")
    chosen = [file for file in files if part_of(_stem(file), seed) == part]
    if not chosen:
        way = f"use seed={_full_seed(files)}, for all parts, or add galaxies" if len(files) >= 10 else "add galaxies"
        raise DataError(f"none of the {len(files)} galaxies in {folder} falls into the part {part!r}: {way}")
    return chosen


def _full_seed(files: Iterable[Path]) -> int:
    """The first seed that leaves no part empty."""
    stems = [_stem(file) for file in files]
    return next(seed for seed in range(10**6) if {part_of(stem, seed) for stem in stems} == set(PARTS))


def _read(file: Path, pixel_scale: float | None) -> tuple[Image, float]:
    """A cutout and its pixel scale in arcsec.

    Raises:
        BadImage: it cannot be read, or is not one image.
        DataError: its pixel scale is not known.
    """
    image, scale = fits.first_image(file) if not file.name.lower().endswith(".npy") else (_read_npy(file), None)
    scale = pixel_scale or scale
    if scale is None:
        raise DataError(f"{file} does not say how large its pixels are: give pixel_scale, in arcsec")
    while image.ndim > 2 and image.shape[0] == 1:
        image = image[0]
    if image.ndim != 2:
        raise BadImage(f"shape {image.shape}, not one image (H, W) or (1, H, W)")
    # FITS is big-endian, which scipy does not take.
    return image.astype(np.float64), scale


def _read_npy(file: Path) -> np.ndarray:
    try:
        with file.open("rb") as stream:
            header = npy.read_header(stream)
            if header.dtype.hasobject:
                raise BadImage("an object array, not numbers")
            return npy.read_values(stream, header, os.fstat(stream.fileno()).st_size - stream.tell())
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror or error}") from error


def _fill_nan(cutout: Image) -> Image:
    """The cutout with the few missing pixels filled from their neighbours."""
    if min(cutout.shape) < _MIN_SIZE:
        raise BadImage(f"{cutout.shape[0]} x {cutout.shape[1]} pixels; {_MIN_SIZE} x {_MIN_SIZE} is the smallest")
    is_good = np.isfinite(cutout)
    if (share := 1 - is_good.mean()) > _MAX_NAN:
        raise BadImage(f"{share:.0%} of it is NaN")
    if is_good.all():
        return cutout
    image = np.where(is_good, cutout, 0.0)
    weight = ndimage.gaussian_filter(is_good.astype(float), 2 * _SMOOTHING)
    near = ndimage.gaussian_filter(image, 2 * _SMOOTHING) / np.maximum(weight, 1e-6)
    return np.where(is_good, image, near)


def _radius(shape: tuple[int, ...]) -> Image:
    """Distance of each pixel from the middle."""
    y, x = np.indices(shape)
    return np.hypot(x - (shape[1] - 1) / 2, y - (shape[0] - 1) / 2)


def _border(image: Image) -> Image:
    """The pixels of the outer twelfth on each side."""
    width = max(2, min(image.shape) // 12)
    inner = np.zeros(image.shape, dtype=bool)
    inner[width:-width, width:-width] = True
    return image[~inner]


def _subtract_sky(image: Image) -> Image:
    from astropy.stats import sigma_clipped_stats

    return image - sigma_clipped_stats(_border(image), sigma=3)[1]


def _border_noise(image: Image) -> float:
    """Standard deviation of the sky. Neighbours on the border only brighten: the lower half tells the noise."""
    from astropy.stats import sigma_clipped_stats

    return float(sigma_clipped_stats(_border(image), sigma=3)[2])


def _segment(smooth: Image, threshold: float) -> tuple[Mask, Mask]:
    """Where the object in the middle lies, without holes, and where the others do.

    Raises:
        BadImage: nothing near the middle is above the threshold.
    """
    brush = _radius((2 * _BRIDGE + 1, 2 * _BRIDGE + 1)) <= _BRIDGE + 0.5
    labels, _ = ndimage.label(ndimage.binary_opening(smooth > threshold, brush))
    is_near = _radius(smooth.shape) < min(smooth.shape) / 8
    candidates = np.where(is_near & (labels > 0), smooth, -np.inf)
    if np.isneginf(candidates.max()):
        raise BadImage("no object in the middle")
    own = labels == labels.flat[candidates.argmax()]
    return ndimage.binary_fill_holes(own), (labels > 0) & ~own


def _check_whole(smooth: Image, outline: Mask) -> None:
    """Raises BadImage if the frame cuts through a bright part of the object."""
    edge = np.ones(smooth.shape, dtype=bool)
    edge[2:-2, 2:-2] = False
    cut = smooth[edge & outline].max(initial=0.0) / smooth[outline].max()
    if cut > _MAX_CUT:
        raise BadImage(f"the frame cuts it off where it has {cut:.0%} of its peak brightness")


def _denoise(image: Image, smooth: Image, smooth_noise: float) -> Image:
    """The image where it is bright, the smoothed image where it is noise: a Wiener filter pixel by pixel.

    Grains of noise would be magnified with the galaxy, and nothing on the sky looks like that.
    """
    weight = (smooth / smooth_noise).clip(min=0) ** 2
    weight /= weight + _MIN_SNR
    return weight * image + (1 - weight) * smooth


def _fade(outline: Mask) -> Image:
    """1 inside the outline, falling to 0 outside it, and towards the frame, as half a cosine wave."""
    outside = ndimage.distance_transform_edt(~outline) / _TAPER
    inside = ndimage.distance_transform_edt(np.pad(np.ones(outline.shape), 1))[1:-1, 1:-1] / _TAPER
    return (1 + np.cos(np.pi * outside.clip(max=1))) / 2 * (1 - np.cos(np.pi * inside.clip(max=1))) / 2


def _centre(light: Image) -> Image:
    """The light on the smallest square of odd size whose middle pixel holds its centroid, total 1."""
    centre = [round(float(c)) for c in ndimage.center_of_mass(light)]
    rows, columns = (np.flatnonzero(light.any(axis)) for axis in (1, 0))
    reach = max(*(abs(v - centre[0]) for v in rows[[0, -1]]), *(abs(v - centre[1]) for v in columns[[0, -1]]))
    padded = np.pad(light, reach)
    # The padding moves the centroid from c to c + reach.
    square = padded[centre[0] : centre[0] + 2 * reach + 1, centre[1] : centre[1] + 2 * reach + 1]
    return square / square.sum()


def _bank(galaxies: list[_Galaxy]) -> GalaxyBank:
    """The galaxies on frames of the size of the largest."""
    size = max(len(galaxy.image) for galaxy in galaxies)
    images = np.zeros((len(galaxies), size, size), dtype=np.float32)
    for number, galaxy in enumerate(galaxies):
        start = (size - len(galaxy.image)) // 2
        images[number, start : size - start, start : size - start] = galaxy.image
    return GalaxyBank(
        images=images,
        name=[galaxy.name for galaxy in galaxies],
        pixel_scale=np.array([galaxy.pixel_scale for galaxy in galaxies]),
        half_light_radius=np.array([galaxy.half_light_radius for galaxy in galaxies]),
    )
