"""Every class equally often, in an order that is a function of (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class BalancedSampler(Sampler[int]):
    """Places of training images, drawn with replacement, each class as often as any other.

    It stands in for torch's WeightedRandomSampler, which draws class counts at random, knows neither epochs nor devices
    and takes at most 2**24 images. Used as a DistributedSampler is: the draws of an epoch are dealt out to the devices.

    Args:
        label: class numbers of the images, shape (N,); classes without images are never drawn.
        replicas: devices that share an epoch of N draws.
        rank: number of this device.
        seed: of the draws.
    """

    def __init__(self, label: np.ndarray, replicas: int = 1, rank: int = 0, seed: int = 0) -> None:
        self.members = [np.flatnonzero(label == number) for number in np.unique(label)]
        self.replicas, self.rank, self.seed, self.epoch = replicas, rank, seed, 0
        self.num = -(-len(label) // replicas)  # as many on each device: the last ones get one draw more if need be

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num

    def __iter__(self) -> Iterator[int]:
        rng, total = np.random.default_rng([self.seed, self.epoch]), self.num * self.replicas
        first = rng.integers(len(self.members))  # the class that comes first gets what does not divide evenly
        number = rng.permutation((np.arange(total) + first) % len(self.members))
        places = np.empty(total, np.int64)
        for k, members in enumerate(self.members):
            of_class = number == k
            places[of_class] = members[rng.integers(len(members), size=np.count_nonzero(of_class))]
        return iter(places[self.rank :: self.replicas].tolist())
