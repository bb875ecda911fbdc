"""How fast a set is rendered, how fast it is written, and how fast both together are in one and in two processes.

    python benchmarks/write.py common-test published

Rates with workers are counted from the moment when a third of the images is there: processes that start, import and
compile are a matter of seconds, which a large set does not notice; ``seconds_to_start`` says how many.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch

from deeplense.data.schema import LensSet
from deeplense.data.store import ShardWriter
from deeplense.simulate.dataset import SHARD_SIZE
from deeplense.simulate.generate import Simulator, concatenate
from deeplense.simulate.workers import share, write_shards

MEASURES = ("generate", "write", "workers_1", "workers_2")


class Stopwatch:
    """When how many images were rendered."""

    def __init__(self) -> None:
        self.start, self.done, self.marks = time.perf_counter(), 0, list[tuple[float, int]]()

    def __call__(self, number: int) -> None:
        self.done += number
        self.marks.append((time.perf_counter(), self.done))

    def rate(self) -> float:
        """Images per second from the first third on until now."""
        begin, before = next(mark for mark in self.marks if mark[1] * 3 >= self.done)
        return (self.done - before) / (time.perf_counter() - begin)

    def seconds_to_start(self) -> float:
        """Until the first images were there."""
        return self.marks[0][0] - self.start


def folders() -> Generator[Path, None, None]:
    """A new empty folder each time; the last one is deleted."""
    while True:
        with tempfile.TemporaryDirectory(prefix="deeplense-benchmark-") as folder:
            yield Path(folder)


def generate(simulator: Simulator, num: int) -> float:
    """Images per second without a file."""
    start = time.perf_counter()
    for part in simulator.stream(0, num):
        del part
    return num / (time.perf_counter() - start)


def write(simulator: Simulator, shard: LensSet, num: int, out: Path) -> float:
    """Images per second of shards that are in memory already, dataset card and checksums included."""
    writer, start = ShardWriter(out, num, SHARD_SIZE, simulator.provenance()), time.perf_counter()
    for number in writer.missing():
        writer.write(number, shard)
    writer.finish()
    return num / (time.perf_counter() - start)


def both(simulator: Simulator, num: int, workers: int, out: Path) -> tuple[float, float]:
    """Images per second of ``write_set``, and the seconds until the first were there."""
    writer, watch = ShardWriter(out, num, SHARD_SIZE, simulator.provenance()), Stopwatch()
    if workers == 1:
        write_shards(simulator, writer, writer.missing(), watch)
    else:
        share(simulator, writer, writer.missing(), watch, workers)
    writer.finish()
    return watch.rate(), watch.seconds_to_start()


def measure(preset: str, fidelity: str, shards: int, rounds: int) -> dict[str, Any]:
    """All figures, in alternating rounds."""
    simulator, num, new = Simulator(preset, fidelity, seed=1, compile=True), shards * SHARD_SIZE, folders()
    shard = concatenate(list(simulator.stream(0, SHARD_SIZE)))
    rates: dict[str, list[float]] = {name: [] for name in MEASURES}
    starts = []
    for _ in range(rounds):
        rates["generate"].append(generate(simulator, num))
        rates["write"].append(write(simulator, shard, num, next(new)))
        for workers in (1, 2):
            rate, start = both(simulator, num, workers, next(new))
            rates[f"workers_{workers}"].append(rate)
        starts.append(start)
    new.close()
    return {
        "images": num,
        "rounds": rounds,
        "images_per_second": {
            name: {"min": min(v), "median": statistics.median(v), "max": max(v)} for name, v in rates.items()
        },
        "seconds_to_start": statistics.median(starts),
    }


def main() -> None:
    """Measure, and write the figures as JSON, to a file or to the terminal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("preset")
    parser.add_argument("fidelity")
    parser.add_argument("--shards", type=int, default=8, help=f"of {SHARD_SIZE} images, a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="torch threads of all processes together")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    text = json.dumps(measure(args.preset, args.fidelity, args.shards, args.rounds), indent=2) + "\n"
    if args.out is None:
        print(text, end="")
        return
    temporary = args.out.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(args.out)


if __name__ == "__main__":
    main()
