"""What the scripts of this folder share: a peer and ours in turn, the spread of their ratio, a table, a JSON file."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

SIMULATED = 3000
Rates = dict[str, list[float]]


def npy_set(folder: Path, num: int) -> Path:
    """A folder of ``num`` .npy files of the Common Test, made if it is not there.

    Images beyond the first 3,000 are copies of these under other names, which is all the same to speed.
    """
    import deeplense as dl

    made = folder / "made"
    if not (folder / "done").is_file():
        dl.write_set(dl.Simulator("common-test", "published", 1, compile=True), min(num, SIMULATED), made, "npy")
        files = sorted(made.glob("*/*.npy"))
        for k in range(len(files), num):
            source = files[k % len(files)]
            shutil.copyfile(source, source.with_name(f"copy-{k // len(files)}-{source.name}"))
        (folder / "done").touch()
    return made


def endless(batches: Iterable[Any]) -> Iterator[Any]:
    """One epoch after the other."""
    while True:
        yield from batches


def in_turns(works: Mapping[str, Callable[[], float]], rounds: int) -> Rates:
    """The rates that each gives, one round after the other, so that what else the machine does meets all of them."""
    rates: Rates = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            rates[name].append(work())
    return rates


def spread(values: list[float]) -> dict[str, float]:
    """Smallest, middle and largest of some measurements."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def compared(rates: Rates, peer: str) -> dict[str, Any]:
    """Spread of the rates, and of their ratios to the peer's in the same round."""
    ratios = {name: [a / b for a, b in zip(values, rates[peer], strict=True)] for name, values in rates.items()}
    return {
        name: {"images_per_second": spread(values), "ratio": spread(ratios[name])} for name, values in rates.items()
    }


def for_seconds(step: Callable[[], int], seconds: float) -> float:
    """Images per second of steps that say how many images they took, until so much time has passed."""
    images, start = 0, time.perf_counter()
    while not images or time.perf_counter() - start < seconds:
        images += step()
    return images / (time.perf_counter() - start)


def shown(values: Mapping[str, float]) -> str:
    """Median (smallest to largest)."""
    digits = 0 if values["median"] >= 100 else 1 if values["median"] >= 10 else 2
    return "{median:,.{d}f} ({min:,.{d}f} to {max:,.{d}f})".format(d=digits, **values)


def show(title: str, peer: str, rows: Mapping[str, Any]) -> None:
    """A table of what :func:`compared` says."""
    table = Table("", "images/s", f"x {peer}", title=title, title_justify="left")
    for name, row in rows.items():
        table.add_row(name, shown(row["images_per_second"]), shown(row["ratio"]))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def machine() -> dict[str, Any]:
    """What figures hold for."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("deeplense", "torch", "numpy")},
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _cpu() -> str:
    """Its name and the instructions that matter for matrix products."""
    import torch

    able = torch.cpu.get_capabilities()
    kinds = [name for name in ("avx2", "avx512_f", "avx512_bf16", "avx512_vnni", "amx_bf16") if able.get(name)]
    return f"{able.get('cpu_name') or platform.processor() or platform.machine()} ({', '.join(kinds)})"


def save(path: Path, figures: Mapping[str, Any]) -> None:
    """Write figures with the machine that they hold for, in one step."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"machine": machine(), **figures}, indent=1) + "\n")
    temporary.replace(path)
