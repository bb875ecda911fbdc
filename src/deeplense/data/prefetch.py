"""Batches that are read while the one before is worked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor
from torch.utils.data import DataLoader

AHEAD = 2


class Prefetched:
    """The batches of a loader in the same order, the next two read by a thread: for images that lie on a disk.

    A thread is enough, for reading and copying let other threads run; a process would get a copy of the array.
    """

    def __init__(self, loader: DataLoader[dict[str, Tensor]]) -> None:
        self.loader, self.sampler = loader, loader.sampler  # Lightning tells the sampler of epochs

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        batches = iter(self.loader)
        with ThreadPoolExecutor(1) as pool:
            waiting = deque(pool.submit(next, batches, None) for _ in range(AHEAD))
            while (batch := waiting.popleft().result()) is not None:
                waiting.append(pool.submit(next, batches, None))
                yield batch
