"""Which cells of a network's maps speak for a class: Grad-CAM and HiResCAM for any network of maps.

They agree where the mean over the last map and a linear layer give the answer. Elsewhere Grad-CAM, which takes a
channel's gradient as the same in all places, may point at empty sky: with a network whose dense layers see places, or
at a map further down, its cells have nothing to do with what the answer loses when they are covered. HiResCAM's have.

References:
    Selvaraju et al., Grad-CAM: visual explanations from deep networks via gradient-based localization,
    arXiv:1610.02391, equations 1 and 2.
    Draelos & Carin, Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural networks,
    arXiv:2011.08891, equation 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplense.errors import ConfigError, ModelError, did_you_mean

METHODS = ("hires-cam", "grad-cam")
SMALLEST = 7  # cells along the shorter side of a map that still says where something is


def grad_cam(
    network: nn.Module,
    images: Tensor,
    target: int | Tensor | None = None,
    layer: str | None = None,
    method: str = "grad-cam",
) -> Tensor:
    """The class activation map of prepared images (B, C, H, W): shape (B, H, W), not negative, not normalised.

    A channel of the layer's map A counts as much as the output y changes with it, alpha = dy/dA in each place
    ("hires-cam") or its mean over the map ("grad-cam"); the result is ReLU(sum of alpha A), brought to the size of the
    image. Of an ensemble it is the mean over members.

    Args:
        target: as in `heat_maps`, or class numbers, shape (B,).
        layer: as in `heat_maps`; of each member of an ensemble.
    """
    if method not in METHODS:
        raise ConfigError(f"there is no method {method!r}; {did_you_mean(method, METHODS)}")
    if len(members := members_of(network)) > 1:
        with torch.no_grad(), evaluating(network):
            chosen = choose(network(images), target)
        return torch.stack([grad_cam(member, images, chosen, layer, method) for member in members]).mean(dim=0)
    with torch.inference_mode(False), torch.enable_grad(), evaluating(network):
        images = images.detach().clone().requires_grad_(True)  # or a network of frozen weights would have no gradient
        name = find_layer(network, images) if layer is None else layer
        with _watching({name: _module(network, name)}) as seen:
            output = network(images)
        if not seen or seen[-1][1].ndim != 4:
            raise ModelError(f"the output of layer {name!r} is no map of shape (B, C, H, W): name another, or none")
        activation = seen[-1][1]
        (gradient,) = torch.autograd.grad(_towards(output, choose(output, target)).sum(), activation)
    alpha = gradient.mean(dim=(2, 3), keepdim=True) if method == "grad-cam" else gradient
    return resized(F.relu((alpha * activation.detach()).sum(dim=1)), (images.shape[-2], images.shape[-1]))


def members_of(network: nn.Module) -> list[nn.Module]:
    """The networks of an ensemble, or the one that there is."""
    members = getattr(network, "members", None)
    return list(members) if isinstance(members, nn.ModuleList) else [network]


def choose(output: Tensor, target: int | Tensor | None) -> Tensor:
    """The class that is explained in each image, int64, shape (B,)."""
    if isinstance(target, Tensor):
        return target
    num = max(output.shape[1], 2)
    if target is not None and not 0 <= target < num:
        raise ModelError(f"there is no class {target} to explain: this network has classes 0 to {num - 1}")
    if target is None and output.shape[1] > 1:
        return output.argmax(dim=1)
    return torch.full((len(output),), 1 if target is None else target, device=output.device)


def _towards(output: Tensor, chosen: Tensor) -> Tensor:
    """What speaks for the class in each image, shape (B,): its output, or for class 0 of a single one its negative."""
    if output.shape[1] == 1:
        return output[:, 0] * (2 * chosen - 1)
    return output.gather(1, chosen[:, None])[:, 0]


def find_layer(network: nn.Module, images: Tensor) -> str:
    """The name of the last module whose map (B, C, H', W') all of the answer goes through, 7 cells or more wide.

    Later modules know more of what is in the image, finer ones where it is; a branch beside a shortcut knows only a
    part. If all maps are coarser, the finest. Padded maps lie beside the image, and normalisation takes away by how
    much one place is brighter than another: such modules are left out.

    Raises:
        ModelError: no module has a map as output.
    """
    images, named = images[:1].detach().clone(), dict(network.named_modules())
    with torch.no_grad(), evaluating(network), _watching(named) as seen:
        network(images)
    height, width = images.shape[-2:]
    # Some networks keep channels last inside; their maps do not have the shape of the image.
    maps = {
        name: min(output.shape[-2:])
        for name, output in seen
        if output.ndim == 4
        and abs(output.shape[3] - output.shape[2] * width / height) <= 1
        and not any(word in type(named[name]).__name__ for word in ("Norm", "Pad"))
    }
    for fewest in sorted({min(side, SMALLEST) for side in maps.values()}, reverse=True):
        for name in [name for name, side in maps.items() if side >= fewest][::-1]:
            if _is_passage(network, named[name], images):
                return name
    raise ModelError("no layer of this network has a map of shape (B, C, H, W) as output: nothing shows where")


def _is_passage(network: nn.Module, module: nn.Module, images: Tensor) -> bool:
    """Whether the answer depends on the image only through what the module gives: cut there, it has no gradient."""
    handle = module.register_forward_hook(lambda _, __, output: output.detach())
    try:
        with torch.inference_mode(False), torch.enable_grad(), evaluating(network):
            images = images.clone().requires_grad_(True)
            output = network(images).sum()
            return not output.requires_grad or torch.autograd.grad(output, images, allow_unused=True)[0] is None
    finally:
        handle.remove()


def _module(network: nn.Module, layer: str) -> nn.Module:
    named = {name: module for name, module in network.named_modules() if name}
    if layer not in named:
        raise ModelError(f"there is no layer {layer!r}; {did_you_mean(layer, named)}")
    return named[layer]


@contextmanager
def _watching(modules: dict[str, nn.Module]) -> Iterator[list[tuple[str, Tensor]]]:
    """The outputs of modules, in the order in which they come, while the block runs; only tensors are kept."""
    seen: list[tuple[str, Tensor]] = []

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                seen.append((name, output))

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Fixed normalisation and no dropout while the block runs, each module as before afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, is_training in modes:
            module.training = is_training


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, h, w) brought to another size, between the centres of cells by straight lines."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
