"""The stages of a physics run: train what measures lenses, measure every image once, train on what is left of them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from deeplense import config as configs
from deeplense import weights
from deeplense.config import Config
from deeplense.data.fill import Advance, fill
from deeplense.data.module import LensDataModule
from deeplense.data.read import read
from deeplense.data.schema import LensSet
from deeplense.data.writer import ShardWriter
from deeplense.errors import ConfigError, RunError
from deeplense.simulate.stream import StreamDataModule
from deeplense.tasks import InversionTask
from deeplense.tasks.physics import check_settings, see
from deeplense.train import folder
from deeplense.weights import CARD

logger = logging.getLogger(__name__)
INVERTER, SEEN = "inverter", "seen"
# Measured in a minute or so: what is lost when a run is killed.
SHARD_SIZE = 480


class SeenDataModule(LensDataModule):
    """Images as the classifier of a physics run sees them; they answer for those that they were made of."""

    def __init__(self, train: LensSet, val: LensSet, given: LensDataModule) -> None:
        super().__init__(train, val, given.batch_size, given.seed, balanced=given.balanced)
        self.given = given

    def fingerprint(self) -> dict[str, str]:
        return self.given.fingerprint()


def fit_physics(
    config: Config,
    data: LensDataModule,
    fit_run: Callable[[Config, LensDataModule], Path],
    progress: bool,
) -> Path:
    """Train the classifier in ``out``, with its inverter in a folder of its own below; what is complete is kept.

    Args:
        fit_run: trains one network.

    Raises:
        RunError: the inverter's folder holds another run.
        ConfigError: several devices are asked for.
    """
    if config.train.devices > 1:
        raise ConfigError("the stages of a physics run are for one device: set train.devices=1")
    check_settings(config)  # before hours go into an inverter
    run = Path(config.out)
    folder.prepare(config, data)
    _make_inverter(config, data, fit_run)
    inverter = weights.load_task(run / INVERTER, InversionTask).to(weights.find_device())
    train, val = _fixed(config, data)
    seen = [
        _measured(inverter, part, config, run / SEEN / name, progress)
        for name, part in (("train", train), ("val", val))
    ]
    return fit_run(config, SeenDataModule(seen[0], seen[1], data))


def _make_inverter(config: Config, data: LensDataModule, fit_run: Callable[[Config, LensDataModule], Path]) -> None:
    """The inversion run in the run folder: trained here, or a copy of the one that ``physics.inverter`` names."""
    place = Path(config.out) / INVERTER
    if config.physics.inverter is not None:
        given = Path(config.physics.inverter)
        weights.check_kind(given, configs.parse(weights.load_card(given)["config"]).task, InversionTask)
        if not (place / CARD).is_file():
            place.mkdir(exist_ok=True)
            for name in (weights.WEIGHTS, CARD):  # the card comes last: it says that the copy is whole
                shutil.copyfile(given / name, place / f"{name}.tmp")
                (place / f"{name}.tmp").rename(place / name)
        return
    wanted = _inversion(config)
    if not (place / CARD).is_file():
        logger.info("1 of 3: train what measures lenses")
        fit_run(wanted, data)
    elif differing := configs.parse(weights.load_card(place)["config"]).differences(wanted):
        raise RunError(f"{place} was trained with another {', '.join(differing)}: delete it to train it again")


def _inversion(config: Config) -> Config:
    """The settings of the inverter, a run by itself."""
    train = config.train.model_copy(update={"epochs": config.physics.inverter_epochs, "export": []})
    changes: dict[str, Any] = {
        "task": "inversion",
        "out": str(Path(config.out) / INVERTER),
        "train": train,
        "augment": configs.AugmentConfig(),
        "loss": configs.LossConfig(),
        "model": config.model.model_copy(update={"average": "none"}),
    }
    return config.model_copy(update=changes)


def _fixed(config: Config, data: LensDataModule) -> tuple[LensSet, LensSet]:
    """Training and validation images; of simulated ones, the first ``data.num``: each is measured once."""
    if not isinstance(data, StreamDataModule):
        return data.train, data.val
    simulator = data.simulators[-1]
    return simulator.images(np.arange(config.data.num)), data.val


def _measured(inverter: InversionTask, lens_set: LensSet, config: Config, out: Path, progress: bool) -> LensSet:
    """The set as the classifier sees it, from the folder ``out``, where what is missing is made first."""
    physics = config.physics
    how = {"physics": physics.model_dump(mode="json"), "stretch": config.model.stretch}
    header = {"images": lens_set.fingerprint(), "inverter": weights.fingerprint(out.parents[1] / INVERTER), **how}
    writer = ShardWriter(out, len(lens_set), SHARD_SIZE, header)

    def make(shards: list[int], advance: Advance) -> None:
        for shard in shards:
            part = lens_set.select(np.array(writer.rows(shard)))
            images, found = see(inverter, part.images, config, advance)
            columns = inverter.columns(inverter.told(found))
            table = pa.table({name: column.numpy() for name, column in columns.items()})
            writer.write(shard, replace(part, images=images, params=table, provenance=header))

    fill(writer, make, f"measuring lenses, {out.name}", progress=progress)
    return read(out, max_memory_gb=config.data.max_memory_gb)
