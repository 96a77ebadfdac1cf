"""The learned parts of Quiet-STaR beside the base model: the mixing head and the two thought markers.

Knows hidden states and embeddings; knows nothing about attention, tokens or text.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EMBEDDING_SCALE = 100.0  # markers are stored divided by this, so their gradient is 100 times larger (paper, appendix)


class MixingHead(nn.Module):
    """The weight w of the thought: an MLP on (base hidden, thought hidden), without squashing; eq. of section 4.3.

    Args:
        hidden_size: E, the size of a hidden state of the base model.

    The last layer starts at zero: w is 0 everywhere, training starts from exactly the base model. Made in fp32, which
    is worth keeping.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * hidden_size, hidden_size, dtype=torch.float32),
            nn.ReLU(),
            nn.Linear(hidden_size, hidden_size, dtype=torch.float32),
            nn.ReLU(),
            nn.Linear(hidden_size, 1, bias=False, dtype=torch.float32),
        )
        nn.init.zeros_(self.last.weight)

    def forward(self, base: Tensor, thought: Tensor) -> Tensor:
        """w, (...), from base and thought hidden states, (..., E) each."""
        pair = torch.cat([base, thought], dim=-1).to(self.last.weight.dtype)
        with torch.autocast(pair.device.type, enabled=False):
            weight: Tensor = self.layers(pair).squeeze(-1).float()
        return weight

    @property
    def untrained(self) -> bool:
        """True while w can only be 0."""
        return not bool(self.last.weight.any())

    @property
    def last(self) -> nn.Linear:
        """The layer that gives w."""
        layer = self.layers[4]
        assert isinstance(layer, nn.Linear)
        return layer


class Markers(nn.Module):
    """The embeddings that open and close a thought, (E,) each, stored divided by `EMBEDDING_SCALE`; made in fp32."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.zeros(hidden_size, dtype=torch.float32))
        self.end = nn.Parameter(torch.zeros(hidden_size, dtype=torch.float32))

    def set_from(self, embedding: Tensor) -> None:
        """Let both markers begin as the input embedding of some token, (E,); the paper takes that of "---"."""
        with torch.no_grad():
            self.start.copy_(embedding.float() / EMBEDDING_SCALE)
            self.end.copy_(embedding.float() / EMBEDDING_SCALE)

    def opening(self, dtype: torch.dtype) -> Tensor:
        """The start marker as an input embedding, (E,)."""
        return (self.start * EMBEDDING_SCALE).to(dtype)

    def closing(self, dtype: torch.dtype) -> Tensor:
        """The end marker as an input embedding, (E,)."""
        return (self.end * EMBEDDING_SCALE).to(dtype)


def mix(base: Tensor, thought: Tensor, weight: Tensor) -> Tensor:
    """(1 - w) base + w thought in hidden space, in fp32; shapes (..., E), (..., E), (...)."""
    w = weight.unsqueeze(-1)
    return (1 - w) * base.float() + w * thought.float()
