"""Which number each label has. One rule for classes and tags: the recipe's own names (`model.id2label`, `label2id`),
else the checkpoint's head where its names are the data's, else the data's ClassLabel, else the sorted labels.

A head of the same size under other names would be scored, and trained on, in an order that nobody chose: it is refused.
Imports neither torch nor transformers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_recipes.catalog.tasks import TASKS
from hf_recipes.errors import DataError, ModelError

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe

MOST_LABELS = 10_000  # more are texts or ids, not classes: the head would have millions of weights
SHOWN = 12  # labels that a line names
RECIPE, HEAD = "the recipe's", "the checkpoint's head's"  # orders
NEW_HEAD = "ignore_mismatched_sizes"


@dataclass(frozen=True, kw_only=True)
class DataLabels:
    """The labels of the train split, as text, in the data's own order; `numbers` if the data has whole numbers, or a
    ClassLabel, whose numbers count."""

    texts: tuple[str, ...]
    numbers: tuple[int, ...] | None
    is_class_label: bool


@dataclass(frozen=True, kw_only=True)
class Labels:
    """`names[i]` is the label of the model's output i; `index` gives the number of a label as the data writes it."""

    names: tuple[str, ...]
    index: Mapping[str, int]
    order: str  # whose order it is, for a reader
    notes: tuple[str, ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        """Fields of the model's config."""
        ids = {name: i for i, name in enumerate(self.names)}
        return {"num_labels": len(self.names), "id2label": dict(enumerate(self.names)), "label2id": ids}


def labels_of_data(values: Iterable[Any], class_names: Sequence[str] | None) -> DataLabels:
    """`values`: the distinct labels that the train split has; `class_names`: its ClassLabel's, if it has one. Plain
    labels are sorted: numbers by size, "O" (of tags) first."""
    if class_names:
        return DataLabels(texts=tuple(class_names), numbers=tuple(range(len(class_names))), is_class_label=True)
    found = sorted({v for v in values if v is not None}, key=lambda v: (v != "O", isinstance(v, str), v))
    texts = tuple(dict.fromkeys(map(str, found)))
    whole = all(isinstance(v, int) or (isinstance(v, str) and v.isdecimal() and str(int(v)) == v) for v in found)
    return DataLabels(
        texts=texts, numbers=tuple(map(int, found)) if whole and len(texts) == len(found) else None,
        is_class_label=False,
    )  # fmt: skip


def choose_labels(recipe: Recipe, data: DataLabels, config: Any, key: str, column: str, least: int = 2) -> Labels:
    """The labels of a recipe's model. `config`: the checkpoint's, if there is one; `key`: of the dataset section, which
    names the `column` of the labels.

    Raises ModelError for names that contradict the checkpoint's head or the data, DataError for fewer than `least`.
    """
    stated, head, location = stated_names(recipe), head_names(recipe, config), recipe.location(f"dataset.{key}")
    chosen: Labels | None = None
    if stated is not None:
        chosen = _name_by_recipe(recipe, stated, data, head)
    elif head is not None:
        chosen = _name_by_head(recipe, data, head)
    if chosen is None:
        order = "the data's ClassLabel's" if data.is_class_label else "sorted"
        chosen = Labels(names=data.texts, index={name: i for i, name in enumerate(data.texts)}, order=order)
    if len(chosen.names) < least:
        found = f"one label only ({chosen.names[0]!r})" if chosen.names else "no label at all"
        raise DataError.at(location, f"the train split has {found}", "a classifier needs at least two")
    if len(chosen.names) > MOST_LABELS:
        what = f"the column {column!r} has {len(chosen.names)} distinct values: these are not labels"
        raise DataError.at(location, what, f"name another with dataset.{key}")
    return chosen


def stated_names(recipe: Recipe) -> tuple[str, ...] | None:
    """The recipe's own names in their order. Raises ModelError for numbers that are not 0, 1, 2, ..., and for two
    keys that differ."""
    by_key = {}
    for key in ("id2label", "label2id"):
        given = recipe.get(f"model.{key}")
        if given is None:
            continue
        location = recipe.location(f"model.{key}")
        if not isinstance(given, Mapping):
            raise ModelError.at(location, f"model.{key} is no mapping", "write {0: negative, 1: positive}")
        pairs = [(str(k), str(v)) if key == "id2label" else (str(v), str(k)) for k, v in given.items()]
        numbered = {int(number): name for number, name in pairs if number.isdecimal()}
        if sorted(numbered) != list(range(len(pairs))) or len(set(numbered.values())) < len(pairs):
            what = f"model.{key} must give each of {len(pairs)} labels one of the numbers 0 to {len(pairs) - 1}"
            raise ModelError.at(location, what, "number them from 0 on, each once")
        by_key[key] = tuple(numbered[i] for i in range(len(pairs)))
    if len(set(by_key.values())) > 1:
        location = recipe.location("model.label2id")
        raise ModelError.at(location, "model.label2id contradicts model.id2label", "keep one of them")
    return next(iter(by_key.values()), None)


def head_names(recipe: Recipe, config: Any) -> tuple[str, ...] | None:
    """The labels of the checkpoint's head; None for a model from scratch, and for a checkpoint without such a head."""
    if config is None or recipe.get("model.pretrained_model_name_or_path") is None:
        return None
    suffix = TASKS[recipe.task].auto_class.removeprefix("AutoModel")
    if not any(str(name).endswith(suffix) for name in getattr(config, "architectures", None) or ()):
        return None
    names = getattr(config, "id2label", None) or {}
    return tuple(str(names.get(i, f"LABEL_{i}")) for i in range(len(names)))


def _name_by_recipe(recipe: Recipe, names: tuple[str, ...], data: DataLabels, head: tuple[str, ...] | None) -> Labels:
    location = recipe.location("model.id2label" if recipe.get("model.id2label") is not None else "model.label2id")
    index = _match(names, data, by_number=True)
    if index is None:
        outside = [text for text in data.texts if text not in names]
        what = f"the recipe names the labels {_list(names)}, and the train split has {_list(outside)}"
        raise ModelError.at(location, what, "name every label of the data")
    notes: tuple[str, ...] = ()
    if head is not None and len(head) == len(names) and head != names and not recipe.get(f"model.{NEW_HEAD}"):
        if set(head) == set(names):
            what = f"the recipe numbers the labels {_list(names)}, the checkpoint's head {_list(head)}"
            fix = f"leave it out: the head's order is taken; for a new head write model.{NEW_HEAD}: true"
            raise ModelError.at(location, what, fix)
        if not _are_unnamed(head):
            pairs = ", ".join(f"{old} -> {new}" for old, new in zip(head, names, strict=True))
            notes = (f"warning: {location}: the recipe gives the labels of the checkpoint's head new names: {pairs}",)
    return Labels(names=names, index=index, order=RECIPE, notes=notes)


def _name_by_head(recipe: Recipe, data: DataLabels, head: tuple[str, ...]) -> Labels | None:
    """None where the head is of other labels and another size: the data's labels are then those of a new one."""
    unnamed, new = _are_unnamed(head), bool(recipe.get(f"model.{NEW_HEAD}"))
    last = max(data.numbers, default=-1) if data.numbers is not None else -1
    evaluated = recipe.training.get("do_train") is False
    # Numbers mean the head's outputs, as in plain transformers; a class label has names, which must not contradict it.
    by_number = (not data.is_class_label or unnamed) and (last + 1 == len(head) or (evaluated and last < len(head)))
    index = _match(head, data, by_number=by_number and not new)
    if index is not None and not (new and len(data.texts) < len(head)):
        kept = data.texts if unnamed and data.is_class_label and len(data.texts) == len(head) else head
        return Labels(names=kept, index=index, order=HEAD, notes=_unlike(head, data, index))
    if len(data.texts) != len(head):
        return None
    location = recipe.location("model.pretrained_model_name_or_path")
    what = f"the checkpoint's head has the labels {_list(head)}, and the data {_list(data.texts)}"
    if new:
        line = f"warning: {location}: {what}: the head's weights get the data's names, as model.{NEW_HEAD} allows"
        order = "the data's ClassLabel's" if data.is_class_label else "sorted"
        return Labels(names=data.texts, index={t: i for i, t in enumerate(data.texts)}, order=order, notes=(line,))
    example = ", ".join(f"{i}: ..." for i in range(min(len(head), 2)))
    fix = f"name the head's outputs as the data does with model.id2label: {{{example}}}, or write "
    raise ModelError.at(location, what, f"{fix}model.{NEW_HEAD}: true to train the head for other labels")


def _match(names: tuple[str, ...], data: DataLabels, *, by_number: bool) -> dict[str, int] | None:
    """The number of each label as the data writes it: by name, by name without case and blanks, or by number."""
    exact = {name: i for i, name in enumerate(names)}
    if set(data.texts) <= set(names):
        return exact
    folded = {_fold(name): i for i, name in enumerate(names)}
    own = {_fold(text) for text in data.texts}
    if len(folded) == len(names) and len(own) == len(data.texts) and own <= set(folded):
        return {**exact, **{text: folded[_fold(text)] for text in data.texts}}
    numbers = data.numbers
    if not by_number or numbers is None or not all(0 <= n < len(names) for n in numbers):
        return None
    if data.is_class_label and len(numbers) != len(names):
        return None
    return {**exact, **{str(i): i for i in range(len(names))}, **dict(zip(data.texts, numbers, strict=True))}


def _unlike(names: tuple[str, ...], data: DataLabels, index: Mapping[str, int]) -> tuple[str, ...]:
    """A note where the data writes its labels in another way than the head."""
    pairs = [f"{text} is {names[index[text]]}" for text in data.texts if text != names[index[text]]]
    return (f"labels: of the data as the checkpoint's head names them: {_list(pairs)}",) if pairs else ()


def _fold(name: str) -> str:
    return " ".join(name.split()).casefold()


def _are_unnamed(names: tuple[str, ...]) -> bool:
    """Whether a config has transformers' names of labels that nobody has named."""
    return names == tuple(f"LABEL_{i}" for i in range(len(names)))


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def label_id(value: Any, index: Mapping[str, int], own_names: Sequence[str] | None) -> int | None:
    """A label's number, None if it is outside the set. `own_names`: a ClassLabel's, of the split the label is from."""
    if own_names is not None and isinstance(value, int):
        return index.get(own_names[value]) if 0 <= value < len(own_names) else None
    if isinstance(value, float):  # whole numbers that a reader made floats of
        value = int(value) if value == value and value == int(value) else None
    return index.get(str(value)) if value is not None else None


def count_labels(numbers: Iterable[int], names: Sequence[str]) -> dict[str, int]:
    """Label -> how often it occurs, in the model's order; labels that do not occur with 0. -100 is left out."""
    counted = Counter(numbers)
    return {name: counted[i] for i, name in enumerate(names)}


def describe_counts(counts: Mapping[str, int]) -> str:
    """ "neg 1,200, pos 800"; of many labels the first SHOWN."""
    return _list([f"{name} {count:,}" for name, count in counts.items()])


def weigh_classes(
    recipe: Recipe, counts: Mapping[str, int], rows: int, several: bool = False
) -> tuple[tuple[float, ...] | None, tuple[str, ...]]:
    """The weights of `class_weights`, and the line that names them; (None, ()) where the recipe has none.

    counts: label -> rows (tags) of the train split; several: `rows` rows have any number of labels each. "balanced" is
    scikit-learn's all / (labels * of this label), of several labels the rows without a label / those with it. A label
    that does not occur weighs 1. Raises DataError for a list that does not fit the labels.
    """
    given = recipe.get("class_weights")
    if given is None or not counts:
        return None, ()
    location = recipe.location("class_weights")
    if given == "balanced":
        total, present = sum(counts.values()), sum(count > 0 for count in counts.values())
        weights = tuple(
            1.0 if not count or (several and count == rows)
            else (rows - count) / count if several else total / (present * count)
            for count in counts.values()
        )  # fmt: skip
    else:
        weights = tuple(map(float, given))
        if len(weights) != len(counts):
            what = f"class_weights has {len(weights)} numbers for {len(counts)} labels"
            raise DataError.at(location, what, f"give one for each, in this order: {_list(list(counts))}")
    shown = [f"{name} {weight:.4g}" for name, weight in zip(counts, weights, strict=True)]
    return weights, (f"class_weights: {_list(shown)} (in the training loss; evaluations are not weighted)",)
