"""The brief's Common Test as a competent user would write it, for others to be measured against.

A Dataset that loads one `.npy` an item, torchvision's transforms (here on PIL images, since torchvision's own operators
do not load beside a CPU build of torch), a DataLoader with two worker processes, ResNet-50 in float32, Adam at 1e-3.

    python benchmarks/reference.py data/published-npy data/published-test --epochs 3 --out runs/reference

trains it, judges it on the test set after each epoch and goes on where it was stopped. ``--threads`` and ``--workers``
share out the cores. No other script is needed to run this one; the other benchmarks import its parts.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import ResNetConfig, ResNetForImageClassification

CLASSES = ("no", "sphere", "vort")
SIZE, BATCH = 128, 32


class Images(Dataset[tuple[Tensor, int]]):
    """One file an item, as the brief's data set class does it."""

    def __init__(self, files: Sequence[Path], mean: float, std: float, is_training: bool) -> None:
        self.files, self.mean, self.std, self.is_training = list(files), mean, std, is_training

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        file = self.files[index]
        image = Image.fromarray(np.load(file).squeeze().astype(np.float32))
        if self.is_training:
            image = flipped(affine(image))
        tensor = torch.from_numpy(np.array(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)))[None]
        if self.is_training and random.random() < 0.5:
            tensor = blurred(tensor)
        return (tensor - self.mean) / self.std, CLASSES.index(file.parent.name)


def affine(image: Image.Image) -> Image.Image:
    """RandomAffine(degrees=15, translate=(0.1, 0.1), scale=(0.9, 1.1)): a bilinear inverse map about the middle."""
    width, height = image.size
    angle, zoom = math.radians(random.uniform(-15, 15)), random.uniform(0.9, 1.1)
    dx, dy = (random.uniform(-0.1, 0.1) * side for side in (width, height))
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    x, y = width / 2, height / 2
    inverse = (cos, sin, x - cos * (x + dx) - sin * (y + dy), -sin, cos, y + sin * (x + dx) - cos * (y + dy))
    return image.transform(image.size, Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR)


def flipped(image: Image.Image) -> Image.Image:
    """RandomHorizontalFlip and RandomVerticalFlip."""
    for way in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM):
        if random.random() < 0.5:
            image = image.transpose(way)
    return image


def blurred(image: Tensor) -> Tensor:
    """GaussianBlur(kernel_size=7, sigma=(0.1, 1.5)), (1, H, W)."""
    x = torch.arange(-3, 4, dtype=torch.float32)
    row = torch.exp(-0.5 * (x / random.uniform(0.1, 1.5)) ** 2)
    row = row / row.sum()
    kernel = (row[:, None] * row)[None, None]
    return F.conv2d(F.pad(image[None], (3, 3, 3, 3), mode="reflect"), kernel)[0]


def files_of(folder: Path) -> list[Path]:
    """All images of the class folders."""
    return [file for name in CLASSES for file in sorted((folder / name).glob("*.npy"))]


def statistics(files: Sequence[Path]) -> tuple[float, float]:
    """Mean and standard deviation of all pixels, as the brief computes them: file by file."""
    total = squares = count = 0.0
    for file in files:
        image = np.load(file).astype(np.float64)
        total, squares, count = total + image.sum(), squares + (image**2).sum(), count + image.size
    return total / count, (squares / count - (total / count) ** 2) ** 0.5


def _seed_worker(_: int) -> None:
    random.seed(torch.initial_seed() % 2**32)
    torch.set_num_threads(1)


def loader(files: Sequence[Path], mean: float, std: float, is_training: bool, workers: int = 2) -> DataLoader[Any]:
    """The DataLoader of the reference."""
    dataset = Images(files, mean, std, is_training)
    return DataLoader(dataset, BATCH, shuffle=is_training, num_workers=workers, worker_init_fn=_seed_worker)


def network() -> nn.Module:
    """ResNet-50 with one input channel and three outputs, random weights."""
    return ResNetForImageClassification(ResNetConfig(num_channels=1, num_labels=len(CLASSES)))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> float:
    """One step of training."""
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images).logits, labels)
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def macro_auc(model: nn.Module, batches: DataLoader[Any]) -> float:
    """Macro one-vs-rest ROC-AUC."""
    model.eval()
    parts = [(model(images).logits.softmax(1), labels) for images, labels in batches]
    return float(
        roc_auc_score(torch.cat([y for _, y in parts]), torch.cat([p for p, _ in parts]).double(), multi_class="ovr")
    )


def train(args: argparse.Namespace) -> None:
    """Train, judge after each epoch, keep all of it."""
    state = args.out / "last.pt"
    files, test = files_of(args.train), files_of(args.test)
    start = cpu_seconds()
    mean, std = statistics(files)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    rows: list[dict[str, float]] = []
    seconds = cpu_seconds() - start
    if state.is_file():
        kept = torch.load(state, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        rows, seconds = kept["rows"], kept["rows"][-1]["cpu_seconds"]
    for epoch in range(len(rows), args.epochs):
        torch.manual_seed(args.seed * 1000 + epoch)
        model.train()
        start, begun = cpu_seconds(), time.perf_counter()
        batches = loader(files, mean, std, True, args.workers)
        losses = [step(model, optimizer, images, labels) for images, labels in batches]
        seconds += cpu_seconds() - start
        row = {"epoch": epoch + 1, "train_loss": sum(losses) / len(losses), "cpu_seconds": seconds}
        row |= {"epoch_wall_seconds": time.perf_counter() - begun}
        row |= {"auc": macro_auc(model, loader(test, mean, std, False, args.workers))}
        rows.append(row)
        args.out.mkdir(parents=True, exist_ok=True)
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rows": rows}, state)
        (args.out / "rows.json").write_text(json.dumps(rows, indent=1) + "\n")
        print(json.dumps(row), flush=True)


def cpu_seconds() -> float:
    """Time that this process and its workers have had a core: what other programs do meanwhile does not count."""
    return sum(u.ru_utime + u.ru_stime for u in map(getrusage, (RUSAGE_SELF, RUSAGE_CHILDREN)))


def main() -> None:
    """Train the reference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path, help="class folders of .npy files")
    parser.add_argument("test", type=Path, help="class folders of .npy files")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/reference"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    train(args)


if __name__ == "__main__":
    main()
