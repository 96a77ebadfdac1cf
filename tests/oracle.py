"""The slow, obvious Quiet-STaR: one thought at a time, everything recomputed for every token, no code of the engine.

Works on an untouched transformers model. The hidden state is what the model hands to its own output layer, and logits
of a mixed hidden state are had by putting it in that place, so no family's arithmetic is repeated here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quietstar.engine.sampling import THOUGHT, uniforms


class Oracle:
    """`base` is a causal LM as transformers made it; start, end (E,) and head as in the model under test."""

    def __init__(self, base, start: Tensor, end: Tensor, head) -> None:
        self.base, self.start, self.end, self.head = base.eval(), start, end, head

    @torch.no_grad()
    def run(self, embeds: Tensor, replace: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Hidden state and logits at the last place of a sequence of embeddings (n, E)."""
        seen = {}

        def look(_, args):
            seen["hidden"] = args[0][0, -1].clone()
            return None if replace is None else (replace.expand_as(args[0]),)

        handle = self.base.get_output_embeddings().register_forward_pre_hook(look)
        logits = self.base(inputs_embeds=embeds[None], use_cache=False).logits[0, -1]
        handle.remove()
        return seen["hidden"], logits

    def think(self, ids: list[int], length: int, choose) -> tuple[list[int], dict[str, Tensor]]:
        """A thought behind `ids`: its tokens and the predictions. `choose(j, logits)` picks token j."""
        embed = self.base.get_input_embeddings()
        text = embed(torch.tensor(ids))
        h, base_logits = self.run(text)
        thought: list[int] = []
        for j in range(length):
            so_far = torch.cat([text, self.start[None], embed(torch.tensor(thought, dtype=torch.long))])
            thought.append(int(choose(j, self.run(so_far)[1])))
        whole = torch.cat([text, self.start[None], embed(torch.tensor(thought, dtype=torch.long)), self.end[None]])
        g, only_logits = self.run(whole)
        w = self.head(torch.cat([h, g]))[0]
        mixed_logits = self.run(text, replace=(1 - w) * h + w * g)[1]
        return thought, {"base": base_logits, "only": only_logits, "mixed": mixed_logits, "w": w}

    def score(self, ids: list[int], length: int, temperature: float, seed: int, sequence: int, samples: int):
        """As `QuietStar.score`: per position and sample the thought, w and the log-probabilities of the next token."""
        out = []
        for i in range(len(ids) - 1):
            for p in range(samples):

                def choose(j, logits, i=i, p=p):
                    if temperature == 0:
                        return logits.argmax()
                    u = float(uniforms(seed, THOUGHT, sequence, i, p, j))
                    return (torch.softmax(logits.double() / temperature, -1).cumsum(-1) > u).int().argmax()

                thought, found = self.think(ids[: i + 1], length, choose)
                logprobs = {k: torch.log_softmax(v, -1) for k, v in found.items() if k != "w"}
                out.append(
                    {
                        "thought": thought,
                        "w": found["w"].item(),
                        **{k: float(v[ids[i + 1]]) for k, v in logprobs.items()},
                        "all_mixed": logprobs["mixed"],
                        "all_base": logprobs["base"],
                    }
                )
        return out

    def generate(self, ids: list[int], length: int, steps: int) -> tuple[list[int], list[list[int]]]:
        """Greedy text with a greedy thought before every token."""
        ids, thoughts = list(ids), []
        for _ in range(steps):
            thought, found = self.think(ids, length, lambda j, logits: logits.argmax())
            thoughts.append(thought)
            ids.append(int(found["mixed"].argmax()))
        return ids, thoughts
