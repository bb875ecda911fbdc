"""Balanced draws: class counts, the order's dependence on (seed, epoch) alone, shards, and exact resume."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from deeplense import config, train
from deeplense.data.module import LensDataModule
from deeplense.data.sampler import BalancedSampler
from deeplense.errors import ConfigError
from deeplense.simulate.stream import StreamDataModule
from toy import lens_set, tiny

LABEL = np.repeat([0, 1, 2], [900, 90, 10])


def draws(epoch: int = 0, label: np.ndarray = LABEL, replicas: int = 1, rank: int = 0, seed: int = 0) -> np.ndarray:
    sampler = BalancedSampler(label, replicas, rank, seed)
    sampler.set_epoch(epoch)
    places = np.array(list(sampler))
    assert len(places) == len(sampler)
    return places


@pytest.mark.parametrize("epoch", range(5))
def test_every_class_is_drawn_equally_often_in_an_epoch_as_long_as_the_set(epoch):
    counts = np.bincount(LABEL[draws(epoch)])
    assert counts.sum() == 1000 and sorted(counts) == [333, 333, 334]


def test_images_of_a_class_are_drawn_evenly():
    places = np.concatenate([draws(epoch) for epoch in range(300)])
    for k in range(3):
        counts = np.bincount(places, minlength=1000)[k == LABEL]
        assert chisquare(counts).pvalue > 1e-3
    # Each draw has its class at random: neighbours in a batch are not in turn.
    label = LABEL[places]
    assert np.mean(label[1:] == label[:-1]) == pytest.approx(1 / 3, abs=0.01)


def test_draws_are_a_function_of_seed_and_epoch_alone():
    first = draws(3)
    np.random.seed(1)  # noqa: NPY002 -- other people's draws must not matter
    torch.manual_seed(1)
    assert (draws(3) == first).all()
    assert (draws(4) != first).any() and (draws(3, seed=1) != first).any()


@pytest.mark.parametrize("replicas", [2, 3, 7])
def test_devices_share_the_draws_of_an_epoch(replicas):
    parts = [draws(2, replicas=replicas, rank=rank) for rank in range(replicas)]
    assert {len(part) for part in parts} == {-(-1000 // replicas)}
    dealt = np.stack(parts, axis=1).ravel()  # one draw to each in turn
    counts = np.bincount(LABEL[dealt])
    assert counts.max() - counts.min() <= 1
    if 1000 % replicas == 0:
        assert (dealt == draws(2)).all()


def imbalanced(num: int = 300) -> LensDataModule:
    whole = lens_set(num, seed=1)
    kept = np.flatnonzero((whole.label == 0) | (np.arange(num) % 5 == 0))
    return LensDataModule(whole.select(kept), lens_set(48, seed=2), 16, balanced=True)


def test_the_data_module_balances_training_but_not_validation():
    module = imbalanced()
    loader = module.train_dataloader()
    loader.sampler.set_epoch(1)
    labels = torch.cat([batch["label"] for batch in loader])
    counts = np.bincount(labels)
    assert counts.max() - counts.min() <= 16  # the incomplete last batch is dropped
    assert torch.cat([batch["index"] for batch in module.val_dataloader()]).tolist() == list(range(48))


def test_prevalence_and_weights():
    module = imbalanced()
    counts = np.bincount(module.train.label)
    assert counts.tolist() == [100, 20, 20]
    np.testing.assert_allclose(module.train_prevalence, [1 / 3] * 3)
    np.testing.assert_allclose(module.class_weights, [140 / 300, 140 / 60, 140 / 60], rtol=1e-6)
    natural = LensDataModule(module.train, module.val, 16)
    np.testing.assert_allclose(natural.train_prevalence, counts / 140)


def test_a_class_without_images_has_no_share():
    three = lens_set(60, seed=1)
    two = three.select(np.flatnonzero(three.label != 1))
    module = LensDataModule(two, lens_set(48, seed=2), 16, balanced=True)
    np.testing.assert_allclose(module.train_prevalence, [0.5, 0, 0.5])


def test_a_balanced_run_that_was_interrupted_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    settings = ["train.epochs=3", "augment.noise=0.3"]
    whole = train.fit(tiny(tmp_path / "whole", *settings), imbalanced())
    draw = BalancedSampler.__iter__

    def break_down(self):
        yield from list(draw(self))[:40]
        raise ZeroDivisionError

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(BalancedSampler, "__iter__", lambda self: break_down(self) if self.epoch == 1 else draw(self))
        train.fit(tiny(tmp_path / "cut", *settings), imbalanced())
    cut = train.fit(tiny(tmp_path / "cut", *settings), imbalanced())
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    other = train.fit(tiny(tmp_path / "other", *settings, "augment.noise=0.2"), imbalanced())
    assert (other / "model.safetensors").read_bytes() != (whole / "model.safetensors").read_bytes()


def survey(*overrides: str) -> StreamDataModule:
    settings = ["data=preset:hsc-gri", "data.num=48", "data.num_val=48", "data.batch_size=16"]
    return StreamDataModule(config.load("tiny/substructure", [*settings, *overrides]))


def test_simulated_images_are_as_frequent_as_the_world_says():
    module = survey("data.settings=['positive_fraction=0.3']")
    np.testing.assert_allclose(module.train_prevalence, [0.7, 0.3])
    with pytest.raises(ConfigError, match=r"balanced has no meaning for preset:hsc-gri.*positive_fraction=0.5"):
        survey("data.balanced=true")
