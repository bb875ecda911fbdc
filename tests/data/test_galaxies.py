"""Source galaxies: what is kept of a cutout, what is left out, and who stands on which side of a split."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from deeplense.data import galaxies
from deeplense.data.galaxies import part_of, read_galaxies
from deeplense.errors import ConfigError, DataError

NUM_PIX, NOISE = 101, 0.01


def blob(x0: float = 0.0, y0: float = 0.0, sigma: float = 6.0, flux: float = 100.0, q: float = 1.0) -> np.ndarray:
    """A Gaussian galaxy at an offset from the middle, pixels."""
    y, x = np.indices((NUM_PIX, NUM_PIX)) - (NUM_PIX - 1) / 2
    radius2 = ((x - x0) ** 2 * q + (y - y0) ** 2 / q) / sigma**2
    return flux * np.exp(-radius2 / 2) / (2 * np.pi * sigma**2)


def cutout(*blobs: np.ndarray, sky: float = 0.5, seed: int = 0) -> np.ndarray:
    return sum(blobs) + sky + np.random.default_rng(seed).normal(0, NOISE, (NUM_PIX, NUM_PIX))


def header(pixel_scale: float = 0.03) -> fits.Header:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [150.0, 2.0], [50, 50]
    turn = np.deg2rad(30)
    matrix = np.array([[-np.cos(turn), np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    wcs.wcs.cd = matrix * pixel_scale / 3600
    return wcs.to_header()


def write(folder: Path, **images: np.ndarray) -> Path:
    for name, image in images.items():
        np.save(folder / f"{name}.npy", image)
    return folder


def only(folder: Path, pixel_scale: float | None = 0.03) -> np.ndarray:
    bank = read_galaxies(folder, pixel_scale)
    assert len(bank) == 1
    return bank.images[0].astype(float)


def moments(image: np.ndarray) -> tuple[float, float, float, float]:
    """Centroid from the middle, and second moments, pixels."""
    y, x = np.indices(image.shape) - (len(image) - 1) / 2
    x0, y0 = (image * x).sum() / image.sum(), (image * y).sum() / image.sum()
    return x0, y0, (image * (x - x0) ** 2).sum() / image.sum(), (image * (y - y0) ** 2).sum() / image.sum()


# ---- the picture


def test_a_gaussian_stays_a_gaussian_centred_and_of_flux_1(tmp_path):
    bank = read_galaxies(write(tmp_path, a=cutout(blob(5.3, -4.1))), 0.05)
    image = bank.images[0].astype(float)
    assert bank.images.dtype == np.float32 and image.shape[0] == image.shape[1] and len(image) % 2 == 1
    assert image.sum() == pytest.approx(1, abs=1e-5) and image.min() == 0
    x0, y0, xx, yy = moments(image)
    assert abs(x0) < 0.6 and abs(y0) < 0.6
    # The faintest wings are lost below the outline.
    assert xx == pytest.approx(36, rel=0.1) and yy == pytest.approx(36, rel=0.1)
    # Half of a round Gaussian lies within sigma sqrt(2 ln 2).
    assert bank.half_light_radius[0] == pytest.approx(6 * np.sqrt(2 * np.log(2)) * 0.05, rel=0.03)
    assert bank.name == ["a"] and bank.pixel_scale.tolist() == [0.05]


def test_rows_and_columns_keep_their_sense(tmp_path):
    image = only(write(tmp_path, a=cutout(blob(q=0.5), blob(12, 3, 2, 15))))
    _, _, xx, yy = moments(image)
    assert xx > 1.5 * yy  # q below 1 stretches x
    middle = (len(image) - 1) // 2
    right, left = image[:, middle + 6 :].max(), image[:, : middle - 6].max()
    assert right > 1.2 * left


def test_unit_and_sky_do_not_matter(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    first = only(write(tmp_path / "a", a=cutout(blob())))
    second = only(write(tmp_path / "b", a=1e-20 * (cutout(blob()) + 7)))
    np.testing.assert_allclose(first, second, atol=1e-6 * first.max())


def test_no_neighbour_no_frame_and_no_noise_are_left(tmp_path):
    neighbour = blob(30, 25, 3, 60)
    alone, beside = (galaxies.prepare(cutout(blob(), *more)) for more in ((), (neighbour,)))
    assert len(alone) == len(beside)
    np.testing.assert_allclose(alone, beside, atol=0.01 * alone.max())
    # Faded into black all around: the outermost light is far below the noise, 2 % of the peak.
    edge = np.concatenate([beside[0], beside[-1], beside[:, 0], beside[:, -1]])
    assert edge.max() < 0.005 * beside.max()
    y, x = np.indices(beside.shape) - (len(beside) - 1) / 2
    assert (beside[np.hypot(x, y) > 40] == 0).all()


def test_a_galaxy_that_reaches_the_frame_fades_before_it():
    wide = cutout(blob(sigma=22, flux=2000))
    brightness = wide[0].mean() - 0.5
    assert brightness > 0.02 * (wide.max() - 0.5)  # a step that would show
    image = galaxies.prepare(wide)
    light = image[np.ix_(image.any(1), image.any(0))]
    assert light.shape == (NUM_PIX, NUM_PIX)
    for edge in (light[0], light[-1], light[:, 0], light[:, -1]):
        assert edge.max() < 0.005 * light.max()


def test_noise_is_suppressed_where_there_is_little_light(tmp_path):
    truth = blob()
    ours = galaxies.prepare(cutout(truth)) * truth.sum()
    half = (len(ours) - 1) // 2
    middle = slice(NUM_PIX // 2 - half, NUM_PIX // 2 + half + 1)
    y, x = np.indices(ours.shape) - half
    ring = (np.hypot(x, y) > 15.5) & (np.hypot(x, y) < 19)
    error = (ours - truth[middle, middle])[ring]
    assert np.sqrt((error**2).mean()) < 0.6 * NOISE
    core = np.hypot(x, y) < 3
    assert ours[core].sum() == pytest.approx(truth[middle, middle][core].sum(), rel=0.03)


def test_missing_pixels_are_filled(tmp_path):
    holes = cutout(blob())
    holes[48:51, 40:44] = np.nan
    holes[0, :] = np.nan
    filled, whole = (galaxies.prepare(image) for image in (holes, cutout(blob())))
    size = min(len(filled), len(whole))
    cut = [i[(len(i) - size) // 2 :, (len(i) - size) // 2 :][:size, :size] for i in (filled, whole)]
    assert np.abs(cut[0] - cut[1]).max() < 0.1 * whole.max()


def test_galaxies_of_all_sizes_share_a_frame(tmp_path):
    bank = read_galaxies(write(tmp_path, a=cutout(blob(sigma=3)), b=cutout(blob(sigma=9, flux=400))), 0.03)
    assert len(bank) == 2 and np.all([abs(moments(i.astype(float))[0]) < 0.6 for i in bank.images])
    assert bank.half_light_radius[1] == pytest.approx(3 * bank.half_light_radius[0], rel=0.1)
    assert bank.images.sum((1, 2)) == pytest.approx(1, abs=1e-5)


# ---- what cannot be used


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (cutout(), "no object in the middle"),
        (cutout(blob(flux=1.5)), "too faint"),
        (cutout(blob(35, 30)), "no object in the middle"),
        (cutout(blob(sigma=40, flux=5000)), "the frame cuts it off|too faint"),
        (cutout(blob(q=0.05, sigma=12, flux=600)), "the frame cuts it off"),
        (np.where(np.arange(NUM_PIX) < 40, np.nan, cutout(blob())), "40% of it is NaN"),
        (np.full((NUM_PIX, NUM_PIX), np.nan), "100% of it is NaN"),
        (np.zeros((NUM_PIX, NUM_PIX)), "no noise"),
        (np.stack([cutout(blob())] * 3), r"shape \(3, 101, 101\)"),
        (cutout(blob())[40:60, 40:60], "20 x 20 pixels"),
        (np.array([1, "a"], dtype=object), "object array"),
    ],
)
def test_what_cannot_be_used_is_left_out_and_named(tmp_path, caplog, image, reason):
    write(tmp_path, good=cutout(blob()), bad=image)
    with caplog.at_level(logging.WARNING):
        bank = read_galaxies(tmp_path, 0.03)
    assert bank.name == ["good"] and "1 of 2 galaxies left out; bad.npy: " in caplog.text
    assert re.search(reason, caplog.text)


def test_broken_files_are_left_out(tmp_path, caplog):
    write(tmp_path, good=cutout(blob()))
    (tmp_path / "short.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:500])
    (tmp_path / "text.fits").write_text("not FITS")
    fits.PrimaryHDU().writeto(tmp_path / "empty.fits")
    fits.PrimaryHDU(cutout(blob()), header()).writeto(tmp_path / "cut.fits")
    (tmp_path / "cut.fits").write_bytes((tmp_path / "cut.fits").read_bytes()[:6000])
    assert read_galaxies(tmp_path, 0.03).name == ["good"]
    for name in ("short.npy: truncated", "text.fits: cannot be read", "empty.fits: no image", "cut.fits: "):
        assert name in caplog.text


def test_nothing_that_can_be_used_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no-such cannot be read"):
        read_galaxies(tmp_path / "no-such", 0.03)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match="no galaxies in"):
        read_galaxies(tmp_path, 0.03)
    write(tmp_path, a=cutout())
    with pytest.raises(DataError, match=r"none of the 1 galaxies .*\(a.npy: no object"):
        read_galaxies(tmp_path, 0.03)


# ---- pixel scales and FITS


def test_fits_and_npy_of_one_galaxy_are_the_same(tmp_path):
    image = cutout(blob()).astype(np.float32)
    (tmp_path / "npy").mkdir(), (tmp_path / "fits").mkdir()
    write(tmp_path / "npy", a=image, b=image[None])
    fits.PrimaryHDU(image.astype(">f4"), header(0.04)).writeto(tmp_path / "fits" / "a.fits")
    units = fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(image[None], header(0.04))])
    units.writeto(tmp_path / "fits" / "b.fits.gz")
    stored, observed = read_galaxies(tmp_path / "npy", 0.04), read_galaxies(tmp_path / "fits")
    np.testing.assert_array_equal(stored.images, observed.images)
    assert stored.name == observed.name == ["a", "b"]
    assert observed.pixel_scale == pytest.approx(0.04, rel=1e-6)
    assert stored.half_light_radius == pytest.approx(observed.half_light_radius)
    np.testing.assert_array_equal(stored.images[0], stored.images[1])


def test_a_given_pixel_scale_counts_more_than_the_header(tmp_path):
    fits.PrimaryHDU(cutout(blob()), header(0.04)).writeto(tmp_path / "a.fits")
    assert read_galaxies(tmp_path, 0.1).pixel_scale.tolist() == [0.1]


def test_an_unknown_pixel_scale_is_an_error(tmp_path):
    fits.PrimaryHDU(cutout(blob())).writeto(tmp_path / "a.fits")
    with pytest.raises(DataError, match=r"a.fits does not say how large its pixels are: give pixel_scale"):
        read_galaxies(tmp_path)
    with pytest.raises(ConfigError, match="pixel_scale=-1"):
        read_galaxies(tmp_path, -1.0)
    write(tmp_path, a=cutout(blob()))
    with pytest.raises(DataError, match="two files of the galaxy 'a'"):
        read_galaxies(tmp_path, 0.03)


# ---- parts


def test_parts_are_80_10_and_10_percent_and_depend_on_the_name_alone():
    names = [f"galaxy-{i}" for i in range(20_000)]
    for seed in (0, 1):
        parts = [part_of(name, seed) for name in names]
        share = {part: parts.count(part) / len(parts) for part in ("train", "val", "test")}
        # Five standard deviations of a binomial draw.
        for part, expected in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
            assert abs(share[part] - expected) < 5 * np.sqrt(expected * (1 - expected) / len(parts))
    assert [part_of(n, 0) for n in names] != [part_of(n, 1) for n in names]


def test_parts_are_disjoint_and_stay_when_galaxies_are_added(tmp_path):
    image = cutout(blob())
    before: dict[str, set[str]] = {}
    for start in (0, 40):
        write(tmp_path, **{f"galaxy{i}": image for i in range(start, start + 40)})
        now = {part: set(read_galaxies(tmp_path, 0.03, part).name) for part in ("train", "val", "test")}
        assert sum(len(names) for names in now.values()) == start + 40 == len(set().union(*now.values()))
        assert all(names <= now[part] for part, names in before.items())
        before = now
    assert before["val"] == {f"galaxy{i}" for i in range(80) if part_of(f"galaxy{i}") == "val"}


def test_an_empty_part_says_which_seed_fills_it(tmp_path):
    names = [f"g{i}" for i in range(200) if part_of(f"g{i}") != "val"][:12]
    write(tmp_path, **{name: cutout(blob()) for name in names})
    with pytest.raises(DataError, match=r"none of the 12 galaxies .* the part 'val': use seed=(\d+)") as raised:
        read_galaxies(tmp_path, 0.03, "val")
    seed = int(str(raised.value).split("seed=")[1].split(",")[0])
    assert all(len(read_galaxies(tmp_path, 0.03, part, seed)) for part in ("train", "val", "test"))
    with pytest.raises(ConfigError, match=r"no part 'vall'.*did you mean 'val'"):
        read_galaxies(tmp_path, 0.03, "vall")


def test_too_few_galaxies_for_a_part(tmp_path):
    write(tmp_path, a=cutout(blob()))
    missing = next(part for part in ("train", "val", "test") if part != part_of("a"))
    with pytest.raises(DataError, match=r"add galaxies$"):
        read_galaxies(tmp_path, 0.03, missing)


def test_the_fingerprint_names_the_pixels(tmp_path):
    first, second = (read_galaxies(write(tmp_path, a=cutout(blob(), seed=s)), 0.03) for s in (0, 1))
    again = read_galaxies(write(tmp_path, a=cutout(blob(), seed=1)), 0.03)
    assert first.fingerprint() != second.fingerprint() == again.fingerprint()


# ---- the sky


def test_galaxies_of_hubble(shared_data, caplog):
    bank = read_galaxies(shared_data / "cosmos-galaxies")
    assert bank.pixel_scale == pytest.approx(0.03, abs=1e-6)
    # By eye: these are bright and whole; these are cut off (a large spiral, a patch of debris), or all but invisible.
    numbers = {int(name[:4]) for name in bank.name}
    assert {2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14, 15, 18, 21, 25, 26} <= numbers
    assert not numbers & {1, 32, 36, 38, 43, 44, 45, 47, 48}
    assert "0001_150.329073_2.139497_acs_I_mosaic_30mas_sci.fits: the frame cuts it off" in caplog.text
    assert bank.images.min() == 0 and bank.images.sum((1, 2)) == pytest.approx(1, abs=1e-4)
    # Galaxies of magnitude 18 to 24 in I: a few tenths of an arcsec (Leauthaud et al. 2007, astro-ph/0702359).
    assert 0.2 < np.median(bank.half_light_radius) < 0.6 and bank.half_light_radius.max() < 1.2
    for image in bank.images:
        frame = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert frame.max() < 0.01 * image.max()
