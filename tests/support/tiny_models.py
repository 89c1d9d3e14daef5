"""Small tokenizers, models and rows that tests make on the spot (nothing is downloaded), and a task's rows of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from hf_recipes.catalog.tasks import TASKS
from hf_recipes.data.prepared import Prepared
from hf_recipes.data.splits import Splits
from hf_recipes.errors import RecipeError
from hf_recipes.recipe.recipe import Recipe

TEXTS = (
    "the sea was calm and the light was good",
    "an old house stood by the water for a long time",
    "she was not sure that a new day had come",
    "user: hello! assistant: it is a good day, is it not?",
)
CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Widths are multiples of 64: bitsandbytes quantises in blocks of that many weights.
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}


def bpe(texts: Iterable[str] = TEXTS, *, bos: bool = False, chat: str | None = None, length: int = 64) -> Any:
    """A byte-level BPE with GPT-2's end token; `bos`: it writes a begin token itself, as Gemma's and Llama's do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<s>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer=trainer)
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    words = {"eos_token": "<|endoftext|>", "bos_token": "<s>", "pad_token": "<|endoftext|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=length, **words)
    tokenizer.chat_template = chat
    return tokenizer


def wordpiece(words: Sequence[str]) -> Any:
    """A WordPiece of single letters and `words`, framed by [CLS] and [SEP] as BERT's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz"
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters), *words]
    vocabulary = {name: i for i, name in enumerate(dict.fromkeys(names))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    frame = {
        "single": "[CLS] $A [SEP]",
        "pair": "[CLS] $A [SEP] $B:1 [SEP]:1",
        "special_tokens": [("[CLS]", 2), ("[SEP]", 3)],
    }
    backend.post_processor = processors.TemplateProcessing(**frame)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **special)


def save_llama(
    folder: str | Path, tokenizer: Any, *, dtype: str = "float32", positions: int = 64, tied: bool = False
) -> Path:
    """A Llama of two narrow layers with random weights, and its tokenizer, as a folder that from_pretrained reads."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    ends = {"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        max_position_embeddings=positions,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
        **SHAPE,
        **ends,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def save_bert(folder: str | Path, tokenizer: Any, model_type: str = "bert", **fields: Any) -> Path:
    """The encoder alone, without a head."""
    import torch
    from transformers import AutoConfig, AutoModel

    shape = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2} if model_type == "distilbert" else SHAPE
    config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), max_position_embeddings=64, **shape, **fields)
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Rows as JSON lines."""
    path = Path(path)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def prepare(recipe: Recipe, rows: Any, tokenizer: Any, length: int = 64, held_out: Any = None) -> Prepared:
    """What the recipe's task makes of the rows; the train rows are scored, too, unless others are held out."""
    from datasets import Dataset

    train = rows if isinstance(rows, Dataset) else Dataset.from_list(rows)
    other = train if held_out is None else held_out if isinstance(held_out, Dataset) else Dataset.from_list(held_out)
    splits = Splits(train=train, validation=other, test=None)
    found: Prepared = import_module(TASKS[recipe.task].module).prepare(splits, tokenizer, recipe, length)
    return found


def refusal(recipe: Recipe, rows: Any, tokenizer: Any, length: int = 64, held_out: Any = None) -> str:
    """The message with which the task refuses the rows."""
    with pytest.raises(RecipeError) as raised:
        prepare(recipe, rows, tokenizer, length, held_out)
    return str(raised.value)
