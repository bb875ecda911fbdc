"""Diffusion on the Common Test at 64x64 pixels: the brief's recipe and ours, judged alike; samplers; use in training.

30,000 simulated images (``published``, 9,000 of each class to learn from), 9,600 others to judge by, and a substructure
network that was trained on images of its own as the judge of features. Each comparison stands beside its floor: the
same comparison between two halves of the held-out images.

    python benchmarks/diffusion.py

Writes diffusion.json beside this file, after each step. Sets, runs and samples lie below --work; what is there is used
again. About two and a half hours on two cores, of which one is the training of our model.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import deeplense as dl
from deeplense import weights
from deeplense.data.module import LensDataModule
from deeplense.evaluate.distances import frechet_distance, kernel_distance
from deeplense.evaluate.generator import features_of, framed
from deeplense.evaluate.page import plain
from deeplense.evaluate.scores import classification_scores
from deeplense.sample import sample
from deeplense.simulate.preview import write_grid
from deeplense.tasks import DiffusionTask
from deeplense.tasks.draw import Request, draw

FRAME = ["model.crop=100", "model.size=64"]
SAMPLERS = {"ddpm": (50, 200), "ddim": (10, 20, 50), "dpm++": (10, 20, 50), "unipc": (10, 20, 50)}
FEW = 100  # images that 1,000 steps can draw in six minutes
MANY = 1000


class Table:
    """What was measured so far, on disk after every step; what is there is not measured again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def __call__(self, group: str, name: str, measure: Any) -> Any:
        rows = self.values.setdefault(group, {})
        if name not in rows:
            rows[name] = plain(measure())
            self.path.write_text(json.dumps(self.values, indent=1) + "\n")
        print(f"{group}, {name}: {json.dumps(rows[name])[:300]}", flush=True)
        return rows[name]


def simulated(folder: Path, num: int, seed: int) -> dl.LensSet:
    """A set on disk, made if it is not there."""
    simulator = dl.Simulator("common-test", "published", seed, compile=True)
    return dl.read(dl.write_set(simulator, num, folder, progress=True))


def trained(config: str, out: Path, *settings: str) -> Path:
    """A finished run, trained if it is not there."""
    resolved = dl.load_config(config, [f"out={out}", "train.export=[]", *settings])
    if not (out / "model.json").is_file():
        dl.fit(resolved, dl.load_data(resolved))
    return out


def minutes(run: Path) -> float:
    """How long a run trained."""
    with (run / "metrics.csv").open() as file:
        return sum(float(row["seconds"]) for row in csv.DictReader(file)) / 60


def drawn(run: Path, folder: Path, num: int, sampler: str, steps: int, seed: int = 7) -> dl.LensSet:
    """Samples on disk, drawn if they are not there."""
    return dl.read(sample(run, num, folder, sampler=sampler, steps=steps, seed=seed, format="parquet"))


def fidelity(
    run: Path, test: dl.LensSet, judge: Path, work: Path, num: int, sampler: str, steps: int
) -> dict[str, Any]:
    """The whole report of one run, and its scores."""
    name = f"{run.name}-{sampler}-{steps}-{num}"
    images = drawn(run, work / "samples" / name, num, sampler, steps)
    held_out = test.select(np.arange(min(len(test), max(2 * num, 2000))))
    metrics = dl.judge(run, held_out, work / "reports" / name, features=judge, generated=images)
    return {"minutes_of_training": minutes(run), "n": num} | metrics["fidelity"]


def speed(task: DiffusionTask, held: list[np.ndarray], see: Any, sampler: str, steps: int) -> dict[str, Any]:
    """Images a second of one sampler, and the distance of the features of its images from those of held-out ones."""
    num, start = len(held[0]), time.perf_counter()
    images = draw(task, num, Request(sampler=sampler, steps=steps, seed=11)).images
    rate, features = num / (time.perf_counter() - start), see(images)[0]
    found = {"images": num, "images_per_second": rate}
    for name, distance in (("frechet", frechet_distance), ("kernel", kernel_distance)):
        found |= {name: distance(features, held[0]), f"{name}_floor": distance(held[1], held[0])}
    return found


def used(parts: list[dl.LensSet], test: dl.LensSet, out: Path, seed: int) -> dict[str, Any]:
    """Macro AUC on simulated images of a classifier that was trained on these sets, about 45,000 images of training."""
    images = np.concatenate([part.images for part in parts])
    label = np.concatenate([part.label for part in parts if part.label is not None])
    val = test.select(np.arange(len(test) - 960, len(test)))
    train = dl.LensSet(images, [str(i) for i in range(len(images))], label, test.classes)
    epochs = max(1, round(45_000 / len(images)))
    settings = ["model.stretch=sqrt", "model.average=flips", "augment.quarter_turns=false", "optim.lr=2e-3"]
    resolved = dl.load_config("substructure", [*settings, f"train.epochs={epochs}", f"seed={seed}", f"out={out}"])
    if not (out / "model.json").is_file():
        dl.fit(resolved, LensDataModule(train, val, 96, seed))
    judged = test.select(np.arange(3000))
    predictor = dl.Predictor.load(out)
    probs = np.stack([predictor.predict(judged)[f"p_{name}"].to_numpy() for name in test.classes], axis=1)
    scores = classification_scores(probs, judged.label, test.classes, 1000, 0)
    return {"images": len(images), "auc_macro": scores["auc_macro"], "accuracy": scores["accuracy"]}


def probed(parts: list[dl.LensSet], test: dl.LensSet, see: Any) -> dict[str, Any]:
    """The same of a linear classifier on the judge's features, which know substructure already."""
    points = np.concatenate([see(part.images)[0] for part in parts])
    label = np.concatenate([part.label for part in parts if part.label is not None])
    judged = test.select(np.arange(3000))
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=5000)).fit(points, label)
    scores = classification_scores(classifier.predict_proba(see(judged.images)[0]), judged.label, test.classes, 1000, 0)
    return {"images": len(points), "auc_macro": scores["auc_macro"], "accuracy": scores["accuracy"]}


def picture(test: dl.LensSet, images: dl.LensSet, path: Path, title: str) -> None:
    """Held-out and drawn images of each class, one row below the other."""
    rows = {}
    for number, name in enumerate(test.classes):
        for part, how in ((test, "simulated"), (images, "drawn")):
            rows[f"{name}, {how}"] = part.images[np.flatnonzero(np.asarray(part.label) == number)[:8]]
    write_grid(list(rows.values()), list(rows), path, title)


def in_frame(images: dl.LensSet, preprocess: Any) -> dl.LensSet:
    """The same set as the generator sees it."""
    return replace(images, images=framed(preprocess, images.images))


def main() -> None:
    """Make the sets, train what is missing, judge everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/diffusion-benchmark"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    pictures = Path(__file__).parents[1] / "docs" / "pictures"
    parser.add_argument("--picture", type=Path, default=pictures / "diffusion.png")
    args = parser.parse_args()
    work, table = args.work, Table(args.out)
    train, test = simulated(work / "train", 30_000, seed=20), simulated(work / "test", 9_600, seed=21)
    judge = trained("common-test", work / "judge", "model.size=64", "train.epochs=32", "data.seed=77")
    data = f"data={work / 'train'}"
    ours, brief = (
        trained("diffusion", work / "ours", data, *FRAME),
        trained("brief/diffusion", work / "brief", data, *FRAME),
    )
    judged = lambda *which: fidelity(*which[:1], test, judge, work, *which[1:])  # noqa: E731
    table("fidelity", "ours, dpm++, 20 steps", lambda: judged(ours, MANY, "dpm++", 20))
    table("fidelity", "brief, ddpm, 1000 steps", lambda: judged(brief, FEW, "ddpm", 1000))
    table("fidelity", "ours, dpm++, 20 steps, as few images", lambda: judged(ours, FEW, "dpm++", 20))
    task = weights.load_task(ours, DiffusionTask)
    images = drawn(ours, work / "samples" / f"{ours.name}-dpm++-50-{MANY}", MANY, "dpm++", 50)
    title = "Common Test, 64x64 pixels: held-out images and images drawn in 50 steps, the first of each, not chosen"
    picture(in_frame(test.select(np.arange(96)), task.preprocess), images, args.picture, title)
    see = features_of(judge, task.preprocess)
    halves = [see(framed(task.preprocess, test.images[start : start + 126]))[0] for start in (0, 126)]
    for sampler, all_steps in SAMPLERS.items():
        for steps in all_steps:
            table(
                "samplers",
                f"{sampler}, {steps} steps",
                lambda s=sampler, k=steps: speed(task, halves, see, s, k),
            )
    few = in_frame(train.select(np.arange(300)), task.preprocess)
    many = in_frame(train.select(np.arange(3000)), task.preprocess)
    others = in_frame(test, task.preprocess)
    synthetic = drawn(ours, work / "samples" / "use", 3000, "dpm++", 20, seed=13)
    sets = {
        "1 % (300 simulated)": [few],
        "3,000 generated": [synthetic],
        "1 % and 3,000 generated": [few, synthetic],
        "3,000 simulated": [many],
    }
    for name, parts in sets.items():
        table("probe", name, lambda parts=parts: probed(parts, others, see))
    for name, parts in sets.items():
        table(
            "use",
            name,
            lambda parts=parts, n=name: used(
                parts, others, work / "use" / n.replace(" ", "-").replace("%", "pc"), seed=0
            ),
        )
    table("fidelity", "ours, dpm++, 50 steps", lambda: judged(ours, MANY, "dpm++", 50))
    table("fidelity", "ours, ddpm, 1000 steps", lambda: judged(ours, FEW, "ddpm", 1000))


if __name__ == "__main__":
    main()
