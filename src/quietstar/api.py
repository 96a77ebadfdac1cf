"""`QuietStar`: a language model that thinks before it speaks, as one object to load, ask, score and save."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, overload

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from typing_extensions import Unpack

from quietstar.arguments import at_least, checked, converted, one_or_more, shown, unknown_option
from quietstar.engine import memory
from quietstar.engine.model import QuietStarConfig, ThinkingModel
from quietstar.errors import QuietStarError, WrongType, first_line
from quietstar.events import Event, Trace
from quietstar.inference.controls import Control
from quietstar.inference.generation import GenerationSettings, stream_ids
from quietstar.inference.resampling import Resampled, resample_ids
from quietstar.inference.scoring import Score, score_ids
from quietstar.loading import checkpoints
from quietstar.options import GenerationOptions, ResampleOptions, StreamOptions
from quietstar.prompts import (
    EMPTY_PROMPT,
    OnePrompt,
    Prompt,
    PromptItem,
    Prompts,
    SeveralPrompts,
    Text,
    as_tensor,
    is_whole,
)

REASON_PROMPT = "Let's think step by step."
ANSWER_PROMPT = "\nTherefore, the answer is"
_COMMON = {"config", "device", "dtype", "eval", "parameters", "push_to_hub", "state_dict", "to", "train", "training"}


def _causal_lm(value: Any) -> Any:
    """A loaded causal LM, bare or in PEFT's wrapper."""
    if isinstance(value, torch.nn.Module) and callable(getattr(value, "get_output_embeddings", None)):
        return value
    hint = f"; QuietStar.from_pretrained({value!r}) loads one by name" if isinstance(value, (str, Path)) else ""
    raise WrongType(f"base must be a loaded causal LM, got {shown(value)}{hint}")


def _tokenizer(value: Any) -> Any:
    """A Hugging Face tokenizer, or None."""
    if value is None or (callable(value) and all(callable(getattr(value, n, None)) for n in ("encode", "decode"))):
        return value
    raise WrongType(f"tokenizer must be a loaded Hugging Face tokenizer or None, got {shown(value)}")


class Generation(NamedTuple):
    """What `generate` returns: the emitted text and the trace with every thought."""

    text: str
    trace: Trace

    def to_dict(self) -> dict[str, Any]:
        """The trace as plain Python, ready for JSON."""
        return self.trace.to_dict()

    def to_pandas(self) -> Any:
        """A data frame with one row a thought, see `Trace.to_pandas`."""
        return self.trace.to_pandas()

    def __repr__(self) -> str:
        return f"Generation({shown(self.text)}, {self.trace!r})"

    def _repr_html_(self) -> str:
        return self.trace._repr_html_()


class QuietStar(ThinkingModel):
    """A base model that thinks before it speaks (Zelikman et al. 2024).

    Example:
        >>> from quietstar import QuietStar                                   # doctest: +SKIP
        >>> model = QuietStar.from_pretrained("default")                      # doctest: +SKIP
        >>> text, trace = model.generate("Why is the sky blue?")              # doctest: +SKIP
        >>> trace.most_influential(3)[0].samples[0].text                      # doctest: +SKIP
    """

    def __repr__(self) -> str:
        """The facts on one line; `print(model.base)` shows the layers."""
        name = self.config.name_or_path or self.config.base_name or "a base model without a name"
        weights = sum(weight.numel() for weight in self.parameters())
        state = "untrained thoughts (w = 0)" if self.head.untrained else "trained thoughts"
        dtype = str(self.decoder_lm.dtype).removeprefix("torch.")
        return (
            f"QuietStar({shown(name)}: {weights / 1e6:.1f} million weights, {dtype} on {self.device}, "
            f"thought_length={self.config.thought_length}, {state})"
        )

    def __dir__(self) -> list[str]:
        """For completion: our public names, the common ones of torch and private ones.

        The hundreds of other names that transformers and torch add are left out; they work all the same.
        """
        ours = {name for cls in (QuietStar, ThinkingModel) for name in vars(cls)}
        public = {*ours, *_COMMON, *(name for name in vars(self) if not name.startswith("_")), *self._modules}
        return sorted(public | {name for name in super().__dir__() if name.startswith("_")})

    # -- loading and saving -------------------------------------------------------------------------------------------

    @classmethod
    @checked
    def from_pretrained(  # type: ignore[override]
        cls,
        name: str | Path = "default",
        *,
        revision: str | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        quantize: str | None = None,
        trust_remote_code: bool = False,
        **handed_over: Any,
    ) -> QuietStar:
        """Load a thinking model, or put an untrained head around a base model.

        Args:
            name: "default"; a folder saved by `save_pretrained`; a published Quiet-STaR checkpoint; any causal LM as a
                folder, a .gguf file or a hub name (its thoughts are untrained then: w = 0 until a head is trained).
            revision: commit or branch of a hub name.
            dtype: "auto" (the checkpoint's own; fp32 on a CPU without bf16 arithmetic) or a name such as "float32".
            device: where to put it; CUDA if there is one.
            quantize: "4bit" or "8bit" for the base, through bitsandbytes.
            trust_remote_code: run model code from the checkpoint; off unless asked.
            handed_over: what transformers' auto classes add of their own accord; anything else is refused.

        Raises:
            QuietStarError: unknown, broken or unreachable model, wrong value.
            UnsupportedModel: a family rows cannot serve, with the reason.
        """
        if unknown := sorted(set(handed_over) - {"config", "adapter_kwargs"}):
            known = ("revision", "dtype", "device", "quantize", "trust_remote_code")
            raise WrongType(unknown_option(unknown[0], known, " of from_pretrained"))
        model: QuietStar = checkpoints.load(
            cls,
            str(name),
            revision=revision,
            dtype=dtype,
            device=device,
            quantize=quantize,
            trust_remote_code=trust_remote_code,
        )
        return model

    @classmethod
    @checked
    def from_base(
        cls,
        base: Annotated[PreTrainedModel, converted(_causal_lm)],
        tokenizer: Annotated[Any, converted(_tokenizer)] = None,
        *,
        base_name: str | None = None,
    ) -> QuietStar:
        """Put markers ("---") and an untrained mixing head (w = 0) around a loaded causal LM, which may have adapters.

        Without a tokenizer everything works on token ids. `base_name` says where the very same base can be loaded from;
        `save_pretrained` compares the two, and without a name writes the base too. A base with PEFT adapters is known
        by the name that PEFT keeps. Prompt, prefix and p-tuning are refused: rows do not know virtual tokens.
        """
        model: QuietStar = checkpoints.fresh(cls, base, tokenizer, base_name)
        return model

    @checked
    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        *,
        save_base: bool | None = None,
        max_shard_size: int | str = checkpoints.SHARD,
        push_to_hub: bool = False,
        **keywords: Any,
    ) -> None:
        """Save the model so that `from_pretrained` gives it back as it is.

        Markers and head are written as safetensors, adapters in PEFT's format, the base by its name; tokenizer,
        generation defaults and the base's weights only where they are not what that name holds. A kill or a full disk
        leaves in `save_directory` what was there before.

        Args:
            save_base: also write the base's weights; by default only where they were changed or have no name.
            max_shard_size: most bytes in one file of the base, as a number or such as "2GB".
            push_to_hub: also push to the hub, to the repository `repo_id`.

        Raises:
            QuietStarError: the disk is full or read-only; something was changed that the folder could not hold, or
                that `save_base=False` leaves out.
        """
        if keywords and not push_to_hub:
            raise QuietStarError(f"unknown option {sorted(keywords)[0]!r} of save_pretrained")
        checkpoints.save(self, save_directory, save_base, max_shard_size)
        if push_to_hub:
            self.push_to_hub(keywords.pop("repo_id", Path(save_directory).name), **keywords)

    # -- asking -------------------------------------------------------------------------------------------------------

    @checked
    def encode(
        self,
        prompt: Annotated[Prompt, converted(lambda prompt: prompt)],
        *,
        raw: bool = False,
        system: str | None = None,
        attention_mask: Annotated[Tensor | None, converted(as_tensor)] = None,
        fitting: bool = False,
    ) -> tuple[list[list[int]], list[str]]:
        """Prompts as token ids and as the text the model reads, one of each a sequence.

        A string goes through the chat template where the tokenizer has one (`raw` leaves it out; `system` fills its
        system turn); a list of {"role", "content"} is a whole conversation; ids are taken as they are. With `fitting` a
        text far beyond the context is refused before all of it is made into tokens.
        """
        return self._encoded(Prompts.of(prompt, attention_mask), raw=raw, system=system, fitting=fitting)

    def _encoded(
        self, prompts: Prompts, *, raw: bool = False, system: str | None = None, fitting: bool = False
    ) -> tuple[list[list[int]], list[str]]:
        """Token ids and text of each prompt, see `encode`."""
        texts, ids = [], []
        for one in prompts.items:
            if one.ids is not None:
                encoded = self._checked(one.ids)
                text = self._decode(encoded)
            else:
                text = self._render(one, raw, system)
                encoded = self._encode(text, special=raw or not self.has_chat_template, fitting=fitting)
            if not encoded:
                raise QuietStarError(EMPTY_PROMPT)
            texts.append(text)
            ids.append(encoded)
        return ids, texts

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer has a chat template, which texts and conversations then go through."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def _in_template(self, prompts: Prompts, raw: bool) -> bool:
        """Whether these prompts go through the tokenizer's chat template."""
        return prompts.readable and not raw and self.has_chat_template

    def _render(self, prompt: PromptItem, raw: bool, system: str | None) -> str:
        """A text or conversation as the model reads it, in the chat template unless `raw`."""
        if self.tokenizer is None:
            raise QuietStarError("this model has no tokenizer; pass token ids instead of text")
        if prompt.text is not None and not prompt.text.strip():
            raise QuietStarError("the prompt is empty; give at least one word")
        if raw or not self.has_chat_template:
            if prompt.text is None:
                raise QuietStarError("a conversation needs a tokenizer with a chat template (and raw must be off)")
            if system is not None:
                raise QuietStarError("system needs a tokenizer with a chat template (and raw must be off)")
            return prompt.text
        turns = list(prompt.turns or [{"role": "user", "content": prompt.typed}])
        if system is not None:
            turns.insert(0, {"role": "system", "content": system})
        try:
            rendered: str = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except MemoryError:
            raise
        except Exception as error:  # a template is a program of its own
            named = self.tokenizer.chat_template
            if isinstance(named, dict) and "default" not in named:
                raise QuietStarError(
                    f"the tokenizer has chat templates named {', '.join(map(repr, sorted(named)))} and none named "
                    "'default': set tokenizer.chat_template to one of them, or pass raw=True (--raw)"
                ) from error
            raise QuietStarError(
                f"the model's chat template rejects this conversation ({first_line(error)}); change it or "
                "pass raw=True (--raw)"
            ) from error
        return rendered

    def _encode(self, text: str, special: bool = True, fitting: bool = False) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise QuietStarError(
                f"the text is not Unicode: character {error.start} is half of a surrogate pair; decode it again with "
                'errors="replace"'
            ) from error
        limit = self.context_limit
        if fitting and limit is not None:
            part = 64 * limit  # most texts have less than 64 characters a token; for one that has more, look further
            while part < len(text):
                found = len(self._ids(text[:part], special))
                if found > 2 * limit:
                    raise QuietStarError(
                        f"the text has {len(text)} characters, its first {part} alone are {found} tokens, but the "
                        f"context is {limit} tokens; shorten it"
                    )
                part *= 4
        memory.check(len(text) * memory.TOKENISING, f"making {len(text)} characters into tokens", "give a shorter text")
        return self._ids(text, special)

    def _ids(self, text: str, special: bool) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        return self.check_ids(ids)

    @checked
    def check_ids(self, ids: list[int]) -> list[int]:
        """`ids` as they are, where the base model has embeddings for all; the tokenizer may have tokens beyond them."""
        rows = self.decoder_lm.get_input_embeddings().weight.shape[0]
        if ids and max(ids) >= rows:
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise QuietStarError(
                f"the text has {token!r}, token {max(ids)} of the tokenizer, but the base model has embeddings for "
                f"{rows} tokens only; leave it out, or resize the model with resize_token_embeddings"
            )
        return ids

    def _decode(self, ids: list[int]) -> str:
        if self.tokenizer is None:
            return ""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _checked(self, ids: list[int]) -> list[int]:
        for token in ids:
            if not 0 <= token < self.vocabulary:
                raise QuietStarError(f"token id must be from 0 to {self.vocabulary - 1}, got {token}")
        return ids

    @checked
    def stream(
        self,
        prompt: Annotated[Prompt | Prompts, converted(lambda prompt: prompt)],
        *,
        raw: bool = False,
        system: str | None = None,
        attention_mask: Annotated[Tensor | None, converted(as_tensor)] = None,
        thoughts: Annotated[Tensor | None, converted(as_tensor)] = None,
        settings: GenerationSettings | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Iterator[Event]:
        """Generate and tell everything as it happens: a `start`, then `thought` and `token` events, then an `end` each.

        Args:
            prompt: text, a list of texts, a conversation, or token ids (a tensor may be padded on either side).
            raw, system: see `encode`. attention_mask: for padded id tensors.
            thoughts: token ids (batch, positions, samples, T) to think instead of sampling.
            settings: all settings at once; `options` are its fields (`thought_length=`, `trigger=`, `control=`, ...).

        Raises:
            QuietStarError: a wrong value, an empty prompt, a prompt longer than the context.
        """
        prompts = Prompts.of(prompt, attention_mask)
        settings = _settings(settings, dict(options))
        ids, texts = self._encoded(prompts, raw=raw, system=system, fitting=True)
        if thoughts is not None:
            thoughts = self._forced(thoughts)
            temperature = settings.thought_temperature or None  # thoughts are given: nothing is sampled
            settings = replace(settings, samples=thoughts.shape[2], thought_temperature=temperature)
        chat = self._in_template(prompts, raw)
        asked = [one.typed for one in prompts.items]
        return self._remember(stream_ids(self, ids, settings, texts=texts, asked=asked, chat=chat, thoughts=thoughts))

    def _remember(self, events: Iterator[Event]) -> Iterator[Event]:
        """Pass events on and keep the first text for `resample`."""
        trace: Trace | None = None
        for event in events:
            if trace is None:
                trace = Trace(event)  # type: ignore[arg-type]
            trace.add(event)
            self._last_ids = trace.ids
            yield event

    @overload
    def generate(self, prompt: str, **options: Unpack[StreamOptions]) -> Generation: ...  # type: ignore[overload-overlap]
    @overload
    def generate(self, prompt: SeveralPrompts, **options: Unpack[StreamOptions]) -> list[Generation]: ...  # type: ignore[overload-overlap]
    @overload
    def generate(self, prompt: OnePrompt, **options: Unpack[StreamOptions]) -> Generation: ...
    @overload
    def generate(self, prompt: Tensor, **options: Unpack[StreamOptions]) -> Any: ...
    @overload
    def generate(self, *, input_ids: Tensor, **options: Unpack[StreamOptions]) -> Any: ...
    @checked
    def generate(
        self,
        prompt: Annotated[Prompt | None, converted(lambda prompt: prompt)] = None,
        *,
        input_ids: Annotated[Tensor | None, converted(lambda ids: ids)] = None,
        attention_mask: Annotated[Tensor | None, converted(as_tensor)] = None,
        **options: Any,
    ) -> Generation | list[Generation]:
        """Generate and return text and trace, `Generation(text, trace)`; a list of them for several prompts.

        Takes what `stream` takes; `input_ids` is another name of `prompt`, for what a tokenizer returned. A tensor of
        one row is one prompt. Example: ``text, trace = model.generate("Hello", max_new_tokens=20)``.

        Raises:
            QuietStarError: as `stream`.
        """
        if (prompt is None) == (input_ids is None):
            raise QuietStarError("give either prompt or input_ids (text or token ids)")
        prompts = Prompts.of(input_ids if prompt is None else prompt, attention_mask)
        done = [Generation(trace.text, trace) for trace in Trace.collect(self.stream(prompts, **options))]
        return done[0] if prompts.single else done

    @checked
    def reason_then_answer(
        self,
        prompt: str,
        *,
        raw: bool = False,
        system: str | None = None,
        reason_prompt: str = REASON_PROMPT,
        answer_prompt: str = ANSWER_PROMPT,
        answer_tokens: Annotated[int, at_least(1)] = 16,
        settings: GenerationSettings | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Iterator[Event]:
        """Reason aloud behind `reason_prompt`, then a short answer forced by `answer_prompt`; two event streams.

        The `start` event of each says its phase, "reason" or "answer"; thoughts happen in both.
        """
        settings = _settings(settings, dict(options))
        prompts = Prompts.of(prompt)
        ids, texts = self._encoded(prompts, raw=raw, system=system, fitting=True)
        chat = self._in_template(prompts, raw)
        lead = reason_prompt if texts[0].endswith("\n") else "\n" + reason_prompt
        first = [ids[0] + self._encode(lead, special=False)]
        forced = self._encode(answer_prompt, special=False)
        thought = self.config.thought_length if settings.thought_length is None else settings.thought_length
        reserved = len(forced) + answer_tokens + 1
        self.check_fits(len(first[0]) + reserved, thought, "prompt with its forced answer")
        if self.context_limit is not None:  # leave room for the answer
            room = self.context_limit - len(first[0]) - reserved - thought - 2
            settings = replace(settings, max_new_tokens=max(1, min(settings.max_new_tokens, room)))
        reason = Trace.collect([])
        reasoning = stream_ids(
            self, first, settings, texts=[texts[0] + lead], asked=[prompt], chat=chat, phase="reason"
        )
        for event in reasoning:
            reason = reason or [Trace(event)]  # type: ignore[arg-type]
            reason[0].add(event)
            yield event
        end = reason[0].end
        cut = end is not None and end.reason == "stop_string"  # tokens behind a stop string were not part of the text
        said = first[0] + self._encode(reason[0].text, special=False) if cut else reason[0].ids
        second = said + forced
        text = texts[0] + lead + reason[0].text + answer_prompt
        short = replace(settings, max_new_tokens=answer_tokens, stop=(*settings.stop, "\n"))
        answer = stream_ids(self, [second], short, texts=[text], asked=[prompt], chat=chat, phase="answer")
        yield from self._remember(answer)

    # -- looking ------------------------------------------------------------------------------------------------------

    @checked
    def score(
        self,
        text: Annotated[Text, converted(lambda prompt: prompt)],
        *,
        attention_mask: Annotated[Tensor | None, converted(as_tensor)] = None,
        thought_length: int | None = None,
        samples: int = 1,
        thought_temperature: float | None = None,
        seed: int = 0,
        thoughts: Annotated[Tensor | None, converted(as_tensor)] = None,
        control: str | Control = "own",
        controls: Annotated[Sequence[str | Control], one_or_more()] = (),
        mixing_weight: float | None = None,
    ) -> Score:
        """Think at every position of a known text at once and compare the predictions of its true next tokens.

        Args:
            text: a text, a list of texts, or token ids (a tensor may be padded on either side). No chat template.
            thought_length: T, the model's own when None. samples: P thoughts a position.
            thought_temperature: None is greedy for one sample and 1 for several.
            seed: same seed, same thoughts.
            thoughts: token ids (batch, positions, samples, T) to think instead; N - 1 positions or N (last unused).
            control: what stands in the place of the own thoughts. controls: further ones, on the same thoughts, found
                in the result's `controls`; a single text is one control.
            mixing_weight: a fixed w in place of the mixing head's.

        Returns:
            Score; position i predicts token i + 1. Arrays keep the padding side of `attention_mask`.
        """
        prompts = Prompts.of(text, attention_mask)
        if prompts.items[0].turns is not None:
            raise WrongType("a conversation cannot be scored; give a text, or token ids")
        rows, _ = self._encoded(prompts, raw=True, fitting=True)
        if min(map(len, rows)) < 2:
            raise QuietStarError("a text needs at least two tokens to be scored: each position predicts the next one")
        shifts, width = prompts.padding([len(row) for row in rows])
        ids = torch.zeros(len(rows), width, dtype=torch.long, device=self.device)
        mask = torch.zeros(len(rows), width, dtype=torch.bool, device=self.device)
        for b, row in enumerate(rows):
            ids[b, : len(row)] = torch.tensor(row, device=self.device)
            mask[b, : len(row)] = True
        if thoughts is not None:
            thoughts = self._forced(thoughts, lowest=-1)  # -1 is padding, as in a score's own thoughts
            if (
                0 in thoughts.shape[2:3]
                or thoughts.shape[0] != len(rows)
                or thoughts.shape[1] not in (width - 1, width)
            ):
                raise QuietStarError(
                    f"thoughts must have shape (batch, positions, samples, T) = ({len(rows)}, {width - 1} or {width}, "
                    f"..., ...), got {tuple(thoughts.shape)}"
                )
            thoughts = torch.stack([t.roll(-shift, 0) for t, shift in zip(thoughts, shifts, strict=True)])
            if any(bool((t[: len(row) - 1] < 0).any()) for t, row in zip(thoughts, rows, strict=True)):
                raise QuietStarError("thoughts hold -1 (padding) at a real position")
            thoughts = thoughts.clamp_min(0)
        self._last_ids = rows[0]
        score = score_ids(
            self,
            ids,
            mask,
            thought_length=thought_length,
            samples=samples,
            thought_temperature=thought_temperature,
            seed=seed,
            thoughts=thoughts,
            control=control,
            controls=controls,
            mixing_weight=mixing_weight,
        )
        return score.shifted(shifts)

    @checked
    def resample(
        self,
        position: int,
        n: int | None = None,
        *,
        of: Annotated[str | Trace | Generation | Sequence[int] | None, converted(lambda of: of)] = None,
        **options: Unpack[ResampleOptions],
    ) -> Resampled:
        """Think n times at one position of a text and tell what each thought does to the next token.

        Args:
            position: the place, as in a trace or score; it predicts token position + 1.
            n: how many thoughts; 8, or as many as `thoughts` has.
            of: a text, token ids, trace or generation; the text last generated or scored when left out.
            options: thought_length, thought_temperature (1), seed, control, mixing_weight, thoughts (n, T), show.
        """
        known = ResampleOptions.__annotations__
        if unknown := sorted(set(options) - set(known)):
            raise WrongType(unknown_option(unknown[0], known, " of resample"))
        if isinstance(of, Generation):
            of = of.trace
        ids: list[int]
        if of is None:
            if getattr(self, "_last_ids", None) is None:
                raise QuietStarError("there is no text yet; generate or score one first, or pass of=")
            ids = self._last_ids
        elif isinstance(of, Trace):
            ids = of.ids
        else:
            ids = self._encoded(Prompts.of(of), raw=True, fitting=True)[0][0]
        settings: dict[str, Any] = dict(options)
        thoughts_PT = as_tensor(settings.pop("thoughts", None))
        if thoughts_PT is not None:
            if thoughts_PT.dim() != 2 or n not in (None, len(thoughts_PT)):
                raise QuietStarError(
                    f"thoughts must have shape (n, T) with n = {n or 'any'}, got {shown(options.get('thoughts'))}"
                )
            thoughts_PT, n = self._forced(thoughts_PT[None, None])[0, 0], len(thoughts_PT)
        return resample_ids(self, list(ids), position, 8 if n is None else n, thoughts=thoughts_PT, **settings)

    def _forced(self, thoughts: Tensor, lowest: int = 0) -> Tensor:
        """Check the form and ids of thoughts given from outside."""
        if thoughts.dim() != 4 or not is_whole(thoughts):
            raise QuietStarError(
                f"thoughts must be token ids of shape (batch, positions, samples, T), got {tuple(thoughts.shape)} "
                f"of {thoughts.dtype}"
            )
        if thoughts.numel() and not lowest <= int(thoughts.min()) <= int(thoughts.max()) < self.vocabulary:
            raise QuietStarError(f"thoughts hold token ids outside 0 to {self.vocabulary - 1}")
        return thoughts.long()

    # -- as a transformers model --------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        step: Callable[[QuietStar, Tensor, Tensor], Tensor] | None = None,
        **keywords: Any,
    ) -> CausalLMOutput:
        """What the base model gives for the same arguments, as any causal LM; `score` and `generate` think.

        `step` (model, ids, mask) -> loss runs in place of that: a training step reaches the model so through whatever
        wraps it (distributed data parallelism, mixed precision, sharding).
        """
        if step is not None:
            assert input_ids is not None
            mask = keywords.get("attention_mask")
            return CausalLMOutput(loss=step(self, input_ids, torch.ones_like(input_ids) if mask is None else mask))
        output: CausalLMOutput = self.base(input_ids=input_ids, **keywords)
        return output


def _settings(settings: GenerationSettings | None, options: dict[str, Any]) -> GenerationSettings:
    if settings is None:
        return GenerationSettings(**options)
    known = GenerationSettings.__dataclass_fields__  # type: ignore[attr-defined]
    if unknown := [name for name in options if name not in known]:
        raise WrongType(unknown_option(unknown[0], known))
    return replace(settings, **options)


AutoConfig.register("quietstar", QuietStarConfig)
AutoModelForCausalLM.register(QuietStarConfig, QuietStar)
