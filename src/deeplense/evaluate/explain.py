"""Where a trained task looks: heat maps, and pictures of them, over raw images."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deeplense.data.transform import SYMMETRIES, Preprocess, d4
from deeplense.evaluate.grad_cam import choose, evaluating, find_layer, grad_cam, members_of, resized
from deeplense.tasks import LensTask


def heat_maps(
    task: LensTask, images: np.ndarray, target: int | None = None, layer: str | None = None, batch_size: int = 32
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

    Raises:
        DataError: the images have another number of channels than the network was trained on.
        ModelError: there is no such layer, or none with a map.
    """
    task._check(images)
    if layer is None and len(images):
        with torch.no_grad():
            prepared = task.preprocess(torch.from_numpy(np.array(images[:1])).to(task.device))
        layer = find_layer(members_of(task.network)[0], prepared)
    maps = [
        _normalised(_task_maps(task, torch.from_numpy(np.array(images[start : start + batch_size])), target, layer))
        for start in range(0, len(images), batch_size)
    ]
    return np.concatenate(maps) if maps else np.empty((0, *images.shape[2:]), np.float32)


def _normalised(maps: Tensor) -> np.ndarray:
    peak = maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(peak > 0, maps / peak.clamp(min=1e-30), 0.0).clamp(0, 1).float().cpu().numpy()


def _task_maps(task: LensTask, images: Tensor, target: int | None, layer: str | None) -> Tensor:
    """The mean map over the symmetries that the task averages over, laid over the raw images, (B, H, W)."""
    images = images.to(task.device)
    with torch.no_grad(), evaluating(task):
        prepared, chosen = task.preprocess(images), choose(task.averaged(images), target)
    maps = [
        _turned_back(grad_cam(task.network, d4(prepared, element), chosen, layer), element)
        for element in SYMMETRIES[task.config.model.average]
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
