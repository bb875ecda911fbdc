"""Simulated sets on disk: sharded, with a progress bar, continued after a kill."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deeplense.data.fill import Advance, Writer, fill, find_writer
from deeplense.errors import ConfigError
from deeplense.simulate.generate import BLOCK, Simulator, check_number
from deeplense.simulate.workers import share, write_shards

# A multiple of the block, so that no image is rendered twice; 43 MB of 150x150 pixels, and each process holds two.
SHARD_SIZE = 10 * BLOCK


def _try(simulator: Simulator) -> None:
    """See that images can be made at all, before a folder is claimed for them.

    Raises:
        ConfigError: the settings give pixels that are no numbers.
    """
    if not np.isfinite(simulator.block(0).images).all():
        raise ConfigError(f"{simulator.preset.name}: these settings give pixels that are no numbers; change them back")


def write_set(
    simulator: Simulator,
    num: int,
    out: Path | str,
    layout: str = "parquet",
    progress: bool = False,
    workers: int = 1,
) -> Path:
    """Write images 0 to num - 1 of a simulator to a folder; the same call again continues after a kill.

    Args:
        layout: "parquet" for shards with a dataset card, "npy" for the DeepLense folders.
        progress: show a bar.
        workers: processes that share the work; the files are the same for any number. With more than one, a script
            that calls this needs the line ``if __name__ == "__main__":`` before its own work, as with all processes
            that Python starts afresh.

    Raises:
        ConfigError: an unknown layout, no images, or no workers.
        RunError: the folder holds something else, or a set made with other settings.
    """
    make_writer = find_writer(layout)
    check_number(num)
    if workers < 1:
        raise ConfigError(f"workers={workers}: one process or more")
    if not Path(out).expanduser().exists():
        _try(simulator)
    writer = make_writer(out, num, SHARD_SIZE, simulator.provenance())

    def make(shards: list[int], advance: Advance) -> None:
        _write(simulator, writer, shards, advance, workers)

    fill(writer, make, "simulating", progress=progress)
    return Path(out)


def _write(simulator: Simulator, writer: Writer, shards: list[int], advance: Advance, workers: int) -> None:
    """Write the shards here or in other processes."""
    if min(workers, len(shards)) <= 1:
        write_shards(simulator, writer, shards, advance)
    else:
        share(simulator, writer, shards, advance, workers)
