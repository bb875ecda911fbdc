"""Several networks that predict as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """The mean of its members' answers: of their logits where there is one, of their log-probabilities where several.

    Both are a geometric mean of the members' probabilities, up to normalisation, and calibrated afterwards as one.

    Attributes:
        architecture: of each member.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.architecture: dict[str, Any] | None = getattr(members[0], "architecture", None)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, K)."""
        answers = torch.stack([member(x) for member in self.members])
        return (answers if answers.shape[-1] == 1 else answers.log_softmax(dim=-1)).mean(dim=0)
