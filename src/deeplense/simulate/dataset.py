"""Simulated sets on disk: sharded, with a progress bar, continued after a kill."""

from __future__ import annotations

import logging
from pathlib import Path

from rich.progress import Progress

from deeplense.data.store import NpyWriter, ShardWriter
from deeplense.errors import ConfigError, RunError, did_you_mean
from deeplense.simulate.generate import BLOCK, Simulator, concatenate

logger = logging.getLogger(__name__)
# A multiple of the block, so that no image is rendered twice; about 90 MB of 150x150 pixels.
SHARD_SIZE = 20 * BLOCK
WRITERS = {"parquet": ShardWriter, "npy": NpyWriter}


def write_set(simulator: Simulator, num: int, out: Path | str, layout: str = "parquet", progress: bool = False) -> Path:
    """Write images 0 to num - 1 of a simulator to a folder; the same call again continues after a kill.

    Args:
        layout: "parquet" for shards with a dataset card, "npy" for the DeepLense folders.
        progress: show a bar.

    Raises:
        ConfigError: an unknown layout.
        RunError: the folder holds something else, or a set made with other settings.
    """
    if layout not in WRITERS:
        raise ConfigError(f"there is no layout {layout!r}; {did_you_mean(layout, WRITERS)}")
    if num < 1:
        raise ConfigError(f"num={num}: simulate one image or more")
    writer = WRITERS[layout](out, num, SHARD_SIZE, simulator.provenance())
    missing = writer.missing()
    if not missing:
        logger.info("%s is complete: nothing to do", out)
    elif len(missing) < writer.num_shards:
        logger.info("%s: %d of %d shards are there", out, writer.num_shards - len(missing), writer.num_shards)
    try:
        with Progress(disable=not progress) as bar:
            task = bar.add_task("simulating", total=sum(len(writer.rows(shard)) for shard in missing))
            for shard in missing:
                rows = writer.rows(shard)
                parts = []
                for part in simulator.stream(rows.start, rows.stop):
                    parts.append(part)
                    bar.advance(task, len(part))
                writer.write(shard, concatenate(parts))
    except KeyboardInterrupt as error:
        raise RunError(f"stopped: complete shards are kept in {out}; the same command continues") from error
    writer.finish()
    return Path(out)
