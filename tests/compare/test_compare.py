"""`hf-recipes compare`: which run is better, whether that can be told, and what cannot be compared."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_recipes.commands.compare import command
from hf_recipes.compare.pairing import find_stretches
from hf_recipes.data.row_ids import example_ids
from hf_recipes.errors import RecipeError
from hf_recipes.evaluation.scores import score_batches, write_scores
from hf_recipes.record import (
    DataFacts,
    RecipeFacts,
    RunRecord,
    Stage,
    Status,
    Timing,
)
from hf_recipes.record.file import write_record

N, NAMES = 400, ("negative", "positive")
IDS = example_ids({"text": f"row {i}"} for i in range(N))
GOLD = np.random.default_rng(0).integers(0, 2, N)


def _run(name: str, share: float, *, seed: int = 0, rate: float = 1e-4, ids: list[str] = IDS, **record: object) -> str:
    """A finished run of a classifier that is right on about `share` of the examples."""
    rng = np.random.default_rng(seed)
    hard = np.random.default_rng(99).random(N)  # the same examples are hard for all
    draw = np.where(rng.random(N) < 0.7, hard, rng.random(N))
    predicted = np.where(draw < share, GOLD, 1 - GOLD)
    logits = np.eye(2)[predicted] * 2
    folder = Path(name)
    folder.mkdir(parents=True)
    batches = score_batches("text-classification", ids=ids, predictions=logits[: len(ids)], label_ids=GOLD[: len(ids)])
    write_scores(folder / "scores.parquet", "text-classification", batches, label_names=NAMES)
    arguments = {"learning_rate": rate, "seed": seed, "output_dir": name}
    facts: dict[str, Any] = {
        "recipe": RecipeFacts(path="r.yaml", sections={"TrainingArguments": arguments}),
        "upstream_defaults": {"optim": "adamw_torch_fused"},
        "time": Timing(train_seconds=10.0),
    }
    _write_record(folder, "text-classification", **{**facts, **record})
    return name


def _write_record(folder: Path, task: str, **facts: Any) -> None:
    scores = {"eval": "scores.parquet"}
    write_record(folder, RunRecord(**{"task": task, "status": Status.FINISHED, "scores": scores, **facts}))


def _refusal(*arguments: object, **words: object) -> str:
    with pytest.raises(RecipeError) as raised:
        command(*arguments, **words)  # type: ignore[arg-type]
    return str(raised.value)


def test_a_trained_run_is_better_than_an_untrained_one(folder: Path) -> None:
    said = command([_run("untrained", 0.5), _run("trained", 0.9, seed=1)], resamples=1000)
    found = re.match(
        r"  f1: trained is better than untrained, \+(\S+) points \(.*95%: \+(\S+) to \+(\S+) points;", said[3]
    )
    assert found and float(found[2]) < float(found[1]) < float(found[3])
    assert said[-1].startswith("this is about these models, not about their recipes")


def test_two_copies_of_a_run_show_no_difference_and_one_path_twice_is_refused(folder: Path) -> None:
    _run("a", 0.8)
    shutil.copytree("a", "b")
    said = command(["a", "b"], resamples=200)
    assert re.fullmatch(
        r"  f1: no difference on any example \(a (\S+) %, b \1 %; on others like them, 95%: -0\.\d to \+0\.\d points\)",
        said[3],
    )
    assert "  examples: 0 gained, 0 lost" in said
    assert _refusal(["a", "a/record.json"]) == "a/record.json: the same run as 'a'; give each run once"


def test_seeds_of_one_recipe_do_not_differ_from_other_seeds_of_a_similar_one(folder: Path) -> None:
    runs = [_run(f"a-{seed}", 0.85, seed=seed) for seed in (1, 2, 3)]
    runs += [_run(f"b-{seed}", 0.85, seed=seed, rate=2e-4) for seed in (4, 5, 6)]
    said = command(runs, group="recipe", resamples=500)
    assert said[2] == "b (3 runs) against a (3 runs)"
    assert "cannot tell" in said[3] and "Student's t over seeds and examples" in said[3]
    assert re.search(r"a difference below \d\.\d points is missed here at least one time in 5$", said[3])
    assert "about these models" not in said[-1]
    assert "the only run of its recipe" in _refusal([*runs[:3], runs[3]], group="recipe")
    assert "all 3 runs have the same recipe" in _refusal(runs[:3], group="recipe")


def test_three_seeds_of_a_much_better_recipe_are_better(folder: Path) -> None:
    runs = [_run(f"a-{seed}", 0.7, seed=seed) for seed in (1, 2, 3)]
    runs += [_run(f"b-{seed}", 0.9, seed=seed, rate=2e-4) for seed in (4, 5, 6)]
    assert "b (3 runs) is better than a (3 runs)" in command(runs, group="recipe", resamples=500)[3]


def test_other_data_are_refused_and_common_compares_what_is_shared(folder: Path) -> None:
    _run("a", 0.8)
    _run("b", 0.8, seed=1, ids=IDS[:300])
    assert _refusal(["a", "b"]) == (
        "hf-recipes compare: a and b were evaluated on different examples: 100 of 400 are not in the second, 0 of 300 "
        "not in the first; --common compares the 300 that both have"
    )
    assert command(["a", "b"], common=True, resamples=200)[0].startswith("text-classification, 300 examples")
    other = example_ids({"text": f"other {i}"} for i in range(N))
    _run("c", 0.8, ids=other)
    assert "the runs share no evaluated example" in _refusal(["a", "c"], common=True)


def test_what_is_not_an_evaluated_run_is_refused_with_one_message_each(folder: Path) -> None:
    _run("a", 0.8)
    _run("b", 0.8, seed=1)
    _run("unscored", 0.8, scores={}, status=Status.FAILED, stage=Stage.TRAINING)
    _run("newer", 0.8, schema=99)
    assert _refusal(["a", "unscored"]) == (
        "unscored/record.json: the run has no per-example scores of its eval split (it is 'failed', in training); "
        "evaluate it: do_train: false"
    )
    assert "a record of version 99; this hf_recipes reads up to" in _refusal(["a", "newer"])
    both = _refusal(["none", "newer", "a"])
    assert "none: no such record" in both and "version 99" in both
    whole = Path("b/scores.parquet").read_bytes()
    Path("b/scores.parquet").write_bytes(whole[: len(whole) // 2])
    assert _refusal(["a", "b"]).startswith("b/scores.parquet: not a complete Parquet file")
    assert _refusal(["a"]) == "hf-recipes compare: a comparison needs two runs or more; name another run"
    assert "text-classification has no 'bleu' here; it must be one of f1, accuracy" in _refusal(
        ["a", _run("d", 0.8, seed=3)], metric="bleu"
    )


def test_perplexity_across_tokenizers_gives_way_to_bits_per_byte(folder: Path) -> None:
    rng = np.random.default_rng(0)
    n_bytes = rng.integers(50, 500, 60)
    for name, a_token in (("a", 4.0), ("b", 3.0)):
        Path(name).mkdir()
        tokens = np.ceil(n_bytes / a_token)
        rows = np.stack([n_bytes * 0.7 + rng.normal(0, 3, 60), tokens], axis=1)
        batches = score_batches("chat", ids=IDS[:60], predictions=rows, n_bytes=n_bytes)
        write_scores(Path(name) / "scores.parquet", "chat", batches)
        _write_record(Path(name), "chat")
    said = command(["a", "b"], resamples=500)
    assert said[3].startswith("  bits_per_byte: ") and not any("perplexity:" in line for line in said)
    assert any(line.startswith("perplexity is left out: the runs have different tokens") for line in said)


def test_the_reports_have_what_was_printed_and_the_same_seed_gives_the_same_numbers(folder: Path) -> None:
    _run("a", 0.8)
    _run("b", 0.84, seed=1, rate=3e-4)
    command(["a", "b"], output="out", resamples=500)
    found = json.loads(Path("out/compare.json").read_text(encoding="utf-8"))
    again = json.loads("\n".join(command(["a", "b"], as_json=True, resamples=500)))
    assert found == again and found["examples"] == N
    f1 = next(one for one in found["findings"] if one["metric"] == "f1")
    assert f1["low"] < f1["difference"] < f1["high"] and 0 < f1["p"] <= 1
    text = Path("out/compare.md").read_text(encoding="utf-8")
    assert "| TrainingArguments.learning_rate | `0.0001` | `0.0003` |" in text and "upstream" not in text
    assert "### Labels" in text and "| negative | " in text


def test_three_seeds_against_three_other_seeds_of_one_recipe_do_not_differ(folder: Path) -> None:
    runs = [_run(f"seed-{seed}", 0.85, seed=seed) for seed in range(6)]
    said = command(runs, group="recipe", resamples=500)
    assert said[2] == "seed-3 to seed-5 (3 runs) against seed-0 to seed-2 (3 runs)"
    assert "f1: cannot tell" in said[3]
    assert said[-1] == "all runs have the same recipe and differ only in their seeds: every difference is chance"
    named = [_run(f"{side}-{seed}", 0.85, seed=seed) for side, seed in zip("aababb", range(6, 12), strict=True)]
    assert command(named, group="recipe", resamples=500)[2] == "b (3 runs) against a (3 runs)"


def test_an_interval_of_two_shares_ends_at_a_hundred_points(folder: Path) -> None:
    runs = [_run(f"a-{seed}", share, seed=seed) for seed, share in enumerate((0.5, 0.9))]
    runs += [_run(f"b-{seed}", share, seed=seed + 5, rate=1.0) for seed, share in enumerate((0.95, 0.55))]
    command(runs, group="recipe", resamples=200, output="out")
    found = json.loads(Path("out/compare.json").read_text())["findings"]
    assert all(one["low"] >= -1 and one["high"] <= 1 and one["detectable"] <= 1 for one in found)


def _text_run(name: str, sizes: list[int], bits: np.ndarray, text: str = "one text", task: str = "causal-lm") -> str:
    """A language model's run over rows of so many bytes; `bits` a byte at each place of the text."""
    Path(name).mkdir()
    ends = np.cumsum(sizes)
    nats = np.array([bits[end - size : end].sum() for size, end in zip(sizes, ends, strict=True)]) * np.log(2)
    rows = np.stack([nats, np.array(sizes) / 4], axis=1)
    ids = example_ids({"row": f"{name} {i}"} for i in range(len(sizes)))  # token ids: other rows, other ids
    write_scores(Path(name) / "scores.parquet", task, score_batches(task, ids=ids, predictions=rows, n_bytes=sizes))
    _write_record(Path(name), task, data={"eval": DataFacts(fingerprint=text)})
    return name


def test_one_text_in_other_rows_is_compared_by_stretches_in_bits_per_byte(folder: Path) -> None:
    rng = np.random.default_rng(0)
    hard = np.repeat(rng.gamma(4, 0.3, 200), 300)  # parts of a text are as hard for every model
    _text_run("coarse", [600] * 100, hard)
    _text_run("fine", [len(part) for part in np.array_split(hard, 230)], hard - 0.05 + rng.normal(0, 0.2, len(hard)))
    said = command(["coarse", "fine"], resamples=1000)
    assert said[0].startswith("causal-lm, 25 examples")
    found = re.match(r"  bits_per_byte: fine is better than coarse, -(\S+) \(.*95%: -(\S+) to -(\S+);", said[3])
    assert found and float(found[1]) == pytest.approx(0.05, abs=0.01)
    assert any("compared over 25 stretches of it" in line for line in said)
    moved = re.search(r"examples: (\d+) gained, (\d+) lost", "\n".join(said))
    assert moved and int(moved[1]) > 20 and int(moved[2]) < 5  # by bytes: there are more tokens in the finer rows
    assert any(line.startswith("perplexity is left out") for line in said)
    _text_run("other", [500] * 120, hard, text="another text")
    assert "were evaluated on different examples" in _refusal(["coarse", "other"])


def test_conversations_are_paired_by_their_order_across_tokenizers(folder: Path) -> None:
    bits = np.full(60 * 400, 1.0)
    for name in ("a", "b"):
        _text_run(name, [400] * 60, bits, task="chat")
    said = command(["a", "b"], resamples=200)
    assert said[3].startswith("  bits_per_byte: no difference on any example")
    assert any(line.startswith("the conversations have different tokens") for line in said)
    _text_run("c", [400] * 59, bits, task="chat")
    assert "a different number of them was left out" in _refusal(["a", "c"])


@pytest.mark.parametrize("seed", range(20))
def test_stretches_cover_every_row_of_every_run_once_and_end_at_the_same_places_of_the_text(seed: int) -> None:
    rng = np.random.default_rng(seed)
    total = 40_000
    sizes = []
    for rows in rng.integers(12, 400, 3):
        ends = np.sort(rng.choice(np.arange(1, total), rows - 1, replace=False))
        sizes.append(np.diff(np.concatenate([[0], ends, [total]])))
    cuts = find_stretches(sizes)
    assert len({len(ends) for ends in cuts}) == 1
    for ends, part in zip(cuts, sizes, strict=True):
        assert (np.diff(ends) > 0).all() and ends[0] > 0 and ends[-1] == len(part)
    places = np.array([np.cumsum(part)[ends - 1] for ends, part in zip(cuts, sizes, strict=True)])
    longest = max(part.max() for part in sizes)
    assert (np.ptp(places, axis=0) <= longest).all()
