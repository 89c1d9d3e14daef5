"""What a text classifier learns of a row: a class, several labels or a score, by `model.problem_type`.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from hf_recipes.data.columns import values_of
from hf_recipes.data.labels import (
    DataLabels,
    Labels,
    choose_labels,
    count_labels,
    head_names,
    label_id,
    labels_of_data,
    stated_names,
)
from hf_recipes.data.splits import describe_mixed
from hf_recipes.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.recipe.recipe import Recipe

Reader = Callable[[Any, int], Any]  # (label as the data has it, number of the row) -> what is trained on
FLOATS = ("float", "double", "decimal")
TEXTS = ("string", "large_string")
SCORE = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")  # a score that is written as a text


class Targets(Protocol):
    """The labels of one recipe."""

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def order(self) -> str: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def several(self) -> bool: ...
    def reader(self, part: Dataset, split: str) -> Reader: ...
    def count(self, targets: Iterable[Any]) -> dict[str, int] | None: ...
    def describe(self, train: Dataset) -> tuple[str, ...]: ...


def make_targets(recipe: Recipe, train: Dataset, label: str, config: Any) -> Targets:
    """`label`: the column; `config`: the checkpoint's. Raises DataError for a column that the problem_type cannot have,
    ModelError for names that contradict each other (labels.py)."""
    location = recipe.location("dataset.label_column")
    kind = recipe.get("model.problem_type")
    if kind == "regression":
        return Scores(column=label, location=location)
    if kind == "multi_label_classification":
        return _several_labels(recipe, train, label, config, location)
    stated = kind == "single_label_classification"
    data = _classes_of_data(train, label, location, stated)
    return Classes(labels=choose_labels(recipe, data, config, "label_column", label), column=label, location=location)


def _mixed(part: Dataset, column: str, location: str, split: str = "train") -> DataError | None:
    """The error of a column that has values of several kinds."""
    mixed = describe_mixed(part, column, split)
    return DataError.at(location, mixed, "write them all in one way") if mixed else None


def _no_label(location: str, split: str, row: int, value: Any) -> DataError:
    what = f"row {row} of the {split} split has no label ({value!r})"
    return DataError.at(
        location, what, "remove such rows, or leave the split out with split: {train: ..., validation: ...}"
    )


def _outside(location: str, split: str, row: int, value: Any, names: Sequence[str]) -> DataError:
    what = f"row {row} of the {split} split has the label {value!r}, which is none of the model's"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return DataError.at(location, what, f"the labels are {shown}")


def _no_score(location: str, column: str, split: str, row: int, value: str) -> DataError:
    what = f"row {row} of the {split} split has {value[:40]!r} in {column!r}, which is not a number"
    fix = "write a number there, remove such rows, or name another column with dataset.label_column"
    if re.fullmatch(r"[+-]?\d+,\d+", value.strip()):
        fix = f'write {value.strip().replace(",", ".")}; in a CSV file, dataset.decimal: "," reads all of them'
    return DataError.at(location, what, fix)


# one class ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Named:
    """A column of labels that have names."""

    labels: Labels
    column: str
    location: str

    @property
    def names(self) -> tuple[str, ...]:
        return self.labels.names

    @property
    def order(self) -> str:
        return self.labels.order

    @property
    def notes(self) -> tuple[str, ...]:
        return self.labels.notes


@dataclass(frozen=True, kw_only=True)
class Classes(_Named):
    """One class a row: its number."""

    several: bool = False

    @property
    def config(self) -> Mapping[str, Any]:
        return {"problem_type": "single_label_classification", **self.labels.config}

    def reader(self, part: Dataset, split: str) -> Reader:
        own_names = getattr(part.features[self.column], "names", None)
        index, names, location = dict(self.labels.index), self.names, self.location

        def read(value: Any, row: int) -> int:
            found = label_id(value, index, own_names)
            if found is not None:
                return found
            if value is None or value == -1 or value != value:  # -1: published test sets with hidden labels
                raise _no_label(location, split, row, value)
            raise _outside(location, split, row, value, names)

        return read

    def count(self, targets: Iterable[Any]) -> dict[str, int]:
        return count_labels(targets, self.names)

    def describe(self, train: Dataset) -> tuple[str, ...]:
        return ()


def _classes_of_data(train: Dataset, label: str, location: str, stated: bool) -> DataLabels:
    """The labels that the train split has. Raises DataError for lists, records and fractions."""
    from datasets import Value

    feature = train.features[label]
    class_names = getattr(feature, "names", None)
    if class_names:
        return labels_of_data((), class_names)
    if is_list(feature):
        what = f"the column {label!r} holds lists: several labels a row"
        raise DataError.at(location, what, "write model.problem_type: multi_label_classification")
    if not isinstance(feature, Value):  # a record, or Json: numbers and texts in one column
        raise _mixed(train, label, location) or DataError.at(
            location,
            f"the column {label!r} holds {type(feature).__name__}, not one label a row",
            "name another with dataset.label_column",
        )
    values = train.unique(label)
    if feature.dtype.startswith(FLOATS):
        values = _whole_numbers(values, label, location, stated)
    return labels_of_data(values, None)


def _whole_numbers(values: list[Any], label: str, location: str, stated: bool) -> list[int]:
    """Labels that a reader made floats of, because one is missing. `stated`: the recipe says that they are classes."""
    found = [value for value in values if value is not None and value == value]
    whole = all(value == int(value) for value in found if math.isfinite(value))
    if whole and (stated or len(found) < len(values)):
        return [int(value) for value in found]
    example = next((value for value in found if value != int(value)), found[0] if found else None)
    what = f"the column {label!r} holds floats, such as {example!r}: scores, not classes"
    fix = "write model.problem_type: regression"
    raise DataError.at(location, what, fix + (", or give the classes as whole numbers or text" if whole else ""))


def is_list(feature: Any) -> bool:
    """Whether a column of `datasets` holds lists."""
    return hasattr(feature, "feature") or isinstance(feature, list)


# several labels -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SeveralLabels(_Named):
    """Any number of labels a row: 1.0 for those that it has, 0.0 for the others. `indicators`: the data has them so."""

    indicators: bool
    several: bool = True

    @property
    def config(self) -> Mapping[str, Any]:
        return {"problem_type": "multi_label_classification", **self.labels.config}

    def reader(self, part: Dataset, split: str) -> Reader:
        feature = part.features[self.column]
        if not is_list(feature):
            raise _not_lists(self.column, self.location, part, split)
        own_names = getattr(getattr(feature, "feature", None), "names", None)
        index, names, location = dict(self.labels.index), self.names, self.location
        as_given = self.indicators

        def read(value: Any, row: int) -> list[float]:
            if value is None or (isinstance(value, list) and None in value):
                raise _no_label(location, split, row, value)
            if as_given:
                if len(value) != len(names) or any(one not in (0, 1) for one in value):
                    what = f"row {row} of the {split} split has {value!r}, not {len(names)} numbers that are 0 or 1"
                    raise DataError.at(location, what, "give each row one number for each label")
                return [float(one) for one in value]
            found = [0.0] * len(names)
            for one in value:
                number = label_id(one, index, own_names)
                if number is None:
                    raise _outside(location, split, row, one, names)
                found[number] = 1.0
            return found

        return read

    def count(self, targets: Iterable[Any]) -> dict[str, int]:
        return count_labels((i for one in targets for i, there in enumerate(one) if there), self.names)

    def describe(self, train: Dataset) -> tuple[str, ...]:
        empty = sum(not any(one) for one in values_of(train, "labels"))
        none = f"train: {empty:,} of {train.num_rows:,} rows have no label: they count as none of them"
        read = f"the column {self.column!r} is read as {len(self.names)} numbers a row, 1 for each label that it has"
        return (*(none,) * bool(empty), *(read,) * self.indicators)


def _several_labels(recipe: Recipe, train: Dataset, label: str, config: Any, location: str) -> SeveralLabels:
    feature = train.features[label]
    if not is_list(feature):
        raise _not_lists(label, location, train)
    class_names = getattr(getattr(feature, "feature", None), "names", None)
    lists = [one for batch in train.select_columns([label]).iter(1000) for one in batch[label]]
    stated = stated_names(recipe) or head_names(recipe, config)
    width = _width_of_indicators(lists, len(stated) if stated else None) if not class_names else 0
    found: Iterable[Any] = range(width) if width else {value for one in lists for value in one or ()}
    data = labels_of_data(_whole(found), class_names)
    labels = choose_labels(recipe, data, config, "label_column", label, least=1)
    return SeveralLabels(labels=labels, column=label, location=location, indicators=bool(width))


def _whole(values: Iterable[Any]) -> list[Any]:
    return [int(one) if isinstance(one, float) and one == int(one) else one for one in values]


def _width_of_indicators(lists: Sequence[Any], labels: int | None) -> int:
    """Labels of rows such as [0, 1, 0, 1], one number for each label; 0 where rows list the labels that they have.
    `labels`: how many the recipe or the checkpoint names."""
    widths = {len(one or ()) for one in lists}
    if len(widths) != 1 or not all(value in (0, 1) and value is not None for one in lists for value in one or ()):
        return 0
    (width,) = widths
    if width < 2 or any(isinstance(value, str) for value in lists[0]):
        return 0
    twice = any(len(set(one)) < len(one) for one in lists)  # a list of labels names none twice
    # [0, 1] and [1, 0] alone: as lists, every row would have every label.
    return width if twice or labels in (None, width) else 0


def _not_lists(label: str, location: str, part: Dataset, split: str = "train") -> DataError:
    mixed, feature = _mixed(part, label, location, split), part.features[label]
    if mixed is not None:
        return mixed
    shown = getattr(feature, "dtype", type(feature).__name__)
    what = f"the column {label!r} holds {shown}, not lists: multi_label_classification needs a list of labels a row"
    return DataError.at(location, what, "write lists, such as [news, sport], or leave problem_type out")


# a score --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Scores:
    """One number a row."""

    column: str
    location: str
    names: tuple[str, ...] = ()
    order: str = ""
    notes: tuple[str, ...] = ()
    several: bool = False

    @property
    def config(self) -> Mapping[str, Any]:
        return {"problem_type": "regression", "num_labels": 1}

    def reader(self, part: Dataset, split: str) -> Reader:
        feature = part.features[self.column]
        dtype = str(getattr(feature, "dtype", type(feature).__name__))
        if getattr(feature, "names", None) or not dtype.startswith((*FLOATS, *TEXTS, "int", "uint", "null")):
            shown = "class labels" if getattr(feature, "names", None) else "lists" if is_list(feature) else dtype
            mixed = _mixed(part, self.column, self.location, split)
            if mixed is not None:
                raise mixed
            what = f"the column {self.column!r} holds {shown}, not numbers: regression learns one number a row"
            raise DataError.at(self.location, what, "name another with dataset.label_column")
        location = self.location

        def read(value: Any, row: int) -> float:
            if isinstance(value, str):
                if not SCORE.fullmatch(value.strip()):
                    raise _no_score(location, self.column, split, row, value)
                value = float(value)
            if value is None or value != value:
                raise _no_label(location, split, row, value)
            if not math.isfinite(value) or value == -100:  # -100 is upstream's sign for no label
                what = f"row {row} of the {split} split has the score {value!r}, which cannot be trained on"
                raise DataError.at(location, what, "remove such rows, or scale the scores")
            return float(value)

        return read

    def count(self, targets: Iterable[Any]) -> None:
        return None

    def describe(self, train: Dataset) -> tuple[str, ...]:
        scores = values_of(train, "labels")
        mean = sum(scores) / len(scores)
        spread = math.sqrt(sum((one - mean) ** 2 for one in scores) / len(scores))
        line = f"scores     {min(scores):.4g} to {max(scores):.4g}, mean {mean:.4g}, standard deviation {spread:.4g}"
        if len(scores) > 1 and spread == 0:
            what = f"every score of the train split is {scores[0]:.4g}: there is nothing to learn"
            line = f"warning: {self.location}: {what}"
        return (line,)
