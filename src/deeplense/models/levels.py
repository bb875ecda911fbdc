"""The noise levels of a diffusion model, and what its answers mean: noisy images, targets, implied clean images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deeplense.models.pipeline import noise_levels


class NoiseLevels(nn.Module):
    """With signal a and noise s of a level, a^2 + s^2 = 1: x_t = a x_0 + s noise, v = a noise - s x_0.

    Images are (B, C, H, W); ``time`` is the number of each image's level, int64, (B,); ``answer`` is what a network
    says of x_t: the noise, or v.

    Attributes:
        scheduler: the same levels, as diffusers describes them.
        share: of signal in the power of each level, a^2, (T,).

    References:
        Denoising Diffusion Probabilistic Models, arXiv:2006.11239, equation 4; v: arXiv:2202.00512, section 4.
    """

    share: Tensor

    def __init__(self, steps: int, schedule: str, objective: str) -> None:
        super().__init__()
        self.scheduler, self.is_v = noise_levels(steps, schedule, objective), objective == "v"
        self.register_buffer("share", self.scheduler.alphas_cumprod, persistent=False)

    def __len__(self) -> int:
        return len(self.share)

    def noisy(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """x_t."""
        a, s = self._signal_and_noise(time)
        return a * clean + s * noise

    def target(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """The right answer."""
        a, s = self._signal_and_noise(time)
        return a * noise - s * clean if self.is_v else noise

    def implied_noise(self, answer: Tensor, x_t: Tensor, time: Tensor) -> Tensor:
        """The noise that an answer implies."""
        a, s = self._signal_and_noise(time)
        return s * x_t + a * answer if self.is_v else answer

    def implied_clean(self, answer: Tensor, x_t: Tensor, time: Tensor) -> Tensor:
        """The clean image that an answer implies, cut off at -1 and 1 as in sampling."""
        a, s = self._signal_and_noise(time)
        return (a * x_t - s * answer if self.is_v else (x_t - s * answer) / a).clamp(-1, 1)

    def weight(self, time: Tensor, most: float) -> Tensor:
        """min(SNR, ``most``), in the square error of the clean image, as a factor on that of the answer; (B,).

        Args:
            most: 0 for a factor of 1 at every level.

        References:
            Hang et al., Efficient diffusion training via min-SNR weighting, arXiv:2303.09556, section 3.4.
        """
        if most == 0:
            return torch.ones_like(self.share[time])
        snr = self.share[time] / (1 - self.share[time])
        return snr.clamp(max=most) / (snr + 1 if self.is_v else snr)

    def _signal_and_noise(self, time: Tensor) -> tuple[Tensor, Tensor]:
        share = self.share[time][:, None, None, None]
        return share.sqrt(), (1 - share).sqrt()
