"""The network of a diffusion model: what it is told, and what it does not know."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from deeplense.models.unet import LensUNet

NAN = float("nan")


def make(**changes) -> LensUNet:
    torch.manual_seed(0)
    options = {"channels": 2, "size": 16, "widths": (8, 16), "unshuffle": 2, "num_classes": 3, "num_params": 2}
    return LensUNet(**{**options, **changes}).eval()


def batch(number: int = 4, channels: int = 2) -> tuple[Tensor, Tensor]:
    """Noisy images and the numbers of their levels."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(number, channels, 16, 16, generator=generator), torch.arange(number) * 300 % 1000


class Same(nn.Module):
    """In place of the inner network: says what it is shown."""

    def forward(self, x: Tensor, time: Tensor, class_labels: Tensor | None = None) -> SimpleNamespace:
        self.shape = x.shape
        return SimpleNamespace(sample=x)


@pytest.mark.parametrize("unshuffle", [1, 2, 4])
def test_pixels_become_channels_and_come_back_exactly(unshuffle):
    network = make(unshuffle=unshuffle)
    network.unet = Same()
    noisy, time = batch()
    assert torch.equal(network(noisy, time), noisy)
    assert network.unet.shape == (4, 2 * unshuffle**2, 16 // unshuffle, 16 // unshuffle)


@pytest.mark.parametrize("told", [{}, {"num_classes": 0}, {"num_params": 0}, {"num_classes": 0, "num_params": 0}])
def test_every_parameter_learns(told):
    network = make(**told).train()
    noisy, time = batch()
    label = torch.tensor([0, 1, 2, 3]) if network.num_classes else None  # 3: not told
    params = torch.tensor([[1.0, NAN], [NAN, 2.0], [NAN, NAN], [0.5, 0.5]]) if network.num_params else None
    output = network(noisy, time, label, params)
    assert output.shape == noisy.shape
    output.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
    if network.label is not None:
        assert (network.label.weight.grad.abs().amax(dim=1) > 0).all()


def test_nothing_told_is_the_class_that_stands_for_it():
    network, (noisy, time) = make(), batch()
    nothing = network(noisy, time)
    assert torch.equal(network(noisy, time, torch.full((4,), 3)), nothing)
    assert torch.equal(network(noisy, time, None, torch.full((4, 2), NAN)), nothing)
    for told in ({"label": torch.zeros(4, dtype=torch.int64)}, {"params": torch.zeros(4, 2)}):
        assert not torch.allclose(network(noisy, time, **told), nothing, atol=1e-4)


def test_what_is_not_told_of_one_parameter_leaves_the_other():
    network, (noisy, time) = make(), batch(1)
    outputs = [
        network(noisy, time, None, torch.tensor([row])) for row in ([1.0, NAN], [NAN, 1.0], [1.0, 1.0], [NAN, NAN])
    ]
    for i, a in enumerate(outputs):
        assert all(not torch.allclose(a, b, atol=1e-5) for b in outputs[:i])
        assert a.isfinite().all()


def test_a_value_equal_to_the_mean_is_not_the_same_as_none():
    network, (noisy, time) = make(), batch(1)
    network.param_mean.copy_(torch.tensor([5.0, 7.0]))
    known = network(noisy, time, None, torch.tensor([[5.0, 7.0]]))
    assert not torch.allclose(known, network(noisy, time), atol=1e-5)


def test_parameters_are_standardised():
    plain, scaled, (noisy, time) = make(), make(), batch()
    scaled.param_mean.copy_(torch.tensor([3.0, -1.0]))
    scaled.param_std.copy_(torch.tensor([2.0, 0.5]))
    given = torch.randn(4, 2, generator=torch.Generator().manual_seed(2))
    raw = given * scaled.param_std + scaled.param_mean
    torch.testing.assert_close(scaled(noisy, time, None, raw), plain(noisy, time, None, given), rtol=1e-4, atol=1e-5)


def test_the_level_of_the_noise_matters_and_images_do_not_mix():
    network, (noisy, time) = make(), batch()
    together = network(noisy, time, torch.tensor([0, 1, 2, 0]))
    alone = network(noisy[1:2], time[1], torch.tensor([1]))
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(alone, network(noisy[1:2], time[2], torch.tensor([1])), atol=1e-4)
