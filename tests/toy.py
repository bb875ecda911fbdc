"""Small image sets with known answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from deeplense import config, weights
from deeplense.config import Config
from deeplense.data.module import LensDataModule
from deeplense.data.schema import LensSet
from deeplense.data.transform import Preprocess
from deeplense.tasks import get

CLASSES = ("no", "sphere", "vort")
# Some CPUs would take half precision, and what is learnt would depend on the machine.
EXACT = "train.precision=32-true"


def lens_set(num: int, seed: int = 0, size: int = 24) -> LensSet:
    """Noise; class 1 has a blob in the middle as well, class 2 stripes of random phase."""
    rng = np.random.default_rng(seed)
    label = np.arange(num) % 3
    images = rng.normal(size=(num, 1, size, size))
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    images[label == 1] += 3 * np.exp(-(x**2 + y**2) / 20)
    images[label == 2, 0] += np.sin(x + rng.uniform(0, 6, (np.sum(label == 2), 1, 1)))
    names = [f"image-{seed}-{i}" for i in range(num)]
    return LensSet(images.astype(np.float32), names, label.astype(np.int64), CLASSES)


def finder_set(num: int, seed: int = 0, size: int = 24, channels: int = 1, one_in: int = 4) -> LensSet:
    """Noise; one image in ``one_in`` is a lens: a ring about the middle."""
    rng = np.random.default_rng(seed)
    label = (np.arange(num) % one_in == 0).astype(np.int64)
    images = rng.normal(size=(num, channels, size, size))
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    images[label == 1] += 2 * np.exp(-((np.hypot(x, y) - size / 4) ** 2) / 4)
    names = [f"finder-{seed}-{i}" for i in range(num)]
    return LensSet(images.astype(np.float32), names, label, ("nonlens", "lens"))


# Images that suit each task.
SETS = {"substructure": lens_set, "finder": finder_set, "lens-equation": lens_set}


def finder_data(num: int = 96, batch_size: int = 16, balanced: bool = False, **options: int) -> LensDataModule:
    """Training and validation images of the finder, drawn apart."""
    sets = (finder_set(num, 1, **options), finder_set(48, 2, **options))
    return LensDataModule(*sets, batch_size, seed=0, balanced=balanced)


def data(num: int = 96, batch_size: int = 16) -> LensDataModule:
    """Training and validation images drawn apart."""
    return LensDataModule(lens_set(num, seed=1), lens_set(48, seed=2), batch_size, seed=0)


def tiny(out: Path, *overrides: str) -> Config:
    """The shipped tiny config, smaller still."""
    return config.load("tiny/substructure", ["model.width=4", "model.size=24", EXACT, f"out={out}", *overrides])


def tiny_finder(out: Path, *overrides: str) -> Config:
    """The same for the finder."""
    return config.load("tiny/finder", ["model.width=4", EXACT, f"out={out}", *overrides])


def write_folder(images: LensSet, folder: Path) -> Path:
    """The set as a DeepLense folder: one sub-folder of .npy files for each class."""
    for i, name in enumerate(images.name):
        path = folder / images.classes[images.label[i]] / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, images.images[i])
    return folder


def tiny_diffusion(out: Path | str, *overrides: str) -> Config:
    """The same for images that are drawn."""
    return config.load("tiny/diffusion", [EXACT, f"out={out}", *overrides])


def write_diffusion(out: Path, *overrides: str) -> Path:
    """A finished run that was never trained: a network of random weights."""
    torch.manual_seed(0)
    settings, images = tiny_diffusion(out, *overrides), lens_set(30)
    preprocess = Preprocess((24, 24), size=16, stretch=settings.model.stretch, scale="range").fit(images.images)
    task = get("diffusion")(settings, CLASSES, 1, preprocess)
    task.calibration = {"pixel_scale": 0.1}
    out.mkdir(parents=True)
    weights.save_task(task, out)
    return out
