"""causal-lm: blocks and pieces hold the text that the user gave, and every byte is counted once."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset, Features, Value

from hf_recipes.data.causal_lm import vocabulary_bytes
from hf_recipes.recipe.recipe import Recipe
from tests.support.tiny_models import TEXTS, bpe, prepare, refusal, wordpiece

Make = Callable[..., Recipe]


UNUSUAL = ["  two blanks first", "naïve café — “quoted”", "emoji 😀👩‍🚀 end", "tail blank ", "日本語のテキスト", "x"]


def document(tokenizer: Any, text: str) -> list[int]:
    return [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]


@pytest.mark.parametrize("bos", [False, True])
def test_blocks_hold_the_documents_tokens_in_order_and_only_the_last_rest_is_left_out(make: Make, bos: bool) -> None:
    tokenizer = bpe(bos=bos)
    texts = [*UNUSUAL, *TEXTS] * 3
    found = prepare(make("causal-lm"), [{"text": text} for text in texts], tokenizer, length=16)
    stream = list(chain.from_iterable(document(tokenizer, text) for text in texts))
    assert list(chain.from_iterable(found.train["input_ids"])) == stream[: len(stream) // 16 * 16]
    assert {len(row) for row in found.train["input_ids"]} == {16}
    assert list(chain.from_iterable(found.evals["eval"]["input_ids"])) == stream  # evaluation keeps the rest
    assert found.train["labels"] == list(found.train["input_ids"])
    rest = len(stream) % 16
    assert found.notes == (f"train: {rest} tokens at the end do not fill a block and are left out",)
    assert found.stats["train"].tokens == len(stream) - rest


def test_every_byte_of_the_text_is_counted_once(make: Make) -> None:
    random.seed(0)
    letters = "aé日😀 \n\t\u200d👩“"
    texts = [*UNUSUAL, *("".join(random.choices(letters, k=random.randint(1, 40))) for _ in range(60))]
    texts = [text for text in texts if text.strip()]
    for bos in (False, True):
        recipe = make("causal-lm", section="SFTConfig", arguments="max_length: 512")
        found = prepare(recipe, [{"text": text} for text in texts], bpe(bos=bos), length=512)
        tokenizer = bpe(bos=bos)
        for text, counted in zip(texts, found.row_bytes["eval"], strict=True):
            first = tokenizer(text, return_offsets_mapping=True)["offset_mapping"][0][1]  # is given, not predicted
            assert counted == len(text[first:].encode()), text


@pytest.mark.parametrize("eos", [None, "[SEP]"])
def test_spaces_at_the_end_that_no_token_covers_are_counted(make: Make, eos: str | None) -> None:
    """A WordPiece has no token for a space; a byte-level tokenizer has one."""
    tokenizer = wordpiece(["the", "sea"])
    tokenizer.eos_token = eos
    recipe = make("causal-lm", section="SFTConfig", arguments="max_length: 32")
    found = prepare(recipe, [{"text": "the sea  "}, {"text": " the"}], tokenizer, length=32)
    assert found.row_bytes["eval"] == [len("the sea  "), len(" the")]  # [CLS], of no bytes, is the first token
    assert found.stats["eval"].bytes == 13


def test_bytes_of_pre_tokenized_rows_equal_those_of_their_text(make: Make) -> None:
    tokenizer, recipe = bpe(), make("causal-lm")
    rows = [{"input_ids": document(tokenizer, text)} for text in [*UNUSUAL, *TEXTS]]
    found = prepare(recipe, rows, tokenizer, length=32)
    of_text = prepare(recipe, [{"text": text} for text in [*UNUSUAL, *TEXTS]], tokenizer, length=32)
    assert list(found.train["input_ids"]) == list(of_text.train["input_ids"])
    begun = [{"input_ids": [tokenizer.bos_token_id, *row["input_ids"]]} for row in rows]  # a first token of no bytes
    found = prepare(make("causal-lm", section="SFTConfig"), begun, tokenizer, length=512)
    assert found.row_bytes["eval"] == [len(text.encode()) for text in [*UNUSUAL, *TEXTS]]


def test_sft_pieces_keep_documents_apart_and_lose_nothing(make: Make) -> None:
    tokenizer = bpe()
    texts = [TEXTS[0] * 8, TEXTS[1]]
    recipe = make("causal-lm", section="SFTConfig", arguments="max_length: 32")
    found = prepare(recipe, [{"text": text} for text in texts], tokenizer, length=32)
    rows = list(found.train["input_ids"])
    assert list(chain.from_iterable(rows)) == [*document(tokenizer, texts[0]), *document(tokenizer, texts[1])]
    assert rows[-1] == document(tokenizer, texts[1]) and max(map(len, rows)) == 32 and len(rows) > 3


def test_long_documents_are_joined_a_million_tokens_at_a_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_recipes.data.causal_lm.TOKENS_AT_ONCE", 200)
    monkeypatch.setattr("hf_recipes.data.causal_lm.BLOCKS_AT_ONCE", 1)
    tokenizer = bpe()
    found = prepare(make("causal-lm"), [{"text": text} for text in TEXTS * 20], tokenizer, length=16)
    stream = list(chain.from_iterable(document(tokenizer, text) for text in TEXTS * 20))
    assert list(chain.from_iterable(found.evals["eval"]["input_ids"])) == stream
    assert 0 < len(stream) - found.stats["train"].tokens < 16 * len(stream) / 100


def test_counts_of_blocks_are_those_of_the_rows(make: Make) -> None:
    tokenizer = bpe()
    texts = [*TEXTS, ""]
    found = prepare(make("causal-lm"), [{"text": text} for text in texts], tokenizer, length=16)
    tokens = sum(len(document(tokenizer, text)) for text in TEXTS)
    train, other = found.stats["train"], found.stats["eval"]
    assert (train.rows, train.tokens, train.longest) == (tokens // 16, tokens // 16 * 16, 16)
    assert (train.documents, train.empty, train.bytes) == (len(TEXTS), 1, None)
    rest = tokens % 16
    assert (other.rows, other.tokens) == (tokens // 16 + (rest > 1), tokens - (rest == 1))
    assert other.bytes == sum(found.row_bytes["eval"])
    assert len(found.ids["eval"]) == other.rows and set(found.evals["eval"].column_names) == {"input_ids", "labels"}
    short = prepare(make("causal-lm", section="SFTConfig"), [{"text": "the sea"}], tokenizer, length=512)
    assert short.stats["train"].longest == len(document(tokenizer, "the sea"))


def test_a_rest_of_one_token_predicts_nothing_and_is_left_out(make: Make) -> None:
    tokenizer = bpe()
    length = len(document(tokenizer, TEXTS[0])) - 1
    recipe = make("causal-lm", section="SFTConfig", arguments=f"max_length: {length}")
    found = prepare(recipe, [{"text": TEXTS[0]}], tokenizer, length=length)
    assert [len(ids) for ids in found.evals["eval"]["input_ids"]] == [length]
    assert found.notes == tuple(
        f"{split}: 1 tokens at the end do not fill a block and are left out" for split in ("train", "eval")
    )
    longer = prepare(recipe, [{"text": TEXTS[0]}], tokenizer, length=length - 1)
    assert [len(ids) for ids in longer.evals["eval"]["input_ids"]] == [length - 1, 2]


def test_an_end_token_that_the_tokenizer_wrote_is_not_written_twice(make: Make) -> None:
    tokenizer = wordpiece(["the", "sea"])
    tokenizer.eos_token = "[SEP]"
    recipe = make("causal-lm", section="SFTConfig")
    found = prepare(recipe, [{"text": "the sea"}], tokenizer, length=32)
    assert tokenizer.convert_ids_to_tokens(found.train["input_ids"][0]) == ["[CLS]", "the", "sea", "[SEP]"]


def test_texts_without_a_token_are_refused(make: Make) -> None:
    from tokenizers import normalizers

    tokenizer = bpe()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    rows = [{"text": "\u200b"}] * 3
    for section in ("TrainingArguments", "SFTConfig"):
        assert refusal(make("causal-lm", section=section), rows, tokenizer, length=32) == (
            "recipe.yaml:3: the train split's texts give no tokens; is this the right tokenizer?"
        )


def test_bytes_of_token_ids_are_those_of_every_kind_of_vocabulary() -> None:
    words = wordpiece(["the", "naïve"])
    sizes = dict(zip(words.convert_ids_to_tokens(range(len(words))), vocabulary_bytes(words), strict=True))
    assert (sizes["the"], sizes["naïve"], sizes["##a"], sizes["[SEP]"]) == (3, 6, 1, 0)
    pieces = SimpleNamespace(
        all_special_ids=[0],
        added_tokens_decoder={5: None},
        is_fast=False,
        get_vocab=lambda: {"<s>": 0, "<é>": 5},
        convert_ids_to_tokens=lambda ids: ["<s>", "\u2581the", "<0x0A>", "é", None, "<é>"],
    )
    assert vocabulary_bytes(Sized(pieces, 6)) == [0, 4, 1, 2, 0, 4]


class Sized:
    """A SentencePiece tokenizer as far as its vocabulary goes."""

    def __init__(self, inner: Any, length: int) -> None:
        self.inner, self.length = inner, length

    def __len__(self) -> int:
        return self.length

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def test_empty_documents_are_counted_and_left_out(make: Make) -> None:
    rows = [{"text": text} for text in ("", "  \n", None, *TEXTS)]
    notes = prepare(make("causal-lm"), rows, bpe(), length=8).notes
    assert notes[0] == "train: 3 empty documents left out"


@pytest.mark.parametrize(
    ("rows", "dataset", "expected"),
    [
        ([{"text": " "}, {"text": ""}], "", "3: the train split has no text: all of its 2 documents are empty"),
        ([{"text": 4}], "", "3: the column 'text' holds int64, not text; name another with dataset.text_column"),
        ([{"txt": "a"}], "", "3: the data has no column 'text' (it has txt); did you mean 'txt'?"),
        (
            [{"input_ids": [1, 2, 5000]}],
            "",
            "3: the train split has the token id 5000, and the tokenizer has 300 tokens; "
            "name the tokenizer that wrote these ids in the tokenizer section",
        ),
        (
            [{"ids": "1 2 3"}],
            "input_ids_column: ids",
            "3: the column 'ids' does not hold lists of token ids; name another with dataset.input_ids_column",
        ),
        (
            [{"text": "a"}],
            "max_length: 32",
            "3: the train split has 2 tokens, less than one block of 32; shorten dataset.max_length or add text",
        ),
    ],
)
def test_causal_lm_refuses_rows_without_text(make: Make, rows: list, dataset: str, expected: str) -> None:
    tokenizer = bpe()
    expected = expected.replace("300", str(len(tokenizer)))
    assert refusal(make("causal-lm", dataset), rows, tokenizer, length=32) == f"recipe.yaml:{expected}"


def test_short_documents_beside_long_ones_are_in_the_blocks(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each group of documents loses less than a block, however long some of them are."""
    monkeypatch.setattr("hf_recipes.data.causal_lm.TOKENS_AT_ONCE", 1000)
    tokenizer, long, short = bpe(), "the sea " * 2000, "a small one"
    texts = [long, *[short] * 40, long, *[short] * 40, long]
    found = prepare(make("causal-lm"), [{"text": text} for text in texts], tokenizer, length=16)
    stream = [document(tokenizer, text) for text in texts]
    groups = [stream[0], [*chain.from_iterable(stream[1:42])], [*chain.from_iterable(stream[42:])]]
    assert sum(map(len, stream[1:41])) < 1000
    expected = [group[at : at + 16] for group in groups for at in range(0, len(group) - 15, 16)]
    assert list(found.train["input_ids"]) == expected
    assert sum(map(len, groups)) - 16 * len(expected) < 3 * 16


def test_long_blocks_lose_no_more_of_the_text(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_recipes.data.causal_lm.TOKENS_AT_ONCE", 100)
    found = prepare(make("causal-lm"), [{"text": text} for text in TEXTS * 200], bpe(), length=150)
    tokens = 200 * sum(len(document(bpe(), text)) for text in TEXTS)
    assert tokens > 5_000 and found.stats["train"].tokens > 0.9 * tokens


@pytest.mark.parametrize("kind", ["null", "string", "string_view"])
def test_a_split_whose_texts_are_all_missing_is_refused(make: Make, kind: str) -> None:
    rows = Dataset.from_dict({"text": [None] * 3}, features=Features({"text": Value(kind)}))
    assert refusal(make("causal-lm"), rows, bpe()) == (
        "recipe.yaml:3: the train split has no text: all of its 3 documents are empty"
    )
