"""What a terminal shows of a run while it trains: progress, losses, held-out effects, the most influential thoughts."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from transformers import TrainerCallback

from quietstar.engine.memory import peak_bytes
from quietstar.engine.sampling import top
from quietstar.text import visible

if TYPE_CHECKING:
    from quietstar.training.trainer import ThoughtTrainer

_THOUGHTS = 3


class ProgressDisplay(TrainerCallback):  # type: ignore[misc]
    """A progress bar in a terminal, plain lines elsewhere; a table of held-out effects at each evaluation."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.progress: Progress | None = None
        self.trainer: ThoughtTrainer | None = None
        self.began, self.tokens = time.perf_counter(), 0.0
        self.last = time.perf_counter()
        self.effects = ""

    def say(self, text: str) -> None:
        """Print a line above the progress bar; where there is no terminal it stays one line."""
        self.console.print(Text(text), soft_wrap=not self.console.is_terminal)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.last = time.perf_counter()
        if not state.is_world_process_zero or not self.console.is_terminal:
            return
        self.progress = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.progress.start()
        self.task = self.progress.add_task("", total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.progress is not None:
            self.progress.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not state.is_world_process_zero or not logs or "base" not in logs:
            return
        now = time.perf_counter()
        speed = logs["tokens"] / max(1e-9, now - self.last)
        line = (
            f"loss {logs['loss']:.4f}  base {logs['base']:.4f}  mixed {logs['mixed']:.4f}  "
            f"reward {logs['reward']:+.4f}  w {logs['mixing_weight']:.3f}  {self.effects}"
            f"{speed:.0f} tokens/s  {peak_bytes(args.device) / 1e6:.0f} MB"
        )
        self.last = now
        if self.progress is not None:
            self.progress.update(self.task, description=line)
        else:
            left = (now - self.began) / max(1, state.global_step) * (state.max_steps - state.global_step)
            self.say(f"step {state.global_step}/{state.max_steps}  {line}  {left / 60:.0f} min left")

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        report = self.trainer.report if self.trainer is not None else None
        if report is None or not state.is_world_process_zero:
            return
        found = {name: effect.mean for name, effect in report.effects.items() if name in ("content", "compute")}
        self.effects = "".join(f"{name} {value:+.4f}  " for name, value in found.items())
        table = Table(
            title=f"held out, step {state.global_step}: {report.tokens} tokens, {len(report.documents)} documents",
            title_justify="left",
            box=None,
            pad_edge=False,
        )
        for name in ("", "mean", "95 %"):
            table.add_column(name, justify="left" if not name else "right")
        for name, interval in {**report.losses, **report.effects, "w": report.weight}.items():
            if interval.mean == interval.mean:  # without thoughts there is no loss of the thought alone
                spread = "" if interval.low is None else f"{interval.low:+.4f}..{interval.high:+.4f}"
                table.add_row(name, f"{interval.mean:+.4f}", spread)
        self.console.print(table)
        for line in self._thoughts():
            self.console.print(line)

    def _thoughts(self) -> list[Text]:
        """The most influential thoughts (by KL) in the first held-out document."""
        trainer = self.trainer
        if trainer is None or not trainer.heldout or not trainer.recipe.thinking.thoughts:
            return []
        model = trainer.accelerator.unwrap_model(trainer.model)
        ids = model.encode(trainer.heldout[0].text, raw=True)[0][0][: trainer.recipe.watch.tokens]
        score = model.score(ids)
        chosen = top(score.kl, _THOUGHTS)[1][0].tolist()
        lines = []
        for position in sorted(chosen):
            context = model._decode(ids[max(0, position - 7) : position + 1])
            line = Text("  …" + visible(context) + " ").append(
                "{" + visible(score.thought_text(0, position)) + "}", "cyan"
            )
            line.append(f"  w {score.mixing_weight[0, position]:.3f}  KL {score.kl[0, position]:.4f}", "dim")
            lines.append(line)
        return lines

    def stop(self) -> None:
        """Remove the progress bar; safe to call at any time."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.stop()
