"""Owns the record of a run while it runs, and writes it with the report however the run ends."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.checkpoints import folders
from hf_recipes.checkpoints.select import read_trainer_state
from hf_recipes.common.device import is_sharded, rank
from hf_recipes.common.device import say as print_line
from hf_recipes.common.environment import current_commit, package_versions, peak_rss_bytes, timestamp
from hf_recipes.common.files import identify
from hf_recipes.common.run_lock import keep_folder
from hf_recipes.common.text import first_line
from hf_recipes.errors import OutOfMemoryError, OutputDirError, RecordError
from hf_recipes.pipeline.facts import describe_device, describe_recipe
from hf_recipes.pipeline.finish import describe_left, list_left
from hf_recipes.pipeline.sessions import describe_sessions, earlier_sessions, sum_sessions
from hf_recipes.record import (
    BEFORE_TRAINING,
    COMPLETE,
    FAILED_NAME,
    NAME,
    EndStep,
    Memory,
    RunRecord,
    Session,
    Stage,
    Status,
    describe_machine,
)
from hf_recipes.record.file import NewerRecordError, find_record, read_record, write_record

if TYPE_CHECKING:
    from hf_recipes.checkpoints.select import ResumePoint
    from hf_recipes.common.device import Device
    from hf_recipes.recipe.recipe import Recipe


FIRST_REPORT = 60.0  # seconds: a shorter run has its page at its end
MOST_FOR_REPORTS = 0.01  # share of a run's time that reports may take while it trains
SAMPLE = "sample at step "  # how a line of training/sample_text.py begins
KEPT_FROM_TRAINING = (
    *("run", "steps", "epochs", "tokens", "total_flos", "train_loss", "log_history", "best_checkpoint"),
    *("out_of_memory", "planned_steps", "resumed", "done"),
)


class RunRecorder:
    """`record` is replaced as facts come in, so that a failure leaves what is known."""

    def __init__(self, recipe: Recipe, device: Device, folder: Path, say: Callable[[str], None] = print_line) -> None:
        self.folder, self.device, self.say = folder, device, say
        self._where = recipe.location(f"{recipe.trainer}.output_dir")
        self._add_progress: Callable[[RunRecord], RunRecord] | None = None  # while training
        self._began = time.perf_counter()
        self._report_seconds = 0.0
        started = timestamp()
        facts = describe_device(device)
        self.record = RunRecord(
            task=recipe.task,
            recipe=describe_recipe(recipe),
            translations=tuple(recipe.translations),
            versions={**package_versions(), "python": sys.version.split()[0]},
            commit=current_commit(),
            device=facts,
            started=started,
            sessions=(Session(started=started, machine=describe_machine(facts)),),
        )

    # --- facts as they come in ---------------------------------------------------------------------------------------

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
        """Takes over what the run that is resumed has done; says so where its record cannot be read."""
        path = Path(checkpoint.path).parent / NAME
        try:
            read_record(path)
        except RecordError as problem:
            if path.exists():
                self.note(f"warning: {problem}; sessions after {checkpoint.path} are not in the new record")
        state = read_trainer_state(checkpoint.path)
        self.record = replace(
            self.record,
            run=checkpoint.run,
            sessions=(*earlier_sessions(checkpoint, self.folder), *self.record.sessions),
            steps=checkpoint.step,
            epochs=state.get("epoch"),
            tokens=state.get("num_input_tokens_seen"),
            log_history=tuple(state.get("log_history") or ()),
        )

    def continue_end(self, earlier: RunRecord) -> None:
        """Takes over a record whose last step is made; its model is saved and left to be evaluated."""
        last = replace(self.record.sessions[-1], resumed_at=earlier.steps)
        kept = {name: getattr(earlier, name) for name in KEPT_FROM_TRAINING}
        self.record = replace(self.record, **kept, sessions=(*earlier.sessions, last))
        self.note(f"all {earlier.steps} steps are made; {describe_left(list_left(self.folder, self.record))}")

    # --- the session that is under way -------------------------------------------------------------------------------

    def begin_training(self, first_step: int, add_progress: Callable[[RunRecord], RunRecord]) -> None:
        """This session's first optimizer step is the next one. `add_progress`: what is done when it is called."""
        self._replace_session(first_step=first_step)
        self._add_progress = add_progress

    def measure(self) -> None:
        """Takes this session's steps, times, tokens and peaks, and the sums of all."""
        if self._add_progress is not None:
            self.record = self._add_progress(self.record)
        timing = replace(self.record.sessions[-1].time, total_seconds=time.perf_counter() - self._began)
        self._replace_session(time=timing, memory=measure_memory(self.device))
        self.record = sum_sessions(self.record)

    def end_training(self) -> None:
        """The last step is made: what comes after it is not training."""
        self.measure()
        self._add_progress = None

    def sessions_for_manifest(self) -> dict[str, Any]:
        """What a checkpoint that is written now says of the run's sessions."""
        self.record_running()
        return describe_sessions(self.record.sessions)

    def record_scores(self, scores_seconds: float) -> None:
        """How long this session wrote scores and computed their intervals."""
        self._replace_session(time=replace(self.record.sessions[-1].time, scores_seconds=scores_seconds))

    def record_running(self) -> None:
        """After the first step and at each checkpoint: if the run is killed now, its record shows what it did."""
        self.measure()
        self._write(replace(self.record, status=Status.RUNNING))

    def report_running(self) -> None:
        """The report of the run so far, whose page updates itself: at each evaluation, unless that takes long."""
        elapsed = time.perf_counter() - self._began
        if rank() != 0 or elapsed < FIRST_REPORT or self._report_seconds > MOST_FOR_REPORTS * elapsed:
            return
        from hf_recipes.report.of_run import write_report

        began = time.perf_counter()
        self.measure()
        write_report(self.folder, replace(self.record, status=Status.RUNNING), lambda line: None)
        self._report_seconds += time.perf_counter() - began

    def mark_done(self, step: EndStep) -> None:
        """A step of the end is done, and stays so if the next one is not."""
        self.record = replace(self.record, done=(*self.record.done, step))
        status = self.record.status
        self._write(self.record if status in COMPLETE else replace(self.record, status=Status.RUNNING))

    def _replace_session(self, **facts: Any) -> None:
        last = replace(self.record.sessions[-1], **facts)
        self.record = replace(self.record, sessions=(*self.record.sessions[:-1], last))

    # --- the end of the session --------------------------------------------------------------------------------------

    @contextmanager
    def recording(self, resume_command: str, report: bool = True) -> Iterator[None]:
        """Writes the record and the report however the run ends. `resume_command`: what continues it."""
        import torch

        before, self._began = identify(self.folder / NAME), time.perf_counter()
        complete = False
        try:
            yield
            complete = True
        except KeyboardInterrupt as problem:
            self.end(Status.STOPPED, signal_name=_signal_name(problem))
            raise
        except OutOfMemoryError as problem:
            self.end(Status.OUT_OF_MEMORY, problem.errors[0].message)
            say_what_would_fit(self.record, self.device, self.say)
            raise
        except torch.OutOfMemoryError as problem:
            self.end(Status.OUT_OF_MEMORY, first_line(problem))
            what = f"out of memory in {self.record.stage}: {self.record.error}"
            fix = "`hf-recipes plan` says what fits"
            raise OutOfMemoryError.at(self.record.recipe.path, what, fix) from problem
        except BaseException as problem:
            self.end(Status.FAILED, f"{type(problem).__name__}: {problem}")
            raise
        finally:
            record = self.record
            alone = record.status == Status.OUT_OF_MEMORY and rank() != 0  # rank 0 waits for this one
            if record.status in COMPLETE:
                if not complete and rank() == 0:
                    left = describe_left(list_left(self.folder, record))
                    self.say(f"the run is complete in {self.folder}, except for its end; {left}:\n  {resume_command}")
            elif self._lost_folder():
                pass
            elif alone or (rank() == 0 and not another_rank_recorded(self.folder, before)):
                path = write_record(self.folder, record, file_name_of(self.folder, record))
                if record.status == Status.STOPPED:
                    self._say_stopped(path, resume_command)  # first: another Ctrl-C may end the report
                if report and rank() == 0 and path.name == NAME and record.stage not in BEFORE_TRAINING:
                    from hf_recipes.report.of_run import write_report

                    write_report(self.folder, record, self.say)

    def _lost_folder(self) -> bool:
        """Whether another run has the folder by now, since this one's lock was removed: the record there is its."""
        try:
            keep_folder(self.folder, self._where, self.say)
        except OutputDirError as lost:
            self.say(f"warning: {lost}; this run's record is not written")
            return True
        except OSError:
            return False  # the write says why
        return False

    def finish(self) -> None:
        """The run is evaluated: from here on nothing changes in its record but which steps of its end are done."""
        self.record = replace(self.record, done=(*self.record.done, EndStep.EVALUATION))
        self.end(Status.DIVERGED if self.record.diverged else Status.FINISHED)
        self._write(self.record)

    def end(self, status: Status, error: str | None = None, signal_name: str | None = None) -> None:
        """Closes the session, unless it has finished."""
        if self.record.status in COMPLETE:
            return
        self.end_training()
        last = self.record.sessions[-1]
        ended = timestamp()
        self._replace_session(
            ended=ended,
            status=status,
            stage=self.record.stage,
            error=error,
            signal=signal_name,
            first_step=last.first_step if last.last_step is not None else None,
        )
        latest = folders.latest_complete(self.folder)
        self.record = sum_sessions(
            replace(
                self.record,
                status=status,
                error=error,
                ended=ended,
                last_checkpoint=latest.name if latest else None,
            )
        )

    def _write(self, record: RunRecord) -> None:
        if rank() == 0:
            keep_folder(self.folder, self._where, self.say)
            write_record(self.folder, record)
            (self.folder / FAILED_NAME).unlink(missing_ok=True)

    def _say_stopped(self, path: Path, resume_command: str) -> None:
        """How far the run came, and the command that resumes it."""
        from hf_recipes.checkpoints import select

        steps = f" after {self.record.steps} steps" if self.record.steps else ""
        self.say(f"\nstopped in {self.record.stage}{steps}; record {path}")
        checkpoint, _ = select.choose_checkpoint(self.folder) if steps else (None, [])
        done, saved = self.record.steps or 0, checkpoint.step if checkpoint else 0
        if done > saved:
            which = f"step {done} is" if done == saved + 1 else f"steps {saved + 1} to {done} are"
            self.say(f"not saved: {which} lost, and made again by the next start")
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


def refuse_newer_record(folder: Path) -> None:
    """Raises NewerRecordError: a run of a later version is resumed by that version."""
    try:
        read_record(folder / NAME)
    except NewerRecordError:
        raise
    except RecordError:
        return


def file_name_of(folder: Path, record: RunRecord) -> str:
    """record.json; record-failed.json where that would replace the record of a run that did more than this session."""
    if record.sessions[-1].first_step is not None or not (folder / NAME).exists():
        return NAME
    try:
        earlier = read_record(folder / NAME)
    except RecordError:
        return FAILED_NAME  # of a later version, or damaged: it is not this session's to replace
    made_steps = earlier.steps or any(one.first_step is not None for one in earlier.sessions)
    if earlier.status not in COMPLETE and (not made_steps or _continues_end(earlier, record)):
        return NAME
    return FAILED_NAME


def _continues_end(earlier: RunRecord, record: RunRecord) -> bool:
    """Whether this session had no step left to make, and came further than that."""
    return record.run == earlier.run and record.stage in (Stage.SAVING, Stage.EVALUATION)


def _signal_name(problem: BaseException) -> str:
    number = getattr(problem, "number", signal.SIGINT)
    return signal.Signals(number).name


def another_rank_recorded(folder: Path, before: tuple[int, ...]) -> bool:
    """Whether another process of this run has recorded that it ran out of memory. `before`: the record that was there
    when the run began."""
    if identify(folder / NAME) in ((), before):
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
