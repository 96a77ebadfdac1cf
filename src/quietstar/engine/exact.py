"""Products with half-precision weights in fp32: the exact logits of bf16 or fp16 hidden states and weights.

A bf16 product rounds its result to 8 bits, for logits of 16 to steps of 0.125 nats: coarser than most thoughts. The
weights are read a block of rows at a time and computed with in fp32, so no second copy of them is kept that could
take memory or fall behind when they change. Knows tensors; knows nothing about models.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quietstar.engine import budgets


def linear(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """hidden @ weight.T + bias in fp32, (..., V), from (..., E), (V, E) and (V,) of any precision.

    Differentiable; the gradient's products with half-precision weights are in that precision, as for any layer.
    """
    if weight.dtype == torch.float32:
        return torch.nn.functional.linear(hidden.float(), weight, bias)
    rows: Tensor = _Product.apply(hidden.reshape(-1, hidden.shape[-1]), weight)
    out = rows.view(*hidden.shape[:-1], weight.shape[0])
    return out if bias is None else out + bias


def _product(hidden: Tensor, weight: Tensor) -> Tensor:
    wide = hidden.float()
    out = wide.new_empty(len(hidden), len(weight))
    size = budgets.of(weight.device).weight_rows
    for start in range(0, len(weight), size):
        part = slice(start, start + size)
        torch.mm(wide, weight[part].float().t(), out=out[:, part])
    return out


class _Product(torch.autograd.Function):
    """(R, E), (V, E) -> (R, V) in fp32; keeps its arguments for the backward pass and nothing in fp32."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(hidden, weight)
        return _product(hidden, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        hidden, weight = ctx.saved_tensors
        narrow = gradient.to(weight.dtype)
        to_hidden = (narrow @ weight).to(hidden.dtype) if ctx.needs_input_grad[0] else None
        to_weight = narrow.t() @ hidden.to(weight.dtype) if ctx.needs_input_grad[1] else None
        return to_hidden, to_weight
