"""What a run prints while it trains: a line of aligned columns for each log, one for each evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from hf_recipes.common.text import fill

# Column of a logged value -> (title with its unit, width). Others of upstream's are in the record only.
COLUMNS = {
    "loss": ("loss", 10),
    "grad_norm": ("grad norm", 11),
    "learning_rate": ("learning rate", 15),
    "train_tokens_per_second": ("tokens/s", 10),
    "mean_token_accuracy": ("token acc.", 12),
}
STEP, EPOCH = 8, 8  # widths
HEADER_EVERY = 20  # lines: it is then still on a screen of 24
SPEED = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "jit_compilation_time")
COUNTERS = ("num_tokens", "num_input_tokens_seen")


class Columns:
    """Logs to lines. The columns are those of the first log of a training step."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._lines_since_header = 0

    def lines(self, logs: Mapping[str, Any], step: int) -> list[str]:
        """None of the summary that upstream logs at the end: the end of the run says it."""
        if "loss" in logs:
            return self._training(logs, step)
        measured = {key: value for key, value in logs.items() if key.startswith("eval_")}
        return self._evaluation(measured, step, logs.get("epoch")) if measured else []

    def _training(self, logs: Mapping[str, Any], step: int) -> list[str]:
        names = tuple(name for name in COLUMNS if name in logs)
        header = []
        if set(names) - set(self._names) or self._lines_since_header >= HEADER_EVERY:
            self._names, self._lines_since_header = names, 0
            titles = "".join(f"{COLUMNS[name][0]:>{COLUMNS[name][1]}}" for name in names)
            header = [f"{'step':>{STEP}}{'epoch':>{EPOCH}}{titles}"]
        cells = "".join(f"{format_cell(logs.get(name)):>{COLUMNS[name][1]}}" for name in self._names)
        self._lines_since_header += 1
        return [*header, f"{_place(step, logs.get('epoch'))}{cells}"]

    def _evaluation(self, measured: Mapping[str, Any], step: int, epoch: Any) -> list[str]:
        named = {key.removeprefix("eval_"): value for key, value in measured.items()}
        shown = [
            f"{name} {format_cell(value):<8}"
            for name, value in named.items()
            if isinstance(value, int | float) and name not in (*SPEED, *COUNTERS)
        ]
        found = fill(f"{_place(step, epoch)}   eval  ", "  ".join(shown))
        self._lines_since_header += len(found)
        return found


def _place(step: int, epoch: Any) -> str:
    return f"{step:>{STEP},}{'' if epoch is None else f'{epoch:.2f}':>{EPOCH}}"


def format_cell(value: Any) -> str:
    """ "0.6948", "7.5e-05", "1,063"; a dash for what was not logged."""
    if not isinstance(value, int | float):
        return "-"
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


class PrintColumns(TrainerCallback):
    """Instead of upstream's PrinterCallback, where there is no bar."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._columns = say, Columns()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero:
            for line in self._columns.lines(logs or {}, state.global_step):
                self._say(line)


class ColumnsAboveBar(ProgressCallback):
    """Upstream's bar, with columns above it instead of dicts."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._printed = PrintColumns(say)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self._printed.on_log(args, state, control, logs=logs)


def print_columns(trainer: Any, say: Callable[[str], None]) -> None:
    """Puts the columns in the place of what upstream prints; a notebook's table stays."""
    if trainer.pop_callback(PrinterCallback):
        trainer.add_callback(PrintColumns(say))
    elif trainer.pop_callback(ProgressCallback):
        trainer.add_callback(ColumnsAboveBar(say))
