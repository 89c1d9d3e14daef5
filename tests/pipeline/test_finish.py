"""The end of a run is a list of steps: a run that is killed between two of them is finished by --resume."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hf_recipes.commands.restart import is_finished
from hf_recipes.commands.runs import command as list_runs
from hf_recipes.errors import RecipeError
from hf_recipes.hub import push
from hf_recipes.pipeline.recorder import RunRecorder
from hf_recipes.pipeline.run import run
from hf_recipes.record import EndStep, Stage, Status
from hf_recipes.record.file import read_record, write_record
from tests.support.killed_runs import final_state, run_forked, run_until_killed

RECIPE = """
task: causal-lm
model: {{config: {{model_type: gpt2, n_layer: 1, n_head: 2, n_embd: 32, n_positions: 32}}}}
BpeTrainer: {{vocab_size: 400}}
dataset:
  path: text
  data_files: {{train: {root}/recipes/data/austen/persuasion.txt}}
  split: {{train: "train[:5%]"}}
TrainingArguments: {{output_dir: out, max_steps: 4, save_steps: 2, push_to_hub: true, hub_model_id: user/a}}
"""
ALL = (EndStep.WEIGHTS, EndStep.EVALUATION, EndStep.CARD, EndStep.REPORT, EndStep.PUSH)
RECORD = Path("out/record.json")


class Hub:
    """Stands for the Hub: `up` is whether it answers."""

    def __init__(self) -> None:
        self.up, self.pushes = True, 0

    def push(self, run_dir: Path, **options: Any) -> push.PushOutcome:
        self.pushes += self.up
        return push.PushOutcome(
            pushed=self.up, message="pushed" if self.up else "not pushed", command="hf-recipes push"
        )


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr(push, "push_after_training", made.push)
    return made


@pytest.fixture
def recipe(root: Path, write_recipe: Callable[..., str], hub: Hub) -> str:
    return write_recipe(RECIPE.format(root=root))


def run_until_killed_after(recipe: str, step: EndStep, *words: str) -> None:
    """A run that dies by SIGKILL as soon as this step of its end is done."""

    def work() -> None:
        mark, finish = RunRecorder.mark_done, RunRecorder.finish

        def kill_after(done: EndStep) -> None:
            if done == step:
                os.kill(os.getpid(), signal.SIGKILL)

        def mark_done(self: RunRecorder, done: EndStep) -> None:
            mark(self, done)
            kill_after(done)

        def finished(self: RunRecorder) -> None:
            finish(self)
            kill_after(EndStep.EVALUATION)

        RunRecorder.mark_done, RunRecorder.finish = mark_done, finished  # type: ignore[method-assign]
        run(recipe, words)

    status = run_forked(work)
    assert status == signal.SIGKILL, Path("child.log").read_text()[-3000:]


def test_a_run_that_was_killed_between_any_two_steps_of_its_end_is_finished_by_resume(
    recipe: str, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    run(recipe, ["TrainingArguments.output_dir=straight"])
    straight, before = final_state("straight"), hub.pushes
    for done, step in enumerate(ALL[:-1]):
        run_until_killed_after(recipe, step)
        listed = list_runs("out")[1]
        assert read_record(RECORD).done == ALL[: done + 1] and not is_finished(Path("out"), read_record(RECORD))
        capsys.readouterr()
        run(recipe, resume=True)
        printed = capsys.readouterr().out
        left = "left to do: " + ", ".join(ALL[done + 1 :])
        assert f"all 4 steps are made; {left}\n" in printed
        assert ("killed" if done == 0 else f"finished, {left.replace(' to do', '')}") in listed
        record = read_record(RECORD)
        assert (record.status, record.done) == (Status.FINISHED, ALL)
        assert final_state() == straight and is_finished(Path("out"), record)
        assert Path("out/README.md").is_file() and Path("out/report.html").is_file()
        first, last = record.sessions
        assert (first.steps, last.steps, last.resumed_at, last.status) == (4, 0, 4, Status.FINISHED)
        assert last.started and last.ended and last.machine == first.machine
    assert hub.pushes == before + len(ALL) - 1  # by the resumed runs
    with pytest.raises(RecipeError, match="'out/checkpoint-4' has 4 steps and the recipe asks for 4: nothing is left"):
        run(recipe, resume=True)
    run(recipe, ["TrainingArguments.max_steps=6"], resume=True)
    assert read_record(RECORD).steps == 6


@pytest.mark.slow
def test_a_run_without_checkpoints_is_finished_from_its_weights(recipe: str) -> None:
    words = ["TrainingArguments.save_strategy=no", "TrainingArguments.push_to_hub=false"]
    run_until_killed_after(recipe, EndStep.WEIGHTS, *words)
    record = read_record(run(recipe, words, resume=True))
    assert (record.status, record.steps, record.done) == (Status.FINISHED, 4, ALL[:-1])
    run(recipe, [*words, "TrainingArguments.output_dir=straight"])
    assert final_state() == final_state("straight")


@pytest.mark.slow
def test_the_best_checkpoint_that_is_left_alone_is_not_trained_from_again(recipe: str) -> None:
    text = """save_total_limit=1 load_best_model_at_end=true metric_for_best_model=eval_loss eval_strategy=steps
        eval_steps=1 save_steps=1 learning_rate=30.0 warmup_steps=2 push_to_hub=false max_steps=6"""
    words = [f"TrainingArguments.{each}" for each in text.split()]
    run(recipe, [*words, "TrainingArguments.output_dir=straight"])
    run_until_killed_after(recipe, EndStep.EVALUATION, *words)
    assert [path.name for path in Path("out").glob("checkpoint-*")] == ["checkpoint-1"]
    run(recipe, words, resume=True)
    assert final_state() == final_state("straight")


def test_a_push_that_failed_is_made_by_resume_and_is_remembered(recipe: str, hub: Hub) -> None:
    hub.up = False
    run(recipe)
    assert read_record(RECORD).done == ALL[:-1] and "finished, left: push" in list_runs("out")[1]
    with pytest.raises(RecipeError, match="nothing is left to train"):
        run(recipe, ["TrainingArguments.push_to_hub=false"], resume=True)
    hub.up = True
    run(recipe, resume=True)
    assert (hub.pushes, read_record(RECORD).done) == (1, ALL)


def test_a_file_of_the_end_that_is_gone_is_made_again(recipe: str) -> None:
    run(recipe)
    Path("out/README.md").unlink()
    run(recipe, resume=True)
    assert Path("out/README.md").is_file()
    record = read_record(RECORD)  # as version 2 wrote it
    write_record(Path("out"), replace(record, schema=2, done=()))
    Path("out/report.html").unlink()
    run(recipe, ["TrainingArguments.push_to_hub=false"], resume=True)
    assert Path("out/report.html").is_file()


def test_a_signal_while_the_end_is_written_leaves_a_finished_record_and_names_what_is_left(
    recipe: str, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*arguments: Any) -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        return True

    monkeypatch.setattr("hf_recipes.report.of_run.write_report", stop)
    with pytest.raises(KeyboardInterrupt):
        run(recipe)
    record = read_record(RECORD)
    assert (record.status, record.done, hub.pushes) == (Status.FINISHED, ALL[:3], 0)
    printed = capsys.readouterr().out
    assert "the run is complete in out, except for its end; left to do: report, push:\n" in printed
    assert printed.rstrip().endswith("--resume")


def test_a_signal_while_resume_finishes_an_earlier_end_leaves_what_was_done_remembered(
    recipe: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_until_killed_after(recipe, EndStep.EVALUATION)

    def stop(*arguments: Any) -> bool:
        os.kill(os.getpid(), signal.SIGHUP)  # by default it would end the process without a word
        return True

    with monkeypatch.context() as while_reporting:
        while_reporting.setattr("hf_recipes.report.of_run.write_report", stop)
        with pytest.raises(KeyboardInterrupt, match="SIGHUP"):
            run(recipe, resume=True)
    record = read_record(RECORD)
    assert (record.status, record.done, hub.pushes) == (Status.FINISHED, ALL[:3], 0)
    run(recipe, resume=True)
    assert (read_record(RECORD).done, len(read_record(RECORD).sessions), hub.pushes) == (ALL, 3, 1)


def refuse(recipe: str, *words: str) -> None:
    with pytest.raises(RecipeError):
        run(recipe, words, resume=True)


def test_a_refused_start_never_replaces_the_record_of_a_run_that_made_steps(recipe: str) -> None:
    run_until_killed(recipe, [], 3, number=signal.SIGTERM)
    stopped = RECORD.read_bytes()
    refuse(recipe, "TrainingArguments.learning_rate=1e-3")
    refuse(recipe, "dataset.text_column=prose")
    refuse(recipe, "TrainingArguments.max_steps=6", "dataset.split={train: 'train[:6%]'}")
    refuse(recipe, "TrainingArguments.per_device_train_batch_size=2000", "TrainingArguments.dataloader_drop_last=true")
    with pytest.raises(RecipeError):
        run(recipe, ["dataset.text_column=prose"])
    assert RECORD.read_bytes() == stopped
    failed = read_record(Path("out/record-failed.json"))
    assert (failed.status, failed.stage) == (Status.FAILED, Stage.DATA)
    RECORD.write_text("[]")  # damaged: it is not a failed start's to replace
    refuse(recipe, "TrainingArguments.learning_rate=1e-3")
    assert RECORD.read_text() == "[]"
    RECORD.write_bytes(stopped)
    run(recipe, resume=True)
    assert read_record(RECORD).steps == 4 and not Path("out/record-failed.json").exists()


def test_a_session_that_fails_before_its_first_step_does_not_undo_the_ones_before_it(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_until_killed(recipe, [], 3)
    before, settings = RECORD.read_bytes(), Path("out/recipe.yaml").read_bytes()

    def broken(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("hf_recipes.training.overrides.Overrides.get_train_dataloader", broken)
    with pytest.raises(RuntimeError):
        run(recipe, ["TrainingArguments.max_steps=6"], resume=True)
    assert RECORD.read_bytes() == before and Path("out/recipe.yaml").read_bytes() == settings
    failed = read_record(Path("out/record-failed.json"))
    assert (failed.steps, failed.stage, len(failed.sessions)) == (2, Stage.TRAINING, 2)
