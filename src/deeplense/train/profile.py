"""Where the time of a training step goes: a few steps, by the clock and under torch.profiler, and then forgotten."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning as L
import torch
from lightning.pytorch.profilers import Profiler
from torch.autograd import DeviceType
from torch.profiler import record_function

from deeplense.config import Config
from deeplense.data.files import check_new_file, replacing
from deeplense.data.module import LensDataModule
from deeplense.errors import ConfigError
from deeplense.train import _compile, _quiet, _trainer, build_task, hold
from deeplense.train.callbacks import Keeper
from deeplense.train.start import adopt

# The parts of a step, and what is in each.
PARTS = {
    "data": "next batch, copy to the device",
    "augment": "random changes, preparation",
    "forward": "network and loss",
    "backward": "gradients",
    "optimiser": "step, clipping, averaged weights",
    "other": "callbacks, logging, Lightning itself",
}
# What Lightning calls the moments at which another part begins, without the name of the class in front.
_PART_OF = {
    "train_dataloader_next": "data",
    "batch_to_device": "data",
    "augment": "augment",
    "training_step": "forward",
    "backward": "backward",
    "optimizer_step": "optimiser",
    "optimizer_zero_grad": "optimiser",
    "lr_scheduler_step": "optimiser",
}
WARM_UP = 3  # steps before the clock runs: memory is allocated, kernels are chosen, networks compiled
TRACED = 5  # steps under torch.profiler, at most: it slows what it watches, and its trace grows by megabytes
NUM_OPERATORS = 10
TRACE = "trace.json"


@dataclass(frozen=True)
class Part:
    """A part of a training step: its name (see ``PARTS``), milliseconds a step, and share of the step."""

    name: str
    ms: float
    share: float


@dataclass(frozen=True)
class Operator:
    """A torch operator: calls a step, milliseconds a step in it alone, and share of what all operators take."""

    name: str
    calls: float
    ms: float
    share: float


@dataclass(frozen=True)
class Profile:
    """Where the time of a training step went.

    Attributes:
        device: where the network was trained, such as "cpu" or "cuda".
        steps: how many were measured; each is one batch.
        images: in a step, the mean.
        parts: all of ``PARTS``, in their order. Their times add up to that of a step.
        operators: those that take most of the time, the first one most; of the device where there is one, else of the
            CPU. They come from other steps than the parts, which torch.profiler slows.
    """

    device: str
    steps: int
    images: float
    parts: tuple[Part, ...]
    operators: tuple[Operator, ...]

    @property
    def ms(self) -> float:
        """Milliseconds a step."""
        return sum(part.ms for part in self.parts)

    @property
    def is_synchronised(self) -> bool:
        """Whether each part waited for the device at its end, so that a step took longer than in training."""
        return self.device != "cpu"


def profile(config: Config, data: LensDataModule, steps: int = 20, trace: Path | None = None) -> Profile:
    """Train what ``config`` says on ``data`` for a few steps and say where their time went; nothing else is kept.

    After ``WARM_UP`` steps, ``steps`` are measured by the clock, and a few more are recorded by torch.profiler. Nothing
    is validated, no logger is called, and the run folder is not touched. Of an ensemble, the first network is trained;
    of a run with ``train.freeze``, what comes after it.

    Args:
        trace: new file for the recorded steps, in the format of Chrome's chrome://tracing and of ui.perfetto.dev.

    Raises:
        ConfigError: the run trains in stages or on several devices, or ``steps`` is below 1.
        RunError: ``trace`` exists or cannot be written, or the loss is not a number.
    """
    check(config, steps, trace)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        short = _short(adopt(config), Path(folder), steps)
        L.seed_everything(short.seed, verbose=False)
        task = build_task(short, data, (0, config.train.ensemble))
        watch = _Watch(short, steps)
        trainer = _trainer(short, task, watch, progress=False, profiler=watch.clock, limit_val_batches=0)
        hold(task, data, trainer.strategy.root_device)
        data.fetch()  # what the first steps of a training do once is not typical of a step
        _compile(task)
        trainer.fit(task, datamodule=data)
    if trace is not None:
        with replacing(trace) as temporary:
            watch.recorder.export_chrome_trace(str(temporary))
    return watch.result()


def check(config: Config, steps: int = 1, trace: Path | None = None) -> None:
    """Refuse what cannot be profiled; cheap, before any data is read.

    Raises:
        ConfigError: the run trains in stages or on several devices, ``steps`` is below 1, or ``trace`` is no .json.
        RunError: ``trace`` exists, or its folder does not.
    """
    if steps < 1:
        raise ConfigError(f"steps={steps}: measure one step or more")
    if config.task == "physics":
        raise ConfigError(
            "a physics run trains in stages: profile the config inversion for its inverter, and add task=substructure "
            "for its classifier"
        )
    if config.train.devices > 1:
        raise ConfigError(f"train.devices={config.train.devices}: one device is profiled, set train.devices=1")
    if trace is not None and trace.suffix != ".json":
        raise ConfigError(f"--out {trace} does not end in .json, which is what a trace is written as")
    if trace is not None:
        check_new_file(trace)


def _short(config: Config, folder: Path, steps: int) -> Config:
    """The settings of a run that leaves no traces and lasts long enough."""
    train = config.train
    epochs = max(train.epochs, WARM_UP + steps + TRACED)  # schedules end with the last epoch, which may have one step
    freeze = train.freeze if train.freeze >= train.epochs else 0
    changes = {"epochs": epochs, "freeze": freeze, "ensemble": 1, "loggers": []}
    optim = config.optim
    if optim.schedule == "plateau":  # it waits for validation scores
        optim = optim.model_copy(update={"schedule": "constant"})
    return config.model_copy(
        update={"out": str(folder / "run"), "train": train.model_copy(update=changes), "optim": optim}
    )


class _Clock(Profiler):
    """Lightning's profiler interface: charges every moment to the part that began last and has not ended yet.

    In this way the parts add up to all of the time. What runs on a GPU is waited for where one part follows another:
    the time would be charged to whoever happens to wait for it otherwise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.device = torch.device("cpu")
        self._open: list[tuple[str, record_function | None]] = []
        self._since: float | None = None  # the last time that something was charged; None while nothing is measured

    @property
    def part(self) -> str:
        """The one that time is charged to."""
        return self._open[-1][0] if self._open else "other"

    def start(self, action_name: str) -> None:
        before, part = self.part, _part_of(action_name, self.part)
        record = None
        if part != before:
            self._charge(before)
            # For torch.profiler; among measured steps it would cost a few per cent of a short one.
            record = record_function(part).__enter__() if self._since is None else None
        self._open.append((part, record))

    def stop(self, action_name: str) -> None:
        part, record = self._open.pop()
        if part != self.part:
            self._charge(part)
        if record is not None:
            record.__exit__(None, None, None)

    def run(self) -> None:
        """Begin to measure."""
        self._wait()
        self._since = perf_counter()

    def halt(self) -> None:
        """No longer measure."""
        self._charge(self.part)
        self._since = None

    def _charge(self, part: str) -> None:
        if self._since is None:
            return
        self._wait()
        now = perf_counter()
        self.seconds[part] += now - self._since
        self._since = now

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


def _part_of(action: str, around: str) -> str:
    """The part that one of Lightning's actions belongs to, such as "[Strategy]SingleDeviceStrategy.backward"."""
    if action.startswith("[Callback]"):
        return "optimiser" if action == "[Callback]WeightAveraging.on_train_batch_end" else "other"
    return _PART_OF.get(action.rpartition(".")[2], around)


class _Watch(Keeper):
    """Starts and stops clock and recorder after so many steps; keeps nothing, but stops at a loss that is no number."""

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__(Path(config.out), config.seed, patience=0, score_name="")
        self.clock, self.recorder = _Clock(), torch.profiler.profile()
        self.steps, self.traced = steps, min(steps, TRACED)
        self.done = self.images = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.clock.device = trainer.strategy.root_device
        for module in (pl_module.augment, pl_module.preprocess):
            module.register_forward_pre_hook(lambda *_: self.clock.start("augment"))
            module.register_forward_hook(lambda *_: self.clock.stop("augment"))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.done += 1
        measured = self.done - WARM_UP
        self.images += len(batch["image"]) if 0 < measured <= self.steps else 0
        if measured == 0:
            self.clock.run()
        if measured == self.steps:
            self.clock.halt()
            self.recorder.start()
        if measured == self.steps + self.traced:
            self.recorder.stop()
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing is kept of an epoch."""

    def result(self) -> Profile:
        """What was measured."""
        seconds = self.clock.seconds
        whole = sum(seconds.values())
        parts = tuple(Part(name, 1e3 * s / self.steps, s / whole) for name, s in seconds.items())
        device = self.clock.device.type
        operators = _operators(self.recorder.key_averages(), device, self.traced)
        return Profile(device, self.steps, self.images / self.steps, parts, operators)


def _operators(events: Iterable[Any], device: str, steps: int) -> tuple[Operator, ...]:
    """The operators with the largest self time: of the kernels that they start, where there is a GPU."""
    # Kernels have rows of their own as well, and annotations such as our parts are no operators.
    rows = [e for e in events if e.device_type == DeviceType.CPU and not e.is_user_annotation]
    microseconds = {e.key: e.self_device_time_total if device == "cuda" else e.self_cpu_time_total for e in rows}
    whole = sum(microseconds.values()) or 1.0
    first = sorted(rows, key=lambda e: -microseconds[e.key])[:NUM_OPERATORS]
    return tuple(
        Operator(e.key, e.count / steps, 1e-3 * microseconds[e.key] / steps, microseconds[e.key] / whole) for e in first
    )
