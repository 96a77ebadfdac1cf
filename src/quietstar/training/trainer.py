"""A trainer for thoughts on transformers' `Trainer`, which gives logging, mixed precision, accumulation, schedulers,
callbacks, and distributed runs through accelerate.

Added here: the loss (`step.training_loss`), checkpoints written atomically, evaluation by the same scoring as
everywhere else, and an error instead of a broken model.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from quietstar.api import QuietStar
from quietstar.documents.reading import Document
from quietstar.errors import QuietStarError
from quietstar.evals.losses import LossReport, check_scorable, evaluate
from quietstar.loading import checkpoints
from quietstar.training import data, folder
from quietstar.training.folder import last_checkpoint, step_of
from quietstar.training.recipe import Recipe, flat
from quietstar.training.step import NO_FP16, StepReport, training_loss

_HALVINGS = 10
_MOMENTS = 8  # bytes that AdamW keeps for a weight
# may differ when a run is resumed: what is reported, the number of steps, and where files are
_MAY_CHANGE = ("out", "watch.", "optimizer.steps", "thinking.chunk_mb", "data.train", "data.heldout")


# -- the model --------------------------------------------------------------------------------------------------------


def load_model(recipe: Recipe, device: str | None = None) -> QuietStar:
    """The model of a recipe, ready to learn: adapter added, the right weights trainable and in fp32.

    Raises:
        QuietStarError: the model could not be loaded or downloaded, or PEFT is missing.
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
                r=weights.rank,
                lora_alpha=weights.alpha,
                lora_dropout=weights.dropout,
                target_modules=targets,
                task_type="CAUSAL_LM",
            ),
        )
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
        self.tally = Tally()
        self.notes: list[str] = []  # what was left out of the data, as sentences
        self.stopping = False  # set it, and the run ends with a checkpoint after the step it is in
        self.stopped = False
        self.was_finished = False  # there was nothing left to train
        made = _arguments(recipe, bool(self.heldout), arguments)
        _check_precision(recipe, made.mixed_precision)
        super().__init__(
            model=model,
            args=made,
            train_dataset=spans,
            eval_dataset=spans if self.heldout else None,
            data_collator=data.collate,
            callbacks=[*callbacks, _Guard(self)],
        )
        self.remove_callback(transformers.PrinterCallback)
        self.loss_is_scaled_for_ga = False
        self.origin = flat(recipe) | {
            "the base model's weights": model.loaded_fingerprint,
            "the training texts": _hash_of_spans(spans),
            "the held-out texts": _hash("\0".join(document.text for document in self.heldout).encode()),
            "the number of processes": self.args.world_size,
        }

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
            texts.train,
            model.tokenizer,
            recipe.data.length,
            recipe.data.spans,
            max(8, recipe.thinking.objective.lookahead + 2),
            recipe.seed,
        )
        model.check_ids([spans.largest])
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
        """The objective of one batch, in whatever wrapper the model is; halves the chunks when memory runs out."""
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
                f"{self._last_good()}; {_TRY}"
            )
        return (loss, {"loss": loss}) if return_outputs else loss

    def _loss(self, model: QuietStar, ids: Tensor, mask: Tensor, spans: Tensor) -> Tensor:
        step = self.state.global_step
        with _low_adapters(model.base):
            loss, report = training_loss(
                model,
                ids,
                mask,
                self.recipe.thinking_at(step),
                seed=self.recipe.seed * 1_000_003 + step,
                names=spans,
                divide=self.divide,
                recompute=self.sharded,
            )
        self.tally.add(report)
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
                betas=(settings.beta1, settings.beta2),
                weight_decay=settings.weight_decay,
            )
        return self.optimizer

    # -- telling ------------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the steps since the last line saw."""
        if "loss" in logs:  # every process comes here
            logs |= self._summed().means()
            self.tally = Tally()
        super().log(logs, start_time)

    def _summed(self) -> Tally:
        """The tally over all processes; every process must call it."""
        sums = self.tally.sums
        if self.args.world_size > 1 and sums:
            together = self.accelerator.reduce(
                torch.tensor(list(sums.values()), dtype=torch.float64, device=self.args.device), "sum"
            )
            sums = dict(zip(sums, together.tolist(), strict=True))
        return Tally(sums)

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
                    model,
                    self.heldout,
                    controls=watch.controls if self.recipe.thinking.thoughts else (),
                    window=self.recipe.data.length,
                    max_tokens=watch.tokens,
                    seed=self.recipe.seed,
                )
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

    # -- from the first step to the last ------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **keywords: Any) -> TrainOutput:
        """Train to the last step, or resume from a checkpoint of the same run.

        Saving is tried before the first step. A finished run is left as it is.

        Raises:
            QuietStarError: the checkpoint is damaged or of another run (the message names each option that differs),
                saving fails, or the loss is not finite.
        """
        start = last_checkpoint(self.args.output_dir) if resume_from_checkpoint is True else resume_from_checkpoint
        begun = step_of(start) if start else 0
        if start:
            self._check_resumable(Path(start))
        if begun >= self.args.max_steps:
            self._say(f"already finished: {begun} of {self.args.max_steps} steps are trained")
            self._load_from_checkpoint(str(start))
            self.state.global_step, self.was_finished = begun, True
            return TrainOutput(begun, float("nan"), {})
        self._try_saving()
        if self.args.should_save:
            with self._writing("the recipe"):
                folder.write(Path(self.args.output_dir), folder.RECIPE, self.recipe.to_yaml())
                folder.clear(Path(self.args.output_dir))
        return super().train(resume_from_checkpoint=start or None, **keywords)

    def _check_resumable(self, checkpoint: Path) -> None:
        """Refuse a checkpoint that is damaged or of another run; report the options that may change and did."""
        wrong = folder.damage(checkpoint)
        if wrong is not None:
            raise QuietStarError(f"{checkpoint} is not a complete checkpoint of a training run: {wrong}")
        with _reading(str(checkpoint)):
            found = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).global_step
        if found != step_of(checkpoint):
            raise QuietStarError(f"the checkpoint {checkpoint} cannot be loaded: it was saved after step {found}")
        record = folder.record_of(checkpoint)
        before = record.origin
        changed = {key: (before.get(key), value) for key, value in self.origin.items() if before.get(key) != value}
        other = [key for key in changed if not key.startswith(_MAY_CHANGE)]
        steps = self.args.max_steps
        if steps < step_of(checkpoint):
            other.append("optimizer.steps")
        if other:
            raise QuietStarError(
                f"{checkpoint} is of another run: "
                + ", ".join(f"{key} was {_brief(before.get(key))}, now {_brief(self.origin[key])}" for key in other)
                + "; give --resume the same options, or choose another folder with --out (more optimizer.steps, other "
                "watch.* and thinking.chunk_mb are allowed)"
            )
        reported = {key: pair for key, pair in changed.items() if not key.startswith(("out", "data."))}
        for key, (old, new) in reported.items():
            self._say(f"{key} is {_brief(new)} from here on (it was {_brief(old)})")
        self.tally = Tally(record.tally) if self.args.process_index == 0 else Tally()
        self.divide = record.divide
        for callback in self.callback_handler.callbacks:
            if reported and hasattr(callback, "note"):
                callback.note({"changed": reported})

    def _try_saving(self) -> None:
        """Save the model once and delete it again, so that failures to save appear before the first step."""
        run = Path(self.args.output_dir)
        try:
            if self.args.should_save:
                trial = run / folder.ASIDE / "trial"
                folder.clear(run)
                with self._writing("a first trial of saving the model"):
                    trial.mkdir(parents=True)
                    changes = True if self.recipe.weights.train == "full" else None
                    self.accelerator.unwrap_model(self.model).save_pretrained(trial, save_base=changes)
                needed = sum(path.stat().st_size for path in trial.rglob("*") if path.is_file()) + _MOMENTS * sum(
                    weight.numel() for weight in self.model.parameters() if weight.requires_grad
                )
                folder.clear(run)
                free = shutil.disk_usage(run).free
                if free < needed:
                    raise QuietStarError(
                        f"no space left on the disk: a checkpoint takes about {needed / 1e6:.0f} MB and {run} has "
                        f"{free / 1e6:.0f} MB; free some, or choose another --out"
                    )
        finally:
            if self.args.should_save:
                folder.clear(run)
        self.accelerator.wait_for_everyone()

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint atomically: into `saving/`, renamed when it is complete."""
        run, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        self._check_weights()
        tally = self._summed()
        with self._aside(name) as aside:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                folder.seal(aside / name, folder.Record(self.state.global_step, self.origin, tally.sums, self.divide))
                folder.put(run, name)
                for old in [one for one in folder.checkpoints(run) if folder.damage(one, checksums=False) is None][
                    : -self.recipe.watch.keep
                ]:
                    folder.drop(run, old)

    def save_final(self) -> Path:
        """Write the finished model into the run's folder atomically; an older one stays until it is complete."""
        run, name = Path(self.args.output_dir), folder.MODEL
        self._check_weights()
        with self._aside(name) as aside:
            self.save_model(str(aside / name))
            if self.args.should_save:
                folder.seal(aside / name, folder.Record(self.state.global_step, self.origin))
                folder.put(run, name)
        return run / name

    def has_final(self) -> bool:
        """Whether the finished model is in the run's folder, complete and of this step."""
        path = Path(self.args.output_dir) / folder.MODEL
        return folder.damage(path) is None and folder.record_of(path).step == self.state.global_step

    @contextlib.contextmanager
    def _aside(self, name: str) -> Iterator[Path]:
        """The folder `saving/` to write into before files are renamed; always removed."""
        run = Path(self.args.output_dir)
        aside = run / folder.ASIDE
        self._output = str(aside)
        try:
            with self._writing(name):
                if self.args.should_save:
                    folder.clear(run)
                    aside.mkdir(parents=True)
                self.accelerator.wait_for_everyone()
                yield aside
        finally:
            self._output = None
            if self.args.should_save:
                folder.clear(run)

    def _writing(self, what: str) -> Any:
        return folder.writing(what, self.args.output_dir, lambda: f"{self._last_good()}; {_GO_ON}")

    def _check_weights(self) -> None:
        """Refuse to save weights that are not finite."""
        for name, weight in self.model.named_parameters():
            own = weight.to_local() if hasattr(weight, "to_local") else weight
            if weight.requires_grad and not bool(torch.isfinite(own).all()):
                raise QuietStarError(
                    f"the weights {name} became infinite or not a number at step {self.state.global_step}; "
                    f"{self._last_good()}; {_TRY}"
                )

    _output: str | None = None

    def _get_output_dir(self, trial: Any) -> str:
        return self._output or str(self.args.output_dir)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save in quietstar's layout, without the pickled arguments of the base class."""
        if self.args.should_save:
            self.accelerator.unwrap_model(self.model).save_pretrained(output_dir or self.args.output_dir)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save in quietstar's layout; sharded weights are gathered first, in the main process's memory."""
        if not self.sharded:
            super().save_model(output_dir, _internal_call)
            return
        state = self.accelerator.get_state_dict(self.model_wrapped)
        if self.args.should_save:
            gathered = load_model(self.recipe, "cpu")
            gathered.load_state_dict(state, strict=False)  # tied weights are in it once
            gathered.save_pretrained(output_dir or self.args.output_dir)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Fill the weights of this model from a checkpoint of the same."""
        with _reading(resume_from_checkpoint):
            if self.is_fsdp_enabled:
                super()._load_from_checkpoint(resume_from_checkpoint, model)
                return
            checkpoints.refill(self.accelerator.unwrap_model(self.model), resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _reading(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _init_training_state(self, *arguments: Any) -> Any:
        with _reading(str(self.args.output_dir)):
            return super()._init_training_state(*arguments)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _reading(checkpoint):
            super()._load_rng_state(checkpoint)

    def _last_good(self) -> str:
        last = last_checkpoint(self.args.output_dir)
        return f"the checkpoint {last} is complete" if last else "no checkpoint had been saved yet"


_TRY = "try a smaller optimizer.learning_rate, a smaller optimizer.clip or precision: fp32"
_GO_ON = "when that is fixed, continue with --resume"


class Tally:
    """Sums over the steps since the last line of the log, for the means in the next line."""

    _MEANS = ("total", "base", "mixed", "next", "gain", "policy", "kl", "reward", "mixing_weight")
    _SUMS = ("tokens", "rows")

    def __init__(self, sums: Mapping[str, float] | None = None) -> None:
        self.sums = {key: float((sums or {}).get(key, 0.0)) for key in ("count", *self._MEANS, *self._SUMS)}

    def add(self, report: StepReport) -> None:
        """Count one batch of one process."""
        self.sums["count"] += 1
        for key, value in asdict(report).items():
            self.sums[key] += value

    def means(self) -> dict[str, float]:
        """Means over batches (`loss` is the mean total), and sums of tokens and rows; {} where nothing was seen."""
        if not self.sums["count"]:
            return {}
        means = {key: self.sums[key] / self.sums["count"] for key in self._MEANS}
        return {"loss": means.pop("total"), **means, **{key: int(self.sums[key]) for key in self._SUMS}}


@contextlib.contextmanager
def _reading(checkpoint: str | None) -> Iterator[None]:
    """Turn whatever the libraries raise over a damaged file of a checkpoint into one line."""
    try:
        yield
    except Exception as error:
        if isinstance(error, QuietStarError):
            raise
        first = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise QuietStarError(f"the checkpoint {checkpoint} cannot be loaded: {first}") from error


def _hash(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:16]


def _hash_of_spans(spans: Any) -> str:
    found = hashlib.sha256()
    for number in range(len(spans)):
        ids = np.asarray(spans[number]["input_ids"], dtype=np.int64)
        found.update(len(ids).to_bytes(8, "little") + ids.tobytes())
    return found.hexdigest()[:16]


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _check_precision(recipe: Recipe, mixed: str) -> None:
    """Refuse arithmetic that the recipe does not name, fp16 above all."""
    if mixed == "fp16":
        raise QuietStarError(NO_FP16)
    wanted = "bf16" if recipe.precision == "bf16" else "no"
    if mixed != wanted:
        raise QuietStarError(
            f"the recipe says precision: {recipe.precision}, but the launcher or the arguments ask for mixed precision "
            f"{mixed!r}; set precision in the recipe and leave the other out"
        )


class _Guard(TrainerCallback):  # type: ignore[misc]
    """Raises before an update with gradients that are not finite; ends the run after a step when asked to."""

    def __init__(self, trainer: ThoughtTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        gradients = [p.grad for p in keywords["model"].parameters() if p.grad is not None]
        if not all(bool(torch.isfinite(g).all()) for g in gradients):
            raise QuietStarError(
                f"a gradient became infinite or not a number at step {state.global_step + 1}; "
                f"{self.trainer._last_good()}; {_TRY}"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._stop_if_asked(args, state, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._stop_if_asked(args, state, control)

    def _stop_if_asked(self, args: Any, state: Any, control: Any) -> None:
        trainer = self.trainer
        asked = trainer.stopping
        if args.world_size > 1:  # all processes stop after the same step, whichever got the signal
            count = trainer.accelerator.reduce(torch.tensor(float(asked), device=args.device), "sum")
            asked = bool(count.item())
        if asked and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = trainer.stopped = True


def _arguments(recipe: Recipe, evaluates: bool, more: dict[str, Any]) -> TrainingArguments:
    settings, watch = recipe.optimizer, recipe.watch
    every = watch.evaluate_every if evaluates else 0
    return TrainingArguments(
        **dict(
            output_dir=recipe.out,
            max_steps=settings.steps,
            per_device_train_batch_size=settings.batch,
            gradient_accumulation_steps=settings.accumulate,
            learning_rate=settings.learning_rate,
            warmup_steps=settings.warmup,
            lr_scheduler_type=settings.schedule,
            weight_decay=settings.weight_decay,
            adam_beta1=settings.beta1,
            adam_beta2=settings.beta2,
            max_grad_norm=settings.clip,
            bf16=recipe.precision == "bf16",
            logging_steps=watch.log_every,
            logging_nan_inf_filter=False,
            save_strategy="steps",
            save_steps=watch.save_every or settings.steps,
            save_total_limit=None,
            eval_strategy="steps" if every else "no",
            eval_steps=every or None,
            seed=recipe.seed,
            data_seed=recipe.seed,
            report_to=list(watch.report_to),
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            ddp_find_unused_parameters=False,
            use_cpu=not torch.cuda.is_available(),
        )
        | more,
    )


def _low_adapters(base: Any) -> Any:
    """Adapters in the precision of the pass they are in, where there is one; their weights stay in fp32."""
    if not hasattr(base, "peft_config") or not torch.is_autocast_enabled(next(base.parameters()).device.type):
        return contextlib.nullcontext()
    from peft.helpers import disable_input_dtype_casting

    return disable_input_dtype_casting(base)


def _low(recipe: Recipe, model: QuietStar) -> torch.autocast:
    return torch.autocast(model.device.type, torch.bfloat16, enabled=recipe.precision == "bf16")


def _is_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
