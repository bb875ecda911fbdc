"""fit(config, data): Lightning's Trainer, a run folder, exact resume. The same command again continues."""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from deeplense.config import Config
from deeplense.data import memory
from deeplense.data.module import LensDataModule
from deeplense.errors import ConfigError, RunError
from deeplense.simulate.generate import can_compile
from deeplense.tasks import LensTask
from deeplense.train import folder
from deeplense.train.build import build_task
from deeplense.train.callbacks import AtomicCheckpointIO, Keeper, average
from deeplense.train.ensemble import fit_ensemble
from deeplense.train.folder import check_free
from deeplense.train.grid import SampleGrid
from deeplense.train.load import load_data
from deeplense.train.physics import fit_physics
from deeplense.train.start import ALONE, Place, adopt

__all__ = ["build_task", "check_free", "fit", "hold", "load_data", "precision"]

logger = logging.getLogger(__name__)


def fit(config: Config, data: LensDataModule, progress: bool = True) -> Path:
    """Train what ``config`` says on ``data``; returns the run folder. The same call again continues a stopped run.

    Raises:
        RunError: the folder is in the way, training was stopped, or the disk is full.
    """
    config = adopt(config)
    check_free(config)
    fit_run = partial(_fit_run, progress=progress)
    if config.task == "physics":
        return fit_physics(config, data, fit_run, progress)
    return fit_run(config, data) if config.train.ensemble == 1 else fit_ensemble(config, data, fit_run)


def _fit_run(config: Config, data: LensDataModule, place: Place = ALONE, *, progress: bool) -> Path:
    """Train one network; ``place`` says which member of an ensemble it is."""
    run = Path(config.out)
    check_free(config)
    L.seed_everything(config.seed, verbose=False)
    task = build_task(config, data, place)
    keeper = Keeper(run, config.seed, config.train.patience, task.score_name)
    with _quiet(), _stopping(run, keeper):
        trainer = _trainer(config, task, keeper, progress)
        checkpoint = folder.prepare(config, data)  # nothing is written for settings that cannot work
        hold(task, data, trainer.strategy.root_device)
        _compile(task)
        trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        if trainer.is_global_zero:
            _finish(task.to(trainer.strategy.root_device), data, keeper)
    return run


def hold(task: LensTask, data: LensDataModule, device: torch.device) -> None:
    """Images of ``data`` where the task is trained and, if they may be, as its network wants them."""
    memory.keep_freed()
    prepare = task.preprocess.to(device) if task.may_prepare_ahead else None
    task.is_prepared = data.hold(device, prepare, task.config.data.max_memory_gb)


def _compile(task: LensTask) -> None:
    mode = task.config.train.compile
    if mode != "no" and can_compile():
        task.network.compile(mode=mode)


def _trainer(config: Config, task: LensTask, keeper: Keeper, progress: bool, **options: Any) -> L.Trainer:
    train = config.train
    torch.set_float32_matmul_precision("high")  # TF32 where a GPU has it; nothing changes on a CPU
    callbacks: list[Callback] = [*_grids(config), *([average(train.ema)] if train.ema else [])]
    show = progress and sys.stdout.isatty()
    try:
        return L.Trainer(
            accelerator=train.accelerator,
            devices=train.devices,
            strategy=_strategy(config),
            precision=precision(config, task),
            max_epochs=train.epochs,
            accumulate_grad_batches=train.accumulate,
            gradient_clip_val=train.clip or None,
            callbacks=[*callbacks, keeper, *([RichProgressBar(leave=False)] if show else [])],
            plugins=[AtomicCheckpointIO()],
            logger=_loggers(config),
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_progress_bar=show,
            use_distributed_sampler=False,
            **options,
        )
    except MisconfigurationException as error:
        raise ConfigError(f"train.accelerator={train.accelerator}, devices={train.devices}: {error}") from error


def _grids(config: Config) -> list[Callback]:
    """What shows samples while a diffusion model trains."""
    every = config.diffusion.grid_every if config.task == "diffusion" else 0
    return [SampleGrid(Path(config.out), every, config.seed)] if every else []


def _strategy(config: Config) -> str:
    if config.train.devices == 1:
        return "auto"
    # While most of the network is frozen, its gradients do not come, and nobody should wait for them.
    return "ddp_find_unused_parameters_true" if config.train.freeze else "ddp"


def precision(config: Config, task: LensTask) -> Any:
    """Half precision where the device multiplies it faster and the task bears it (docs/performance.md)."""
    train = config.train
    if train.precision != "auto":
        return train.precision
    on_gpu = train.accelerator in ("auto", "gpu") and torch.cuda.is_available()
    multiplies = torch.cuda.is_bf16_supported() if on_gpu else _cpu_multiplies_bf16()
    return "bf16-mixed" if multiplies and task.half_precision else "32-true"


def _cpu_multiplies_bf16() -> bool:
    """Whether the CPU has instructions for it; without, it is emulated and slower than float32."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def _loggers(config: Config) -> list[Logger]:
    """The loggers asked for by name; metrics.csv is written without them."""
    from lightning.pytorch import loggers

    run = Path(config.out)
    makers: dict[str, Callable[[], Logger]] = {
        "tensorboard": lambda: loggers.TensorBoardLogger(run, name="", version=""),
        "mlflow": lambda: loggers.MLFlowLogger("deeplense", run_name=run.name),
        "wandb": lambda: loggers.WandbLogger(run.name, run, project="deeplense"),
    }
    try:
        return [makers[name]() for name in config.train.loggers]
    except ModuleNotFoundError as error:
        raise ConfigError(f"train.loggers: {error}; pip install 'deeplense[{config.train.loggers[0]}]'") from error


def _finish(task: LensTask, data: LensDataModule, keeper: Keeper) -> None:
    """The best weights, calibrated on the validation images, into the run folder; `model.json` comes last."""
    run, row = keeper.run, keeper.best_row
    task.load_state_dict(keeper.best)
    task.finish_on(data)
    scores = {name: row[name] for name in ("epoch", "val_loss", "val_score")} | {"val_score_name": task.score_name}
    folder.finish(task, run, scores=scores, data=data.fingerprint())
    logger.info(
        "%s: best of %d epochs is %d, %s %.4f", run, len(keeper.rows), row["epoch"], task.score_name, row["val_score"]
    )


@contextmanager
def _stopping(run: Path, keeper: Keeper) -> Iterator[None]:
    """Ctrl-C as one line that says how to go on."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores the signal from the first one on
        raise RunError(f"stopped: {len(keeper.rows)} epochs are kept in {run}; the same command continues") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's notices about hardware, workers and files."""
    noisy = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [log.level for log in noisy]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        for log in noisy:
            log.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for log, level in zip(noisy, levels, strict=True):
                log.setLevel(level)
