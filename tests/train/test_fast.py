"""What makes training fast changes nothing but the time: images that are held, prepared once, read ahead, compiled."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from deeplense import train, weights
from deeplense.data.held import Held
from deeplense.data.module import LensDataModule, LensDataset
from deeplense.data.prefetch import Prefetched
from deeplense.data.rows import Rows
from deeplense.errors import RunError
from deeplense.simulate.generate import can_compile
from deeplense.tasks import get
from deeplense.train.callbacks import Keeper
from toy import data, finder_data, lens_set, tiny, tiny_diffusion, tiny_finder, write_folder

TURNS = ["augment.flips=true", "augment.quarter_turns=true"]
FLIPS = ["augment.flips=true", "augment.quarter_turns=false"]
PLAIN = [f"augment.{name}" for name in ("degrees=0", "translate=0", "scale=[1,1]", "shift=0", "blur=0", "noise=0")]


def held(config, images):
    """A task with its images held, and what it says to that."""
    task = train.build_task(config, images)
    train.hold(task, images, torch.device("cpu"))
    return task


@pytest.mark.parametrize("framing", [["model.crop=16"], ["model.crop=16", "model.size=8"], ["model.stretch=asinh"]])
def test_prepared_images_turned_are_turned_images_prepared(tmp_path, framing):
    config = tiny(tmp_path / "run", *PLAIN, *TURNS, *framing)
    images = data()
    task = held(config, images)
    assert task.is_prepared
    batch = next(iter(images.train_dataloader()))
    raw = LensDataset(images.train).__getitems__(batch["index"].tolist())
    torch.manual_seed(3)
    ahead = task.step(batch, task.augment(batch["image"]))
    task.is_prepared = False
    torch.manual_seed(3)
    usual = task.step(raw, task.augment(raw["image"]))
    torch.testing.assert_close(ahead["output"], usual["output"], rtol=1e-4, atol=1e-5)
    assert batch["label"].equal(raw["label"])


@pytest.mark.parametrize(
    "settings",
    [["augment.shift=2"], ["augment.noise=0.1"], ["augment.degrees=5"], ["augment.blur=0.5"], ["model.crop=17"]],
    ids=str,
)
def test_what_does_not_commute_is_done_batch_by_batch(tmp_path, settings):
    config = tiny(tmp_path / "run", "model.size=16", *PLAIN, *TURNS, *settings)
    images = data()
    task = held(config, images)
    assert not task.is_prepared
    batch = next(iter(images.train_dataloader()))
    np.testing.assert_array_equal(batch["image"], images.train.images[batch["index"]])


def test_a_diffusion_model_sees_the_same_images_either_way(tmp_path):
    config, images = tiny_diffusion(tmp_path / "run", *PLAIN, *TURNS), data()
    task = held(config, images)
    assert task.is_prepared
    batch = next(iter(images.val_dataloader()))
    raw = torch.from_numpy(images.val.images[batch["index"]])
    torch.testing.assert_close(batch["image"], task.preprocess(raw))


def test_truth_of_a_lens_forbids_it(tmp_path):
    for name in ("inversion", "lens-equation"):
        assert not get(name).prepares_ahead


def test_images_that_are_not_square_are_turned_only_where_they_always_could_be(tmp_path):
    images = LensDataModule(lens_set(24), lens_set(6, seed=9), 6)
    for part in (images.train, images.val):
        object.__setattr__(part, "images", np.ascontiguousarray(part.images[..., :20]))
    assert not held(tiny(tmp_path / "run", *PLAIN, *TURNS, "model.size=16"), images).is_prepared
    assert held(tiny(tmp_path / "run", *PLAIN, *FLIPS, "model.size=16"), images).is_prepared


def test_validation_images_of_another_size_are_held_as_they_are():
    images = LensDataModule(lens_set(24), lens_set(6, seed=9, size=30), 6)
    meta = [Held(s.images, s.images.shape[1:], torch.device("cpu"), None) for s in (images.train, images.val)]
    for part, whole in zip((images.train, images.val), meta, strict=True):
        np.testing.assert_array_equal(whole(np.arange(len(part))), part.images)


def test_a_set_that_does_not_fit_stays_where_it_is(tmp_path):
    images = data()
    task = held(tiny(tmp_path / "run", *PLAIN, *TURNS, "data.max_memory_gb=1e-6"), images)
    assert not task.is_prepared
    assert next(iter(images.train_dataloader()))["image"].shape[-1] == 24


def test_balanced_draws_are_the_same_images_whether_held_or_not(tmp_path):
    images = finder_data(balanced=True)
    before = [batch["index"] for batch in images.train_dataloader()]
    task = held(tiny_finder(tmp_path / "run", *PLAIN, *TURNS), images)
    assert task.is_prepared
    after = list(images.train_dataloader())
    assert all(a.equal(b["index"]) for a, b in zip(before, after, strict=True))
    label = torch.as_tensor(images.train.label)
    assert all(batch["label"].equal(label[batch["index"]]) for batch in after)


def test_two_members_of_an_ensemble_hold_the_set_anew(tmp_path):
    images, config = data(), tiny(tmp_path / "run", *PLAIN, *TURNS)
    held(config, images)
    other = held(tiny(tmp_path / "run", *PLAIN, *TURNS, "augment.noise=0.1"), images)
    assert not other.is_prepared  # and no images are left that were prepared for the first
    batch = next(iter(images.train_dataloader()))
    np.testing.assert_array_equal(batch["image"], images.train.images[batch["index"]])


def mapped(tmp_path, num=24):
    images = lens_set(num)
    np.save(tmp_path / "images.npy", images.images)
    rows = Rows(np.load(tmp_path / "images.npy", mmap_mode="c"), np.arange(num))
    return images, type(images)(rows, images.name, images.label, images.classes)


def test_images_on_a_disk_are_read_ahead_in_the_same_order(tmp_path):
    images, on_disk = mapped(tmp_path)
    loaders = [LensDataModule(s, lens_set(6, seed=9), 5, seed=1).train_dataloader() for s in (images, on_disk)]
    assert not isinstance(loaders[0], Prefetched) and isinstance(loaders[1], Prefetched)
    for epoch in (0, 1):
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        batches = [list(loader) for loader in loaders]
        assert len(batches[0]) == len(batches[1]) == len(loaders[1]) == 4
        for a, b in zip(*batches, strict=True):
            assert a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


def test_an_epoch_that_is_left_early_leaves_no_thread(tmp_path):
    import threading

    loader = LensDataModule(mapped(tmp_path)[1], lens_set(6, seed=9), 5, seed=1).train_dataloader()
    number = threading.active_count()
    batches = iter(loader)
    next(batches)
    assert threading.active_count() == number + 1
    batches.close()
    assert threading.active_count() == number


def test_a_disk_that_fails_is_an_error_of_the_epoch(tmp_path):
    loader = LensDataModule(mapped(tmp_path)[1], lens_set(6, seed=9), 5, seed=1).train_dataloader()
    loader.loader.dataset.lens_set.images.array = np.zeros(3)[:0]
    with pytest.raises(IndexError):
        list(loader)


def test_auto_is_half_precision_only_where_it_is_multiplied_and_borne(tmp_path):
    able = torch.cpu.get_capabilities()
    multiplies = bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    if torch.cuda.is_available():
        pytest.skip("this is about a CPU")
    config = tiny(tmp_path / "run", "train.precision=auto")
    task = train.build_task(config, data())
    assert train.precision(config, task) == ("bf16-mixed" if multiplies else "32-true")
    assert not get("inversion").half_precision
    task.half_precision = False
    assert train.precision(config, task) == "32-true"
    forced = tiny(tmp_path / "run", "train.precision=bf16-mixed")
    assert train.precision(forced, task) == "bf16-mixed"


def test_positions_are_not_rounded_by_half_precision(tmp_path):
    config = tiny(tmp_path / "run", *PLAIN, "augment.degrees=20", "augment.translate=0.1")
    augment, images = train.build_task(config, data()).augment, torch.rand(4, 1, 24, 24)
    found = []
    for is_half in (False, True):
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            found.append(augment.traced(images))
    assert all(a.equal(b) for a, b in zip(*found, strict=True))


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason="there is no compiler")
def test_a_compiled_network_learns_the_same_and_is_stored_the_same(tmp_path):
    settings = ["train.epochs=2", "train.ema=0.9"]
    runs = [
        train.fit(tiny(tmp_path / mode, *settings, f"train.compile={mode}"), data(), progress=False)
        for mode in ("no", "default")
    ]
    states = [weights.load(run) for run in runs]
    assert states[0].keys() == states[1].keys()
    for name, weight in states[0].items():
        torch.testing.assert_close(weight, states[1][name], rtol=1e-2, atol=1e-3)


def test_without_a_compiler_the_network_runs_as_it_is(tmp_path):
    folder = write_folder(lens_set(30), tmp_path / "set")
    command = [sys.executable, "-m", "deeplense.cli", "train", "tiny/substructure", f"data={folder}", "--quiet"]
    settings = [f"out={tmp_path / 'run'}", "train.epochs=1", "train.compile=default", "model.width=4"]
    alone = {"CXX": "no-compiler", "PATH": "", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    done = subprocess.run([*command, *settings], env={**os.environ, **alone}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("torch.compile does not work here") == 1 and "Traceback" not in done.stderr
    assert (tmp_path / "run" / "model.json").is_file()


@pytest.mark.parametrize("clip", [0, 1])
def test_clipping_and_half_precision_go_together(tmp_path, clip):
    settings = ["train.precision=bf16-mixed", f"train.clip={clip}", "train.epochs=1"]
    assert (train.fit(tiny(tmp_path / "run", *settings), data(), progress=False) / "model.json").is_file()


class GpuLike(torch.nn.Module):
    device = torch.device("cuda")


def test_on_a_gpu_losses_are_looked_at_now_and_then_and_the_first_bad_one_is_named(tmp_path):
    class Trainer:
        global_step, current_epoch = 0, 0

    keeper, trainer = Keeper(tmp_path, 0, 0, "score"), Trainer()
    losses = [1.0] * 20 + [float("nan")] + [1.0] * 29
    for batch, loss in enumerate(losses[:-1]):
        trainer.global_step = batch + 1
        keeper.on_train_batch_end(trainer, GpuLike(), {"loss": torch.tensor(loss)}, None, batch)
    trainer.global_step = 50
    with pytest.raises(RunError, match="not a number at step 21, batch 21 of epoch 1"):
        keeper.on_train_batch_end(trainer, GpuLike(), {"loss": torch.tensor(1.0)}, None, 49)
