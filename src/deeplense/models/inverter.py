"""From an image to the parameters of its lens, with a covariance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

# Standard deviations below this share of the training set's scatter are not believed.
LEAST = 1e-3


def num_outputs(params: int) -> int:
    """Mean and lower triangle."""
    return params + params * (params + 1) // 2


class Inverter(nn.Module):
    """A backbone whose outputs are read as a Gaussian over parameters, in the units of the training set's scatter.

    Parameters that never vary in training are known: their scatter is 0 in ``std``, and no part of the Gaussian.

    Attributes:
        architecture: of the backbone.
        mean, std: of each parameter over the training images, shape (P,).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, params: int) -> None:
        super().__init__()
        self.backbone, self.params = backbone, params
        self.architecture = getattr(backbone, "architecture", None)
        self.register_buffer("mean", torch.zeros(params))
        self.register_buffer("std", torch.ones(params))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> outputs (B, P + P (P + 1) / 2)."""
        return self.backbone(images)

    @property
    def varying(self) -> Tensor:
        """Numbers of the parameters that vary, int64, (V,)."""
        return self.std.nonzero()[:, 0]

    def posterior(self, outputs: Tensor) -> MultivariateNormal:
        """The Gaussian over the varying parameters, each less its mean and over its scatter, (B, V)."""
        mean, triangle = outputs.float().split([self.params, outputs.shape[1] - self.params], 1)
        rows, columns = torch.tril_indices(self.params, self.params, device=outputs.device)
        below = torch.zeros(len(outputs), self.params, self.params, device=outputs.device)
        below[:, rows, columns] = triangle
        diagonal = F.softplus(below.diagonal(dim1=1, dim2=2)) + LEAST
        lower = below.tril(-1) + torch.diag_embed(diagonal)
        keep = self.varying
        return MultivariateNormal(mean[:, keep], scale_tril=lower[:, keep][:, :, keep], validate_args=False)

    def standardised(self, values: Tensor) -> Tensor:
        """The varying ones of parameters (B, P) in their own units -> (B, V)."""
        keep = self.varying
        return (values[:, keep] - self.mean[keep]) / self.std[keep]

    def physical(self, standardised: Tensor) -> Tensor:
        """The inverse: all parameters in their own units, (B, P); known ones have their only value."""
        values = self.mean.repeat(len(standardised), 1)
        keep = self.varying
        return values.index_copy(1, keep, standardised * self.std[keep] + self.mean[keep])
