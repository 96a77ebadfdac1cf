"""Prompts in every form a caller may give them, brought into one form; the only place that looks at their types.

A prompt is a text, a conversation (a list of {"role", "content"} turns) or token ids. A call takes one of them, a list
of them, or a tensor or array of token ids, (N,) or (B, N), which may be padded on one side. Knows forms and types;
knows nothing about tokenizers or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quietstar.arguments import shown
from quietstar.engine.sampling import best
from quietstar.errors import QuietStarError, WrongType

Turns = Sequence[dict[str, str]]  # a conversation
OnePrompt = str | Sequence[int] | Turns
SeveralPrompts = Sequence[str] | Sequence[Sequence[int]] | Sequence[Turns]
Prompt = OnePrompt | SeveralPrompts | Tensor
Text = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | Tensor  # to score: no conversation

EMPTY_PROMPT = "the prompt is empty; give at least one token of text"


@dataclass(frozen=True)
class PromptItem:
    """One prompt; exactly one of the three fields is set.

    Args:
        text: as typed. turns: a conversation. ids: token ids, real ones only.
    """

    text: str | None = None
    turns: list[dict[str, str]] | None = None
    ids: list[int] | None = None

    @property
    def typed(self) -> str:
        """What a person typed: the text, the last user turn of the conversation, or "" for token ids."""
        if self.text is not None:
            return self.text
        of_user = [turn["content"] for turn in self.turns or () if turn["role"] == "user"]
        return of_user[-1] if of_user else ""


@dataclass(frozen=True)
class Prompts:
    """The prompts of one call.

    Args:
        items: one for each sequence.
        single: whether the caller gave one prompt by itself and expects one result, not a list.
        columns: for prompts given as a tensor, the first real column of each sequence and the width of the batch.
    """

    items: list[PromptItem]
    single: bool
    columns: tuple[list[int], int] | None = None

    @property
    def readable(self) -> bool:
        """Whether they are texts or conversations, which a chat template applies to, rather than token ids."""
        return self.items[0].ids is None

    def padding(self, lengths: Sequence[int]) -> tuple[list[int], int]:
        """Columns of padding left of each sequence, and the width of the batch, for sequences of these `lengths`."""
        return self.columns or ([0] * len(lengths), max(lengths))

    @classmethod
    def of(cls, prompt: Any, attention_mask: Tensor | None = None) -> Prompts:
        """What was given, in this form.

        Args:
            prompt: see `Prompt`; numpy arrays too, and what this method returned.
            attention_mask: (B, N), for a tensor of token ids only; true at real tokens.

        Raises:
            WrongType: not a prompt in any of these forms.
            QuietStarError: no prompt, an empty one, or a mask that does not fit.

        >>> Prompts.of("Why?").single
        True
        >>> [one.typed for one in Prompts.of(["Why?", [{"role": "user", "content": "How?"}]]).items]
        ['Why?', 'How?']
        >>> Prompts.of(torch.tensor([[0, 0, 5], [6, 7, 8]]), torch.tensor([[0, 0, 1], [1, 1, 1]])).columns
        ([2, 0], 3)
        """
        if isinstance(prompt, Prompts):
            return prompt
        if isinstance(prompt, np.ndarray):
            prompt = as_tensor(prompt)
        if isinstance(prompt, Tensor):
            return cls._of_tensor(prompt, attention_mask)
        if attention_mask is not None:
            raise QuietStarError("attention_mask belongs to a tensor of token ids; texts and lists need none")
        if isinstance(prompt, str):
            return cls([PromptItem(text=prompt)], single=True)
        if not isinstance(prompt, Sequence) or isinstance(prompt, (bytes, bytearray)):
            raise WrongType(f"prompt must be text, a list of texts, a conversation or token ids, got {shown(prompt)}")
        if not prompt:
            raise QuietStarError("there is no prompt; give at least one")
        if isinstance(prompt[0], dict) or _is_id(prompt[0]):
            return cls([_item(prompt)], single=True)
        return cls([_item(each) for each in prompt], single=False)

    @classmethod
    def _of_tensor(cls, ids: Tensor, attention_mask: Tensor | None) -> Prompts:
        if ids.dim() not in (1, 2) or not is_whole(ids):
            raise WrongType(
                f"token ids must be whole numbers of shape (batch, length), got {tuple(ids.shape)} of {ids.dtype}"
            )
        if not ids.numel():
            raise QuietStarError(EMPTY_PROMPT)
        single = ids.dim() == 1 or len(ids) == 1
        ids_BN = ids.long() if ids.dim() == 2 else ids.long()[None]
        mask_BN = _mask(ids_BN, attention_mask)
        items = [PromptItem(ids=row[keep].tolist()) for row, keep in zip(ids_BN, mask_BN, strict=True)]
        return cls(items, single, (best(mask_BN.int()).tolist(), ids_BN.shape[1]))


def as_tensor(value: Any) -> Tensor | None:
    """A tensor from a tensor, an array or nested lists of numbers; None stays None.

    Raises:
        WrongType: no tensor can be made of it.
    """
    if value is None or isinstance(value, Tensor):
        return value
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise WrongType(f"a tensor of whole numbers is needed, got {shown(value)}") from None


def is_whole(tensor: Tensor) -> bool:
    """Whether a tensor holds whole numbers."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _item(prompt: Any) -> PromptItem:
    """One prompt of a list."""
    if isinstance(prompt, str):
        return PromptItem(text=prompt)
    if isinstance(prompt, (np.ndarray, Tensor)):
        prompt = prompt.tolist()
    if isinstance(prompt, Sequence) and not isinstance(prompt, (bytes, bytearray)):
        if not prompt:
            raise QuietStarError(EMPTY_PROMPT)
        if all(map(_is_id, prompt)):
            return PromptItem(ids=[int(token) for token in prompt])
        if all(map(_is_turn, prompt)):
            return PromptItem(turns=list(prompt))
        if isinstance(prompt[0], dict):
            raise WrongType('a turn of a conversation must be {"role": text, "content": text}, got ' + shown(prompt))
    raise WrongType(f"a prompt must be text, a conversation or a list of token ids, got {shown(prompt)}")


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)


def _mask(ids_BN: Tensor, attention_mask: Tensor | None) -> Tensor:
    """True at real tokens, (B, N) like the ids; refuses a mask of another shape or with holes."""
    if attention_mask is None:
        return torch.ones_like(ids_BN, dtype=torch.bool)
    mask_BN = attention_mask if attention_mask.dim() == 2 else attention_mask[None]
    if mask_BN.shape != ids_BN.shape:
        raise QuietStarError(f"attention_mask has shape {tuple(mask_BN.shape)}, but the ids {tuple(ids_BN.shape)}")
    mask_BN = mask_BN.bool()
    for number, row in enumerate(mask_BN):
        borders = int(row.diff().sum() + row[:1].sum() + row[-1:].sum())  # the outer ones too
        if borders > 2:
            raise QuietStarError(f"attention_mask of sequence {number} has holes; padding must be on one side")
    return mask_BN
