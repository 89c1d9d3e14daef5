"""`hf-recipes sweep`: a grid of ordinary runs that can be continued and ends in a comparison."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from hf_recipes.commands import sweep as sweeping
from hf_recipes.commands.sweep import parse_values, sweep
from hf_recipes.errors import RecipeError
from hf_recipes.pipeline.run import run
from hf_recipes.training.signals import Stopped
from tests.support.tiny_models import save_bert, wordpiece, write_rows
from tests.training.test_out_of_memory import texts
from tests.training.test_step_guard import CLASSES

RATES = "TrainingArguments.learning_rate=1e-3,2e-3"


@pytest.fixture
def recipe(folder: Path, write_recipe: Callable[..., str]) -> str:
    save_bert("model", wordpiece(sorted({word for text in texts() for word in text.split()})))
    write_rows("rows.jsonl", ({"text": f"{t} {i}", "label": ("no", "yes")[i % 2]} for i, t in enumerate(texts())))
    return write_recipe(CLASSES)


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs in this process instead of a child that imports torch anew; the output folders, in their order."""
    begun: list[str] = []

    def in_process(command: Sequence[str]) -> int:
        path, *arguments = command[command.index("run") + 1 :]
        begun.append(arguments[-1] if arguments[-1] == "--resume" else arguments[-1].partition("output_dir=")[2])
        try:
            run(path, [one for one in arguments if one != "--resume"], resume="--resume" in arguments)
        except RecipeError as problem:
            return problem.exit_status
        except Stopped as stopped:
            return 128 + stopped.number
        return 0

    monkeypatch.setattr(sweeping, "run_child", in_process)
    return begun


def test_a_grid_over_seeds_runs_in_order_and_ends_in_its_comparison(recipe: str, cells: list[str]) -> None:
    lines: list[str] = []
    assert sweep(recipe, sets=[RATES], seeds=2, say=lines.append)
    assert cells == [f"out-sweep/learning_rate={rate}/seed={seed}" for rate in ("1e-3", "2e-3") for seed in (42, 43)]
    for folder in cells:
        record = json.loads((Path(folder) / "record.json").read_text())
        assert record["status"] == "finished" and f"seed={record['seed']}" in folder
    assert "learning_rate=2e-3 (2 runs) against learning_rate=1e-3 (2 runs)" in lines
    assert all(Path(f"out-sweep/compare.{ending}").is_file() for ending in ("md", "html", "json"))

    cells.clear()
    assert sweep(recipe, sets=[RATES], seeds=2, say=lines.append)
    assert cells == []  # the same command has nothing left to do
    assert sweep(recipe, sets=["TrainingArguments.learning_rate=1e-3,3e-3"], seeds=2, say=lines.append)
    assert cells == [f"out-sweep/learning_rate=3e-3/seed={seed}" for seed in (42, 43)]  # it may grow


def test_a_failed_cell_keeps_its_record_and_the_next_one_runs(recipe: str, cells: list[str]) -> None:
    lines: list[str] = []
    sets = ["TrainingArguments.learning_rate=1e-3,1e30,2e-3"]
    assert not sweep(recipe, sets=sets, say=lines.append)
    assert len(cells) == 3
    failed = json.loads(Path("out-sweep/learning_rate=1e30/seed=42/record.json").read_text())
    assert failed["status"] == "failed" and "the loss is nan" in failed["error"]
    assert lines[-1] == ("\nsweep: 1 of 3 failed: learning_rate=1e30/seed=42; run the same command to try them again")
    assert "learning_rate=2e-3/seed=42 against learning_rate=1e-3/seed=42" in lines


def test_a_cell_that_diverged_has_failed_and_is_not_tried_again(recipe: str, cells: list[str]) -> None:
    lines: list[str] = []
    words = ["TrainingArguments.max_grad_norm=0", "TrainingArguments.max_steps=1"]
    for tries in (2, 2):
        assert not sweep(recipe, words, sets=["TrainingArguments.learning_rate=1e-3,1e38"], say=lines.append)
        assert len(cells) == tries
    assert "sweep: learning_rate=1e38/seed=42 failed (exit status 3); see its record, if it wrote one" in lines
    assert lines[-1] == "sweep: a run that diverged is not tried again; remove its folder to do so"


def test_a_cell_that_was_stopped_resumes_from_its_checkpoint(
    recipe: str, cells: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hf_recipes.training.overrides import Overrides

    upstreams = Overrides.training_step

    def stop_at_the_fifth(self: Overrides, *args: object, **options: object) -> object:
        if self.state.global_step == 4:
            self.parts.guard.listener.received = 15
        return upstreams(self, *args, **options)

    lines: list[str] = []
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(Overrides, "training_step", stop_at_the_fifth)
        sweep(recipe, sets=[RATES], say=lines.append)
    assert ended.value.code == 143 and lines[-1].endswith("run the same command to continue")
    cells.clear()
    assert sweep(recipe, sets=[RATES], say=lines.append)
    assert any("resumed from checkpoint-5" in line for line in lines)
    assert cells == ["--resume", "out-sweep/learning_rate=2e-3/seed=42"]


def test_a_run_that_its_launcher_stopped_stops_the_sweep(
    recipe: str, cells: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun's exit status is 1, whatever ended its processes: the record shows that it was asked to stop."""
    in_process = sweeping.run_child

    def launched(command: Sequence[str]) -> int:
        assert command[2:4] == ["accelerate.commands.launch", "--config_file"]
        in_process(["run", *command[command.index("hf_recipes.run") + 1 :]])
        place = Path(cells[-1]) / "record.json"
        place.write_text(json.dumps({**json.loads(place.read_text()), "status": "stopped"}))
        return 1

    monkeypatch.setattr(sweeping, "run_child", launched)
    lines: list[str] = []
    with pytest.raises(SystemExit):
        sweep(recipe, sets=[RATES], config_file="two.yaml", say=lines.append)
    assert len(cells) == 1 and lines[-1].endswith("run the same command to continue")


def test_every_error_of_every_cell_is_reported_before_the_first_one_runs(recipe: str, cells: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        sweep(recipe, sets=["TrainingArguments.learning_rate=1e-3,fast", "TrainingArguments.max_step=1,2"])
    assert len(caught.value.errors) == 3 and "did you mean" in str(caught.value)
    assert cells == [] and not Path("out-sweep").exists()


def test_a_folder_with_a_sweep_of_another_recipe_is_refused(recipe: str, cells: list[str]) -> None:
    assert sweep(recipe, ["TrainingArguments.max_steps=1"], sets=["TrainingArguments.seed=1"])
    with pytest.raises(RecipeError, match="contains a sweep of another recipe, or of an earlier version of this one"):
        sweep(recipe, ["TrainingArguments.max_steps=2"], sets=["TrainingArguments.seed=1"])


def test_values_are_divided_by_the_commas_that_divide_them() -> None:
    assert parse_values("LoraConfig.target_modules=[q_proj,v_proj],all-linear") == (
        "LoraConfig.target_modules",
        ["[q_proj,v_proj]", "all-linear"],
    )
    assert parse_values("a.b='x,y', z") == ("a.b", ["'x,y'", "z"])
    for wrong in ("a.b", "=1", "a.b=", "a.b=1,,2", "a.b=1,1"):
        with pytest.raises(RecipeError):
            parse_values(wrong)


def test_a_key_that_is_swept_twice_or_a_seed_that_is_counted_twice_is_refused(recipe: str) -> None:
    with pytest.raises(RecipeError, match="is given twice; one --set with all of its values"):
        sweep(recipe, sets=[RATES, RATES])
    with pytest.raises(RecipeError, match="already sets the seeds"):
        sweep(recipe, sets=["TrainingArguments.seed=1,2"], seeds=2)


def test_a_dry_run_lists_the_cells_and_what_is_left(recipe: str, cells: list[str]) -> None:
    lines: list[str] = []
    assert sweep(recipe, sets=[RATES, "TrainingArguments.max_steps=1,2"], dry_run=True, say=lines.append)
    assert lines[1] == "out-sweep/learning_rate=1e-3-max_steps=2/seed=42  starts"
    assert len(lines) == 4 and cells == [] and not Path("out-sweep").exists()
