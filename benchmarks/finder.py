"""Lens finding: the brief's network and ours on the same simulated survey, three seeds each, and our three as one.

20,000 training images of ``hsc-gri`` with one lens to 17 others; a test set of other images, 200 lenses and 20,000
others. Beside the networks, the naive baseline: logistic regression on size, flux and colours of the central object.

    python benchmarks/finder.py --seeds 3

Writes finder.json beside this file, after each step. Sets and runs lie below --work; what is there is used again.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import deeplense as dl
from deeplense.evaluate.ranking import compare, ranking_scores

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from test_shortcuts import central_light

TRAIN, PREVALENCE = 20_000, 1 / 18
LENSES, OTHERS = 200, 20_000
KEPT = ("auc", "average_precision", "tpr_0", "tpr_10", "tpr_at_fpr", "at_completeness", "at_prevalence", "top")


def simulated(folder: Path, num: int, prevalence: float, seed: int) -> dl.LensSet:
    """A set on disk, made if it is not there."""
    simulator = dl.Simulator("hsc-gri", seed=seed, compile=True, settings={"positive_fraction": prevalence})
    return dl.read(dl.write_set(simulator, num, folder, progress=True))


def test_set(folder: Path) -> dl.LensSet:
    """The first 200 lenses and 20,000 others of a sequence that is not the training images'."""
    made = simulated(folder, OTHERS + 2 * LENSES + 368, 1.06 * LENSES / OTHERS, seed=1000)
    assert made.label is not None
    rows = [np.flatnonzero(made.label == label)[:number] for label, number in ((1, LENSES), (0, OTHERS))]
    return made.select(np.sort(np.concatenate(rows)))


def trained(config: str, train: Path, out: Path, *settings: str) -> Path:
    """A finished run, trained if it is not there."""
    resolved = dl.load_config(config, [f"data={train}", f"out={out}", "train.export=[]", *settings])
    if not (out / "model.json").is_file():
        dl.fit(resolved, dl.load_data(resolved))
    return out


def log_odds(run: Path, images: dl.LensSet, prevalence: float) -> np.ndarray:
    """Calibrated log-odds of a lens at a prevalence, shape (N,)."""
    return dl.Predictor.load(run).retarget(prevalence).predict(images)["score"].to_numpy()


def judged(score: np.ndarray, label: np.ndarray, is_calibrated: bool = True) -> dict[str, Any]:
    """The scores that the table shows, with intervals."""
    found = ranking_scores(score, label, 1 / (1 + np.exp(-score)) if is_calibrated else None)
    return {name: found[name] for name in (*KEPT, *(["calibration"] if is_calibrated else []))}


def baseline(train: dl.LensSet, test: dl.LensSet) -> np.ndarray:
    """The score of logistic regression on what is measured of the central object."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced"))
    classifier.fit(np.nan_to_num(central_light(train.images), posinf=0, neginf=0), train.label)
    return classifier.decision_function(np.nan_to_num(central_light(test.images), posinf=0, neginf=0))


def seconds(run: Path) -> float:
    """How long a run trained."""
    with (run / "metrics.csv").open() as file:
        return sum(float(row["seconds"]) for row in csv.DictReader(file))


def main() -> None:
    """Make the sets, train what is missing, judge everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/finder-benchmark"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    work: Path = args.work
    train, test = simulated(work / "train", TRAIN, PREVALENCE, seed=1), test_set(work / "test")
    label, share = np.asarray(test.label), float(np.mean(np.asarray(test.label)))
    table: dict[str, Any] = {"train": train.class_counts(), "test": test.class_counts(), "rows": {}, "compared": {}}

    def keep(name: str, row: dict[str, Any]) -> None:
        table["rows"][name] = row
        args.out.write_text(json.dumps(table, indent=1) + "\n")
        fp = row["at_completeness"]["0.8"]["false_positives"]
        print(f"{name}: AUC {row['auc']['value']:.4f}, false positives at 80 %: {fp}", flush=True)

    keep("logistic regression", judged(baseline(train, test), label, is_calibrated=False))
    brief = [trained("brief/finder", work / "train", work / f"brief-{s}", f"seed={s}") for s in range(args.seeds)]
    ours = trained("finder", work / "train", work / "ours", f"train.ensemble={args.seeds}")
    members = [ours / f"member-{s + 1}" for s in range(args.seeds)]
    runs = {f"brief, seed {s}": run for s, run in enumerate(brief)}
    runs |= {f"ours, seed {s}": run for s, run in enumerate(members)} | {"ours, ensemble": ours}
    scores = {name: log_odds(run, test, share) for name, run in runs.items()}
    for name, run in runs.items():
        time = sum(map(seconds, members)) if run == ours else seconds(run)
        keep(name, judged(scores[name], label) | {"training_seconds": time})
    pairs = [(f"ours, seed {s}", f"brief, seed {s}") for s in range(args.seeds)]
    for a, b in [*pairs, ("ours, ensemble", "brief, seed 0")]:
        table["compared"][f"{a} / {b}"] = compare(scores[a], scores[b], label)
    args.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
