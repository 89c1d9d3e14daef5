"""chat: the loss is on the answers only, as TRL and {% generation %} marks would place it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from hf_recipes.data.prepared import Prepared
from hf_recipes.recipe.recipe import Recipe
from tests.support.tiny_models import CHATML, bpe, prepare, refusal, save_llama, wordpiece

Make = Callable[..., Recipe]


TALK = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "good day"},
    {"role": "user", "content": "is it?"},
    {"role": "assistant", "content": "it is"},
]


def chat_rows(found: Prepared) -> list[tuple[list[int], list[int]]]:
    return list(zip(found.train["input_ids"], found.train["labels"], strict=True))


def answers(found: Prepared, tokenizer: Any) -> list[str]:
    return [tokenizer.decode([i for i in labels if i != -100]) for labels in found.train["labels"]]


def upstream_masks(tokenizer: Any, talks: list[list[dict]]) -> list[tuple[list[int], list[int]]]:
    """What TRL's assistant_only_loss does with a template that has {% generation %} marks."""
    found = []
    for talk in talks:
        encoded = tokenizer.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
        marked = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
        found.append((list(encoded["input_ids"]), [i if mask else -100 for i, mask in marked]))
    return found


def test_answers_are_found_as_generation_marks_would_find_them(make: Make) -> None:
    tokenizer = bpe(chat=CHATML)
    system = {"role": "system", "content": "be short"}
    talks = [TALK, [system, *TALK], TALK[:2], [TALK[0], {"role": "assistant", "content": "  blanks\n\nand 😀 lines\n"}]]
    found = prepare(make("chat", section="SFTConfig"), [{"messages": talk} for talk in talks], tokenizer, length=512)
    assert chat_rows(found) == upstream_masks(tokenizer, talks)


def test_masks_equal_those_of_trls_own_trainer(make: Make, folder: Path) -> None:
    from trl import SFTConfig, SFTTrainer

    tokenizer = bpe(chat=CHATML, bos=True)
    save_llama(folder / "model", tokenizer)
    kinds: list[tuple[list[dict], dict]] = [
        ([{"messages": TALK}, {"messages": TALK[:2]}], {"assistant_only_loss": True}),
        ([{"prompt": "the sea", "completion": " was calm"}, {"prompt": "a ", "completion": "day"}], {}),
    ]
    for rows, arguments in kinds:
        arguments = {"output_dir": "out", "use_cpu": True, "bf16": False, "report_to": "none", **arguments}
        args = SFTConfig(activation_checkpointing=False, **arguments)
        theirs = SFTTrainer(
            str(folder / "model"), args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )
        found = prepare(make("chat", section="SFTConfig"), rows, tokenizer, length=512)
        trl_rows = theirs.train_dataset
        assert chat_rows(found) == list(zip(trl_rows["input_ids"], trl_rows["labels"], strict=True))


@pytest.mark.assets
def test_masks_equal_generation_marks_in_smollm2s_template(make: Make, root: Path) -> None:
    from transformers import AutoTokenizer

    model = root / "runs/assets/smollm2"
    if not model.is_dir():
        pytest.skip("python recipes/data/prepare.py smollm2 unpacks it")
    tokenizer = AutoTokenizer.from_pretrained(model)
    own = tokenizer.chat_template
    rows = Dataset.from_json(str(root / "runs/assets/chitchat/validation.jsonl")).select(range(64))
    ours = chat_rows(prepare(make("chat", section="SFTConfig"), rows, tokenizer, length=4096))
    plain = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    assert plain in own
    marked = (
        "{% if message['role'] == 'assistant' %}{{'<|im_start|>assistant\n'}}{% generation %}"
        "{{message['content'] + '<|im_end|>'}}{% endgeneration %}{{'\n'}}{% else %}" + plain + "{% endif %}"
    )
    tokenizer.chat_template = own.replace(plain, marked)
    assert ours == upstream_masks(tokenizer, list(rows["messages"]))


def test_prompt_and_completion_put_the_loss_on_the_completion_and_its_end(make: Make) -> None:
    tokenizer = bpe(bos=True, chat=CHATML)
    found = prepare(make("chat", section="SFTConfig"), [{"prompt": "the sea", "completion": " was calm"}], tokenizer)
    (ids, labels) = chat_rows(found)[0]
    assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
    assert answers(found, tokenizer) == [" was calm<|endoftext|>"]
    assert labels[-1] == tokenizer.eos_token_id == ids[-1]
    assert found.row_bytes["eval"] == [len(" was calm")]


@pytest.mark.parametrize("prompt", ["a", ""])
def test_the_counts_of_an_answer_leave_out_a_token_that_nothing_predicts(make: Make, prompt: str) -> None:
    tokenizer = bpe(chat=CHATML)
    completion = "sea was calm"
    ids = tokenizer(completion)["input_ids"]
    found = prepare(make("chat", section="SFTConfig"), [{"prompt": prompt, "completion": completion}], tokenizer)
    first = "" if prompt else tokenizer.decode(ids[:1])  # the first token of a row is given, not predicted
    assert found.row_bytes["eval"] == [len(completion) - len(first)]
    stats = found.stats["train"]
    assert stats.label_tokens == len(ids) + 1 - (not prompt)
    assert (stats.rows, stats.tokens, stats.longest) == (1, *[len(ids) + 1 + len(tokenizer(prompt)["input_ids"])] * 2)
    assert (found.stats["eval"].bytes, stats.lost_label_tokens) == (len(completion) - len(first), 0)


@pytest.mark.parametrize(
    ("rows", "other", "expected"),
    [
        (
            {"messages": TALK},
            {"talks": TALK},
            "the data has no column 'messages' (it has talks); name it with dataset.messages_column",
        ),
        (
            {"prompt": "the sea", "completion": " was calm"},
            {"prompt": "the sea", "answer": " was calm"},
            "the data has no column 'completion' (it has prompt, answer); name it with dataset.completion_column",
        ),
    ],
)
def test_an_evaluation_split_with_other_columns_is_refused(make: Make, rows: dict, other: dict, expected: str) -> None:
    recipe = make("chat", section="SFTConfig")
    assert refusal(recipe, [rows], bpe(chat=CHATML), 512, held_out=[other]) == f"recipe.yaml:3: {expected}"


def test_an_end_token_that_the_tokenizer_wrote_carries_the_loss_and_is_not_written_twice(make: Make) -> None:
    tokenizer = wordpiece(["the", "sea"])
    tokenizer.eos_token = "[SEP]"
    found = prepare(make("chat", section="SFTConfig"), [{"prompt": "the", "completion": " sea"}], tokenizer)
    (ids, labels) = chat_rows(found)[0]
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "the", "sea", "[SEP]"]
    assert labels == [-100, -100, *ids[2:]]


def test_a_space_at_the_end_of_the_prompt_does_not_hide_the_answers_first_word(make: Make) -> None:
    tokenizer = bpe(chat=CHATML)
    found = prepare(make("chat", section="SFTConfig"), [{"prompt": "the sea ", "completion": "was"}], tokenizer)
    assert answers(found, tokenizer) == [" was<|endoftext|>"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", "it is<|im_end|>\n"),  # all that follows the prompt, as in TRL
        ("assistant_only_loss: true", "it is<|im_end|>"),
    ],
)
def test_answers_of_the_prompt_are_no_completion(make: Make, arguments: str, expected: str) -> None:
    tokenizer = bpe(chat=CHATML)
    rows = [{"prompt": TALK[:3], "completion": TALK[3:]}]
    found = prepare(make("chat", section="SFTConfig", arguments=arguments), rows, tokenizer, length=512)
    assert answers(found, tokenizer) == [expected]


def test_a_conversation_that_the_assistant_opens_keeps_the_templates_system_message_out(make: Make) -> None:
    tokenizer = bpe(chat=CHATML)
    talk = [{"role": "assistant", "content": "hello you"}, *TALK]
    found = prepare(make("chat", section="SFTConfig"), [{"messages": talk}], tokenizer, length=512)
    assert chat_rows(found) == upstream_masks(tokenizer, [talk])


@pytest.mark.parametrize(
    ("arguments", "row"),
    [
        ("assistant_only_loss: false", {"messages": TALK}),
        ("completion_only_loss: false", {"prompt": "the sea", "completion": " was calm"}),
    ],
)
def test_loss_on_everything_where_the_recipe_says_so(make: Make, arguments: str, row: dict) -> None:
    found = prepare(make("chat", section="SFTConfig", arguments=arguments), [row], bpe(chat=CHATML), length=512)
    assert found.train["labels"] == list(found.train["input_ids"])


def test_the_first_row_is_shown_with_its_answers_marked(make: Make) -> None:
    found = prepare(make("chat", section="SFTConfig"), [{"messages": TALK[:2]}], bpe(chat=CHATML), length=512)
    assert found.notes == (
        "the first row; the loss is on the parts marked >>",
        "     <|im_start|>system\\nBe kind.<|im_end|>\\n<|im_start|>user\\nhello<|im_end|>\\n<|im_start|>assistant\\n",
        "  >> good day<|im_end|>",
        "     \\n",
    )


def test_rows_whose_answer_is_cut_off_are_left_out_and_counted(make: Make) -> None:
    tokenizer = bpe(chat=CHATML)
    rows = [
        {"prompt": "the sea", "completion": " was calm"},
        {"prompt": "the sea " * 40, "completion": "was calm"},
        {"prompt": "the", "completion": " sea" * 40},
    ]
    found = prepare(make("chat", section="SFTConfig"), rows, tokenizer, length=24)
    assert len(found.train) == 2
    lost = 41 - len([i for i in found.train["labels"][1] if i != -100])
    share = lost / (lost + found.stats["train"].label_tokens)
    assert found.notes[:2] == (
        "train: 1 rows left out: no answer within 24 tokens",
        f"train: {share:.1%} of the answer tokens are beyond 24 tokens and are cut off",
    )


FORGETFUL = (
    "{% for message in messages %}{{ message['role'] + ': ' }}"
    "{% if loop.last or message['role'] == 'user' %}{{ message['content'] }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
STRICT = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('a user speaks first') }}{% endif %}" + CHATML


@pytest.mark.parametrize(
    ("rows", "template", "expected"),
    [
        (
            [{"messages": TALK}],
            FORGETFUL,
            "row 0 of the train split: the chat template rewrites earlier turns, so the answers cannot be located; "
            "give single-turn rows, or another template with SFTConfig.chat_template_path",
        ),
        (
            [{"messages": TALK}, {"messages": TALK[1:]}],
            STRICT,
            "row 1 of the train split: the chat template rejects it: a user speaks first; "
            "fix the row, or give another template with SFTConfig.chat_template_path",
        ),
        (
            [{"messages": [{"from": "human", "value": "hello"}]}],
            CHATML,
            "no row of the train split has an answer: no message has the role 'assistant', or all are empty; "
            "check the roles, or name the columns",
        ),
        (
            [{"messages": [TALK[0], {"role": "assistant", "content": None}]}],
            CHATML,
            "row 0 of the train split: message 1 (assistant) has no content (1 of 1 rows); "
            "give it a text, or remove such rows",
        ),
        (
            [{"prompt": TALK[:1], "completion": "hello"}],
            CHATML,
            "row 0 of the train split: prompt and completion must be texts in all rows, or lists of messages in all "
            "rows (1 of 1 rows); name the columns with dataset.prompt_column and dataset.completion_column",
        ),
        (
            [{"prompt": "hello", "completion": None}],
            CHATML,
            "row 0 of the train split: the column 'completion' has no text (null) (1 of 1 rows); remove such rows",
        ),
        (
            [{"question": "hello", "answer": "you"}],
            CHATML,
            "the data has neither a messages column nor prompt and completion (it has question, answer); "
            "name them with dataset.messages_column, or dataset.prompt_column and dataset.completion_column, or write "
            "dataset.user_template and dataset.assistant_template",
        ),
    ],
)
def test_chat_refuses_what_has_no_right_mask(make: Make, rows: list, template: str, expected: str) -> None:
    assert refusal(make("chat", section="SFTConfig"), rows, bpe(chat=template)) == f"recipe.yaml:3: {expected}"


def test_a_conversation_without_an_answer_is_refused_as_one(make: Make) -> None:
    recipe = make("chat", section="SFTConfig", arguments="max_length: 16")
    row = {"messages": [{"role": "user", "content": "hello"}]}
    assert refusal(recipe, [row], bpe(chat=CHATML), length=16) == (
        "recipe.yaml:3: no row of the train split has an answer: no message has the role 'assistant', or all are "
        "empty; "
        "check the roles, or name the columns"
    )


def test_labels_that_are_all_masked_are_refused(make: Make) -> None:
    recipe = make("chat", section="SFTConfig", arguments="max_length: 16")
    row = {"prompt": "the sea " * 40, "completion": "was"}
    assert refusal(recipe, [row], bpe(chat=CHATML), length=16) == (
        "recipe.yaml:4: no row of the train split has an answer token within max_length 16: all labels are masked; "
        "raise SFTConfig.max_length or check the columns"
    )
