"""Per-example scores: written in batches, read back as they were, and refused when the file is not complete."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_recipes.data.row_ids import example_ids
from hf_recipes.errors import RecipeError
from hf_recipes.evaluation import scores
from hf_recipes.evaluation import scores as scores_file
from hf_recipes.evaluation.scores import read_examples, read_scores, score_batches, write_examples, write_scores

ROWS, NAMES = 23, ("O", "B-A", "I-A")
IDS = example_ids({"text": f"row {i}"} for i in range(ROWS))


def test_ids_are_of_the_content_whatever_the_order_of_rows_keys_and_processes() -> None:
    rows: list[dict[str, Any]] = [{"text": f"ü {i}", "label": i % 3, "tokens": ["a", "b"]} for i in range(50)]
    shuffled = [dict(reversed(row.items())) for row in random.Random(0).sample(rows, len(rows))]
    assert sorted(example_ids(rows)) == sorted(example_ids(shuffled))
    assert len(set(example_ids(rows))) == 50
    script = "import json, sys; from hf_recipes.data.row_ids import example_ids as i; print(i(json.load(sys.stdin)))"
    other = subprocess.run([sys.executable, "-c", script], input=json.dumps(rows), capture_output=True, text=True)
    assert other.stdout == f"{example_ids(rows)}\n"


def test_copies_of_an_example_get_ids_of_their_own() -> None:
    once, copies = example_ids([{"text": "a"}]), example_ids([{"text": "a"}, {"text": "b"}, {"text": "a"}])
    assert copies[0] == once[0] and len(set(copies)) == 3


def test_columns_that_json_does_not_know_have_ids_too() -> None:
    with_array, with_list = {"x": np.array([1, 2]), "b": b"\xff"}, {"x": [1, 2], "b": "ff"}
    assert example_ids([with_array]) == example_ids([with_list])


def test_text_classification_keeps_gold_prediction_and_probabilities(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    logits, gold = rng.normal(size=(ROWS, 3)).astype(np.float32) * 50, rng.integers(0, 3, size=ROWS)
    batches = score_batches("text-classification", ids=IDS, predictions=logits, label_ids=gold, batch_rows=10)
    assert write_scores(tmp_path / "s.parquet", "text-classification", batches, label_names=NAMES) == ROWS
    scores = read_scores(tmp_path / "s.parquet")
    assert (scores.task, scores.label_names) == ("text-classification", NAMES)
    found = scores.table.to_pydict()
    assert found["id"] == IDS and found["gold"] == gold.tolist()
    assert found["predicted"] == logits.argmax(1).tolist()
    assert found["correct"] == (logits.argmax(1) == gold).tolist()
    exact = np.exp(logits.astype(np.float64) - np.logaddexp.reduce(logits.astype(np.float64), axis=1)[:, None])
    np.testing.assert_allclose(found["probabilities"], exact, rtol=1e-6, atol=1e-30)
    assert pq.ParquetFile(tmp_path / "s.parquet").num_row_groups == 3  # it was streamed


def test_token_classification_keeps_tag_sequences_without_padding(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    gold = rng.integers(-1, 3, size=(ROWS, 7))
    gold[gold == -1] = -100
    gold[4] = -100  # a sentence without a label
    tags, rows = rng.integers(0, 3, size=gold.shape), np.stack([rng.random(ROWS), (gold != -100).sum(1)], axis=1)
    batches = score_batches("token-classification", ids=IDS, predictions=(tags, rows), label_ids=gold, batch_rows=10)
    write_scores(tmp_path / "s.parquet", "token-classification", batches, label_names=NAMES)
    found = read_scores(tmp_path / "s.parquet").table.to_pydict()
    assert found["gold"] == [row[row != -100].tolist() for row in gold]
    assert found["predicted"] == [row[labels != -100].tolist() for row, labels in zip(tags, gold, strict=True)]
    assert found["nll_sum"] == rows[:, 0].tolist() and found["n_tokens"] == [len(row) for row in found["gold"]]


@pytest.mark.parametrize("task", ["causal-lm", "chat"])
def test_language_models_keep_sums_tokens_and_bytes(task: str, tmp_path: Path) -> None:
    rows = np.stack([np.random.default_rng(0).random(ROWS) * 1e5, np.arange(ROWS)], axis=1)
    for n_bytes in (None, list(range(ROWS))):
        batches = score_batches(task, ids=IDS, predictions=rows, n_bytes=n_bytes)
        write_scores(tmp_path / "s.parquet", task, batches)
        found = read_scores(tmp_path / "s.parquet").table.to_pydict()
        assert found == {
            "id": IDS,
            "nll_sum": rows[:, 0].tolist(),  # float64, to the last bit
            "n_tokens": list(range(ROWS)),
            "n_bytes": n_bytes or [None] * ROWS,
        }


def test_a_number_of_ids_that_is_not_that_of_the_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as refused:
        write_scores(tmp_path / "s", "causal-lm", score_batches("causal-lm", ids=IDS, predictions=np.zeros((5, 2))))
    assert str(refused.value) == "per-example scores: 23 ids for arrays of 5 rows"


def test_an_evaluation_that_is_interrupted_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    path.write_bytes(b"the scores of before")

    def broken() -> Any:
        yield from score_batches("causal-lm", ids=IDS, predictions=np.zeros((ROWS, 2)))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scores(path, "causal-lm", broken())
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"the scores of before"


def test_an_empty_evaluation_set_has_no_scores(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as refused:
        write_scores(tmp_path / "s", "chat", score_batches("chat", ids=[], predictions=np.zeros((0, 2))))
    assert str(refused.value) == f"{tmp_path}/s: the evaluation set is empty: there are no per-example scores"


def test_a_truncated_missing_foreign_or_newer_file_is_refused_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"

    def message() -> str:
        with pytest.raises(RecipeError) as refused:
            read_scores(path)
        return str(refused.value)

    assert message() == f"{path}: no such file; was the run evaluated? its scores are beside record.json"
    write_scores(path, "chat", score_batches("chat", ids=IDS, predictions=np.zeros((ROWS, 2))))
    complete = path.read_bytes()
    for size in (0, 3, len(complete) // 2, len(complete) - 1):
        path.write_bytes(complete[:size])
        assert message().startswith(f"{path}: not a complete Parquet file (")
        assert message().endswith("; copy the file again, or evaluate the run again")
    damaged = bytearray(complete)
    damaged[10:200] = b"\0" * 190
    path.write_bytes(damaged)
    assert message().startswith(f"{path}: not a complete Parquet file (")
    pq.write_table(pa.table({"id": ["a"]}), path)
    assert message() == f"{path}: a Parquet file, but not one of per-example scores"
    about = json.dumps({"version": 2, "task": "chat", "label_names": []})
    pq.write_table(pa.table({"id": ["a"]}).replace_schema_metadata({"hf_recipes.scores": about}), path)
    assert message() == f"{path}: scores of version 2; this hf_recipes reads up to 1; upgrade hf_recipes"
    about = json.dumps({"version": 1, "task": "chat", "label_names": []})
    pq.write_table(pa.table({"id": ["a"]}).replace_schema_metadata({"hf_recipes.scores": about}), path)
    assert message().startswith(f"{path}: scores without the column 'nll_sum'; ")


def test_probabilities_of_very_large_and_very_small_logits_are_numbers(tmp_path: Path) -> None:
    logits = np.array([[1e4, 1e4 + 1, 0], [-1e4, -1e4 - 1, -2e4]], dtype=np.float32)  # exp of each is inf, or 0
    batches = score_batches("text-classification", ids=["a", "b"], predictions=logits, label_ids=np.array([0, 1]))
    write_scores(tmp_path / "s.parquet", "text-classification", batches, label_names=NAMES)
    found = read_scores(tmp_path / "s.parquet").table["probabilities"].to_pylist()
    low, high = 1 / (1 + np.e), np.e / (1 + np.e)
    np.testing.assert_allclose(found, [[low, high, 0], [high, low, 0]], atol=1e-6)


def test_texts_of_examples_are_read_back_by_their_ids_and_shortened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores_file, "BATCH_ROWS", 4)  # several batches, the last one not full
    path, texts = tmp_path / "examples.parquet", [f"{i} " + "x" * 300 for i in range(ROWS)]
    texts[5] = "half a character: \ud83d"
    write_examples(path, IDS, iter(texts))
    assert read_examples(path, IDS) == {
        one: text[:200].replace("\ud83d", "?") for one, text in zip(IDS, texts, strict=True)
    }
    assert read_examples(path, [IDS[7], "unknown"]) == {IDS[7]: texts[7][:200]}
    assert list(tmp_path.iterdir()) == [path]
    assert pq.ParquetFile(path).num_row_groups == 6


def test_texts_of_examples_are_complete_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "examples.parquet"

    def interrupted() -> Any:
        yield "one"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_examples(path, IDS, interrupted())
    assert list(tmp_path.iterdir()) == []
    assert read_examples(path, IDS) == {}
    path.write_bytes(b"PAR1 no")
    assert read_examples(path, IDS) == {}


def test_texts_of_examples_are_read_back_cut_to_an_excerpt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "BATCH_ROWS", 3)
    path, ids = tmp_path / "examples.parquet", [f"id {i}" for i in range(8)]
    texts = [*(f"text {i}" for i in range(6)), "x" * 500, "lone \ud800 surrogate"]
    scores.write_examples(path, ids, texts)
    assert list(tmp_path.iterdir()) == [path] and pq.ParquetFile(path).num_row_groups == 3
    found = scores.read_examples(path, ["id 0", "id 5", "id 6", "id 7", "unknown"])
    assert found == {"id 0": "text 0", "id 5": "text 5", "id 6": "x" * 200, "id 7": "lone ? surrogate"}
    path.write_bytes(path.read_bytes()[:-9])
    assert scores.read_examples(path, ids) == {} == scores.read_examples(tmp_path / "none", ids)


def test_probabilities_of_large_logits_do_not_overflow(tmp_path: Path) -> None:
    logits = np.array([[1e5, 1e5 - 1.0, -1e5], [-2e5, -2e5, -2e5]])
    batches = score_batches("text-classification", ids=["a", "b"], predictions=logits, label_ids=np.array([0, 1]))
    write_scores(tmp_path / "s", "text-classification", batches)
    first, second = read_scores(tmp_path / "s").table.to_pydict()["probabilities"]
    assert first == pytest.approx([1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1)), 0]) and second == pytest.approx(
        [1 / 3] * 3
    )
