"""What would have failed silently stops with its message; a healthy run raises no alarm."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification, LlamaForCausalLM, TrainerCallback

from hf_recipes.commands.verify import verify
from hf_recipes.errors import DivergedError, HubError, RecipeError
from hf_recipes.hub.push import push_command
from hf_recipes.pipeline.run import run
from hf_recipes.training import trainer
from tests.support.tiny_models import CHATML, TEXTS, bpe, save_bert, save_llama, wordpiece, write_rows
from tests.training.test_out_of_memory import texts

CLASSES = """
task: text-classification
model: {pretrained_model_name_or_path: model}
dataset: {path: json, data_files: rows.jsonl}
TrainingArguments:
  output_dir: out
  max_steps: 8
  per_device_train_batch_size: 4
  learning_rate: 1e-3
  logging_steps: 1
  save_steps: 2
"""
CHAT = """
task: chat
model: {pretrained_model_name_or_path: model}
dataset: {path: json, data_files: rows.jsonl}
SFTConfig: {output_dir: out, max_steps: 4, per_device_train_batch_size: 4, logging_steps: 1, save_steps: 2}
"""
LORA = "LoraConfig={r: 2, target_modules: [q_proj, v_proj]}"


@pytest.fixture
def classes(folder: Path, write_recipe: Callable[..., str]) -> str:
    save_bert("model", wordpiece(sorted({word for text in texts() for word in text.split()})))
    write_rows("rows.jsonl", ({"text": f"{t} {i}", "label": ("no", "yes")[i % 2]} for i, t in enumerate(texts())))
    return write_recipe(CLASSES)


def chat_rows(answer: str = "{text}") -> None:
    rows = [
        [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": answer.format(text=text)}]
        for i, text in enumerate(TEXTS * 10)
    ]
    write_rows("rows.jsonl", ({"messages": messages} for messages in rows))


@pytest.fixture
def chat(folder: Path, write_recipe: Callable[..., str]) -> str:
    save_llama("model", bpe(chat=CHATML))
    chat_rows()
    return write_recipe(CHAT)


def refused(recipe: str, *words: str) -> str:
    with pytest.raises(RecipeError) as caught:
        run(recipe, words)
    return str(caught.value)


def record() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("out/record.json").read_text())
    return found


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The loss of training forward number `at` (and later ones, if `for_ever`) is multiplied by `factor`."""

    def set_up(at: int, factor: float = float("nan"), *, for_ever: bool = False) -> None:
        for kind in (BertForSequenceClassification, LlamaForCausalLM):
            calls: list[int] = []
            monkeypatch.setattr(kind, "forward", _poisoned(kind.forward, calls, at, factor, for_ever))

    return set_up


def _poisoned(forward: Any, calls: list[int], at: int, factor: float, for_ever: bool) -> Any:
    @functools.wraps(forward)
    def poisoned(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        if self.training and torch.is_grad_enabled():
            calls.append(1)
            if len(calls) == at or (for_ever and len(calls) > at):
                output.logits = output.logits * factor
                if output.loss is not None:
                    output.loss = output.loss * factor
        return output

    return poisoned


# --- a loss that is not finite ---------------------------------------------------------------------------------------


def test_a_nan_stops_the_run_before_the_weights_are_touched_and_the_state_before_is_kept(
    classes: str, poison: Callable[..., None]
) -> None:
    poison(6)
    message = refused(classes)
    assert message.startswith("recipe.yaml:9: step 6: the loss is nan")
    assert "(the weights are unchanged and saved in checkpoint-5)" in message and "lower learning_rate" in message
    assert (record()["status"], record()["steps"]) == ("failed", 5)
    from safetensors.torch import load_file

    weights = load_file("out/checkpoint-5/model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())


def test_after_a_nan_that_is_gone_a_resumed_run_ends_as_one_that_never_had_it(
    classes: str, poison: Callable[..., None]
) -> None:
    from tests.support.killed_runs import final_state

    run(classes, ["TrainingArguments.output_dir=straight"])
    poison(6)
    refused(classes)
    run(classes, resume=True)
    assert final_state("out") == final_state("straight")


def test_skip_leaves_one_step_out_and_continues(
    classes: str, poison: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    poison(3)
    run(classes, ["on_nonfinite=skip"])
    assert record()["guards"] == {"skipped_steps": [3], "rolled_back": 0}
    assert "step 3: the loss is nan" in capsys.readouterr().out
    assert all(isinstance(entry["loss"], float) for entry in record()["log_history"][3:] if "loss" in entry)


def test_rollback_restores_the_last_checkpoint_and_continues(
    classes: str, poison: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    poison(6)
    run(classes, ["on_nonfinite=rollback"])
    assert record()["guards"] == {"skipped_steps": [6], "rolled_back": 1}
    assert "rolled back to the weights of out/checkpoint-4 (on_nonfinite: rollback)" in capsys.readouterr().out
    assert record()["status"] == "finished"


def test_weights_that_one_update_ruins_are_not_kept_and_the_run_resumes_from_before(
    classes: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Spike(TrainerCallback):
        """One step with a rate of 1e38."""

        def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
            if state.global_step == 4:
                for group in optimizer.param_groups:
                    group["lr"] = 1e38

    limit = "TrainingArguments.save_total_limit=1"
    with monkeypatch.context() as patch:
        upstreams = trainer.callbacks
        patch.setattr(trainer, "callbacks", lambda *args: [*upstreams(*args), Spike()])
        assert "(the step before has ruined the weights; checkpoint-4 is from before)" in refused(classes, limit)
    assert [path.name for path in Path("out").glob("checkpoint-*")] == ["checkpoint-4"]
    assert verify("out", replay=False)
    run(classes, [limit], resume=True)
    assert "resuming from out/checkpoint-4, step 4 of 8" in capsys.readouterr().out
    assert record()["status"] == "finished"


RUIN = [f"TrainingArguments.{word}" for word in ("learning_rate=1e6", "max_grad_norm=0", "lr_scheduler_type=constant")]


@pytest.mark.parametrize("policy", ["stop", "rollback"])
def test_weights_that_are_finite_and_ruined_are_neither_resumed_nor_rolled_back_to_for_ever(
    classes: str, policy: str
) -> None:
    words = [f"on_nonfinite={policy}", "resume_allow=[recipe]", "TrainingArguments.save_steps=1"]
    run(classes, [*words, "TrainingArguments.max_steps=3"])
    with pytest.raises(RecipeError):
        run(classes, [*words, *RUIN, "TrainingArguments.save_total_limit=4"], resume=True)
    for _ in range(6):  # each may find that one more checkpoint is ruined
        try:
            run(classes, [*words, "TrainingArguments.learning_rate=1e-4"], resume=True)
        except RecipeError:
            continue
        break
    assert record()["status"] == "finished"


def test_a_run_whose_last_update_ruins_the_weights_has_diverged(classes: str) -> None:
    words = [f"TrainingArguments.{word}" for word in ("learning_rate=1e38", "max_grad_norm=0", "max_steps=1")]
    with pytest.raises(DivergedError) as caught:
        run(classes, [*words, "TrainingArguments.push_to_hub=true"])
    assert caught.value.exit_status == 3
    lost = record()["diverged"]
    assert lost.endswith(" weights are not finite") and record()["status"] == "diverged"
    assert str(caught.value) == (
        f"argument '{words[0]}': the run diverged: {lost}; nothing is pushed; train again with a lower learning_rate, "
        "more warmup_steps or max_grad_norm: 1.0"
    )
    assert f"> **This run diverged: {lost}. Its weights are worth nothing.**" in Path("out/README.md").read_text()
    assert f"diverged: {lost}" in Path("out/report.md").read_text()
    assert not list(Path("out").glob("checkpoint-*"))
    with pytest.raises(HubError, match=r"the run diverged: .*; push another run, or add --diverged"):
        push_command("out", "me/it")


def test_a_run_that_skips_most_of_its_steps_has_diverged(classes: str, poison: Callable[..., None]) -> None:
    poison(4, for_ever=True)
    with pytest.raises(DivergedError):
        run(classes, ["on_nonfinite=skip"])
    assert record()["diverged"] == "5 of 8 steps were skipped, since they were not finite"
    with pytest.raises(RecipeError, match="the run in 'out' diverged: 5 of 8 steps were skipped"):
        run(classes, ["on_nonfinite=skip"], resume=True)


def test_skipping_for_ever_stops(classes: str, poison: Callable[..., None]) -> None:
    poison(2, for_ever=True)
    assert "the 10 steps before were skipped too" in refused(
        classes, "on_nonfinite=skip", "TrainingArguments.max_steps=30"
    )


def test_a_layer_that_overflows_is_named(classes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.bert.modeling_bert import BertIntermediate

    forward, calls = BertIntermediate.forward, []

    def overflowing(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return forward(self, hidden) * (float("inf") if len(calls) > 8 else 1.0)

    monkeypatch.setattr(BertIntermediate, "forward", overflowing)
    assert "first not finite: bert.encoder.layer.0.intermediate" in refused(classes)


def test_overflows_that_loss_scaling_skips_are_no_alarm(classes: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(classes, ["master_weights=true", "TrainingArguments.fp16=true", "TrainingArguments.max_steps=6"])
    assert record()["status"] == "finished"
    assert record()["guards"] == {"skipped_steps": [], "rolled_back": 0}


# --- nothing to learn ------------------------------------------------------------------------------------------------


def test_a_loss_of_exactly_zero_stops(classes: str, poison: Callable[..., None]) -> None:
    poison(1, 0.0, for_ever=True)
    message = refused(classes, "TrainingArguments.weight_decay=0.0")
    assert "exactly 0.0" in message or "had no gradient" in message


def test_an_adapter_without_a_gradient_stops(chat: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama.modeling_llama import LlamaAttention

    forward = LlamaAttention.forward

    def cut(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        return (output[0].detach(), *output[1:]) if self.layer_idx == 1 else output

    monkeypatch.setattr(LlamaAttention, "forward", cut)
    message = refused(chat, LORA)
    assert "these parts had no gradient in 2 steps: base_model.model.model.layers.1.self_attn.q_proj" in message
    run(chat, [LORA, "disable_guards=[no_gradient]"])


def test_a_frozen_weight_that_changes_stops(chat: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = torch.optim.AdamW.step

    def writes(self: Any, *args: Any, **kwargs: Any) -> Any:
        import gc

        with torch.no_grad():
            for module in gc.get_objects():
                if isinstance(module, torch.nn.Embedding):
                    module.weight[5] += 1.0
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", writes)
    assert "frozen weights have changed: base_model.model.model.embed_tokens.weight" in refused(chat, LORA)


# --- rows ------------------------------------------------------------------------------------------------------------


def test_answers_that_are_cut_off_stop_unless_the_guard_is_disabled(
    chat: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(chat, "SFTConfig.max_length=30")
    assert "of the label tokens of the train split are cut off by max_length; raise SFTConfig.max_length" in message
    run(chat, ["SFTConfig.max_length=30", "disable_guards=[truncation, end_token]"])
    assert "disable_guards truncation: " in capsys.readouterr().out


def test_answers_that_never_end_stop(chat: str) -> None:
    save_llama("model", bpe(chat=CHATML.replace("message['content'] + '<|im_end|>'", "message['content']")))
    assert "has an end token among its labels: the model would not learn to stop" in refused(chat)


def test_two_begin_tokens_stop(folder: Path, write_recipe: Callable[..., str]) -> None:
    save_llama("model", bpe(bos=True))
    write_rows("rows.jsonl", ({"text": f"<s>{text} {i}"} for i, text in enumerate(texts())))
    recipe = write_recipe(CLASSES.replace("text-classification", "causal-lm"))
    assert "rows have two BOS tokens ('<s>') side by side" in refused(recipe)


def test_evaluation_rows_that_are_training_rows_stop(classes: str) -> None:
    rows = Path("rows.jsonl").read_text().splitlines(keepends=True)
    Path("held.jsonl").write_text("".join(rows[:10]))
    words = "dataset.data_files={train: rows.jsonl, validation: held.jsonl}"
    assert "10 of 10 rows of the eval split (100%) are also in the train split" in refused(classes, words)
    run(classes, [words, "disable_guards=[overlap]"])


def test_a_checkpoint_that_lacks_a_layer_stops(chat: str) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file("model/model.safetensors")
    gone = [name for name in weights if "layers.1.mlp.down_proj" in name]
    save_file({k: v for k, v in weights.items() if k not in gone}, "model/model.safetensors", {"format": "pt"})
    message = refused(chat)
    assert "are not in the checkpoint and would start untrained: model.layers.1.mlp.down_proj.weight" in message
    run(chat, ["disable_guards=[untrained]"])


@pytest.mark.parametrize("words", [[], [LORA]], ids=["full", "LoRA"])
def test_a_healthy_run_raises_no_alarm(chat: str, words: list[str]) -> None:
    run(chat, words)
    found = record()
    assert found["status"] == "finished" and found["out_of_memory"] == []
    assert found["guards"] == {"skipped_steps": [], "rolled_back": 0}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("quickstart", marks=pytest.mark.slow),
        *(
            pytest.param(f"quickstart-{name}", marks=pytest.mark.assets)
            for name in ("chat", "classification", "tokens")
        ),
    ],
)
def test_a_healthy_run_of_a_quickstart_raises_no_alarm(
    name: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assets = {"quickstart-chat": "smollm2", "quickstart": None}.get(name, "minilm")
    if assets and not (root / "runs/assets" / assets).is_dir():
        pytest.skip(f"python recipes/data/prepare.py {assets} unpacks it")
    monkeypatch.chdir(root)
    section = "SFTConfig" if name == "quickstart-chat" else "TrainingArguments"
    path = run(f"recipes/{name}.yaml", [f"{section}.output_dir={tmp_path / 'out'}", f"{section}.max_steps=4"])
    told = json.loads(path.read_text())
    assert (told["status"], told["steps"], told["out_of_memory"]) == ("finished", 4, [])
    output = capsys.readouterr().out
    assert "disable_guards" not in output and "skipped" not in output and "say nothing of new text" not in output
