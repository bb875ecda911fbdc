"""Measuring lenses: what is told of images of which something is known, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from deeplense import config as configs
from deeplense.config import Config
from deeplense.data.module import LensDataModule, param_values
from deeplense.data.schema import LensSet
from deeplense.errors import ConfigError, DataError
from deeplense.simulate.stream import simulated_set
from deeplense.tasks.inversion import PARAMS, InversionTask
from deeplense.train.build import build_task
from toy import lens_set


def tiny(*overrides: str) -> Config:
    return configs.load("tiny/inversion", ["out=unused", *overrides])


def data_of(given: LensSet, other: LensSet) -> LensDataModule:
    return LensDataModule(given, other, 16, needs_labels=False, params=PARAMS)


@pytest.fixture(scope="module")
def images() -> LensSet:
    return simulated_set("common-test", "physical", 77, 48)


@pytest.fixture
def task(images) -> InversionTask:
    """A task with random weights that knows its images."""
    torch.manual_seed(0)
    return build_task(tiny(), data_of(images, images.select(np.arange(40)))).train()


def silent(task: InversionTask) -> set[str]:
    """Parameters of the network that no gradient came to."""
    grads = {name: p.grad for name, p in task.network.named_parameters()}
    return {name for name, g in grads.items() if g is None or not g.isfinite().all() or not g.any()}


def test_gradients_of_the_loss_reach_the_whole_network(task, images):
    given = torch.from_numpy(images.images)
    columns = task.step({"params": torch.from_numpy(param_values(images, PARAMS))}, given)
    torch.testing.assert_close(columns["loss"], 0.05 * torch.log1p(columns["chi2"]) - columns["likelihood"])
    columns["loss"].mean().backward()
    assert not silent(task)


def test_gradients_of_the_misfit_alone_reach_the_whole_network(task, images):
    given = torch.from_numpy(images.images)
    posterior = task.network.posterior(task.network(task.preprocess(given)))
    task.misfit(task.network.physical(posterior.mean), given).mean().backward()
    assert not silent(task)


def test_the_misfit_is_least_at_the_truth(task, images):
    smooth = images.select(np.flatnonzero(images.label == images.classes.index("no")))
    given, truth = torch.from_numpy(smooth.images), torch.from_numpy(param_values(smooth, PARAMS))
    good, larger, straight = task.misfit(truth, given), truth.clone(), truth.clone()
    larger[:, 0] *= 1.1
    straight[:, [PARAMS.index(name) for name in ("theta_E", "gamma1", "gamma2")]] = 0.0
    assert 0.8 < good.median() < 2  # coarse pixels: a little more than the noise
    for wrong in (larger, straight):
        assert (task.misfit(wrong, given) > 5 * good).float().mean() > 0.9


def test_what_is_known_is_told_and_has_no_interval(task, images):
    task.calibration["intervals"] = {"edges": [], "factors": [[[1.0] * len(PARAMS)], [[2.0] * len(PARAMS)]]}
    task.known = {"psf_fwhm": 0.1, "gamma1": 0.02}
    found = task.measure(images.images[:8], 1)
    told = task.columns(task.told(found))
    for name, value in task.known.items():
        torch.testing.assert_close(told[name], torch.full((8,), value))
        assert not told[f"{name}_std"].any() and not told[f"{name}_95"].any()
    torch.testing.assert_close(told["theta_E"], found.parameters[:, 0])
    torch.testing.assert_close(told["e1_std"], found.covariance[:, 1, 1].sqrt().float())


@pytest.mark.parametrize("words", ["augment.flips=true", "train.ensemble=2", "model.average=d4"])
def test_settings_that_make_no_sense(words, images):
    with pytest.raises(ConfigError, match=r"leave all but noise|for tasks that tell classes"):
        build_task(tiny(words), data_of(images, images.select(np.arange(40))))


def test_images_that_cannot_be_measured_are_refused(images):
    three = [replace(part, images=part.images.repeat(3, 1)) for part in (images, images.select(np.arange(40)))]
    with pytest.raises(DataError, match="in one band, and these images have 3"):
        build_task(tiny(), data_of(*three))
    with pytest.raises(DataError, match="without 'theta_E' in their truth table"):
        build_task(tiny(), data_of(lens_set(48), lens_set(48, seed=1)))
