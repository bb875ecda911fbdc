"""What each choice in training is worth: everything as it is by default, and one thing at a time taken back or added.

Whole steps of the compact network on 100x100 pixels and of ResNet-50 on 128x128, in turns; a ratio below 1 says what
is lost without the choice (or with what was not chosen: torch.compile on a CPU, half precision where it is not auto).

    python benchmarks/choices.py
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from side_by_side import compared, for_seconds, in_turns, npy_set, save, show
from training import RESNET, Step, of_our_loop

CHOICES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "float32": {"settings": ["train.precision=32-true"]},
    "channels first": {"settings": ["train.channels_last=false"]},
    "optimiser in many kernels": {"is_fused": False},
    "images prepared in every step": {"is_held": False},
    "compiled": {"settings": ["train.compile=default"]},
}
NETWORKS = {"compact": ["data.batch_size=96"], "resnet-50": [*RESNET, "model.crop=128"]}


def step_of(folder: Path, network: str, settings: tuple[str, ...] | list[str] = (), **how: bool) -> Step:
    """A step of a network with one choice changed."""
    return of_our_loop(folder, "substructure", *NETWORKS[network], *settings, **how)


def main() -> None:
    """Measure in turns, one network after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("data/benchmark-3000"), help="made if it is not there")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each in a round")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    folder, figures = npy_set(args.folder, 3000), {}
    for network in args.networks:
        steps = {name: step_of(folder, network, **how) for name, how in CHOICES.items()}
        for step in steps.values():
            step()
            step()
        works = {name: lambda step=step: for_seconds(step, args.seconds) for name, step in steps.items()}
        figures[network] = compared(in_turns(works, args.rounds), "as it is")
        save(args.out, figures)
        show(network, "as it is", figures[network])


if __name__ == "__main__":
    main()
