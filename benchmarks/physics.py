"""Physics-guided learning on the Common Test: lenses measured, substructure from few images, other instruments.

    python benchmarks/physics.py [--genuine FOLDER]

Writes physics.json beside this file, after each step; sets of measured images and trained classifiers lie below --work,
and what is there is used again. The inverters are those of weights/. About an hour and a half on two cores.

Everything is compared on the same images: one backbone (`compact`, 32 images a batch, 40 epochs of 300 images or 26 of
900, 300 validation images choose the epoch) that sees the image alone, or the image with residual and convergence
of the smooth lens; and the controls: a fit with alpha = 0, the residual of another image, the residual alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deeplense import config as configs
from deeplense import train, weights
from deeplense.data.module import LensDataModule, param_values
from deeplense.data.read import read
from deeplense.data.schema import LensSet
from deeplense.evaluate.mass_sheet import deflection_error, no_lensing_error
from deeplense.evaluate.measurements import measurement_scores
from deeplense.evaluate.page import plain
from deeplense.evaluate.paired import side_by_side
from deeplense.simulate.generate import BLOCK, Simulator
from deeplense.simulate.render import deflect
from deeplense.simulate.scene import Scenes
from deeplense.simulate.stream import simulated_set
from deeplense.tasks import InversionTask
from deeplense.tasks.inversion import PARAMS
from deeplense.tasks.physics import see
from deeplense.tasks.telescope import telescope_of

HERE = Path(__file__).parent
INVERTERS = HERE.parent / "weights"
CLASSES = ("no", "sphere", "vort")
CHANNELS = ["image", "residual", "model", "kappa"]
FIDELITIES = ("physical", "published")
SEEDS, NUMBERS, NUM_VAL = (0, 1, 2), (300, 900), 300
# What a classifier sees, and which set of measured images.
METHODS: dict[str, tuple[list[str], str, bool]] = {
    "plain": (["image"], "", False),
    "physics": (["image", "residual", "kappa"], "", False),
    "residual": (["residual"], "", False),
    "shuffled": (["image", "residual", "kappa"], "", True),
    "no-lensing": (["image", "residual"], "-no-lensing", False),
}
# A quarter of the exposure, which doubles the noise beside the light, and a PSF 1.5 times as wide.
WORSE: dict[str, dict[str, Any]] = {
    "physical": {
        "observation.exposure_time": 137.5,
        "observation.psf_fwhm": {"uniform": [0.135, 0.18]},
        "observation.psf_radius": 6,
    },
    "published": {
        "observation.exposure_time": 25.0,
        "observation.psf_fwhm": 0.35322,
        "observation.psf_radius": 5,
    },
}
TEST_SEED, NUM_TEST = 33, 2976
SETS = {"train": (31, 960), "val": (32, 480), "test": (TEST_SEED, NUM_TEST), "shift": (TEST_SEED, 1488)}
SETS |= {"train-no-lensing": (31, 336), "val-no-lensing": (32, 480), "test-no-lensing": (TEST_SEED, 1488)}
RADIUS = 2.0  # arcsec, inside which deflections are compared


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
        print(f"{group}, {name}: {json.dumps(rows[name])[:400]}", flush=True)
        return rows[name]


def inverter(fidelity: str) -> InversionTask:
    """The trained one, which compiles its fits."""
    return weights.load_task(INVERTERS / f"inverter-{fidelity}", InversionTask)


def simulated(fidelity: str, name: str) -> LensSet:
    """The images of a set; the worse instrument sees the scenes of the test set."""
    seed, num = SETS[name]
    return simulated_set("common-test", fidelity, seed, num, settings=WORSE[fidelity] if name == "shift" else None)


def measured(work: Path, fidelity: str, name: str) -> Mapping[str, np.ndarray]:
    """What a smooth lens says of a set: channels ``x``, ``label``, ``told``, ``truth``, ``chi2``, ``par``."""
    path = work / "seen" / f"{fidelity}-{name}.npz"
    if not path.is_file():
        task, images = inverter(fidelity), simulated(fidelity, name)
        control = "no-lensing" if name.endswith("no-lensing") else "none"
        config = configs.load("physics", ["physics.steps=12", f"physics.see={json.dumps(CHANNELS)}"])
        physics = config.physics.model_copy(update={"control": control})
        config = config.model_copy(update={"physics": physics})
        if name == "shift":
            task.telescope = telescope_of(images, config.physics)
            task.known = {"psf_fwhm": 0.35322} if fidelity == "published" else {}
        x, found = see(task, images.images, config)
        told, truth = task.told(found).numpy(), param_values(images, PARAMS)
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = {"chi2": found.chi2.numpy(), "par": found.parameters.numpy(), "told": told, "truth": truth}
        np.savez(path, x=x, label=images.label, **parts)
    return np.load(path)


def channels(work: Path, fidelity: str, name: str, method: str, num: int | None = None) -> LensSet:
    """A set as the classifier of a method sees it."""
    wanted, ending, is_shuffled = METHODS[method]
    part = measured(work, fidelity, name + ending)
    num = num or len(part["label"])
    x = part["x"][:num, [CHANNELS.index(c) for c in wanted]]
    if is_shuffled:
        # At random: the classes of simulated images take turns, so that a neighbour's class tells one's own.
        x[:, 1:] = x[np.random.default_rng(num).permutation(num), 1:]
    if name == "shift" and fidelity == "physical" and wanted[0] == "image":
        x[:, 0] *= 2.0  # a quarter of the exposure, brought to the same brightness: the root of 4
    return LensSet(x, [f"{name}-{i}" for i in range(num)], part["label"][:num], CLASSES, pixel_scale=0.05)


def logits(work: Path, fidelity: str, method: str, num: int, seed: int, name: str) -> np.ndarray:
    """Of a classifier on a set; trained if it is not there."""
    path = work / "exp" / f"{fidelity}-{method}-{num}-{seed}"
    kept = path.with_name(f"{path.name}-{name}.npz")
    if kept.is_file():
        return np.load(kept)["logits"]
    if not (path / "model.json").is_file():
        turns = ["augment.quarter_turns=true"] if fidelity == "physical" else []
        epochs = 40 if num < 500 else 26
        how = ["model=compact", "data.batch_size=32", "optim.lr=3e-3", "optim.warmup=0.05", "train.ema=0.99"]
        how += [f"out={path}", f"seed={seed}", f"train.epochs={epochs}", "augment.flips=true", *turns]
        sets = (channels(work, fidelity, "train", method, num), channels(work, fidelity, "val", method, NUM_VAL))
        train.fit(configs.load("substructure", how), LensDataModule(*sets, 32, seed), progress=False)
    images = channels(work, fidelity, name, method).images
    found = torch.cat(list(weights.load_task(path).outputs(images, 96))).numpy()  # type: ignore[operator]
    np.savez(kept, logits=found)
    return found


def few(work: Path, fidelity: str, num: int, methods: Sequence[str], name: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Macro AUC of methods beside one another, with paired bootstrap intervals of the differences from ``plain``."""
    every = {
        m: np.stack([logits(work, fidelity, m, num, seed, name) for seed in seeds]).astype(np.float64) for m in methods
    }
    rows = min(v.shape[1] for v in every.values())
    label = measured(work, fidelity, name)["label"][:rows]
    probs = {m: torch.from_numpy(v[:, :rows]).softmax(-1).numpy() for m, v in every.items()}
    return side_by_side(probs, label, "plain", 1000)


def parameters(work: Path, fidelity: str, name: str) -> dict[str, Any]:
    """Bias, scatter, coverage and chi^2 of the measured lenses of a set."""
    task, part = inverter(fidelity), measured(work, fidelity, name)
    return scores_of(task, part["told"], part["truth"], part["label"], part["chi2"])


def scores_of(task: InversionTask, told: np.ndarray, truth: np.ndarray, label: Any, chi2: Any) -> dict[str, Any]:
    """The same from outputs of the inverter."""
    columns = {name: column.numpy() for name, column in task.columns(torch.from_numpy(told)).items()}
    names = task.lens((1, 1)).names[:-2]
    true = {name: truth[:, PARAMS.index(name)].astype(np.float64) for name in names}
    parts = [{name: columns[name + end] for name in names} for end in ("", "_std", "_95")]
    return measurement_scores(true, parts[0], parts[1], label, CLASSES, chi2, 300, 0, parts[2])


def network_alone(fidelity: str) -> dict[str, Any]:
    """The network without a fit, and how fast it is."""
    task, images = inverter(fidelity), simulated(fidelity, "val")
    batch = torch.from_numpy(images.images)
    with torch.inference_mode():
        task.eval().guess(batch[:96])
        start = time.perf_counter()
        parts = [task.guess(rows) for rows in batch.split(96)]
        rate = len(batch) / (time.perf_counter() - start)
    mean = torch.cat([p[0] for p in parts]).numpy()
    std = torch.cat([p[1] for p in parts]).diagonal(dim1=1, dim2=2).sqrt().numpy()
    told = np.concatenate([mean, std, 1.96 * std, np.zeros((len(mean), 1))], 1).astype(np.float32)
    return {"images_per_s": rate} | scores_of(task, told, param_values(images, PARAMS), images.label, None)


def rate(fidelity: str, num: int = 480) -> dict[str, float]:
    """Images per second with refinement, compiled code warm, and without compiled code."""
    task, images = inverter(fidelity), simulated(fidelity, "val").images[:num]
    task.measure(images, 12)
    start = time.perf_counter()
    task.measure(images, 12)
    compiled = num / (time.perf_counter() - start)
    task = inverter(fidelity)
    start = time.perf_counter()
    task.measure(images[:96], 12)
    return {"compiled": compiled, "eager": 96 / (time.perf_counter() - start), "threads": torch.get_num_threads()}


def deflections(work: Path, fidelity: str, num: int = 480) -> dict[str, Any]:
    """RMSE of the deflection inside of RADIUS without the mass sheet, substructure part of the truth, arcsec."""
    task, part = inverter(fidelity), measured(work, fidelity, "test")
    simulator = Simulator("common-test", fidelity, TEST_SEED)
    lens, world = task.lens((100, 100)), simulator.world
    theta_x, theta_y = lens.camera.grid(1, like=torch.empty(0, dtype=torch.float64))
    found = torch.from_numpy(part["par"]).double()
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in CLASSES}
    for number in range(num // BLOCK):
        for kind, columns in enumerate(simulator.groups(number)):
            places = torch.arange(number * BLOCK + kind, (number + 1) * BLOCK, len(CLASSES))
            fields = deflect(Scenes.of(columns, torch.float64), world, kind, theta_x, theta_y)
            true = tuple(sum(parts) for parts in zip(*fields, strict=True))
            fit = lens.deflect(found[places], theta_x, theta_y)
            errors = deflection_error(fit, true, theta_x, theta_y, RADIUS).rmse
            none = no_lensing_error(true, theta_x, theta_y, RADIUS).rmse
            rows[CLASSES[kind]] += list(zip(errors.tolist(), none.tolist(), strict=True))
    medians = {name: np.median(np.array(pairs), 0).tolist() for name, pairs in rows.items()}
    whole = np.concatenate([np.array(pairs) for pairs in rows.values()])
    return {"median_by_class": medians, "mean": whole.mean(0).tolist(), "n": len(whole), "order": ["fit", "no lensing"]}


def genuine(work: Path, folder: Path) -> dict[str, Any]:
    """The genuine images: chi^2, and accuracy of classifiers trained on simulated ones."""
    task, images = inverter("published"), read(folder)
    config = configs.load("physics", [f"physics.see={json.dumps(CHANNELS)}"])
    x, found = see(task, images.images, config)
    label = images.label
    assert label is not None
    chi2 = {name: np.sort(found.chi2.numpy()[label == k]).round(2).tolist() for k, name in enumerate(CLASSES)}
    right: dict[str, list[int]] = {}
    for method in ("plain", "physics"):
        seen = x[:, [CHANNELS.index(c) for c in METHODS[method][0]]]
        for num in NUMBERS:
            runs = [work / "exp" / f"published-{method}-{num}-{seed}" for seed in SEEDS]
            answers = [torch.cat(list(weights.load_task(r).outputs(seen, 35))).argmax(1).numpy() for r in runs]  # type: ignore[operator]
            right[f"{method}, {num} images"] = [int((a == label).sum()) for a in answers]
    whole = weights.load_task(INVERTERS / "common-test")
    answer = torch.cat(list(whole.outputs(images.images, 35))).argmax(1).numpy()  # type: ignore[operator]
    right["plain, 460,800 images (weights/common-test)"] = [int((answer == label).sum())]
    big = work / "exp" / "published-physics-4800-0"
    if (big / "model.json").is_file():
        seen = x[:, [CHANNELS.index(c) for c in METHODS["physics"][0]]]
        answer = torch.cat(list(weights.load_task(big).outputs(seen, 35))).argmax(1).numpy()  # type: ignore[operator]
        right["physics, 4,800 images"] = [int((answer == label).sum())]
    return {"n": len(label), "chi2": chi2, "right": right}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genuine", type=Path, help="folder with no/, sphere/ and vort/ of genuine images")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "physics-benchmark")
    args = parser.parse_args()
    table, work = Table(HERE / "physics.json"), args.work
    for fidelity in FIDELITIES:
        table("measured", fidelity, lambda f=fidelity: parameters(work, f, "test"))
        table("measured, worse instrument", fidelity, lambda f=fidelity: parameters(work, f, "shift"))
        table("network alone", fidelity, lambda f=fidelity: network_alone(f))
        table("deflection", fidelity, lambda f=fidelity: deflections(work, f))
        table("rate", fidelity, lambda f=fidelity: rate(f))
        chi2 = measured(work, fidelity, "test-no-lensing")["chi2"]
        table("no lensing", fidelity, lambda c=chi2: {"median chi2": float(np.median(c)), "n": len(c)})
        for num in NUMBERS:
            for name in ("test", "shift"):
                wanted = ("plain", "physics")
                table(
                    f"few, {name}",
                    f"{fidelity}, {num}",
                    lambda f=fidelity, n=num, p=name, w=wanted: few(work, f, n, w, p, SEEDS),
                )
        seeds = SEEDS[:1]
        table("controls", fidelity, lambda f=fidelity, s=seeds: few(work, f, 300, tuple(METHODS), "test", s))
    if args.genuine:
        table("genuine", "35 images", lambda: genuine(work, args.genuine))


if __name__ == "__main__":
    main()
