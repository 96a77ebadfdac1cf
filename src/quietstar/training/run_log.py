"""The log of a training run: `log.jsonl` in its folder has one JSON object a line.

Training lines have `loss`, `base`, `mixed`, `reward`, ...; evaluation lines have `eval_base`, `eval_own`,
`eval_content`, ...; each has its `step`. After a resume the log continues where the checkpoint was.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from quietstar.errors import QuietStarError
from quietstar.jsontext import to_json
from quietstar.training import folder as folders

LOG = folders.LOG


class Log(TrainerCallback):  # type: ignore[misc]
    """Writes `log.jsonl`."""

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / LOG
        self.notes: list[dict[str, Any]] = []

    def note(self, line: dict[str, Any]) -> None:
        """Add a line at the step where the run continues."""
        self.notes.append(line)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        lines = [line for line in read(self.path.parent) if 0 < line["step"] <= state.global_step]
        lines += [{"step": state.global_step, **line} for line in self.notes]
        self.notes = []
        with self._writing():
            folders.write(self.path.parent, LOG, "".join(_line(line) for line in lines))
            folders.clear(self.path.parent)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if state.is_world_process_zero and logs:
            with self._writing(), self.path.open("a", encoding="utf-8") as file:
                file.write(_line({"step": state.global_step, **logs}))

    def _writing(self) -> Any:
        def advice() -> str:
            last = folders.last_checkpoint(self.path.parent)
            return f"{last} is complete; continue from it with --resume" if last else "no checkpoint had been saved yet"

        return folders.writing("the log", self.path.parent, advice)


def _line(values: dict[str, Any]) -> str:
    return to_json(values, ascii_only=True) + "\n"


def read(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's log, [] where there is none; a line that a kill cut off is left out.

    Raises:
        QuietStarError: the log cannot be read.
    """
    path = Path(folder) / LOG
    try:
        if not path.is_file():
            return []
        text = path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError) as error:
        raise QuietStarError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    found = []
    for line in text.splitlines():
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict) and type(values.get("step")) is int:
            found.append(values)
    return found
