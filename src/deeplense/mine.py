"""Hard negatives: the non-lenses that a trained finder takes for lenses, as a set to train on."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from deeplense.config import DataConfig, parse_settings
from deeplense.data import store
from deeplense.data.classes import align
from deeplense.data.schema import LensSet
from deeplense.data.writer import UNFINISHED
from deeplense.errors import ConfigError, DataError, RunError
from deeplense.evaluate.judge import warn_if_seen
from deeplense.predict import Predictor
from deeplense.simulate.generate import Simulator, concatenate
from deeplense.simulate.stream import PREFIX
from deeplense.tasks.finder import FinderTask
from deeplense.weights import fingerprint

logger = logging.getLogger(__name__)
CHUNK = 1024  # images scored at a time


def mine(
    run: Path | str, images: LensSet | Iterable[LensSet], out: Path | str, num: int = 500, negatives_only: bool = False
) -> LensSet:
    """Score labelled images and write the most lens-like non-lenses, and the lenses beside them, as a set in ``out``.

    Everything known about the images is kept; ``params`` gains the columns ``run`` and ``score`` (log-odds of a lens).
    The non-lenses come first, the most lens-like one at the top, then the lenses in their order.

    Args:
        run: a finished run of a finder.
        images: a set, or parts of one, of which no more than is kept stays in memory.
        out: folder for the new set; nothing is overwritten.
        num: how many non-lenses.
        negatives_only: leave the lenses out.

    Raises:
        ConfigError: the run finds no lenses, or ``num`` is below 1.
        DataError: no labels, or no non-lens.
        RunError: there is no such run, or ``out`` is in the way.
    """
    run, out = Path(run), Path(out).expanduser()
    if num < 1:
        raise ConfigError(f"num={num}: one image or more")
    _check_free(out)
    predictor = _finder(run)
    hardest, lenses, scored = _Hardest(num), [], 0
    for part in images.parts(CHUNK) if isinstance(images, LensSet) else images:
        if not scored:
            warn_if_seen(predictor.card, images if isinstance(images, LensSet) else part)
        part = _scored(predictor, run, part)
        scored += len(part)
        hardest.add(part.select(np.flatnonzero(part.label == 0)))
        if not negatives_only:
            lenses.append(part.select(np.flatnonzero(part.label == 1)))
    found = hardest.best()
    mined = concatenate([part for part in (found, *lenses) if len(part)])
    facts = {"run": str(run), "weights": fingerprint(run), "scored": scored, "num": num}
    facts["negatives_only"] = negatives_only
    mined = replace(mined, provenance={**mined.provenance, "mined": facts})
    store.write(mined, out)
    logger.info("%d of %d images: %s", len(mined), scored, mined.class_counts())
    return mined


def simulated(data: DataConfig) -> Iterator[LensSet]:
    """The first ``data.num`` images of ``data.path = "preset:NAME"`` and ``data.seed``, a block at a time."""
    name, part = str(data.path).removeprefix(PREFIX), "train" if data.galaxies or data.lens_galaxies else None
    options: dict[str, Any] = {"compile": data.compile, "part": part}
    options |= {"galaxies": data.galaxies, "lens_galaxies": data.lens_galaxies}
    simulator = Simulator(name, data.fidelity, data.seed, settings=parse_settings(data.settings), **options)
    return simulator.stream(0, data.num)


class _Hardest:
    """The images with the highest scores among all that were added; between equals the earlier one."""

    def __init__(self, num: int) -> None:
        self.num = num
        self.parts: list[LensSet] = []

    def add(self, part: LensSet) -> None:
        self.parts.append(part)
        if sum(map(len, self.parts)) > 2 * self.num:
            self.parts = [self.best()]

    def best(self) -> LensSet:
        filled = [part for part in self.parts if len(part)]
        if not filled:
            raise DataError("none of the images is labelled as a non-lens: there is nothing to mine")
        whole = concatenate(filled)
        assert whole.params is not None
        return whole.select(np.argsort(-whole.params["score"].to_numpy(), kind="stable")[: self.num])


def _check_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / UNFINISHED).is_file())):
        raise RunError(f"{out} is not empty and is never overwritten: choose another --out")


def _finder(run: Path) -> Predictor:
    predictor = Predictor.load(run)
    if not isinstance(predictor.task, FinderTask):
        raise ConfigError(f"{run} is a run of {predictor.task.config.task}: lens-like is what a finder says")
    return predictor


def _scored(predictor: Predictor, run: Path, part: LensSet) -> LensSet:
    """The images with the run and its score as columns of their parameters."""
    if part.label is None:
        raise DataError("the images have no labels: mining needs to know what is no lens; give one sub-folder a class")
    part = align(part, predictor.classes)
    score = predictor.predict(part)["score"].cast(pa.float64())
    known = {} if part.params is None else dict(zip(part.params.column_names, part.params.columns, strict=True))
    return replace(part, params=pa.table({**known, "run": pa.array([str(run)] * len(part)), "score": score}))
