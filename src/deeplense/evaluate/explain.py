"""Where a trained task looks: heat maps, and pictures of them, over raw images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from torch import Tensor

from deeplense.data.files import check_new_file, replacing
from deeplense.data.schema import LensSet
from deeplense.data.transform import SYMMETRIES, Preprocess, d4
from deeplense.errors import DataError, RunError
from deeplense.evaluate.grad_cam import choose, evaluating, find_layer, grad_cam, members_of, resized
from deeplense.evaluate.pictures import HEAT, display_of, overlay, to_rgb
from deeplense.evaluate.plots import styled
from deeplense.tasks import Classifier

MOST = 8  # images in one picture
ENDINGS = (".png", ".pdf", ".svg")


def heat_maps(
    task: Classifier,
    images: np.ndarray,
    target: int | None = None,
    layer: str | None = None,
    method: str = "hires-cam",
    batch_size: int = 32,
) -> np.ndarray:
    """Which parts of raw images speak for a class, float32 in [0, 1], shape (N, H, W); 0 where a crop cut them off.

    Each map is divided by its maximum; it is 0 throughout where nothing speaks for the class. Where predictions are
    averaged over symmetries, so are the maps.

    Args:
        images: as read, shape (N, C, H, W).
        target: number of the class; None for the positive class of a network with one output, and for the most likely
            one of each image otherwise.
        layer: name of the module whose output is looked at, as in `network.named_modules()`; None lets `find_layer`
            choose.
        method: "hires-cam" or "grad-cam", as in `grad_cam`.

    Raises:
        DataError: the images have another number of channels than the network was trained on.
        ModelError: there is no such layer, or none with a map.
    """
    task._check(images)
    if layer is None and len(images):
        with torch.no_grad():
            prepared = task.preprocess(torch.from_numpy(np.array(images[:1])).to(task.device))
        layer = find_layer(members_of(task.network)[0], prepared)
    batches = (np.array(images[start : start + batch_size]) for start in range(0, len(images), batch_size))
    maps = [_normalised(_task_maps(task, torch.from_numpy(batch), target, layer, method)) for batch in batches]
    return np.concatenate(maps) if maps else np.empty((0, *images.shape[2:]), np.float32)


def _normalised(maps: Tensor) -> np.ndarray:
    peak = maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(peak > 0, maps / peak.clamp(min=1e-30), 0.0).clamp(0, 1).float().cpu().numpy()


def _task_maps(task: Classifier, images: Tensor, target: int | None, layer: str | None, method: str) -> Tensor:
    """The mean map over the symmetries that the task averages over, laid over the raw images, (B, H, W)."""
    images = images.to(task.device)
    with torch.no_grad(), evaluating(task):
        prepared = task.preprocess(images)
        chosen = choose(task.averaged(images)[:, : len(task.classes)], target)  # no class: what is said besides
    maps = [
        _turned_back(grad_cam(task.network, d4(prepared, element), chosen, layer, method), element)
        for element in SYMMETRIES[task.average]
    ]
    return unframe(torch.stack(maps).mean(dim=0), task.preprocess, (images.shape[-2], images.shape[-1]))


def _turned_back(maps: Tensor, element: int) -> Tensor:
    """Undo `transform.d4`."""
    maps = torch.rot90(maps, -(element & 3), dims=(-2, -1))
    return maps.flip(-1) if element & 4 else maps


def unframe(maps: Tensor, preprocess: Preprocess, size: tuple[int, int]) -> Tensor:
    """Maps over prepared images (B, H', W') -> over the raw ones of `size`; what was cropped away is 0."""
    crop, (height, width) = preprocess.crop, preprocess.input_size
    if crop is not None:
        top, left = (height - crop) // 2, (width - crop) // 2
        maps = F.pad(resized(maps, (crop, crop)), (left, width - left - crop, top, height - top - crop))
    return resized(maps, size)


@styled
def explain_picture(
    task: Classifier, lens_set: LensSet, rows: np.ndarray, layer: str | None = None, method: str = "hires-cam"
) -> Figure:
    """Images, each beside the heat map of what speaks for a lens, or for its most likely class.

    Args:
        rows: which images of the set, int64, shape (M,).
        layer, method: as in `heat_maps`.
    """
    some = lens_set.select(np.asarray(rows, np.int64))
    heats = heat_maps(task, some.images, layer=layer, method=method)
    texts, display = _verdicts(task, some.images), display_of(some.name, some.provenance)
    pairs = min(len(some), 2)  # side by side
    lines = -(-len(some) // pairs)
    figure = Figure(figsize=(0.7 + 4.4 * pairs, 0.3 + 2.5 * lines), layout="constrained")
    grid = figure.subplots(lines, 2 * pairs, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for k, (image, heat) in enumerate(zip(some.images, heats, strict=True)):
        left, right = grid.reshape(-1, 2)[k]
        rgb = to_rgb(image, display=display)
        left.imshow(rgb, origin="lower", interpolation="nearest")
        right.imshow(overlay(rgb, heat), origin="lower", interpolation="nearest")
        truth = "" if some.label is None else f"\n{some.classes[some.label[k]]}"
        left.set_title(f"{_shortened(some.name[k])}{truth}", fontsize=9)
        right.set_title(texts[k], fontsize=9)
    bar = figure.colorbar(ScalarMappable(cmap=HEAT), ax=grid, fraction=0.04, pad=0.02)
    bar.set_label("evidence, relative to its maximum")
    return figure


def _verdicts(task: Classifier, images: np.ndarray) -> list[str]:
    """What the task says of each image: its probability of a lens, or the most likely class with its probability."""
    outputs = torch.cat(list(task.outputs(images, 32)))
    columns = {name[2:]: values for name, values in task.columns(outputs).items() if name.startswith("p_")}
    names, probs = list(columns), torch.stack(list(columns.values()), dim=1)
    value, best = probs.max(dim=1)
    return [f"p({names[k]}) = {p:.3g}" for k, p in zip(best.tolist(), value.tolist(), strict=True)]


def _shortened(name: str, most: int = 28) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"


def check_picture(path: Path | str) -> Path:
    """A file that a picture may be written to.

    Raises:
        RunError: another ending than .png, .pdf or .svg, the file exists, or its folder does not.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in ENDINGS:
        raise RunError(f"{path}: pictures are written as .png, .pdf or .svg")
    return check_new_file(path)


def write_explanation(
    task: Classifier, lens_set: LensSet, path: Path | str, layer: str | None = None, method: str = "hires-cam"
) -> Path:
    """Save the picture of `explain_picture` for the first images of a set, at most 8.

    Raises:
        RunError: as `check_picture`, or the folder cannot be written.
        DataError: there are no images, or they do not suit the network.
        ModelError: there is no such layer.
        ConfigError: there is no such method.
    """
    path = check_picture(path)
    if not len(lens_set):
        raise DataError("there are no images to explain")
    figure = explain_picture(task, lens_set, np.arange(min(len(lens_set), MOST)), layer, method)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=150)
    return path
