"""From nothing to a judged run, and every shipped config on a handful of images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import deeplense as dl
from deeplense import config as configs
from deeplense import demo
from deeplense.simulate.stream import simulated_set
from toy import finder_set, write_folder

FEW = ["data.num=96", "data.num_val=48", "data.batch_size=24", "data.strength=[1.0]"]
# The JSON of a ResNet-50 has 580 MB: that export is tested on the tiny form of the brief's config. Tests reach no hub.
SMALL = [*FEW, "train.epochs=1", "train.export=[]", "data.compile=false", "model.pretrained=false"]


PRESETS = {
    "substructure": ("common-test", "published"),
    "finder": ("hsc-gri", "physical"),
    "lens-equation": ("common-test", "published"),
    "diffusion": ("common-test", "published"),
}
CLASSES = {"substructure": ["no", "sphere", "vort"], "finder": ["nonlens", "lens"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of images for each task."""
    return {
        task: write_folder(simulated_set(*preset, 7, 96), tmp_path_factory.mktemp(task))
        for task, preset in PRESETS.items()
    }


@pytest.fixture(scope="module")
def finder(folders, tmp_path_factory):
    """A finder of other images, to start from."""
    out = tmp_path_factory.mktemp("runs") / "finder"
    settings = configs.load("tiny/finder", [f"data={folders['finder']}", f"out={out}", "train.epochs=1"])
    return dl.fit(settings, dl.load_data(settings), progress=False)


@pytest.mark.parametrize("name", [name for name in configs.names() if not name.startswith("tiny/")])
def test_every_shipped_config_trains(name, folders, finder, tmp_path):
    settings = configs.load(name, [*SMALL, f"out={tmp_path / 'run'}"])
    more = [f"init={finder}"] if settings.train.freeze else []
    if settings.data.path is None:
        # A tenth of 96 images would leave classes empty.
        more += [f"data={folders[settings.task]}", "data.fraction=1.0"]
    settings = configs.load(name, [*SMALL, f"out={tmp_path / 'run'}", *more])
    run = dl.fit(settings, dl.load_data(settings), progress=False)
    card = json.loads((run / "model.json").read_text())
    assert card["classes"] == CLASSES.get(settings.task, CLASSES["substructure"])
    assert np.isfinite(card["scores"]["val_loss"])


def test_the_demo_goes_all_the_way_and_repeats_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(demo.CHAPTERS, "substructure", replace(demo.CHAPTERS["substructure"], num_test=48))
    metrics = demo.run(tmp_path, [*SMALL, "model.width=12"], progress=False)
    assert 0 <= metrics["auc_macro"]["low"] <= metrics["auc_macro"]["value"] <= metrics["auc_macro"]["high"] <= 1
    trained = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    assert demo.run(tmp_path, [*SMALL, "model.width=12"], progress=False) == metrics
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == trained


def test_the_demo_finds_rare_lenses(tmp_path, monkeypatch):
    monkeypatch.setitem(demo.CHAPTERS, "finder", replace(demo.CHAPTERS["finder"], num_test=96))
    metrics = demo.run(tmp_path, SMALL, progress=False, chapter="finder")
    assert metrics["n"] == 96 and 0 < metrics["n_lenses"] < 20
    assert 0 <= metrics["auc"]["low"] <= metrics["auc"]["value"] <= metrics["auc"]["high"] <= 1
    assert (tmp_path / "finder" / "report.html").is_file()
    trained = (tmp_path / "finder" / "model.safetensors").stat().st_mtime_ns
    assert demo.run(tmp_path, SMALL, progress=False, chapter="finder") == metrics
    assert (tmp_path / "finder" / "model.safetensors").stat().st_mtime_ns == trained


def test_the_demo_draws_new_lenses(tmp_path, monkeypatch):
    monkeypatch.setitem(demo.CHAPTERS, "diffusion", replace(demo.CHAPTERS["diffusion"], num_test=96))
    metrics = demo.run(tmp_path, SMALL, progress=False, chapter="diffusion")
    assert metrics["n"] == 48 and metrics["fidelity"]["scores"]["ring_radius"]["value"] > 0
    assert (tmp_path / "diffusion" / "samples" / "epoch-0001.png").is_file()
    page = (tmp_path / "diffusion" / "report.html").read_text()
    assert "Side by side" in page
    trained = (tmp_path / "diffusion" / "model.safetensors").stat().st_mtime_ns
    assert demo.run(tmp_path, SMALL, progress=False, chapter="diffusion")["fidelity"] == metrics["fidelity"]
    assert (tmp_path / "diffusion" / "model.safetensors").stat().st_mtime_ns == trained


def test_scores_on_images_of_training_come_with_a_warning(tmp_path, caplog):
    settings = configs.load("tiny/common-test", [f"out={tmp_path / 'run'}", "train.epochs=1"])
    run = dl.fit(settings, dl.load_data(settings), progress=False)
    seen = simulated_set("common-test", "published", settings.data.seed, 48)
    unseen = simulated_set("common-test", "published", settings.data.seed + 1, 48)
    dl.judge(run, unseen, tmp_path, bootstrap=10)
    assert "were used in training" not in caplog.text
    dl.judge(run, seen, tmp_path, bootstrap=10)
    assert "were used in training" in caplog.text


def test_a_network_learns_what_is_there(tmp_path):
    """Ten times too massive substructure is plain to see: a minute's network must tell it apart."""
    changes = ["data.strength=[10.0]", "data.num=960", "data.num_val=240", "train.epochs=3", "model.width=24"]
    settings = configs.load("tiny/common-test", [*changes, f"out={tmp_path / 'run'}"])
    run = dl.fit(settings, dl.load_data(settings), progress=False)
    assert json.loads((run / "model.json").read_text())["scores"]["val_score"] > 0.75


def test_the_briefs_folders_of_lenses_are_trained_on_and_their_test_part_is_left_alone(tmp_path):
    """train_lenses, train_nonlenses, test_lenses, test_nonlenses, as the notebook has them."""
    for seed, part in ((1, "train"), (2, "test")):
        images = finder_set(80, seed, channels=3)
        write_folder(replace(images, classes=(f"{part}_nonlenses", f"{part}_lenses")), tmp_path / "images")
    settings = configs.load("tiny/brief-finder", [f"data={tmp_path / 'images'}", f"out={tmp_path / 'run'}"])
    module = dl.load_data(settings)
    assert {Path(name).stem.split("-")[1] for name in [*module.train.name, *module.val.name]} == {"1"}
    run = dl.fit(settings, module, progress=False)
    assert json.loads((run / "model.json").read_text())["classes"] == ["nonlenses", "lenses"]
    test = dl.read(tmp_path / "images", split="test")
    table = dl.Predictor.load(run).predict(test)
    assert table.num_rows == 80 and "p_lenses" in table.column_names
    assert roc_auc_score(test.label, table["score"]) > 0.9


def test_genuine_lens_finding_images_are_trained_on_and_predicted(shared_data, tmp_path):
    folder = shared_data / "lens-finding-figures"
    settings = configs.load("tiny/finder", [f"data={folder}", f"out={tmp_path / 'run'}"])
    run = dl.fit(settings, dl.load_data(settings), progress=False)
    images = dl.read(folder, split="train")
    assert images.images.shape == (38, 3, 64, 64)
    table = dl.Predictor.load(run).predict(images)
    assert np.isfinite(table["score"].to_numpy()).all() and max(table["nan_fraction"].to_pylist()) == 0


def test_genuine_deeplense_files_are_read_and_predicted(shared_data, tmp_path):
    settings = configs.load("tiny/common-test", [f"out={tmp_path / 'run'}", "train.epochs=1"])
    predictor = dl.Predictor.load(dl.fit(settings, dl.load_data(settings), progress=False))
    files = sorted((shared_data / "deeplense-singles").rglob("*.npy"))
    assert files
    for file in files:
        table = predictor.predict(dl.read(file))
        total = sum(table[f"p_{name}"][0].as_py() for name in predictor.classes)
        assert total == pytest.approx(1, abs=1e-5), file
