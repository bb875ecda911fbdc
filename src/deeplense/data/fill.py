"""Sets that are made shard by shard, with a bar; the same command again continues after an interruption."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from rich.progress import Progress

from deeplense.data.writer import NpyWriter, ShardWriter
from deeplense.errors import ConfigError, RunError, did_you_mean

logger = logging.getLogger(__name__)
Writer = ShardWriter | NpyWriter
Advance = Callable[[int], object]
WRITERS: dict[str, type[Writer]] = {"parquet": ShardWriter, "npy": NpyWriter}


def find_writer(layout: str) -> type[Writer]:
    """What writes a layout: "parquet" for shards with a dataset card, "npy" for the DeepLense folders.

    Raises:
        ConfigError: there is no such layout.
    """
    if layout not in WRITERS:
        raise ConfigError(f"there is no layout {layout!r}; {did_you_mean(layout, WRITERS)}")
    return WRITERS[layout]


def fill(
    writer: Writer, make: Callable[[list[int], Advance], None], what: str, steps: int = 1, progress: bool = False
) -> None:
    """Have the shards made that a set lacks, then finish it.

    Args:
        make: makes and writes the shards of these numbers, and tells of each step of an image that it is done.
        what: is done to the images, for the bar.
        steps: of an image.
        progress: show a bar.

    Raises:
        RunError: Ctrl-C: says that the same command continues.
    """
    missing = writer.missing()
    if not missing:
        logger.info("%s is complete: nothing to do", writer.out)
    elif len(missing) < writer.num_shards:
        logger.info("%s: %d of %d shards are there", writer.out, writer.num_shards - len(missing), writer.num_shards)
    try:
        with Progress(disable=not progress) as bar:
            task = bar.add_task(what, total=steps * sum(len(writer.rows(shard)) for shard in missing))
            make(missing, partial(bar.advance, task))
    except KeyboardInterrupt as error:
        raise RunError(f"stopped: complete shards are kept in {writer.out}; the same command continues") from error
    writer.finish()
