"""A set of images as one array on the device that works on them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from deeplense.data.transform import IN_CACHE


class Held:
    """Images on a device, prepared there or as read; a block of them is fetched when one of them is first asked for.

    Blocks are always the same, so that the last bit of an image does not depend on the order of a training. The first
    batch is there at once, and after some ten batches nothing is read or prepared any more.

    Args:
        images: raw, (N, C, H, W).
        shape: (C, H', W') of a prepared image.
        prepare: what happens to (B, C, H, W) once they are on the device; None leaves them as they are.
    """

    def __init__(
        self,
        images: np.ndarray,
        shape: tuple[int, ...],
        device: torch.device,
        prepare: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.source, self.prepare, self.device = images, prepare, device
        self.images = torch.empty(len(images), *shape, device=device)
        self.is_there = np.zeros(-(-len(images) // IN_CACHE), dtype=bool)

    def __call__(self, rows: np.ndarray) -> Tensor:
        """The images of these numbers, (B, C, H', W')."""
        self.fetch(np.unique(rows // IN_CACHE))
        return self.images.index_select(0, torch.from_numpy(rows).to(self.device))

    def fetch(self, blocks: np.ndarray | None = None) -> None:
        """Have the blocks of these numbers, all of them if not given, there."""
        blocks = np.arange(len(self.is_there)) if blocks is None else blocks
        for block in blocks[~self.is_there[blocks]]:
            self._fetch(int(block))

    @torch.no_grad()
    def _fetch(self, block: int) -> None:
        rows = slice(block * IN_CACHE, (block + 1) * IN_CACHE)
        part = torch.from_numpy(np.array(self.source[rows])).to(self.device)
        with torch.autocast(self.device.type, enabled=False):
            self.images[rows] = part if self.prepare is None else self.prepare(part)
        self.is_there[block] = True
