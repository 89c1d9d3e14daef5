"""Which runs can be compared, and over which examples: by scores made by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from hf_recipes.compare.pairing import find_stretches, pair_runs
from hf_recipes.errors import RecipeError
from hf_recipes.evaluation.scores import Scores
from hf_recipes.record import DataFacts, RunRecord


def _run(name: str, ids: str, gold: list[int], labels: tuple[str, ...] = ("no", "yes"), **fields: Any) -> Any:
    table = pa.table({"id": list(ids), "gold": gold, "predicted": gold, "correct": [True] * len(gold)})
    scores = Scores(task="text-classification", label_names=labels, table=table)
    return SimpleNamespace(
        **{
            "name": name,
            "task": "text-classification",
            "scored_as": "text-classification",
            "record": RunRecord(task=""),
            "scores": lambda split: scores,
        }
        | fields
    )


def _refusal(*runs: Any, **options: Any) -> str:
    with pytest.raises(RecipeError) as raised:
        pair_runs(runs, **options)
    return str(raised.value)


def test_runs_of_two_tasks_are_refused() -> None:
    assert "chat, text-classification" in _refusal(_run("a", "xy", [0, 1]), _run("b", "xy", [0, 1], scored_as="chat"))


def test_other_labels_and_the_same_labels_in_another_order_are_refused() -> None:
    first = _run("a", "xy", [0, 1])
    swapped = _refusal(first, _run("b", "xy", [1, 0], ("yes", "no")))
    assert "number the same labels differently (a: no, yes; b: yes, no)" in swapped
    other = _refusal(first, _run("b", "xy", [1, 0], ("no", "maybe")))
    assert "different label sets (a: no, yes; b: no, maybe)" in other


@pytest.mark.parametrize("known", [True, False])
def test_examples_are_brought_into_the_order_of_the_first_run(known: bool) -> None:
    first, second = (
        _run("a", "xyz", [0, 1, 0]),
        _run("b", "zyx" if known else "zy-x", [0, 1, 0] if known else [0, 1, 1, 0]),
    )
    found = pair_runs([first, second], common=not known)
    assert [scores.table["id"].to_pylist() for scores in found.scores] == [["x", "y", "z"]] * 2
    assert [scores.table["gold"].to_pylist() for scores in found.scores] == [[0, 1, 0]] * 2
    assert found.examples == 3 and found.split == "eval"
    assert found.notes == (() if known else ("compared over the 3 examples that all runs have (--common)",))


def test_examples_that_only_one_run_has_are_counted_on_both_sides() -> None:
    first, second = _run("a", "wxyz", [0, 1, 0, 1]), _run("b", "xyzuv", [1, 0, 1, 0, 1])
    message = _refusal(first, second)
    assert "1 of 4 are not in the second, 2 of 5 not in the first; --common compares the 3" in message
    assert "evaluate both on one data set" in _refusal(first, _run("c", "1234", [0, 1, 0, 1]))
    assert "share no evaluated example" in _refusal(first, _run("c", "1234", [0, 1, 0, 1]), common=True)
    more, less = _run("c", "wxyzq", [0, 1, 0, 1, 0]), _run("d", "wxy", [0, 1, 0])
    assert "0 of 4 are not in the second, 1 of 5 not in the first" in _refusal(first, more)
    assert "1 of 4 are not in the second, 0 of 3 not in the first" in _refusal(first, less)
    assert pair_runs([first, more, less], common=True).examples == 3


def test_one_metric_is_compared_where_one_is_named() -> None:
    runs = [_run("a", "xy", [0, 1]), _run("b", "xy", [0, 1])]
    assert [measure.name for measure in pair_runs(runs, metric="accuracy").measures] == ["accuracy"]
    assert [m.name for m in pair_runs(runs).measures] == ["f1", "accuracy", "f1_micro", "f1_weighted"]
    assert "text-classification has no 'bleu' here" in _refusal(*runs, metric="bleu")


# language models ----------------------------------------------------------------------------------------------------


def _text_run(
    name: str, sizes: list[int | None], task: str = "causal-lm", text: str | None = "t", tokens: int = 5
) -> Any:
    n = len(sizes)
    columns = {"nll_sum": [float(i) for i in range(n)], "n_tokens": [tokens] * n, "n_bytes": sizes}
    table = pa.table({"id": [f"{name}{i}" for i in range(n)], **columns})
    scores = Scores(task=task, label_names=(), table=table)
    record = RunRecord(task=task, data={"eval": DataFacts(fingerprint=text or "")})
    return SimpleNamespace(name=name, task=task, scored_as=task, record=record, scores=lambda split: scores)


def test_rows_of_one_text_are_added_up_to_stretches() -> None:
    found = pair_runs([_text_run("a", [10] * 12), _text_run("b", [5] * 24)])
    assert [measure.name for measure in found.measures] == ["bits_per_byte"]
    coarse, fine = (scores.table for scores in found.scores)
    assert coarse["n_bytes"].to_pylist() == fine["n_bytes"].to_pylist() == [40, 40, 40]
    assert coarse["nll_sum"].to_pylist() == [6.0, 22.0, 38.0] and fine["nll_sum"].to_pylist() == [28.0, 92.0, 156.0]
    assert coarse["id"].to_pylist() == ["stretch 1", "stretch 2", "stretch 3"]
    assert "compared over 3 stretches of it" in found.notes[0] and "perplexity is left out" in found.notes[1]


def test_a_third_run_with_other_rows_is_enough_to_compare_by_stretches() -> None:
    found = pair_runs([_text_run("a", [10] * 12), _text_run("a", [10] * 12), _text_run("b", [5] * 24)])
    assert [scores.table["n_bytes"].to_pylist() for scores in found.scores] == [[40, 40, 40]] * 3


@pytest.mark.parametrize("texts", [("t", "u"), (None, None), ("t", None)])
def test_rows_of_texts_that_are_not_known_to_be_one_are_not_added_up(texts: tuple[Any, Any]) -> None:
    runs = [_text_run(name, [10] * 12, text=text) for name, text in zip("ab", texts, strict=True)]
    assert "were evaluated on different examples" in _refusal(*runs)


def test_rows_whose_bytes_are_not_known_are_not_added_up() -> None:
    assert "were evaluated on different examples" in _refusal(_text_run("a", [10, None]), _text_run("b", [10, 10]))


def test_conversations_are_paired_by_their_order_and_only_in_equal_number() -> None:
    found = pair_runs([_text_run("a", [10, 20, 30], "chat"), _text_run("b", [10, 20, 30], "chat", tokens=6)])
    assert [scores.table["n_bytes"].to_pylist() for scores in found.scores] == [[10, 20, 30]] * 2
    assert found.notes[0].startswith("the conversations have different tokens")
    assert "a different number of them was left out" in _refusal(
        _text_run("a", [1, 2], "chat"), _text_run("b", [1], "chat")
    )


def test_the_same_rows_with_the_same_tokens_are_compared_by_perplexity() -> None:
    first = _text_run("a", [10, 20])
    for tokens, expected in ((5, ["perplexity", "bits_per_byte"]), (6, ["bits_per_byte"])):
        second = _text_run("a", [10, 20], tokens=tokens)
        found = pair_runs([first, second])
        assert [measure.name for measure in found.measures] == expected
        assert bool(found.notes) is (tokens == 6)
    unknown = [_text_run("a", [None, None], tokens=tokens) for tokens in (5, 6)]
    assert "perplexity cannot be compared across tokenizers" in _refusal(*unknown)


def test_stretches_are_four_rows_of_the_run_with_fewest_and_end_where_the_texts_share_is_the_same() -> None:
    def ends(*sizes: list[int]) -> list[list[int]]:
        return [cut.tolist() for cut in find_stretches([np.array(part) for part in sizes])]

    assert ends([10] * 12, [5] * 24) == [[4, 8, 12], [8, 16, 24]]
    assert ends([10] * 12, [20] * 12) == [[4, 8, 12]] * 2  # by shares: a run may lack the last bytes
    assert ends([10] * 7, [10] * 7) == [[4, 7]] * 2 and ends([10] * 6, [10] * 6) == [[6]] * 2
    assert ends([10] * 8, [10] * 8) == [[4, 8]] * 2
    assert ends([1] * 3, [3]) == [[3], [1]]
    assert ends([10] * 12, [4, 36, 40, 40]) == [[12], [4]] and ends([0, 0], [0]) == [[2], [1]]
