"""Rows to tensors, task by task: a Trainer gets the text that the user gave, and the loss stands where it must."""

from __future__ import annotations

import random
from collections.abc import Callable
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, List, Value
from small import CHATML, TEXTS, bpe, save_llama, wordpiece

from hf_recipes.data import Splits
from hf_recipes.errors import RecipeError
from hf_recipes.recipe import Recipe, read_recipe
from hf_recipes.tasks import TASKS, Prepared

Make = Callable[..., Recipe]


@pytest.fixture
def make(write_recipe: Callable[..., str]) -> Make:
    """A recipe: the dataset section stands on line 3, the trainer's on line 4."""

    def recipe(task: str, dataset: str = "", section: str = "TrainingArguments", words: str = "") -> Recipe:
        model = "model: {config: {model_type: gpt2}}"
        head = f"task: {task}\n{model}\ndataset: {{path: json{', ' if dataset else ''}{dataset}}}\n"
        tail = "BpeTrainer: {vocab_size: 384}\n"
        return read_recipe(write_recipe(f"{head}{section}: {{output_dir: out{', ' if words else ''}{words}}}\n{tail}"))

    return recipe


def prepare(recipe: Recipe, rows: Any, tokenizer: Any, length: int = 64, held_out: Any = None) -> Prepared:
    train = rows if isinstance(rows, Dataset) else Dataset.from_list(rows)
    other = train if held_out is None else held_out if isinstance(held_out, Dataset) else Dataset.from_list(held_out)
    splits = Splits(train=train, validation=other, test=None)
    found: Prepared = import_module(TASKS[recipe.task].module).prepare(splits, tokenizer, recipe, length)
    return found


def refusal(recipe: Recipe, rows: Any, tokenizer: Any, length: int = 64, held_out: Any = None) -> str:
    with pytest.raises(RecipeError) as raised:
        prepare(recipe, rows, tokenizer, length, held_out)
    return str(raised.value)


# causal-lm ----------------------------------------------------------------------------------------------------------

STRANGE = ["  two blanks first", "naïve café — “quoted”", "emoji 😀👩‍🚀 end", "tail blank ", "日本語のテキスト", "x"]


def document(tokenizer: Any, text: str) -> list[int]:
    return [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]


@pytest.mark.parametrize("bos", [False, True])
def test_blocks_hold_the_documents_tokens_in_order_and_only_the_last_rest_is_left_out(make: Make, bos: bool) -> None:
    tokenizer = bpe(bos=bos)
    texts = [*STRANGE, *TEXTS] * 3
    found = prepare(make("causal-lm"), [{"text": text} for text in texts], tokenizer, length=16)
    stream = list(chain.from_iterable(document(tokenizer, text) for text in texts))
    assert list(chain.from_iterable(found.train["input_ids"])) == stream[: len(stream) // 16 * 16]
    assert {len(row) for row in found.train["input_ids"]} == {16}
    assert list(chain.from_iterable(found.evals["eval"]["input_ids"])) == stream  # evaluation keeps the rest
    assert found.train["labels"] == list(found.train["input_ids"])
    rest = len(stream) % 16
    assert found.notes == (f"train: {rest} tokens do not fill a block of their own and are left out",)
    assert found.stats["train"]["tokens"] == len(stream) - rest


def test_every_byte_of_the_text_is_counted_once(make: Make) -> None:
    random.seed(0)
    letters = "aé日😀 \n\t\u200d👩“"
    texts = [*STRANGE, *("".join(random.choices(letters, k=random.randint(1, 40))) for _ in range(60))]
    texts = [text for text in texts if text.strip()]
    for bos in (False, True):
        recipe = make("causal-lm", section="SFTConfig", words="max_length: 512")
        found = prepare(recipe, [{"text": text} for text in texts], bpe(bos=bos), length=512)
        tokenizer = bpe(bos=bos)
        for text, counted in zip(texts, found.row_bytes["eval"], strict=True):
            first = tokenizer(text, return_offsets_mapping=True)["offset_mapping"][0][1]  # is given, not predicted
            assert counted == len(text[first:].encode()), text


def test_bytes_of_pre_tokenized_rows_equal_those_of_their_text(make: Make) -> None:
    tokenizer, recipe = bpe(), make("causal-lm")
    rows = [{"input_ids": document(tokenizer, text)} for text in [*STRANGE, *TEXTS]]
    found = prepare(recipe, rows, tokenizer, length=32)
    of_text = prepare(recipe, [{"text": text} for text in [*STRANGE, *TEXTS]], tokenizer, length=32)
    assert list(found.train["input_ids"]) == list(of_text.train["input_ids"])
    begun = [{"input_ids": [tokenizer.bos_token_id, *row["input_ids"]]} for row in rows]  # a first token of no bytes
    whole = prepare(make("causal-lm", section="SFTConfig"), begun, tokenizer, length=512)
    assert whole.row_bytes["eval"] == [len(text.encode()) for text in [*STRANGE, *TEXTS]]


def test_sft_pieces_keep_documents_apart_and_lose_nothing(make: Make) -> None:
    tokenizer = bpe()
    texts = [TEXTS[0] * 8, TEXTS[1]]
    recipe = make("causal-lm", section="SFTConfig", words="max_length: 32")
    found = prepare(recipe, [{"text": text} for text in texts], tokenizer, length=32)
    rows = list(found.train["input_ids"])
    assert list(chain.from_iterable(rows)) == [*document(tokenizer, texts[0]), *document(tokenizer, texts[1])]
    assert rows[-1] == document(tokenizer, texts[1]) and max(map(len, rows)) == 32 and len(rows) > 3


def test_long_documents_are_joined_a_million_tokens_at_a_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_recipes.tasks.causal_lm.TOKENS_AT_ONCE", 200)
    tokenizer = bpe()
    found = prepare(make("causal-lm"), [{"text": text} for text in TEXTS * 20], tokenizer, length=16)
    stream = list(chain.from_iterable(document(tokenizer, text) for text in TEXTS * 20))
    assert list(chain.from_iterable(found.evals["eval"]["input_ids"])) == stream
    assert 0 < len(stream) - found.stats["train"]["tokens"] < 16 * len(stream) / 100


def test_empty_documents_are_counted_and_left_out(make: Make) -> None:
    rows = [{"text": text} for text in ("", "  \n", None, *TEXTS)]
    notes = prepare(make("causal-lm"), rows, bpe(), length=8).notes
    assert notes[0] == "train: 3 empty documents left out"


@pytest.mark.parametrize(
    ("rows", "dataset", "told"),
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
            "3: the column 'ids' holds no lists of token ids; name another with dataset.input_ids_column",
        ),
        (
            [{"text": "a"}],
            "max_length: 32",
            "3: the train split has 2 tokens, less than one block of 32; shorten dataset.max_length or add text",
        ),
    ],
)
def test_causal_lm_refuses_rows_without_text(make: Make, rows: list, dataset: str, told: str) -> None:
    tokenizer = bpe()
    told = told.replace("300", str(len(tokenizer)))
    assert refusal(make("causal-lm", dataset), rows, tokenizer, length=32) == f"recipe.yaml:{told}"


# chat ---------------------------------------------------------------------------------------------------------------

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
        told = tokenizer.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
        marked = zip(told["input_ids"], told["assistant_masks"], strict=True)
        found.append((list(told["input_ids"]), [i if mask else -100 for i, mask in marked]))
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
    for rows, words in kinds:
        words = {"output_dir": "out", "use_cpu": True, "bf16": False, "report_to": "none", **words}
        args = SFTConfig(activation_checkpointing=False, **words)
        theirs = SFTTrainer(
            str(folder / "model"), args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )
        found = prepare(make("chat", section="SFTConfig"), rows, tokenizer, length=512)
        trl_rows = theirs.train_dataset
        assert chat_rows(found) == list(zip(trl_rows["input_ids"], trl_rows["labels"], strict=True))


@pytest.mark.slow
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


def test_a_blank_at_the_end_of_the_prompt_does_not_hide_the_answers_first_word(make: Make) -> None:
    tokenizer = bpe(chat=CHATML)
    found = prepare(make("chat", section="SFTConfig"), [{"prompt": "the sea ", "completion": "was"}], tokenizer)
    assert answers(found, tokenizer) == [" was<|endoftext|>"]


def test_answers_of_the_prompt_are_no_completion(make: Make) -> None:
    tokenizer = bpe(chat=CHATML)
    rows = [{"prompt": TALK[:3], "completion": TALK[3:]}]
    found = prepare(make("chat", section="SFTConfig"), rows, tokenizer, length=512)
    assert answers(found, tokenizer) == ["it is<|im_end|>"]


def test_a_conversation_that_the_assistant_opens_keeps_the_templates_system_message_out(make: Make) -> None:
    tokenizer = bpe(chat=CHATML)
    talk = [{"role": "assistant", "content": "hello you"}, *TALK]
    found = prepare(make("chat", section="SFTConfig"), [{"messages": talk}], tokenizer, length=512)
    assert chat_rows(found) == upstream_masks(tokenizer, [talk])


@pytest.mark.parametrize(
    ("words", "row"),
    [
        ("assistant_only_loss: false", {"messages": TALK}),
        ("completion_only_loss: false", {"prompt": "the sea", "completion": " was calm"}),
    ],
)
def test_loss_on_everything_where_the_recipe_says_so(make: Make, words: str, row: dict) -> None:
    found = prepare(make("chat", section="SFTConfig", words=words), [row], bpe(chat=CHATML), length=512)
    assert found.train["labels"] == list(found.train["input_ids"])


def test_the_first_row_is_shown_with_its_answers_marked(make: Make) -> None:
    found = prepare(make("chat", section="SFTConfig"), [{"messages": TALK[:2]}], bpe(chat=CHATML), length=512)
    assert found.notes == (
        "the first row; loss on the parts marked >>",
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
    share = lost / (lost + found.stats["train"]["label_tokens"])
    assert found.notes[:2] == (
        "train: 1 rows left out: no answer within 24 tokens",
        f"train: {share:.1%} of the answer tokens stand beyond 24 tokens and are cut off",
    )


FORGETFUL = (
    "{% for message in messages %}{{ message['role'] + ': ' }}"
    "{% if loop.last or message['role'] == 'user' %}{{ message['content'] }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
STRICT = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('a user speaks first') }}{% endif %}" + CHATML


@pytest.mark.parametrize(
    ("rows", "template", "told"),
    [
        (
            [{"messages": TALK}],
            FORGETFUL,
            "row 0 of the train split: the chat template rewrites earlier turns, so the answers cannot be told apart; "
            "give single-turn rows, or another template with SFTConfig.chat_template_path",
        ),
        (
            [{"messages": TALK}, {"messages": TALK[1:]}],
            STRICT,
            "row 1 of the train split: the chat template refuses it: a user speaks first; "
            "mend the row, or give another template with SFTConfig.chat_template_path",
        ),
        (
            [{"messages": [{"from": "human", "value": "hello"}]}],
            CHATML,
            "row 0 of the train split is no conversation: a list of {role, content} is needed; "
            "say which column holds the messages with dataset.messages_column",
        ),
        (
            [{"prompt": "hello", "completion": None}],
            CHATML,
            "row 0 of the train split: prompt and completion are texts or lists of messages",
        ),
        (
            [{"question": "hello", "answer": "you"}],
            CHATML,
            "the data has neither a messages column nor prompt and completion (it has question, answer); "
            "name them with dataset.messages_column, or dataset.prompt_column and dataset.completion_column",
        ),
    ],
)
def test_chat_refuses_what_has_no_right_mask(make: Make, rows: list, template: str, told: str) -> None:
    assert refusal(make("chat", section="SFTConfig"), rows, bpe(chat=template)) == f"recipe.yaml:3: {told}"


@pytest.mark.parametrize(
    "row", [{"prompt": "the sea " * 40, "completion": "was"}, {"messages": [{"role": "user", "content": "hello"}]}]
)
def test_labels_that_are_all_masked_are_refused(make: Make, row: dict) -> None:
    recipe = make("chat", section="SFTConfig", words="max_length: 16")
    assert refusal(recipe, [row], bpe(chat=CHATML), length=16) == (
        "recipe.yaml:4: no row of the train split has an answer token within max_length 16: all labels are masked; "
        "raise SFTConfig.max_length or check the columns"
    )


# text-classification ------------------------------------------------------------------------------------------------


def labelled(*labels: Any) -> list[dict]:
    return [{"text": "the sea", "label": label} for label in labels]


@pytest.mark.parametrize(
    ("labels", "names", "ids"),
    [
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        ([10, 2, 10], ("2", "10"), [1, 0, 1]),
        ([True, False, True], ("False", "True"), [1, 0, 1]),
        ([1.0, 0.5, 1.0], ("0.5", "1.0"), [1, 0, 1]),
    ],
)
def test_labels_of_every_kind_get_numbers_in_order(make: Make, labels: list, names: tuple, ids: list) -> None:
    found = prepare(make("text-classification"), labelled(*labels), bpe())
    assert (found.label_names, list(found.train["labels"])) == (names, ids)
    assert found.config == {
        "num_labels": 2,
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": "single_label_classification",
    }


def test_a_class_label_keeps_its_names_and_numbers_also_beside_plain_ones(make: Make) -> None:
    train = Dataset.from_list(labelled(0, 1, 1)).cast_column("label", ClassLabel(names=["no", "yes"]))
    turned = Dataset.from_list(labelled(0, 1)).cast_column("label", ClassLabel(names=["yes", "no"]))
    for other, expected in ((turned, [1, 0]), (Dataset.from_list(labelled("no", "yes")), [0, 1])):
        found = prepare(make("text-classification"), train, bpe(), held_out=other)
        assert (found.label_names, list(found.evals["eval"]["labels"])) == (("no", "yes"), expected)


def test_texts_longer_than_max_length_are_counted(make: Make) -> None:
    rows = [{"text": "the sea " * 30, "label": 0}, {"text": "the sea", "label": 1}]
    found = prepare(make("text-classification"), rows, bpe(), length=8)
    assert found.notes == (
        "train: 1 of 2 texts are cut at 8 tokens",
        "eval: 1 of 2 texts are cut at 8 tokens",
    )
    assert found.stats["train"]["longest"] == 8


@pytest.mark.parametrize(
    ("rows", "held_out", "told"),
    [
        (
            labelled("a", "b"),
            labelled("a", "c"),
            "row 1 of the eval split has the label 'c', outside the train split's set; the labels are a, b",
        ),
        (
            labelled("a", "b", None),
            None,
            "row 2 of the train split has no label (None); remove such rows, or leave the split out with "
            "split: {train: ..., validation: ...}",
        ),
        (
            labelled(0, 1),
            labelled(-1, -1),
            "row 0 of the eval split has no label (-1); remove such rows, or leave the split out with "
            "split: {train: ..., validation: ...}",
        ),
        (labelled("a", "a"), None, "the train split has one label only ('a'); a classifier needs two"),
        (labelled(None, None), None, "the train split has no label at all; a classifier needs two"),
        (
            labelled(["a"], ["b"]),
            None,
            "the column 'label' holds List, not one label a row; name another with dataset.label_column",
        ),
        (
            [*labelled("a", "b"), {"text": " ", "label": "a"}],
            None,
            "row 2 of the train split has no text (' '); remove such rows",
        ),
        (
            [*labelled("a", "b"), {"text": None, "label": "a"}],
            None,
            "row 2 of the train split has no text (None); remove such rows",
        ),
    ],
)
def test_text_classification_refuses_rows_without_text_or_label(
    make: Make, rows: list, held_out: Any, told: str
) -> None:
    assert refusal(make("text-classification"), rows, bpe(), held_out=held_out) == f"recipe.yaml:3: {told}"


def test_a_text_of_no_tokens_is_refused(make: Make) -> None:
    from tokenizers import normalizers

    tokenizer = bpe()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    rows = [*labelled("a", "b"), {"text": "\u200b", "label": "a"}]
    assert refusal(make("text-classification"), rows, tokenizer) == (
        "recipe.yaml:3: row 2 of the train split gives no token ('\\u200b'); remove it"
    )


def test_another_learning_rate_does_not_tokenize_the_rows_anew(make: Make, folder: Path) -> None:
    Dataset.from_list(labelled("a", "b")).save_to_disk(str(folder / "rows"))
    fingerprints = set()
    for rate in (1e-3, 1e-4):
        recipe = make("text-classification", words=f"learning_rate: {rate}")
        found = prepare(recipe, Dataset.load_from_disk(str(folder / "rows")), bpe())
        fingerprints.add(found.train._fingerprint)
    assert len(fingerprints) == 1


# token-classification -----------------------------------------------------------------------------------------------

WORDS = ["anna", "went", "to", "bath", "xyz", "."]
TAGS = ["B-PER", "O", "O", "B-LOC", "O", "O"]


def test_a_words_tag_stands_on_its_first_sub_token_only(make: Make) -> None:
    tokenizer = wordpiece(["anna", "went", "to", "."])
    found = prepare(make("token-classification"), [{"tokens": WORDS, "tags": TAGS}], tokenizer)
    names = found.label_names
    assert names == ("O", "B-LOC", "B-PER")
    tokens = tokenizer.convert_ids_to_tokens(found.train["input_ids"][0])
    assert tokens == [
        *("[CLS]", "anna", "went", "to", "b", "##a", "##t", "##h", "x", "##y", "##z"),
        *("[UNK]" if t == "?" else t for t in (".", "[SEP]")),
    ]
    shown = [names[i] if i != -100 else "-" for i in found.train["labels"][0]]
    assert shown == ["-", "B-PER", "O", "O", "B-LOC", "-", "-", "-", "O", "-", "-", "O", "-"]


def test_words_beyond_max_length_are_counted_and_not_scored(make: Make) -> None:
    tokenizer = wordpiece(["anna", "went", "to", "."])
    found = prepare(make("token-classification"), [{"tokens": WORDS, "tags": TAGS}], tokenizer, length=6)
    assert found.notes[0] == "train: 2 words stand beyond 6 sub-tokens or have none: they are not scored"
    assert found.stats["train"]["label_tokens"] == 4


def test_tags_may_be_numbers_of_a_class_label(make: Make) -> None:
    rows = Dataset.from_list([{"tokens": ["anna", "to"], "tags": [1, 0]}])
    rows = rows.cast_column("tags", List(ClassLabel(names=["O", "B-PER"])))
    found = prepare(make("token-classification"), rows, wordpiece(["anna", "to"]))
    assert (found.label_names, found.train["labels"][0]) == (("O", "B-PER"), [-100, 1, 0, -100])


def test_plain_numbers_as_tags_are_sorted_by_size(make: Make) -> None:
    found = prepare(
        make("token-classification"), [{"tokens": ["a", "b", "c"], "tags": [10, 2, 10]}], wordpiece(["a", "b", "c"])
    )
    assert (found.label_names, found.train["labels"][0]) == (("2", "10"), [-100, 1, 0, 1, -100])


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            {"tokens": ["a", "b"], "tags": ["O"]},
            "row 1 of the train split has 2 tokens but 1 tags; give every token one tag",
        ),
        ({"tokens": [], "tags": []}, "row 1 of the train split has no tokens; remove such rows"),
        ({"tokens": ["a"], "tags": None}, "row 1 of the train split has 1 tokens but 0 tags; give every token one tag"),
        (
            {"tokens": ["a", None], "tags": ["O", "O"]},
            "row 1 of the train split has a token that is no text; write every token as a text",
        ),
        (
            {"tokens": ["a"], "tags": [None]},
            "row 1 of the train split has the tag None, outside the train split's set; the tags are O, B-X",
        ),
    ],
)
def test_token_classification_refuses_rows_that_do_not_fit(make: Make, row: dict, told: str) -> None:
    rows = [{"tokens": ["a", "b"], "tags": ["O", "B-X"]}, row]
    assert refusal(make("token-classification"), rows, wordpiece(["a", "b"])) == f"recipe.yaml:3: {told}"


def test_token_classification_refuses_tags_outside_the_set_and_text_that_is_not_split(make: Make) -> None:
    recipe, tokenizer = make("token-classification"), wordpiece(["a", "b"])
    rows = [{"tokens": ["a", "b"], "tags": ["O", "B-X"]}]
    assert refusal(recipe, rows, tokenizer, held_out=[{"tokens": ["a"], "tags": ["B-Y"]}]) == (
        "recipe.yaml:3: row 0 of the eval split has the tag 'B-Y', outside the train split's set; the tags are O, B-X"
    )
    assert refusal(recipe, [{"tokens": "a b", "tags": "O B-X"}], tokenizer) == (
        "recipe.yaml:3: the column 'tokens' holds string, not a list a row: a list of words, and one of their tags; "
        "split the text into words first"
    )


def test_rows_of_which_no_word_is_left_are_refused(make: Make) -> None:
    recipe = make("token-classification", "max_length: 2")
    rows = [{"tokens": ["a", "b"], "tags": ["O", "B-X"]}]
    assert refusal(recipe, rows, wordpiece(["a", "b"]), length=2) == (
        "recipe.yaml:3: no word of the train split has a sub-token within 2 tokens: all labels are masked; "
        "raise dataset.max_length"
    )


@pytest.mark.slow
def test_minilms_tokenizer_aligns_every_word(make: Make, root: Path) -> None:
    from transformers import AutoTokenizer

    model = root / "runs/assets/minilm"
    if not model.is_dir():
        pytest.skip("python recipes/data/prepare.py minilm unpacks it")
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = Dataset.from_json(str(root / "recipes/data/names/validation.jsonl")).select(range(200))
    found = prepare(make("token-classification"), rows, tokenizer, length=512)
    for row, ids, labels in zip(rows, found.train["input_ids"], found.train["labels"], strict=True):
        tags = [found.label_names[i] for i in labels if i != -100]
        assert tags == row["tags"]
        first = [i for i, label in zip(ids, labels, strict=True) if label != -100]
        starts = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in row["tokens"]]
        assert first == starts
    assert Value("string") == rows.features["tokens"].feature
