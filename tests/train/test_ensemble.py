"""Several networks trained by one command, which are one run in the end."""

from __future__ import annotations

import logging
import shutil

import numpy as np
import pytest
import torch

from deeplense import train, weights
from deeplense.errors import ConfigError, RunError
from deeplense.evaluate.judge import judge
from deeplense.predict import Predictor
from toy import SETS, data, finder_data, lens_set, tiny, tiny_finder

MAKE = {"substructure": (tiny, data), "finder": (tiny_finder, finder_data)}
SHORT = ("train.ensemble=2", "train.epochs=2", "model.average=none")


@pytest.fixture(scope="module", params=MAKE)
def run(request, tmp_path_factory):
    settings, images = MAKE[request.param]
    return train.fit(settings(tmp_path_factory.mktemp(request.param) / "run", *SHORT), images())


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return train.fit(tiny(tmp_path_factory.mktemp("runs") / "run", *SHORT), data())


def test_members_are_the_runs_that_their_seeds_give(classifier, tmp_path):
    for i in range(2):
        module = data()
        module.seed = i  # the order of the images; which images they are does not change
        alone = train.fit(tiny(tmp_path / f"alone-{i}", "train.epochs=2", "model.average=none", f"seed={i}"), module)
        member = classifier / f"member-{i + 1}"
        assert (member / "model.safetensors").read_bytes() == (alone / "model.safetensors").read_bytes()
        assert weights.load_card(member)["data"] == weights.load_card(classifier)["data"]


def test_the_answer_is_the_members_mean(run):
    task = weights.load_task(run)
    images = SETS[task.config.task](10, seed=9)
    whole, first, second = (Predictor.load(path).outputs(images) for path in (run, run / "member-1", run / "member-2"))
    if whole.shape[1] == 1:
        torch.testing.assert_close(whole, (first + second) / 2)
    else:
        torch.testing.assert_close(whole, (first.log_softmax(1) + second.log_softmax(1)) / 2)
    assert not torch.allclose(first, second, atol=1e-3)


def test_the_card_says_what_it_is_made_of(run):
    card = weights.load_card(run)
    alone = [weights.load_card(run / f"member-{i}")["scores"]["val_score"] for i in (1, 2)]
    assert card["members"] == 2 and card["scores"]["members"] == alone
    assert np.isfinite(list(card["calibration"].values())).all()
    task = weights.load_task(run)
    validated = task.validated_on(MAKE[task.config.task][1]().val, 16)
    assert card["scores"]["val_score"] == pytest.approx(task.score(validated))
    task.know_mixture(np.array([0.75, 0.25]), np.ones(2))  # of the finder's images; the other one needs none
    assert card["calibration"] == pytest.approx(task.calibrate(validated), rel=1e-3)


def test_it_is_exported_as_any_run(run, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    task = weights.load_task(run)
    weights.export(task, tmp_path / "model.json")
    stored = weights.load(run)
    assert {name.split(".")[1] for name in stored} == {"0", "1"}
    assert all(torch.equal(weight, stored[name]) for name, weight in weights.load(tmp_path / "model.json").items())
    weights.export(task, tmp_path / "model.onnx")
    images = SETS[task.config.task](3, seed=4)
    found = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"image": images.images})
    table = Predictor.load(run, device="cpu").predict(images)
    for column, name in zip(found, table.column_names[1:], strict=False):
        np.testing.assert_allclose(column, table[name].to_numpy(), rtol=1e-4, atol=1e-5)


def test_it_is_judged_as_any_run(classifier, tmp_path):
    metrics = judge(classifier, lens_set(60, seed=8), tmp_path, bootstrap=10)
    assert metrics["n"] == 60 and (tmp_path / "report.html").is_file()


def test_an_interrupted_ensemble_keeps_finished_members_and_goes_on_to_the_same_bits(classifier, tmp_path, monkeypatch):
    settings, make = tiny(tmp_path / "cut", *SHORT), train._trainer

    def failing(config, *args):
        if config.out.endswith("member-2"):
            raise KeyboardInterrupt
        return make(config, *args)

    with monkeypatch.context() as patch:
        patch.setattr(train, "_trainer", failing)
        with pytest.raises(RunError, match="stopped"):
            train.fit(settings, data())
    kept = (tmp_path / "cut" / "member-1" / "model.json").stat().st_mtime_ns
    with pytest.raises(RunError, match=r"another train.ensemble"):
        train.fit(tiny(tmp_path / "cut", *SHORT, "train.ensemble=3"), data())
    cut = train.fit(settings, data())
    assert (cut / "member-1" / "model.json").stat().st_mtime_ns == kept
    assert (cut / "model.safetensors").read_bytes() == (classifier / "model.safetensors").read_bytes()
    with pytest.raises(RunError, match="is finished"):
        train.fit(settings, data())


def test_a_member_that_somebody_put_there_is_not_taken(tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    settings = tiny(tmp_path / "run", *SHORT)
    with monkeypatch.context() as patch:
        patch.setattr("deeplense.train.ensemble._finish", stopped)
        with pytest.raises(KeyboardInterrupt):
            train.fit(settings, data())
    shutil.rmtree(tmp_path / "run" / "member-2")
    shutil.copytree(tmp_path / "run" / "member-1", tmp_path / "run" / "member-2")
    with pytest.raises(RunError, match="member-2 was trained with another seed"):
        train.fit(settings, data())


def test_the_data_module_is_left_as_it_was(tmp_path):
    module = data()
    train.fit(tiny(tmp_path / "a", "train.ensemble=2", "train.epochs=1", "seed=0"), module)
    assert module.seed == 0


def test_settings_that_cannot_work_write_nothing(tmp_path):
    with pytest.raises(ConfigError, match=r"set train\.devices=1"):
        train.fit(tiny(tmp_path / "a", *SHORT, "train.devices=2"), data())
    with pytest.raises(ConfigError, match="add init=RUN"):
        train.fit(tiny(tmp_path / "a", *SHORT, "train.freeze=1"), data())
    assert not (tmp_path / "a").exists()


def test_progress_names_the_member(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        train.fit(tiny(tmp_path / "a", "train.ensemble=2", "train.epochs=1"), data())
    assert "member 2 of 2" in caplog.text
