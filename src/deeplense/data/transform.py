"""What happens to images before the network: the model's own preparation, and random changes in training."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplense.config import AugmentConfig
from deeplense.errors import ConfigError, DataError

logger = logging.getLogger(__name__)
CHUNK = 512  # images at a time while something streams over a data set
IN_CACHE = 64  # so many stay in a processor's cache from one pass over their pixels to the next
_TINY = 1e-30  # a scale that no image has: constant ones come out as 0, not as NaN


class Preprocess(nn.Module):
    """Raw images to network inputs: fill missing pixels, resize, centre crop, resize, stretch, normalise per channel.

    It belongs to the model and travels with it, so that images are prepared in prediction as they were in training.
    Pixels that are NaN or infinite are filled with the mean of the others of their channel and image (`fill_missing`).

    Attributes:
        input_size: (height, width) of the training images; images of another size are resized to it first.
        crop: pixels of the centre crop, or None.
        size: pixels to resize to after the crop, or None.
        stretch: "none", "sqrt" or "asinh"; asinh acts on images divided by ``softening`` per channel.
        clip: percentiles (low, high) of each framed image, mapped to 0 and 1 before the stretch, values beyond
            cut off; or None. A percentile is numpy's "linear" one. Of a constant image all pixels become 0.
        clip_by: "channel" (each has percentiles of its own) or "image" (all channels share them, which keeps colours).
        scale: "standard" (training images have mean 0 and scatter 1 in each channel) or "range" (the least and the
            largest value of each channel among them become -1 and 1).

    Raises:
        ConfigError: the low percentile is not below the high one.
    """

    mean: Tensor
    std: Tensor
    softening: Tensor

    def __init__(
        self,
        input_size: tuple[int, int],
        crop: int | None = None,
        size: int | None = None,
        stretch: str = "none",
        clip: tuple[float, float] | None = None,
        clip_by: str = "channel",
        scale: str = "standard",
    ) -> None:
        super().__init__()
        if clip is not None and not 0 <= clip[0] < clip[1] <= 100:
            raise ConfigError(f"model.clip={list(clip)}: two percentiles, the low one first, such as [0.5, 99.5]")
        if crop is not None and crop > min(input_size):
            logger.info("the images have %dx%d pixels: model.crop=%d leaves them whole", *input_size, crop)
            crop = None
        self.input_size, self.crop, self.size, self.stretch = input_size, crop, size, stretch
        self.clip, self.clip_by, self.scale = clip, clip_by, scale
        for name, value in (("mean", 0.0), ("std", 1.0), ("softening", 1.0)):
            self.register_buffer(name, torch.full((1, 1, 1), value))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) as read -> (B, C, H', W') normalised."""
        return self.prepared(self.completed(images))

    def fit(self, images: np.ndarray) -> Preprocess:
        """Set mean, scatter (or middle and half width) and softening per channel from training images (N, C, H, W).

        Raises:
            DataError: all pixels of a channel are equal.
        """
        if self.stretch == "asinh":
            self.softening = _moments(self._clipped(self.framed(x)) for x in chunks(images, IN_CACHE))[1]
        summary = _middle if self.scale == "range" else _moments
        self.mean, self.std = summary(self._prepared(x) for x in chunks(images, IN_CACHE))
        if constant := torch.nonzero(~(self.std.flatten() > 0)).flatten().tolist():
            where = "of the training images" if len(constant) == images.shape[1] else f"of their channel {constant[0]}"
            raise DataError(f"every pixel {where} has the same value: nothing can be learnt from them")
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain values from which :meth:`from_dict` makes an equal Preprocess, exact to the bit."""
        settings = {"input_size": list(self.input_size), "crop": self.crop, "size": self.size, "stretch": self.stretch}
        clipping = {"clip": None if self.clip is None else list(self.clip), "clip_by": self.clip_by}
        settings["scale"] = self.scale
        return settings | clipping | {name: buffer.flatten().tolist() for name, buffer in self.named_buffers()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        """The Preprocess that :meth:`to_dict` described."""
        height, width = values["input_size"]
        # Cards of models that were trained before there was clipping do not mention it.
        clip = values.get("clip")
        clipping = {"clip": None if clip is None else (clip[0], clip[1]), "clip_by": values.get("clip_by", "channel")}
        scale = values.get("scale", "standard")
        new = cls((height, width), values["crop"], values["size"], values["stretch"], **clipping, scale=scale)
        for name in dict(new.named_buffers()):
            setattr(new, name, torch.tensor(values[name], dtype=torch.float32)[:, None, None])
        return new

    def normalised(self, framed: Tensor) -> Tensor:
        """What :meth:`forward` makes of images that are :meth:`framed` already."""
        return (self._stretched(self._clipped(framed)) - self.mean) / self.std

    def _prepared(self, images: Tensor) -> Tensor:
        return self._stretched(self._clipped(self.framed(images)))

    @property
    def frame(self) -> tuple[int, int]:
        """(height, width) of :meth:`framed` images."""
        if self.size is not None:
            return self.size, self.size
        return self.input_size if self.crop is None else (self.crop, self.crop)

    @property
    def is_symmetric(self) -> bool:
        """Whether it does the same to an image that was mirrored or turned by quarters: the crop is in the middle."""
        return self.crop is None or all((side - self.crop) % 2 == 0 for side in self.input_size)

    @property
    def zoom(self) -> float:
        """Pixels of the images as read that one pixel of a :meth:`framed` image is wide."""
        return 1.0 if self.size is None else (self.crop or self.input_size[1]) / self.size

    def completed(self, images: Tensor) -> Tensor:
        """(B, C, H, W) as read -> of ``input_size``, missing pixels filled, in the values as read."""
        return _resized(fill_missing(images), self.input_size)

    def framed(self, images: Tensor) -> Tensor:
        """(B, C, H, W) as read -> the part and size of them that the network sees, in the values as read."""
        return self._cut(self.completed(images))

    def prepared(self, completed: Tensor) -> Tensor:
        """What :meth:`forward` makes of images that are :meth:`completed` already."""
        return self.normalised(self._cut(completed))

    def _cut(self, images: Tensor) -> Tensor:
        if self.crop is not None:
            top, left = ((side - self.crop) // 2 for side in self.input_size)
            images = images[:, :, top : top + self.crop, left : left + self.crop]
        return images if self.size is None else _resized(images, (self.size, self.size))

    def _clipped(self, images: Tensor) -> Tensor:
        if self.clip is None:
            return images
        values = images.flatten(2) if self.clip_by == "channel" else images.flatten(1)[:, None]
        low, high = (percentile(values, q)[..., None, None] for q in self.clip)
        return (images - low).div_((high - low).clamp(min=_TINY)).clamp_(0, 1)

    def _stretched(self, images: Tensor) -> Tensor:
        if self.stretch == "sqrt":
            return images.sign() * images.abs().sqrt()
        return torch.asinh(images / self.softening) if self.stretch == "asinh" else images


class Augment(nn.Module):
    """Random changes to a batch of raw training images, drawn per image from torch's global generator."""

    def __init__(self, config: AugmentConfig) -> None:
        super().__init__()
        self.config = config
        self.kornia = _kornia(config)

    @property
    def only_turns(self) -> bool:
        """Whether images are mirrored and turned by quarters and otherwise left alone."""
        config = self.config
        return config == AugmentConfig(flips=config.flips, quarter_turns=config.quarter_turns)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        with torch.autocast(images.device.type, enabled=False):
            return self._changed(images)[0]

    def traced(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Changed images (B, C, H, W), and where each has moved what it shows, (B, 2, 3).

        What was at (x, y) about the middle of the image is now at M (x, y, 1), in pixels. Mirrorings, quarter turns and
        affine changes are traced, ``shift`` and ``crop`` are not.
        """
        with torch.autocast(images.device.type, enabled=False):  # of half precision, positions would be off by pixels
            images, element = self._changed(images)
            moved = F.pad(d4_matrices().to(images.device)[element], (0, 1))
            if self.kornia is not None and _is_affine(self.config):
                affine: Any = next(self.kornia.children())
                moved = _then(moved, affine.transform_matrix, images.shape)
        return images, moved

    def _changed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Changed images, and the symmetry that each went through first, (B,)."""
        images, element = _randomly_turned(images, self.config.flips, self.config.quarter_turns)
        if self.config.shift:
            images = _randomly_shifted(images, self.config.shift)
        if self.kornia is not None:
            images = self.kornia(fill_missing(images))  # interpolation would spread NaN
        return (_with_noise(fill_missing(images), self.config.noise) if self.config.noise else images), element


def fill_missing(images: Tensor) -> Tensor:
    """NaN and infinite pixels replaced by the mean of the finite ones of their channel and image, 0 if there are none.

    (B, C, H, W) -> the same shape; finite pixels keep every bit.
    """
    # A finite sum proves that nothing is missing, in a tenth of the time. Branches do not survive an export.
    if images.device.type == "cpu" and not torch.compiler.is_compiling() and bool(images.sum().isfinite()):
        return images
    good = images.isfinite()
    total = torch.where(good, images, 0.0).sum(dim=(-2, -1), keepdim=True)
    mean = total / good.sum(dim=(-2, -1), keepdim=True).clamp(min=1)
    return torch.where(good, images, mean)


def percentile(values: Tensor, q: float) -> Tensor:
    """The percentile q of the last axis, (..., n) -> (...), as numpy's "linear" one.

    By topk, which is several times faster than sorting where q is near 0 or 100, and can be exported.
    """
    last = values.shape[-1] - 1
    below = math.floor(last * q / 100)
    above = min(below + 1, last)
    is_upper = 2 * below > last
    ordered = values.topk(last + 1 - below if is_upper else above + 1, largest=is_upper).values
    # Place of each order statistic among the k largest, or the k smallest.
    first, second = (last - below, last - above) if is_upper else (below, above)
    return torch.lerp(ordered[..., first], ordered[..., second], last * q / 100 - below)


# Elements of D4 that a prediction may be averaged over: none but the identity, mirrorings, or all eight.
SYMMETRIES = {"none": (0,), "flips": (0, 2, 4, 6), "d4": tuple(range(8))}


def d4(images: Tensor, element: int) -> Tensor:
    """One of the eight symmetries of the square (0 = none changed): bit 2 mirrors x, bits 0-1 count quarter turns."""
    images = images.flip(-1) if element & 4 else images
    return torch.rot90(images, element & 3, dims=(-2, -1))


def d4_matrices() -> Tensor:
    """How each symmetry of :func:`d4` moves positions (x, y) about the middle of the image, (8, 2, 2).

    With x along the columns and y along the rows, a quarter turn brings (x, y) to (y, -x).
    """
    turns = torch.tensor([[[1.0, 0], [0, 1]], [[0, 1], [-1, 0]], [[-1, 0], [0, -1]], [[0, -1], [1, 0]]])
    return torch.cat([turns, turns * torch.tensor([-1.0, 1.0])])  # mirrored first: x changes its sign


def _randomly_turned(images: Tensor, flips: bool, quarter_turns: bool) -> tuple[Tensor, Tensor]:
    """A random symmetry for each image, of the square, or only mirrorings, or only turns; and which, (B,).

    Each is as likely for every image, in every batch anew, but those of neighbours are mostly the same: what is the
    same lies side by side and is turned at once.
    """
    allowed = [
        e for e in range(8) if (flips or not e & 4) and (quarter_turns or not e & 1) and (flips or quarter_turns)
    ]
    if quarter_turns and images.shape[-1] != images.shape[-2]:
        raise DataError(
            f"augment.quarter_turns needs square images, these are {tuple(images.shape[-2:])}; switch it off"
        )
    if not allowed:
        return images, torch.zeros(len(images), dtype=torch.int64, device=images.device)
    counts = torch.bincount(torch.randint(len(allowed), (len(images),)), minlength=len(allowed))
    element = torch.tensor(allowed)[torch.randperm(len(allowed))]
    turned = torch.empty_like(images)
    for part, into, e in zip(
        images.split(counts.tolist()), turned.split(counts.tolist()), element.tolist(), strict=True
    ):
        _turn_into(into, part, e)
    return turned, element.repeat_interleave(counts).to(images.device)


def _turn_into(turned: Tensor, images: Tensor, element: int) -> None:
    """Fill ``turned`` with what :func:`d4` makes of images."""
    if images.device.type != "cpu":
        turned.copy_(d4(images, element))
        return
    # numpy mirrors and turns by strides: one copy instead of two or three.
    view = images.numpy()
    view = view[..., ::-1] if element & 4 else view
    turned.numpy()[...] = np.rot90(view, element & 3, axes=(-2, -1))


def _then(moved: Tensor, matrix: Tensor, shape: torch.Size) -> Tensor:
    """``moved`` (B, 2, 3) and then moved by kornia's matrices (B, 3, 3), which count pixels from the corner."""
    middle = torch.tensor([(shape[-1] - 1) / 2, (shape[-2] - 1) / 2]).to(matrix)
    linear = matrix[:, :2, :2]
    offset = (linear * middle).sum(dim=-1) + matrix[:, :2, 2] - middle
    both = (linear[..., None] * moved[:, None]).sum(dim=2)  # a product of matrices would be of half precision on a GPU
    return both + F.pad(offset[..., None], (2, 0))


def _randomly_shifted(images: Tensor, most: int) -> Tensor:
    """Each image moved by whole pixels within +-most along both axes; edge pixels are repeated."""
    for dim in (-2, -1):
        length = images.shape[dim]
        shift = torch.randint(-most, most + 1, (len(images), 1)).to(images.device)
        source = (torch.arange(length, device=images.device) + shift).clamp(0, length - 1)
        images = torch.take_along_dim(images, source[:, None, :, None] if dim == -2 else source[:, None, None], dim)
    return images


def _with_noise(images: Tensor, most: float) -> Tensor:
    """Gaussian noise, its sigma uniform in [0, most] times the standard deviation of each image's channel."""
    strength = torch.rand(len(images), 1, 1, 1).to(images) * most
    sigma = strength * images.std(dim=(-2, -1), correction=0, keepdim=True)
    return images + sigma * torch.randn(images.shape).to(images)


def _is_affine(config: AugmentConfig) -> bool:
    return bool(config.degrees or config.translate or config.shear) or config.scale != (1.0, 1.0)


def _kornia(config: AugmentConfig) -> nn.Module | None:
    """Affine, crop and blur as kornia modules; None when all are off, for kornia takes a second to import."""
    affine = _is_affine(config)
    crop = config.crop != (1.0, 1.0)
    if not (affine or crop or config.blur):
        return None
    import kornia.augmentation as K

    steps: list[nn.Module] = []
    if affine:
        translate = (config.translate, config.translate) if config.translate else None
        steps.append(
            K.RandomAffine(
                config.degrees, translate, config.scale, config.shear or None, padding_mode="reflection", p=1.0
            )
        )
    if crop:
        steps.append(_CropAndResize(config.crop))
    if config.blur:
        steps.append(K.RandomGaussianBlur((7, 7), config.blur_sigma, p=config.blur))
    return nn.Sequential(*steps)


class _CropAndResize(nn.Module):
    """A random square-ish part of each image, resized back; ``area`` is the range of the share of the area kept."""

    def __init__(self, area: tuple[float, float]) -> None:
        super().__init__()
        self.area = area

    def forward(self, images: Tensor) -> Tensor:
        import kornia.augmentation as K

        size = (images.shape[-2], images.shape[-1])
        return K.RandomResizedCrop(size, scale=self.area, ratio=(1.0, 1.0), p=1.0)(images)


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)


def chunks(images: np.ndarray, size: int = CHUNK) -> Iterator[Tensor]:
    """A few images (n, C, H, W) at a time, in order, copied from an array that may be memory-mapped."""
    for start in range(0, len(images), size):
        part = images[start : start + size]
        # Of an ordinary array this is a view, perhaps of a file that cannot be written.
        yield torch.from_numpy(np.array(part) if isinstance(images, np.ndarray) else part)


def _moments(parts: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, shape (C, 1, 1) each.

    Single images are summed in float32 about the mean of the first ones, their sums in float64.
    """
    shift, count, total, squares = None, 0, torch.zeros(()), torch.zeros(())
    for x in parts:
        shift = x.mean(dim=(0, 2, 3), keepdim=True) if shift is None else shift
        x = x - shift
        total = total + x.mean(dim=(2, 3)).double().sum(0)
        squares = squares + x.square_().mean(dim=(2, 3)).double().sum(0)
        count += len(x)
    if shift is None:
        raise DataError("there are no training images to take the mean of")
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    return (shift.flatten().double() + mean).float()[:, None, None], std.float()[:, None, None]


def _middle(parts: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """Middle and half width of the values' range per channel, shape (C, 1, 1) each."""
    spans = [torch.stack(torch.aminmax(x.transpose(0, 1).flatten(1), dim=1)) for x in parts]
    if not spans:
        raise DataError("there are no training images to take the range of")
    low, high = torch.stack(spans)[:, 0].amin(0), torch.stack(spans)[:, 1].amax(0)
    return ((low + high) / 2)[:, None, None], ((high - low) / 2)[:, None, None]
