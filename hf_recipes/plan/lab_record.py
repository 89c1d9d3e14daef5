"""The lab's records: a line of JSON for each cell, and one for the GPU itself. One reader, one writer.

Imports neither torch nor transformers. What has no value is not written; keys of older files are read (`RENAMED`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from hf_recipes.errors import RecordError
from hf_recipes.plan.trace.result import Work

PREDICTED = ".predicted"  # of the file of predictions that are not measured yet
FINISHED, OUT_OF_MEMORY = "finished", "out of memory"  # outcomes of a measurement; others are the error's message
RENAMED = {"card_bytes": "gpu_bytes"}  # until 2026-11
CALIBRATION = ("gpu", "card")  # kinds of the line about the GPU itself: today's, and until 2026-11


class _Line:
    """A dataclass that is a JSON object: fields that are None are left out, keys that it does not have are ignored."""

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises TypeError for a required key that is missing."""
        known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        named = {RENAMED.get(name, name): value for name, value in values.items()}
        return cls(**{name: value for name, value in named.items() if name in known})


@dataclass(frozen=True, kw_only=True)
class Prediction(_Line):
    """What plan predicted, bytes as torch counts them."""

    verdict: str
    asked_bytes: int | None = None  # what tensors take
    allocated_bytes: int  # in full blocks
    reserved_bytes: int
    phase: str  # of the peak
    phases: Mapping[str, int]
    parts: Mapping[str, int]
    work: Mapping[str, Work]  # for the roofline
    attention: Mapping[str, int]
    estimate: list[str]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        found = super().from_dict(values)
        return replace(found, work={name: Work(**one) for name, one in values["work"].items()})


@dataclass(frozen=True, kw_only=True)
class Measurement(_Line):
    """What a process of its own took. On a CPU, and where it ended early, some are None."""

    outcome: str  # FINISHED, OUT_OF_MEMORY, or how else it ended
    error: str | None = None
    phase: str | None = None  # the last one that began
    phases: Mapping[str, int] | None = None  # phase -> its own allocated peak
    micro_batches: int | None = None  # of an optimizer step
    step_seconds: float | None = None
    loaded_bytes: int | None = None  # before the first step: the weights
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    context_bytes: int | None = None  # of CUDA; not known where cells share the GPU
    device_bytes: int | None = None  # reserved and context
    gpu_bytes: int | None = None
    retries: int | None = None  # of the allocator
    splits: list[Any] | None = None  # steps that were retried with a smaller micro-batch: as good as out of memory
    seconds: Any = None  # of the phases of the measurement itself

    @property
    def finished(self) -> bool:
        return self.outcome == FINISHED


@dataclass(frozen=True, kw_only=True)
class LabRecord(_Line):
    """A cell of the lab, or a recipe of `plan --measure`: its prediction beside its measurement, or why it has none."""

    kind: str  # "lab" or "measure"
    cell: str | None = None
    recipe: str  # path
    variant: str | None = None
    gpu: str
    gib: int | None = None  # the size that a fraction of the GPU stood for
    capability: list[int] | None = None
    refused: str | None = None  # by plan or by the run
    passed_over: str | None = None  # the prediction decides it
    date: str | None = None  # of the prediction, as are the next two
    commit: str | None = None
    versions: Mapping[str, str | None] | None = None
    length: int | None = None
    micro_batch: int | None = None
    accumulation: int | None = None
    sections: Mapping[str, Any] | None = None  # the recipe itself
    needed_bytes: int | None = None
    predicted: Prediction | None = None
    alone: bool | None = None  # nothing else ran on the GPU: its time counts
    expandable: bool | None = None  # with expandable segments, as plan advises where it is tight
    measured: Measurement | None = None

    def error_of(self, name: str) -> float | None:
        """predicted / measured - 1 of "allocated_bytes" or "reserved_bytes"; None where it did not finish."""
        if self.predicted is None or self.measured is None or not self.measured.finished:
            return None
        measured = getattr(self.measured, name)
        return getattr(self.predicted, name) / measured - 1 if measured else None

    def to_dict(self) -> dict[str, Any]:
        found = super().to_dict()
        if self.kind == "lab":
            found["gib"] = self.gib
        for name in ("predicted", "measured"):
            part = getattr(self, name)
            if part is not None:
                found[name] = part.to_dict()
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        found = super().from_dict(values)
        predicted, measured = values.get("predicted"), values.get("measured")
        return replace(
            found,
            predicted=None if predicted is None else Prediction.from_dict(predicted),
            measured=None if measured is None else Measurement.from_dict(measured),
        )


@dataclass(frozen=True, kw_only=True)
class Calibration(_Line):
    """The GPU itself: what its driver reports and what it achieves."""

    kind: str = CALIBRATION[0]
    date: str
    versions: Mapping[str, str | None]
    name: str
    capability: list[int]
    total_bytes: int
    free_bytes: int
    context_bytes: int
    cublas_bytes: int
    flops: Mapping[str, float]  # dtype -> FLOP/s of a large product
    bandwidth: float  # bytes/s
    launch_seconds: float
    attention_backward: list[Mapping[str, Any]]


def read_lines(path: Path) -> list[LabRecord | Calibration]:
    """The complete lines of a file, [] where there is none. Raises RecordError for a line that is no record."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found: list[LabRecord | Calibration] = []
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            continue  # a killed call left it
        try:
            values = json.loads(line)
            kind = Calibration if values["kind"] in CALIBRATION else LabRecord
            found.append(kind.from_dict({**values, "kind": CALIBRATION[0]} if kind is Calibration else values))
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise RecordError.at(f"{path}:{number}", f"is not a record of the lab ({problem!r})") from problem
    return found


def read_cells(path: Path) -> list[LabRecord]:
    """The cells of a file."""
    return [one for one in read_lines(path) if isinstance(one, LabRecord) and one.cell is not None]


def read_calibration(path: Path) -> Calibration | None:
    """The line about the GPU itself, if the file has one."""
    return next((one for one in read_lines(path) if isinstance(one, Calibration)), None)


def read_records(folder: Path) -> list[LabRecord]:
    """The measured cells of a folder, of every GPU; predictions that are not measured yet are left out."""
    paths = [path for path in sorted(folder.glob("*.jsonl")) if not path.stem.endswith(PREDICTED)]
    return [record for path in paths for record in read_cells(path)]


def append_line(path: Path, record: LabRecord | Calibration) -> None:
    """Writes one line at the end of a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record.to_dict()) + "\n")
