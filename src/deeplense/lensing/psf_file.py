"""A measured PSF from a FITS file: one odd-sized image of sum 1, at the pixel scale of the camera."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplense.errors import ConfigError

Image = NDArray[np.float64]
# Half the size of a PSF, in pixels of the camera; more is a PIXSCALE in other units.
LARGEST = 500


def read_psf(name: str, pixel_scale: float, psf_pixel_scale: float | None = None) -> Image:
    """Read a PSF, pad it to an odd square, bring it to the camera's pixels and to a sum of 1.

    It is not recentred: an image blurred by a PSF whose peak is off the middle pixel moves by as much.

    Args:
        name: "psf.fits", or "psf.fits[VIS_PSF]" for an extension by name or number.
        pixel_scale: of the camera, arcsec.
        psf_pixel_scale: of the file, arcsec; by default its keyword PIXSCALE, or that of the camera.

    Returns:
        shape (K, K), K odd.

    Raises:
        ConfigError: no such file or extension, not a FITS file, not an image of a PSF, or pixels of a size that
            leaves less than one pixel of the camera, or more than a thousand.
    """
    image, header = _open(name)
    image = _checked(image, name)
    given = psf_pixel_scale if psf_pixel_scale is not None else header.get("PIXSCALE", pixel_scale)
    if isinstance(given, bool) or not isinstance(given, int | float) or not given > 0:
        raise ConfigError(f"the PSF {name} has PIXSCALE = {given!r}; write psf_pixel_scale, in arcsec, on the card")
    image, zoom = pad_to_odd(image), given / pixel_scale
    if abs(zoom - 1) > 1e-6:
        if not 1 <= len(image) // 2 * zoom <= LARGEST:
            raise ConfigError(
                f"the PSF {name} has {len(image)} pixels of {given:g} arcsec, the camera of {pixel_scale:g}"
            )
        image = resample(image, zoom)
    return image / image.sum()


def pad_to_odd(image: Image) -> Image:
    """An odd square with zeros around: the middle of N pixels, N even, is the one of the two that has the peak."""
    size = max(image.shape) + 1 - max(image.shape) % 2
    peak = np.unravel_index(image.argmax(), image.shape)
    before = [_before(n, int(p), size) for n, p in zip(image.shape, peak, strict=True)]
    widths = [(b, size - n - b) for n, b in zip(image.shape, before, strict=True)]
    return np.pad(image, widths)


def _before(length: int, peak: int, size: int) -> int:
    """Rows of zeros to put in front; the odd one out goes where it brings the peak to the middle."""
    spare = size - length
    return spare // 2 + (spare % 2 if peak < length / 2 else 0)


def resample(image: Image, zoom: float) -> Image:
    """A PSF (K, K), K odd, on pixels that are ``zoom`` times smaller, by splines about its middle pixel."""
    from scipy import ndimage

    # Not further than the outermost pixel centres: beyond them nothing is known.
    old, new = len(image) // 2, int(len(image) // 2 * zoom + 1e-6)
    place = np.arange(-new, new + 1) / zoom + old
    return np.asarray(ndimage.map_coordinates(image, np.meshgrid(place, place, indexing="ij"), order=5))


def _open(name: str) -> tuple[Any, Any]:
    """The image and its header: of the extension in square brackets, or the only image of the file."""
    from astropy.io import fits

    path, extension = _split(name)
    if not Path(path).is_file():
        raise ConfigError(f"there is no PSF file {path}; the path is taken from the card's own folder")
    try:
        with fits.open(path, memmap=False) as units:
            images = [u for u in units if isinstance(u, fits.PrimaryHDU | fits.ImageHDU) and u.header["NAXIS"]]
            unit = _choose(units, images, extension, name)
            return unit.data, unit.header
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"cannot read the PSF {name}: {str(error).splitlines()[0]}") from error


def _split(name: str) -> tuple[str, str | None]:
    """ "psf.fits[VIS_PSF]" -> "psf.fits" and "VIS_PSF"."""
    if name.endswith("]") and "[" in name:
        path, _, extension = name[:-1].rpartition("[")
        return path, extension.strip()
    return name, None


def _choose(units: Any, images: list[Any], extension: str | None, name: str) -> Any:
    """The image that is meant, or an error that lists those there are."""
    there = ", ".join(f"{units.index(u)} {u.name}".strip() for u in images) or "none"
    if extension is not None:
        meant = [u for u in images if extension.upper() == u.name or extension == str(units.index(u))]
        if meant:
            return meant[0]
        raise ConfigError(f"the PSF {name} is not an image of that file; images: {there}")
    if len(images) != 1:
        raise ConfigError(f"{name} has {len(images)} images; write which is the PSF, as in file.fits[NAME]: {there}")
    return images[0]


def _checked(image: Any, name: str) -> Image:
    """The image as float64, if it can be a PSF."""
    image = np.asarray(image, dtype=np.float64).squeeze()
    if image.ndim != 2:
        raise ConfigError(f"the PSF {name} has the shape {image.shape}; give one image of two dimensions")
    if not np.isfinite(image).all():
        raise ConfigError(f"the PSF {name} has {np.sum(~np.isfinite(image))} pixels that are not finite; mend them")
    if not image.sum() > 0:
        raise ConfigError(f"the PSF {name} has the sum {image.sum():g}; it must be above 0")
    return image
