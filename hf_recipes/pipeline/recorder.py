"""Owns the record of a run while it runs, and writes it with the report however the run ends."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.common.device import is_sharded, rank
from hf_recipes.common.device import say as print_line
from hf_recipes.common.environment import current_commit, package_versions, peak_rss_bytes, timestamp
from hf_recipes.common.text import first_line
from hf_recipes.errors import OutOfMemoryError, RecordError
from hf_recipes.pipeline.facts import describe_device, describe_recipe
from hf_recipes.record import (
    BEFORE_TRAINING,
    FAILED_NAME,
    NAME,
    Memory,
    NewerRecordError,
    RunRecord,
    Session,
    Stage,
    Status,
    describe_machine,
    find_record,
    read_record,
    write_record,
)

if TYPE_CHECKING:
    from hf_recipes.checkpoints.select import ResumePoint
    from hf_recipes.common.device import Device
    from hf_recipes.recipe.recipe import Recipe


SAMPLE = "sample at step "  # how a line of training/sample_text.py begins


class RunRecorder:
    """`record` is replaced as facts come in, so that a failure leaves what is known."""

    def __init__(self, recipe: Recipe, device: Device, folder: Path, say: Callable[[str], None] = print_line) -> None:
        self.folder, self.device, self.say = folder, device, say
        self.record = RunRecord(
            task=recipe.task,
            recipe=describe_recipe(recipe),
            translations=tuple(recipe.translations),
            versions={**package_versions(), "python": sys.version.split()[0]},
            commit=current_commit(),
            device=describe_device(device),
            started=timestamp(),
        )
        self.record = replace(
            self.record,
            sessions=(Session(started=self.record.started, machine=describe_machine(self.record.device)),),
        )

    def enter(self, stage: Stage) -> None:
        """The run has come to this stage."""
        self.record = replace(self.record, stage=stage)

    def note(self, line: str) -> None:
        """Prints a line and keeps it in the record's notes, unless it is a text that the model generated."""
        self.say(line)
        if line.startswith(SAMPLE):
            return
        self.record = replace(self.record, notes=(*self.record.notes, line.strip()))

    def choose(self, lines: list[str]) -> None:
        """Keeps what was chosen for the user; each line has its reason."""
        self.record = replace(self.record, choices=(*self.record.choices, *lines))

    def continue_run(self, checkpoint: ResumePoint) -> None:
        """Puts the sessions of the run that is resumed before this one; says so where its record cannot be read."""
        try:
            read_record(Path(checkpoint.path).parent / NAME)
        except RecordError as problem:
            if (Path(checkpoint.path).parent / NAME).exists():
                self.note(f"warning: {problem}; the record of the resumed run lacks its earlier sessions")
        earlier = earlier_sessions(checkpoint)
        self.record = replace(self.record, run=checkpoint.run, sessions=(*earlier, *self.record.sessions))

    def begin_training(self, first_step: int) -> None:
        """This session's first optimizer step is the next one."""
        last = replace(self.record.sessions[-1], first_step=first_step)
        self.record = replace(self.record, sessions=(*self.record.sessions[:-1], last))

    @contextmanager
    def recording(self, resume_command: str, report: bool = True) -> Iterator[None]:
        """Writes the record and the report however the run ends. `resume_command`: what continues it."""
        import torch

        began = time.time()
        try:
            yield
            self._end(Status.FINISHED)
        except KeyboardInterrupt:
            self._end(Status.STOPPED)
            raise
        except OutOfMemoryError as problem:
            self._end(Status.OUT_OF_MEMORY, problem.errors[0].message)
            say_what_would_fit(self.record, self.device, self.say)
            raise
        except torch.OutOfMemoryError as problem:
            self._end(Status.OUT_OF_MEMORY, first_line(problem))
            what = f"out of memory in {self.record.stage}: {self.record.error}"
            fix = "`hf-recipes plan` says what fits"
            raise OutOfMemoryError.at(self.record.recipe.path, what, fix) from problem
        except BaseException as problem:
            self._end(Status.FAILED, f"{type(problem).__name__}: {problem}")
            raise
        finally:
            record = self.record
            alone = record.status == Status.OUT_OF_MEMORY and rank() != 0  # rank 0 waits for this one
            if alone or (rank() == 0 and not another_rank_recorded(self.folder, began)):
                path = write_record(self.folder, record, file_name_of(self.folder, record))
                if report and rank() == 0 and record.stage not in BEFORE_TRAINING:
                    from hf_recipes.report.of_run import write_report

                    write_report(self.folder, record, self.say)
                if record.status == Status.STOPPED:
                    self._say_stopped(path, resume_command)

    def _end(self, status: Status, error: str | None = None) -> None:
        """Closes the last session and takes the process's peaks."""
        ended, record = timestamp(), self.record
        last = replace(record.sessions[-1], ended=ended, status=status, stage=record.stage, error=error)
        if last.first_step is not None:
            made = record.steps is not None and record.steps >= last.first_step
            last = replace(last, last_step=record.steps) if made else replace(last, first_step=None)
        self.record = replace(
            record,
            status=status,
            error=error,
            ended=ended,
            sessions=(*record.sessions[:-1], last),
            memory=measure_memory(self.device),
        )

    def _say_stopped(self, path: Path, resume_command: str) -> None:
        """How far the run came, and the command that resumes it."""
        from hf_recipes.checkpoints import select

        steps = f" after {self.record.steps} steps" if self.record.steps else ""
        self.say(f"\nstopped in {self.record.stage}{steps}; record {path}")
        checkpoint, _ = select.choose_checkpoint(self.folder) if steps else (None, [])
        if checkpoint:
            self.say(f"{checkpoint.path} is complete; to resume from it:\n  {resume_command}")


def measure_memory(device: Device) -> Memory:
    """Peaks of this process since its start."""
    if device.kind != "cuda":
        return Memory(peak_rss_bytes=peak_rss_bytes())
    import torch

    return Memory(
        peak_rss_bytes=peak_rss_bytes(),
        peak_allocated_bytes=torch.cuda.max_memory_allocated(),
        peak_reserved_bytes=torch.cuda.max_memory_reserved(),
    )


def earlier_sessions(checkpoint: ResumePoint) -> tuple[Session, ...]:
    """Sessions of the run that wrote the checkpoint: as its record has them, then one that only the checkpoint
    shows, since it was killed."""
    earlier = find_record(Path(checkpoint.path).parent)
    found = earlier.sessions if earlier and earlier.run and earlier.run == checkpoint.run else ()
    covered = max((one.last_step or 0 for one in found), default=0)
    if covered < checkpoint.step:
        manifest = checkpoint.manifest or {}
        machine, saved = str(manifest.get("device") or ""), _to_seconds(manifest.get("saved"))
        killed = Session(ended=saved, first_step=covered + 1, last_step=checkpoint.step, machine=machine)
        found = (*found, killed)
    return found


def _to_seconds(time: Any) -> str | None:
    """A time in ISO 8601 as the record has it: without fractions of a second."""
    try:
        return datetime.datetime.fromisoformat(str(time)).isoformat(timespec="seconds")
    except ValueError:
        return None


def refuse_newer_record(folder: Path) -> None:
    """Raises NewerRecordError: a run of a later version is resumed by that version."""
    try:
        read_record(folder / NAME)
    except NewerRecordError:
        raise
    except RecordError:
        return


def file_name_of(folder: Path, record: RunRecord) -> str:
    """record.json; record-failed.json where that would replace the record of the finished run whose model is here."""
    if record.status == Status.FINISHED or record.stage not in BEFORE_TRAINING:
        return NAME
    earlier = find_record(folder)
    return FAILED_NAME if earlier is not None and earlier.status == Status.FINISHED else NAME


def another_rank_recorded(folder: Path, since: float) -> bool:
    """Whether another process of this run (begun at `since`) has recorded that it ran out of memory."""
    path = folder / NAME
    if not path.is_file() or path.stat().st_mtime < since:
        return False
    found = find_record(folder)
    return found is not None and found.status == Status.OUT_OF_MEMORY


def say_what_would_fit(record: RunRecord, device: Device, say: Callable[[str], None]) -> None:
    """By plan, in a child process, for the GPU that was too small. It never fails."""
    if device.kind != "cuda" or rank() != 0 or is_sharded():
        return
    from hf_recipes.plan.preflight import suggest_changes
    from hf_recipes.plan.trace import worker
    from hf_recipes.recipe.recipe import Recipe

    try:
        recipe = Recipe(path=record.recipe.path, sections=dict(record.recipe.sections), locations={})
        suggest_changes(recipe, device, say)
    except Exception as problem:  # a help beside the message, which comes in any case
        say(f"plan: no suggestion of what would fit ({problem})")
    finally:
        worker.close()
