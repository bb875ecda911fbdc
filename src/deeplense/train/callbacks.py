"""What is kept of a run after every epoch, so that a run killed at any moment continues to the same weights."""

from __future__ import annotations

import csv
import io
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from torch import Tensor

from deeplense.data.files import replacing, write_text
from deeplense.errors import RunError

logger = logging.getLogger(__name__)
LAST, METRICS = "last.ckpt", "metrics.csv"
LOOK_EVERY = 50  # steps on a GPU after which the losses are looked at


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that appear whole or not at all.

    Lightning's own way writes to the system's temporary folder and moves: between file systems that is a copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with replacing(Path(path)) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)  # to a file object, for a full disk is an OSError then


class Keeper(Checkpoint):
    """Seeds each epoch, keeps the best weights, writes ``last.ckpt`` and ``metrics.csv``, stops early.

    The best weights lie inside ``last.ckpt``: one file that is replaced in one move holds all there is to know.
    """

    def __init__(self, run: Path, seed: int, patience: int, score_name: str) -> None:
        self.run, self.seed, self.patience, self.score_name = run, seed, patience, score_name
        self.rows: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.began = 0.0
        self._losses: list[tuple[int, int, Tensor]] = []  # step, batch and loss, not looked at yet

    @property
    def best_row(self) -> dict[str, float]:
        """The epoch with the largest validation score; between equals the one with the least loss."""
        return max(self.rows, key=lambda row: (row["val_score"], -row["val_loss"]))

    @property
    def should_stop(self) -> bool:
        """Whether the score has not risen for ``patience`` epochs."""
        return 0 < self.patience <= len(self.rows) - 1 - self.rows.index(self.best_row)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Every random number of an epoch follows from (seed, epoch, device) alone, whether or not the run was resumed.
        stream = np.random.SeedSequence([self.seed, trainer.current_epoch, trainer.global_rank])
        L.seed_everything(int(stream.generate_state(1)[0]), verbose=False)
        self.began = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._losses.append((trainer.global_step, batch_idx + 1, outputs["loss"].detach()))
        # To look at a number on a GPU is to wait for it.
        if pl_module.device.type == "cpu" or len(self._losses) >= LOOK_EVERY:
            self._look(trainer)

    def _look(self, trainer: L.Trainer) -> None:
        """Stop at the first loss that is no number."""
        losses, self._losses = self._losses, []
        for (step, batch, _), loss in zip(losses, torch.stack([x for *_, x in losses]).tolist(), strict=True):
            if not math.isfinite(loss):
                raise self._lost(trainer, f"training loss is not a number at step {step}, batch {batch}")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._losses:
            self._look(trainer)
        row = self._row(trainer)
        if not math.isfinite(row["train_loss"]) or not math.isfinite(row["val_loss"]):
            raise self._lost(trainer, f"validation loss is not a number after step {trainer.global_step}, at the end")
        self.rows.append(row)
        trainer.save_checkpoint(self.run / LAST)
        trainer.should_stop = trainer.should_stop or self.should_stop
        if trainer.is_global_zero:
            self._report(row, trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.rows and self.best_row is self.rows[-1]:
            # With averaged weights, these are the averages: the weights that were validated.
            self.best = {name: weight.detach().cpu().clone() for name, weight in checkpoint["state_dict"].items()}
        checkpoint["keeper"] = {"rows": self.rows, "best": self.best}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.rows, self.best = checkpoint["keeper"]["rows"], checkpoint["keeper"]["best"]
        trainer.should_stop = self.should_stop
        self._write_rows()  # a kill may have come between the checkpoint and the table
        logger.info("continuing after epoch %d", len(self.rows))

    def _lost(self, trainer: L.Trainer, what: str) -> RunError:
        """Why the run ends: what happened, where the last good weights are, what to change."""
        kept = len(self.rows)
        last = f"{self.run / LAST} is good, from the end of epoch {kept}" if kept else "no epoch is kept"
        return RunError(
            f"the {what} of epoch {trainer.current_epoch + 1}; {last}: choose a smaller optim.lr or set train.clip=1, "
            "and another out="
        )

    def _row(self, trainer: L.Trainer) -> dict[str, float]:
        logged = trainer.callback_metrics
        parts = [name for name in logged if name.startswith("val_") and name not in ("val_loss", "val_score")]
        metrics = {name: logged[name].item() for name in ("train_loss", "val_loss", "val_score", *parts)}
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        seconds = round(time.monotonic() - self.began, 2)
        return {"epoch": trainer.current_epoch + 1, **metrics, "lr": rate, "seconds": seconds}

    def _write_rows(self) -> None:
        table = io.StringIO()
        writer = csv.DictWriter(table, fieldnames=list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.run / METRICS, table.getvalue())

    def _report(self, row: dict[str, float], trainer: L.Trainer) -> None:
        self._write_rows()
        logger.info(
            "epoch %d of %d: training loss %.4f, validation loss %.4f, %s %.4f%s (%.0f s)",
            row["epoch"],
            trainer.max_epochs or 0,
            row["train_loss"],
            row["val_loss"],
            self.score_name,
            row["val_score"],
            ", best so far" if self.best_row is row else "",
            row["seconds"],
        )


def average(decay: float) -> WeightAveraging:
    """An exponential moving average of the weights, which replaces them in validation and at the end.

    The average forgets faster at first, ``min(decay, (1 + n) / (10 + n))`` after n steps, so that short runs gain too.
    """
    return WeightAveraging(multi_avg_fn=_average_fn(decay))


def _average_fn(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor], None]:
    @torch.no_grad()
    def update(averages: list[Tensor], current: list[Tensor], num_averaged: Tensor) -> None:
        n = int(num_averaged)
        weight = 1 - min(decay, (1 + n) / (10 + n))
        for mean, now in zip(averages, current, strict=True):
            # Counters, such as batch normalisation's, are copied; `lerp` leaves what does not change as it is.
            mean.lerp_(now, weight) if mean.is_floating_point() else mean.copy_(now)

    return update
