"""Tokens that a checkpoint's generation config suppresses: always, at the beginning, and at the end of sequences.

`suppress_tokens`, `begin_suppress_tokens` and `bad_words_ids` are honoured for every emitted token, drafted or not;
thoughts are private and stay free. Other settings there that would change the output are named once and not used.
Knows token ids; knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# settings of a generation config that change greedy output and are not applied here, with their neutral values
_UNUSED: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "exponential_decay_length_penalty": (None,),
    "sequence_bias": (None, {}),
    "num_beams": (None, 1),
    "guidance_scale": (None, 1.0),
    "penalty_alpha": (None, 0),
    "stop_strings": (None, [], ()),
    "token_healing": (None, False),
    "watermarking_config": (None,),
}


@dataclass(frozen=True)
class Suppression:
    """Token ids that must not be emitted.

    Args:
        always: never. first: not as the first emitted token. sequences: not where the text would end with one of them.
    """

    always: tuple[int, ...] = ()
    first: tuple[int, ...] = ()
    sequences: tuple[tuple[int, ...], ...] = ()
    unused: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def of(cls, config: Any, vocabulary: int, stop_ids: Sequence[int] = ()) -> Suppression:
        """Read a generation config; ids outside the vocabulary are ignored.

        A bad word of one token that ends the answer is left out, as in transformers.
        """

        def ids(name: str) -> tuple[int, ...]:
            return tuple(int(token) for token in getattr(config, name, None) or () if 0 <= int(token) < vocabulary)

        words = [tuple(map(int, word)) for word in getattr(config, "bad_words_ids", None) or () if len(word)]
        words = [word for word in words if all(0 <= token < vocabulary for token in word)]
        single = tuple(word[0] for word in words if len(word) == 1 and word[0] not in stop_ids)
        unused = tuple(name for name, nothing in _UNUSED.items() if getattr(config, name, None) not in nothing)
        return cls(
            ids("suppress_tokens") + single,
            ids("begin_suppress_tokens"),
            tuple(word for word in words if len(word) > 1),
            unused,
        )

    def __bool__(self) -> bool:
        return bool(self.always or self.first or self.sequences)

    def banned(self, text: Sequence[int], emitted: int) -> list[int]:
        """Ids that must not follow `text`, `emitted` tokens of which are the answer's."""
        ends = [word[-1] for word in self.sequences if tuple(text[len(text) - len(word) + 1 :]) == word[:-1]]
        return [*self.always, *(self.first if emitted == 0 else ()), *ends]

    def apply(self, logits_MV: Tensor, texts: Sequence[Sequence[int]], emitted: Sequence[int]) -> Tensor:
        """Logits or log-probabilities (M, V) with what is banned after each text at minus infinity."""
        banned = [self.banned(text, count) for text, count in zip(texts, emitted, strict=True)]
        rows = [m for m, ids in enumerate(banned) for _ in ids]
        if not rows:
            return logits_MV
        columns = [token for ids in banned for token in ids]
        logits_MV = logits_MV.clone()
        logits_MV[rows, columns] = -torch.inf
        return logits_MV
