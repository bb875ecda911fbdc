import json

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from deeplense.config import AugmentConfig
from deeplense.data.transform import Augment, Preprocess, d4, d4_matrices
from deeplense.errors import DataError
from toy import lens_set


def random_images(num=700, channels=2, size=10, offset=1e3):
    return (np.random.default_rng(0).normal(offset, 2, (num, channels, size, size)) * [[[[1]], [[3]]]]).astype(
        "float32"
    )


def test_mean_and_scatter_are_numpys_in_float64():
    images = random_images()
    fitted = Preprocess((10, 10)).fit(images)
    exact = images.astype(np.float64)
    np.testing.assert_allclose(fitted.mean.flatten(), exact.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(fitted.std.flatten(), exact.std((0, 2, 3)), rtol=1e-6)
    out = fitted(torch.from_numpy(images))
    assert out.mean((0, 2, 3)).abs().max() < 1e-3
    assert (out.std((0, 2, 3)) - 1).abs().max() < 1e-3


@pytest.mark.parametrize(("size", "crop"), [(10, 4), (11, 5), (10, 10)])
def test_the_crop_is_central_and_statistics_are_those_of_the_crop(size, crop):
    images = np.random.default_rng(1).normal(size=(20, 1, size, size)).astype("float32")
    edge = (size - crop) // 2
    middle = images[:, :, edge : edge + crop, edge : edge + crop]
    fitted = Preprocess((size, size), crop=crop).fit(images)
    expected = (middle - middle.mean()) / middle.std()
    np.testing.assert_allclose(fitted(torch.from_numpy(images)), expected, rtol=1e-4, atol=1e-5)


def test_other_sizes_are_brought_to_the_training_size_and_then_to_the_networks():
    pre = Preprocess((12, 12), crop=8, size=16)
    assert pre(torch.zeros(3, 1, 12, 12)).shape == (3, 1, 16, 16)
    assert pre(torch.zeros(3, 1, 30, 24)).shape == (3, 1, 16, 16)
    # A gradient across the image keeps its middle value wherever it is resized and cropped.
    ramp = torch.linspace(0, 1, 24).expand(1, 1, 24, 24)
    assert pre(ramp).mean().item() == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("stretch", "expected"),
    [
        ("none", lambda x, s: x),
        ("sqrt", lambda x, s: np.sign(x) * np.sqrt(np.abs(x))),
        ("asinh", lambda x, s: np.arcsinh(x / s)),
    ],
)
def test_stretches(stretch, expected):
    images = random_images(50, offset=0)
    fitted = Preprocess((10, 10), stretch=stretch).fit(images)
    x = expected(images.astype(np.float64), images.std((0, 2, 3), keepdims=True))
    x = (x - x.mean((0, 2, 3), keepdims=True)) / x.std((0, 2, 3), keepdims=True)
    np.testing.assert_allclose(fitted(torch.from_numpy(images)), x, atol=2e-5)


def test_it_comes_back_from_json_exact_to_the_bit():
    fitted = Preprocess((10, 10), crop=8, size=6, stretch="asinh").fit(random_images())
    again = Preprocess.from_dict(json.loads(json.dumps(fitted.to_dict())))
    x = torch.from_numpy(random_images(5))
    assert torch.equal(again(x), fitted(x))


def test_constant_or_absent_images_are_errors():
    with pytest.raises(DataError, match="same value"):
        Preprocess((10, 10)).fit(np.full((4, 1, 10, 10), 0.1, np.float32))
    images = random_images()
    images[:, -1] = 3.0
    for stretch in ("none", "asinh"):  # divided by a scatter of zero, it would be NaN
        with pytest.raises(DataError, match=f"channel {images.shape[1] - 1} has the same value"):
            Preprocess((10, 10), stretch=stretch).fit(images)
    with pytest.raises(DataError, match="no training images"):
        Preprocess((10, 10)).fit(np.zeros((0, 1, 10, 10), np.float32))


def test_images_smaller_than_the_crop_stay_whole():
    image = torch.randn(1, 1, 10, 12)
    torch.testing.assert_close(Preprocess((10, 12), crop=11)(image), image)


def test_d4_has_eight_different_elements_closed_under_composition():
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    images = {tuple(d4(image, e).flatten().tolist()) for e in range(8)}
    products = {tuple(d4(d4(image, a), b).flatten().tolist()) for a in range(8) for b in range(8)}
    assert len(images) == 8
    assert products == images


@pytest.mark.parametrize(
    ("flips", "turns", "expected"), [(True, True, 8), (True, False, 4), (False, True, 4), (False, False, 1)]
)
def test_symmetries_that_occur_are_those_asked_for_equally_often(flips, turns, expected):
    torch.manual_seed(0)
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    out = Augment(AugmentConfig(flips=flips, quarter_turns=turns))(image.expand(4000, -1, -1, -1))
    kinds, counts = out.flatten(1).unique(dim=0, return_counts=True)
    allowed = [e for e in range(8) if (flips or e < 4) and (turns or e % 2 == 0)] if expected > 1 else [0]
    assert {tuple(k) for k in kinds.tolist()} == {tuple(d4(image, e).flatten().tolist()) for e in allowed}
    share = 4000 / expected
    assert len(kinds) == expected
    assert ((counts - share).abs() < 5 * share**0.5 + 1).all()


def test_flips_without_quarter_turns_accept_oblong_images_and_turns_do_not():
    oblong = torch.randn(8, 1, 4, 6)
    assert Augment(AugmentConfig(flips=True))(oblong).shape == oblong.shape
    with pytest.raises(DataError, match="quarter_turns needs square images"):
        Augment(AugmentConfig(quarter_turns=True))(oblong)


def test_shift_moves_by_whole_pixels_within_bounds_and_repeats_edges():
    torch.manual_seed(0)
    ramp = torch.arange(10.0).expand(500, 1, 10, 10)
    out = Augment(AugmentConfig(shift=2))(ramp)
    moved = {tuple(row) for row in out[:, 0, 0].tolist()}
    assert moved == {tuple(float(min(max(i + s, 0), 9)) for i in range(10)) for s in range(-2, 3)}


def test_shift_draws_both_axes_apart():
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    out = Augment(AugmentConfig(shift=1))(torch.stack([x, y]).expand(200, -1, -1, -1))
    assert len(out[:, :, 4, 4].unique(dim=0)) == 9


def test_noise_is_gaussian_up_to_its_share_of_the_scatter_of_each_images_channel():
    torch.manual_seed(0)
    scale = torch.tensor([1.0, 50.0])[:, None, None] * torch.rand(400, 1, 1, 1).add(0.5)
    images = torch.randn(400, 2, 32, 32) * scale + 7
    added = Augment(AugmentConfig(noise=0.4))(images) - images
    strength = added.std((-2, -1)) / images.std((-2, -1))
    # One strength for all channels of an image, uniform in [0, 0.4]; noise of the pixels is independent and normal.
    torch.testing.assert_close(strength[:, 0], strength[:, 1], rtol=0.15, atol=0.002)
    assert kstest(strength.mean(1), "uniform", args=(0, 0.4)).pvalue > 1e-3
    normalised = (added / added.std((-2, -1), keepdim=True))[:, 1]
    assert kstest(normalised[:40].flatten(), "norm").pvalue > 1e-3
    neighbours = (normalised[..., 1:] * normalised[..., :-1]).mean()
    assert abs(neighbours) < 0.01


@pytest.mark.parametrize(
    "settings",
    [
        {"flips": True, "quarter_turns": True, "shift": 3},
        {"degrees": 20.0, "translate": 0.1, "scale": (0.8, 1.2), "shear": 5.0},
        {"blur": 0.5},
        {"noise": 0.5},
        {"crop": (0.6, 0.9)},
    ],
)
def test_augmentation_is_random_per_image_and_repeats_with_the_seed(settings):
    augment = Augment(AugmentConfig(**settings))
    images = torch.from_numpy(lens_set(1).images).expand(16, -1, -1, -1)
    torch.manual_seed(3)
    first = augment(images)
    second = augment(images)
    torch.manual_seed(3)
    assert torch.equal(augment(images), first)
    assert not torch.equal(second, first)
    assert first.shape == images.shape
    assert first.isfinite().all()
    assert len(first.flatten(1).unique(dim=0)) > 3


def spots(place, size=65, width=2.0):
    """Gaussian spots at (x, y) about the middle of images, (B, 2) -> (B, 1, size, size)."""
    axis = torch.arange(size) - (size - 1) / 2
    dx, dy = axis - place[:, 0, None, None], axis[:, None] - place[:, 1, None, None]
    return torch.exp(-(dx**2 + dy**2) / (2 * width**2))[:, None]


def centroids(images):
    axis = torch.arange(images.shape[-1]) - (images.shape[-1] - 1) / 2
    total = images.sum((1, 2, 3))
    return (
        torch.stack([(images * axis).sum((1, 2, 3)), (images * axis[:, None]).sum((1, 2, 3))], dim=1) / total[:, None]
    )


def test_the_matrices_of_the_symmetries_move_positions_as_images_are_moved():
    place = torch.tensor([[5.0, 2.0]])
    for element in range(8):
        found = centroids(d4(spots(place), element))
        torch.testing.assert_close(found, place @ d4_matrices()[element].T, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({}, 1e-4),
        ({"flips": True, "quarter_turns": True, "noise": 1e-6}, 1e-3),
        # kornia's warp counts pixels from their edges in one place and from their middles in another: 1 part in 65.
        ({"flips": True, "degrees": 40.0, "translate": 0.05, "scale": (0.8, 1.2), "shear": 9.0, "blur": 0.5}, 0.1),
    ],
)
def test_what_an_image_shows_is_traced_to_where_it_is_now(settings, tolerance):
    torch.manual_seed(1)
    place = torch.rand(200, 2) * 8 - 4
    images, moved = Augment(AugmentConfig(**settings)).traced(spots(place))
    expected = (moved[..., :2] * place[:, None]).sum(-1) + moved[..., 2]
    torch.testing.assert_close(centroids(images), expected, atol=tolerance, rtol=0)
    assert settings == {} or (expected - place).norm(dim=1).mean() > 2


def test_tracing_draws_nothing_more():
    augment = Augment(AugmentConfig(flips=True, degrees=20.0, shift=2, blur=0.5, noise=0.1))
    images = torch.from_numpy(lens_set(8).images)
    states = []
    for change in (augment, lambda x: augment.traced(x)[0]):
        torch.manual_seed(4)
        states.append((change(images), torch.get_rng_state()))
    assert all(torch.equal(*pair) for pair in zip(*states, strict=True))
