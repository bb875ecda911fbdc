import json
import time
from dataclasses import astuple

import pytest
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn

from deeplense import config, train
from deeplense.data.module import LensDataModule
from deeplense.data.transform import Augment
from deeplense.errors import ConfigError, RunError
from deeplense.tasks import TASKS
from deeplense.tasks.substructure import SubstructureTask
from deeplense.train import profile as profiling
from deeplense.train.profile import PARTS, WARM_UP, profile
from toy import data, finder_data, lens_set, tiny, tiny_diffusion, tiny_finder

# Milliseconds that the slow task and its images take in each place.
COSTS = {
    "batch": 1,
    "augment": 2,
    "prepare": 4,
    "step": 8,
    "backward": 16,
    "zero_grad": 32,
    "clip": 64,
    "update": 128,
    "average": 256,
    "batch_end": 512,
}
# Where they belong.
PLACES = {
    "data": ["batch"],
    "augment": ["augment", "prepare"],
    "forward": ["step"],
    "backward": ["backward"],
    "optimiser": ["zero_grad", "clip", "update", "average"],
    "other": ["batch_end"],
}


class Slow:
    """What takes the time: each place calls it by its name."""

    def __init__(self, take):
        self.take = take
        self.marks = []

    def __call__(self, place):
        self.take(COSTS[place] / 1000)


class SlowLayer(nn.Module):
    def __init__(self, inner, slow, place):
        super().__init__()
        self.inner, self.slow, self.place = [inner], slow, place

    def forward(self, images):
        self.slow(self.place)
        return self.inner[0](images)


class SlowTask(SubstructureTask):
    """A task whose parts take known times."""

    prepares_ahead = False
    slow: Slow

    def __init__(self, *args):
        super().__init__(*args)
        self.augment = SlowLayer(self.augment, self.slow, "augment")
        self.preprocess = SlowLayer(self.preprocess, self.slow, "prepare")

    def step(self, batch, images):
        self.slow("step")
        columns = super().step(batch, images)
        columns["loss"].register_hook(lambda gradient: self.slow("backward"))
        return columns

    def configure_optimizers(self):
        found = super().configure_optimizers()
        found["optimizer"].register_step_post_hook(lambda *_: self.slow("update"))
        return found

    def optimizer_zero_grad(self, *args):
        self.slow("zero_grad")
        self.slow.marks.append(("zero_grad", time.perf_counter()))
        super().optimizer_zero_grad(*args)

    def configure_gradient_clipping(self, *args, **options):
        self.slow("clip")

    def on_train_batch_end(self, *_):
        self.slow.marks.append(("batch_end", time.perf_counter()))
        self.slow("batch_end")


class SlowData(LensDataModule):
    """Batches that take a known time."""

    slow: Slow

    def train_dataloader(self):
        loader = super().train_dataloader()
        loader.collate_fn = self._slowly
        return loader

    def _slowly(self, batch):
        self.slow("batch")
        return batch


@pytest.fixture
def slowly(monkeypatch):
    """Profile the slow task, its time taken by a function."""

    def run(take, steps, *settings):
        slow = Slow(take)
        kind = type("Slowest", (SlowTask,), {"slow": slow})
        monkeypatch.setitem(TASKS, "slow", kind)

        def average(averages, *_):
            if averages[0].is_floating_point():  # counters come in a call of their own
                slow("average")

        monkeypatch.setattr(train, "average", lambda decay: WeightAveraging(multi_avg_fn=average))
        images = SlowData(lens_set(192, seed=1), lens_set(48, seed=2), 16)
        images.slow = slow
        found = profile(tiny("nowhere", "task=slow", "train.ema=0.5", *settings), images, steps)
        return found, slow.marks

    return run


@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_part_is_charged_for_what_happens_in_it_and_for_nothing_else(accumulate, slowly, monkeypatch):
    """By a clock that only the parts move: all of the time must be found again, each piece in its place."""
    now = [0.0]

    def take(seconds):
        now[0] += seconds

    monkeypatch.setattr(profiling, "perf_counter", lambda: now[0])
    found, _ = slowly(take, 4, f"train.accumulate={accumulate}")
    expected = {part: sum(COSTS[place] for place in places) for part, places in PLACES.items()}
    expected["optimiser"] /= accumulate
    assert {part.name: part.ms for part in found.parts} == pytest.approx(expected)
    assert found.ms == pytest.approx(sum(expected.values()))
    assert [part.share for part in found.parts] == pytest.approx([ms / found.ms for ms in expected.values()])


def test_parts_add_up_to_the_time_that_passes(slowly):
    """By the true clock: more than passes between two moments inside of the measured steps, less than around them."""
    steps = 3
    found, marks = slowly(lambda seconds: time.sleep(seconds / 10), steps)
    zeroed, ended = ([at for name, at in marks if name == wanted] for wanted in ("zero_grad", "batch_end"))
    first, last = WARM_UP - 1, WARM_UP + steps - 1
    assert zeroed[last] - ended[first] < found.ms * steps / 1000 < ended[last] - zeroed[first]
    for part in found.parts:
        assert part.ms >= sum(COSTS[place] for place in PLACES[part.name]) / 10


RUNS = {
    "substructure": (tiny, data),
    "finder": (tiny_finder, finder_data),
    "diffusion": (tiny_diffusion, data),
    "lens-equation": (
        lambda out, *more: config.load("tiny/brief-physics", [f"out={out}", "model.width=4", *more]),
        data,
    ),
    "inversion": (lambda out, *more: config.load("tiny/inversion", [f"out={out}", "model.width=4", *more]), None),
}


@pytest.mark.parametrize("name", [name for name in TASKS if name != "physics"])
def test_every_task_is_profiled_and_nothing_is_left_of_it(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, images = RUNS[name]
    settings = make("run", "train.epochs=1", "train.loggers=['tensorboard']")
    assert settings.task == name
    found = profile(settings, images() if images else train.load_data(settings), 2)
    assert (found.device, found.steps, found.images) == ("cpu", 2, settings.data.batch_size)
    assert tuple(part.name for part in found.parts) == tuple(PARTS)
    assert all(part.ms > 0 for part in found.parts)
    assert sum(part.share for part in found.parts) == pytest.approx(1)
    times = [operator.ms for operator in found.operators]
    assert len(times) == 10 and times == sorted(times, reverse=True) and min(times) > 0
    assert sum(operator.share for operator in found.operators) <= 1
    assert not list(tmp_path.iterdir())


def test_lens_equation_traces_its_changes_in_their_part(tmp_path, monkeypatch):
    """They do not come by a call of the module."""
    now = [0.0]
    make, images = RUNS["lens-equation"]
    monkeypatch.setattr(profiling, "perf_counter", lambda: now[0])
    change = Augment.traced

    def slow(augment, images):
        now[0] += 1.0
        return change(augment, images)

    monkeypatch.setattr(Augment, "traced", slow)
    found = profile(make(tmp_path / "run"), images(), 2)
    assert {part.name: part.ms for part in found.parts} == {name: 1000.0 * (name == "augment") for name in PARTS}


def test_operators_are_counted_by_the_step(tmp_path):
    settings = tiny(tmp_path / "run")
    layers = [m for m in train.build_task(settings, data()).network.modules() if isinstance(m, nn.Conv2d)]
    calls = {operator.name: operator.calls for operator in profile(settings, data(), 3).operators}
    assert calls["aten::convolution_backward"] == len(layers)


@pytest.mark.parametrize(
    "settings",
    [
        ["optim.schedule=plateau"],
        ["optim.schedule=onecycle", "train.epochs=1"],
        ["train.ensemble=2"],
        ["train.patience=1", "train.accumulate=4", "train.clip=0.5", "train.ema=0"],
    ],
)
def test_runs_of_all_kinds_last_long_enough(settings, tmp_path):
    found = profile(tiny(tmp_path / "run", *settings), data(32), 7)  # two batches an epoch
    assert found.steps == 7 and found.images == 16


def test_what_comes_after_frozen_epochs_is_profiled(tmp_path):
    for epochs, freeze, left in ((20, 3, 0), (3, 3, 3)):
        settings = tiny(tmp_path / "run", f"train.epochs={epochs}", f"train.freeze={freeze}")
        assert profiling._short(settings, tmp_path, 20).train.freeze == left


def test_the_trace_holds_the_parts_of_each_recorded_step(tmp_path):
    trace = tmp_path / "trace.json"
    profile(tiny(tmp_path / "run"), data(), 2, trace)
    events = json.loads(trace.read_text())["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert {part: names.count(part) for part in ("data", "forward", "backward")} == {
        "data": 4,  # the batch is fetched, and copied
        "forward": 2,
        "backward": 2,
    }
    before = trace.read_bytes()
    with pytest.raises(RunError, match=r"trace\.json exists and is never overwritten"):
        profile(tiny(tmp_path / "run"), data(), 2, trace)
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"] and trace.read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "steps", "trace", "message"),
    [
        (["train.devices=2"], 2, None, "set train.devices=1"),
        (["task=physics"], 2, None, "add task=substructure"),
        ([], 0, None, "steps=0"),
        ([], 2, "trace.pt", "does not end in .json"),
    ],
)
def test_what_cannot_be_profiled_says_what_can(settings, steps, trace, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        profile(tiny(tmp_path / "run", *settings), data(), steps, trace and tmp_path / trace)


def test_a_classifier_of_a_physics_run_is_profiled_as_its_refusal_says():
    settings = config.load("tiny/physics", ["task=substructure", "model.width=4"])
    assert profile(settings, train.load_data(settings), 1).steps == 1


def test_a_loss_that_is_no_number_is_one_line(tmp_path):
    settings = tiny(tmp_path / "run", "optim.lr=1e30", "train.ema=0", "optim.schedule=constant")
    with pytest.raises(RunError, match="not a number"):
        profile(settings, data(), 20)


def test_a_profile_is_plain_numbers(tmp_path):
    found = profile(tiny(tmp_path / "run"), data(), 1)
    assert json.loads(json.dumps(astuple(found)))[0] == "cpu"
    assert not found.is_synchronised
