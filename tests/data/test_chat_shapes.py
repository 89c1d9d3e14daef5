"""Rows as people have them: ShareGPT, Alpaca, tools, content parts, templates of the recipe; what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trl

from hf_recipes.data.generated import generate_splits
from hf_recipes.data.prepared import Prepared
from hf_recipes.recipe.recipe import Recipe
from tests.support.tiny_models import bpe, prepare, refusal

Make = Callable[..., Recipe]

TOOLS = (  # of the cases: no marks, tools, null content
    "{%- if tools %}<|im_start|>system\nYou may call: {% for t in tools %}{{ t.function.name }} {% endfor %}"
    "<|im_end|>\n{% endif %}{%- for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content if m.content else '' }}{% if m.tool_calls %}{% for c in m.tool_calls %}"
    "<tool_call>{{ c.function.name }} {{ c.function.arguments | tojson }}</tool_call>{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINK = TOOLS.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")
SYSTEM = "{% if messages[0].role != 'system' %}<|im_start|>system\nI am AI.<|im_end|>\n{% endif %}" + TOOLS
CALL = {"type": "function", "function": {"name": "miles", "arguments": {"stop": 3}}}
TOOL = {"type": "function", "function": {"name": "miles", "parameters": {"type": "object", "properties": {}}}}
ASKED = {"role": "user", "content": "How far?"}
ANSWER = {"role": "assistant", "content": "3 miles."}
USER = "<|im_start|>user\nHow far?<|im_end|>\n"
WHOLE = f"{USER}<|im_start|>assistant\n3 miles.<|im_end|>\n"


@pytest.fixture
def chat(make: Make) -> Callable[..., tuple[str, list[str]]]:
    """The text of the first row and its answers, as they are trained on."""

    def read(row: dict, dataset: str = "", template: str = TOOLS, path: str = "json") -> tuple[str, list[str]]:
        tokenizer = bpe(chat=template, length=10**6)
        recipe = make("chat", dataset, section="SFTConfig", path=path)
        found: Prepared = prepare(recipe, [row], tokenizer, length=4096)
        ids, labels = found.train["input_ids"][0], found.train["labels"][0]
        answers: list[list[int]] = [[]]
        for label in labels:
            answers = [*answers, []] if label == -100 else [*answers[:-1], [*answers[-1], label]]
        return tokenizer.decode(ids), [tokenizer.decode(part) for part in answers if part]

    return read


@pytest.mark.parametrize(
    ("row", "dataset"),
    [
        ({"conversations": [{"from": "human", "value": "How far?"}, {"from": "gpt", "value": "3 miles."}]}, ""),
        (
            {"talk": [{"from": "user", "value": "How far?"}, {"from": "assistant", "value": "3 miles."}]},
            "messages_column: talk",
        ),
        ({"conversations": [ASKED, ANSWER]}, ""),
        ({"messages": json.dumps([ASKED, ANSWER])}, ""),  # a column of JSON texts, as CSV has it
        ({"instruction": "How far?", "input": "", "output": "3 miles."}, ""),
        ({"instruction": "How far?", "input": None, "output": "3 miles."}, ""),
        ({"instruction": "How", "response": "3 miles.", "context": "far?"},
         "user_template: '{{instruction}} {{context}}', assistant_template: '{{response}}'"),
        ({"q": "far", "a": 3, "note": [1]}, "user_template: 'How {{ q }}?', assistant_template: '{{ a }} miles.'"),
        ({"messages": [{**ASKED, "content": [{"type": "text", "text": "How"}, {"type": "text", "text": " far?"}]},
                       {**ANSWER, "content": [{"type": "text", "text": "3 miles."}]}]}, ""),
        ({"messages": [ASKED, {"role": "bot", "content": "3 miles."}]}, "role_names: {bot: assistant}"),
        ({"messages": [ASKED, {**ANSWER, "tool_calls": None, "name": None}], "tools": None}, ""),
    ],
)  # fmt: skip
def test_each_shape_of_rows_becomes_the_same_conversation(chat: Any, row: dict, dataset: str) -> None:
    assert chat(row, dataset) == (WHOLE, ["3 miles.<|im_end|>"])


def test_alpacas_input_follows_the_instruction_and_its_system_and_history_come_before(chat: Any) -> None:
    row = {"instruction": "How", "input": "far?", "output": "3", "system": "Be kind.", "history": [["a", "b"]]}
    text, answers = chat(row)
    assert text == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nHow\nfar?<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n"
    )
    assert answers == ["b<|im_end|>", "3<|im_end|>"]


def test_the_tools_of_a_row_are_rendered_and_a_call_without_content_is_an_answer(chat: Any) -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    talk = [ASKED, called, {"role": "tool", "name": "miles", "content": "3"}, ANSWER]
    expected = ['<tool_call>miles {"stop": 3}</tool_call><|im_end|>', "3 miles.<|im_end|>"]
    for tools in ([TOOL], json.dumps([TOOL]), [json.dumps(TOOL)]):
        text, answers = chat({"messages": talk, "tools": tools})
        assert text.startswith("<|im_start|>system\nYou may call: miles <|im_end|>\n")
        assert answers == expected
    row = {
        "conversations": [
            {"from": "human", "value": "How far?"},
            {"from": "function_call", "value": json.dumps(CALL["function"])},
            {"from": "observation", "value": "3"},
            {"from": "gpt", "value": "3 miles."},
        ],
        "functions": json.dumps([TOOL]),
    }
    text, answers = chat(row, "tools_column: functions")
    assert text.startswith("<|im_start|>system\nYou may call: miles <|im_end|>\n")
    assert answers == expected


def test_what_stands_in_every_tool_because_of_arrow_is_not_rendered(chat: Any) -> None:
    padded = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"stop": 3, "city": None}}}]}
    _, answers = chat({"messages": [ASKED, padded]}, path="parquet")
    assert answers == ['<tool_call>f {"stop": 3}</tool_call><|im_end|>']


def test_variables_of_the_template_come_from_the_recipe_and_from_the_row(chat: Any) -> None:
    template = "{{ style }}|{% if brief %}brief|{% endif %}" + TOOLS
    row = {"messages": [ASKED, ANSWER]}
    assert chat(row, "chat_template_kwargs: {style: plain}", template)[0] == "plain|" + WHOLE
    row["chat_template_kwargs"] = {"style": "own", "brief": True}
    assert chat(row, "chat_template_kwargs: {style: plain}", template)[0] == "own|brief|" + WHOLE


def test_a_generation_prompt_that_opens_thinking_hides_no_answer(chat: Any) -> None:
    talk = [ASKED, ANSWER, ASKED, {"role": "assistant", "content": "<think>\nso far\n</think>\nstill 3"}]
    answers = chat({"messages": talk}, template=THINK)[1]
    assert answers == ["3 miles.<|im_end|>", "so far\n</think>\nstill 3<|im_end|>"]  # <think> is in the prompt


@pytest.mark.parametrize("first", ["I", "AI", "assistant", "", "I am AI."])
def test_an_answer_that_opens_the_conversation_is_not_searched_in_the_system_message(chat: Any, first: str) -> None:
    talk = [{"role": "assistant", "content": first}, ASKED, ANSWER]
    text, answers = chat({"messages": talk}, template=SYSTEM)
    assert text.startswith("<|im_start|>system\nI am AI.<|im_end|>\n<|im_start|>assistant\n")
    assert answers == [f"{first}<|im_end|>", "3 miles.<|im_end|>"]


@pytest.mark.parametrize(
    ("rows", "dataset", "expected"),
    [
        (
            [[ASKED, ANSWER], [ASKED, {**ANSWER, "role": "Assistant"}], [ASKED, {**ANSWER, "role": "Assistant"}]],
            "",
            "row 1 of the train split: message 1 has the role 'Assistant', which is none of system, developer, user, "
            "assistant, tool (2 of 3 rows); correct it, or write role_names: {Assistant: assistant} into the dataset "
            "section",
        ),
        (
            [[{**ASKED, "role": "User"}, {**ANSWER, "role": "Agent"}]],
            "",
            "row 0 of the train split: message 0 has the role 'User', which is none of system, developer, user, "
            "assistant, tool (1 of 1 rows); correct it, or write role_names: {User: user, Agent: assistant} into the "
            "dataset section",
        ),
        (
            [[ASKED, ANSWER], [{**ASKED, "content": None}, ANSWER]],
            "",
            "row 1 of the train split: message 0 (user) has no content (1 of 2 rows); "
            "give it a text, or remove such rows",
        ),
        (
            [[{"speaker": "me", "text": "How far?"}]],
            "",
            "row 0 of the train split: message 0 has no role (it has speaker, text) (1 of 1 rows); "
            "give each message role and content, or from and value",
        ),
        ([[ASKED, ANSWER], []], "", "row 1 of the train split: has no messages (1 of 2 rows); "
         "name the column of the messages with dataset.messages_column"),
        (
            [[{**ASKED, "content": [{"type": "image", "url": "a.png"}]}]],
            "",
            "row 0 of the train split: message 0 has a content part of type 'image': only texts are trained here "
            "(1 of 1 rows); remove such parts, or such rows",
        ),
        (
            [[ASKED, ANSWER]],
            "user_template: '{{ question }}', assistant_template: '{{ messages }}'",
            "dataset.user_template reads 'question', and the data has no such column (it has messages); "
            "correct the template",
        ),
        (
            [[ASKED, ANSWER]],
            "user_template: '{{ messages ', assistant_template: 'a'",
            "this is no Jinja template: unexpected end of template, expected 'end of print statement'.; "
            "write {{ name_of_a_column }}",
        ),
    ],
)  # fmt: skip
def test_a_row_that_is_no_conversation_is_refused_with_its_number_and_count(
    make: Make, rows: list, dataset: str, expected: str
) -> None:
    recipe = make("chat", dataset, section="SFTConfig")
    found = refusal(recipe, [{"messages": talk} for talk in rows], bpe(chat=TOOLS), 512)
    assert found == f"recipe.yaml:3: {expected}"


@pytest.mark.parametrize(
    ("row", "arguments", "expected"),
    [
        (
            {"messages": [ASKED, ANSWER]},
            "completion_only_loss: false",
            "completion_only_loss is for rows of prompt and completion, and these are conversations; "
            "write assistant_only_loss: false",
        ),
        (
            {"messages": [ASKED, ANSWER]},
            "completion_only_loss: true",
            "completion_only_loss is for rows of prompt and completion, and these are conversations; "
            "leave it out: the loss is on the answers",
        ),
        (
            {"prompt": "How far?", "completion": " 3"},
            "assistant_only_loss: true",
            "assistant_only_loss: true is for conversations, and these rows are plain texts; "
            "leave it out: the loss is on the completion",
        ),
    ],
)
def test_a_loss_that_these_rows_cannot_have_is_refused(make: Make, row: dict, arguments: str, expected: str) -> None:
    recipe = make("chat", section="SFTConfig", arguments=arguments)
    assert refusal(recipe, [row], bpe(chat=TOOLS), 512) == f"recipe.yaml:4: {expected}"


@pytest.mark.parametrize(
    "dataset",
    [
        "user_template: '{{ q }}', assistant_template: '{{ a }}'",
        "messages_column: talk, tools_column: functions, system_column: rules",
    ],
)
def test_a_smoke_run_has_rows_of_the_recipes_columns(make: Make, dataset: str) -> None:
    recipe = make("chat", dataset, section="SFTConfig")
    found = prepare(recipe, generate_splits(recipe).train, bpe(chat=TOOLS), length=512)
    assert found.stats["train"].rows == 256


@pytest.mark.parametrize("name", ["idefics3", "smolvlm", "llava_next"])
def test_a_template_for_images_that_writes_no_text_is_refused_for_that_reason(make: Make, name: str) -> None:
    source = (Path(trl.__file__).parent / f"chat_templates/{name}.jinja").read_text(encoding="utf-8")
    rows = [{"messages": [{"role": "user", "content": "how far?"}, {"role": "assistant", "content": "not far"}]}]
    assert refusal(make("chat", section="SFTConfig"), rows, bpe(chat=source)) == (
        "recipe.yaml:2: the chat template writes contents that are lists of parts, as of images, and nothing of a "
        "text; give a template for texts with SFTConfig.chat_template_path"
    )


def test_messages_written_as_pythons_text_are_read(chat: Any) -> None:
    assert chat({"messages": str([ASKED, ANSWER])}) == chat({"messages": [ASKED, ANSWER]})


@pytest.mark.parametrize(("key", "value", "shown"), [("weight", 0, "0"), ("train", False, "false")])
def test_an_answer_that_is_marked_as_not_learned_is_refused_and_not_learned_in_silence(
    make: Make, key: str, value: Any, shown: str
) -> None:
    rows = [{"messages": [ASKED, {**ANSWER, key: value}, ASKED, ANSWER]}]
    assert refusal(make("chat", section="SFTConfig"), rows, bpe(chat=TOOLS)) == (
        f"recipe.yaml:3: row 0 of the train split: message 1 has {key}: {shown}, and every answer is learned here "
        f"(1 of 1 rows); make it the end of a prompt (columns prompt and completion), or remove {key}"
    )
    fine = [{"messages": [{**ASKED, key: value}, {**ANSWER, key: type(value)(1)}]}]
    assert prepare(make("chat", section="SFTConfig"), fine, bpe(chat=TOOLS)).train.num_rows == 1
