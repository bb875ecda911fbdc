"""Simulation rates side by side: deeplense, lenstronomy and caustics on the same scenes, in one process, in turns.

Rows are a number of pixels and what is in the lens: nothing but a SIE and shear (macro), 25 point masses, 25 truncated
NFW haloes, or a vortex (ours in closed form; for the others 100 point masses on its line, as DeepLenseSim makes it);
all with a Sersic source, a Gaussian PSF and photon noise. ``hsc-gri`` is a whole survey scene in three bands. Ours is
the path of ``deeplense simulate``, draws and truth table included, every image with the row's kind of substructure; the
others get ready-made scenes: lenstronomy one core and one ImageModel, caustics its functions under torch.func.vmap and
all threads (peers.py). ``write-*`` rows are those of write.py.

    python benchmarks/simulate.py --rows points-150 --num 192 --rounds 5
"""

# ruff: noqa: E402
from __future__ import annotations

import os
import tempfile

# Set before numpy and torch are imported: lenstronomy has one thread, torch asks for its own below, idle threads do not
# spin in the other's turn, and the compiler starts without a cache, so that its time is that of a first run.
os.environ.update(
    {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}, OMP_WAIT_POLICY="passive"
)
CACHE = tempfile.TemporaryDirectory(prefix="deeplense-benchmark-")
os.environ["TORCHINDUCTOR_CACHE_DIR"] = CACHE.name

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from deeplense.simulate import scene
from deeplense.simulate.generate import BLOCK, Simulator
from deeplense.simulate.render import render
from deeplense.simulate.substructure import Columns
from peers import Caustics, Kwargs, Lenstronomy, LenstronomySurvey, seconds
from side_by_side import spread

CHECKED = 16  # scenes whose noiseless pixels are compared
LEAST = 0.5  # seconds that each library has in a round


@dataclass(frozen=True)
class Row:
    """One comparison: a preset with some settings, and the class of substructure that all its images have."""

    preset: str
    fidelity: str
    kind: int
    settings: Kwargs


PIXELS: dict[str, Kwargs] = {"64": {"num_pix": 64, "pixel_scale": 0.1}, "150": {"num_pix": 150}}
CONTENTS: dict[str, tuple[int, Kwargs]] = {
    "macro": (0, {}),
    "points": (1, {}),
    "tnfw": (1, {"sphere.profile": "tnfw"}),
    "vortex": (2, {}),
}
ROWS = {
    f"{content}-{size}": Row("common-test", "published", kind, pixels | settings)
    for size, pixels in PIXELS.items()
    for content, (kind, settings) in CONTENTS.items()
}
# One seeing, so that lenstronomy, too, can keep its PSF.
ROWS["hsc-gri"] = Row("hsc-gri", "physical", 0, {"observation.seeing": 1.0})
WRITE_ROWS = {"write-common-test": ("common-test", "published"), "write-hsc-gri": ("hsc-gri", "physical")}


class OneKind(Simulator):
    """The package's simulator, except that every image is of one class, not only every third."""

    def __init__(self, row: Row) -> None:
        super().__init__(row.preset, row.fidelity, seed=1, compile=True, settings=row.settings)
        self.row, engine = row, self._photograph
        self._photograph = lambda scenes, preset, world, exposure, _, noise: engine(
            scenes, preset, world, exposure, row.kind, noise
        )
        self._render = torch.compile(render, dynamic=False)

    def groups(self, number: int) -> list[Columns]:
        """As many groups as in the package, of a size as there, but all of one class."""
        if self.row.preset == "hsc-gri":
            return super().groups(number)
        draws = (scene.generator(self.seed, number, k, scene.SCENE) for k in range(len(self.classes)))
        size = BLOCK // len(self.classes)
        return [
            scene.draw(self.preset, self.world, self.exposure, self.row.kind, size, self.strength, rng) for rng in draws
        ]

    def clean(self, columns: Columns) -> np.ndarray:
        """Noiseless images of a whole group, electrons per second, by the compiled engine, shape (B, C, H, W)."""
        return self._render(self._scenes(columns), self.preset, self.world, self.exposure, self.row.kind).numpy()


def rate(work: Callable[[], Any], images: int, least: float) -> float:
    """Images per second, from as many calls as take ``least`` seconds."""
    calls, passed = 0, 0.0
    while not calls or passed < least:
        calls, passed = calls + 1, passed + seconds(work)
    return calls * images / passed


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference of a pixel in any image and band, over the peak there."""
    return float((np.abs(ours - theirs).max((2, 3)) / theirs.max((2, 3))).max())


def only_shared(columns: Columns) -> Columns:
    """The lenses among survey scenes, without what lenstronomy has not: arms, clumps, stars, neighbours' soft cusps."""
    gone = {name: np.full_like(columns[name], np.inf) for name in columns if name.endswith("_magnitude")}
    kept = {name: columns[name] for name in ("lens_magnitude", "source_magnitude")}
    columns = columns | gone | kept | {name: np.zeros(BLOCK) for name in ("arms_contrast", "ring_share")}
    lenses = np.flatnonzero(columns["label"])
    return scene.select(columns, np.resize(lenses, BLOCK))


def agreement(simulator: OneKind, columns: Columns, peers: dict[str, Any], num: int) -> dict[str, float]:
    """Largest noiseless differences over the peak, for the first ``num`` scenes of a group."""
    lenstronomy, inside = peers["lenstronomy"], slice(None)
    if isinstance(lenstronomy, LenstronomySurvey):
        columns = only_shared(columns)
        lenstronomy = LenstronomySurvey(simulator, columns)
        # Beyond the border the sky is dark for lenstronomy, and as at the edge for us.
        inside = slice(simulator.exposure.psf_radius, -simulator.exposure.psf_radius)
    ours, theirs = simulator.clean(columns)[:num], lenstronomy.exact(num)
    found = {"lenstronomy": difference(ours[..., inside, inside], theirs[..., inside, inside])}
    if "caustics" in peers:
        found["caustics"] = difference(peers["caustics"].clean(num), lenstronomy.clean(num))
    return found


def compare(row: Row, num: int, rounds: int, least: float) -> dict[str, Any]:
    """All figures of a row; the peers render one group of scenes, again and again until ``least`` seconds are over."""
    simulator = OneKind(row)
    columns = simulator.groups(0)[0]
    peers, size = _peers(simulator, columns), len(columns["theta_E"])
    first, again = (seconds(lambda: simulator.block(0)) for _ in range(2))
    work: dict[str, tuple[Callable[[], Any], int]] = {
        name: (partial(peer.images, size), size) for name, peer in peers.items()
    }
    work["deeplense"] = lambda: [len(part) for part in simulator.stream(0, num)], num
    peers["lenstronomy"].images(1)
    rates: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, (call, images) in work.items():
            rates[name].append(rate(call, images, least))
    ratios = {name: [o / p for o, p in zip(rates["deeplense"], rates[name], strict=True)] for name in peers}
    figures: dict[str, Any] = {"images": num, "images_of_peers": size, "rounds": rounds, "settings": row.settings}
    figures |= {"compile_seconds": first - again, "images_per_second": {k: spread(v) for k, v in rates.items()}}
    figures["ratio"] = {name: spread(values) for name, values in ratios.items()}
    figures["largest_pixel_difference_over_peak"] = agreement(simulator, columns, peers, min(size, CHECKED))
    if "caustics" in peers:
        haloes = "one by one" if peers["caustics"].is_loop else "vmap"
        figures["caustics"] = {"batch": peers["caustics"].batch, "haloes": haloes}
    return figures


def _peers(simulator: OneKind, columns: Columns) -> dict[str, Any]:
    if simulator.row.preset == "hsc-gri":
        return {"lenstronomy": LenstronomySurvey(simulator, columns)}
    kind = simulator.row.kind
    return {"lenstronomy": Lenstronomy(simulator, columns, kind), "caustics": Caustics(simulator, columns, kind)}


def compare_writing(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of write.py, which runs by itself: its workers import the script that started them."""
    with tempfile.TemporaryDirectory(prefix="deeplense-benchmark-") as folder:
        out = Path(folder) / "figures.json"
        command = [sys.executable, str(Path(__file__).with_name("write.py")), *WRITE_ROWS[name], "--out", str(out)]
        numbers = {"--rounds": min(args.rounds, 3), "--threads": args.threads, "--shards": 2 if args.quick else 8}
        subprocess.run([*command, *(str(word) for pair in numbers.items() for word in pair)], check=True)
        return json.loads(out.read_text())


def environment(threads: int) -> dict[str, Any]:
    """What the figures hold for."""
    return {
        "threads": {"lenstronomy": 1, "caustics": threads, "deeplense": threads},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {k: version(k) for k in ("deeplense", "lenstronomy", "caustics", "torch", "numpy")},
    }


def tables(rows: dict[str, Any]) -> list[Table]:
    """The figures: median, and in brackets smallest and largest; differences from lenstronomy, ours and caustics'."""
    titles = ("deeplense/s", "lenstronomy/s", "caustics/s", "x lenstronomy", "x caustics", "off by", "compile s")
    compared = Table("row", *titles)
    written = Table("row", "generate/s", "write/s", "1 worker/s", "2 workers/s")
    for name, row in rows.items():
        rates = row["images_per_second"]
        if name in WRITE_ROWS:
            written.add_row(name, *(_range(values) for values in rates.values()))
            continue
        cells = [_range(rates.get(who)) for who in ("deeplense", "lenstronomy", "caustics")]
        cells += [_range(row["ratio"].get(who)) for who in ("lenstronomy", "caustics")]
        off = " ".join(f"{value:.0e}" for value in row["largest_pixel_difference_over_peak"].values())
        compared.add_row(name, *cells, off, f"{row['compile_seconds']:.0f}")
    return [table for table in (compared, written) if table.row_count]


def _range(values: dict[str, float] | None) -> str:
    if values is None:
        return "-"
    digits = 1 if values["median"] < 100 else 0
    return "{median:.{d}f} ({min:.{d}f}-{max:.{d}f})".format(d=digits, **values)


def save(path: Path, rows: dict[str, Any], threads: int) -> None:
    """Write the rows, and keep those that stand there already for the same machine and versions."""
    here, there = environment(threads), json.loads(path.read_text()) if path.exists() else {}
    kept = there["rows"] if there.get("environment") == here else {}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"environment": here, "rows": kept | rows}, indent=2) + "\n")
    temporary.replace(path)


def main() -> None:
    """Measure row by row, save after each, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    every = [*ROWS, *WRITE_ROWS]
    parser.add_argument("--rows", nargs="+", default=every, choices=every, metavar="ROW", help=", ".join(every))
    parser.add_argument("--num", type=int, default=4 * BLOCK, help=f"images of ours a round, a multiple of {BLOCK}")
    parser.add_argument("--rounds", type=int, default=7, help="alternating rounds, 5 or more for a figure to quote")
    parser.add_argument("--threads", type=int, default=2, help="torch threads; lenstronomy has one")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--quick", action="store_true", help="one small round, to see that it runs")
    args = parser.parse_args()
    if args.quick:
        args.num, args.rounds = BLOCK, 1
    if args.num < BLOCK or args.num % BLOCK or args.rounds < 1:
        parser.error(f"--num is a multiple of {BLOCK}, --rounds 1 or more")
    torch.set_num_threads(args.threads)
    rows = {}
    for name in args.rows:
        if name in WRITE_ROWS:
            rows[name] = compare_writing(name, args)
        else:
            rows[name] = compare(ROWS[name], args.num, args.rounds, 0.0 if args.quick else LEAST)
        save(args.out, rows, args.threads)
    for table in tables(rows):
        Console(width=None if sys.stdout.isatty() else 150).print(table)


if __name__ == "__main__":
    main()
