"""The whole path in a few minutes: simulate a test set, train on fresh images, judge, report."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from deeplense import config as configs
from deeplense import train
from deeplense.data.read import read
from deeplense.evaluate.judge import judge
from deeplense.simulate.dataset import write_set
from deeplense.simulate.generate import Simulator
from deeplense.weights import CARD

logger = logging.getLogger(__name__)
# The training images are of the seed in configs/demo.toml; these are others.
TEST_SEED, NUM_TEST = 1000, 1488


def run(out: Path | str, settings: list[str] | None = None, progress: bool = True) -> dict[str, Any]:
    """Do it all below one folder; what is already there is used again, and an interrupted demo continues.

    Args:
        settings: ``key=value`` changes to ``configs/demo.toml``.

    Returns:
        The metrics of the test set, which also stand in ``out/run/metrics.json``.
    """
    out = Path(out)
    config = configs.load("demo", [*(settings or []), f"out={out / 'run'}"])
    simulator = Simulator("common-test", config.data.fidelity, TEST_SEED)
    logger.info("1 of 3: simulate %d test images into %s", NUM_TEST, out / "test")
    write_set(simulator, NUM_TEST, out / "test", progress=progress)
    logger.info("2 of 3: train on %d fresh images in each of %d epochs", config.data.num, config.train.epochs)
    if not (out / "run" / CARD).is_file():
        train.fit(config, train.load_data(config), progress=progress)
    logger.info("3 of 3: judge the run on the test images")
    return judge(out / "run", read(out / "test"))
