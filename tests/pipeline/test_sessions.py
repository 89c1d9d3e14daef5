"""A run that was interrupted: its record, report, model card and `runs` are those of all its sessions."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_recipes.cli import main
from hf_recipes.pipeline.run import run
from hf_recipes.pipeline.sessions import count_repeated_steps, sum_sessions
from hf_recipes.record import (
    GuardEvents,
    Memory,
    RunRecord,
    Session,
    Stage,
    Status,
    Timing,
)
from hf_recipes.record.file import parse_record, read_record
from hf_recipes.report.of_run import build_report
from tests.support.killed_runs import run_until_killed

RECIPE = """
task: causal-lm
model: {{config: {{model_type: gpt2, n_layer: 1, n_head: 2, n_embd: 32, n_positions: 32}}}}
BpeTrainer: {{vocab_size: 400}}
dataset:
  path: text
  data_files: {{train: {root}/recipes/data/austen/persuasion.txt}}
  split: {{train: "train[:5%]"}}
TrainingArguments: {{output_dir: out, max_steps: 9, save_steps: 2, eval_strategy: steps, eval_steps: 3}}
"""


@pytest.fixture
def recipe(root: Path, write_recipe: Callable[..., str]) -> str:
    return write_recipe(RECIPE.format(root=root))


def interrupt_three_times(recipe: str, steps: tuple[int, int, int], words: list[str]) -> RunRecord:
    """SIGTERM, SIGKILL and SIGINT at these steps, and the end of the run."""
    run_until_killed(recipe, words, steps[0], number=signal.SIGTERM)
    run_until_killed(recipe, words, steps[1], resume=True)
    run_until_killed(recipe, words, steps[2], resume=True, number=signal.SIGINT)
    return read_record(run(recipe, words, resume=True), strict=True)


def check_against_straight(resumed: RunRecord, straight: RunRecord) -> None:
    assert (resumed.status, resumed.steps, resumed.tokens) == (Status.FINISHED, straight.steps, straight.tokens)
    assert (resumed.train_loss, resumed.total_flos) == (straight.train_loss, straight.total_flos)
    assert resumed.metrics.of("eval")["eval_loss"] == straight.metrics.of("eval")["eval_loss"]
    for name in ("train_seconds", "eval_seconds", "total_seconds"):
        of_sessions = [getattr(one.time, name) or 0.0 for one in resumed.sessions]
        assert getattr(resumed.time, name) == pytest.approx(sum(of_sessions))
    assert resumed.memory.peak_rss_bytes == max(one.memory.peak_rss_bytes or 0 for one in resumed.sessions)
    counted = sum(one.tokens or 0 for one in resumed.sessions)
    assert resumed.tokens_per_second == pytest.approx(counted / (resumed.time.train_seconds or 0))


def test_a_run_that_was_interrupted_three_times_is_the_straight_run_in_record_report_card_and_list(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = read_record(run(recipe, ["TrainingArguments.output_dir=straight"]))
    resumed = interrupt_three_times(recipe, (3, 6, 7), [])
    check_against_straight(resumed, straight)
    assert [(one.resumed_at, one.first_step, one.last_step, one.status, one.signal) for one in resumed.sessions] == [
        (None, 1, 3, Status.STOPPED, "SIGTERM"),
        (3, 4, 4, None, None),  # killed at 6: its last checkpoint is known
        (4, 5, 7, Status.STOPPED, "SIGINT"),
        (7, 8, 9, Status.FINISHED, None),
    ]
    assert sum(one.tokens or 0 for one in resumed.sessions) == straight.tokens and resumed.repeated_steps == 0
    assert resumed.started == resumed.sessions[0].started and all(one.ended for one in resumed.sessions)
    assert str(resumed.resumption).startswith("resume     resumed at step 3, 4 and 7, bit for bit: same versions")
    report, card = Path("out/report.md").read_text(), Path("out/README.md").read_text()
    assert "; resumed at step 3, 4 and 7; on " in report and "| killed |" in report
    assert "stopped by SIGTERM in training" in report
    assert "| resumed | at step 3, 4 and 7, bit for bit: same versions" in card
    capsys.readouterr()
    main(["runs", "."])
    assert "9 (resumed at step 3, 4 and 7)" in capsys.readouterr().out
    assert "resume_from_checkpoint" not in Path("out/recipe.yaml").read_text()
    assert "resume_from_checkpoint" not in resumed.recipe.training
    assert (
        Path("out/recipe.yaml").read_text().replace("dir: out", "dir: straight")
        == Path("straight/recipe.yaml").read_text()
    )


def test_a_step_that_was_made_again_is_counted_once_and_named(recipe: str) -> None:
    run_until_killed(recipe, [], 7, number=signal.SIGTERM)
    older = ["TrainingArguments.resume_from_checkpoint=out/checkpoint-4"]
    record = read_record(run(recipe, older))
    assert [(one.first_step, one.last_step) for one in record.sessions] == [(1, 7), (5, 9)]
    assert (record.steps, record.repeated_steps) == (9, 3)
    tokens = [one.tokens or 0 for one in record.sessions]
    assert sum(tokens) > (record.tokens or 0) > max(tokens)
    assert "3 steps were made again" in Path("out/report.md").read_text()
    assert "; 3 steps were made again |" in Path("out/README.md").read_text()


def test_two_sessions_that_were_killed_in_a_row_are_two_entries_without_any_record(recipe: str) -> None:
    run_until_killed(recipe, [], 5)
    run_until_killed(recipe, [], 7, resume=True)
    running = read_record(Path("out/record.json"))
    assert (running.status, running.steps, len(running.sessions)) == (Status.RUNNING, 6, 2)
    Path("out/record.json").unlink()
    record = read_record(run(recipe, resume=True))
    assert [(one.first_step, one.last_step, one.status) for one in record.sessions] == [
        (1, 4, None),
        (5, 6, None),
        (7, 9, Status.FINISHED),
    ]
    assert all(one.started and one.ended and one.time.train_seconds for one in record.sessions)


@pytest.mark.slow
def test_what_differed_when_a_run_was_resumed_is_in_its_resumption(recipe: str) -> None:
    run_until_killed(recipe, [], 5)
    record = read_record(run(recipe, ["TrainingArguments.learning_rate=1e-3", "resume_allow=[recipe]"], resume=True))
    assert record.resumption == (
        "resume     resumed at step 4, not bit for bit: TrainingArguments.learning_rate was 5e-05, is 0.001"
    )
    assert record.sessions[1].differences == ("TrainingArguments.learning_rate was 5e-05, is 0.001",)


def session(first: int | None, last: int | None, **facts: object) -> Session:
    return Session(first_step=first, last_step=last, **facts)  # type: ignore[arg-type]


def test_steps_are_made_again_as_far_as_the_sessions_know_their_own() -> None:
    assert count_repeated_steps([session(1, 10), session(6, 8), session(9, 12)]) == 5
    assert count_repeated_steps([session(1, 10), session(None, None), session(11, 12)]) == 0
    assert count_repeated_steps([session(1, 10), session(6, None), session(11, 20)]) == 0


def test_the_sums_of_sessions_leave_out_what_is_not_known() -> None:
    sessions = (
        session(1, 10, tokens=1000, time=Timing(train_seconds=10.0), step_seconds=1.0, memory=Memory(peak_rss_bytes=7)),
        session(11, None, time=Timing(eval_seconds=2.0), guards=GuardEvents(skipped_steps=(12,), rolled_back=1)),
        session(11, 40, tokens=3000, time=Timing(train_seconds=10.0, eval_seconds=1.0), step_seconds=0.2,
                memory=Memory(peak_rss_bytes=5), guards=GuardEvents(skipped_steps=(9, 12))),
    )  # fmt: skip
    found = sum_sessions(RunRecord(task="chat", sessions=sessions))
    assert found.time == Timing(train_seconds=20.0, eval_seconds=3.0)
    assert (found.tokens_per_second, found.memory.peak_rss_bytes) == (200.0, 7)
    assert found.forecast.measured_step_seconds == pytest.approx(0.4)
    assert found.guards == GuardEvents(skipped_steps=(9, 12), rolled_back=1)


def test_a_record_of_version_2_has_its_times_as_those_of_its_last_session() -> None:
    old = {"schema": 2, "task": "chat", "status": "finished", "steps": 9, "tokens": 90, "time": {"train_seconds": 3.0}}
    old |= {"sessions": [{"first_step": 1, "last_step": 4}, {"first_step": 5, "last_step": 9, "status": "finished"}]}
    record = parse_record(json.loads(json.dumps(old)), "a.json")
    assert [(one.resumed_at, one.time.train_seconds, one.tokens) for one in record.sessions] == [
        (None, None, None),
        (4, 3.0, None),
    ]
    assert record.resumed_at == (4,) and record.stage == Stage.START
    from hf_recipes.compare.runs import Run

    assert build_report(Run(name="a", path=Path("a.json"), record=record)).title == "a"


@pytest.mark.slow
def test_training_seconds_of_an_interrupted_run_are_the_straight_ones_within_what_was_made_again(recipe: str) -> None:
    """Every step of a signalled session is known, so nothing but the killed one's last steps is missing."""
    words = ["TrainingArguments.max_steps=300", "TrainingArguments.save_steps=20", "TrainingArguments.eval_steps=100"]
    straight = read_record(run(recipe, [*words, "TrainingArguments.output_dir=straight"]))
    resumed = interrupt_three_times(recipe, (90, 170, 230), words)
    check_against_straight(resumed, straight)
    assert [one.resumed_at for one in resumed.sessions] == [None, 90, 160, 230]
    assert (resumed.steps, resumed.tokens, resumed.repeated_steps) == (300, straight.tokens, 0)
    for name in ("out", "straight"):
        assert f"| steps | {300} |" in Path(name, "README.md").read_text()
