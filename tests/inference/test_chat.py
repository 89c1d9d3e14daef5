"""`hf-recipes chat`: answers in a conversation, with prompts as training had them."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_recipes.commands import chat as command
from hf_recipes.errors import RecipeError
from hf_recipes.inference.chat import Base, Chat
from hf_recipes.inference.generate import prompt_ids
from hf_recipes.inference.trained import Found, Trained, find_trained, load_trained
from hf_recipes.recipe.recipe import Recipe
from hf_recipes.record import RecipeFacts, RunRecord
from hf_recipes.training.trainer import callbacks
from tests.support.tiny_models import CHATML, bpe, prepare

Enter = Callable[..., Path]
TURNS = ("How is the weather today?", "It is good.", "And the sea?", "The sea was calm, and the light was good.")
SYSTEM = {"role": "system", "content": "Be kind."}


def _conversations() -> list[list[dict[str, str]]]:
    roles = ("user", "assistant", "user", "assistant")
    turns = [{"role": role, "content": text} for role, text in zip(roles, TURNS, strict=True)]
    return [turns[:2], turns, [SYSTEM, *turns[:2]], [SYSTEM, *turns]]


def _templates() -> list[Path]:
    import trl

    return sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))


def _answers(labels: list[int]) -> Iterator[int]:
    """Where each run of labels begins."""
    return (i for i, label in enumerate(labels) if label != -100 and (i == 0 or labels[i - 1] == -100))


def is_beginning(ids: list[int], row: dict[str, list[int]], start: int, tokenizer: Any, answer: str) -> bool:
    """Whether a row of training begins with these ids, all before its loss are among them, and the answer is not."""
    count, tokens = len(ids), row["input_ids"]
    left = [tokenizer.decode(tokens[i:]).count(answer) for i in (start, count)]
    return ids == tokens[:count] and count >= start and left[0] == left[1]


def trained_with(recipe: Recipe, tokenizer: Any) -> Trained:
    """What a prompt is made from: no model is needed for it."""
    record = RunRecord(task="chat", recipe=RecipeFacts(sections=recipe.sections))
    found = Found(folder=Path("r"), task="chat", record=record, adapter=False)
    return Trained(found=found, model=None, tokenizer=tokenizer, positions=None)


def compare_prompts(template: Path) -> tuple[int, int, str]:
    """(prompts that were compared, those with other ids than training's, why training refuses the template or "")."""
    recipe = Recipe(path="r.yaml", sections={"task": "chat", "model": {}, "dataset": {}, "SFTConfig": {}}, locations={})
    tokenizer = bpe(TURNS, chat=template.read_text(encoding="utf-8"), length=100_000)
    trained = trained_with(recipe, tokenizer)
    compared, different, refused = 0, 0, ""
    for messages in _conversations():
        try:
            row = prepare(recipe, [{"messages": messages}], tokenizer, length=100_000).train[0]
        except RecipeError as problem:
            refused = str(problem)
            continue
        starts = list(_answers(row["labels"]))
        asked = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        for start, turn in zip(starts, asked, strict=True):
            compared += 1
            ids = prompt_ids(trained, {"messages": messages[:turn]})
            different += not is_beginning(ids, row, start, tokenizer, messages[turn]["content"])
    return compared, different, refused


@pytest.mark.parametrize("part", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 6))])
def test_a_prompt_has_the_token_ids_of_training_for_every_template_that_trl_ships(part: int) -> None:
    """Those that training refuses are no templates of texts, or rewrite earlier answers. idefics3 and smolvlm write no
    text of a message that is no list of parts, in training and here."""
    found = {path.stem: compare_prompts(path) for path in _templates()[part::6]}
    assert len(found) == 12
    assert {name: different for name, (_, different, _) in found.items() if different} == {}
    assert sum(compared for compared, _, _ in found.values()) > 40


THINKING = ("qwen3", "qwen3_5_think", "qwen3_5_nothink", "deepseekv3", "nemotron_3_nano", "gptoss", "llama3")


@pytest.mark.parametrize("name", THINKING)
def test_a_model_trained_on_completions_is_prompted_as_its_rows_begin(name: str) -> None:
    """And one whose loss was on every token: both read the tokenizer's own template, not TRL's version of it."""
    turns = _conversations()[0]
    columns = {"prompt_column": "prompt", "completion_column": "completion"}
    for dataset, training in ((columns, {}), ({}, {"assistant_only_loss": False})):
        sections = {"task": "chat", "model": {}, "dataset": dataset, "SFTConfig": training}
        recipe = Recipe(path="r.yaml", sections=sections, locations={})
        source = next(path for path in _templates() if path.stem == name).read_text(encoding="utf-8")
        tokenizer = bpe(TURNS, chat=source, length=100_000)
        data = {"prompt": turns[:1], "completion": turns[1:]} if dataset else {"messages": turns}
        row = prepare(recipe, [data], tokenizer, length=100_000).train[0]
        ids = prompt_ids(trained_with(recipe, tokenizer), {"messages": turns[:1]})
        said = tokenizer.decode(ids)
        assert ids == row["input_ids"][: len(ids)]
        assert TURNS[0] in said and TURNS[1] not in said
        assert said.count("<think>") == said.count("</think>")


@pytest.mark.parametrize("name", THINKING)
def test_a_sample_during_training_is_prompted_as_its_rows_begin(name: str) -> None:
    turns = _conversations()[0]
    sections = {"task": "chat", "model": {}, "dataset": {}, "SFTConfig": {}, "sample_prompts": [TURNS[0]]}
    recipe = Recipe(path="r.yaml", sections=sections, locations={})
    source = next(path for path in _templates() if path.stem == name).read_text(encoding="utf-8")
    tokenizer = bpe(TURNS, chat=source, length=100_000)
    found = prepare(recipe, [{"messages": turns}], tokenizer, length=100_000)
    [sample] = callbacks(recipe, tokenizer, None, print, found.sources["train"])
    assert sample._ids(TURNS[0]) == prompt_ids(trained_with(recipe, tokenizer), {"messages": turns[:1]})


def test_a_sample_of_a_model_trained_on_plain_pairs_has_no_template() -> None:
    sections = {"task": "chat", "model": {}, "dataset": {}, "SFTConfig": {}, "sample_prompts": [TURNS[0]]}
    recipe = Recipe(path="r.yaml", sections=sections, locations={})
    tokenizer = bpe(TURNS, chat=CHATML)
    found = prepare(recipe, [{"prompt": TURNS[0], "completion": TURNS[1]}], tokenizer)
    [sample] = callbacks(recipe, tokenizer, None, print, found.sources["train"])
    ids = sample._ids(TURNS[0])
    assert ids == tokenizer(TURNS[0])["input_ids"] == found.train[0]["input_ids"][: len(ids)]


@pytest.mark.parametrize("name", ["qwen3", "qwen2_5", "llama3_1"])
def test_a_row_with_tools_and_arguments_of_its_own_is_prompted_as_in_training(name: str) -> None:
    tool = {"type": "function", "function": {"name": "miles", "description": "How far.", "parameters": {}}}
    row = {"messages": _conversations()[0], "tools": [tool], "chat_template_kwargs": {"enable_thinking": False}}
    sections = {"task": "chat", "model": {}, "dataset": {"path": "json"}, "SFTConfig": {}}
    recipe = Recipe(path="r.yaml", sections=sections, locations={})
    source = next(path for path in _templates() if path.stem == name).read_text(encoding="utf-8")
    tokenizer = bpe(TURNS, chat=source, length=100_000)
    trained = prepare(recipe, [row], tokenizer, length=100_000).train[0]["input_ids"]
    for tools in ([tool], json.dumps([tool])):
        ids = prompt_ids(trained_with(recipe, tokenizer), {**row, "tools": tools})
        assert ids == trained[: len(ids)]
        assert "How far." in tokenizer.decode(ids)


def test_the_messages_of_stdin_are_answered_in_one_conversation(
    enter_run: Enter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    enter_run("chat")
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello there\nAnd now?\n/reset\nHello there\n/exit\nnever asked\n"))
    command.command("out", max_new_tokens=6)
    answers = capsys.readouterr().out.splitlines()
    trained = load_trained(find_trained("out"))
    chat, parts = Chat(trained=trained, given={"max_new_tokens": 6}), []
    said = [chat.ask(text, parts.append) for text in ("Hello there", "And now?")]
    assert "".join(parts) == "".join(said)
    assert "\n".join(answers) == "\n".join([said[0], said[1], said[0]]).rstrip("\n")
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2
    assert chat.messages[1]["content"] == said[0]


@pytest.mark.slow
def test_the_base_model_answers_beside_an_adapter_and_is_not_kept(enter_run: Enter) -> None:
    enter_run("chat", lora=True)
    trained = load_trained(find_trained("out"))
    chat, parts = Chat(trained=trained, given={"max_new_tokens": 8}, system="Be kind."), []
    answer = chat.ask("Hello there", parts.append, beside=Base(trained))
    text = "".join(parts)
    base = load_trained(find_trained("base", "chat"))
    plain = Chat(trained=base, given={"max_new_tokens": 8}, system="Be kind.")
    assert text == f"base: {plain.ask('Hello there', lambda part: None)}\ntrained: {answer}"
    assert len(chat.messages) == 2


def test_a_conversation_longer_than_the_model_reads_loses_its_oldest_turns(enter_run: Enter) -> None:
    enter_run("chat")
    trained = load_trained(find_trained("out"))
    chat = Chat(trained=trained, given={"max_new_tokens": 4}, system="Be kind.")
    for _ in range(6):
        chat.ask("a message that has some words in it", lambda part: None)
    ids = chat.ids()
    assert trained.positions is not None and len(ids) < trained.positions
    assert "Be kind." in trained.tokenizer.decode(ids)


def test_a_classifier_does_not_chat(enter_run: Enter) -> None:
    enter_run("text-classification")
    with pytest.raises(RecipeError) as raised:
        command.command("out")
    assert str(raised.value) == "out: a model for text classification does not answer; use `hf-recipes predict`"
