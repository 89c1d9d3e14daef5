"""The main path on real data, small: what a user finds after a run, and after one that failed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_recipes.errors import RecipeError
from hf_recipes.pipeline.run import run
from hf_recipes.recipe.read import read_recipe
from tests.support.forks import run_forked
from tests.support.tiny_models import save_bert, wordpiece, write_rows

LANGUAGE_MODEL = """
task: causal-lm
model:
  config: {{model_type: gpt2, n_layer: 2, n_head: 2, n_embd: 64, n_positions: 64}}
BpeTrainer: {{vocab_size: 512}}
dataset:
  path: text
  data_files: {{train: {root}/recipes/data/austen/persuasion.txt}}
  sample_by: paragraph
  split: {{train: "train[:15%]"}}
  max_length: 64
TrainingArguments:
  output_dir: out
  max_steps: 30
  per_device_train_batch_size: 8
  learning_rate: 3e-3
  logging_steps: 10
  eval_on_start: true
  save_steps: 15
"""


@pytest.fixture
def recipe(root: Path, write_recipe: Callable[..., str]) -> str:
    return write_recipe(LANGUAGE_MODEL.format(root=root))


def test_a_run_lowers_its_perplexity_and_writes_weights_record_model_card_scores_and_recipe(recipe: str) -> None:
    record_path = run(recipe)
    record = json.loads(record_path.read_text())
    assert record["status"] == "finished"
    assert record["metrics"]["eval"]["eval_perplexity"] < 0.7 * record["metrics"]["before"]["eval_perplexity"]
    names = {path.name for path in Path("out").iterdir()}
    assert names >= {
        "README.md",
        "config.json",
        "model.safetensors",
        "recipe.yaml",
        "record.json",
        "scores.parquet",
        "tokenizer.json",
        "checkpoint-30",
    }
    assert record["scores"] == {"eval": "scores.parquet"}
    assert record["steps"] == 30
    assert record["batch"] == {
        "per_device": 8,
        "processes": 1,
        "accumulation": 1,
        "sequences_per_step": 8,
        "tokens_per_step": 512,
    }


def test_the_resolved_recipe_reads_back_equal_and_leaves_nothing_to_choose(recipe: str) -> None:
    run(recipe, ["TrainingArguments.max_steps=1", "TrainingArguments.save_strategy=no"])
    first = read_recipe("out/recipe.yaml")
    record = json.loads(Path("out/record.json").read_text())
    assert record["recipe"]["sections"] == first.sections
    run("out/recipe.yaml")
    again = json.loads(Path("out/record.json").read_text())
    assert again["choices"] == []
    assert again["recipe"]["sections"] == first.sections
    assert again["metrics"]["eval"]["eval_loss"] == record["metrics"]["eval"]["eval_loss"]


def test_no_pickle_and_no_token_is_left_beside_the_weights(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hf_" + "Q" * 34
    monkeypatch.setenv("HF_TOKEN", secret)
    run(recipe, ["TrainingArguments.max_steps=2", "TrainingArguments.save_steps=1"])
    files = [path for path in Path("out").rglob("*") if path.is_file()]
    assert not [path for path in files if path.name == "training_args.bin"]
    assert {path.name for path in files if path.suffix in {".bin", ".pt", ".pth", ".pkl"}} <= {
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
    }
    assert not [path for path in files if secret.encode() in path.read_bytes()]


def test_a_token_in_a_recipe_is_refused(recipe: str) -> None:
    with pytest.raises(RecipeError) as caught:
        run(recipe, ["TrainingArguments.hub_token=abc"])
    assert str(caught.value) == (
        "argument 'TrainingArguments.hub_token=...': a token in a recipe is refused; set HF_TOKEN instead"
    )
    assert not Path("out").exists()


def test_a_resumed_run_ends_where_the_straight_one_does(recipe: str) -> None:
    from safetensors.torch import load_file

    run(recipe, ["TrainingArguments.max_steps=10", "TrainingArguments.save_steps=5"])
    straight = load_file("out/model.safetensors")
    for path in Path("out/checkpoint-10").iterdir():
        path.unlink()
    Path("out/checkpoint-10").rmdir()
    run(recipe, ["TrainingArguments.max_steps=10", "TrainingArguments.save_steps=5"], resume=True)
    resumed = load_file("out/model.safetensors")
    assert all((straight[name] == resumed[name]).all() for name in straight)
    record = json.loads(Path("out/record.json").read_text())
    assert record["steps"] == 10


def test_resume_begins_where_there_is_no_checkpoint_yet_and_the_recipes_key_asks_for_one(recipe: str, capsys) -> None:
    key = "TrainingArguments.resume_from_checkpoint=true"
    with pytest.raises(RecipeError) as caught:
        run(recipe, [key])
    assert str(caught.value) == f"argument '{key}': there is no checkpoint in 'out' to resume from; start without it"
    assert not Path("out").exists()
    run(recipe, ["TrainingArguments.max_steps=2"], resume=True)
    assert "there is no checkpoint in 'out' yet: this run starts from the beginning" in capsys.readouterr().out
    record = json.loads(Path("out/record.json").read_text())
    assert (record["status"], record["steps"], record["resumed"]) == ("finished", 2, None)


def test_a_checkpoint_of_another_model_is_refused_by_name_and_shape(recipe: str) -> None:
    run(recipe, ["TrainingArguments.max_steps=2", "TrainingArguments.save_steps=2"])
    os.rename("out/checkpoint-2", "other")
    words = ["TrainingArguments.resume_from_checkpoint=other", "model.n_embd=32", "resume_allow=[recipe]"]
    with pytest.raises(RecipeError) as caught:
        run(recipe, words)
    assert str(caught.value) == (
        "argument 'TrainingArguments.resume_from_checkpoint=other': 'other' is a checkpoint of another model: "
        "transformer.h.0.attn.c_attn.bias is (192,), here (96,); "
        "resume with the recipe that wrote it, or start a new run in another output_dir"
    )


def test_a_failure_after_the_start_writes_its_record_with_the_place(recipe: str) -> None:
    with pytest.raises(RecipeError):
        run(recipe, ["dataset.text_column=prose"])
    record = json.loads(Path("out/record.json").read_text())
    assert (record["status"], record["stage"]) == ("failed", "data")
    assert "no column 'prose'" in record["error"]
    assert [path.name for path in Path("out").iterdir()] == ["record.json"]


def test_running_out_of_memory_ends_with_a_message_and_its_record(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers.models.gpt2.modeling_gpt2 import GPT2Block

    def forward(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(GPT2Block, "forward", forward)
    with pytest.raises(RecipeError) as caught:
        run(recipe, ["TrainingArguments.eval_on_start=false"])
    assert str(caught.value).startswith(
        "recipe.yaml:15: one sample does not fit: out of memory in forward, step 1: CUDA out of memory. Tried to "
        "allocate 2.00 GiB.; set a shorter max_length or activation_checkpointing: true, "
    )
    record = json.loads(Path("out/record.json").read_text())
    assert (record["status"], record["stage"]) == ("out of memory", "training")


def test_ctrl_c_ends_with_exit_code_130_and_a_record_that_says_stopped(recipe: str) -> None:
    code, output = run_forked(["run", recipe, "TrainingArguments.max_steps=100000"], signal.SIGINT)
    assert code == 130
    assert "Traceback" not in output
    record = json.loads(Path("out/record.json").read_text())
    assert (record["status"], record["stage"]) == ("stopped", "training")
    assert 10 <= record["steps"] < 100000  # the loss is logged every 10 steps
    assert next(entry["step"] for entry in record["log_history"] if "loss" in entry) == 10
    assert f"\nstopped in training after {record['steps']} steps; record out/record.json\n" in output
    whole, _, command = output.partition(" is complete; to resume from it:\n")
    assert whole.endswith(f"out/checkpoint-{record['steps']}")
    assert command.splitlines()[0].endswith(f" run {recipe} TrainingArguments.max_steps=100000 --resume")


def test_tags_that_are_no_spans_are_refused_before_training(write_recipe: Callable[..., str]) -> None:
    Path("rows.jsonl").write_text('{"tokens": ["a", "b"], "tags": [0, 1]}\n' * 4)
    config = "{model_type: bert, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 16}"
    text = f"task: token-classification\nmodel: {{config: {config}}}\nBpeTrainer: {{vocab_size: 300}}\n"
    text += "dataset: {path: json, data_files: rows.jsonl}\nTrainingArguments: {output_dir: out, max_steps: 1}\n"
    path = write_recipe(text)
    with pytest.raises(RecipeError) as caught:
        run(path, ["metrics=[span_f1]"])
    assert str(caught.value) == (
        "argument 'metrics=[span_f1]': span_f1 reads tags such as B-PER, I-PER and O, and the data has '0'; "
        "add the prefixes to the tags, or write metrics: [accuracy]"
    )
    assert json.loads(Path("out/record.json").read_text())["stage"] == "model"
    run(path, ["metrics=[accuracy]"])


def test_an_error_in_the_recipe_writes_nothing(recipe: str) -> None:
    with pytest.raises(RecipeError):
        run(recipe, ["TrainingArguments.learning_rat=1"])
    assert not Path("out").exists()


def test_tokens_per_second_gradient_norm_and_learning_rate_are_logged(recipe: str) -> None:
    run(recipe, ["TrainingArguments.max_steps=4", "TrainingArguments.logging_steps=2"])
    entries = [e for e in json.loads(Path("out/record.json").read_text())["log_history"] if "loss" in e]
    assert len(entries) == 2
    assert all(
        {"grad_norm", "learning_rate", "train_tokens_per_second", "num_input_tokens_seen"} <= set(e) for e in entries
    )
    assert entries[-1]["num_input_tokens_seen"] == 4 * 8 * 64


def test_early_stopping_and_the_best_model_follow_the_recipe(recipe: str) -> None:
    words = [
        "TrainingArguments.eval_strategy=steps",
        "TrainingArguments.eval_steps=2",
        "TrainingArguments.save_strategy=steps",
        "TrainingArguments.save_steps=2",
        "TrainingArguments.load_best_model_at_end=true",
        "TrainingArguments.metric_for_best_model=eval_loss",
        "TrainingArguments.greater_is_better=false",
        "EarlyStoppingCallback.early_stopping_patience=1",
        "TrainingArguments.learning_rate=10.0",  # diverges at once
        "TrainingArguments.save_total_limit=2",
    ]
    run(recipe, words)
    record = json.loads(Path("out/record.json").read_text())
    assert record["steps"] < 30
    early = record["stopped_early"]
    assert (early["step"], early["metric"], early["best_step"]) == (record["steps"], "eval_loss", 2)
    line = f"at step {early['step']}; eval_loss was best at step 2 ({early['best']:.4g})"
    assert f"early stopping ended the run {line}; 30 steps were planned" in record["notes"]
    assert line in Path("out/README.md").read_text() and line in Path("out/report.md").read_text()
    evaluations = {e["step"]: e["eval_loss"] for e in record["log_history"] if "eval_loss" in e and e["step"]}
    assert record["metrics"]["eval"]["eval_loss"] == pytest.approx(min(evaluations.values()))


def test_sample_prompts_are_continued_at_each_evaluation_without_moving_the_training(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file

    words = ["TrainingArguments.max_steps=4", "TrainingArguments.eval_strategy=steps", "TrainingArguments.eval_steps=2"]
    run(recipe, words)
    plain = load_file("out/model.safetensors")
    capsys.readouterr()
    run(recipe, [*words, "sample_prompts=[She was]", "GenerationConfig={do_sample: true, max_new_tokens: 5}"])
    printed = capsys.readouterr().out
    assert [f"sample at step {step}: 'She was' -> " in printed for step in (0, 2, 4)] == [True] * 3
    sampled = load_file("out/model.safetensors")
    assert all((plain[name] == sampled[name]).all() for name in plain)


def test_the_run_says_first_what_it_will_do(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(recipe, ["TrainingArguments.max_steps=1", "TrainingArguments.gradient_accumulation_steps=2"])
    printed = capsys.readouterr().out
    said = " ".join(printed.split())
    assert "8 per device x 1 device x 2 accumulation = 16 sequences, about 1,024 tokens a step" in said
    assert "precision  float32 weights" in printed
    assert "record   out/record.json" in printed


def test_the_first_screen_fits_a_terminal_of_80_by_24_and_defaults_go_to_the_record(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(recipe, ["TrainingArguments.max_steps=1", "TrainingArguments.logging_steps=1"])
    printed = capsys.readouterr().out
    first = printed.partition("  step   epoch")[0].splitlines()
    assert sum(max(1, -(-len(line) // 80)) for line in first) <= 24, first
    choice = "model.dtype: float32 (none is stated; from_pretrained would take the checkpoint's)"
    assert choice not in printed
    assert choice in json.loads(Path("out/record.json").read_text())["choices"]


def test_metrics_are_printed_in_columns(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["TrainingArguments.max_steps=2", "TrainingArguments.logging_steps=1", "TrainingArguments.eval_steps=1"]
    run(recipe, [*words, "TrainingArguments.eval_strategy=steps"])
    lines = capsys.readouterr().out.splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("    step   epoch      loss  grad norm"))
    steps, evaluations = lines[place + 1 : place + 5 : 2], lines[place + 2 : place + 6 : 2]
    assert [line.split()[0] for line in steps] == ["1", "2"]
    assert len({len(line) for line in (lines[place], *steps)}) == 1  # the columns are aligned
    assert all(line.split()[2:4] == ["eval", "loss"] for line in evaluations)
    assert not [line for line in lines if line.startswith("{") or "\r" in line]


def test_importing_the_command_takes_no_torch() -> None:
    code = "import sys; import hf_recipes.cli, hf_recipes.commands.check, hf_recipes.run; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("False", 0), done.stderr


def test_padding_free_rows_keep_their_max_length_of_null(root: Path, write_recipe: Callable[..., str]) -> None:
    text = LANGUAGE_MODEL.format(root=root).replace(
        "TrainingArguments:", "SFTConfig:\n  max_length: null\n  padding_free: true"
    )
    recipe = write_recipe(text.replace("  max_length: 64\n", "").replace("n_positions: 64", "n_positions: 1024"))
    run(recipe, ["SFTConfig.max_steps=2", "SFTConfig.per_device_train_batch_size=2"])
    record = json.loads(Path("out/record.json").read_text())
    assert (record["status"], record["recipe"]["sections"]["SFTConfig"]["max_length"]) == ("finished", None)


def test_tags_that_are_no_spans_are_trained_scored_and_reported_by_accuracy(write_recipe: Callable[..., str]) -> None:
    save_bert("model", wordpiece(["a", "b", "c"]))
    tags = ["X-PER", "O", "Y-LOC"]
    write_rows("rows.jsonl", ({"tokens": ["a", "b", "c"][: 1 + i % 3], "tags": tags[: 1 + i % 3]} for i in range(40)))
    path = run(
        write_recipe("""
task: token-classification
model: {pretrained_model_name_or_path: model}
dataset: {path: json, data_files: rows.jsonl}
metrics: [accuracy]
TrainingArguments: {output_dir: out, max_steps: 3}
""")
    )
    record = json.loads(path.read_text())
    assert record["status"] == "finished" and set(record["intervals"]["eval"]) == {"accuracy"}
