"""What a task makes of the splits. Imports neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, kw_only=True)
class SplitStats:
    """Counts of one prepared split; None for what the task does not count."""

    rows: int
    tokens: int
    longest: int  # tokens of the longest row
    documents: int | None = None  # causal-lm: with text
    empty: int | None = None  # causal-lm: documents without text, left out
    bytes: int | None = None  # UTF-8 bytes of the text that is predicted
    label_tokens: int | None = None  # tokens that carry the loss
    lost_label_tokens: int | None = None  # chat: answer tokens beyond max_length
    lost_words: int | None = None  # token-classification: words beyond max_length
    blank_words: int | None = None  # token-classification: words without a sub-token, such as blanks
    cut_rows: int | None = None  # text-classification: texts longer than max_length
    labels: Mapping[str, int] | None = None  # classifiers: rows, or tags, of each label


@dataclass(frozen=True, kw_only=True)
class Source:
    """The rows of a split as loaded, and the columns that the task used of them."""

    rows: Dataset
    columns: tuple[str, ...]

    @property
    def kinds(self) -> dict[str, str]:
        """Those columns, each with the kind of its values: "string", "int64", "ClassLabel", "List", ..."""
        features = {name: self.rows.features[name] for name in self.columns}
        return {
            name: str(getattr(one, "dtype", "")) if type(one).__name__ == "Value" else type(one).__name__
            for name, one in features.items()
        }


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Splits as a Trainer takes them. `evals` has "eval" (the validation split) and perhaps "test"."""

    train: Dataset  # or data/streamed_rows.py's TokenStream, which has no length
    evals: Mapping[str, Dataset]
    collator: Callable[..., Any]
    config: Mapping[str, Any]  # fields of the model's config that the data decides: num_labels, id2label, label2id
    label_names: tuple[str, ...]
    class_weights: tuple[float, ...] | None = None  # of the loss, one a label
    tag_scheme: str = ""  # of entities, by the train split's tags: a name of data/tag_schemes.py
    label_order: str = ""  # whose order it is: "the checkpoint's head's"
    stats: Mapping[str, SplitStats]  # "train" | "eval" | "test"
    ids: Mapping[str, list[str]]  # "eval" | "test" -> one content id a row, in order
    row_bytes: Mapping[str, list[int]]  # "eval" | "test" -> UTF-8 bytes that each row predicts; {} for classifiers
    sources: Mapping[str, Source]  # "train" | "eval" | "test"
    notes: tuple[str, ...]  # what was done to the rows; printed before training
