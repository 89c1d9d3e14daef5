"""Resuming: the latest complete checkpoint is taken, a damaged one is reported by its file, and one of another run is
refused by what differs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_recipes.errors import RecipeError
from hf_recipes.pipeline.run import run

RECIPE = """
task: causal-lm
model: {{config: {{model_type: gpt2, n_layer: 1, n_head: 2, n_embd: 32, n_positions: 32}}}}
BpeTrainer: {{vocab_size: 400}}
dataset:
  path: text
  data_files: {{train: {root}/recipes/data/austen/persuasion.txt}}
  split: {{train: "train[:5%]"}}
TrainingArguments: {{output_dir: out, max_steps: 4, save_steps: 2}}
"""
LOCATION = "argument '--resume': "
RESTART = "; resume with the recipe that wrote it, or start a new run in another output_dir, or write resume_allow: "


@pytest.fixture
def recipe(root: Path, write_recipe: Callable[..., str]) -> str:
    return write_recipe(RECIPE.format(root=root))


def refusal(recipe: str, *words: str) -> str:
    with pytest.raises(RecipeError) as caught:
        run(recipe, words, resume=True)
    return str(caught.value)


def test_a_run_that_is_finished_is_not_given_one_step_more(recipe: str) -> None:
    run(recipe)
    assert refusal(recipe) == (
        f"{LOCATION}'out/checkpoint-4' has 4 steps and the recipe asks for 4: nothing is left to train; "
        "raise TrainingArguments.max_steps; to evaluate it, set do_train: false and "
        "model.pretrained_model_name_or_path: out/checkpoint-4"
    )
    run(recipe, ["TrainingArguments.max_steps=6"], resume=True)
    assert json.loads(Path("out/record.json").read_text())["steps"] == 6


def test_a_run_that_was_killed_after_its_last_step_is_saved_and_evaluated(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(recipe)
    weights, record = Path("out/model.safetensors").read_bytes(), json.loads(Path("out/record.json").read_text())
    for name in ("record.json", "model.safetensors"):
        Path("out", name).unlink()
    run(recipe, resume=True)
    again = json.loads(Path("out/record.json").read_text())
    assert "all its steps are made: its end is left to do" in capsys.readouterr().out
    assert Path("out/model.safetensors").read_bytes() == weights
    assert (again["steps"], again["train_loss"]) == (4, record["train_loss"])
    assert again["metrics"]["eval"]["eval_loss"] == record["metrics"]["eval"]["eval_loss"]


def test_upstream_still_makes_a_step_too_many_when_it_resumes_at_the_end(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The day that this fails, that part of Overrides._run_epoch may go."""
    from transformers import Trainer

    from hf_recipes.training.overrides import Overrides

    run(recipe)
    Path("out/record.json").unlink()
    monkeypatch.setattr(Overrides, "_run_epoch", Trainer._run_epoch)
    run(recipe, resume=True)
    assert json.loads(Path("out/record.json").read_text())["steps"] == 5


def test_a_damaged_checkpoint_is_skipped_with_its_file_named_and_the_one_before_is_taken(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(recipe)
    weights = Path("out/model.safetensors").read_bytes()
    path = Path("out/checkpoint-4/optimizer.pt")
    before = path.read_bytes()
    path.write_bytes(before[:100])
    Path("out/checkpoint-4/scheduler.pt").unlink()
    capsys.readouterr()
    run(recipe, resume=True)
    errors = f"optimizer.pt has 100 of {len(before):,} bytes; scheduler.pt is missing"
    printed = capsys.readouterr().out
    assert f"skipped checkpoint-4: {errors}\n" in printed
    assert "resuming from out/checkpoint-2, step 2 of 4\n" in printed
    assert Path("out/model.safetensors").read_bytes() == weights
    record = json.loads(Path("out/record.json").read_text())
    assert record["resumed"] == {"from": "out/checkpoint-2", "step": 2, "passed_over": [f"checkpoint-4: {errors}"]}
    assert path.read_bytes() == before  # written anew by the resumed run


def test_a_checkpoint_that_is_named_and_not_complete_is_refused_with_its_file(recipe: str) -> None:
    run(recipe)
    Path("out/checkpoint-4/rng_state.pth").write_bytes(b"")
    with pytest.raises(RecipeError) as caught:
        run(recipe, ["TrainingArguments.resume_from_checkpoint=out/checkpoint-4"])
    size = json.loads(Path("out/checkpoint-4/manifest.json").read_text())["files"]["rng_state.pth"]["bytes"]
    assert str(caught.value) == (
        "argument 'TrainingArguments.resume_from_checkpoint=out/checkpoint-4': 'out/checkpoint-4' is not complete: "
        f"rng_state.pth has 0 of {size:,} bytes; resume from an older one with resume_from_checkpoint: PATH, "
        "or start without it"
    )


def test_where_no_checkpoint_is_complete_each_is_named_with_why(recipe: str) -> None:
    run(recipe)
    for step in (2, 4):
        Path(f"out/checkpoint-{step}/model.safetensors").unlink()
    assert refusal(recipe) == (
        f"{LOCATION}no checkpoint in 'out' is complete: checkpoint-4: model.safetensors is missing; "
        "checkpoint-2: model.safetensors is missing; start without it"
    )


def test_a_missing_checkpoint_is_reported_before_anything_is_read_or_written(recipe: str) -> None:
    with pytest.raises(RecipeError) as caught:
        run(recipe, ["dataset.text_column=nowhere", "TrainingArguments.resume_from_checkpoint=true"])
    assert str(caught.value) == (
        "argument 'TrainingArguments.resume_from_checkpoint=true': there is no checkpoint in 'out' to resume from; "
        "start without it"
    )
    assert not Path("out").exists()


def test_upstreams_own_checkpoint_is_taken_if_complete_and_reported_as_unproven(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(recipe)
    shutil.rmtree("out/checkpoint-4")
    for name in ("manifest.json", "progress.json"):
        Path("out/checkpoint-2", name).unlink()
    shutil.copytree("out/checkpoint-2", "complete")
    run(recipe, resume=True)
    assert (
        "out/checkpoint-2: it has no manifest (hf_recipes did not write it); upstream's files look complete"
    ) in capsys.readouterr().out
    for name, damage, why in (
        ("trainer_state.json", b"{", "cannot be read (Expecting property name"),
        ("optimizer.pt", None, "is missing: upstream would silently resume with a new one"),
        ("optimizer.pt", b"x", "is truncated"),
        ("rng_state.pth", None, "is missing"),
        ("model.safetensors", Path("complete/model.safetensors").read_bytes()[:-1], "is truncated"),
    ):
        shutil.rmtree("out")
        shutil.copytree("complete", "out/checkpoint-2")
        path = Path("out/checkpoint-2", name)
        path.unlink() if damage is None else path.write_bytes(damage)
        assert f"no checkpoint in 'out' is complete: checkpoint-2: {name} {why}" in refusal(recipe)


def test_another_recipe_is_refused_by_the_keys_that_matter_and_those_that_do_not_are_named(recipe: str) -> None:
    run(recipe)
    words = ["TrainingArguments.learning_rate=1e-3", "TrainingArguments.logging_steps=1", "model.n_embd=64"]
    assert refusal(recipe, "TrainingArguments.max_steps=6", *words) == (
        f"{LOCATION}'out/checkpoint-4' is of another recipe: TrainingArguments.learning_rate was 5e-05, is 0.001; "
        f"model.n_embd was absent, is 64 (TrainingArguments.logging_steps may differ){RESTART}[recipe]"
    )


def test_a_recipe_that_differs_where_nothing_depends_on_it_is_resumed(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(recipe)
    words = ["TrainingArguments.logging_steps=1", "TrainingArguments.save_steps=3", "TrainingArguments.max_steps=6"]
    run(recipe, words, resume=True)
    printed = capsys.readouterr().out
    assert "TrainingArguments.max_steps was 4, is 6: from here on this is not the run that was interrupted" in printed


def test_another_recipe_is_resumed_if_the_recipe_allows_it(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(recipe)
    words = ["TrainingArguments.learning_rate=1e-3", "TrainingArguments.max_steps=6", "resume_allow=[recipe]"]
    run(recipe, words, resume=True)
    assert (
        "not an exact resumption: 'out/checkpoint-4' is of another recipe: "
        "TrainingArguments.learning_rate was 5e-05, is 0.001"
    ) in capsys.readouterr().out


def test_other_rows_are_refused_and_another_number_of_processes(recipe: str) -> None:
    run(recipe)
    more = "TrainingArguments.max_steps=6"
    message = refusal(recipe, more, "dataset.split={train: 'train[:6%]'}")
    assert message == f"{LOCATION}'out/checkpoint-4' was trained on other rows{RESTART}[data]"
    from hf_recipes.checkpoints import manifest

    folder = Path("out/checkpoint-4")
    body = manifest.read_manifest(folder)
    assert body is not None
    manifest.write_manifest(folder, {**body, "world_size": 2}, body["files"])
    assert refusal(recipe, more) == (
        f"{LOCATION}'out/checkpoint-4' is of 2 process(es), this run has 1: a step would have 8 rows instead of 16; "
        "start 2, or change gradient_accumulation_steps with them, or write resume_allow: [processes]"
    )


def test_weights_alone_are_not_resumed_unless_the_recipe_allows_it(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(recipe, ["TrainingArguments.save_only_model=true"])
    assert (
        "resume     not bit for bit: save_only_model: true saves weights only, without the optimizer, the schedule"
        in (capsys.readouterr().out)
    )
    weights_only = "it has weights only (save_only_model), no optimizer, schedule or random state"
    assert refusal(recipe, "TrainingArguments.max_steps=6") == (
        f"{LOCATION}no checkpoint in 'out' is complete: checkpoint-4: {weights_only}; checkpoint-2: {weights_only}; "
        "start without it"
    )
    run(recipe, ["TrainingArguments.max_steps=6", "resume_allow=[state]"], resume=True)
    assert json.loads(Path("out/record.json").read_text())["steps"] == 6


def test_a_new_run_beside_an_older_ones_checkpoints_is_the_one_that_is_resumed(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(recipe)
    run(recipe, ["TrainingArguments.max_steps=3", "TrainingArguments.save_steps=3", "TrainingArguments.seed=1"])
    assert (
        "out has 2 checkpoints of an earlier run: this run starts from the beginning; --resume would continue that one"
        in capsys.readouterr().out
    )
    words = ["TrainingArguments.max_steps=5", "TrainingArguments.seed=1"]
    run(recipe, words, resume=True)
    assert "resuming from out/checkpoint-3, step 3 of 5" in capsys.readouterr().out


def test_leftovers_of_a_killed_run_are_removed_at_the_next_start_and_a_complete_checkpoint_put_in_place(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(recipe)
    out = Path("out")
    Path("out/record.json").unlink()
    (out / "checkpoint-4").rename(out / ".staging-checkpoint-4")
    (out / ".staging-checkpoint-6").mkdir()
    (out / ".removing-checkpoint-1").mkdir()
    run(recipe, resume=True)
    printed = capsys.readouterr().out
    assert "checkpoint-4 was complete but not yet in place when its run was killed: it is now\n" in printed
    assert "removed .staging-checkpoint-6, left by a run that was killed\n" in printed
    assert "removed .removing-checkpoint-1, left by a run that was killed\n" in printed
    assert "resuming from out/checkpoint-4, step 4 of 4" in printed
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_the_start_reports_whether_a_resumed_run_will_be_equal(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    run(recipe, ["TrainingArguments.max_steps=1"])
    threads = torch.get_num_threads()
    assert f"resume     bit for bit: same versions, same CPU, {threads} thread" in capsys.readouterr().out
    run(recipe, ["TrainingArguments.max_steps=1", "TrainingArguments.ignore_data_skip=true"])
    assert "resume     not bit for bit: ignore_data_skip: true restarts the epoch's rows" in capsys.readouterr().out


def test_a_resumption_reports_what_changed_since(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(recipe)
    from hf_recipes.checkpoints import manifest

    folder = Path("out/checkpoint-4")
    body = manifest.read_manifest(folder)
    assert body is not None
    threads = body["threads"]
    body["versions"]["torch"] = "2.0.0"
    manifest.write_manifest(folder, {**body, "threads": 64}, body["files"])
    run(recipe, ["TrainingArguments.max_steps=6"], resume=True)
    printed = capsys.readouterr().out
    assert "not bit for bit: torch was 2.0.0, is " in printed
    assert f"not bit for bit: threads was 64, is {threads}\n" in printed


def test_the_seed_of_random_weights_below_an_adapter_does_not_change(recipe: str) -> None:
    adapter = "LoraConfig={r: 2, target_modules: [c_attn]}"
    run(recipe, [adapter])
    words = [adapter, "TrainingArguments.seed=7", "TrainingArguments.max_steps=6", "resume_allow=[recipe]"]
    assert refusal(recipe, *words) == (
        f"{LOCATION}TrainingArguments.seed was 42, is 7: the random weights below the adapter are made from it and "
        "would be others; keep the seed, or start a new run"
    )
