"""Prediction rates of a finder by engine, and the memory of `deeplense predict` on sets of growing size.

Rows are torch, compile, onnx and int8, each without an average and with the mean over all eight symmetries, in one
process and in turns, from raw arrays to table columns; of an ensemble, first for one of its networks alone. The cost
of 8 bits is the AUC on a simulated, balanced test set. With --memory the command itself runs, as a child process, on
sets of 10^4, 10^5 and 10^6 images: hard links of one shard under many names, so that no disk is needed.

    python benchmarks/predict.py weights/hsc-finder --rounds 7
    python benchmarks/predict.py weights/hsc-finder --memory --engine onnx
"""

from __future__ import annotations

import os

# Set before numpy and torch are imported: torch asks for its threads below, and idle ones do not spin in others' turns.
os.environ.update({f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}, OMP_WAIT_POLICY="passive")

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import deeplense as dl
from deeplense import weights
from deeplense.data import store
from deeplense.engines import auc
from deeplense.tasks import Classifier
from side_by_side import spread

ENGINES, AVERAGES = ("torch", "compile", "onnx", "int8"), ("none", "d4")
SHARD = 1000  # images of the shard that the sets of --memory consist of
# Says the peak memory of a command. A process of its own: a child's peak starts from the memory of its parent.
WATCH = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=sys.stderr, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def test_set(num: int) -> dl.LensSet:
    """As many lenses as others, of a sequence that no run is trained on."""
    simulator = dl.Simulator("hsc-gri", seed=1000, settings={"positive_fraction": 0.5})
    return simulator.images(np.arange(num))


def predictors(run: Path, images: dl.LensSet) -> dict[str, dl.Predictor]:
    """One for each row; those of 8 bits find their ranges on the test images."""
    made = {}
    for average in AVERAGES:
        for engine in ENGINES:
            made[f"{engine} {average}"] = dl.Predictor.load(run, "cpu", "onnx" if engine == "int8" else engine, average)
        print(f"{average}: {made[f'int8 {average}'].quantise([images])}", flush=True)
    return made


def rates(made: dict[str, dl.Predictor], images: dl.LensSet, rounds: int) -> dict[str, list[float]]:
    """Images per second of each row in each round."""
    found: dict[str, list[float]] = {name: [] for name in made}
    for name, predictor in made.items():
        predictor.predict(images)  # compiles, and warms up
        print(f"{name} is ready", flush=True)
    for _ in range(rounds):
        for name, predictor in made.items():
            begin = time.perf_counter()
            predictor.predict(images)
            found[name].append(len(images) / (time.perf_counter() - begin))
    return found


def compare(run: Path, num: int, rounds: int) -> dict[str, Any]:
    """The figures of all rows."""
    judged = test_set(num)
    timed = judged.select(np.arange(min(num, 512)))
    made = predictors(run, judged)
    found = rates(made, timed, rounds)
    rows: dict[str, Any] = {}
    for name, values in found.items():
        engine, average = name.split()
        ratio = [mine / torchs for mine, torchs in zip(values, found[f"torch {average}"], strict=True)]
        rows[name] = {"images_per_second": spread(values), "ratio": spread(ratio)}
        if engine in ("torch", "int8"):
            task = made[name].task
            assert isinstance(task, Classifier) and judged.label is not None
            rows[name]["auc"] = auc(task, made[name].outputs(judged), judged.label)
    return {"images": {"timed": len(timed), "judged": len(judged)}, "rounds": rounds, "rows": rows}


def single(run: Path, folder: Path) -> Path:
    """A run with the first network of an ensemble, in a folder of its own; the run itself if it has only one."""
    task = weights.load_task(run, Classifier)
    if task.config.train.ensemble == 1:
        return run
    train = task.config.train.model_copy(update={"ensemble": 1})
    task.config, task.network = task.config.model_copy(update={"train": train}), task.network.members[0]
    folder.mkdir()
    weights.save_task(task, folder)
    return folder


def linked_set(folder: Path, shard: Path, num: int) -> Path:
    """A set whose shards are all one file."""
    (folder / "data").mkdir(parents=True)
    record = json.loads((shard / "dataset.json").read_text())
    (only,) = record["shards"]
    shards = []
    for number in range(num // SHARD):
        name = f"data/part-{number:05d}.parquet"
        os.link(shard / only["file"], folder / name)
        shards.append({**only, "file": name})
    (folder / "dataset.json").write_text(json.dumps({**record, "shards": shards}))
    return folder


def memory(run: Path, sizes: list[int], engine: str) -> dict[str, Any]:
    """Seconds, rates and the largest resident memory of `deeplense predict` as a child process, one set at a time."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="deeplense-benchmark-") as place:
        shard = Path(place) / "shard"
        store.write(test_set(SHARD), shard, SHARD)
        for num in sizes:
            images, out = linked_set(Path(place) / str(num), shard, num), Path(place) / f"{num}.parquet"
            found[str(num)] = _child(["predict", run, f"data={images}", "--out", out, "--engine", engine], num)
            print(f"{num:,} images: {found[str(num)]}", flush=True)
    return {"engine": engine, "average": "none", "rows": found}


def _child(words: list[Any], num: int) -> dict[str, float]:
    command = [sys.executable, "-m", "deeplense.cli", *map(str, words), "--average", "none", "--quiet"]
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    begin = time.perf_counter()
    watched = subprocess.run([sys.executable, "-c", WATCH, *command], env=threads, stdout=subprocess.PIPE, check=True)
    seconds = time.perf_counter() - begin
    unit = 2**20 if platform.system() == "Darwin" else 2**10
    return {"seconds": seconds, "images_per_second": num / seconds, "peak_mb": int(watched.stdout) / unit}


def table(rows: dict[str, Any]) -> Table:
    """The figures: median, and in brackets smallest and largest."""
    shown = Table("engine", "average", "images/s", "x torch", "AUC")
    for name, row in rows.items():
        rate, ratio = row["images_per_second"], row["ratio"]
        cells = [
            "{median:.0f} ({min:.0f}-{max:.0f})".format(**rate),
            "{median:.2f} ({min:.2f}-{max:.2f})".format(**ratio),
        ]
        shown.add_row(*name.split(), *cells, f"{row['auc']:.4f}" if "auc" in row else "-")
    return shown


def save(path: Path, part: str, figures: dict[str, Any], threads: int) -> None:
    """Write a part of the figures, and keep the other if it is of the same machine and versions."""
    here = {"threads": threads, "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    here["versions"] = {name: version(name) for name in ("deeplense", "torch", "onnxruntime", "numpy")}
    there = json.loads(path.read_text()) if path.exists() else {}
    kept = there if there.get("environment") == here else {}
    path.write_text(json.dumps({**kept, "environment": here, part: figures}, indent=2) + "\n")


def main() -> None:
    """Measure, save and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", default=Path("weights/hsc-finder"))
    parser.add_argument("--num", type=int, default=1536, help="test images")
    parser.add_argument("--rounds", type=int, default=7, help="alternating rounds, 5 or more for a figure to quote")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", action="store_true", help="memory and rate of the command on ever larger sets")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**4, 10**5, 10**6], help=f"multiples of {SHARD}")
    parser.add_argument("--engine", default="torch", help="of --memory")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--quick", action="store_true", help="one small round, to see that it runs")
    args = parser.parse_args()
    if args.quick:
        args.num, args.rounds, args.sizes = 192, 1, [SHARD, 2 * SHARD]
    torch.set_num_threads(args.threads)
    if args.memory:
        with tempfile.TemporaryDirectory(prefix="deeplense-benchmark-") as place:
            run = single(args.run, Path(place) / "single")
            save(args.out, "memory", memory(run, args.sizes, args.engine), args.threads)
        return
    with tempfile.TemporaryDirectory(prefix="deeplense-benchmark-") as place:
        one = single(args.run, Path(place) / "single")
        for name, run in {"one network": one, "as it is": args.run}.items():
            figures = compare(run, args.num, args.rounds)
            save(args.out, name, figures, args.threads)
            print(name)
            Console(width=None if sys.stdout.isatty() else 120).print(table(figures["rows"]))
            if one == args.run:
                break


if __name__ == "__main__":
    main()
