"""The errors that users see, as one small tree: each holds every problem found, with its location and how to fix it.

RecipeError             the recipe or the command line is wrong (and the base of the others)
├── DataError           rows or data files
├── ModelError          weights, config or tokenizer
├── CheckpointError     a checkpoint, or a run that cannot be resumed
├── RecordError         a record, scores or other file of a run that cannot be read
├── OutputDirError      an output folder: not writable, with files of something else, no space left
├── LaunchError         how the run was started
├── OutOfMemoryError    memory that runs out even with the smallest micro-batch
├── TrainingError       a step that cannot continue: not finite, nothing learns
│   └── DivergedError   a run whose result is worth nothing, at its end (exit status 3)
├── PlanError           what plan cannot trace or does not know
│   └── OutOfTimeError  a trace that was not done within its time limit
└── HubError            the Hub: unreachable, refused, or what would be pushed
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

__all__ = [
    "CheckpointError",
    "DataError",
    "Diagnostic",
    "DivergedError",
    "HubError",
    "LaunchError",
    "MetricError",
    "ModelError",
    "OutOfMemoryError",
    "OutOfTimeError",
    "OutputDirError",
    "PlanError",
    "RecipeError",
    "RecordError",
    "TrainingError",
]


LONGEST = 2_000  # characters of one part of a message


@dataclass(frozen=True, kw_only=True)
class Diagnostic:
    """One error or warning: where it is, what is wrong, how to fix it."""

    location: str  # "recipes/a.yaml:14", "argument 'TrainingArguments.seed=x'", or a path
    message: str
    fix: str = ""

    def __str__(self) -> str:
        parts = (f"{self.location}: {self.message}", self.fix)
        return "; ".join(_shorten(part) for part in parts if part)


def _shorten(text: str) -> str:
    """A text of a file may have a megabyte."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"


def _errors_of_worker(text: str, name: str) -> tuple[Diagnostic, ...]:
    """torch's DataLoader makes the error of a worker again, from the text of its traceback alone."""
    lines = text.rpartition(f"hf_recipes.errors.{name}: ")[2].strip().splitlines()
    found = (line.partition(": ") for line in lines)
    return tuple(Diagnostic(location=location, message=message) for location, _, message in found)


class RecipeError(Exception):
    """Every error found, in the order in which a reader meets them. Shown without a traceback; exit status 2."""

    exit_status = 2

    def __init__(self, errors: Iterable[Diagnostic] | Diagnostic | str, beside: Iterable[str] = ()):
        if isinstance(errors, str):
            errors = _errors_of_worker(errors, type(self).__name__)
        self.errors: tuple[Diagnostic, ...] = (errors,) if isinstance(errors, Diagnostic) else tuple(errors)
        self.beside = tuple(beside)  # lines to show before the errors: translations, warnings
        super().__init__("\n".join(map(str, self.errors)))

    @classmethod
    def at(cls, location: str, message: str, fix: str = "") -> Self:
        """An error of one diagnostic: `raise DataError.at(location, message, fix)`."""
        return cls(Diagnostic(location=location, message=message, fix=fix))


class DataError(RecipeError):
    """Rows or data files that cannot be used."""


class ModelError(RecipeError):
    """Weights, a config or a tokenizer that cannot be loaded or do not go together."""


class MetricError(RecipeError):
    """A metric that is not installed, cannot be loaded, or does not fit the task."""


class CheckpointError(RecipeError):
    """A checkpoint that is not complete, or a run that cannot be resumed from it."""


class RecordError(RecipeError):
    """A record, scores or another file of a run that cannot be read."""


class OutputDirError(RecipeError):
    """An output folder that cannot be written, holds somebody else's files, or has no space left."""


class LaunchError(RecipeError):
    """A launch that does not do what it looks like: processes, devices, environment."""


class OutOfMemoryError(RecipeError):
    """Memory that runs out even with the smallest micro-batch: the run ends, its checkpoints are complete."""


class TrainingError(RecipeError):
    """A training step that cannot continue: a loss that is not finite, a part that learns nothing."""


class DivergedError(TrainingError):
    """A run that came to its end with weights that are not finite, or that skipped most of its steps; exit status 3."""

    exit_status = 3


class PlanError(RecipeError):
    """What `plan` cannot trace, or a GPU that it does not know."""


class OutOfTimeError(PlanError):
    """A trace that was not done within its time limit."""


class HubError(RecipeError):
    """A Hub that cannot be reached or refuses, or files that must not be pushed."""
