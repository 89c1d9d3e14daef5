"""record.json as a file: written whole, and read whatever version of this package wrote it.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_recipes.common.files import describe_special_file, put
from hf_recipes.common.text import first_line, format_bytes, format_value
from hf_recipes.common.typed_json import TypedJsonError, from_json, to_json
from hf_recipes.errors import RecordError
from hf_recipes.record import NAME, SCHEMA, EndStep, ForecastFacts, RunRecord, Session, Status, describe_machine

LARGEST_BYTES = 2**28  # of a record: a million lines of a trainer's log
LARGE_BYTES = 2**24  # from here on a file is read only if it begins as a record does
BEGINNING = re.compile(r'\s*\{\s*"schema": \d')


class NewerRecordError(RecordError):
    """A record of a later version of this package: it is not read, and not replaced by a resumed run."""


def read_record(path: Path, *, strict: bool = False) -> RunRecord:
    """A record of this or an earlier version. `strict`: a key that the types lack is an error. Raises RecordError."""
    odd = describe_special_file(path)
    if odd:
        raise RecordError.at(str(path), odd, "restore the file")
    try:
        size = path.stat().st_size
        if size > LARGEST_BYTES:
            what = f"has {format_bytes(size)}; no record of a run has more than {format_bytes(LARGEST_BYTES)}"
            raise RecordError.at(str(path), what, "restore the file")
        if size > LARGE_BYTES and not BEGINNING.match(_read_beginning(path)):
            raise RecordError.at(str(path), "is no record of a run", "restore the file, or give a run's folder")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError.at(str(path), "no such record", "a run writes record.json into its output_dir") from None
    except IsADirectoryError:
        raise RecordError.at(str(path), "is a folder without a record.json") from None
    except RecursionError:
        raise RecordError.at(str(path), "is no record of a run (nested too deeply)", "restore the file") from None
    except (OSError, ValueError) as problem:
        raise RecordError.at(str(path), f"is no complete record ({first_line(problem)})") from None
    return parse_record(value, str(path), strict=strict)


def _read_beginning(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(100)


def parse_record(value: Any, location: str, *, strict: bool = False) -> RunRecord:
    """The same of JSON that is read already; `location` stands before a message."""
    schema = value.get("schema") if isinstance(value, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1 or "task" not in value:
        raise RecordError.at(location, "is no record of a run", "restore the file, or give a run's folder")
    if schema > SCHEMA:
        what = f"a record of version {format_value(schema)}; this hf_recipes reads up to {SCHEMA}"
        raise NewerRecordError.at(location, what, "upgrade hf_recipes")
    unknown: list[str] | None = [] if strict else None
    try:
        record = from_json(RunRecord, _upgrade(value), unknown=unknown)
    except TypedJsonError as problem:
        raise RecordError.at(location, f"is no record of a run ({problem})", "restore the file") from None
    if unknown:
        raise RecordError.at(location, f"has keys that hf_recipes/record/ lacks: {', '.join(unknown)}")
    return record if record.sessions else dataclasses.replace(record, sessions=(_only_session(record),))


def find_record(folder: Path, name: str = NAME) -> RunRecord | None:
    """The record of a run's folder; None where there is none that can be read."""
    try:
        return read_record(folder / name)
    except RecordError:
        return None


def write_record(folder: Path, record: RunRecord, name: str = NAME) -> Path:
    """Writes the record completely or not at all; returns its path."""
    return put(folder / name, json.dumps(to_json(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def parse_forecast(value: Mapping[str, Any]) -> ForecastFacts:
    """The forecast of `plan` as the record has it."""
    return from_json(ForecastFacts, value)


def _upgrade(value: Mapping[str, Any]) -> dict[str, Any]:
    """A record of any earlier version in the keys of this one."""
    found = dict(value)
    if found["schema"] < 2 and "where" in found:
        found["stage"] = found.pop("where")
    if found["schema"] < 3:
        found["sessions"] = _with_last_sessions_figures(found)
        if found.get("status") == Status.FINISHED:
            found["done"] = [step.value for step in (EndStep.WEIGHTS, EndStep.EVALUATION)]
    return found


def _with_last_sessions_figures(value: Mapping[str, Any]) -> Any:
    """Until version 2 the record's times and peaks were those of its last session, and no session had its own."""
    sessions = value.get("sessions")
    if not isinstance(sessions, list) or not sessions or not all(isinstance(one, dict) for one in sessions):
        return sessions
    figures = {key: value[key] for key in ("time", "memory", "guards") if key in value}
    if len(sessions) == 1:
        figures["tokens"] = value.get("tokens")
    found = [*sessions[:-1], {**figures, **sessions[-1]}]
    return [
        {"resumed_at": one["first_step"] - 1, **one} if i and isinstance(one.get("first_step"), int) else one
        for i, one in enumerate(found)
    ]


def _only_session(record: RunRecord) -> Session:
    """The session of a record that was written before there were sessions."""
    trained = bool(record.steps)
    return Session(
        started=record.started,
        ended=record.ended,
        first_step=1 + (record.resumed.step if record.resumed else 0) if trained else None,
        last_step=record.steps if trained else None,
        resumed_at=record.resumed.step if record.resumed else None,
        tokens=None if record.resumed else record.tokens,
        time=record.time,
        memory=record.memory,
        guards=record.guards,
        machine=describe_machine(record.device),
        status=record.status,
        stage=record.stage,
        error=record.error,
    )
