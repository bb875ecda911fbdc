"""How long until a network tells substructure apart with a macro AUC of 0.95, from the same 9,000 images: two recipes.

The reference is the brief's (reference.py): ResNet-50 from random weights on the images as they are. Ours is
configs/physics.toml in short: a small network learns to measure lenses from the truth table of the same images, each
image is fitted by a smooth lens, and a classifier sees image, residual and convergence. Both begin with the images on
disk; ours includes every stage, start and end of the program too, the reference its training alone.

Each recipe has one core and one thread, so that both run at the same time: ours with one seed after the other, the
reference until ``--minutes`` are over, or until it is there. Time is that for which a recipe had its core (CPU time of
its processes), so that what else the machine does changes nothing. Test images are others; judging is not counted. The
reference goes on where it was stopped; finished runs of ours are not run again.

    deeplense simulate common-test --fidelity published --num 9000 --seed 1 --out data/published
    deeplense simulate common-test --fidelity published --num 1500 --seed 1000 --out data/published-test
    deeplense convert data/published data/published-npy --format npy
    deeplense convert data/published-test data/published-test-npy --format npy
    python benchmarks/time_to_auc.py data --minutes 120
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import deeplense as dl
from side_by_side import save

GOAL = 0.95
OURS = ["physics", "data.compile=true", "physics.inverter_epochs=3", "physics.forward=0", "physics.steps=6"]
OURS += ["train.epochs=4"]


def child(words: list[str], core: int, log: Path) -> subprocess.Popen[bytes]:
    """A process on one core with one thread."""
    alone = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        return subprocess.Popen(
            words,
            env={**os.environ, **alone},
            stdout=out,
            stderr=out,
            preexec_fn=partial(os.sched_setaffinity, 0, [core]),
        )


def ours(data: Path, work: Path, seed: int, core: int) -> dict[str, Any]:
    """Train with one seed and judge; CPU seconds of the whole command."""
    run, kept = work / f"ours-{seed}", work / f"ours-{seed}.json"
    if not kept.is_file():
        command = [sys.executable, "-m", "deeplense.cli", "train", *OURS, f"data={data / 'published'}"]
        begun = child([*command, f"seed={seed}", f"out={run}", "--quiet"], core, work / f"ours-{seed}.log")
        _, code, usage = os.wait4(begun.pid, 0)
        seconds = usage.ru_utime + usage.ru_stime
        if code:
            raise SystemExit(f"training failed: see {work / f'ours-{seed}.log'}")
        kept.write_text(json.dumps({"seconds": seconds}))
    found = json.loads(kept.read_text())
    if "auc" not in found:
        scores = dl.judge(run, dl.read(data / "published-test"), work / f"ours-{seed}-test")
        found |= {"auc": scores["auc_macro"], "n": scores["n"]}
        kept.write_text(json.dumps(found))
    return found


def rows_of(work: Path) -> list[dict[str, float]]:
    """The reference's epochs so far."""
    path = work / "reference" / "rows.json"
    return json.loads(path.read_text()) if path.is_file() else []


def main() -> None:
    """Run both and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the four sets")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=120, help="of training that the reference has at most")
    parser.add_argument("--work", type=Path, default=Path("runs/time-to-auc"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    here = Path(__file__).with_name("reference.py")
    sets = [str(args.data / "published-npy"), str(args.data / "published-test-npy")]
    alone = ["--threads", "1", "--workers", "1", "--epochs", "1000", "--out", str(args.work / "reference")]
    theirs = child([sys.executable, str(here), *sets, *alone], 0, args.work / "reference.log")
    try:
        found = {}
        for seed in range(args.seeds):
            found[f"seed {seed}"] = ours(args.data, args.work, seed, core=1)
            print(f"ours, seed {seed}: {found[f'seed {seed}']}", flush=True)
        while theirs.poll() is None:
            rows = rows_of(args.work)
            if rows and (rows[-1]["cpu_seconds"] > 60 * args.minutes or rows[-1]["auc"] >= GOAL):
                break
            time.sleep(5)
    finally:
        theirs.kill()
    rows = rows_of(args.work)
    there = [row["cpu_seconds"] for row in rows if row["auc"] >= GOAL]
    reached, spent = bool(there), there[0] if there else rows[-1]["cpu_seconds"]
    for row in found.values():
        row["times_faster"] = spent / row["seconds"]
    figures = {"goal": GOAL, "ours": found, "reference": rows, "reference_seconds": spent, "reference_reached": reached}
    save(args.out, figures | {"settings": OURS})
    word = "" if reached else "more than "
    print(f"reference: {rows[-1]}; ours is {word}{min(r['times_faster'] for r in found.values()):.1f} times faster")


if __name__ == "__main__":
    main()
