"""What the numbers of a recipe's rows say before a run: facts, findings with the key that fixes each, and samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_recipes.catalog.tasks import TASKS
from hf_recipes.data import near_duplicates, row_measures
from hf_recipes.data.row_checks import COMPARED, check_rows
from hf_recipes.data.splits import load_splits
from hf_recipes.errors import DataError
from hf_recipes.models.config import longest_input

if TYPE_CHECKING:
    from hf_recipes.data.near_duplicates import NearDuplicates
    from hf_recipes.data.prepared import Prepared, Source
    from hf_recipes.pipeline.rows import RecipeRows
    from hf_recipes.recipe.recipe import Recipe

WITHOUT_LIMIT = 2**30  # tokens: longer than any row
SAMPLES, SAMPLE_TOKENS, DECODED_ROWS = 3, 96, 200
LOST, WASTE, REPEATED, FEW_BYTES = 0.01, 0.3, 0.01, 2.0  # what is reported


@dataclass(frozen=True, kw_only=True)
class Padding:
    """Shares of a batch's tokens that are padding."""

    random: float
    grouped: float
    packed: float | None  # of generating tasks with SFTConfig


@dataclass(frozen=True, kw_only=True)
class Finding:
    """`fix`: the key, and its value where one is known."""

    what: str
    fix: str


@dataclass(frozen=True, kw_only=True)
class SplitFacts:
    """`lengths`: of rows that are not cut; None where all rows are blocks of one length."""

    rows: int
    tokens: int
    lost: float = 0.0
    rows_cut: int = 0
    rows_without_label: int = 0
    lengths: np.ndarray | None = None
    quantiles: dict[str, int] = field(default_factory=dict)
    repeated: int = 0  # rows of the data, as they are loaded, that are equal to an earlier one
    compared: int = 0  # rows of the data that were compared: documents, where `rows` are blocks of them


@dataclass(frozen=True, kw_only=True)
class Inspection:
    max_length: int
    bytes_per_token: float
    splits: dict[str, SplitFacts]
    padding: Padding | None
    near: NearDuplicates | None
    samples: list[list[tuple[bool, str]]]  # (learned, text) of the first rows
    findings: list[Finding]


def inspect_rows(rows: RecipeRows, limit: int, say: Callable[[str], None]) -> Inspection:
    """`limit`: rows of each split that are searched for near duplicates."""
    recipe, prepared = rows.recipe, rows.prepared
    blocks = recipe.task == "causal-lm" and recipe.trainer == "TrainingArguments"
    lengths = {} if blocks else _measure(rows)
    splits = {}
    for split, data in {"train": prepared.train, **prepared.evals}.items():
        stats, source, found = prepared.stats[split], prepared.sources[split], lengths.get(split)
        facts = SplitFacts(
            rows=data.num_rows,
            tokens=stats.tokens,
            repeated=_count_repeated(source),
            compared=min(COMPARED, source.rows.num_rows),
        )
        if found is not None:
            facts = SplitFacts(
                rows=len(found.tokens),
                tokens=int(found.tokens.sum()),
                lost=0.0 if recipe.task == "causal-lm" else found.lost,  # its long documents become several rows
                rows_cut=0 if recipe.task == "causal-lm" else int((found.tokens > rows.length).sum()),
                rows_without_label=found.rows_without_label,
                lengths=found.tokens,
                quantiles={f"{share:.0%}": found.length_for(share) for share in (0.95, 0.99, 1.0)},
                repeated=facts.repeated,
                compared=facts.compared,
            )
        splits[split] = facts
    padding = _padding(recipe, lengths["train"].tokens, rows.length) if lengths else None
    near = None
    if limit and near_duplicates.can_search():
        labels = 0 if TASKS[recipe.task].generates else 1
        near = near_duplicates.find_near_duplicates(prepared.sources, labels, limit)
    bytes_per_token = _bytes_per_token(prepared, rows.tokenizer)
    found_here = _find(rows, splits, padding, near, bytes_per_token)
    return Inspection(
        max_length=rows.length,
        bytes_per_token=bytes_per_token,
        splits=splits,
        padding=padding,
        near=near,
        samples=[_sample(row, rows.tokenizer, prepared.label_names) for row in _first(prepared.train)],
        findings=[*found_here, *_checks(rows, say)],
    )


def _measure(rows: RecipeRows) -> dict[str, row_measures.RowLengths]:
    """Of each split, rows that are not cut: made once more without a limit where some were."""
    prepared = rows.prepared
    if any(stats.longest >= rows.length for stats in prepared.stats.values()):
        module = import_module(TASKS[rows.recipe.task].module)
        prepared = module.prepare(load_splits(rows.recipe), rows.tokenizer, rows.recipe, WITHOUT_LIMIT, rows.config)
    return {
        split: row_measures.measure_rows(data, rows.length)
        for split, data in {"train": prepared.train, **prepared.evals}.items()
    }


def _padding(recipe: Recipe, lengths: np.ndarray, max_length: int) -> Padding:
    if recipe.task == "causal-lm":  # pieces
        full = np.full(int((lengths // max_length).sum()), max_length)
        cut = np.concatenate([full, lengths[lengths % max_length > 0] % max_length])
    else:
        cut = np.minimum(lengths, max_length)
    batch = int(recipe.training.get("per_device_train_batch_size") or 8)
    packed = recipe.trainer == "SFTConfig"
    return Padding(
        random=row_measures.padding_share(cut, batch, grouped=False),
        grouped=row_measures.padding_share(cut, batch, grouped=True),
        packed=row_measures.packed_share(cut, max_length) if packed else None,
    )


def _count_repeated(source: Source) -> int:
    """Rows that are equal to an earlier one, of the first 200,000."""
    seen, repeated = set(), 0
    for row in source.rows.select_columns(list(source.columns)).select(range(min(COMPARED, source.rows.num_rows))):
        name = blake2b(repr(row).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        repeated += name in seen
        seen.add(name)
    return repeated


def _bytes_per_token(prepared: Prepared, tokenizer: Any) -> float:
    """Of the first rows' text, special tokens left out of both."""
    special, size, tokens = set(tokenizer.all_special_ids), 0, 0
    for row in _first(prepared.train, DECODED_ROWS):
        ids = [i for i in row["input_ids"] if i not in special]
        size += len(tokenizer.decode(ids).encode())
        tokens += len(ids)
    return size / max(1, tokens)


def _first(rows: Any, count: int = SAMPLES) -> Any:
    return rows.select(range(min(count, rows.num_rows)))


def _sample(row: dict[str, Any], tokenizer: Any, names: tuple[str, ...]) -> list[tuple[bool, str]]:
    """Runs of the row's first tokens that are learned, or not; a label of the row comes last."""
    ids, labels = row["input_ids"][:SAMPLE_TOKENS], row["labels"]
    of_tokens = isinstance(labels, list) and len(labels) == len(row["input_ids"])
    if not of_tokens:
        one = labels if isinstance(labels, list) else [labels]
        shown = names[one[0]] if names and len(one) == 1 and isinstance(one[0], int) else str(labels)
        return [(False, tokenizer.decode(ids)), (True, f" {shown}")]
    runs: list[tuple[bool, list[int]]] = []
    for token, label in zip(ids, labels, strict=False):
        if not runs or runs[-1][0] != (label != -100):
            runs.append((label != -100, []))
        runs[-1][1].append(token)
    return [(learned, tokenizer.decode(some)) for learned, some in runs]


# findings -------------------------------------------------------------------------------------------------------------


def _find(
    rows: RecipeRows,
    splits: dict[str, SplitFacts],
    padding: Padding | None,
    near: NearDuplicates | None,
    bytes_per_token: float,
) -> Iterator[Finding]:
    recipe, max_length, positions = rows.recipe, rows.length, longest_input(rows.config)
    for split, facts in splits.items():
        fix = f"{recipe.max_length_key}: {facts.quantiles.get('99%', 0)} keeps 99% of the rows"
        if positions is not None and facts.quantiles.get("99%", 0) > positions:
            fix = f"the model has {positions:,} positions: split the texts, or take a model with more"
        if facts.lost > LOST and TASKS[recipe.task].generates:
            what = f"{split}: {facts.lost:.1%} of the answer tokens are beyond {max_length} tokens and are not learned"
            yield Finding(what=what, fix=fix)
        elif facts.rows_cut > LOST * facts.rows:
            what = f"{split}: {facts.rows_cut:,} of {facts.rows:,} rows are cut at {max_length} tokens"
            yield Finding(what=what, fix=fix)
        if facts.rows_without_label and TASKS[recipe.task].generates:
            what = f"{split}: {facts.rows_without_label:,} rows have no answer within {max_length} tokens: left out"
            yield Finding(what=what, fix=fix)
        if facts.repeated > REPEATED * facts.compared:
            what = f"{split}: {facts.repeated:,} of {facts.compared:,} rows of the data are there more than once"
            yield Finding(what=what, fix="remove the copies from dataset.data_files")
    if padding is not None and padding.random > WASTE and not _is_handled(recipe):
        best, fix = padding.grouped, f"{recipe.trainer}.train_sampling_strategy: group_by_length"
        if padding.packed is not None and padding.packed < best:
            best, fix = padding.packed, "SFTConfig.packing: true"
        if best < padding.random:
            what = f"train: {padding.random:.0%} of the tokens of a batch are padding"
            yield Finding(what=what, fix=f"{fix} leaves {best:.0%}")
    if near is not None:
        for split, count in near.between.items():
            if count:
                what = f"{split}: {count:,} of the first {near.rows[split]:,} rows are nearly rows of the train split"
                yield Finding(what=what, fix="take other rows for dataset.data_files, or remove them from train")
        if near.within["train"] > REPEATED * near.rows["train"]:
            what = f"train: {near.within['train']:,} of the first {near.rows['train']:,} rows nearly repeat another"
            yield Finding(what=what, fix="remove them from dataset.data_files")
    if bytes_per_token < FEW_BYTES:
        what = f"a token has {bytes_per_token:.1f} bytes of this text: the tokenizer is for other text"
        yield Finding(what=what, fix="name another with tokenizer, or train one with BpeTrainer")


def _is_handled(recipe: Recipe) -> bool:
    return bool(recipe.training.get("packing")) or recipe.training.get("train_sampling_strategy") == "group_by_length"


def _checks(rows: RecipeRows, say: Callable[[str], None]) -> list[Finding]:
    """What stops a run before its first step."""
    try:
        check_rows(rows.recipe, rows.prepared, rows.tokenizer, say)
    except DataError as problem:
        return [Finding(what=f"`run` stops: {one.message}", fix=one.fix) for one in problem.errors]
    return []
