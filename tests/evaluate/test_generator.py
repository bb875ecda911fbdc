import json
import logging
from dataclasses import replace

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from deeplense import train, weights
from deeplense.errors import ConfigError, RunError
from deeplense.evaluate.generator import features_of, framed, network_auc, trained_on
from deeplense.evaluate.judge import judge
from deeplense.predict import Predictor
from deeplense.tasks import DiffusionTask
from deeplense.tasks.draw import Request, draw
from toy import lens_set, tiny, tiny_diffusion, write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(lens_set(90, seed=1), tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    settings = tiny_diffusion(tmp_path_factory.mktemp("runs") / "drawing", f"data={folder}", "train.epochs=1")
    return train.fit(settings, train.load_data(settings), progress=False)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    from toy import data

    return train.fit(tiny(tmp_path_factory.mktemp("runs") / "classifier", "model.size=16", "train.epochs=1"), data())


def test_a_diffusion_run_is_judged_with_all_its_parts(run, classifier, tmp_path):
    held_out = lens_set(120, seed=5)
    metrics = judge(run, held_out, tmp_path, features=classifier)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    found = metrics["fidelity"]
    assert found["n"] == 60 and found["notes"] == []
    # Noise that was trained for a second is no lens: the network on pixels sees it, the halves of the real set not.
    assert found["scores"]["pixel_auc"]["value"] > 0.9 > found["scores"]["pixel_auc"]["floor"]
    assert found["scores"]["frechet"]["ratio"] > 2
    assert found["recovered"]["held_out"]["n"] == 120
    assert found["n_train"] == 81
    page = (tmp_path / "report.html").read_text()
    assert "Memorisation" in page and "Training" in page and "held out" in page


def test_samples_of_one_class_keep_it(run, tmp_path):
    task = weights.load_task(run, DiffusionTask)
    drawn = draw(task, 30, Request(label="vort"))
    alone = replace(drawn, classes=("vort",), label=np.zeros(30, np.int64))  # as a folder with one sub-folder is read
    found = judge(run, lens_set(90, seed=5), tmp_path, generated=alone)["fidelity"]
    # Of each class twice as many held-out images are needed: 30 of vort allow 15.
    assert found["n"] == 15 and found["n_generated"] == 30


def test_images_drawn_before_are_judged_instead(run, tmp_path):
    task = weights.load_task(run, DiffusionTask)
    drawn = draw(task, 30, Request(seed=3))
    metrics = judge(run, lens_set(90, seed=5), tmp_path, generated=drawn)
    assert metrics["n"] == 30 and metrics["provenance"]["generated"]["seed"] == 3
    assert any("--features" in note for note in metrics["fidelity"]["notes"])


def test_held_out_images_in_place_of_generated_ones_are_at_the_floor(run, classifier, tmp_path):
    task = weights.load_task(run, DiffusionTask)
    others = lens_set(60, seed=8)
    others = replace(others, images=framed(task.preprocess, others.images))
    scores = judge(run, lens_set(120, seed=5), tmp_path, features=classifier, generated=others)["fidelity"]["scores"]
    assert scores["frechet"]["ratio"] < 1.5 and scores["ring_radius"]["ratio"] < 3
    assert scores["two_sample_auc"]["value"] < 0.7


def test_features_are_what_the_last_layer_is_given(run, classifier):
    """A linear layer of them gives back the logits, and the probabilities are those of predictions."""
    task, images = weights.load_task(run, DiffusionTask), lens_set(20, seed=4)
    features, probs = features_of(classifier, task.preprocess)(framed(task.preprocess, images.images))
    table = Predictor.load(classifier).predict(images)
    np.testing.assert_allclose(probs, np.stack([table[f"p_{c}"] for c in images.classes], axis=1), atol=1e-5)
    head = weights.load_task(classifier).network.head
    logits = features @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    temperature = weights.load_card(classifier)["calibration"]["temperature"]
    expected = np.exp(logits / temperature) / np.exp(logits / temperature).sum(1, keepdims=True)
    np.testing.assert_allclose(probs, expected, rtol=1e-4)
    assert np.isfinite(StandardScaler().fit_transform(features)).all()


def test_a_classifier_of_another_frame_is_refused(run, tmp_path_factory):
    from toy import data

    other = train.fit(tiny(tmp_path_factory.mktemp("runs") / "other", "train.epochs=1"), data())
    with pytest.raises(ConfigError, match=r"model\.crop=None model\.size=16"):
        judge(run, lens_set(60, seed=5), features=other)


def test_runs_of_other_tasks_are_refused_in_one_line(run, classifier):
    with pytest.raises(RunError, match="is a diffusion run; this needs a substructure or lens-equation or physics run"):
        judge(run, lens_set(60, seed=5), features=run)
    with pytest.raises(ConfigError, match="are for diffusion runs"):
        judge(classifier, lens_set(60, seed=5), features=classifier)
    with pytest.raises(ConfigError, match="only a finder has one"):
        judge(run, lens_set(60, seed=5), prevalence=0.1)
    with pytest.raises(
        RunError,
        match="is a diffusion run; this needs a substructure or finder or lens-equation or inversion or physics run",
    ):
        Predictor.load(run)


def test_training_images_are_those_of_the_run_or_left_out(run, folder, caplog):
    task, card = weights.load_task(run, DiffusionTask), weights.load_card(run)
    images = trained_on(task, card)
    whole = framed(task.preprocess, lens_set(90, seed=1).images)
    assert images.shape == (81, 1, 16, 16)
    assert all((np.abs(whole - image).max((1, 2, 3)) < 1e-6).any() for image in images)
    changed = {**card, "data": {"train": "of others"}}
    with caplog.at_level(logging.WARNING):
        assert trained_on(task, changed) is None
    assert "memorisation is left out" in caplog.text
    gone = {**card, "config": {**card["config"], "data": {**card["config"]["data"], "path": "/nowhere"}}}
    assert trained_on(task, gone) is None


def test_a_network_tells_what_differs_and_nothing_else():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(3, 160, 1, 16, 16)).astype(np.float32)
    assert abs(network_auc(noise[0], noise[1], 0) - 0.5) < 0.17  # 160 images to judge by: four standard errors
    assert network_auc(noise[0], noise[2] * 1.5, 0) > 0.9
