"""Training images simulated as they are needed: every epoch can be fresh, and no disk is touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from deeplense.config import Config, parse_settings
from deeplense.data.module import Batch, Batches, LensDataModule, as_is, param_values
from deeplense.data.schema import LensSet
from deeplense.errors import ConfigError
from deeplense.simulate.generate import BLOCK, Simulator, check_number, concatenate
from deeplense.simulate.survey_priors import SurveyWorld

PREFIX = "preset:"
# Validation images come from a part of the same sequence that no training run reaches.
VALIDATION_START = BLOCK * 2**40
# Mean and scatter of the pixels settle within a few hundred images.
NUM_STATISTICS = 20 * BLOCK


class StreamDataset(Dataset[Batch]):
    """Batches simulated on demand. Place ``epoch * num + i`` is image i of an epoch.

    Args:
        simulators: one for each epoch's strength of substructure; the last one serves all later epochs.
        num: images an epoch.
        fresh: every epoch has images of its own, instead of the same ``num`` again.
        params: columns of the truth table that batches hold as well.
    """

    def __init__(self, simulators: Sequence[Simulator], num: int, fresh: bool, params: Sequence[str] = ()) -> None:
        self.simulators, self.num, self.fresh, self.params = simulators, num, fresh, params

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> Batch:
        return {name: column[0] for name, column in self.__getitems__([index]).items()}

    def __getitems__(self, index: Sequence[int]) -> Batch:
        """Images float32 (B, C, H, W), labels int64 (B,), places int64 (B,); all of one epoch."""
        places = np.asarray(index, dtype=np.int64)
        simulator = self.simulators[min(int(places[0]) // self.num, len(self.simulators) - 1)]
        images = simulator.images(places if self.fresh else places % self.num)
        assert images.label is not None
        batch = {
            "image": torch.from_numpy(images.images),
            "label": torch.from_numpy(images.label),
            "index": torch.from_numpy(places),
        }
        told = {"params": torch.from_numpy(param_values(images, self.params))} if self.params else {}
        return batch | told


class BlockSampler(Sampler[int]):
    """The places of an epoch in an order that is a function of (seed, epoch): whole blocks, shuffled among devices."""

    def __init__(self, num: int, seed: int, replicas: int = 1, rank: int = 0) -> None:
        self.num, self.seed, self.replicas, self.rank, self.epoch = num, seed, replicas, rank, 0
        self.num_blocks = num // BLOCK // replicas

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_blocks * BLOCK

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num // BLOCK)
        start = self.epoch * self.num
        for block in order[self.rank :: self.replicas][: self.num_blocks]:
            yield from range(start + int(block) * BLOCK, start + (int(block) + 1) * BLOCK)


class StreamDataModule(LensDataModule):
    """The images of ``data.path = "preset:NAME"``.

    Args:
        params: columns of the truth table that batches hold as well.

    Raises:
        ConfigError: an unknown preset or fidelity, a number of images that is no multiple of a block, or
            ``data.balanced``.
    """

    def __init__(self, config: Config, params: Sequence[str] = ()) -> None:
        data = config.data
        if data.balanced:
            raise ConfigError(
                f"data.balanced has no meaning for {data.path}, whose classes are as frequent as its world says: set "
                'data.settings=["positive_fraction=0.5"] instead'
            )
        if data.num % BLOCK:
            raise ConfigError(f"data.num={data.num}: images are simulated in blocks of {BLOCK}; try {_round(data.num)}")
        if data.num < data.batch_size * config.train.devices:
            raise ConfigError(f"data.num={data.num} images an epoch do not fill one batch of {data.batch_size}")
        if any(strength <= 0 for strength in data.strength) or not data.strength:
            raise ConfigError(f"data.strength={data.strength}: give one factor above 0 for each of the first epochs")
        made = {strength: self._simulator(config, strength, "train") for strength in data.strength}
        self.simulators = [made[strength] for strength in data.strength]
        last = self.simulators[-1]
        train = concatenate(list(last.stream(0, min(data.num, NUM_STATISTICS))))
        # With observed galaxies, those of the validation images are others.
        judge = self._simulator(config, data.strength[-1], "val") if data.galaxies or data.lens_galaxies else last
        val = concatenate(list(judge.stream(VALIDATION_START, VALIDATION_START + data.num_val)))
        super().__init__(train, val, data.batch_size, config.seed, params=params)
        self.dataset = StreamDataset(self.simulators, data.num, data.fresh, self.params)

    @property
    def train_prevalence(self) -> np.ndarray:
        """Share of each class in the world, float64, shape (K,): of a survey as set, else counted in its images."""
        world = self.simulators[-1].world
        if isinstance(world, SurveyWorld):
            return np.array([1 - world.positive_fraction, world.positive_fraction])
        return super().train_prevalence

    def hold(self, device: torch.device, prepare: Callable[[Tensor], Tensor] | None, max_gb: float) -> bool:
        """Images that are new in every epoch cannot be held."""
        return False

    def train_dataloader(self) -> Batches:
        replicas, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        sampler = BlockSampler(self.dataset.num, self.seed, replicas, rank)
        return DataLoader(
            self.dataset,
            self.batch_size,
            sampler=sampler,
            collate_fn=as_is,
            drop_last=True,
            generator=torch.Generator(),
        )

    @staticmethod
    def _simulator(config: Config, strength: float, part: str) -> Simulator:
        data = config.data
        name = str(data.path).removeprefix(PREFIX)
        device = "cuda" if torch.cuda.is_available() and config.train.accelerator in ("auto", "gpu") else "cpu"
        settings = parse_settings(data.settings)
        options: dict[str, Any] = {"galaxies": data.galaxies, "lens_galaxies": data.lens_galaxies}
        options |= {"part": part} if any(options.values()) else {}
        return Simulator(name, data.fidelity, data.seed, strength, device, data.compile, settings, **options)


def is_preset(path: str | None) -> bool:
    """Whether a data path means images to be simulated."""
    return path is not None and path.startswith(PREFIX)


def _round(num: int) -> int:
    return max(BLOCK, round(num / BLOCK) * BLOCK)


def simulated_set(preset: str, fidelity: str, seed: int, num: int, **options: Any) -> LensSet:
    """``num`` simulated images in memory, for tests, examples and small studies; options as of a Simulator.

    Raises:
        ConfigError: no number of images.
    """
    check_number(num)
    return concatenate(list(Simulator(preset, fidelity, seed, **options).stream(0, num)))
