"""Tokens that a recipe adds, and single rows that an adapter trains: they learn, and plain peft reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM

from hf_recipes.errors import RecipeError
from hf_recipes.inference.merge import merge
from hf_recipes.inference.trained import find_trained, load_trained
from hf_recipes.models import build
from hf_recipes.pipeline.run import run
from tests.support.tiny_models import CHATML, bpe, save_bert, save_llama, write_rows

Write = Callable[..., str]
NEW = "tokenizer: {extra_special_tokens: {a_token: <|tool|>, b_token: <|note|>}}\n"
BOTH = "modules_to_save: [embed_tokens, lm_head]"


@pytest.fixture
def chat(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[list[torch.Tensor]]]:
    """./tied and ./untied (Llamas whose output layer is the embedding, and is not), rows with the new tokens in them;
    the models that runs build, and the rows of their embedding and output layer before training."""
    tokenizer = bpe(chat=CHATML)
    talk = [{"role": "user", "content": "how far? <|tool|>"}, {"role": "assistant", "content": "<|note|> not far"}]
    write_rows(folder / "rows.jsonl", [{"messages": talk}] * 8)
    for name in ("tied", "untied"):
        save_llama(folder / name, tokenizer, tied=name == "tied")
    models: list[Any] = []
    begun: list[list[torch.Tensor]] = []
    build_model = build.build_model

    def kept(*arguments: Any) -> Any:
        models.append(build_model(*arguments))
        begun.append(rows_of(models[-1]))
        return models[-1]

    monkeypatch.setattr(build, "build_model", kept)
    return models, begun


def text_of(model: str, lora: str, more: str = NEW) -> str:
    return (
        f"task: chat\nmodel: {{pretrained_model_name_or_path: ./{model}}}\n{more}"
        "dataset: {path: json, data_files: rows.jsonl, test_size: 2}\n"
        "SFTConfig: {output_dir: out, max_steps: 3, learning_rate: 1e-2, logging_steps: 1, report_to: none}\n"
        f"LoraConfig: {{r: 2, target_modules: [q_proj]{', ' if lora else ''}{lora}}}\n"
    )


def rows_of(model: Any) -> list[torch.Tensor]:
    """A copy of the rows of the embedding and of the output layer, as the model computes with them."""
    return [layer.weight.detach().clone() for layer in (model.get_input_embeddings(), model.get_output_embeddings())]


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(torch.tensor([ids])).logits


@pytest.mark.parametrize(
    ("model", "lora", "more"),
    [
        ("tied", "", NEW),
        ("untied", "", NEW),
        ("tied", "trainable_token_indices: {embed_tokens: [5, 6]}", ""),
        ("tied", BOTH, NEW),
        pytest.param("tied", "trainable_token_indices: [5]", NEW, marks=pytest.mark.slow),
        pytest.param("untied", "trainable_token_indices: {model.embed_tokens: [5]}", NEW, marks=pytest.mark.slow),
        pytest.param("tied", "modules_to_save: [embed_tokens], ensure_weight_tying: true", NEW, marks=pytest.mark.slow),
        pytest.param("untied", BOTH, NEW, marks=pytest.mark.slow),
        pytest.param("untied", "modules_to_save: [lm_head]", NEW, marks=pytest.mark.slow),
        pytest.param("tied", "modules_to_save: [embed_tokens]", "", marks=pytest.mark.slow),
    ],
)
def test_new_tokens_and_single_rows_are_trained_saved_and_read_by_plain_peft(
    chat: tuple[list[Any], list[list[torch.Tensor]]], write_recipe: Write, model: str, lora: str, more: str
) -> None:
    record = json.loads(run(write_recipe(text_of(model, lora, more))).read_text())
    assert record["status"] == "finished"
    [trained], [begun] = chat
    again = AutoPeftModelForCausalLM.from_pretrained("out")
    count = len(begun[0])
    learned = [count - 2, count - 1] if more else [5]
    for old, new in zip(begun, rows_of(trained), strict=True):
        assert (more == "" and "modules" in lora) or all(not torch.equal(old[row], new[row]) for row in learned)
    ids = [*range(4, 9), count - 2, count - 1]
    expected = logits(trained, ids)
    assert torch.equal(logits(again, ids), expected)
    assert torch.equal(logits(load_trained(find_trained("out")).model, ids), expected)
    merged = merge(find_trained("out"), "merged", say=lambda line: None)
    assert merged.difference < 1e-5


def test_one_of_two_layers_that_share_their_weight_cannot_learn_new_tokens_alone(
    chat: tuple[list[Any], list[list[torch.Tensor]]], write_recipe: Write
) -> None:
    with pytest.raises(RecipeError) as raised:
        run(write_recipe(text_of("tied", "modules_to_save: [lm_head]")))
    assert str(raised.value) == (
        "recipe.yaml:6: embed_tokens and lm_head share their weight, and only lm_head is trained: the rows of 2 new "
        "tokens in embed_tokens would stay random; write modules_to_save: [embed_tokens, lm_head], or "
        "ensure_weight_tying: true"
    )


def test_an_encoders_adapter_learns_new_tokens_too(folder: Path, write_recipe: Write) -> None:
    save_bert(folder / "encoder", bpe())
    write_rows(
        folder / "rows.jsonl", [{"text": f"<|tool|> it is {i}", "label": ("no", "yes")[i % 2]} for i in range(8)]
    )
    write_recipe(
        f"task: text-classification\nmodel: {{pretrained_model_name_or_path: ./encoder}}\n{NEW}"
        "dataset: {path: json, data_files: rows.jsonl, test_size: 2}\n"
        "TrainingArguments: {output_dir: out, max_steps: 3, learning_rate: 1e-2, report_to: none}\n"
        "LoraConfig: {r: 2, target_modules: [query]}\n"
    )
    record = json.loads(run("recipe.yaml").read_text())
    assert "LoraConfig.trainable_token_indices: with the new tokens' rows of word_embeddings (340 to 341)" in (
        record["choices"] + record["notes"]
    )
    assert load_trained(find_trained("out")).model.get_input_embeddings().weight.shape[0] == 342
