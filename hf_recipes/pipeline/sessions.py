"""The sessions of a run: what each one did, those that were killed, and their sums. Pure but for the files it reads."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.common.typed_json import TypedJsonError, from_json, to_json
from hf_recipes.pipeline.utilization import with_mfu
from hf_recipes.record import (
    GuardEvents,
    Memory,
    RunRecord,
    Session,
    Timing,
)
from hf_recipes.record.file import find_record

if TYPE_CHECKING:
    from hf_recipes.checkpoints.select import ResumePoint


def earlier_sessions(checkpoint: ResumePoint, output_dir: Path) -> tuple[Session, ...]:
    """Sessions of the run that wrote the checkpoint, oldest first.

    The checkpoint's manifest has those until it was written; the record has those after it, if the run continues in
    its own folder. Of a session that was killed the one knows that it ran, the other how far it came.
    """
    at_checkpoint = _sessions_in_manifest(checkpoint.manifest or {})
    recorded: tuple[Session, ...] = ()
    folder = Path(checkpoint.path).parent
    if folder.resolve() == output_dir.resolve() or not at_checkpoint:
        earlier = find_record(folder)
        recorded = earlier.sessions if earlier and earlier.run and earlier.run == checkpoint.run else ()
    found = [
        max((one for one in pair if one is not None), key=_knowledge) for pair in zip_longest(at_checkpoint, recorded)
    ]
    covered = max((one.last_step or 0 for one in found), default=0)
    if covered < checkpoint.step:  # only the checkpoint shows it: it is of a version that recorded less
        body = checkpoint.manifest or {}
        machine, saved = str(body.get("device") or ""), _without_fractions(body.get("saved"))
        found.append(Session(ended=saved, first_step=covered + 1, last_step=checkpoint.step, machine=machine))
    return tuple(found)


def _knowledge(one: Session) -> tuple[bool, int]:
    """Larger for what knows more of a session: how it ended, else how far it came."""
    return one.status is not None, one.last_step or 0


def _sessions_in_manifest(body: Mapping[str, Any]) -> tuple[Session, ...]:
    """The last one wrote the checkpoint; it ended when it did, as far as is known."""
    try:
        found = [from_json(Session, one) for one in body.get("sessions") or ()]
    except (TypedJsonError, TypeError):  # of a later version
        return ()
    if found:
        found[-1] = replace(found[-1], ended=_without_fractions(body.get("saved")))
    return tuple(found)


def describe_sessions(sessions: Sequence[Session]) -> dict[str, Any]:
    """What a checkpoint's manifest says of the sessions so far."""
    return {"sessions": [to_json(one) for one in sessions]}


def _without_fractions(time: Any) -> str | None:
    """A time in ISO 8601 as the record has it: without fractions of a second."""
    try:
        return datetime.datetime.fromisoformat(str(time)).isoformat(timespec="seconds")
    except ValueError:
        return None


def sum_sessions(record: RunRecord) -> RunRecord:
    """The record with the times, peaks, speed, guards and repeated steps of all its sessions."""
    sessions = record.sessions
    timed = [one for one in sessions if one.tokens and one.time.train_seconds]
    seconds = sum(one.time.train_seconds or 0.0 for one in timed)
    found = replace(
        record,
        started=sessions[0].started or record.started,
        time=Timing(**{name: _total(getattr(one.time, name) for one in sessions) for name in _names(Timing)}),
        memory=Memory(**{name: _largest(getattr(one.memory, name) for one in sessions) for name in _names(Memory)}),
        tokens_per_second=sum(one.tokens or 0 for one in timed) / seconds if seconds else None,
        data_wait=_data_wait(sessions),
        guards=GuardEvents(
            skipped_steps=tuple(sorted({step for one in sessions for step in one.guards.skipped_steps})),
            rolled_back=sum(one.guards.rolled_back for one in sessions),
        ),
        forecast=replace(record.forecast, measured_step_seconds=_mean_step_seconds(sessions)),
        repeated_steps=count_repeated_steps(sessions),
    )
    return with_mfu(found)


def _data_wait(sessions: Sequence[Session]) -> float | None:
    """Of the sessions that measured it; those of earlier versions did not."""
    timed = [one.time for one in sessions if one.time.data_seconds is not None and one.time.train_seconds]
    seconds = sum(one.train_seconds or 0.0 for one in timed)
    return sum(one.data_seconds or 0.0 for one in timed) / seconds if seconds else None


def count_repeated_steps(sessions: Sequence[Session]) -> int:
    """Steps that were made by an earlier session already, as far as the sessions know their steps."""
    repeated, covered = 0, 0
    for one in sessions:
        if one.first_step is not None and one.last_step is not None:
            repeated += max(0, min(covered, one.last_step) - one.first_step + 1)
            covered = max(covered, one.last_step)
    return repeated


def _mean_step_seconds(sessions: Sequence[Session]) -> float | None:
    """Each session's mean, weighted by its steps."""
    timed = [one for one in sessions if one.step_seconds is not None and one.steps]
    steps = sum(one.steps for one in timed)
    return sum((one.step_seconds or 0.0) * one.steps for one in timed) / steps if steps else None


def _names(kind: Any) -> list[str]:
    return [one.name for one in fields(kind)]


def _total(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _largest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)
