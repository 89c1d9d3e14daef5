"""Per-example scores: one row of Parquet an evaluated example, beside the record; comparisons of runs resample them.

Columns by task, after `id` (string, fingerprint of the example's content):
  text-classification   gold, predicted (int32, index into label_names), correct (bool), probabilities (list of float32)
  multi-label-classification  gold, predicted (lists of int32, index into label_names), correct (bool: all of them),
                        probabilities (list of float32, one a label)
  text-regression       gold, predicted (float64)
  token-classification  gold, predicted (lists of int32, index into label_names), nll_sum (nats), n_tokens
  causal-lm, chat       nll_sum (float64, nats), n_tokens, n_bytes (UTF-8 bytes of the predicted text; null if unknown)
The texts of the examples are in another file (`write_examples`: id, text), since scores are pushed and texts are not.
Importing this file is fast: pyarrow is imported where it is used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_recipes.common.text import first_line
from hf_recipes.data.tag_schemes import SEQEVAL
from hf_recipes.errors import DataError, RecordError
from hf_recipes.evaluation.metrics.functions import IGNORED, probabilities

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 1
_KEY = b"hf_recipes.scores"  # of the metadata in every file of scores
BATCH_ROWS = 8192
EXAMPLES = "examples"  # replaces "scores" in the name of the file with the texts
EXCERPT = 200  # characters


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What `write_scores` wrote: the table's columns are those of the module's docstring."""

    task: str
    label_names: tuple[str, ...]
    table: pa.Table
    scheme: str = ""  # of tags; "" for other tasks, and in files written before it was stored


def score_batches(
    task: str,
    *,
    ids: Sequence[str],
    predictions: Any,
    label_ids: Any = None,
    n_bytes: Sequence[int] | None = None,
    threshold: float = 0.5,
    batch_rows: int = BATCH_ROWS,
) -> Iterator[pa.RecordBatch]:
    """An evaluation's arrays as batches for `write_scores`; converts batch_rows examples at a time.

    task: a Task's `scored_as`. predictions: what Trainer gives compute_metrics: (N, C) logits for text-classification,
    (N, L) for multi-label-classification (predicted from `threshold` on), (N, 1) for text-regression; ((N, S) tags,
    (N, 2) rows) for token-classification; (N, 2) [nll_sum, n_tokens] for causal-lm and chat. label_ids: (N,), (N, L) or
    (N, S), -100 is left out; not needed for causal-lm and chat. Raises DataError if ids and rows differ in number,
    KeyError for a task without scores.
    """
    convert = _CONVERT[task]
    more = {"threshold": threshold} if convert is _multi_label else {}
    arrays = [np.asarray(part) for part in (predictions if isinstance(predictions, tuple) else (predictions,))]
    if label_ids is not None and convert is not _causal_lm:
        arrays.append(np.asarray(label_ids))
    elif n_bytes is not None:
        arrays.append(np.asarray(n_bytes))
    if {len(part) for part in arrays} != {len(ids)}:
        counts = ", ".join(str(len(part)) for part in arrays)
        raise DataError.at("per-example scores", f"{len(ids)} ids for arrays of {counts} rows")
    for start in range(0, len(ids), batch_rows):
        stop = start + batch_rows
        yield convert(list(ids[start:stop]), *(part[start:stop] for part in arrays), **more)


def write_scores(
    path: str | os.PathLike[str],
    task: str,
    batches: Iterable[pa.RecordBatch],
    *,
    label_names: Sequence[str] = (),
    scheme: str = "",
) -> int:
    """Stream batches into one Parquet file, which is complete or absent; returns the number of rows.

    Raises DataError if there is no batch at all.
    """
    import pyarrow.parquet as pq

    about = {"version": VERSION, "task": task, "label_names": list(label_names), "scheme": scheme}
    part, writer, rows = f"{os.fspath(path)}.part", None, 0
    try:
        for batch in batches:
            if writer is None:
                schema = batch.schema.with_metadata({_KEY: json.dumps(about).encode()})
                writer = pq.ParquetWriter(part, schema, compression="zstd", use_dictionary=False)
            writer.write_batch(batch.cast(schema))
            rows += len(batch)
        if writer is None:
            raise DataError.at(os.fspath(path), "the evaluation set is empty: there are no per-example scores")
        writer.close()
        os.replace(part, path)
    finally:
        if writer is not None:
            writer.close()
        if os.path.exists(part):
            os.remove(part)
    return rows


def read_scores(path: str | os.PathLike[str]) -> Scores:
    """What `write_scores` wrote. Raises RecordError for a missing, truncated, foreign or newer file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = os.fspath(path)
    try:
        table = pq.ParquetFile(name).read()
    except FileNotFoundError:
        raise RecordError.at(name, "no such file", "was the run evaluated? its scores are beside record.json") from None
    except (OSError, pa.ArrowException) as error:
        fix = "copy the file again, or evaluate the run again"
        raise RecordError.at(name, f"not a complete Parquet file ({first_line(error)})", fix) from None
    written = (table.schema.metadata or {}).get(_KEY)
    if written is None:
        raise RecordError.at(name, "a Parquet file, but not one of per-example scores")
    try:
        about = json.loads(written)
        scheme = about.get("scheme", "")
        scheme = scheme if scheme in SEQEVAL else ""
        version, task, labels = int(about["version"]), str(about["task"]), tuple(map(str, about["label_names"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise RecordError.at(name, "a Parquet file, but not one of per-example scores") from None
    if version > VERSION:
        raise RecordError.at(
            name, f"scores of version {version}; this hf_recipes reads up to {VERSION}", "upgrade hf_recipes"
        )
    needed = ("id", "nll_sum", "n_tokens") if _CONVERT.get(task) is _causal_lm else ("id", "gold")
    lacking = [column for column in needed if column not in table.column_names]
    if lacking:
        fix = "copy the file again, or evaluate the run again"
        raise RecordError.at(name, f"scores without the column {lacking[0]!r}", fix)
    return Scores(task=task, label_names=labels, table=table, scheme=scheme)


def write_examples(path: str | os.PathLike[str], ids: Sequence[str], texts: Iterable[str]) -> None:
    """id and the first EXCERPT characters of each example, for reports; streamed as scores are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    part, left = f"{os.fspath(path)}.part", iter(texts)
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    try:
        with pq.ParquetWriter(part, schema, compression="zstd", use_dictionary=False) as writer:
            for start in range(0, len(ids), BATCH_ROWS):
                names = list(ids[start : start + BATCH_ROWS])
                shown = [one.encode("utf-8", "replace").decode()[:EXCERPT] for one in islice(left, len(names))]
                writer.write_batch(pa.record_batch([names, shown], schema=schema))
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.remove(part)


def read_examples(path: str | os.PathLike[str], ids: Collection[str]) -> dict[str, str]:
    """The texts of these ids as far as the file has them; {} without a complete file: a report then has none."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(os.fspath(path)).read()
        chosen = table.filter(pc.is_in(table["id"], value_set=pa.array(list(ids), pa.string())))
        return dict(zip(chosen["id"].to_pylist(), chosen["text"].to_pylist(), strict=True))
    except (OSError, KeyError, pa.ArrowException):
        return {}


def _text_classification(ids: list[str], logits: np.ndarray, gold: np.ndarray) -> pa.RecordBatch:
    import pyarrow as pa

    exact = logits.astype(np.float64)
    exact -= exact.max(axis=1, keepdims=True)
    np.exp(exact, out=exact)
    exact /= exact.sum(axis=1, keepdims=True)
    predicted = logits.argmax(axis=1).astype(np.int32)
    flat = pa.array(exact.astype(np.float32).ravel())
    return pa.record_batch(
        {
            "id": ids,
            "gold": gold.astype(np.int32),
            "predicted": predicted,
            "correct": predicted == gold,
            "probabilities": pa.FixedSizeListArray.from_arrays(flat, logits.shape[1]),
        }
    )


def _multi_label(ids: list[str], logits: np.ndarray, gold: np.ndarray, threshold: float) -> pa.RecordBatch:
    import pyarrow as pa

    exact = probabilities(logits)
    predicted, there = exact >= threshold, gold > 0.5

    def lists(chosen: np.ndarray) -> pa.ListArray:
        starts = pa.array(np.concatenate([[0], chosen.sum(axis=1).cumsum()]).astype(np.int32))
        return pa.ListArray.from_arrays(starts, pa.array(np.nonzero(chosen)[1].astype(np.int32)))

    flat = pa.array(exact.astype(np.float32).ravel())
    return pa.record_batch(
        {
            "id": ids,
            "gold": lists(there),
            "predicted": lists(predicted),
            "correct": (predicted == there).all(axis=1),
            "probabilities": pa.FixedSizeListArray.from_arrays(flat, logits.shape[1]),
        }
    )


def _text_regression(ids: list[str], scores: np.ndarray, gold: np.ndarray) -> pa.RecordBatch:
    import pyarrow as pa

    return pa.record_batch(
        {"id": ids, "gold": gold.astype(np.float64), "predicted": scores.astype(np.float64).reshape(-1)}
    )


def _token_classification(ids: list[str], tags: np.ndarray, rows: np.ndarray, gold: np.ndarray) -> pa.RecordBatch:
    import pyarrow as pa

    scored = gold != IGNORED
    starts = pa.array(np.concatenate([[0], scored.sum(axis=1).cumsum()]).astype(np.int32))

    def lists(values: np.ndarray) -> pa.ListArray:
        return pa.ListArray.from_arrays(starts, pa.array(values[scored].astype(np.int32)))

    return pa.record_batch({"id": ids, "gold": lists(gold), "predicted": lists(tags), **_nll(rows)})


def _causal_lm(ids: list[str], rows: np.ndarray, n_bytes: np.ndarray | None = None) -> pa.RecordBatch:
    import pyarrow as pa

    count = pa.nulls(len(ids), pa.int64()) if n_bytes is None else pa.array(n_bytes.astype(np.int64))
    return pa.record_batch({"id": ids, **_nll(rows), "n_bytes": count})


def _nll(rows: np.ndarray) -> dict[str, np.ndarray]:
    return {"nll_sum": rows[:, 0].astype(np.float64), "n_tokens": rows[:, 1].astype(np.int64)}


_CONVERT: dict[str, Any] = {
    "text-classification": _text_classification,
    "multi-label-classification": _multi_label,
    "text-regression": _text_regression,
    "token-classification": _token_classification,
    "causal-lm": _causal_lm,
    "chat": _causal_lm,
}
