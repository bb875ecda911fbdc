"""From 30,000 .npy files to the first batch of a training: the first time, and every time after it.

The first time the files are read by several threads and packed into one array in the cache folder (here an empty one);
later that array is mapped. In between, the operating system's own cache of files is emptied where this process may do
that (root), so that the first time means the disk. The peer is the Dataset of reference.py: it needs mean and standard
deviation of all files before its first batch, each time.

    python benchmarks/loading.py
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch

import reference
from deeplense import load_config, load_data
from deeplense.train import build_task, hold
from side_by_side import npy_set, save, spread


def forget() -> bool:
    """Empty the operating system's cache of files; whether that was allowed."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def first_batch(folder: Path) -> float:
    """Seconds from nothing but the settings to a batch that a network can take: statistics and split included."""
    start = time.perf_counter()
    resolved = load_config("substructure", [f"data={folder}"])
    data = load_data(resolved)
    task = build_task(resolved, data)
    hold(task, data, torch.device("cpu"))
    batch = next(iter(data.train_dataloader()))
    assert task.prepared(task.augment(batch["image"])).isfinite().all()
    return time.perf_counter() - start


def of_reference(folder: Path) -> float:
    """The same for the reference."""
    start = time.perf_counter()
    files = reference.files_of(folder)
    batches = iter(reference.loader(files, *reference.statistics(files), is_training=True))
    next(batches)
    return time.perf_counter() - start


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("data/benchmark-30000"), help="made if it is not there")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    folder = npy_set(args.folder, 30_000)
    load_data(load_config("tiny/substructure", [f"data={folder}", "data.cache=false", "data.fraction=0.01"]))
    seconds: dict[str, list[float]] = {name: [] for name in ("reference", "ours, first time", "ours, later")}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory(prefix="deeplense-benchmark-", dir=folder.parent) as cache:
            os.environ["DEEPLENSE_CACHE"] = cache
            is_cold = forget()
            seconds["ours, first time"].append(first_batch(folder))
            seconds["ours, later"].append(first_batch(folder))
        forget()
        seconds["reference"].append(of_reference(folder))
    rows = {name: {"seconds": spread(values)} for name, values in seconds.items()}
    number = len(reference.files_of(folder))
    save(args.out, {"files": number, "file_cache_was_emptied": is_cold, "rows": rows})
    for name, row in rows.items():
        print("{0:<18} {min:6.1f} s {median:6.1f} s {max:6.1f} s (min, median, max)".format(name, **row["seconds"]))


if __name__ == "__main__":
    main()
