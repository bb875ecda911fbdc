"""Runs that start from other runs: fine-tuning, frozen epochs, other channels and classes."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from test_fit import interrupted

from deeplense import config, train, weights
from deeplense.errors import ConfigError, ModelError, RunError
from deeplense.models import backbone
from deeplense.train import start
from toy import data, finder_data, finder_set, tiny, tiny_finder

PLAIN = ("train.ema=0", "optim.schedule=constant")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train.fit(tiny(tmp_path_factory.mktemp("runs") / "run"), data())


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    return train.fit(tiny(tmp_path_factory.mktemp("runs") / "ensemble", "train.ensemble=2", "train.epochs=1"), data())


def changed(before, after):
    """Names of the weights and statistics that differ."""
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_only_the_last_layer_learns_in_frozen_epochs_then_all_of_it(run, tmp_path):
    before = weights.load(run)
    words = (f"init={run}", "train.freeze=2", *PLAIN)
    frozen = weights.load(train.fit(tiny(tmp_path / "a", *words, "train.epochs=2"), data(batch_size=8)))
    assert changed(before, frozen) == {"head.weight", "head.bias"}, "batch statistics stay as well"
    train.fit(tiny(tmp_path / "b", *words, "train.epochs=3"), data(batch_size=8))
    thawed = torch.load(tmp_path / "b" / "last.ckpt", weights_only=True)["state_dict"]
    network = {name.removeprefix("network."): weight for name, weight in thawed.items() if name.startswith("network.")}
    assert changed(before, network) == set(before)


@pytest.mark.parametrize("settings", [["train.ema=0"], ["train.ema=0.9", "optim.schedule=onecycle"]])
def test_an_interrupted_fine_tuning_goes_on_to_the_same_bits(run, settings, tmp_path, monkeypatch):
    settings = [f"init={run}", "train.freeze=2", "train.epochs=4", *settings]
    whole = train.fit(tiny(tmp_path / "whole", *settings), data())
    for epoch in (0, 1, 2, 3):
        with pytest.raises(ZeroDivisionError):
            interrupted(monkeypatch, tiny(tmp_path / "cut", *settings), ZeroDivisionError(), epoch)
    cut = train.fit(tiny(tmp_path / "cut", *settings), data())
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["compact", "brief-cnn", "resnet-18"])
def test_a_grey_image_gives_the_same_response_in_any_number_of_channels(name, tmp_path):
    torch.manual_seed(0)
    model = config.ModelConfig(name=name, width=8)
    grey = torch.randn(2, 1, 32, 32)
    three = backbone.build(model, 3, 2).eval()
    weights.save(three.state_dict(), tmp_path / "three.safetensors")
    for channels in (1, 2, 4):
        other = backbone.build(model, channels, 2).eval()
        start.start_from(other, str(tmp_path / "three.safetensors"))
        expected, found = three(grey.expand(-1, 3, -1, -1)), other(grey.expand(-1, channels, -1, -1))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_from_substructure_in_one_channel_to_a_finder_in_three(run, tmp_path, caplog):
    before = weights.load(run)
    with caplog.at_level(logging.INFO):
        task = train.build_task(tiny_finder(tmp_path / "a", f"init={run}"), finder_data(channels=3))
    assert "has 3 outputs, not 1: head starts anew" in caplog.text
    assert "has 1 channels, these images 3" in caplog.text
    after = task.network.state_dict()
    assert changed(before, after) == {"stem.0.weight", "head.weight", "head.bias"}
    settings = tiny_finder(tmp_path / "b", f"init={run}", "train.freeze=1", "train.epochs=2")
    assert (train.fit(settings, finder_data(channels=3)) / "model.json").is_file()


def test_the_architecture_comes_from_the_run(run, tmp_path):
    plain = tmp_path / "plain.toml"
    plain.write_text('task = "substructure"\n[data]\nbatch_size = 16\n[train]\nepochs = 2\n')
    settings = config.load(str(plain), [f"init={run}", f"out={tmp_path / 'a'}"])
    adopted = start.adopt(settings)
    assert (adopted.model.width, adopted.model.size) == (4, 24)
    assert start.adopt(adopted) == adopted
    tuned = train.fit(settings, data())
    assert weights.load_task(tuned).network.stages[0].body[0].weight.shape[0] == 4
    assert weights.load_task(tuned).config.model == adopted.model
    with pytest.raises(RunError, match="is finished"):
        train.check_free(settings)


def test_an_unfinished_fine_tuning_is_continued_with_the_settings_as_given(run, tmp_path, monkeypatch):
    plain = tmp_path / "plain.toml"
    plain.write_text('task = "substructure"\n[data]\nbatch_size = 16\n[train]\nepochs = 2\n')
    settings = config.load(str(plain), [f"init={run}", f"out={tmp_path / 'a'}"])
    with pytest.raises(RunError, match="stopped"):
        interrupted(monkeypatch, settings, KeyboardInterrupt(), epoch=1)
    train.check_free(settings)
    assert (train.fit(settings, data()) / "model.json").is_file()


def test_another_architecture_than_the_runs_is_an_error_that_says_what_to_set(run, tmp_path):
    with pytest.raises(ConfigError, match=r"model\.width is 4 in .*, not 8: leave it out, or set model\.width=4"):
        train.fit(tiny(tmp_path / "a", f"init={run}", "model.width=8"), data())
    with pytest.raises(ConfigError, match=r"model\.name is 'compact' in .*, not 'brief-cnn'"):
        train.fit(tiny(tmp_path / "a", f"init={run}", "model=brief-cnn"), data())
    assert not (tmp_path / "a").exists()


def test_a_transformers_network_comes_from_what_the_run_has_stored(tmp_path, monkeypatch):
    words = ("model=resnet-18", "model.size=32", "train.epochs=1")
    run = train.fit(tiny(tmp_path / "run", *words), data(num=32))
    plain = tmp_path / "plain.toml"
    plain.write_text('task = "finder"\n[data]\nbatch_size = 16\n[train]\nepochs = 1\nfreeze = 1\n')
    monkeypatch.setattr(backbone, "_architecture", lambda *_: pytest.fail("the network was looked up"))
    settings = config.load(str(plain), [f"init={run}", f"out={tmp_path / 'a'}"])
    tuned = train.fit(settings, finder_data(num=32, channels=2))
    first = "network.resnet.embedder.embedder.convolution.weight"
    given, found = weights.load(run)[first], weights.load(tuned)[first]
    torch.testing.assert_close(found, given.repeat(1, 2, 1, 1) / 2)
    assert weights.load_task(tuned)(torch.randn(2, 2, 24, 24)).shape == (2, 1)


def test_an_ensemble_starts_member_by_member_where_numbers_agree(ensemble):
    members = [weights.load(ensemble / f"member-{i}") for i in (1, 2)]
    for place, expected in (((0, 2), 0), ((1, 2), 1), ((0, 1), 0), ((2, 3), 0)):
        network = backbone.build(config.ModelConfig(width=4), 1, 3)
        start.start_from(network, str(ensemble), place)
        assert not changed(members[expected], network.state_dict())


def test_a_new_ensemble_from_an_ensemble_tunes_each_member(ensemble, tmp_path):
    words = ("train.ensemble=2", f"init={ensemble}", "train.freeze=1", "train.epochs=1", *PLAIN)
    tuned = train.fit(tiny(tmp_path / "tuned", *words), data())
    for i in (1, 2):
        before, after = (weights.load(path / f"member-{i}") for path in (ensemble, tuned))
        assert changed(before, after) == {"head.weight", "head.bias"}


def test_other_weights_that_do_not_fit_are_named(tmp_path):
    state = backbone.build(config.ModelConfig(width=4), 1, 3).state_dict()
    state["stages.0.body.0.weight"] = torch.zeros(4, 5, 3, 3)
    weights.save(state, tmp_path / "w.safetensors")
    network = backbone.build(config.ModelConfig(width=4), 1, 3)
    with pytest.raises(ModelError, match=r"stages\.0\.body\.0\.weight is \(4, 5, 3, 3\) there"):
        start.start_from(network, str(tmp_path / "w.safetensors"))


def test_freezing_what_has_learnt_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"this starts anew: add init=RUN"):
        train.fit(tiny(tmp_path / "a", "train.freeze=1"), data())


def test_what_does_not_exist_is_no_start(tmp_path):
    with pytest.raises(ConfigError, match="there is no such run or file"):
        train.check_free(tiny(tmp_path / "a", f"init={tmp_path / 'none'}"))


def test_an_unfinished_run_is_no_start(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(RunError, match="is not finished"):
        train.fit(tiny(tmp_path / "a", f"init={tmp_path / 'run'}"), data())


def test_fine_tuning_beats_a_random_start_on_few_images(tmp_path):
    """Rings in other noise: a run that knows rings learns them from 40 images, a new one does not."""
    knows = train.fit(tiny_finder(tmp_path / "knows", "model.width=8", "train.epochs=8"), finder_data(320))
    few = finder_set(40, seed=5)
    images = [replace(part, images=part.images * 3 + 1) for part in (few, finder_set(80, seed=6))]
    module = train.LensDataModule(*images, 8, seed=0)
    words = ("model.width=8", "train.epochs=3", "optim.lr=1e-3")
    scores = []
    for name, more in (("tuned", [f"init={knows}", "train.freeze=1"]), ("anew", [])):
        run = train.fit(tiny_finder(tmp_path / name, *words, *more), module)
        scores.append(weights.load_card(run)["scores"]["val_score"])
    assert scores[0] > scores[1] + 0.1
