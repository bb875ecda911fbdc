"""FITS, pictures and HDF5, alone and in folders, against the libraries that wrote them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from PIL import Image

from deeplense.data.read import read
from deeplense.errors import DataError

RNG = np.random.default_rng(0)


def sky(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape or (8, 9)).astype(np.float32)


def header(arcsec: float) -> fits.Header:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.cdelt = [-arcsec / 3600, arcsec / 3600]
    return wcs.to_header()


def write_fits(path: Path, image: np.ndarray, arcsec: float | None = None) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.writeto(path, image, header(arcsec) if arcsec else None)
    return image


# ---- FITS


@pytest.mark.parametrize("dtype", ["f4", "f8", "i2", "u2", "u1"])
@pytest.mark.parametrize("ending", [".fits", ".FIT", ".fits.gz"])
def test_a_fits_image_is_native_float32_from_the_bottom_row_up(tmp_path, dtype, ending):
    image = RNG.integers(0, 200, (8, 9)).astype(dtype)
    write_fits(tmp_path / f"a{ending}", image, arcsec=0.168)
    lenses = read(tmp_path / f"a{ending}")
    assert lenses.images.dtype == np.float32 and lenses.images.dtype.isnative
    np.testing.assert_array_equal(lenses.images[0, 0], image.astype(np.float32))
    assert lenses.pixel_scale == pytest.approx(0.168, rel=1e-6)
    assert list(lenses.name) == [f"a{ending}"] and lenses.provenance["format"] == "FITS"


def test_nan_and_cubes_and_compressed_images(tmp_path):
    cube = sky(3, 8, 9)
    cube[1, 2, 3] = np.nan
    write_fits(tmp_path / "cube.fits", cube)
    lenses = read(tmp_path / "cube.fits")
    np.testing.assert_array_equal(lenses.images[0], cube)
    assert lenses.pixel_scale is None and lenses.provenance["nan"] == {"images": 1, "pixels": 1}
    whole = RNG.integers(0, 99, (40, 40)).astype(np.int16)
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(whole)]).writeto(tmp_path / "a.fits.fz")
    np.testing.assert_array_equal(read(tmp_path / "a.fits.fz").images[0, 0], whole)


@pytest.fixture
def several(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A file like those of surveys: an empty primary unit, images by name, a table, a PSF of another size."""
    images = {"VIS": sky(), "NIR_Y": sky(), "VIS_PSF": sky(5, 5)}
    units = [fits.ImageHDU(image, name=name) for name, image in images.items()]
    table = fits.BinTableHDU.from_columns([fits.Column("x", "E", array=[1.0])], name="CAT")
    fits.HDUList([fits.PrimaryHDU(), table, *units]).writeto(tmp_path / "a.fits")
    return tmp_path / "a.fits", images


def test_bands_name_extensions(several, caplog):
    path, images = several
    np.testing.assert_array_equal(read(path).images[0], images["VIS"][None])
    assert "holds 3 images (VIS, NIR_Y, VIS_PSF): only the first is read; bands=" in caplog.text
    with pytest.raises(DataError, match="bands is empty"):
        read(path, bands=[])
    both = read(path, bands=["NIR_Y", "vis"])
    np.testing.assert_array_equal(both.images[0], np.stack([images["NIR_Y"], images["VIS"]]))
    np.testing.assert_array_equal(read(path, bands=["3"]).images[0, 0], images["NIR_Y"])
    with pytest.raises(DataError, match=r"no extension 'NIR_J' in this FITS file; it holds VIS, NIR_Y, VIS_PSF"):
        read(path, bands=["NIR_J"])
    with pytest.raises(DataError, match=r"bands of different sizes: \(1, 8, 9\), \(1, 5, 5\)"):
        read(path, bands=["VIS", "VIS_PSF"])


@pytest.mark.parametrize("order", [None, ["i", "g"], ["R"]])
def test_files_of_one_object_in_several_bands_are_one_image(tmp_path, order):
    written = {
        (kind, name, band): write_fits(tmp_path / kind / f"{name}_{band}.fits", sky(), 0.168)
        for kind in ("lens", "nonlens")
        for name in ("J01_g2", "J02")
        for band in "rgi"
    }
    lenses = read(tmp_path, bands=order)
    assert lenses.classes == ("nonlens", "lens") and lenses.label.tolist() == [0, 0, 1, 1]
    assert list(lenses.name) == ["nonlens/J01_g2", "nonlens/J02", "lens/J01_g2", "lens/J02"]
    expected = [written["lens", "J02", band.lower()] for band in order or "gri"]
    np.testing.assert_array_equal(lenses.images[3], expected)
    assert lenses.pixel_scale == pytest.approx(0.168, rel=1e-6)


@pytest.mark.parametrize("deep", [False, True])
def test_a_folder_for_each_object(tmp_path, deep):
    root = tmp_path / "lens" if deep else tmp_path
    written = {(o, b): write_fits(root / o / f"{o}_{b}.fits", sky()) for o in ("A", "B", "C") for b in "zg"}
    if deep:
        write_fits(tmp_path / "nonlens" / "D" / "D_g.fits", sky())
        write_fits(tmp_path / "nonlens" / "D" / "D_z.fits", sky())
    lenses = read(tmp_path)
    assert list(lenses.name) == (["nonlens/D", "lens/A", "lens/B", "lens/C"] if deep else ["A", "B", "C"])
    np.testing.assert_array_equal(lenses.images[-1], [written["C", "g"], written["C", "z"]])


def test_an_object_that_lacks_a_band_is_left_out(tmp_path, caplog):
    for name in "ABC":
        for band in "gri":
            write_fits(tmp_path / f"{name}_{band}.fits", sky())
    (tmp_path / "B_r.fits").unlink()
    lenses = read(tmp_path, max_bad_fraction=0.5)
    assert list(lenses.name) == ["A", "C"] and lenses.provenance["bad"] == ["B"]
    assert "B: cannot be read: [Errno 2] No such file" in caplog.text
    assert len(read(tmp_path, bands=["g", "i"])) == 3
    with pytest.raises(DataError, match=r"1 of 3 images.*B \(cannot be read"):
        read(tmp_path)


def test_a_folder_for_each_band(tmp_path):
    written = {
        (band, number): write_fits(
            tmp_path / kind / f"Band{band}" / f"imageSDSS_{'RIGU'[band - 1]}-{number}.fits", sky()
        )
        for kind, numbers in (("lens", (7, 8)), ("nolens", (9,)))
        for number in numbers
        for band in (1, 2, 3, 4)
    }
    lenses = read(tmp_path)
    assert list(lenses.name) == ["nolens/9", "lens/7", "lens/8"]
    np.testing.assert_array_equal(lenses.images[2], [written[band, 8] for band in (1, 2, 3, 4)])
    some = read(tmp_path, bands=["Band3", "band1"])
    np.testing.assert_array_equal(some.images[2], [written[3, 8], written[1, 8]])
    with pytest.raises(DataError, match="no images of the band 'band5'; it has band1, band2, band3, band4"):
        read(tmp_path, bands=["band5"])


def test_images_in_one_band_each_are_not_joined(tmp_path):
    for name in ("a_i", "b_i", "c_r"):
        write_fits(tmp_path / f"{name}.fits", sky())
    assert read(tmp_path).images.shape == (3, 1, 8, 9)


def test_pixel_scales_that_disagree_are_none(tmp_path, caplog):
    write_fits(tmp_path / "a.fits", sky(), 0.1)
    write_fits(tmp_path / "b.fits", sky(), 0.2)
    assert read(tmp_path).pixel_scale is None
    assert "pixels measure from 0.1 to 0.2 arcsec" in caplog.text


@pytest.mark.parametrize("keep", [0, 100, 2880, 3000])
def test_broken_fits(tmp_path, keep):
    write_fits(tmp_path / "a.fits", sky(40, 40))
    content = (tmp_path / "a.fits").read_bytes()
    (tmp_path / "a.fits").write_bytes(content[:keep])
    with pytest.raises(DataError, match=r"a.fits cannot be used: (cannot be read|no image)"):
        read(tmp_path / "a.fits")


# ---- pictures


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "I;16", "1"])
def test_pictures_are_in_0_to_1_with_the_lowest_row_first(tmp_path, mode):
    colours = RNG.integers(0, 256, (6, 7, 3), dtype=np.uint8)
    if mode == "I;16":
        grey = RNG.integers(0, 65536, (6, 7), dtype=np.uint16)
        picture, expected = Image.fromarray(grey), grey[None, ::-1] / 65535
    else:
        picture = Image.fromarray(colours).convert(mode)
        is_grey = mode in ("L", "LA", "1")
        values = np.asarray(picture.convert("L" if is_grey else "RGB")).reshape(6, 7, -1)
        expected = np.moveaxis(values, 2, 0)[:, ::-1] / 255
    picture.save(tmp_path / "a.png")
    lenses = read(tmp_path / "a.png")
    np.testing.assert_allclose(lenses.images[0], expected, atol=1e-7)
    assert lenses.images.shape[1] == (1 if mode in ("L", "LA", "1", "I;16") else 3)


def test_colours_in_another_order(tmp_path):
    colours = RNG.integers(0, 256, (6, 7, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.PNG")
    reverse = read(tmp_path / "a.PNG", bands=["B", "g", "R"]).images[0]
    np.testing.assert_array_equal(reverse, read(tmp_path / "a.PNG").images[0, ::-1])
    assert read(tmp_path / "a.PNG", bands=["G"]).images.shape == (1, 1, 6, 7)
    with pytest.raises(DataError, match="no band 'i'; it has R, G and B"):
        read(tmp_path / "a.PNG", bands=["i"])


def test_jpeg_class_folders(tmp_path):
    smooth = np.linspace(0, 255, 64).astype(np.uint8)
    for kind, level in (("lens", 0), ("nonlens", 255)):
        (tmp_path / kind).mkdir()
        pixels = np.stack(
            [smooth[:, None].repeat(64, 1), smooth[None].repeat(64, 0), np.full((64, 64), level, "u1")], 2
        )
        for i in range(3):
            Image.fromarray(pixels).save(tmp_path / kind / f"{i}.jpg", quality=98)
    lenses = read(tmp_path)
    assert lenses.images.shape == (6, 3, 64, 64) and lenses.class_counts() == {"nonlens": 3, "lens": 3}
    # Red grows downwards in the picture, so it falls with our rows; green grows to the right.
    np.testing.assert_allclose(lenses.images[0, 0, :, 5], smooth[::-1] / 255, atol=0.03)
    np.testing.assert_allclose(lenses.images[0, 1, 5], smooth / 255, atol=0.03)
    assert lenses.images[3:, 2].max() < 0.03 and lenses.images[:3, 2].min() > 0.97


@pytest.mark.parametrize("keep", [0, 20, 200])
def test_broken_pictures(tmp_path, keep):
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:keep])
    with pytest.raises(DataError, match="cannot be used: cannot be read"):
        read(tmp_path / "a.png")


# ---- HDF5


def write_h5(path: Path, image: np.ndarray) -> np.ndarray:
    angle = 0.3
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    with h5py.File(path, "w") as file:
        file["image_data"] = image
        file["transform_pix2angle"] = 0.04 * rotation
    return image


def test_lenstronomys_layout(tmp_path):
    images = [write_h5(tmp_path / f"image_{name}_F814W.h5", sky()) for name in "ab"]
    with h5py.File(tmp_path / "psf_a_F814W.h5", "w") as file:
        file["kernel_point_source"] = sky(5, 5)
    lenses = read(tmp_path)
    np.testing.assert_array_equal(lenses.images[:, 0], images)
    assert lenses.pixel_scale == pytest.approx(0.04)
    with pytest.raises(DataError, match=r"no array 'image_data'.*it holds kernel_point_source"):
        read(tmp_path / "psf_a_F814W.h5")
    (tmp_path / "broken.h5").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be used: cannot be read"):
        read(tmp_path / "broken.h5")


def test_without_h5py_the_error_says_what_to_install(tmp_path):
    write_h5(tmp_path / "a.h5", sky())
    code = "import sys; sys.modules['h5py'] = None\nfrom deeplense.data.read import read\nread(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.h5"], capture_output=True, text=True, check=False)
    assert "which needs h5py: pip install h5py" in done.stderr


# ---- folders of several formats


def test_the_most_frequent_format_is_read_and_previews_are_not(tmp_path, caplog):
    for name in "ab":
        write_fits(tmp_path / f"{name}.fits", sky())
        Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    assert list(read(tmp_path).name) == ["a.fits", "b.fits"]
    assert caplog.text.count("2 FITS files are read, others are not: 2 picture") == 1
    for i in range(5):
        np.save(tmp_path / f"{i}.npy", sky())
    assert len(read(tmp_path)) == 5


def test_classes_of_different_formats_are_a_warning(tmp_path, caplog):
    for i in range(3):
        write_fits(tmp_path / "lens" / f"{i}.fits", sky(8, 8))
        (tmp_path / "nonlens").mkdir(exist_ok=True)
        np.save(tmp_path / "nonlens" / f"{i}.npy", sky(8, 8))
    assert read(tmp_path).class_counts() == {"nonlens": 3, "lens": 3}
    assert "classes differ in their file format" in caplog.text


def test_a_table_beside_images_is_pointed_at(tmp_path, caplog):
    (tmp_path / "labels.csv").write_text("file,label\n")
    with pytest.raises(DataError, match=r"no images in .*or read its table, .*labels.csv"):
        read(tmp_path)


# ---- observed files


def test_pan_starrs(shared_data):
    lenses = read(shared_data / "panstarrs-lenses")
    assert lenses.images.shape == (93, 3, 120, 120)
    assert lenses.class_counts() == {"lensed_galaxies": 80, "lensed_quasars": 12, "lensed_supernovae": 1}
    assert lenses.pixel_scale == pytest.approx(0.25, rel=1e-3)
    folder = shared_data / "panstarrs-lenses" / lenses.name[5]
    for channel, band in zip(lenses.images[5], "gri", strict=True):
        np.testing.assert_array_equal(channel, fits.getdata(folder / f"{folder.name}_{band}.fits"))


def test_bologna(shared_data):
    ground = read(shared_data / "bologna-samples" / "ground_based", mask_value=100.0)
    assert ground.images.shape == (12, 4, 101, 101) and ground.classes == ("nolens", "lens")
    assert ground.provenance["nan"] == {"images": 3, "pixels": 276} and np.nanmax(ground.images) < 1
    space = read(shared_data / "bologna-samples" / "space_based")
    assert space.images.shape == (16, 1, 101, 101) and space.pixel_scale == pytest.approx(0.1, rel=1e-3)


def test_euclid_hubble_and_cosmos(shared_data):
    (euclid,) = (shared_data / "euclid-lens").glob("*/1*.fits")
    bands = ["VIS_BGSUB", "NIR_Y_BGSUB", "NIR_H_BGSUB"]
    image = read(euclid, bands=bands).images[0]
    np.testing.assert_array_equal(image, np.stack([fits.getdata(euclid, name) for name in bands]))
    assert read(shared_data / "hst-lenses").images.shape == (2, 1, 120, 120)
    cosmos = read(shared_data / "cosmos-galaxies")
    assert cosmos.images.shape == (50, 1, 168, 168) and cosmos.pixel_scale == pytest.approx(0.03, rel=1e-3)
