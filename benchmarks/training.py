"""Training rate of the same ResNet-50 on images of 128x128: the reference's loop and ours, whole steps with their data.

The reference: float32, one file an item, two workers. Ours: the set held as one array, channels last, a fused
optimiser, and bfloat16 where the CPU multiplies it; the same without bfloat16 as a row of its own, and the same with
the brief's random changes (warped images, blur) in place of mirrored and turned copies. Beside them, how close each
comes to the largest rate of matrix products that was measured here, by counting the operations of a step.

    python benchmarks/training.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import reference
from deeplense import load_config, load_data
from deeplense.train import build_task, hold, precision
from side_by_side import compared, endless, for_seconds, in_turns, npy_set, save, show, spread

RESNET = ["model=microsoft/resnet-50", "model.size=128", "data.batch_size=32"]


Step = Callable[[], int]


def of_reference_loop(folder: Path) -> Step:
    """A step of the reference; how many images it took."""
    files, model = reference.files_of(folder), reference.network().train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    loader = reference.loader(files, 10.0, 5.0, is_training=True)
    batches = endless(loader)

    def step() -> int:
        pair = next(batches)
        reference.step(model, optimizer, *pair)
        return len(pair[0])

    return step


def of_our_loop(folder: Path, config: str, *settings: str, is_held: bool = True, is_fused: bool = True) -> Step:
    """A step as Lightning makes it of a task of ours: augmentation, half precision, loss, optimiser."""
    resolved = load_config(config, [f"data={folder}", *settings])
    data = load_data(resolved, progress=False)
    task = build_task(resolved, data).train()
    if is_held:
        hold(task, data, torch.device("cpu"))
        data.fetch()
    if resolved.train.compile != "no":
        task.network.compile(mode=resolved.train.compile)
    optimizer = torch.optim.AdamW(task.network.parameters(), 1e-3, fused=is_fused)
    is_half, loader = precision(resolved, task) == "bf16-mixed", data.train_dataloader()
    batches = endless(loader)

    def step() -> int:
        batch = next(batches)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            loss = task.step(batch, task.augment(batch["image"]))["loss"].mean()
        loss.backward()
        optimizer.step()
        return len(batch["image"])

    return step


def operations() -> float:
    """Floating-point operations for one image of a step, forward and backward."""
    model, images = reference.network().train(), torch.randn(4, 1, 128, 128)
    with FlopCounterMode(display=False) as counter:
        model(images).logits.sum().backward()
    return counter.get_total_flops() / len(images)


def ceiling(dtype: torch.dtype, rounds: int = 5) -> dict[str, float]:
    """Operations per second of a product of two matrices of 2048 x 2048."""
    a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    rates = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        a @ b
        rates.append(2 * 2048**3 / (time.perf_counter() - start))
    return spread(rates[1:])


def main() -> None:
    """Measure in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("data/benchmark-3000"), help="made if it is not there")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each in a round")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    folder = npy_set(args.folder, 3_000)
    steps = {
        "reference": of_reference_loop(folder),
        "ours": of_our_loop(folder, "substructure", *RESNET, "model.crop=128"),
        "ours, float32": of_our_loop(folder, "substructure", *RESNET, "model.crop=128", "train.precision=32-true"),
        "ours, the brief's changes": of_our_loop(folder, "brief/substructure", *RESNET, "data.fraction=1"),
    }
    for step in steps.values():
        step()
    works = {name: lambda step=step: for_seconds(step, args.seconds) for name, step in steps.items()}
    rows: dict[str, Any] = compared(in_turns(works, args.rounds), "reference")
    per_image, most = operations(), {"float32": ceiling(torch.float32), "bfloat16": ceiling(torch.bfloat16)}
    for row in rows.values():
        rate = row["images_per_second"]["median"] * per_image
        row["share_of_ceiling"] = {kind: rate / of["median"] for kind, of in most.items()}
    save(args.out, {"rows": rows, "operations_per_image": per_image, "matrix_products_per_second": most})
    show("Training ResNet-50, 128x128", "reference", rows)
    print({name: {k: f"{v:.0%}" for k, v in row["share_of_ceiling"].items()} for name, row in rows.items()})


if __name__ == "__main__":
    main()
