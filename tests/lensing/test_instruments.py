"""The cards: complete, in accord with lenstronomy's noise and the published depths; PSFs from files; faults named."""

from __future__ import annotations

import re
import tomllib
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.modeling.models import Gaussian2D, Moffat2D
from lenstronomy.SimulationAPI.observation_api import SingleBand
from scipy import integrate, optimize

from deeplense.errors import ConfigError
from deeplense.lensing import instruments, psf_file

BANDS = [(name, band) for name in instruments.names() for band in instruments.load(name).bands]
DOCS = Path(__file__).resolve().parents[2] / "docs" / "instruments.md"
MINE = """
name = "mine"
title = "My telescope"
[bands.R]
pixel_scale = 0.2
exposure_time = 300.0
num_exposures = 4
sky_brightness = 21.0
magnitude_zero_point = 26.0
read_noise = 5.0
psf_fwhm = 0.9
"""


@pytest.fixture(params=BANDS, ids="-".join)
def band(request):
    return instruments.load(request.param[0]).bands[request.param[1]]


@pytest.fixture
def write(tmp_path):
    def write(text=MINE):
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return path

    return write


def test_the_cards_are_there():
    wanted = {"hsc": "gri", "lsst": "gri", "panstarrs": "gri", "euclid-vis": ["VIS"], "jwst-f150w": ["F150W"]}
    wanted |= {"hst-f814w": ["F814W"], "hst-f160w": ["F160W"]}
    assert {name: list(instruments.load(name).bands) for name in instruments.names()} == {
        name: list(bands) for name, bands in wanted.items()
    }


@pytest.mark.parametrize("name", instruments.names())
def test_every_number_has_its_source(name):
    text = (resources.files("deeplense.lensing") / "cards" / f"{name}.toml").read_text()
    card = tomllib.loads(text)
    assert card["name"] == name
    for numbers in card["bands"].values():
        sources = numbers.pop("sources")
        assert set(sources) == set(numbers)
        assert all(len(source) > 9 for source in sources.values())
        # A coadd's count of exposures and its gain matter; nothing may be left to a default.
        assert {"num_exposures", "read_noise", "ccd_gain", "psf"} <= set(numbers)


def test_the_hsc_numbers_that_the_lens_finding_images_need():
    hsc = instruments.load("hsc")
    assert [hsc.band(b).psf_fwhm for b in "gri"] == [0.77, 0.76, 0.58]
    assert [hsc.band(b).depth for b in "gri"] == [26.5, 26.1, 25.9]
    assert [hsc.band(b).total_exposure for b in "gri"] == [600, 600, 1200]
    assert {b.pixel_scale for b in hsc.bands.values()} == {0.168}


def lenstronomys(band):
    keys = ("pixel_scale", "exposure_time", "num_exposures", "sky_brightness", "magnitude_zero_point", "read_noise")
    kwargs = {key: getattr(band, key) for key in keys}
    return SingleBand(ccd_gain=band.ccd_gain, data_count_unit="e-", psf_type="NONE", **kwargs)


def test_sky_and_noise_are_lenstronomys(band):
    theirs = lenstronomys(band)
    # lenstronomy: electrons per second and arcsec^2; the standard deviation of a pixel's electrons per second.
    assert band.sky_counts == pytest.approx(theirs.sky_brightness * band.pixel_scale**2, rel=1e-12)
    deviation = theirs.background_noise * band.total_exposure
    assert band.noise_variance == pytest.approx(deviation**2, rel=1e-12)
    assert band.counts(21.0) == pytest.approx(theirs.magnitude2cps(21.0), rel=1e-12)
    assert band.magnitude(band.counts(21.0)) == pytest.approx(21.0, abs=1e-12)


def profile(band):
    """The band's PSF as a function of radius in arcsec, by astropy."""
    if band.psf == "gaussian":
        sigma = band.psf_fwhm / Gaussian2D(1, 0, 0, 1, 1).x_fwhm
        return lambda r: Gaussian2D(1, 0, 0, sigma, sigma)(r, 0)
    gamma = band.psf_fwhm / Moffat2D(1, 0, 0, 1, band.moffat_beta).fwhm
    return lambda r: Moffat2D(1, 0, 0, gamma, band.moffat_beta)(r, 0)


def independent_depth(band, sigma):
    """The same question asked of scipy's integrals of astropy's profile and of lenstronomy's noise."""
    shape = profile(band)

    def flux(power, end):
        return integrate.quad(lambda r: 2 * np.pi * r * shape(r) ** power, 0, end, limit=200)[0]

    fraction, area = 1.0, flux(1, np.inf) ** 2 / flux(2, np.inf)
    if band.depth_aperture:
        fraction = flux(1, band.depth_aperture / 2) / flux(1, np.inf)
        area = np.pi * band.depth_aperture**2 / 4
    theirs = lenstronomys(band)
    noise = area / band.pixel_scale**2 * theirs.background_noise**2

    def excess(magnitude):
        rate = theirs.magnitude2cps(magnitude) * fraction
        return rate / np.sqrt(noise + rate / band.total_exposure) - sigma

    return optimize.brentq(excess, 15, 35)


@pytest.mark.parametrize("sigma", [5.0, 10.0])
def test_depth_from_the_numbers_is_scipys(band, sigma):
    ours = instruments.point_source_depth(band, sigma)
    # The kernel is sampled at the pixels: that matters for the fit of PSFs of less than two pixels.
    assert ours == pytest.approx(
        independent_depth(band, sigma), abs=0.03 if band.psf_fwhm > 2 * band.pixel_scale else 0.1
    )


def test_depth_from_the_numbers_is_the_published_one(band):
    if band.depth is None:
        assert band == instruments.load("hst-f160w").band("F160W")
    else:
        assert instruments.point_source_depth(band) == pytest.approx(band.depth, abs=0.25)
        assert independent_depth(band, 5.0) == pytest.approx(band.depth, abs=0.25)


def test_kernels_end_where_little_flux_is_left(band):
    shape, end = profile(band), band.psf_radius * band.pixel_scale

    def beyond(radius):
        inside, total = (integrate.quad(lambda r: r * shape(r), 0, stop, limit=200)[0] for stop in (radius, np.inf))
        return 1 - inside / total

    most = 0.02 if band.psf == "moffat" else 2e-5
    assert beyond(end) < most < beyond(end - band.pixel_scale)


@pytest.mark.parametrize("size", [1, 7])
def test_kernel_of_a_band(band, size):
    alone = band.kernel()
    assert alone.shape == (1, 2 * band.psf_radius + 1, 2 * band.psf_radius + 1)
    assert alone.sum().item() == pytest.approx(1, abs=1e-12)
    r = np.arange(size + 1) * band.pixel_scale
    middle = band.kernel(radius=size)[0, size, size:].numpy()
    theirs = profile(band)(r)
    assert np.abs(middle / middle[0] - theirs / theirs[0]).max() < 1e-12
    each = band.kernel(torch.tensor([band.psf_fwhm, 2 * band.psf_fwhm]), radius=band.psf_radius)
    assert each.dtype == torch.float32 and each[0, 0, 0] < each[1, 0, 0]
    torch.testing.assert_close(each[:1].double(), alone, rtol=1e-4, atol=1e-9)


def test_my_own_card_by_its_path(write):
    mine = instruments.load(write())
    assert instruments.load(str(write())) == mine
    band = mine.band("R")
    assert (band.psf, band.ccd_gain, band.sources, band.read_variance) == ("gaussian", 1.0, {}, 100.0)
    assert (band.total_exposure, band.psf_radius) == (1200.0, 9)
    with pytest.raises(ConfigError, match=r"mine has no band 'r'; .*R"):
        mine.band("r")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("read_noise", "read_nose", r"bands\.R\.read_nose: no such key; did you mean 'read_noise'\?"),
        ("title", "titel", r"titel: no such key; did you mean 'title'\?|title: Field required"),
        ("pixel_scale = 0.2", "pixel_scale = -0.2", r"bands\.R\.pixel_scale: Input should be greater than 0"),
        ("21.0", "nan", r"bands\.R\.sky_brightness: Input should be a finite number"),
        ("26.0", "inf", r"bands\.R\.magnitude_zero_point: Input should be a finite number"),
        ("num_exposures = 4", "num_exposures = 0", r"bands\.R\.num_exposures"),
        ("psf_fwhm = 0.9", "", r"bands\.R: psf = 'gaussian' needs psf_fwhm"),
        ("psf_fwhm = 0.9", 'psf = "moffat"', r"bands\.R: psf = 'moffat' needs moffat_beta and psf_fwhm"),
        ("psf_fwhm = 0.9", 'psf = "mofat"', r"bands\.R: psf = 'mofat' .*did you mean 'moffat'\?"),
        ("psf_fwhm = 0.9", "psf_fwhm = 0.9\nmoffat_beta = 3.0", r"bands\.R: psf = 'gaussian' has no moffat_beta"),
        ("psf_fwhm = 0.9", 'psf_fwhm = 0.9\npsf = "psf.fits"', r"bands\.R: psf = 'psf.fits' has no psf_fwhm"),
        ("psf_fwhm = 0.9", 'psf = "psf.fits"', r"bands\.R\.psf: there is no PSF file .*psf\.fits"),
        ("psf_fwhm = 0.9", "psf_fwhm = 0.9\n[bands.R.sources]\nsky = 'me'", r"bands\.R: there is no number 'sky'"),
        ("[bands.R]", "[bands]", r"bands\.pixel_scale"),
        ("[bands.R]", "[bands.R", "is not TOML"),
        (MINE, 'name = "a"\ntitle = "b"\nbands = {}', "bands: Dictionary should have at least 1 item"),
    ],
)
def test_a_faulty_card_is_named_in_one_line(write, old, new, said):
    with pytest.raises(ConfigError, match=said) as caught:
        instruments.load(write(MINE.replace(old, new)))
    assert "\n" not in str(caught.value)


def test_no_such_card(tmp_path):
    with pytest.raises(ConfigError, match=r"no instrument 'euclid-vi'; did you mean 'euclid-vis'\?"):
        instruments.load("euclid-vi")
    with pytest.raises(ConfigError, match=r"cannot read the instrument .*No such file"):
        instruments.load(tmp_path / "none.toml")


# PSFs from files. ------------------------------------------------------------------------------------------------


def gaussian(size, sigma, center=None):
    y, x = np.mgrid[:size, :size]
    middle = (size - 1) / 2 if center is None else center
    return Gaussian2D(1, middle, middle, sigma, sigma)(x, y)


def write_fits(path, *images, **keywords):
    units = [fits.PrimaryHDU()] + [fits.ImageHDU(image, name=f"BAND{i}_PSF") for i, image in enumerate(images)]
    if len(images) == 1:
        units = [fits.PrimaryHDU(images[0])]
    for key, value in keywords.items():
        units[-1].header[key] = value
    fits.HDUList(units).writeto(path, overwrite=True)
    return str(path)


def test_psf_from_a_file_beside_the_card(write, tmp_path):
    write_fits(tmp_path / "psf.fits", 7 * gaussian(15, 2.0).astype(">f4"))
    band = instruments.load(write(MINE.replace("psf_fwhm = 0.9", 'psf = "psf.fits"'))).band("R")
    kernel = band.kernel()
    assert kernel.shape == (1, 15, 15) and kernel.dtype == torch.float64 and kernel.sum().item() == pytest.approx(1)
    expected = gaussian(15, 2.0) / gaussian(15, 2.0).sum()
    assert np.abs(kernel[0].numpy() - expected).max() < 1e-7
    # A Gaussian's noise-equivalent area is 4 pi sigma^2: the file and the formula see the same star.
    formula = band.model_copy(update={"psf": "gaussian", "psf_fwhm": 2.0 * 0.2 * np.sqrt(8 * np.log(2))})
    difference = instruments.point_source_depth(band) - instruments.point_source_depth(formula)
    assert abs(difference) < 0.01
    aperture = {"depth_aperture": 1.6}
    pair = [instruments.point_source_depth(b.model_copy(update=aperture)) for b in (band, formula)]
    assert pair[0] == pytest.approx(pair[1], abs=0.05)
    with pytest.raises(ConfigError, match="takes no FWHM"):
        band.kernel(torch.ones(1))


@pytest.mark.parametrize("keyword", [True, False])
@pytest.mark.parametrize(("scale", "sigma"), [(0.1, 4.0), (0.4, 1.5), (0.13, 3.0)])
def test_a_file_of_other_pixels_is_resampled(tmp_path, scale, sigma, keyword):
    """Against the Gaussian itself on the new pixels."""
    keywords = {"PIXSCALE": scale} if keyword else {}
    name = write_fits(tmp_path / "psf.fits", gaussian(41, sigma), **keywords)
    ours = psf_file.read_psf(name, 0.2, None if keyword else scale)
    theirs = gaussian(len(ours), sigma * scale / 0.2)
    assert len(ours) % 2 == 1 and ours.sum() == pytest.approx(1)
    assert len(ours) == 2 * int(20 * scale / 0.2 + 1e-9) + 1
    assert np.abs(ours - theirs / theirs.sum()).max() < 2e-3 * ours.max()


@pytest.mark.parametrize(("center", "size"), [(7, 14), (6, 14), (7, 15)])
def test_an_even_psf_is_padded_round_its_peak(tmp_path, center, size):
    ours = psf_file.read_psf(write_fits(tmp_path / "psf.fits", gaussian(size, 1.0, center)), 0.2)
    assert ours.shape == (15, 15)
    assert np.unravel_index(ours.argmax(), ours.shape) == (7, 7)


def test_an_oblong_psf_becomes_a_square():
    image = psf_file.pad_to_odd(gaussian(15, 1.0)[3:12, 2:])
    assert image.shape == (13, 13) and image[6].sum() > 0
    assert image.sum() == pytest.approx(gaussian(15, 1.0)[3:12, 2:].sum())


def test_an_extension_by_name_or_number(tmp_path):
    name = write_fits(tmp_path / "psf.fits", gaussian(9, 1.0), gaussian(9, 2.0))
    for extension, sigma in (("BAND0_PSF", 1.0), ("band1_psf", 2.0), ("2", 2.0)):
        ours = psf_file.read_psf(f"{name}[{extension}]", 0.2)
        assert np.abs(ours - gaussian(9, sigma) / gaussian(9, sigma).sum()).max() < 1e-12
    with pytest.raises(ConfigError, match=r"has 2 images; .*1 BAND0_PSF, 2 BAND1_PSF"):
        psf_file.read_psf(name, 0.2)
    with pytest.raises(ConfigError, match=r"not an image of that file; images: 1 BAND0_PSF"):
        psf_file.read_psf(f"{name}[VIS_PSF]", 0.2)


@pytest.mark.parametrize(
    ("image", "keywords", "said"),
    [
        (np.full((5, 5), np.nan), {}, "25 pixels that are not finite"),
        (np.zeros((5, 5)), {}, "the sum 0; it must be above 0"),
        (-np.ones((5, 5)), {}, "the sum -25"),
        (np.ones((2, 5, 5)), {}, r"the shape \(2, 5, 5\)"),
        (np.ones((5, 5)), {"PIXSCALE": "wide"}, "PIXSCALE = 'wide'; write psf_pixel_scale"),
        (np.ones((5, 5)), {"PIXSCALE": 0.0}, "PIXSCALE = 0.0"),
        (np.ones((5, 5)), {"PIXSCALE": 2.8e-5}, "has 5 pixels of 2.8e-05 arcsec, the camera of 0.2"),
        (np.ones((5, 5)), {"PIXSCALE": 200.0}, "has 5 pixels of 200 arcsec"),
    ],
)
def test_a_faulty_psf_is_named_in_one_line(write, tmp_path, image, keywords, said):
    write_fits(tmp_path / "psf.fits", image, **keywords)
    with pytest.raises(ConfigError, match=r"mine.toml: bands\.R\.psf: .*" + said) as caught:
        instruments.load(write(MINE.replace("psf_fwhm = 0.9", 'psf = "psf.fits"')))
    assert "\n" not in str(caught.value)


def test_not_a_fits_file(tmp_path):
    (tmp_path / "psf.fits").write_text("no image at all")
    with pytest.raises(ConfigError, match="cannot read the PSF"):
        psf_file.read_psf(str(tmp_path / "psf.fits"), 0.2)


def real_psfs(folder):
    euclid = next((folder / "euclid-lens").rglob("*NEG*.fits"))
    found = [(f"{euclid}[{band}_PSF]", 0.1) for band in ("VIS", "DES_G", "NIR_Y", "NIR_H")]
    jwst = sorted((folder / "jwst-lenses").rglob("psf.fits"))
    return found + [(str(path), fits.getval(path, "PIXSCALE")) for path in jwst]


def test_real_psfs(shared_data):
    for name, scale in real_psfs(shared_data):
        raw = fits.getdata(name.split("[")[0], name[:-1].split("[")[1] if "[" in name else 0)
        raw = raw.astype(float)
        same = psf_file.read_psf(name, scale)
        assert same.shape == raw.shape and np.abs(same - raw / raw.sum()).max() < 1e-12
        # On pixels half as large the PSF is four times finer, and four of them make one of the old.
        fine = psf_file.read_psf(name, scale / 2, scale)
        assert fine.shape == (2 * len(raw) - 1,) * 2 and fine.sum() == pytest.approx(1)
        assert 4 * fine[::2, ::2].max() == pytest.approx(same.max(), rel=0.02)


def test_euclid_noise_is_that_of_a_real_image(shared_data):
    """The RMS map of a Q1 mosaic, in magnitudes per pixel."""
    with fits.open(next((shared_data / "euclid-lens").rglob("*NEG*.fits"))) as units:
        theirs = units["VIS_BGSUB"].header["MAGZERO"] - 2.5 * np.log10(np.median(units["VIS_RMS"].data))
    vis = instruments.load("euclid-vis").band("VIS")
    assert vis.magnitude(vis.noise_variance**0.5 / vis.total_exposure) == pytest.approx(theirs, abs=0.1)


# docs/instruments.md ---------------------------------------------------------------------------------------------


def table(instrument):
    """The card as the docs print it: a number a row, a band a column, and the source of the first band's."""
    bands = instrument.bands
    lines = [f"| | {' | '.join(bands)} | source |", "|---" * (len(bands) + 2) + "|"]
    for field, source in next(iter(bands.values())).sources.items():
        values = " | ".join(str(getattr(band, field)) for band in bands.values())
        lines.append(f"| `{field}` | {values} | {source} |")
    return "\n".join(lines)


@pytest.mark.parametrize("name", instruments.names())
def test_the_docs_show_the_cards(name):
    instrument = instruments.load(name)
    text = DOCS.read_text()
    assert f"## `{name}`: {instrument.title}\n" in text
    assert table(instrument) in text
    for band in instrument.bands.values():
        if band.depth is not None:
            # The overview's last column.
            assert f"| {band.depth} | {instruments.point_source_depth(band):.2f} |" in text


def test_the_example_of_the_docs_is_a_card(write):
    (example,) = re.findall(r"```toml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    mine = instruments.load(write(example))
    assert {band.psf for band in mine.bands.values()} == {"gaussian", "moffat"}
    assert all(np.isfinite(instruments.point_source_depth(band)) for band in mine.bands.values())
