"""A trainer for thoughts on transformers' `Trainer`, so that what it offers (logging, mixed precision, accumulation,
schedulers, callbacks, distributed runs through accelerate) is what people know.

What is ours: the loss (`step.training_loss`), checkpoints that a kill at any moment cannot break, evaluation by the
same scoring as everywhere else, and stopping with a sentence instead of a broken model.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainingArguments

from quietstar import checkpoints
from quietstar.api import QuietStar
from quietstar.documents import Document
from quietstar.errors import QuietStarError
from quietstar.evals.losses import LossReport, check_scorable, evaluate
from quietstar.training import data
from quietstar.training.recipe import Recipe
from quietstar.training.step import StepReport, training_loss

ORIGIN = "training.json"  # in each checkpoint: what was trained, so that another model's is refused
RECIPE = "recipe.yaml"
_HALVINGS = 10


# -- the model --------------------------------------------------------------------------------------------------------


def load_model(recipe: Recipe, device: str | None = None) -> QuietStar:
    """The model of a recipe, ready to learn: adapter added, the right weights trainable and in fp32.

    Raises:
        QuietStarError: the model cannot be had, or PEFT is missing.
    """
    weights = recipe.weights
    torch.manual_seed(recipe.seed)
    low = torch.bfloat16 if recipe.precision == "bf16" and weights.train != "full" else torch.float32
    model = QuietStar.from_pretrained(recipe.model, dtype=low, device=device)
    torch.manual_seed(recipe.seed)  # an untrained head's first weights are the recipe's own
    if model.head.untrained:
        fresh = type(model.head)(model.config.hidden_size).to(model.device)
        model.head.load_state_dict(fresh.state_dict())
    inner, adapted = model.decoder_lm, model.base is not model.decoder_lm
    inner.requires_grad_(weights.train == "full")
    if weights.train == "full" and adapted:
        raise QuietStarError(f"{recipe.model} has an adapter; train it on (weights.train: lora) or merge it first")
    if weights.train == "lora":
        if not adapted:
            model.base = _adapter(inner, recipe)
            for config in model.base.peft_config.values():  # the base by its name, not by a folder of this machine
                config.base_model_name_or_path = model.config.base_name
        for name, weight in model.base.named_parameters():
            weight.requires_grad_("lora_" in name)
    model.config.thought_length = recipe.thinking_at(recipe.optimizer.steps).thought_length
    model.config.weight_floor = weights.weight_floor
    return model


def _adapter(inner: Any, recipe: Recipe) -> Any:
    from peft import LoraConfig, get_peft_model

    weights = recipe.weights
    targets: Any = weights.targets[0] if weights.targets == ("all-linear",) else list(weights.targets)
    try:
        return get_peft_model(
            inner,
            LoraConfig(
                r=weights.rank, lora_alpha=weights.alpha, lora_dropout=weights.dropout, target_modules=targets,
                task_type="CAUSAL_LM",
            ),
        )  # fmt: skip
    except ValueError as error:
        raise QuietStarError(f"weights.targets {', '.join(weights.targets)}: {str(error).splitlines()[0]}") from error


# -- the trainer ------------------------------------------------------------------------------------------------------


class ThoughtTrainer(transformers.Trainer):
    """Trains a `QuietStar` by a recipe.

    Args:
        model: from `load_model`. recipe: everything else.
        spans: what is trained on. heldout: documents for evaluation.
        callbacks: of transformers, besides the usual ones.

    Example:
        >>> recipe = recipes.load("smoke")                                   # doctest: +SKIP
        >>> ThoughtTrainer.from_recipe(recipe).train()                       # doctest: +SKIP
    """

    optimizer: torch.optim.Optimizer | None
    control: TrainerControl

    def __init__(
        self,
        model: QuietStar,
        recipe: Recipe,
        spans: data.Spans,
        heldout: Sequence[Document] = (),
        callbacks: Sequence[TrainerCallback] = (),
        **arguments: Any,
    ) -> None:
        self.recipe, self.heldout = recipe, list(heldout)
        self.divide = 1.0  # the memory of a chunk is divided by this after running out of memory
        self.report: LossReport | None = None
        self._seen: list[StepReport] = []
        self.notes: list[str] = []  # what was left out of the data, in words
        self._resumed_from: str | None = None
        super().__init__(
            model=model, args=_arguments(recipe, bool(self.heldout), arguments), train_dataset=spans,
            eval_dataset=spans if self.heldout else None, data_collator=data.collate,
            callbacks=[*callbacks, _Watchman(self)],
        )  # fmt: skip
        self.remove_callback(transformers.PrinterCallback)
        self.loss_is_scaled_for_ga = False
        self.origin = {
            "base": model.config.base_name, "base_hash": model.loaded_fingerprint, "train": recipe.weights.train,
            "rank": recipe.weights.rank if recipe.weights.train == "lora" else None,
        }  # fmt: skip

    @classmethod
    def from_recipe(
        cls, recipe: Recipe, *, device: str | None = None, callbacks: Sequence[TrainerCallback] = (), **arguments: Any
    ) -> ThoughtTrainer:
        """Read the data, load the model, and be ready to `train`.

        Args:
            arguments: of transformers' `TrainingArguments`, over what the recipe says.

        Raises:
            QuietStarError: wrong data, model or recipe.
        """
        texts = data.read(recipe.data, recipe.seed)
        model = load_model(recipe, device)
        spans = data.Spans(
            texts.train, model.tokenizer, recipe.data.length, recipe.data.spans,
            max(8, recipe.thinking.objective.lookahead + 2), recipe.seed,
        )  # fmt: skip
        longest = max([recipe.thinking.thought_length, *recipe.thought_length_schedule.values()])
        model.check_fits(recipe.data.length + recipe.thinking.objective.lookahead, longest, "span")
        heldout = [Document(f"held-out {n}", text) for n, text in enumerate(texts.heldout[: recipe.watch.documents])]
        if heldout and recipe.watch.evaluate_every:  # now, not at the first evaluation
            check_scorable(model, heldout, window=recipe.data.length, max_tokens=recipe.watch.tokens)
        trainer = cls(model, recipe, spans, heldout, callbacks, **arguments)
        trainer.notes = [*texts.notes, *spans.notes]
        return trainer

    # -- the loss -----------------------------------------------------------------------------------------------------

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> Any:
        """The objective of one batch, in whatever wrapper the model is; halves its chunks when memory runs out."""
        spans = inputs.pop("span")
        for _attempt in range(_HALVINGS):
            try:
                loss = model(**inputs, step=lambda inner, ids, mask: self._loss(inner, ids, mask, spans)).loss
                break
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _is_memory(error):
                    raise
                self.divide *= 2
                self._say(f"out of memory: chunks of rows are 1/{self.divide:g} of their size from here on")
        else:
            raise QuietStarError(
                "out of memory even with the smallest chunks; set data.length or optimizer.batch smaller"
            )
        if not torch.isfinite(loss):
            raise QuietStarError(
                f"the loss became {loss.item()} at step {self.state.global_step + 1} (spans {spans.tolist()}); "
                f"{self._last_good()}; try a smaller optimizer.learning_rate"
            )
        return (loss, {"loss": loss}) if return_outputs else loss

    def _loss(self, model: QuietStar, ids: Tensor, mask: Tensor, spans: Tensor) -> Tensor:
        step = self.state.global_step
        with _low_adapters(model.base):
            loss, report = training_loss(
                model, ids, mask, self.recipe.thinking_at(step), seed=self.recipe.seed * 1_000_003 + step, names=spans,
                divide=self.divide, recompute=self.sharded,
            )  # fmt: skip
        self._seen.append(report)
        return loss

    @property
    def sharded(self) -> bool:
        """True where each process holds a part of every weight (FSDP2)."""
        return any(hasattr(p, "device_mesh") for p in self.model.parameters())

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW with a learning rate of its own for markers and mixing head."""
        if self.optimizer is None:
            settings = self.recipe.optimizer
            groups: dict[bool, list[Any]] = {True: [], False: []}
            for name, weight in (self.model if model is None else model).named_parameters():
                if weight.requires_grad:
                    groups["markers." in name or name.startswith(("head.", "module.head."))].append(weight)
            rates = {True: settings.head_learning_rate or settings.learning_rate, False: settings.learning_rate}
            self.optimizer = torch.optim.AdamW(
                [{"params": weights, "lr": rates[ours]} for ours, weights in groups.items() if weights],
                betas=(settings.beta1, settings.beta2), weight_decay=settings.weight_decay,
            )  # fmt: skip
        return self.optimizer

    # -- telling ------------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the steps since the last line saw."""
        if "loss" in logs and self._seen:
            seen = [asdict(report) for report in self._seen]
            for key in ("base", "mixed", "next", "gain", "policy", "kl", "reward", "mixing_weight"):
                logs[key] = sum(one[key] for one in seen) / len(seen)
            for key in ("tokens", "rows"):
                logs[key] = sum(one[key] for one in seen) * self.args.world_size
            self._seen = []
        super().log(logs, start_time)

    def _say(self, text: str) -> None:
        for callback in self.callback_handler.callbacks:
            if hasattr(callback, "say"):
                callback.say(text)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Score the held-out documents as everywhere else: losses without, with and from thoughts, and controls."""
        if self.sharded:
            self._say("sharded weights are not evaluated while training; score the saved model")
            return {}
        watch, model = self.recipe.watch, self.accelerator.unwrap_model(self.model)
        training, metrics = model.training, {}
        model.eval()
        if self.args.process_index == 0:
            with self.compute_loss_context_manager(), _low(self.recipe, model):
                self.report = evaluate(
                    model, self.heldout, controls=watch.controls if self.recipe.thinking.thoughts else (),
                    window=self.recipe.data.length, max_tokens=watch.tokens, seed=self.recipe.seed,
                )  # fmt: skip
            for group in (
                self.report.losses,
                self.report.effects,
                {"flipped": self.report.flipped, "w": self.report.weight},
            ):
                for name, found in group.items():
                    metrics[f"eval_{name.replace(' ', '_')}"] = found.mean
            self.log(dict(metrics))
        model.train(training)
        self.accelerator.wait_for_everyone()
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint aside and put it in its place when it is whole."""
        run, aside = Path(self.args.output_dir), Path(self.args.output_dir) / "saving"
        name = f"checkpoint-{self.state.global_step}"
        self._output = str(aside)
        try:
            if self.args.should_save:
                shutil.rmtree(aside, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                (aside / name / ORIGIN).write_text(json.dumps(self.origin, indent=1))
                shutil.rmtree(run / name, ignore_errors=True)
                (aside / name).replace(run / name)
                for old in sorted(_whole(run), key=_number)[: -self.recipe.watch.keep]:
                    shutil.rmtree(old)
        except (OSError, RuntimeError, SafetensorError) as error:
            if isinstance(error, QuietStarError) or _is_full(error):
                raise QuietStarError(
                    f"no space left on the disk while saving {name}; {self._last_good()}; free some space and go on "
                    "with --resume"
                ) from error
            raise
        finally:
            self._output = None
            if self.args.should_save:
                shutil.rmtree(aside, ignore_errors=True)

    _output: str | None = None

    def _get_output_dir(self, trial: Any) -> str:
        return self._output or str(self.args.output_dir)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Our layout; nothing pickled beside it."""
        if self.args.should_save:
            self.accelerator.unwrap_model(self.model).save_pretrained(output_dir or self.args.output_dir)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save in our layout; sharded weights are put together first, in the main process's memory."""
        if not self.sharded:
            super().save_model(output_dir, _internal_call)
            return
        state = self.accelerator.get_state_dict(self.model_wrapped)
        if self.args.should_save:
            whole = load_model(self.recipe, "cpu")
            whole.load_state_dict(state, strict=False)  # tied weights come once
            whole.save_pretrained(output_dir or self.args.output_dir)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Fill the weights of this model from a checkpoint of the same."""
        check_origin(Path(resume_from_checkpoint), self.origin)
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        checkpoints.refill(self.accelerator.unwrap_model(self.model), resume_from_checkpoint)

    def _last_good(self) -> str:
        last = last_checkpoint(self.args.output_dir)
        return f"the checkpoint {last} is whole" if last else "no checkpoint had been saved yet"


def check_origin(checkpoint: Path, origin: dict[str, Any]) -> None:
    """Refuse a checkpoint that was made from another model, by name."""
    try:
        found = json.loads((checkpoint / ORIGIN).read_text())
    except (OSError, ValueError) as error:
        raise QuietStarError(f"{checkpoint} is not a checkpoint of a quietstar training run") from error
    if found != origin:
        different = ", ".join(f"{key} {found.get(key)!r}, here {value!r}" for key, value in origin.items()
                              if found.get(key) != value)  # fmt: skip
        raise QuietStarError(f"{checkpoint} is of another training run: {different}")


def last_checkpoint(run: str | Path) -> str | None:
    """The newest whole checkpoint of a run's folder."""
    found = sorted(_whole(Path(run)), key=_number)
    return str(found[-1]) if found else None


def _whole(run: Path) -> list[Path]:
    return [path for path in run.glob("checkpoint-*") if (path / ORIGIN).is_file() and _number(path) >= 0]


def _number(path: Path) -> int:
    tail = path.name.rpartition("-")[2]
    return int(tail) if tail.isdigit() else -1


class _Watchman(TrainerCallback):  # type: ignore[misc]
    """Stops before an update that would break the weights."""

    def __init__(self, trainer: ThoughtTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        gradients = [p.grad for p in keywords["model"].parameters() if p.grad is not None]
        if not all(bool(torch.isfinite(g).all()) for g in gradients):
            raise QuietStarError(
                f"a gradient became infinite or not a number at step {state.global_step + 1}; "
                f"{self.trainer._last_good()}; try a smaller optimizer.learning_rate"
            )


def _arguments(recipe: Recipe, evaluates: bool, more: dict[str, Any]) -> TrainingArguments:
    settings, watch = recipe.optimizer, recipe.watch
    every = watch.evaluate_every if evaluates else 0
    return TrainingArguments(
        **dict(
            output_dir=recipe.out, max_steps=settings.steps, per_device_train_batch_size=settings.batch,
            gradient_accumulation_steps=settings.accumulate, learning_rate=settings.learning_rate,
            warmup_steps=settings.warmup, lr_scheduler_type=settings.schedule, weight_decay=settings.weight_decay,
            adam_beta1=settings.beta1, adam_beta2=settings.beta2, max_grad_norm=settings.clip,
            bf16=recipe.precision == "bf16", logging_steps=watch.log_every, logging_nan_inf_filter=False,
            save_strategy="steps" if watch.save_every else "no", save_steps=watch.save_every or 1,
            save_total_limit=None, eval_strategy="steps" if every else "no", eval_steps=every or None,
            seed=recipe.seed, data_seed=recipe.seed, report_to=list(watch.report_to), remove_unused_columns=False,
            dataloader_pin_memory=False, disable_tqdm=True, ddp_find_unused_parameters=False,
            use_cpu=not torch.cuda.is_available(),
        ) | more,
    )  # fmt: skip


def _low_adapters(base: Any) -> Any:
    """Adapters in the precision of the pass they are in, where there is one; their weights stay in fp32."""
    import contextlib

    if not hasattr(base, "peft_config") or not torch.is_autocast_enabled(next(base.parameters()).device.type):
        return contextlib.nullcontext()
    from peft.helpers import disable_input_dtype_casting

    return disable_input_dtype_casting(base)


def _low(recipe: Recipe, model: QuietStar) -> torch.autocast:
    return torch.autocast(model.device.type, torch.bfloat16, enabled=recipe.precision == "bf16")


def _is_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def _is_full(error: BaseException) -> bool:
    text = str(error)
    return getattr(error, "errno", None) == errno.ENOSPC or "No space" in text or "PytorchStreamWriter failed" in text
