"""Percentile clipping against numpy.percentile, in and outside of an exported network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from deeplense.data.transform import Preprocess, percentile
from deeplense.errors import ConfigError

RNG = np.random.default_rng(0)


def skies(num: int = 12, size: int = 16) -> np.ndarray:
    """Long-tailed images of two channels with different levels, float32 (num, 2, size, size)."""
    levels = np.array([1.0, 40.0]).reshape(1, 2, 1, 1)
    return (RNG.lognormal(size=(num, 2, size, size)) * levels - 3).astype(np.float32)


def clipped_by_numpy(images: np.ndarray, low: float, high: float, by: str) -> np.ndarray:
    axes = (2, 3) if by == "channel" else (1, 2, 3)
    lower, upper = np.percentile(images.astype(np.float64), [low, high], axis=axes, keepdims=True)
    return np.clip((images - lower) / (upper - lower), 0, 1)


@pytest.mark.parametrize("n", [1, 2, 7, 100, 4096])
@pytest.mark.parametrize("q", [0, 0.1, 0.5, 1, 25, 49.9, 50, 50.1, 75, 99, 99.5, 99.99, 100])
def test_percentiles_are_numpys(n, q):
    values = RNG.normal(size=(3, 2, n)).astype(np.float32)
    expected = np.percentile(values, q, axis=-1)
    np.testing.assert_allclose(percentile(torch.from_numpy(values), q), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("by", ["channel", "image"])
@pytest.mark.parametrize("clip", [(0, 100), (0.5, 99.5), (1, 98), (50, 99.7)])
def test_clipping_maps_percentiles_to_0_and_1(clip, by):
    images = skies()
    pre = Preprocess((16, 16), clip=clip, clip_by=by)
    expected = clipped_by_numpy(images, *clip, by)
    np.testing.assert_allclose(pre(torch.from_numpy(images)), expected, atol=1e-5)


def test_percentiles_are_those_of_the_framed_and_filled_image():
    images = skies(size=20)
    images[:, :, :6] = 1e4  # outside the crop
    holes = images.copy()
    holes[:, :, 9, 9] = np.nan
    pre = Preprocess((20, 20), crop=8, clip=(5, 95))
    mean = np.nanmean(holes.astype(np.float64), axis=(2, 3))
    holes[:, :, 9, 9] = mean
    expected = clipped_by_numpy(holes[:, :, 6:14, 6:14], 5, 95, "channel")
    holes[:, :, 9, 9] = np.nan
    np.testing.assert_allclose(pre(torch.from_numpy(holes)), expected, atol=1e-4)


@pytest.mark.parametrize("stretch", ["sqrt", "asinh"])
def test_the_stretch_and_the_statistics_come_after_the_clipping(stretch):
    images = skies(200)
    x = clipped_by_numpy(images, 1, 99, "channel")
    softening = x.std((0, 2, 3), keepdims=True)
    x = np.sqrt(x) if stretch == "sqrt" else np.arcsinh(x / softening)
    x = (x - x.mean((0, 2, 3), keepdims=True)) / x.std((0, 2, 3), keepdims=True)
    pre = Preprocess((16, 16), stretch=stretch, clip=(1, 99)).fit(images)
    np.testing.assert_allclose(pre(torch.from_numpy(images)), x, atol=1e-4)


def test_clipped_images_do_not_depend_on_gain_or_sky():
    images = torch.from_numpy(skies())
    pre = Preprocess((16, 16), clip=(1, 99))
    torch.testing.assert_close(pre(7 * images + 300), pre(images), atol=2e-5, rtol=0)


def test_constant_images_become_0_and_one_hot_pixel_stays():
    images = torch.full((3, 1, 16, 16), 5.0)
    images[1] = 0
    images[2, 0, 4, 4] = 9
    out = Preprocess((16, 16), clip=(0.5, 99))(images)
    assert (out[:2] == 0).all()
    assert out[2].sum() == 1 and out[2, 0, 4, 4] == 1


def test_it_comes_back_from_json_and_old_cards_still_load():
    pre = Preprocess((16, 16), clip=(0.5, 99.5), clip_by="image").fit(skies())
    card = json.loads(json.dumps(pre.to_dict()))
    images = torch.from_numpy(skies())
    assert torch.equal(Preprocess.from_dict(card)(images), pre(images))
    del card["clip"], card["clip_by"]
    assert Preprocess.from_dict(card).clip is None
    shipped = Path(__file__).parents[2] / "weights" / "common-test" / "model.json"
    old = json.loads(shipped.read_text())["preprocess"]
    assert "clip" not in old
    assert Preprocess.from_dict(old)(torch.rand(2, 1, 150, 150)).shape == (2, 1, 100, 100)


@pytest.mark.parametrize("clip", [(99, 1), (50, 50), (-1, 99), (1, 101)])
def test_impossible_percentiles(clip):
    with pytest.raises(ConfigError, match=r"model.clip=.*the low one first"):
        Preprocess((16, 16), clip=clip)


@pytest.mark.parametrize("by", ["channel", "image"])
def test_onnx_runtime_clips_as_we_do(by):
    onnxruntime = pytest.importorskip("onnxruntime")
    images = skies(5)
    images[2, 1, 3, 3:6] = np.nan
    pre = Preprocess((16, 16), crop=12, stretch="asinh", clip=(0.5, 99.5), clip_by=by).fit(images)
    network = torch.nn.Sequential(pre, torch.nn.Conv2d(2, 3, 3)).eval()
    batch = {0: torch.export.Dim("batch")}
    example = (torch.zeros(2, 2, 16, 16),)
    program = torch.onnx.export(network, example, dynamo=True, dynamic_shapes=(batch,), verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (out,) = session.run(None, {session.get_inputs()[0].name: images})
    np.testing.assert_allclose(out, network(torch.from_numpy(images)).detach(), rtol=1e-4, atol=1e-5)
