"""How many fixed images does the Common Test take? The recipe of configs/common-test.toml on 1,000, 3,000 and 9,000.

    deeplense simulate common-test --fidelity published --num 1500 --seed 1000 --out data/published-test
    python benchmarks/learning_curve.py data/published-test

The images are the same in every epoch; only mirrored copies are added. In the first epochs the substructure of the same
scenes is stronger, as in the recipe. Writes learning_curve.json beside this file; runs below runs/curve continue.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import deeplense as dl

# Images (whole blocks of 48) and the epochs with four times, two times and the real strength.
SIZES = {1008: (8, 3, 14), 3024: (4, 1, 6), 9024: (2, 1, 2)}


def train_and_judge(num: int, seed: int, test: dl.LensSet) -> dict[str, object]:
    """Train on ``num`` fixed images; returns the test scores and the time."""
    strong, double, real = SIZES[num]
    settings = dl.load_config(
        "common-test",
        [
            f"out=runs/curve/{num}-{seed}",
            f"seed={seed}",
            f"data.num={num}",
            "data.fresh=false",
            f"data.strength={[4.0] * strong + [2.0] * double + [1.0]}",
            f"train.epochs={strong + double + real}",
        ],
    )
    run = Path(settings.out)
    if not (run / "model.json").is_file():
        dl.fit(settings, dl.load_data(settings))
    metrics = dl.judge(run, test)
    with (run / "metrics.csv").open() as file:
        seconds = sum(float(row["seconds"]) for row in csv.DictReader(file))
    return {name: metrics[name] for name in ("auc_macro", "accuracy")} | {"training_seconds": seconds}


def main() -> None:
    """Run all sizes and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("test", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    test = dl.read(args.test)
    table = {}
    for num in SIZES:
        table[num] = train_and_judge(num, args.seed, test)
        print(num, table[num], flush=True)
        Path(__file__).with_suffix(".json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
