"""The Lightning DataModule: LensSets in, whole batches out, in an order that depends on (seed, epoch) alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from pyarrow import types
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from deeplense.data import split
from deeplense.data.held import Held
from deeplense.data.prefetch import Prefetched
from deeplense.data.rows import is_mapped
from deeplense.data.sampler import BalancedSampler
from deeplense.data.schema import LensSet
from deeplense.errors import DataError, did_you_mean

logger = logging.getLogger(__name__)

Batch = dict[str, Tensor]
Batches = DataLoader[Batch] | Prefetched


class LensDataset(Dataset[Batch]):
    """A LensSet that hands out whole batches: one gather from the array instead of a Python call per image.

    Args:
        params: columns of the truth table that batches hold as well.
        held: the images in place of the set's own, on the device where they are wanted.
    """

    def __init__(self, lens_set: LensSet, params: Sequence[str] = (), held: Held | None = None) -> None:
        self.lens_set, self.held = lens_set, held
        self.device = torch.device("cpu") if held is None else held.device
        self.columns: Batch = {}
        if lens_set.label is not None:
            self.columns["label"] = torch.as_tensor(lens_set.label, dtype=torch.int64, device=self.device)
        if params:
            self.columns["params"] = torch.from_numpy(param_values(lens_set, params)).to(self.device)

    def __len__(self) -> int:
        return len(self.lens_set)

    def __getitem__(self, index: int) -> Batch:
        return {name: column[0] for name, column in self.__getitems__([index]).items()}

    def __getitems__(self, index: Sequence[int]) -> Batch:
        """Images float32 (B, C, H, W) as read or held, their labels int64 (B,) where known, their places int64 (B,).

        With ``params`` also these columns of the truth table, float32 (B, P).
        """
        rows = np.asarray(index, dtype=np.int64)
        place = torch.from_numpy(rows).to(self.device)
        images = torch.from_numpy(self.lens_set.images[rows]) if self.held is None else self.held(rows)
        columns = {name: column.index_select(0, place) for name, column in self.columns.items()}
        return {"image": images, "index": place, **columns}


class LensDataModule(L.LightningDataModule):
    """Training and validation images; the test split never comes here.

    Args:
        train: images to learn from.
        val: images that select the checkpoint, in their natural frequency whatever ``balanced`` says.
        batch_size: images in a batch.
        seed: of the order of the training images.
        balanced: draw every class of the training images equally often, with replacement (``BalancedSampler``).
        needs_labels: refuse images without classes.
        params: columns of the truth table that batches hold as well.

    Raises:
        DataError: the two sets differ in classes or channels, there are no labels, or fewer than two classes.
    """

    def __init__(
        self,
        train: LensSet,
        val: LensSet,
        batch_size: int,
        seed: int = 0,
        *,
        balanced: bool = False,
        needs_labels: bool = True,
        params: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if needs_labels:
            _check_labels(train, val)
        _check(train, val)
        self.params = tuple(params)
        self.train, self.val, self.batch_size, self.seed, self.balanced = train, val, batch_size, seed, balanced
        self._held: tuple[Held, Held] | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of their numbers."""
        return self.train.classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the training images."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def train_prevalence(self) -> np.ndarray:
        """Share of each class among the images that the network sees in training, float64, shape (K,), sum 1.

        Its probabilities hold for this prevalence; a correction for another one starts from it.
        """
        assert self.train.label is not None
        counts = np.bincount(self.train.label, minlength=len(self.classes))
        return (counts > 0) / np.count_nonzero(counts) if self.balanced else counts / counts.sum()

    @property
    def class_weights(self) -> np.ndarray:
        """Weight of each class in the loss, float32, shape (K,): see ``split.class_weights``.

        They make up for the frequencies of the labels. A balanced sampler does the same: use one of the two.
        """
        assert self.train.label is not None
        return split.class_weights(self.train.label, len(self.classes))

    def train_params(self) -> np.ndarray:
        """The columns ``params`` of the training images' truth table, float32, (N, P)."""
        return param_values(self.train, self.params)

    def hold(self, device: torch.device, prepare: Callable[[Tensor], Tensor] | None, max_gb: float) -> bool:
        """Keep all images as one array each on the device, if they fit there; whether batches are prepared now.

        A step then gathers rows by number: nothing is read, copied between devices or prepared again.

        Args:
            prepare: what happens to all images (B, C, H, W) before the network, if it may happen beforehand.
            max_gb: memory of a CPU that they may take, with the images as read; of a GPU it is half of what is free.
        """
        self._held = None
        if device.type == "cpu" and prepare is None:
            return False  # they lie in memory already, or are mapped from disk
        sets = (self.train, self.val)
        ones = [torch.from_numpy(np.array(part.images[:1])).to(device) for part in sets]
        ones = ones if prepare is None else [prepare(one) for one in ones]
        size = sum(one.nbytes * len(part) for one, part in zip(ones, sets, strict=True))
        raw = sum(part.images.nbytes for part in sets if not is_mapped(part.images))
        room = max_gb * 1e9 - raw if device.type != "cuda" else 0.5 * torch.cuda.mem_get_info(device)[0]
        if size > room:
            logger.info("%.1f GB of images stay where they are: %.1f GB may be held in memory", size / 1e9, room / 1e9)
            return False
        train, val = (
            Held(part.images, tuple(one.shape[1:]), one.device, prepare) for one, part in zip(ones, sets, strict=True)
        )
        self._held = train, val
        return prepare is not None

    def fetch(self) -> None:
        """Have all images there that are held, as they are after an epoch: for who measures the time of later steps."""
        for held in self._held or ():
            held.fetch()

    def fingerprint(self) -> dict[str, str]:
        """Names the training and the validation images."""
        return {"train": self.train.fingerprint(), "val": self.val.fingerprint()}

    def train_dataloader(self) -> Batches:
        return self._loader(self.train, is_training=True)

    def val_dataloader(self) -> Batches:
        return self._loader(self.val, is_training=False)

    def _loader(self, lens_set: LensSet, is_training: bool) -> Batches:
        replicas, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        held = self._held[0 if is_training else 1] if self._held else None
        dataset = LensDataset(lens_set, self.params, held)
        sampler: DistributedSampler[Batch] | BalancedSampler
        if is_training and self.balanced:
            assert lens_set.label is not None
            sampler = BalancedSampler(lens_set.label, replicas, rank, self.seed)
        else:
            sampler = DistributedSampler(dataset, replicas, rank, shuffle=is_training, seed=self.seed)
        loader = DataLoader(
            dataset,
            self.batch_size,
            sampler=sampler,
            collate_fn=as_is,
            # A batch of one image has no batch statistics: an incomplete last batch waits for another epoch's order.
            drop_last=is_training and len(sampler) > self.batch_size,
            pin_memory=held is None and torch.cuda.is_available(),
            generator=torch.Generator(),  # the loader draws its worker seed here, not from the global generator
        )
        return Prefetched(loader) if held is None and is_mapped(lens_set.images) else loader


def as_is(batch: Any) -> Any:
    return batch


def param_values(lens_set: LensSet, names: Sequence[str]) -> np.ndarray:
    """Columns of the truth table, float32, (N, P); NaN where a value is missing.

    Raises:
        DataError: there is no truth table, or no such column of numbers.
    """
    table = lens_set.params
    known = (
        [] if table is None else [f.name for f in table.schema if types.is_floating(f.type) or types.is_integer(f.type)]
    )
    for name in names:
        if table is None or name not in known:
            raise DataError(f"the images come without {name!r} in their truth table; {did_you_mean(name, known)}")
    columns = [np.asarray(table[name].to_numpy(), dtype=np.float32) for name in names] if table is not None else []
    return np.stack(columns, axis=1)


def _check_labels(train: LensSet, val: LensSet) -> None:
    if train.label is None or val.label is None:
        raise DataError("training needs labels: give folders with one sub-folder for each class")
    if len(train.classes) < 2 or np.unique(train.label).size < 2:
        present = ", ".join(name for name, count in train.class_counts().items() if count)
        raise DataError(f"only one class ({present}): there is nothing to tell apart")


def _check(train: LensSet, val: LensSet) -> None:
    if train.fingerprint() == val.fingerprint():
        raise DataError("the validation images are the training images: give others, or leave data.val out")
    if train.classes != val.classes:
        raise DataError(f"training classes are {train.classes}, validation classes are {val.classes}; they must agree")
    if train.images.shape[1] != val.images.shape[1]:
        raise DataError(f"training images are {train.images.shape[1:]}, validation images {val.images.shape[1:]}")
    if missing := [name for name, count in val.class_counts().items() if not count]:
        logger.warning("no validation image is of class %s: they say little about which epoch is best", missing[0])
