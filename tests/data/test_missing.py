"""Pixels that were not measured: they stay NaN in a set, are counted, and are filled before the network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deeplense.config import AugmentConfig
from deeplense.data import store
from deeplense.data.read import read
from deeplense.data.schema import LensSet
from deeplense.data.transform import Augment, Preprocess, fill_missing
from deeplense.errors import DataError

RNG = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RNG.normal(5, 2, shape).astype(np.float32)


def with_nan(num: int = 4) -> np.ndarray:
    """Images (num, 2, 8, 8): a NaN corner in each first channel, one infinite pixel in the last image."""
    images = noise(num, 2, 8, 8)
    images[:, 0, :2, :3] = np.nan
    images[-1, 1, 5, 5] = np.inf
    return images


# ---- reading


def test_images_with_some_nan_are_kept_as_they_are_and_counted(tmp_path, caplog):
    images = with_nan()
    for i, image in enumerate([*images, noise(2, 8, 8)]):
        np.save(tmp_path / f"{i}.npy", image)
    with caplog.at_level("INFO", "deeplense"):
        lenses = read(tmp_path)
    np.testing.assert_array_equal(lenses.images[:4], images)
    assert lenses.provenance["nan"] == {"images": 4, "pixels": 4 * 6 + 1} and lenses.provenance["bad"] == []
    assert "4 of 5 images have NaN, 25 pixels in all" in caplog.text
    np.testing.assert_allclose(lenses.nan_fraction(), [6 / 128, 6 / 128, 6 / 128, 7 / 128, 0])


@pytest.mark.parametrize(("allowed", "kept"), [(0.0, 1), (0.1, 2), (0.5, 3), (1.0, 4)])
def test_the_share_that_may_be_nan_is_the_users_choice(tmp_path, allowed, kept):
    for i, share in enumerate((0.0, 0.1, 0.5, 0.9)):
        image = noise(1, 10, 10)
        image.reshape(-1)[: round(100 * share)] = np.nan
        np.save(tmp_path / f"{i}.npy", image)
    lenses = read(tmp_path, max_nan_fraction=allowed, max_bad_fraction=1)
    assert list(lenses.name) == [f"{i}.npy" for i in range(kept)]


@pytest.mark.parametrize("save", [np.save, np.savez])
def test_single_files_and_stacks_keep_nan_too(tmp_path, save):
    save(tmp_path / "x", with_nan(1))
    lenses = read(next(tmp_path.iterdir()))
    assert lenses.provenance["nan"] == {"images": 1, "pixels": 7}


def test_a_nan_fraction_out_of_range(tmp_path):
    with pytest.raises(DataError, match=r"max_nan_fraction=1.5 is out of range"):
        read(tmp_path, max_nan_fraction=1.5)


@pytest.mark.parametrize("dtype", ["f4", ">f8", "i2"])
def test_masked_pixels_become_nan_while_reading(tmp_path, dtype):
    image = RNG.integers(0, 90, (8, 8)).astype(dtype)
    image[2, 3] = image[7, 7] = 100
    np.save(tmp_path / "a.npy", image)
    lenses = read(tmp_path / "a.npy", mask_value=100.0)
    expected = image.astype(np.float32)
    expected[image == 100] = np.nan
    np.testing.assert_array_equal(lenses.images[0, 0], expected)


def test_masked_pixels_become_nan_in_a_stored_set_as_well(tmp_path):
    images = noise(3, 1, 4, 4)
    images[1, 0, 2, 2] = 100
    store.write(LensSet(images, ["a", "b", "c"]), tmp_path / "set")
    lenses = read(tmp_path / "set", mask_value=100.0)
    assert np.argwhere(np.isnan(lenses.images)).tolist() == [[1, 0, 2, 2]]


def test_the_store_keeps_nan_bit_for_bit(tmp_path):
    images = with_nan(20)
    # A NaN carries 22 bits of its own, and zero has a sign.
    images[3, 0].view(np.uint32)[0] = [0x7FC01234, 0xFFC00001, 0x80000000, 0x7F800000, 0xFF800000, 1, 2, 3]
    store.write(LensSet(images, [f"{i}" for i in range(20)]), tmp_path / "set", shard_size=7)
    np.testing.assert_array_equal(store.open(tmp_path / "set").images.view(np.uint32), images.view(np.uint32))


# ---- filling


def filled_by_numpy(images: np.ndarray) -> np.ndarray:
    out = images.copy()
    for image in out:
        for channel in image:
            good = np.isfinite(channel)
            channel[~good] = channel[good].mean(dtype=np.float64) if good.any() else 0
    return out


def test_missing_pixels_get_the_mean_of_their_channel_and_others_keep_their_bits():
    images = with_nan()
    images[0, 1] = np.nan
    filled = fill_missing(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(filled, filled_by_numpy(images), rtol=1e-6)
    good = np.isfinite(images)
    np.testing.assert_array_equal(filled[good].view(np.uint32), images[good].view(np.uint32))
    assert (filled[0, 1] == 0).all()


def test_a_sum_that_overflows_is_no_missing_pixel():
    images = torch.full((1, 1, 4, 4), 3e38)
    assert torch.equal(fill_missing(images), images)


@pytest.mark.parametrize("settings", [{}, {"crop": 6, "size": 12}, {"stretch": "asinh"}, {"stretch": "sqrt"}])
def test_preprocess_of_images_with_nan_is_that_of_filled_images(settings):
    images = with_nan(50)
    filled = filled_by_numpy(images)
    pre = Preprocess((8, 8), **settings).fit(images)
    same = Preprocess((8, 8), **settings).fit(filled)
    for name, buffer in pre.named_buffers():
        torch.testing.assert_close(buffer, getattr(same, name))
    out = pre(torch.from_numpy(images))
    assert out.isfinite().all()
    torch.testing.assert_close(out, same(torch.from_numpy(filled)))


def test_onnx_runtime_and_the_compiler_fill_as_we_do():
    onnxruntime = pytest.importorskip("onnxruntime")
    images = torch.from_numpy(with_nan())
    network = torch.nn.Sequential(Preprocess((8, 8)).fit(images.numpy()), torch.nn.Conv2d(2, 3, 3)).eval()
    expected = network(images).detach()
    batch = {0: torch.export.Dim("batch")}
    # The example holds no NaN: what the exporter sees must not decide whether pixels are filled.
    program = torch.onnx.export(
        network, (torch.zeros(2, 2, 8, 8),), dynamo=True, dynamic_shapes=(batch,), verbose=False
    )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (out,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images).detach(), expected)


@pytest.mark.parametrize("settings", [{"blur": 1.0}, {"degrees": 20.0}, {"crop": (0.6, 0.9)}, {"noise": 0.5}])
def test_augmentation_does_not_spread_nan(settings):
    torch.manual_seed(0)
    assert Augment(AugmentConfig(**settings))(torch.from_numpy(with_nan())).isfinite().all()


def test_whole_pixel_moves_carry_nan_along():
    images = torch.from_numpy(with_nan()[:3])
    out = Augment(AugmentConfig(flips=True, quarter_turns=True))(images)
    assert out.isnan().sum() == images.isnan().sum()
