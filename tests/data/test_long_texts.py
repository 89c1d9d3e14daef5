"""A text too long to be tokenized at once has the tokens of the whole, cut where words begin."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from hf_recipes.data.tokens import encode, long_texts
from hf_recipes.data.tokens.encode import Encoding
from hf_recipes.data.tokens.long_texts import cuts_of, encode_windows
from tests.support.tiny_models import TEXTS, bpe, prepare

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
THOUSANDS = r"\d{1,3}(?=(?:\d{3})*\b)"  # digits in groups of three from the right
TRAINING = [
    *TEXTS,
    "日本語の文章。改行\nпривет, мир 12345 don't Don’t ÀÉÎ ß ﬁ ½ 😀 é",
    "    if x == 1:\n\t\treturn '  '\n\n\n",
]
END = "<|endoftext|>"


def train(model: str, pre: Any, normalizer: Any = None, post: Any = None, added: Any = (END,)) -> Tokenizer:
    unknown = {} if model == "BPE" else {"unk_token": "[UNK]"}
    special = [END] if model == "BPE" else [END, "[UNK]", "[CLS]", "[SEP]"]
    made = {"BPE": models.BPE(), "WordPiece": models.WordPiece(**unknown), "WordLevel": models.WordLevel(**unknown)}
    made["Unigram"] = models.Unigram()
    kinds = {
        "BPE": lambda: trainers.BpeTrainer(
            vocab_size=420, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
        "WordPiece": lambda: trainers.WordPieceTrainer(vocab_size=300, special_tokens=special),
        "WordLevel": lambda: trainers.WordLevelTrainer(vocab_size=60, special_tokens=special),
        "Unigram": lambda: trainers.UnigramTrainer(vocab_size=200, special_tokens=special, **unknown),
    }
    backend = Tokenizer(made[model])
    backend.normalizer, backend.pre_tokenizer = normalizer, pre
    trainer = kinds[model]()
    trainer.show_progress = False
    backend.train_from_iterator(TRAINING * 4, trainer=trainer)
    if post is not None:
        backend.post_processor = post
    backend.add_tokens([one for one in added if isinstance(one, AddedToken)])
    return backend


def frame(*tokens: str) -> Any:
    before, after = tokens
    return processors.TemplateProcessing(single=f"{before} $A {after}", special_tokens=[(before, 2), (after, 3)])


def byte_level(**arguments: Any) -> Any:
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False, **arguments})


def split(*patterns: str, behavior: str = "isolated") -> Any:
    return pre_tokenizers.Sequence(
        [*(pre_tokenizers.Split(Regex(one), behavior) for one in patterns), byte_level(use_regex=False)]
    )


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "GPT-2": lambda: train("BPE", byte_level(), post=processors.ByteLevel(trim_offsets=True)),
    "RoBERTa": lambda: train(
        "BPE",
        byte_level(add_prefix_space=True),
        post=processors.RobertaProcessing(("</s>", 1), ("<s>", 0), add_prefix_space=True),
        added=[AddedToken("<mask>", lstrip=True)],
    ),
    "Llama 3": lambda: train("BPE", split(LLAMA_3), added=[AddedToken("<|x|>", normalized=False)]),
    "Qwen": lambda: train("BPE", split(LLAMA_3.replace("{1,3}", "")), normalizers.NFC()),
    "groups of digits": lambda: train("BPE", split(THOUSANDS, LLAMA_3.replace("{1,3}", "+"))),
    "DeepSeek": lambda: train(
        "BPE", split(r"[\r\n]", r"\s?[A-Za-zÀ-ɏЀ-ӿ]+", r"\s?[!-/:-~]+", r"\s+$", r"[一-龥ぁ-ー]+")
    ),
    "a word depends on the one before": lambda: train("BPE", split(r"(?<=d) w|\w+|\s")),
    "BERT": lambda: train(
        "WordPiece",
        pre_tokenizers.BertPreTokenizer(),
        normalizers.BertNormalizer(),
        frame("[CLS]", "[SEP]"),
        [AddedToken("[MASK]", special=True), AddedToken("word", single_word=True, normalized=True)],
    ),
    "words": lambda: train("WordLevel", pre_tokenizers.Whitespace(), normalizers.Lowercase()),
    "XLM-R": lambda: train(
        "Unigram",
        pre_tokenizers.Metaspace(),
        normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]),
        frame("[CLS]", "[SEP]"),
    ),
    "T5": lambda: train(
        "Unigram", pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    ),
}


def draw_text(draw: random.Random, size: int) -> str:
    """Words, marks, scripts, tokens of the tokenizer in the text, and runs of white space longer than a window."""
    pieces = [
        lambda: draw.choice(["word", "Word", "don't", "the", "a", "ÀÉ", "привет", "日本語", "ß", "é", "ﬁ", "😀", "½"]),
        lambda: draw.choice([".", ",", "!?", "(", "'", "'s", "’", "。", "<", "́", "­", "​", "\ufeff"]),
        lambda: draw.choice([END, "<mask>", "<|x|>", "[MASK]", "[SEP]", "word", "MASK]", "▁", "Ġ"]),
        lambda: str(draw.randrange(10 ** draw.randrange(1, 30))),
        lambda: "".join(draw.choices("abcdefgh", k=draw.choice([3, 10, 200]))),
        lambda: "".join(draw.choices("日本語文章改行", k=draw.choice([3, 40]))),
        lambda: chr(draw.randrange(*draw.choice([(32, 0x300), (0x300, 0xD800), (0x1F000, 0x1FAFF)]))),
    ]
    blanks = [" ", " ", " ", " ", "", "", "\n", "\n", "  ", "\t", "\r\n", "\u00a0", "\u3000", " \n", "\n\n "]
    weights = [draw.random() ** 3 for _ in pieces]
    often = draw.random()
    text, length = [], 0
    while length < size:
        text.append(draw.choices(pieces, weights)[0]())
        if draw.random() < often:
            text.append(draw.choice(blanks))
        if draw.random() < 0.002:
            text.append(draw.choice([" ", "\n", "\t", " \n"]) * draw.randrange(1000))
        length += len(text[-1]) + 2
    return "".join(text)


def encoding(backend: Tokenizer) -> Encoding:
    return Encoding(backend=backend.to_str(), split_special_tokens=False, eos=0, dtype="uint16", with_sizes=True)


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WINDOW": 512, "AHEAD": 64, "AROUND": 24}.items():
        monkeypatch.setattr(long_texts, name, value)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("rounds", [12, pytest.param(100, marks=pytest.mark.slow)])
def test_windows_give_the_tokens_and_bytes_of_the_whole(
    name: str, rounds: int, small_windows: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = encoding(TOKENIZERS[name]())
    backend, cuts = encode.load_backend(found), cuts_of(found.backend)
    assert cuts is not None
    sizes, cut = [], long_texts._cut
    monkeypatch.setattr(long_texts, "_cut", lambda *given: sizes.append(1) or cut(*given))
    for seed in range(rounds):
        draw = random.Random(seed)
        text = draw_text(draw, draw.choice([600, 3000, 20_000]))
        monkeypatch.setattr(encode, "LONG", 2**30)
        whole = encode.encode([text], backend, found)
        monkeypatch.setattr(encode, "LONG", 1)
        pieces = encode.encode([text], backend, found)
        assert np.array_equal(whole.ids, pieces.ids), f"seed {seed}"
        assert np.array_equal(whole.sizes, pieces.sizes) and np.array_equal(whole.lengths, pieces.lengths), f"{seed}"
        without, none = encode_windows(text, backend, cuts, "uint16", 0, False)
        assert np.array_equal(without, whole.ids) and not len(none)
    assert len(sizes) > 4 * rounds  # it was cut


TOO_FAR: dict[str, Callable[[], Tokenizer]] = {
    "one word for all": lambda: train("BPE", None),
    "a part at the start": lambda: train("BPE", byte_level(), normalizers.Prepend("a")),
    "white space at the ends": lambda: train("BPE", byte_level(), normalizers.Strip()),
    "a pattern over words": lambda: train("BPE", byte_level(), normalizers.Replace("a b", "c")),
    "a token of two words": lambda: train("BPE", byte_level(), added=[AddedToken("New York")]),
    "a token that takes the space behind it": lambda: train(
        "BPE", byte_level(), added=[AddedToken("New", rstrip=True)]
    ),
    "chance": lambda: with_dropout(train("BPE", byte_level())),
}


def with_dropout(backend: Tokenizer) -> Tokenizer:
    backend.model.dropout = 0.1
    return backend


@pytest.mark.parametrize("name", TOO_FAR)
def test_a_tokenizer_whose_tokens_depend_on_text_far_away_is_never_cut(name: str) -> None:
    assert cuts_of(TOO_FAR[name]().to_str()) is None


@pytest.mark.parametrize(
    ("pre", "text"),
    [
        (split(r"[^,]+"), "a b " * 2000),  # a word is what stands between commas
        (byte_level(), "日本語の文章" * 1000),
        (byte_level(), f"a{' ' * 6000}b"),
        (byte_level(), "," * 6000),
    ],
)
def test_a_text_without_a_certain_place_is_tokenized_at_once_and_the_memory_is_named(
    pre: Any, text: str, small_windows: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(encode, "LONG", 2**30)
    found = encoding(train("BPE", pre))
    whole = encode.encode([text], encode.load_backend(found), found)
    monkeypatch.setattr(encode, "LONG", 1)
    monkeypatch.setattr(long_texts, "NAMED", 4096)
    pieces = encode.encode([text], encode.load_backend(found), found)
    assert np.array_equal(whole.ids, pieces.ids) and np.array_equal(whole.sizes, pieces.sizes)
    said = capsys.readouterr().out
    assert said.startswith("warning: ") and said.count("\n") == 1
    assert said.endswith(" of memory; split it\n")


def test_a_document_in_windows_is_stored_as_it_would_be_as_a_whole(
    make: Callable[..., Any], folder: Any, monkeypatch: pytest.MonkeyPatch, small_windows: None
) -> None:
    text, stored = draw_text(random.Random(7), 9000), []
    for long in (2**30, 1000):
        monkeypatch.setattr(encode, "LONG", long)
        made = prepare(make("causal-lm", f"cache_dir: {folder / str(long)}"), [{"text": text}] * 3, bpe(), length=32)
        stored.append((made.train[:], made.row_bytes, made.ids, made.stats))
    assert stored[0] == stored[1]
