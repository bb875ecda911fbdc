"""How fast images come out of the data path, ready for a network that costs nothing: the reference's and ours.

The reference loads one file an item and changes it by its transforms in two worker processes. Ours are two rows: the
recipe of configs/substructure.toml (centre crop, square root, mirrored and turned copies), and that of
configs/brief/substructure.toml, which asks for the same changes as the reference. Both include reading nothing twice:
the first epoch's reading and preparation is what loading.py measures.

    python benchmarks/data_path.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import reference
from deeplense import load_config, load_data
from deeplense.train import build_task, hold
from side_by_side import compared, for_seconds, in_turns, npy_set, save, show


class Stream:
    """Batches without end, one epoch after the other."""

    def __init__(self, batches: Callable[[], Iterator[Any]]) -> None:
        self.batches, self.now = batches, batches()

    def __call__(self) -> int:
        """Take one batch; how many images it has."""
        batch = next(self.now, None)
        if batch is None:
            self.now = self.batches()
            batch = next(self.now)
        return len(batch)


def of_reference(folder: Path) -> Stream:
    """Batches of the reference's loader; its workers stay for an epoch."""
    files = reference.files_of(folder)
    batches = reference.loader(files, 10.0, 5.0, is_training=True)
    return Stream(lambda: (images for images, _ in batches))


def of_ours(folder: Path, config: str, *settings: str) -> Stream:
    """Batches as the network of a config meets them in training."""
    resolved = load_config(config, [f"data={folder}", *settings])
    data = load_data(resolved)
    task = build_task(resolved, data)
    hold(task, data, torch.device("cpu"))
    data.fetch()
    loader = data.train_dataloader()

    def batches() -> Iterator[Any]:
        return (task.prepared(task.augment(batch["image"])) for batch in loader)

    return Stream(batches)


def main() -> None:
    """Measure in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("data/benchmark-9000"), help="made if it is not there")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each in a round")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    folder = npy_set(args.folder, 9_000)
    streams = {
        "reference": of_reference(folder),
        "ours": of_ours(folder, "substructure"),
        "ours, the brief's changes": of_ours(folder, "brief/substructure", "data.fraction=1"),
    }
    for stream in streams.values():
        stream()  # workers start
    works = {name: lambda stream=stream: for_seconds(stream, args.seconds) for name, stream in streams.items()}
    rows = compared(in_turns(works, args.rounds), "reference")
    save(args.out, {"rows": rows})
    show("Data path", "reference", rows)


if __name__ == "__main__":
    main()
