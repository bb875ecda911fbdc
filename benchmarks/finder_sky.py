"""The finder that saw simulated images alone, on real ones: as it is, and fine-tuned on a part of them.

    python benchmarks/finder.py                    # trains it
    python benchmarks/finder_sky.py REAL           # a folder with cfhtls-lenses, lens-finding-figures, bologna-samples

Every set is cut to the field of the training images. Fine-tuned scores are out of fold: five folds that keep a patch of
sky on one side, each with a validation part of its own, so that no image is scored by a network that saw it or its
neighbours. Beside them, the same schedule from random weights. Writes finder_sky.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

import deeplense as dl
from deeplense.data.module import LensDataModule
from deeplense.data.split import grouped_split
from deeplense.evaluate.ranking import ranking_scores

FIELD = 64 * 0.168  # arcsec of a training image
FOLDS = 5
OTHERS = 2000  # simulated non-lenses that HST lenses are ranked among


def genuine(real: Path) -> tuple[dl.LensSet, list[str]]:
    """The 38 genuine images of the lens-finding set: (3, 64, 64), g r i."""
    images = dl.read(real / "lens-finding-figures", split="train")
    return images, list(images.name)


def cfht(real: Path) -> tuple[dl.LensSet, list[str]]:
    """Colour composites of 45 lenses and 82 hard non-lenses, blue to red, with their patch of sky."""
    images = dl.read(real / "cfhtls-lenses" / "labels.csv", bands=["B", "G", "R"])
    assert images.params is not None
    return _cut(images, 0.186), images.params["sky_group"].to_pylist()


def bologna(real: Path) -> tuple[dl.LensSet, list[str]]:
    """Simulated images of the Bologna challenge, ground: g r i of four bands; masked pixels are missing."""
    folder = real / "bologna-samples" / "ground_based"
    images = dl.read(folder, bands=["Band3", "Band1", "Band2"], mask_value=100.0)
    return _cut(images, 0.2), list(images.name)


def _cut(images: dl.LensSet, pixel_scale: float) -> dl.LensSet:
    """The central field that training images have."""
    size = round(FIELD / pixel_scale)
    start = (images.images.shape[-1] - size) // 2
    inside = slice(start, start + size)
    return replace(images, images=np.ascontiguousarray(images.images[..., inside, inside]))


SETS: dict[str, Callable[[Path], tuple[dl.LensSet, list[str]]]] = {
    "genuine lens-finding images": genuine,
    "CFHT Legacy Survey": cfht,
    "Bologna challenge, ground": bologna,
}


def fine_tuned(run: Path | None, images: dl.LensSet, groups: list[str], members: int) -> np.ndarray:
    """Out-of-fold log-odds (N,) of networks that start from a run, or from random weights where there is none."""
    label, score = np.asarray(images.label), np.empty(len(images))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(label, label, groups)
    start = ["train.freeze=0", "optim.lr=3e-3"] if run is None else [f"init={run}"]
    for learnt, judged in folds:
        parts = grouped_split(np.array(groups)[learnt], 0.2, 0, label[learnt])
        train, val = (images.select(learnt[rows]) for rows in parts)
        with tempfile.TemporaryDirectory() as folder:
            settings = [*start, f"out={folder}/run", f"train.ensemble={members}", "data=folds"]
            config = dl.load_config("finetune", settings)
            dl.fit(config, LensDataModule(train, val, config.data.batch_size, balanced=True), progress=False)
            score[judged] = dl.Predictor.load(Path(folder) / "run").predict(images.select(judged))["score"]
    return score


def above(real: Path, run: Path, others: Path) -> dict[str, float]:
    """HST lenses, one band in all channels, without non-lenses of their own: the share of simulated ones above each."""
    images, predictor = dl.read(real / "hst-lenses"), dl.Predictor.load(run)
    images = replace(images, images=np.repeat(images.images, predictor.task.in_channels, axis=1))
    simulated = dl.read(others)
    simulated = simulated.select(np.flatnonzero(np.asarray(simulated.label) == 0)[:OTHERS])
    lens, other = (predictor.predict(some)["score"].to_numpy() for some in (images, simulated))
    return {name: float(np.mean(other >= score)) for name, score in zip(images.name, lens, strict=True)}


def auc(score: np.ndarray, images: dl.LensSet) -> dict[str, Any]:
    """AUC with its interval."""
    return ranking_scores(score, images.label)["auc"]


def main() -> None:
    """Score each set as it is, and fine-tune on those with enough images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path)
    parser.add_argument("--runs", type=Path, nargs="+", default=[Path("runs/finder-benchmark/ours")])
    parser.add_argument("--others", type=Path, default=Path("runs/finder-benchmark/test"))
    parser.add_argument("--members", type=int, default=3, help="networks of the fine-tuned ensembles")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    table: dict[str, Any] = {}
    for name, read in SETS.items():
        images, groups = read(args.real)
        row = table[name] = {"images": images.class_counts()}
        for run in args.runs:
            row[f"{run.name}, untouched"] = auc(dl.Predictor.load(run).predict(images)["score"].to_numpy(), images)
        if len(images) >= 30:
            row["fine-tuned"] = auc(fine_tuned(args.runs[0], images, groups, args.members), images)
            row["from random weights"] = auc(fine_tuned(None, images, groups, args.members), images)
        print(name, json.dumps(row), flush=True)
        args.out.write_text(json.dumps(table, indent=1) + "\n")
    table["HST, share of simulated non-lenses above"] = above(args.real, args.runs[0], args.others)
    args.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
