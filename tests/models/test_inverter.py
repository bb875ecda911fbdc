"""The Gaussian over a lens's parameters against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor, nn

from deeplense.models.inverter import LEAST, Inverter, num_outputs

PARAMS = 4
MEAN, STD = torch.tensor([1.2, 0.0, -3.0, 100.0]), torch.tensor([0.3, 0.05, 0.0, 40.0])
VARYING = [0, 1, 3]


def inverter(std: Tensor = STD) -> Inverter:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.Linear(16, num_outputs(PARAMS)))
    network = Inverter(backbone, PARAMS)
    network.mean.copy_(MEAN)
    network.std.copy_(std)
    return network


def outputs(num: int = 5) -> Tensor:
    return torch.tensor(np.random.default_rng(1).normal(size=(num, num_outputs(PARAMS))), dtype=torch.float32)


def lower(row: np.ndarray) -> np.ndarray:
    """The Cholesky factor that outputs mean: row by row, its diagonal by softplus."""
    triangle = np.zeros((PARAMS, PARAMS))
    triangle[np.tril_indices(PARAMS)] = row[PARAMS:]
    np.fill_diagonal(triangle, np.logaddexp(0, np.diag(triangle)) + LEAST)
    return triangle


def test_number_of_outputs():
    assert [num_outputs(n) for n in (1, 2, 14)] == [2, 5, 14 + 105]
    assert inverter()(torch.zeros(3, 1, 6, 6)).shape == (3, 14)


@pytest.mark.parametrize("varying", [[0, 1, 2, 3], VARYING, [2]])
def test_likelihood_is_scipys(varying):
    std = torch.ones(PARAMS)
    std[[i for i in range(PARAMS) if i not in varying]] = 0
    given, where = outputs(), np.random.default_rng(2).normal(size=(5, len(varying)))
    posterior = inverter(std).posterior(given)
    ours = posterior.log_prob(torch.tensor(where, dtype=torch.float32))
    for i, row in enumerate(given.double().numpy()):
        factor = lower(row)[varying][:, varying]
        expected = multivariate_normal(row[varying], factor @ factor.T).logpdf(where[i])
        assert ours[i].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)
        np.testing.assert_allclose(posterior.covariance_matrix[i], factor @ factor.T, rtol=1e-4, atol=1e-5)


def test_constants_are_no_part_of_it():
    network, given = inverter(), outputs()
    changed = given.clone()
    changed[:, 2] += 5  # the mean of the parameter that never varies
    for before, after in zip(
        (network.posterior(given).mean, network.posterior(given).scale_tril),
        (network.posterior(changed).mean, network.posterior(changed).scale_tril),
        strict=True,
    ):
        assert torch.equal(before, after)
    assert network.varying.tolist() == VARYING
    assert network.posterior(given).mean.shape == (5, 3)


def test_units_there_and_back():
    network = inverter()
    values = MEAN + torch.tensor(np.random.default_rng(3).normal(size=(6, PARAMS))).float() * STD
    unit = network.standardised(values)
    torch.testing.assert_close(unit, ((values - MEAN) / STD)[:, VARYING])
    torch.testing.assert_close(network.physical(unit), values)
    # What never varied has its only value, whatever a truth table says.
    assert torch.equal(network.physical(network.standardised(values + 1))[:, 2], MEAN[2].expand(6))


def test_scatter_is_never_below_the_least():
    given = torch.full((2, num_outputs(PARAMS)), -50.0)
    diagonal = inverter().posterior(given).scale_tril.diagonal(dim1=1, dim2=2)
    assert (diagonal >= LEAST).all() and diagonal.max() < 1.01 * LEAST


def test_gradients_reach_all_that_can_be_learnt():
    network = inverter(torch.ones(PARAMS))
    images = torch.tensor(np.random.default_rng(4).normal(size=(8, 1, 6, 6)), dtype=torch.float32)
    (-network.posterior(network(images)).log_prob(torch.zeros(8, PARAMS))).mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all() and (parameter.grad != 0).any(), name
    # Each output of the head is heard, if all parameters vary.
    assert (network.backbone[-1].weight.grad != 0).any(1).all()


def test_outputs_of_constants_are_not_learnt():
    network = inverter()
    (-network.posterior(network(torch.ones(2, 1, 6, 6))).log_prob(torch.zeros(2, 3))).sum().backward()
    triangle = [(i, j) for i in range(PARAMS) for j in range(i + 1)]
    silent = {2} | {PARAMS + n for n, place in enumerate(triangle) if 2 in place}
    heard = (network.backbone[-1].weight.grad != 0).any(1)
    assert {i for i, is_heard in enumerate(heard.tolist()) if not is_heard} == silent


def test_training_finds_mean_and_scatter():
    """Of a linear relation y = w x with noise: the Gaussian that maximises the likelihood is known."""
    rng = np.random.default_rng(5)
    factor = np.array([[0.5, 0.0], [0.3, 0.2]])
    error = rng.normal(size=(4000, 2)) @ factor.T
    network = Inverter(nn.Linear(1, num_outputs(2)), 2)
    x = torch.tensor(rng.normal(size=(4000, 1)), dtype=torch.float32)
    truth = x @ torch.tensor([[1.0, -2.0]]) + torch.tensor(error, dtype=torch.float32)
    optimiser = torch.optim.LBFGS(network.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = -network.posterior(network(x)).log_prob(truth).mean()
        value.backward()
        return value

    optimiser.step(loss)
    found = network.posterior(network(torch.tensor([[1.0]])))
    np.testing.assert_allclose(found.mean[0].detach(), [1, -2], atol=0.05)
    np.testing.assert_allclose(found.covariance_matrix[0].detach(), factor @ factor.T, atol=0.03)
