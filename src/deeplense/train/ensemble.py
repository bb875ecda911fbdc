"""Networks that are trained one after another and predict as one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from deeplense import config as configs
from deeplense import weights
from deeplense.config import Config
from deeplense.data.module import LensDataModule
from deeplense.errors import ConfigError, RunError
from deeplense.tasks import Classifier
from deeplense.train import folder
from deeplense.train.build import build_task, new_task
from deeplense.train.start import Place
from deeplense.weights import CARD

logger = logging.getLogger(__name__)


def fit_ensemble(
    config: Config, data: LensDataModule, fit_run: Callable[[Config, LensDataModule, Place], Path]
) -> Path:
    """Train ``train.ensemble`` members in folders of their own, then write them into ``out`` as one run.

    Each has its own initial weights and order of images; which images they learn from, and are validated on, is the
    same. The same call again keeps finished members and continues.

    Args:
        fit_run: trains one network.

    Raises:
        ConfigError: several devices are asked for.
        RunError: the folder of a member holds another run.
    """
    run, number = Path(config.out), config.train.ensemble
    if config.train.devices > 1:
        raise ConfigError("the members of an ensemble are trained on one device each: set train.devices=1")
    members = [_member(config, i) for i in range(number)]
    build_task(members[0], data, (0, number))  # nothing is written for settings that cannot work
    folder.prepare(config, data)
    seed = data.seed  # of the order of the images
    try:
        for i, member in enumerate(members):
            if (Path(member.out) / CARD).is_file():
                _check_member(member)
            else:
                logger.info("member %d of %d", i + 1, number)
                data.seed = member.seed
                fit_run(member, data, (i, number))
    finally:
        data.seed = seed
    _finish(config, data, [Path(member.out) for member in members])
    return run


def _member(config: Config, i: int) -> Config:
    """The settings of one member, a run by itself."""
    train = config.train.model_copy(update={"ensemble": 1, "export": []})
    out = Path(config.out) / f"member-{i + 1}"
    return config.model_copy(update={"seed": (config.seed + i) % 2**32, "out": str(out), "train": train})


def _check_member(member: Config) -> None:
    """Raises RunError if a finished member was trained with other settings: somebody put another run there."""
    differing = configs.parse(weights.load_card(Path(member.out))["config"]).differences(member)
    if differing:
        raise RunError(f"{member.out} was trained with another {', '.join(differing)}: delete it to train it again")


def _finish(config: Config, data: LensDataModule, members: list[Path]) -> None:
    """All members as one run, calibrated as one on the validation images."""
    cards = [weights.load_card(member) for member in members]
    task = new_task(config, data, cards[0]["architecture"])
    weights.fill(task.network, _joined(members), members[0])
    assert isinstance(task, Classifier)  # no other kind has members
    task = task.to(_device(config))
    validated = task.validated_on(data.val, data.batch_size)
    task.calibration = task.calibrate(validated)
    scores = {"val_loss": validated["loss"].mean().item(), "val_score": task.score(validated)}
    alone = [card["scores"]["val_score"] for card in cards]
    facts = {"val_score_name": task.score_name, "members": alone}
    folder.finish(task, Path(config.out), scores=scores | facts, data=data.fingerprint(), members=len(members))
    logger.info(
        "%s: %s %.4f, its %d members' alone %s",
        *(config.out, task.score_name, scores["val_score"], len(members)),
        ", ".join(f"{score:.4f}" for score in alone),
    )


def _joined(members: list[Path]) -> weights.State:
    states = enumerate(weights.load(run) for run in members)
    return {f"members.{i}.{name}": weight for i, state in states for name, weight in state.items()}


def _device(config: Config) -> str:
    on_gpu = config.train.accelerator in ("auto", "gpu") and torch.cuda.is_available()
    return "cuda" if on_gpu else "cpu"
