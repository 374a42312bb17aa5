"""Dropout for CPUs, where drawing one random number per element takes a fifth of a small transformer's training time or more."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LEVELS = 256


class ByteDropout(nn.Dropout):
    """Dropout that decides eight elements by one 64-bit draw, on a CPU; elsewhere it is `nn.Dropout`.

    The rate is rounded to 1/256, and the scale is that of the rounded rate. Draws come from torch's default generator.
    """

    def forward(self, input: Tensor) -> Tensor:
        threshold = round(self.p * LEVELS)
        if not self.training or input.device.type != "cpu" or not 0 < threshold < LEVELS:
            return super().forward(input)
        return _Drop.apply(input, threshold)


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, threshold: int) -> Tensor:
        draws = torch.empty(-(-input.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        dropped = (draws.view(torch.uint8)[: input.numel()] < threshold).view(input.shape)
        ctx.save_for_backward(dropped)
        ctx.scale = LEVELS / (LEVELS - threshold)
        return input.masked_fill(dropped, 0).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (dropped,) = ctx.saved_tensors
        return gradients[0].masked_fill(dropped, 0).mul_(ctx.scale), None


def use_byte_dropout(model: nn.Module) -> None:
    """Let every `nn.Dropout` of a model draw by bytes; nothing else about it changes, and nothing of it is saved."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = ByteDropout
