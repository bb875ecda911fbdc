"""A run that starts from another one: its architecture, and its weights where they fit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn

from deeplense import config as configs
from deeplense import weights
from deeplense.config import Config, ModelConfig
from deeplense.errors import ConfigError
from deeplense.models import backbone

logger = logging.getLogger(__name__)

# Which member of how many.
Place = tuple[int, int]
ALONE: Place = (0, 1)


def adopt(config: Config) -> Config:
    """The settings with those of ``model.init``'s network, and of its images' preparation, where none are given.

    Raises:
        ConfigError: another architecture is asked for than the run has, or there is nothing that could be frozen.
        RunError: there is no such run, or it is not finished.
    """
    init, given = config.model.init, config.model.model_fields_set
    if init is None:
        if config.train.freeze and not config.model.pretrained:
            raise ConfigError("train.freeze keeps what was learnt before, and this starts anew: add init=RUN")
        return config
    if not Path(init).exists():
        raise ConfigError(f"model.init={init}: there is no such run or file of weights")
    if not Path(init).is_dir():
        return config  # a file of weights says nothing of its network
    theirs = configs.parse(weights.load_card(Path(init))["config"]).model
    for key in ("name", "width") if theirs.name == "compact" else ("name",):
        if key in given and getattr(config.model, key) != getattr(theirs, key):
            raise ConfigError(
                f"model.{key} is {getattr(theirs, key)!r} in {init}, not {getattr(config.model, key)!r}: leave it out, "
                f"or set model.{key}={getattr(theirs, key)}"
            )
    taken = ModelConfig.model_fields.keys() - given - {"init", "pretrained"}
    model = config.model.model_copy(update={key: getattr(theirs, key) for key in taken})
    return config.model_copy(update={"model": model})


def stored_architecture(config: Config) -> dict[str, Any] | None:
    """What the run that ``model.init`` names has stored of a transformers network."""
    init = config.model.init
    return weights.load_card(Path(init))["architecture"] if init is not None and Path(init).is_dir() else None


def start_from(network: nn.Module, init: str, place: Place = ALONE) -> None:
    """Fill a network with the weights of a run or file; the first and the last layer may have another width.

    The first convolution is fitted to another number of channels so that a grey image gives the same response; a last
    layer for another number of outputs starts anew.

    Args:
        place: of an ensemble, the member in the same place where the numbers of members agree, or else the first.

    Raises:
        ModelError: other weights do not fit; the first of them is named.
    """
    given, wanted = _member(weights.load(Path(init)), place), network.state_dict()
    first, last = backbone.first_convolution(network), backbone.last_layer(network)
    if first in given and given[first].shape[1] != wanted[first].shape[1]:
        logger.info("%s has %d channels, these images %d", init, given[first].shape[1], wanted[first].shape[1])
        given[first] = backbone.fit_channels(given[first], wanted[first].shape[1])
    names = [name for name in (f"{last}.weight", f"{last}.bias") if name in given and name in wanted]
    if any(len(given[name]) != len(wanted[name]) for name in names):
        sizes = len(given[names[0]]), len(wanted[names[0]])
        logger.info("%s has %d outputs, not %d: %s starts anew", init, *sizes, last)
        given |= {name: wanted[name] for name in names}
    weights.fill(network, given, Path(init))


def _member(state: weights.State, place: Place) -> weights.State:
    """The weights of one network, of an ensemble or alone."""
    members = [name.split(".")[1] for name in state if name.startswith("members.")]
    if not members:
        return state
    member, number = place
    prefix = f"members.{member if len(set(members)) == number else 0}."
    return {name.removeprefix(prefix): weight for name, weight in state.items() if name.startswith(prefix)}
