import csv
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from deeplense import config, train, weights
from deeplense.data.rows import is_mapped
from deeplense.errors import ConfigError, DataError, ModelError, RunError
from deeplense.predict import Predictor
from deeplense.tasks import DiffusionTask
from deeplense.tasks.draw import draw
from deeplense.train import callbacks, folder
from toy import SETS, data, finder_data, lens_set, tiny, tiny_finder, write_folder


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train.fit(tiny(tmp_path_factory.mktemp("runs") / "a"), data())


def test_the_run_folder_holds_the_contract(run):
    assert {p.name for p in run.iterdir()} == {
        *("config.toml", "environment.json", "metrics.csv", "last.ckpt", "model.safetensors", "model.json")
    }
    assert config.load(str(run / "config.toml")) == tiny(run)
    facts = json.loads((run / "environment.json").read_text())
    assert facts["seed"] == 0 and facts["versions"]["torch"] and facts["data"] == data().fingerprint()
    card = weights.load_card(run)
    assert card["classes"] == ["no", "sphere", "vort"] and card["data"] == data().fingerprint()
    assert 0.05 <= card["calibration"]["temperature"] <= 20


def test_metrics_have_a_row_an_epoch_with_both_losses(run):
    found = rows(run)
    assert [row["epoch"] for row in found] == ["1", "2", "3"]
    losses = [float(row["train_loss"]) for row in found]
    assert losses[-1] < losses[0]
    assert all(float(row["val_loss"]) > 0 and 0 <= float(row["val_score"]) <= 1 for row in found)


def test_the_stored_model_is_the_best_epochs_and_predicts_what_was_validated(run):
    best = max(rows(run), key=lambda row: (float(row["val_score"]), -float(row["val_loss"])))
    predictor = Predictor.load(run, device="cpu")
    logits = predictor.outputs(data().val)
    label = torch.from_numpy(data().val.label)
    loss = torch.nn.functional.cross_entropy(logits, label).item()
    assert loss == pytest.approx(float(best["val_loss"]), rel=1e-4)
    assert weights.load_card(run)["scores"]["epoch"] == int(best["epoch"])


def test_a_finished_run_is_not_overwritten(run):
    with pytest.raises(RunError, match=r"a is finished: choose another out=, or delete it"):
        train.fit(tiny(run), data())


def test_the_same_seed_gives_the_same_bits_and_another_does_not(run, tmp_path):
    again = train.fit(tiny(tmp_path / "b"), data())
    other = train.fit(tiny(tmp_path / "c", "seed=1"), data())
    contents = [(r / "model.safetensors").read_bytes() for r in (run, again, other)]
    assert contents[0] == contents[1] != contents[2]


def test_averaged_weights_are_validated_and_stored_and_leave_training_alone(tmp_path):
    runs = [train.fit(tiny(tmp_path / f"ema-{decay}", f"train.ema={decay}"), data()) for decay in (0, 0.99)]
    losses = [[row["train_loss"] for row in rows(r)] for r in runs]
    scores = [[row["val_loss"] for row in rows(r)] for r in runs]
    assert losses[0] == losses[1] and scores[0] != scores[1]
    assert (runs[0] / "model.safetensors").read_bytes() != (runs[1] / "model.safetensors").read_bytes()


class _Stop(Callback):
    """What happens to a run in the middle of an epoch."""

    def __init__(self, error: BaseException, epoch: int) -> None:
        self.error, self.epoch = error, epoch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == 2:
            raise self.error


def interrupted(monkeypatch, settings, error, epoch, module=None):
    """Train until ``error`` is raised in the given epoch."""
    make = train._trainer

    def stopping(*args):
        trainer = make(*args)
        trainer.callbacks.append(_Stop(error, epoch))
        return trainer

    with monkeypatch.context() as patch:
        patch.setattr(train, "_trainer", stopping)
        return train.fit(settings, module or data())


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["train.ema=0", "optim.schedule=plateau", "optim.plateau_patience=0", "train.accumulate=4", "train.clip=0.5"],
        ["optim.schedule=cosine", "optim.warmup=0.2", "augment.degrees=10", "augment.blur=0.5", "augment.shift=2"],
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_bits(settings, tmp_path, monkeypatch):
    settings = ["train.epochs=5", *settings]
    whole = train.fit(tiny(tmp_path / "whole", *settings), data())
    for epoch in (0, 2, 4):
        with pytest.raises(ZeroDivisionError):
            interrupted(monkeypatch, tiny(tmp_path / "cut", *settings), ZeroDivisionError(), epoch)
    cut = train.fit(tiny(tmp_path / "cut", *settings), data())
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    untimed = [[{k: v for k, v in row.items() if k != "seconds"} for row in rows(r)] for r in (whole, cut)]
    assert untimed[0] == untimed[1]


def test_ctrl_c_says_what_is_kept_and_how_to_go_on(tmp_path, monkeypatch):
    import signal

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(RunError, match=r"stopped: 1 epochs are kept in .*; the same command continues"):
        interrupted(monkeypatch, tiny(tmp_path / "a"), KeyboardInterrupt(), epoch=1)
    assert signal.getsignal(signal.SIGINT) is handler
    assert len(rows(train.fit(tiny(tmp_path / "a"), data()))) == 3


def test_an_unfinished_run_with_other_settings_or_images_is_left_alone(tmp_path, monkeypatch):
    with pytest.raises(RunError):
        interrupted(monkeypatch, tiny(tmp_path / "a"), KeyboardInterrupt(), epoch=1)
    with pytest.raises(RunError, match=r"with another optim.lr: give the same settings"):
        train.fit(tiny(tmp_path / "a", "optim.lr=0.5"), data())
    with pytest.raises(RunError, match="are not those that"):
        train.fit(tiny(tmp_path / "a"), data(99))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="holds something that is not a run"):
        train.fit(tiny(tmp_path), data())
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_full_disk_is_one_line_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    settings, save = tiny(tmp_path / "a"), torch.save

    def full(checkpoint, file):
        if checkpoint["epoch"] == 1:
            file.write(b"the beginning of a checkpoint")
            raise OSError(28, "No space left on device")
        save(checkpoint, file)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.torch, "save", full)
        with pytest.raises(RunError, match=r"last.ckpt cannot be written: No space left on device"):
            train.fit(settings, data())
    assert torch.load(tmp_path / "a" / "last.ckpt", weights_only=True)["epoch"] == 0
    assert not list((tmp_path / "a").glob("*.tmp"))
    assert len(rows(train.fit(settings, data()))) == 3


def test_patience_stops_early_also_after_a_kill_before_the_end(tmp_path, monkeypatch):
    settings = tiny(tmp_path / "a", "train.epochs=50", "train.patience=2", "optim.lr=1e-9", "optim.schedule=constant")
    monkeypatch.setattr(train, "_finish", lambda *_: None)
    kept = rows(train.fit(settings, data()))
    best = max(range(len(kept)), key=lambda i: (float(kept[i]["val_score"]), -float(kept[i]["val_loss"])))
    assert len(kept) == best + 1 + 2 < 50
    monkeypatch.undo()
    finished = train.fit(settings, data())
    assert len(rows(finished)) == len(kept)
    assert weights.load_card(finished)["scores"]["epoch"] == best + 1


def test_pixels_that_are_missing_do_not_stop_a_run(tmp_path):
    holes = data()
    holes.train.images[5, :, :9] = np.nan
    holes.val.images[6] = np.inf
    found = rows(train.fit(tiny(tmp_path / "a"), holes))
    assert all(np.isfinite([float(row["train_loss"]), float(row["val_loss"])]).all() for row in found)


def test_loss_blown_up_says_what_to_do(tmp_path):
    with pytest.raises(RunError, match=r"choose a smaller optim\.lr"):
        train.fit(tiny(tmp_path / "a", "optim.lr=1e30", "train.ema=0", "optim.schedule=constant"), data())


def test_init_starts_from_the_weights_of_a_run(run, tmp_path):
    started = train.build_task(tiny(tmp_path / "a", f"model.init={run}"), data())
    stored = weights.load(run)
    assert all(torch.equal(weight, stored[name]) for name, weight in started.network.state_dict().items())
    with pytest.raises(ModelError, match="do not fit the network"):
        train.build_task(tiny(tmp_path / "a", f"model.init={run}", "model.width=8"), data())


def test_the_finder_sees_what_the_settings_make_of_rare_lenses(tmp_path, caplog):
    """One lens in four: a network that draws classes evenly, or weighs them evenly, has seen one in two."""
    shares = {}
    for balanced in (False, True):
        for weighted in (False, True):
            words = [f"data.balanced={str(balanced).lower()}", f"loss.class_weights={str(weighted).lower()}"]
            task = train.build_task(tiny_finder(tmp_path / "a", *words), finder_data(balanced=balanced))
            shares[balanced, weighted] = task.train_shares[1]
            assert ("count twice" in caplog.text) == (balanced and weighted)
            weights_of_classes = [2 / 3, 2.0] if weighted else [1.0, 1.0]
            np.testing.assert_allclose(task.class_weights, weights_of_classes, rtol=1e-6)
    # Both: drawn alike, and a lens counts three times as much.
    assert shares == pytest.approx(
        {(False, False): 1 / 4, (True, False): 1 / 2, (False, True): 1 / 2, (True, True): 3 / 4}
    )


def test_the_finder_finds_and_its_calibration_is_finite(tmp_path):
    run = train.fit(tiny_finder(tmp_path / "a", "model.width=8", "train.epochs=8"), finder_data(320))
    card = weights.load_card(run)
    assert card["scores"]["val_score_name"] == "average precision" and card["scores"]["val_score"] > 0.8
    assert np.isfinite(list(card["calibration"].values())).all()
    assert card["calibration"]["val_prevalence"] == 0.25


def test_moving_average_is_the_weighted_sum_of_the_past():
    update = callbacks._average_fn(0.9)
    averages, counter = [torch.zeros(1)], torch.tensor(0)
    means = [torch.zeros(1), counter]
    values = [torch.tensor([float(v)]) for v in (3, 1, 4, 1, 5)]
    expected = 0.0
    for n, value in enumerate(values, start=1):
        update(averages, [value], torch.tensor(n))
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value.item()
    assert averages[0].item() == pytest.approx(expected)
    update(means, [torch.ones(1), torch.tensor(7)], torch.tensor(1))
    assert counter.item() == 7, "counters are copied, not averaged"
    constant = [torch.tensor([0.1])]
    for n in range(1, 500):
        update(constant, [torch.tensor([0.1])], torch.tensor(n))
    assert constant[0].item() == torch.tensor([0.1]).item(), "what does not change stays to the bit"


def test_checkpoints_hold_plain_tensors_only(run):
    stored = torch.load(run / "last.ckpt", weights_only=True)
    assert set(stored["keeper"]) == {"rows", "best"}


@pytest.mark.parametrize("name", [n for n in config.names() if n.startswith("tiny/")])
def test_every_tiny_config_runs_from_a_folder_of_images(name, tmp_path, caplog):
    settings = config.load(name)
    make = SETS.get(settings.task, lens_set)
    images = write_folder(make(60, size=40), tmp_path / "images")
    settings = config.load(name, [f"data={images}", f"out={tmp_path / 'run'}"])
    if settings.task in ("inversion", "physics"):  # they learn from the truth of simulated lenses, which a folder lacks
        with pytest.raises(DataError, match="without 'theta_E' in their truth table"):
            train.fit(settings, train.load_data(settings))
        return
    with caplog.at_level(logging.INFO):
        run = train.fit(settings, train.load_data(settings))
    assert any("training images: " in record.message for record in caplog.records)
    assert len(rows(run)) == settings.train.epochs
    for kind in settings.train.export:
        exported = weights.load(run / f"weights.{kind}")
        assert all(torch.equal(weight, exported[key]) for key, weight in weights.load(run).items())
    if settings.task == "diffusion":
        assert len(draw(weights.load_task(run, DiffusionTask), 4)) == 4
    else:
        assert Predictor.load(run).predict(make(4, size=40)).num_rows == 4


def test_load_data_splits_by_class_and_thins_training_only(tmp_path):
    path = write_folder(lens_set(120), tmp_path / "all")
    settings = tiny(tmp_path / "run", f"data={path}", "data.val_fraction=0.25", "data.fraction=0.5")
    module = train.load_data(settings)
    assert module.train.class_counts() == {"no": 15, "sphere": 15, "vort": 15}
    assert module.val.class_counts() == {"no": 10, "sphere": 10, "vort": 10}
    assert not set(module.train.name) & set(module.val.name)
    assert train.load_data(settings).fingerprint() == module.fingerprint()
    whole = lens_set(120)
    place = {name: i for i, name in enumerate(whole.name)}
    for i, name in enumerate(module.train.name):
        np.testing.assert_array_equal(module.train.images[i], whole.images[place[Path(name).stem]])


def test_load_data_takes_given_splits_and_never_the_test_split(tmp_path):
    for i, name in enumerate(("train", "val", "test")):
        write_folder(lens_set(30, seed=i), tmp_path / "all" / name)
    module = train.load_data(tiny(tmp_path / "run", f"data={tmp_path / 'all'}"))
    assert {Path(n).stem.split("-")[1] for n in module.train.name} == {"0"}
    assert {Path(n).stem.split("-")[1] for n in module.val.name} == {"1"}
    write_folder(lens_set(30, seed=3), tmp_path / "other")
    named = tiny(tmp_path / "run", f"data={tmp_path / 'all'}", f"data.val={tmp_path / 'other'}")
    assert {Path(n).stem.split("-")[1] for n in train.load_data(named).val.name} == {"3"}


@pytest.mark.parametrize(("split", "message"), [("test", "test images, none to train on"), ("val", "val images, none")])
def test_a_folder_without_a_training_split_is_not_trained_on(split, message, tmp_path):
    write_folder(lens_set(30), tmp_path / "all" / split)
    with pytest.raises(DataError, match=message):
        train.load_data(tiny(tmp_path / "run", f"data={tmp_path / 'all'}"))


def test_validation_images_are_not_the_training_images(tmp_path):
    path = write_folder(lens_set(30), tmp_path / "all")
    with pytest.raises(DataError, match="validation images are the training images"):
        train.load_data(tiny(tmp_path / "run", f"data={path}", f"data.val={path}"))


def test_load_data_keeps_large_sets_on_disk(tmp_path):
    path = write_folder(lens_set(60), tmp_path / "all")
    module = train.load_data(tiny(tmp_path / "run", f"data={path}", "data.max_memory_gb=1e-6"))
    assert is_mapped(module.train.images) and is_mapped(module.val.images)


def test_load_data_without_images_or_labels(tmp_path):
    with pytest.raises(ConfigError, match="add data=DIR"):
        train.load_data(tiny(tmp_path / "run"))
    write_folder(replace(lens_set(9), classes=("x", "x", "x")), tmp_path / "flat")
    with pytest.raises(DataError, match="has no labels"):
        train.load_data(tiny(tmp_path / "run", f"data={tmp_path / 'flat' / 'x'}"))


def test_check_free_needs_no_images(run):
    with pytest.raises(RunError, match="is finished"):
        folder.check_free(tiny(run))


def test_an_unknown_logger_package_says_what_to_install(tmp_path, monkeypatch):
    from lightning.pytorch import loggers

    def missing(*_, **__):
        raise ModuleNotFoundError("No module named 'wandb'")

    monkeypatch.setattr(loggers, "WandbLogger", missing)
    with pytest.raises(ConfigError, match=r"pip install 'deeplense\[wandb\]'"):
        train.fit(tiny(tmp_path / "a", "train.loggers=['wandb']"), data())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match=r"train\.accelerator=gpu, devices=1: "):
        train.fit(tiny(tmp_path / "a", "train.accelerator=gpu"), data())


def test_tensorboard_by_name(tmp_path):
    pytest.importorskip("tensorboard")
    run = train.fit(tiny(tmp_path / "a", "train.loggers=['tensorboard']", "train.epochs=1"), data())
    assert list(run.glob("events.out.tfevents.*"))
