"""`streaming: true`: rows are read while the run trains, and a resumed run reads what an uninterrupted one would."""

from __future__ import annotations

import itertools
import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from hf_recipes.checkpoints.folders import list_checkpoints
from hf_recipes.cli import main
from hf_recipes.data.splits import load_splits
from hf_recipes.data.streamed_rows import TokenStream, make_text_stream
from hf_recipes.data.streaming import Stream
from hf_recipes.errors import DataError, RecipeError
from hf_recipes.pipeline.run import run
from hf_recipes.recipe.read import read_recipe
from hf_recipes.record.file import read_record
from tests.support.killed_runs import run_until_killed

RECIPE = """
task: causal-lm
model: {config: {model_type: gpt2, n_layer: 1, n_head: 2, n_embd: 16, n_positions: 16}}
tokenizer: {pretrained_model_name_or_path: tokenizer}
dataset:
  path: json
  data_files: {train: [a.jsonl, b.jsonl], validation: v.jsonl}
  streaming: true
  buffer_size: 20
  max_length: 16
TrainingArguments: {output_dir: out, max_steps: 12, save_steps: 2, per_device_train_batch_size: 4, logging_steps: 1}
"""


def save_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["<end>", "<unk>", *(f"w{i}" for i in range(200))])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", unk_token="<unk>")
    tokenizer.save_pretrained("tokenizer")
    return tokenizer


@pytest.fixture
def recipe(write_recipe: Callable[..., str]) -> str:
    draw = random.Random(0)
    for name, rows in (("a", 60), ("b", 60), ("v", 12)):
        texts = [" ".join(f"w{draw.randrange(200)}" for _ in range(draw.randrange(0, 20))) for _ in range(rows)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    save_tokenizer()
    return write_recipe(RECIPE)


def stream(*, seed: int = 0) -> TokenStream:
    rows = datasets.load_dataset("json", data_files=["a.jsonl", "b.jsonl"], streaming=True, split="train")
    found = Stream(rows=rows, head=datasets.Dataset.from_dict({}), notes=[], explain=str)
    recipe = read_recipe("recipe.yaml", [f"TrainingArguments.seed={seed}"])
    return make_text_stream(recipe, found, "text", save_tokenizer(), 16)


def blocks(found: TokenStream, count: int) -> list[list[int]]:
    return [row["input_ids"] for row in itertools.islice(found, count)]


def losses(path: Path) -> list[tuple[int, float]]:
    entries = json.loads(path.read_text())["log_history"]
    return [(entry["step"], entry["loss"]) for entry in entries if "loss" in entry]


def test_a_pass_has_every_token_once_in_an_order_of_the_seed_and_the_next_pass_has_another(recipe: str) -> None:
    texts = [json.loads(line)["text"] for name in "ab" for line in Path(f"{name}.jsonl").read_text().splitlines()]
    tokenizer = save_tokenizer()
    wanted = sorted(token for text in texts if text for token in [*tokenizer(text)["input_ids"], 0])
    whole = len(wanted) // 16
    first = blocks(stream(), 2 * whole)
    assert blocks(stream(), 2 * whole) == first and blocks(stream(seed=1), whole) != first[:whole]
    seen = sorted(itertools.chain(*first[:whole]))
    missing = list(wanted)
    for token in seen:
        missing.remove(token)
    assert len(missing) == len(wanted) % 16  # they begin the next block, with the next pass
    assert first[whole:] != first[:whole]
    assert {len(block) for block in first} == {16}


def test_after_any_number_of_batches_a_resumed_loader_reads_the_next_ones(recipe: str) -> None:
    from accelerate import skip_first_batches
    from torch.utils.data import DataLoader

    def loader() -> DataLoader[Any]:
        return DataLoader(stream(), batch_size=4, collate_fn=lambda batch: [row["input_ids"] for row in batch])

    straight, draw = list(itertools.islice(loader(), 63)), random.Random(0)
    for skipped in (draw.randrange(60) for _ in range(12)):
        assert list(itertools.islice(skip_first_batches(loader(), skipped), 3)) == straight[skipped : skipped + 3]


def test_a_split_of_less_than_a_block_is_refused_and_not_read_for_ever(recipe: str) -> None:
    Path("a.jsonl").write_text('{"text": ""}\n', encoding="utf-8")
    Path("b.jsonl").write_text('{"text": "  "}\n', encoding="utf-8")
    with pytest.raises(DataError, match="less than one block of 16 tokens"):
        blocks(stream(), 1)


def test_a_streamed_run_says_so_in_its_record_and_stores_nothing_of_the_train_split(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record = read_record(run(recipe, ["TrainingArguments.max_steps=3"]), strict=True)
    out = capsys.readouterr().out
    assert "train streamed, eval" in out and "train: streamed, and not stored" in out
    assert (record.data["train"].rows, record.tokens) == (0, 3 * 4 * 16)
    assert record.batch is not None and record.batch.tokens_per_step == 4 * 16
    assert record.metrics.of("eval")["eval_perplexity"] > 1


@pytest.mark.slow
def test_a_run_that_is_killed_twice_reads_the_same_blocks_as_one_that_is_not(recipe: str) -> None:
    straight = read_record(run(recipe, ["TrainingArguments.output_dir=straight"]), strict=True)
    draw = random.Random(1)
    run_until_killed(recipe, [], draw.randrange(3, 6))
    run_until_killed(recipe, [], draw.randrange(7, 10), resume=True, number=signal.SIGTERM)
    resumed = read_record(run(recipe, [], resume=True), strict=True)
    assert len(resumed.sessions) == 3
    assert losses(Path("out/record.json")) == losses(Path("straight/record.json"))
    assert (resumed.tokens, resumed.train_loss) == (straight.tokens, straight.train_loss)
    assert resumed.metrics.of("eval")["eval_loss"] == straight.metrics.of("eval")["eval_loss"]


@pytest.mark.parametrize(
    ("text", "new", "wanted"),
    [
        ("max_steps: 12, ", "", "dataset.streaming: true: a stream has no length; write max_steps"),
        (", validation: v.jsonl", "", "dataset.streaming: true: a stream has no share to split off for validation"),
        ("tokenizer: {pretrained_model_name_or_path: tokenizer}", "BpeTrainer: {vocab_size: 400}", "read twice"),
        ("max_steps: 12", "max_steps: 12, dataloader_num_workers: 2", "each worker of the loader would read all rows"),
        ("  streaming: true\n", "", "dataset.buffer_size has no effect without streaming: true; leave it out"),
        (
            "  streaming: true\n",
            "  streaming: true\n  num_proc: 2\n",
            "dataset.num_proc has no effect on a stream; leave",
        ),
        ("max_steps: 12", "max_steps: 12, save_strategy: epoch", "has no epochs, so save_strategy: epoch does nothing"),
        ("max_steps: 12", "max_steps: 12, train_sampling_strategy: group_by_length", "strategy has no effect with"),
        ("task: causal-lm", "task: text-classification", "trains causal-lm with TrainingArguments, and chat"),
    ],
)
def test_what_a_stream_cannot_have_is_refused_before_anything_is_read(
    recipe: str, text: str, new: str, wanted: str
) -> None:
    path = Path(recipe)
    path.write_text(path.read_text().replace(text, new), encoding="utf-8")
    with pytest.raises(RecipeError, match=wanted.replace("(", r"\(")):
        read_recipe(recipe)


def test_a_broken_line_and_a_missing_column_are_errors_without_a_traceback(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a.jsonl").write_text('{"text": "w1"}\n{"text": \n', encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["run", recipe])
    assert "a.jsonl:2 is not JSON" in capsys.readouterr().err
    Path("a.jsonl").write_text('{"body": "w1"}\n', encoding="utf-8")
    Path("b.jsonl").write_text('{"body": "w1"}\n', encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["run", recipe])
    assert "no column 'text' (it has body)" in capsys.readouterr().err


LATE = [  # behind the first part of the file, its first 1,000 rows and some checkpoints
    *("dataset.data_files.train=a.jsonl", "dataset.chunksize=20000", "TrainingArguments.max_steps=100"),
    *("TrainingArguments.per_device_train_batch_size=32", "TrainingArguments.logging_steps=50"),
]
BAD_LINES = {
    '{"text": "broken': "a.jsonl:3001 is not JSON: Unterminated string",
    '{"text": 17}': "a.jsonl:3001 has 17 in the column 'text', a number, where others have a text; write all",
    '{"text": ["w1"]}': "a.jsonl:3001 has [\"w1\"] in the column 'text', a list, where others have a text",
    '{"txt": "w1"}': "a.jsonl:3001 has a column 'txt' that the first rows lack (they have text); give all",
    "[1, 2]": "a.jsonl:3001 is not a JSON object",
    '{"text": "w1 \udcff"}': "a.jsonl:3001 is not UTF-8 text",
}


@pytest.mark.parametrize(
    ("line", "wanted", "workers"), [*((*each, 0) for each in BAD_LINES.items()), (*next(iter(BAD_LINES.items())), 1)]
)
def test_a_bad_line_that_a_run_meets_late_is_one_sentence_and_its_checkpoints_stay(
    recipe: str, line: str, wanted: str, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    good = json.dumps({"text": " ".join(f"w{number}" for number in range(9))}) + "\n"
    text = good * 3_000 + line + "\n" + good * 100
    Path("a.jsonl").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(SystemExit) as ended:
        main(["run", recipe, *LATE, f"TrainingArguments.dataloader_num_workers={workers}"])
    printed = capsys.readouterr().err
    assert (ended.value.code, "Traceback" in printed) == (2, False)
    assert wanted in printed
    record = read_record(Path("out/record.json"), strict=True)
    assert record.status == "failed" and record.steps and record.steps > 2 and wanted in str(record.error)
    assert list_checkpoints(Path("out"))


def test_a_vocabulary_with_a_gap_has_a_row_for_its_largest_id(recipe: str) -> None:
    """Here and not streamed: ids above 65,535 do not fit in 16 bits, however few tokens there are."""
    path = Path("tokenizer/tokenizer.json")
    found = json.loads(path.read_text(encoding="utf-8"))
    found["model"]["vocab"] = {word: n if n < 2 else n + 70_000 for word, n in found["model"]["vocab"].items()}
    path.write_text(json.dumps(found), encoding="utf-8")
    changes = ["dataset.streaming=false", "dataset.buffer_size=null", "TrainingArguments.max_steps=1"]
    record = read_record(run(recipe, changes), strict=True)
    assert record.status == "finished" and record.metrics.of("eval")["eval_perplexity"] > 1


def test_csv_texts_are_the_same_streamed_as_in_a_table(recipe: str) -> None:
    Path("a.csv").write_text("text\nnull\n007\n1.50\nw1 w2\n", encoding="utf-8")
    changes = ["dataset.path=csv", "dataset.data_files.train=a.csv", "dataset.data_files.validation=a.csv"]
    found = load_splits(read_recipe(recipe, changes))
    assert found.stream is not None
    assert (
        [row["text"] for row in found.stream.rows] == list(found.validation["text"]) == ["null", "007", "1.50", "w1 w2"]
    )


@pytest.mark.parametrize("command", ["prepare", "inspect"])
def test_prepare_and_inspect_say_that_there_is_nothing_to_look_at(
    recipe: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, recipe])
    assert "the train split is read while the run trains" in capsys.readouterr().err
