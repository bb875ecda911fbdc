"""Everything that a GPU is for, in one command of less than eight minutes: training, simulation, sampling, prediction.

    python benchmarks/gpu.py

Rates are of whole steps. Writes gpu.json beside this file after each part, so that a run that is cut off leaves what it
measured. ``--quick`` is the same with few and small images, for a CPU or to see that it runs; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import deeplense as dl
from deeplense.data.module import LensDataModule
from deeplense.models import backbone
from deeplense.simulate.generate import BLOCK
from deeplense.simulate.stream import simulated_set
from deeplense.tasks.draw import Request, draw
from deeplense.train import build_task, hold, precision
from side_by_side import endless, for_seconds, save

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    images: int  # of the recipe's training set
    test: int
    epochs: int
    batch: int
    seconds: float  # of each rate
    networks: tuple[str, ...]
    sides: tuple[int, ...]
    compiled: tuple[str, ...]
    simulated: int
    drawn: int
    steps: int
    predicted: int


FULL = Size(
    images=30_000,
    test=1488,
    epochs=25,
    batch=256,
    seconds=5.0,
    networks=("resnet-18", "resnet-50"),
    sides=(64, 128, 150),
    compiled=("default", "reduce-overhead"),
    simulated=96_000,
    drawn=1024,
    steps=20,
    predicted=100_000,
)
QUICK = Size(
    images=96,
    test=48,
    epochs=1,
    batch=8,
    seconds=0.1,
    networks=("resnet-18",),
    sides=(64,),
    compiled=(),
    simulated=BLOCK,
    drawn=2,
    steps=2,
    predicted=64,
)


def wait() -> None:
    """Until the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and the seconds that it took."""
    wait()
    start = time.perf_counter()
    result = work()
    wait()
    return result, time.perf_counter() - start


def noise_set(num: int, side: int, channels: int = 1) -> dl.LensSet:
    """Images whose content does not matter."""
    images = np.random.default_rng(0).normal(size=(num, channels, side, side)).astype(np.float32)
    label = np.arange(num) % 3
    return dl.LensSet(images, [str(i) for i in range(num)], label, ("no", "sphere", "vort"))


def training_rate(name: str, side: int, size: Size, compile: str = "no") -> dict[str, float]:
    """Images per second of training one network, its data path included, and the seconds until it ran."""
    settings = [f"model={name}", f"data.batch_size={size.batch}", "augment.flips=true", "augment.quarter_turns=true"]
    config = dl.load_config("substructure", [*settings, "model.crop=150", f"train.compile={compile}"])
    data = LensDataModule(noise_set(4 * size.batch, side), noise_set(6, side), size.batch)
    task = build_task(config, data).to(size_device()).train()
    hold(task, data, task.device)
    if compile != "no":
        task.network.compile(mode=compile)
    optimizer = torch.optim.AdamW(task.network.parameters(), 1e-3, fused=True)
    is_half = precision(config, task) == "bf16-mixed"

    stream = endless(data.train_dataloader())

    def step() -> int:
        batch = {name: column.to(task.device) for name, column in next(stream).items()}
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(task.device.type, torch.bfloat16, enabled=is_half):
            loss = task.step(batch, task.augment(batch["image"]))["loss"].mean()
        loss.backward()
        optimizer.step()
        return size.batch

    def some_steps() -> int:
        return sum(step() for _ in range(4)) + (wait() or 0)

    begin = timed(lambda: [step() for _ in range(3)])[1]
    return {"images_per_second": for_seconds(some_steps, size.seconds), "seconds_to_start": begin}


def size_device() -> torch.device:
    """Where all of this happens."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def training(size: Size) -> dict[str, Any]:
    """Rates of all networks and sizes; the largest of them compiled, too."""
    torch.set_float32_matmul_precision("high")
    rows = {f"{n}, {side} px": training_rate(n, side, size) for n in size.networks for side in size.sides}
    for mode in size.compiled:
        for name in size.networks:
            rows[f"{name}, 128 px, compiled ({mode})"] = training_rate(name, 128, size, mode)
    return rows


def recipe(size: Size) -> dict[str, Any]:
    """The brief's recipe on the whole set, from images in memory to a judged run."""
    options: dict[str, Any] = {"device": size_device().type, "compile": size is not QUICK}
    images, making = timed(lambda: simulated_set("common-test", "published", 1, size.images, **options))
    test = simulated_set("common-test", "published", 1000, size.test, **options)
    val = simulated_set("common-test", "published", 2, 2 * BLOCK, **options)
    with tempfile.TemporaryDirectory(prefix="deeplense-benchmark-") as folder:
        out = Path(folder) / "run"
        settings = [f"out={out}", "data.fraction=1", f"train.epochs={size.epochs}", "train.export=[]"]
        batch = ["data.batch_size=8", "model.size=64"] if size is QUICK else []
        config = dl.load_config("brief/substructure", [*settings, *batch])
        data = LensDataModule(images, val, config.data.batch_size, config.seed)
        run, seconds = timed(lambda: dl.fit(config, data, progress=False))
        with (run / "metrics.csv").open() as file:
            epochs = [float(row["seconds"]) for row in csv.DictReader(file)]
        scores = dl.judge(run, test, Path(folder) / "report")
    return {
        "images": size.images,
        "epochs": size.epochs,
        "batch": config.data.batch_size,
        "seconds": seconds,
        "seconds_of_epochs": epochs,
        "simulation_seconds": making,
        "auc": scores["auc_macro"],
    }


def simulation(size: Size) -> dict[str, Any]:
    """Images per second of the simulator, truth table included."""
    rows = {}
    for name, compile in {"eager": False, "compiled": True}.items():
        if compile and size is QUICK:
            continue  # compiling takes longer than all the rest
        simulator = dl.Simulator("common-test", "published", 1, device=size_device().type, compile=compile)
        begin = timed(lambda s=simulator: list(s.stream(0, BLOCK)))[1]
        _, seconds = timed(lambda s=simulator: [len(part) for part in s.stream(0, size.simulated)])
        rows[name] = {"images_per_second": size.simulated / seconds, "seconds_to_start": begin}
    return rows


def sampling(size: Size) -> dict[str, Any]:
    """Images per second that a diffusion model of configs/diffusion.toml draws, from random weights."""
    config = dl.load_config("diffusion", ["model.size=64"])
    images = noise_set(6, 64)
    task = build_task(config, LensDataModule(images, noise_set(3, 64), 2)).to(size_device()).eval()
    request = Request(sampler="dpm++", steps=size.steps)
    draw(task, 2, request, batch_size=2)
    _, seconds = timed(lambda: draw(task, size.drawn, request, batch_size=256))
    return {"dpm++": {"steps": size.steps, "images_per_second": size.drawn / seconds}}


def prediction(size: Size) -> dict[str, Any]:
    """Images per second of the finder that comes with the package, 3x64x64, with and without averaging."""
    images, rows = noise_set(size.predicted, 64, channels=3), {}
    for average in ("none", "d4"):
        predictor = dl.Predictor.load(ROOT / "weights" / "hsc-finder")
        model = predictor.task.config.model.model_copy(update={"average": average})
        predictor.task.config = predictor.task.config.model_copy(update={"model": model})
        predictor.predict(images.select(np.arange(min(64, len(images)))))
        _, seconds = timed(lambda p=predictor: p.predict(images, batch_size=1024))
        rows[f"finder, average {average}"] = {"images_per_second": len(images) / seconds}
    return rows


def network_facts() -> dict[str, int]:
    """Numbers of parameters."""
    config = dl.load_config("substructure")
    models = [config.model.model_copy(update={"name": name}) for name in FULL.networks]
    return {m.name: sum(p.numel() for p in backbone.build(m, 1, 3).parameters()) for m in models}


PARTS = {
    "training": training,
    "recipe": recipe,
    "simulation": simulation,
    "sampling": sampling,
    "prediction": prediction,
}


def main() -> None:
    """Measure part by part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    size, figures = QUICK if args.quick else FULL, {"parameters": network_facts()}
    if not torch.cuda.is_available() and not args.quick:
        parser.error("there is no GPU here: --quick runs a small version of it on a CPU")
    for name in args.parts:
        figures[name], seconds = timed(lambda name=name: PARTS[name](size))
        print(f"{name}, {seconds:.0f} s: {figures[name]}", flush=True)
        save(args.out, figures)


if __name__ == "__main__":
    main()
