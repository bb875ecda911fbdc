"""From the names in a config to the images that a run learns from and is judged by."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from deeplense.config import Config, DataConfig
from deeplense.data import split
from deeplense.data.classes import align
from deeplense.data.module import LensDataModule
from deeplense.data.read import find_splits, read
from deeplense.data.rows import Rows
from deeplense.data.schema import LensSet
from deeplense.errors import ConfigError, DataError
from deeplense.simulate import stream
from deeplense.tasks import get

logger = logging.getLogger(__name__)
# Columns of params whose equal values keep images on one side when a validation part is split off; the first counts.
# Sources before lenses: only lenses have a source, so that knowing a galaxy would be knowing the answer.
_GROUPS = ("source_galaxy", "lens_galaxy", "sky_group", "group")


def load_data(config: Config, progress: bool = True) -> LensDataModule:
    """Read, split and thin out the images that a config names; class counts are logged. A test split is never read.

    Raises:
        ConfigError: no images are named.
        DataError: they cannot be used.
    """
    data = config.data
    if data.path is None:
        raise ConfigError("no images are named: add data=DIR")
    if stream.is_preset(data.path):
        return stream.StreamDataModule(config, get(config.task).wanted(config))
    train, val = _given(data, progress) or _split_off(_read(data.path, "train", data, progress), config)
    if not data.val_of_fraction:
        train = _thinned(train, config)
    for name, part in (("training", train), ("validation", val)):
        counts = ", ".join(f"{count} {label}" for label, count in part.class_counts().items())
        logger.info("%d %s images: %s", len(part), name, counts or "no labels")
    needs_labels, params = get(config.task).needs_labels, get(config.task).wanted(config)
    return LensDataModule(
        *(train, val, data.batch_size, config.seed), balanced=data.balanced, needs_labels=needs_labels, params=params
    )


def _given(data: DataConfig, progress: bool) -> tuple[LensSet, LensSet] | None:
    """Training and validation images, where both are named or the folder says which is which."""
    if data.val is None and "val" not in find_splits(str(data.path)):
        return None
    train = _read(str(data.path), "train", data, progress)
    return train, align(_read(data.val or str(data.path), "val", data, progress), train.classes)


def _split_off(whole: LensSet, config: Config) -> tuple[LensSet, LensSet]:
    """A stratified part of the training images for validation; images of one group stay on one side."""
    whole = _thinned(whole, config) if config.data.val_of_fraction else whole
    fraction, label = config.data.val_fraction, _labels(whole, config)
    if "mined" in whole.provenance:
        logger.warning(
            "validation is split off mined images, all of them hard: probabilities will not hold on the sky, whatever "
            "the prevalence; name ordinary images in data.val"
        )
    groups = _groups(whole)
    if groups is None:
        rows = split.stratified_split(label, fraction, config.seed, whole.classes)
    else:
        rows = split.grouped_split(groups, fraction, config.seed, label)
    train, val = (_part(whole, index) for index in rows)
    return train, val


def _groups(whole: LensSet) -> list[str] | None:
    """The source galaxy or patch of sky of each image, or its own name where it has none; None without such groups."""
    found = [name for name in _GROUPS if whole.params is not None and name in whole.params.column_names]
    if whole.params is None or not found:
        return None
    column, *others = found
    groups = whole.params[column].to_pylist()
    logger.info("images of the same %s stay on one side of the split", column)
    if others:
        logger.warning("the same %s may stand on both sides of the split: name a set in data.val instead", others[0])
    return [name if group in (None, "") else str(group) for group, name in zip(groups, whole.name, strict=True)]


def _read(path: str, part: str, data: DataConfig, progress: bool) -> LensSet:
    splits = find_splits(path)
    if splits and part not in splits:
        raise DataError(f"{path} holds {', '.join(splits)} images, none to {part} on: name a folder of these")
    which = part if splits else None
    return read(Path(path), split=which, progress=progress, **data.reading())


def _thinned(train: LensSet, config: Config) -> LensSet:
    """The share of the images, of each class, that ``data.fraction`` leaves."""
    data = config.data
    if data.fraction == 1:
        return train
    rows = split.stratified_fraction(_labels(train, config), data.fraction, config.seed, train.classes)
    return _part(train, rows)


def _labels(lens_set: LensSet, config: Config) -> np.ndarray:
    """Class numbers; all 0 where there are none and the task can do without."""
    if lens_set.label is None and not get(config.task).needs_labels:
        return np.zeros(len(lens_set), dtype=np.int64)
    if lens_set.label is None:
        raise DataError(
            f"{lens_set.provenance.get('source')} has no labels: it takes a sub-folder for each class, or a table"
        )
    return lens_set.label


def _part(whole: LensSet, rows: np.ndarray) -> LensSet:
    """``whole.select(rows)``, without a copy of the images."""
    nothing = np.broadcast_to(np.float32(0), whole.images.shape)
    rest = replace(whole, images=nothing[:, :0]).select(rows)
    return replace(rest, images=cast(np.ndarray, Rows(whole.images, rows)))
