"""From noise to images: a diffusers pipeline for lenses, with samplers by name and a noise of its own for each image.

This file needs numpy, torch and diffusers alone: exported models carry a copy of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

# Even steps that begin at the last noise level, as few steps need it (Lin et al., arXiv:2305.08891, section 3.3).
_EVEN = {"timestep_spacing": "trailing"}
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", _EVEN),  # arXiv:2006.11239
    # arXiv:2010.02502, eta = 0: it is the first order of DPM-Solver (arXiv:2206.00927, section 4.1). The thresholds cut
    # clean images off at -1 and 1. diffusers' DDIMScheduler goes astray where steps do not divide the levels (its
    # issue 12633): with trailing steps it takes the next time for another one than it visits.
    "ddim": (
        "DPMSolverMultistepScheduler",
        {**_EVEN, "solver_order": 1, "thresholding": True, "dynamic_thresholding_ratio": 1.0, "sample_max_value": 1.0},
    ),
    "dpm++": ("DPMSolverMultistepScheduler", _EVEN),  # arXiv:2211.01095, second order
    "unipc": ("UniPCMultistepScheduler", _EVEN),  # arXiv:2302.04867
}
# Diffusers checks what it opens against types, and understands only such ones.
_Words = list[str] | tuple[str, ...]
_Numbers = list[float] | tuple[float, ...]
# The angle phi of a noise level, signal cos(phi) and noise sin(phi), at the first and at the last one.
FIRST, LAST = 0.004, math.atan(1e3)


def noise_levels(steps: int, schedule: str, objective: str) -> diffusers.DDPMScheduler:
    """The noise that a model is trained with.

    Args:
        steps: number of levels.
        schedule: "linear" (arXiv:2006.11239), "cosine" (arXiv:2102.09672: the angle of a level grows with time) or
            "cosine2", where it grows with the square of time: of a few even steps, some then lie at the noise of the
            pixels, which the others stride over and smooth away.
        objective: what the model predicts: "noise" or "v" (arXiv:2202.00512).
    """
    beta = {"linear": "linear", "cosine": "squaredcos_cap_v2", "cosine2": "linear"}[schedule]
    return diffusers.DDPMScheduler(
        num_train_timesteps=steps,
        beta_schedule=beta,
        trained_betas=_cosine2(steps) if schedule == "cosine2" else None,
        prediction_type={"noise": "epsilon", "v": "v_prediction"}[objective],
        clip_sample=True,
    )


def _cosine2(steps: int) -> list[float]:
    """The share of its signal that each level loses to noise."""
    time = np.linspace(0, 1, steps)
    # Without the linear part the first levels are equal in single precision, and solvers divide by their difference.
    angle = FIRST + (LAST - FIRST) * (0.05 * time + 0.95 * time**2)
    signal = np.append(1.0, np.cos(angle) ** 2)
    return (1 - signal[1:] / signal[:-1]).tolist()


class UnknownName(ValueError):
    """A name that the model does not know.

    Attributes:
        what: it should have been: "sampler", "class", "parameter".
        name, allowed: that was given, and those that are known.
    """

    def __init__(self, what: str, name: object, allowed: Iterable[str]) -> None:
        self.what, self.name, self.allowed = what, name, tuple(allowed)
        known = ", ".join(self.allowed) or "none, for it was trained without"
        super().__init__(f"the model knows no {what} {name!r}; allowed: {known}")


class LensPipeline(diffusers.DiffusionPipeline):
    """Images drawn by a diffusion model, in the values of the images that it was trained on.

    >>> images = pipeline(16, label="vort", sampler="dpm++", steps=20, seed=7)  # float32, (16, C, H, W)

    Args:
        unet: called as ``unet(noisy, time, label, params)``; see ``LensUNet``.
        scheduler: the noise levels of training.
        channels: of an image.
        size: pixels along each side.
        classes: names of the classes in the order of their numbers; empty where the model does not know any.
        params: names of the further parameters that may be given.
        stretch: "none", "sqrt" or "asinh", undone after sampling.
        mean, std, softening: of each channel, as in training.
        pixel_scale: arcsec per pixel, or None.
    """

    # What diffusers sets, for type checkers.
    unet: Any
    scheduler: Any
    config: Any
    device: Any
    register_modules: Any
    register_to_config: Any
    progress_bar: Any
    save_pretrained: Any

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        channels: int = 1,
        size: int = 64,
        classes: _Words = (),
        params: _Words = (),
        stretch: str = "none",
        mean: _Numbers = (0.0,),
        std: _Numbers = (1.0,),
        softening: _Numbers = (1.0,),
        pixel_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(
            **{"channels": channels, "size": size, "classes": list(classes), "params": list(params)},
            **{"stretch": stretch, "mean": list(mean), "std": list(std), "softening": list(softening)},
            pixel_scale=pixel_scale,
        )

    def __call__(
        self,
        num: int = 1,
        label: str | int | Sequence[str | int | None] | None = None,
        given: Mapping[str, float | Sequence[float]] | None = None,
        sampler: str = "dpm++",
        steps: int = 20,
        guidance: float = 1.0,
        seed: int = 0,
        first: int = 0,
        batch_size: int = 64,
        on_step: Callable[[int], object] | None = None,
    ) -> np.ndarray:
        """Draw images; image i depends on (seed, first + i) alone, up to rounding, whatever the batch size.

        Args:
            num: how many.
            label: the class of all, or of each; names or numbers; None where it does not matter.
            given: values of parameters in their own units, of all or of each; others are left to chance.
            sampler: one of ``SAMPLERS``.
            steps: noise levels that are visited.
            guidance: 1 draws from what was learnt; above, images are more typical of their class and less diverse
                (Ho & Salimans, arXiv:2207.12598).
            on_step: called with the number of images after each step; without it a progress bar is shown.

        Returns:
            Float32, shape (num, C, H, W).

        Raises:
            UnknownName: of a sampler, class or parameter.
            ValueError: a number out of range.
        """
        self.check(num, label, given, sampler, steps, guidance, seed, batch_size)
        labels, values, scheduler = self._labels(label, num), self._values(given, num), self.make_sampler(sampler)
        is_guided = guidance != 1 and (labels is not None or values is not None)
        made = []
        for start in range(0, num, batch_size):
            rows = slice(start, min(start + batch_size, num))
            told = {
                "label": None if labels is None else labels[rows],
                "params": None if values is None else values[rows],
            }
            noise = [self._generator(seed, first + i) for i in range(num)[rows]]
            made.append(self._draw(scheduler, steps, noise, told, guidance if is_guided else 1.0, on_step))
        return torch.cat(made).numpy()

    def check(
        self,
        num: int = 1,
        label: str | int | Sequence[str | int | None] | None = None,
        given: Mapping[str, float | Sequence[float]] | None = None,
        sampler: str = "dpm++",
        steps: int = 20,
        guidance: float = 1.0,
        seed: int = 0,
        batch_size: int = 64,
    ) -> None:
        """Raises what a call would, without drawing anything."""
        self._labels(label, num)
        self._values(given, num)
        self.make_sampler(sampler)
        if num < 1 or batch_size < 1:
            raise ValueError(f"num={num}, batch_size={batch_size}: one image or more")
        most = self.scheduler.config.num_train_timesteps
        if not 1 <= steps <= most:
            raise ValueError(f"steps={steps}: the model was trained with {most} noise levels; allowed: 1 to {most}")
        if seed < 0 or not math.isfinite(guidance):
            raise ValueError(f"seed={seed}, guidance={guidance}: a seed is not negative, guidance is a finite number")
        if guidance != 1 and not (self.config.classes or self.config.params):
            raise ValueError(f"guidance={guidance}: nothing guides a model that was told no classes and no parameters")

    def make_sampler(self, name: str) -> Any:
        """The diffusers scheduler of that name, for the noise levels of training.

        Raises:
            UnknownName: there is none.
        """
        if name not in SAMPLERS:
            raise UnknownName("sampler", name, SAMPLERS)
        kind, options = SAMPLERS[name]
        return getattr(diffusers, kind).from_config(dict(self.scheduler.config), **options)

    @torch.inference_mode()
    def _draw(
        self,
        scheduler: Any,
        steps: int,
        noise: list[torch.Generator],
        told: dict[str, Tensor | None],
        guidance: float,
        on_step: Callable[[int], object] | None,
    ) -> Tensor:
        """One batch, in values as read, on the CPU."""
        shape = (self.config.channels, self.config.size, self.config.size)
        x = torch.stack([torch.randn(shape, generator=each) for each in noise]).to(self.device)
        scheduler.set_timesteps(steps)  # forgets the steps of the batch before
        extra = {"generator": noise} if isinstance(scheduler, diffusers.DDPMScheduler) else {}
        for time in self._steps(scheduler.timesteps, on_step, len(noise)):
            inputs = scheduler.scale_model_input(x, time)
            output = self.unet(inputs, time.to(self.device), **told)
            if guidance != 1:
                output = torch.lerp(self.unet(inputs, time.to(self.device)), output, guidance)
            x = scheduler.step(output, time, x, **extra).prev_sample
        return self.restored(x.float().clamp(-1, 1).cpu())

    def _steps(self, times: Tensor, on_step: Callable[[int], object] | None, number: int) -> Iterator[Tensor]:
        if on_step is None:
            yield from self.progress_bar(times)
            return
        for time in times:
            yield time
            on_step(number)

    def restored(self, images: Tensor) -> Tensor:
        """Undo the scale and the stretch of training: (B, C, H, W) in [-1, 1] -> values as read."""
        mean, std, softening = (torch.tensor(self.config[name])[:, None, None] for name in ("mean", "std", "softening"))
        images = images * std + mean
        if self.config.stretch == "sqrt":
            return images.sign() * images.square()
        return torch.sinh(images) * softening if self.config.stretch == "asinh" else images

    def _generator(self, seed: int, number: int) -> torch.Generator:
        # torch keeps 32 bits of a seed: neighbouring numbers never share their noise, hashes of them sometimes would.
        start = int(np.random.SeedSequence(seed).generate_state(1)[0])
        return torch.Generator().manual_seed((start + number) % 2**32)

    def _labels(self, label: Any, num: int) -> Tensor | None:
        """Class numbers (num,), the number of classes where none is asked for; None if the model knows no classes."""
        classes = list(self.config.classes)
        asked = [label] * num if label is None or isinstance(label, str | int) else list(label)
        if len(asked) != num:
            raise ValueError(f"{len(asked)} classes for {num} images: give one, or one for each")
        wrong = [each for each in asked if each is not None and each not in classes and each not in range(len(classes))]
        if wrong:
            raise UnknownName("class", wrong[0], classes)
        numbers = [
            len(classes) if each is None else classes.index(each) if isinstance(each, str) else each for each in asked
        ]
        return torch.tensor(numbers, device=self.device) if classes else None

    def _values(self, given: Mapping[str, Any] | None, num: int) -> Tensor | None:
        """Parameters (num, P), NaN where one is not given; None if the model knows none."""
        names = list(self.config.params)
        if wrong := sorted(set(given or ()) - set(names)):
            raise UnknownName("parameter", wrong[0], names)
        values = torch.full((num, len(names)), torch.nan)
        for name, value in (given or {}).items():
            values[:, names.index(name)] = torch.as_tensor(value, dtype=torch.float32)
        return values.to(self.device) if names else None
