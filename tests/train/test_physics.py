"""The stages of a physics run, and what its run folder is good for."""

import json
import shutil

import numpy as np
import pytest
import torch

from deeplense import config as configs
from deeplense import train, weights
from deeplense.data.read import read
from deeplense.errors import ConfigError, DataError, ModelError, RunError
from deeplense.predict import Predictor
from deeplense.simulate.stream import simulated_set
from deeplense.tasks import InversionTask
from deeplense.tasks.physics import see

TINY = ["data.num=48", "data.num_val=48", "physics.steps=1", "train.epochs=1", "physics.inverter_epochs=1"]


def tiny(out, *settings):
    return configs.load("tiny/physics", [*TINY, f"out={out}", *settings])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("physics") / "run"
    config = tiny(out)
    return train.fit(config, train.load_data(config), progress=False)


@pytest.fixture(scope="module")
def images():
    return simulated_set("common-test", "physical", 5, 48)


def test_a_copied_run_folder_predicts_the_same_classes_and_lenses(run, images, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    few = images.select(np.arange(6))
    tables = [Predictor.load(folder).predict(few).to_pydict() for folder in (run, tmp_path / "copy")]
    assert tables[0] == tables[1]
    assert {"p_vort", "label_pred", "theta_E", "theta_E_std", "theta_E_95", "chi2"} <= tables[0].keys()


def test_the_classifier_learns_from_channels_in_the_order_asked_for(run):
    stored = read(run / "seen" / "train")
    assert stored.images.shape[1] == 3  # image, residual, kappa
    inverter = weights.load_task(run / "inverter", InversionTask)
    first = simulated_set("common-test", "physical", 1, 48)
    seen, found = see(inverter, first.images[:8], tiny(run))
    np.testing.assert_allclose(seen[:, 1], found.residual.clamp(-10, 10).numpy())
    crop = first.images[:8, 0, 25:125, 25:125]
    np.testing.assert_allclose(seen[:, 0], np.sign(crop) * np.sqrt(np.abs(crop)), rtol=1e-6)


def test_the_shuffled_control_mixes_all_but_the_image_whatever_the_order_of_classes(run, images):
    inverter = weights.load_task(run / "inverter", InversionTask)
    straight, _ = see(inverter, images.images, tiny(run))
    mixed, _ = see(inverter, images.images, tiny(run, "physics.control=shuffled"))
    np.testing.assert_array_equal(straight[:, 0], mixed[:, 0])
    source = [int(np.argmin(np.abs(straight[:, 1] - row).sum((1, 2)))) for row in mixed[:, 1]]
    assert sorted(source) == list(range(48))
    label = images.label
    same = np.mean(label[source] == label)
    assert 0.1 < same < 0.6  # a third by chance, not none and not all


def test_without_deflection_the_residual_is_far_larger(run, images):
    inverter = weights.load_task(run / "inverter", InversionTask)
    how = ['physics.see=["residual"]', "physics.steps=8"]
    controls = {name: tiny(run, f"physics.control={name}", *how) for name in ("none", "no-lensing")}
    seen = {name: see(inverter, images.images[:6], config)[1] for name, config in controls.items()}
    assert seen["no-lensing"].chi2.median() > 3 * seen["none"].chi2.median()


def test_a_run_that_stopped_after_the_inverter_goes_on_without_training_it_again(run, tmp_path):
    copy = tmp_path / "cut"
    shutil.copytree(run, copy)
    for name in ("model.json", "model.safetensors", "last.ckpt", "metrics.csv"):
        (copy / name).unlink()
    shutil.rmtree(copy / "seen" / "val")
    config = (copy / "config.toml").read_text().replace(str(run), str(copy))
    (copy / "config.toml").write_text(config)
    card = copy / "inverter" / "model.json"
    card.write_text(card.read_text().replace(str(run), str(copy)))
    before = card.stat().st_mtime_ns
    settings = tiny(copy)
    train.fit(settings, train.load_data(settings), progress=False)
    assert card.stat().st_mtime_ns == before
    assert (copy / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_a_given_inverter_is_copied_and_none_is_trained(run, tmp_path):
    settings = tiny(tmp_path / "other", f"physics.inverter={run / 'inverter'}")
    train.fit(settings, train.load_data(settings), progress=False)
    assert not (tmp_path / "other" / "inverter" / "metrics.csv").exists()
    states = [weights.load(folder / "inverter") for folder in (run, tmp_path / "other")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_inverter_of_other_settings_is_not_taken(run, tmp_path):
    shutil.copytree(run / "inverter", tmp_path / "mixed" / "inverter")
    settings = tiny(tmp_path / "mixed", "optim.lr=0.001")
    with pytest.raises(RunError):
        train.fit(settings, train.load_data(settings), progress=False)


@pytest.mark.parametrize(
    "wrong",
    ["physics.see=[]", "model.stretch=asinh", "train.ensemble=2", "physics.control=no-lensing", "train.freeze=1"],
)
def test_settings_that_make_no_sense_are_refused_before_anything_is_trained(wrong, tmp_path):
    settings = tiny(tmp_path / "none", wrong)
    with pytest.raises(ConfigError):
        train.fit(settings, train.load_data(settings), progress=False)
    assert not (tmp_path / "none" / "inverter").exists()


def test_what_cannot_be_exported_or_measured_is_one_clear_error(run, images, tmp_path):
    with pytest.raises(ModelError, match="fits a lens to each image"):
        weights.export(weights.load_task(run), tmp_path / "x.onnx")
    with pytest.raises(DataError, match="150, 150"):
        list(weights.load_task(run).outputs(images.images[:2, :, :100, :100], 2))
    assert json.loads((run / "model.json").read_text())["in_channels"] == 3
