"""The run folder: whether a run may begin or go on in it, and under which circumstances it ran."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from deeplense import config as configs
from deeplense import weights
from deeplense.config import Config
from deeplense.data.files import write_json, write_text
from deeplense.data.module import LensDataModule
from deeplense.errors import RunError
from deeplense.tasks import LensTask
from deeplense.train.callbacks import LAST
from deeplense.train.start import adopt
from deeplense.weights import CARD

logger = logging.getLogger(__name__)
SETTINGS, ENVIRONMENT = "config.toml", "environment.json"
PACKAGES = ("deeplense", "torch", "lightning", "torchmetrics", "transformers", "kornia", "numpy", "safetensors")


def prepare(config: Config, data: LensDataModule) -> Path | None:
    """Make the run folder, or check that the run in it is this one; returns the checkpoint to go on from.

    Raises:
        RunError: the folder holds a finished run, a run with other settings or images, or something else.
    """
    run = Path(config.out)
    check_free(config)
    facts = environment(config, data)
    if (run / SETTINGS).is_file():
        _check_same(run, config, facts)
    elif run.is_dir() and any(path.name != ENVIRONMENT and path.suffix != ".tmp" for path in run.iterdir()):
        raise RunError(f"{run} holds something that is not a run: choose another out=")
    else:
        run.mkdir(parents=True, exist_ok=True)
        write_json(run / ENVIRONMENT, facts)
        write_text(run / SETTINGS, config.to_toml())
    return run / LAST if (run / LAST).is_file() else None


def check_free(config: Config) -> None:
    """Refuse a folder with a finished run, or an unfinished one with other settings; cheap, before any data is read.

    Raises:
        RunError: as said.
    """
    run, config = Path(config.out), adopt(config)
    if (run / CARD).is_file():
        raise RunError(f"{run} is finished: choose another out=, or delete it")
    if (run / SETTINGS).is_file():
        differing = configs.load(str(run / SETTINGS)).differences(config)
        if differing:
            raise RunError(
                f"{run} holds an unfinished run with another {', '.join(differing)}: "
                "give the same settings to continue it, or choose another out="
            )


def finish(task: LensTask, run: Path, **facts: Any) -> None:
    """Write the trained task, then what ``train.export`` names, into the run folder."""
    weights.save_task(task, run, **facts)
    for kind in task.config.train.export:
        weights.export(task, run / f"weights.{kind}")


def environment(config: Config, data: LensDataModule) -> dict[str, Any]:
    """Versions, machine, seed and the fingerprint of the images, in plain JSON values."""
    return {
        "command": sys.argv,
        "seed": config.seed,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "versions": {name: _version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
        "data": data.fingerprint(),
    }


def _check_same(run: Path, config: Config, facts: dict[str, Any]) -> None:
    stored = json.loads((run / ENVIRONMENT).read_text())
    if stored["data"] != facts["data"]:
        raise RunError(f"the images in {config.data.path} are not those that {run} began with: choose another out=")
    if stored["threads"] != facts["threads"]:
        logger.warning("%d threads instead of %d: the last digits will differ", facts["threads"], stored["threads"])


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of this source tree, if it is one, with "-dirty" where files differ from it."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None  # an installed package may lie in somebody else's repository
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
