"""Resampling: many thoughts at one position of a text, and what each does to the next token."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from quietstar.arguments import at_least, checked
from quietstar.engine import memory, noise
from quietstar.engine.model import ThinkingModel, chunks
from quietstar.engine.rows import Prefix
from quietstar.engine.sampling import flipped, kl_divergence
from quietstar.errors import QuietStarError
from quietstar.events import Choice, NoiseFloor
from quietstar.inference.controls import Control
from quietstar.inference.scoring import check_thinking, default_temperature
from quietstar.inference.thinking import Thinker
from quietstar.text import visible


@checked
@dataclass
class Resampled:
    """n thoughts at one position and what each does to the next token.

    Args:
        position: the place; thoughts: (n, T) tokens; texts: the same as text; token_logprobs: (n, T).
        mixing_weight: (n,) w. kl: (n,) KL(mixed || base) in nats. flipped: (n,) another likeliest token than
            the base's, by more than the noise floor in both predictions.
        base, mixed, only: likeliest next tokens without a thought, and with / from only each thought.
        noise: what rounding alone changes in these numbers.
    """

    position: int
    control: str
    thoughts: Tensor
    texts: list[str]
    token_logprobs: Tensor
    mixing_weight: Tensor
    kl: Tensor
    flipped: Tensor
    base: list[Choice]
    mixed: list[list[Choice]]
    only: list[list[Choice]]
    noise: NoiseFloor | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain Python, ready for JSON."""
        out = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in asdict(self).items()}
        return out | {"noise": None if self.noise is None else self.noise.to_dict()}

    def to_pandas(self) -> Any:
        """A data frame with one row a thought."""
        import pandas as pd

        return pd.DataFrame(
            {
                "thought": self.texts,
                "weight": self.mixing_weight.tolist(),
                "kl": self.kl.tolist(),
                "flipped": self.flipped.tolist(),
                "without": self.base[0].text,
                "with": [one[0].text for one in self.mixed],
                "only": [one[0].text for one in self.only],
            }
        )

    def _repr_html_(self) -> str:
        frame = self.to_pandas()
        for column in ("thought", "without", "with", "only"):
            frame[column] = frame[column].map(visible)
        html: str = frame.to_html(escape=True, float_format="{:.4f}".format)
        return html


@checked
@torch.inference_mode()
def resample_ids(
    model: ThinkingModel,
    ids: list[int],
    position: int,
    n: int,
    *,
    thought_length: Annotated[int, at_least(0)] | None = None,
    thought_temperature: float = 1.0,
    seed: int = 0,
    control: str | Control = "own",
    mixing_weight: float | None = None,
    thoughts: Tensor | None = None,
    prefix: Prefix | None = None,
    hidden: Tensor | None = None,
    show: Annotated[int, at_least(1)] = 5,
) -> Resampled:
    """Think n times at one position of a text; see `QuietStar.resample`. `prefix`, `hidden` (1, N, E)
    spare reading it."""
    if not 0 <= position < len(ids):
        raise QuietStarError(
            f"position must be from 0 to {len(ids) - 1} (the text has {len(ids)} tokens), got {position}"
        )
    if n < 1:
        raise QuietStarError(f"n must be at least 1, got {n}")
    control = Control.parse(control)
    if not control.thinks:
        raise QuietStarError(f"control '{control}' has no thought to resample; the prediction is the base prediction")
    length = model.config.thought_length if thought_length is None else thought_length
    temperature = thought_temperature if n > 1 or thought_temperature else None
    check_thinking(length, n, temperature)
    forced = None if thoughts is None else thoughts[None, None]
    thinker = Thinker(
        model,
        length=length if forced is None else forced.shape[3],
        samples=n,
        temperature=default_temperature(temperature, n),
        seed=seed,
        control=control,
        mixing_weight=mixing_weight,
        forced=forced,
        show=show,
    )
    context = ids[: position + 1]
    thinker.check(context)
    memory.thinking(
        model,
        lengths=[len(context)],
        rows=n,
        length=thinker.length,
        samples=n,
        advice="ask for fewer thoughts (n)",
        kept=2 * show * memory.CHOICE,
    )
    if prefix is None or hidden is None:
        prefix, hidden = model.read(torch.tensor([context], device=model.device))
    ids_1N = torch.tensor([context], device=model.device)
    floor = noise.measure(model, prefix, noise.spread([len(context)]), ids_1N, hidden, thinker.length, thinker.weight)
    hidden, position_1 = hidden[:, -1], torch.tensor([position], device=model.device)
    products_1V = model.products(hidden, position_1)
    base_V = model.logprobs(products_1V)[0]
    thought = thinker.think(prefix, [0], [position], [0])
    weights, divergences, flips = [], [], []
    mixed: list[list[Choice]] = []
    only: list[list[Choice]] = []
    for r in chunks(n, model.budget.logit_rows):
        base_RE = hidden.expand(len(thought.hidden[r]), -1)
        products_RV = products_1V.expand(len(base_RE), -1)
        w_R, mixed_RV, only_RV = model.predict(
            base_RE, thought.hidden[r], thinker.weight, products_RV, position=position_1
        )
        base_RV = base_V.expand_as(mixed_RV)
        weights.append(w_R)
        divergences.append(kl_divergence(mixed_RV, base_RV))
        flips.append(flipped(base_RV, mixed_RV, floor.logprob))
        mixed += thinker.choices(mixed_RV, context)
        only += thinker.choices(only_RV, context)
    return Resampled(
        position=position,
        control=str(control),
        thoughts=thought.tokens,
        texts=[thinker.text(tokens, context) for tokens in thought.tokens.tolist()],
        token_logprobs=thought.logprobs,
        mixing_weight=torch.cat(weights),
        kl=torch.cat(divergences),
        flipped=torch.cat(flips),
        base=thinker.choices(base_V[None], context)[0],
        mixed=mixed,
        only=only,
        noise=floor,
    )
