"""Where the loss is: as {% generation %} marks place it, with and without them, and as TRL places it."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trl
from datasets import Dataset

from hf_recipes.data.chat_template import read_template
from hf_recipes.data.chat_tokens import find_tokens
from hf_recipes.recipe.recipe import Recipe
from tests.support.tiny_models import CHATML, bpe, prepare, save_llama

Make = Callable[..., Recipe]
SEED = 20261127
SHIPPED = Path(trl.__file__).parent / "chat_templates"
WORDS = [
    "the",
    "sea",
    "I",
    "AI",
    "assistant",
    "user",
    "system",
    "be",
    "kind",
    "helpful",
    "You",
    "are",
    "<think>",
    "model",
    "end",
    "start",
    "1",
    "2",
]
ENDS = ["<|eot_id|>", "<|end|>", "<end_of_turn>", "<start_of_turn>", "<|start_header_id|>", "<|end_header_id|>"]
OWN_MARKS = {  # where TRL's marks hold the line break after an answer, the end of its turn is what is meant here
    "'<end_of_turn>\\n' -}}\n        {%- endgeneration -%}": "'<end_of_turn>' -}}{%- endgeneration -%}{{- '\\n' -}}",
    "'<|im_end|>\\n' }}\n        {%- endgeneration %}": "'<|im_end|>' }}{%- endgeneration %}{{- '\\n' }}",
    "'<|end|>\\n' }}\n        {%- endgeneration %}": "'<|end|>' }}{%- endgeneration %}{{- '\\n' }}",
    "{%- generation %}\n    {{- eos_token }}\n    {%- endgeneration %}": "{{- eos_token }}",
}


def shipped(name: str) -> str:
    return (SHIPPED / f"{name}.jinja").read_text(encoding="utf-8")


def marked(name: str) -> str:
    source = CHATML if name == "chatml" else shipped(f"{name}_training")
    for theirs, ours in OWN_MARKS.items():
        source = source.replace(theirs, ours)
    return source


def without_marks(source: str) -> str:
    """The same text: each mark becomes an `if true` with the same trimming of blanks."""

    def plain(mark: re.Match[str]) -> str:
        return f"{{%{mark[1]} {'endif' if mark[2] else 'if true'} {mark[3]}%}}"

    return re.sub(r"\{%(-?)\s*(end)?generation\s*(-?)%\}", plain, source)


@cache
def tokenizer_without_template() -> Any:
    tokenizer = bpe(WORDS * 3, bos=True, length=10**6)
    tokenizer.add_special_tokens({"additional_special_tokens": ENDS})
    return tokenizer


def tokenizer_of(template: str) -> Any:
    tokenizer = copy.deepcopy(tokenizer_without_template())
    tokenizer.chat_template = template
    return tokenizer


def words(draw: random.Random) -> str:
    """Empty, short, a word of the headers, or a sentence, sometimes with blanks and line breaks around it."""
    chance = draw.random()
    if chance < 0.07:
        return ""
    if chance < 0.2:
        return draw.choice(["I", "a", "Yes.", "assistant", "user", "\n", "  hi  ", "Be kind."])
    text = " ".join(draw.choices(WORDS, k=draw.randint(1, 8)))
    return f"\n{text} \n\n" if draw.random() < 0.2 else text


def conversations(count: int, strict: bool) -> Iterator[list[dict]]:
    """Random conversations; `strict`: user and assistant in turn without a system message, as Gemma's template asks."""
    draw = random.Random(SEED)
    for _ in range(count):
        talk: list[dict] = []
        if not strict and draw.random() < 0.4:
            talk.append({"role": "system", "content": f"{words(draw)} I AI You"})
        role = "user" if strict or draw.random() < 0.75 else "assistant"
        said = [""]
        for _ in range(2 * draw.randint(1, 4)):
            content = words(draw)
            if role == "assistant":
                content = draw.choice(said) if draw.random() < 0.3 else content
                if draw.random() < 0.3:
                    content = f"<think>\n{words(draw)}\n</think>\n\n{content}"
                said.append(content)
            talk.append({"role": role, "content": content})
            role = "user" if role == "assistant" else "assistant"
            if not strict and draw.random() < 0.1:
                role = draw.choice(["user", "assistant"])
        yield talk


def count_differences(name: str, count: int) -> int:
    """Masks of the template without marks that differ from those of its marks. A row that is refused raises."""
    with_marks, without = tokenizer_of(marked(name)), tokenizer_of(without_marks(marked(name)))
    ours = read_template(without)
    assert not ours.marked
    different = 0
    for talk in conversations(count, strict=name == "gemma"):
        theirs = with_marks.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
        rendered = ours.render(talk, None, {})
        tokens = without(rendered.text, add_special_tokens=False)
        assert tokens["input_ids"] == theirs["input_ids"]
        marks = [0] * len(tokens["input_ids"])
        for first, last in find_tokens(tokens.encodings[0], rendered.spans):
            marks[first:last] = [1] * (last - first)
        different += marks != theirs["assistant_masks"]
    return different


FIVE = ("chatml", "llama3", "gemma", "phi3", "qwen3")


@pytest.mark.parametrize("name", FIVE)
def test_a_template_without_marks_gets_the_masks_that_marks_would_give(name: str) -> None:
    assert count_differences(name, 100) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", FIVE)
def test_no_mask_of_2000_conversations_differs_and_no_row_is_refused(name: str) -> None:
    assert count_differences(name, 2000) == 0


def test_every_answer_that_is_labelled_is_in_the_text_of_each_template_that_trl_ships() -> None:
    """Other makers' templates: what stands before an answer, and line breaks after it, carry no loss."""
    talk = [
        {"role": "user", "content": "is it far?"},
        {"role": "assistant", "content": "it is not"},
        {"role": "user", "content": "and back?"},
        {"role": "assistant", "content": "the same"},
    ]
    found = {}
    for path in sorted(SHIPPED.glob("*_training.jinja")):
        name = path.name.removesuffix("_training.jinja")
        if not (SHIPPED / f"{name}.jinja").exists() or "vl" in name or name in VISION:
            continue
        rendered = read_template(tokenizer_of(without_marks(shipped(f"{name}_training")))).render(talk, None, {})
        spans = [rendered.text[start:stop] for start, stop in rendered.spans]
        found[name] = len(spans) == 2 and all(
            answer["content"] in span and "and back" not in span for answer, span in zip(talk[1::2], spans, strict=True)
        )
    assert len(found) > 15
    assert [name for name, right in found.items() if not right] == []


VISION = ("idefics3", "llava_next", "smolvlm")


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "phi3", "qwen3", "qwen2_5"])
def test_labels_are_those_of_trls_own_trainer(make: Make, folder: Path, name: str) -> None:
    from trl import SFTConfig, SFTTrainer

    tokenizer = tokenizer_of(CHATML if name == "chatml" else shipped(name))
    save_llama(folder / "model", tokenizer)
    talks = [talk for talk in conversations(40, strict=name == "gemma") if any(m["role"] == "assistant" for m in talk)]
    rows = [{"messages": talk} for talk in talks]
    # TRL makes SFTTrainer's rows in its constructor.
    args = SFTConfig(
        output_dir="out", use_cpu=True, bf16=False, report_to="none", activation_checkpointing=False,
        assistant_only_loss=True, max_length=4096,
    )  # fmt: skip
    theirs = SFTTrainer(
        str(folder / "model"), args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    ).train_dataset
    ours = prepare(make("chat", section="SFTConfig"), rows, tokenizer, length=4096).train
    assert ours["input_ids"] == list(theirs["input_ids"])
    assert ours["labels"] == list(theirs["labels"])
