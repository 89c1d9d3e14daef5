"""`hf-recipes init --data FILE`: a first recipe for somebody's data. Imports neither torch nor transformers."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hf_recipes.catalog.tasks import TASKS
from hf_recipes.common.files import describe_special_file, put
from hf_recipes.common.text import as_yaml, first_line, nearest
from hf_recipes.data.splits import EXTENSIONS
from hf_recipes.errors import DataError, OutputDirError, RecipeError

ROWS, BYTES = 2_000, 2**22  # that are looked at
MOST_CLASSES = 100
LABELS = ("label", "labels", "class", "category", "sentiment", "target", "intent", "topic", "rating", "stars")
TEXTS = ("text", "sentence", "review", "content", "message", "body", "comment", "title", "question", "document")
TAGS = ("tags", "ner_tags", "labels", "pos_tags", "ner", "tag")
CONLL = re.compile(r"\S+[ \t]+(?:.*[ \t])?(?:O|[BIESLU]-\S+)\s*")
MODELS = {  # small ones that fit every GPU; the first recipe is to be trained, not to win
    "text-classification": "distilbert/distilbert-base-uncased",
    "token-classification": "distilbert/distilbert-base-cased",
    "chat": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "causal-lm": "HuggingFaceTB/SmolLM2-135M",
}
LENGTHS = {"text-classification": 256, "token-classification": 256, "chat": 1024, "causal-lm": 512}
BATCHES = (32, 16, 8, 4, 2, 1)
STEP = 32  # sequences of an optimizer step
CPU_BATCH = 8
BYTES_PER_TOKEN = 3  # of English, at least

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a file seems to be. `dataset`: the section that reads it; `why`: in words."""

    task: str | None
    dataset: Mapping[str, Any]
    why: str
    rows: int
    longest: int = 0  # bytes of the longest text looked at
    counts: Mapping[str, int] = field(default_factory=dict)  # of classes


def command(
    data: str,
    *,
    output: str = "recipe.yaml",
    task: str | None = None,
    model: str | None = None,
    gpu: str | None = None,
    yes: bool = False,
    say: Say = print,
    ask: Callable[[str, Sequence[str]], str] | None = None,
) -> None:
    """Looks at the data, says what it takes it for, writes a commented recipe that passes `check`.

    `ask`: chooses one of several answers, where the data do not say it; never called with `yes`.
    Raises DataError for a file that cannot be read or is not understood, OutputDirError for a recipe that is there.
    """
    target = Path(output)
    if target.exists():
        raise OutputDirError.at(output, "is there already", "name another file with --output")
    seen = look(data)
    chosen = task or seen.task
    if chosen is None:
        what = f"it is not clear what is to be learned from it: {seen.why}"
        if yes or ask is None:
            raise DataError.at(data, what, f"name it with --task: {', '.join(TASKS)}")
        say(f"{data}: {seen.why}")
        chosen = ask("task", list(TASKS))
    if chosen not in TASKS:
        near = nearest(chosen, TASKS)
        fix = f"did you mean {near!r}?" if near else f"it must be one of {', '.join(TASKS)}"
        raise RecipeError.at("argument '--task'", f"there is no task {chosen!r}", fix)
    seen = replace(seen, task=chosen)
    say(f"{data}: {seen.rows:,}{'+' if seen.rows >= ROWS else ''} rows, {chosen}: {seen.why}")
    if seen.counts:
        shown = ", ".join(f"{name} {count}" for name, count in list(seen.counts.items())[:12])
        say(f"classes: {len(seen.counts)} ({shown}{', ...' if len(seen.counts) > 12 else ''})")
    name = model or MODELS[chosen]
    batch, note = _choose_batch(seen, name, target, gpu)
    if note:
        say(note)
    put(target, recipe_text(seen, name, target.stem, batch, gpu, data))
    from hf_recipes.commands.check import check

    lines, errors = check(str(target))
    for line in lines:
        if not line.startswith("note: "):
            say(line)
    if errors:
        say(f"written: {target}, and it needs a correction")
        return
    plan = f"hf-recipes plan {target}" + (f" --gpu {gpu}" if gpu else " --cpu")
    say(f"written: {target}\nnext     hf-recipes run {target}\n         {plan}    does it fit, how long will it take?")


# what the data are ---------------------------------------------------------------------------------------------------


def look(data: str) -> Seen:
    """What a file seems to hold. Raises DataError for one that is not there or cannot be read."""
    special = describe_special_file(data)
    if special:
        raise DataError.at(data, special, "name a data file")
    path = Path(data)
    if not path.exists():
        if re.fullmatch(r"[\w.-]+/[\w.-]+", data):
            why = "a data set on the Hub, which is not read here"
            return Seen(task=None, dataset={"path": data}, why=why, rows=0)
        folder = path.parent
        near = nearest(path.name, os.listdir(folder)) if folder.is_dir() else ""
        fix = f"did you mean {str(folder / near)!r}?" if near else "paths are relative to the working directory"
        raise DataError.at(data, "no such file", fix)
    if path.is_dir():
        raise DataError.at(data, "is a folder", "name one data file")
    ending = path.name.lower().rpartition(".")[2]
    builder = EXTENSIONS.get(ending, "text" if ending in ("conll", "bio", "iob", "iob2") else None)
    if builder is None:
        raise DataError.at(data, "is no data file that is known", f"the formats are {', '.join(EXTENSIONS)}, conll")
    readers = {"csv": _read_csv, "json": _read_json, "parquet": _read_parquet, "text": _read_text}
    try:
        rows, more = readers[builder](path)
    except UnicodeDecodeError:
        raise DataError.at(data, "is not UTF-8 text", "convert it to UTF-8") from None
    except (OSError, ValueError, csv.Error, RecursionError) as problem:
        raise DataError.at(data, f"cannot be read as {builder}: {first_line(problem)}", "check the file") from None
    if not rows:
        raise DataError.at(data, "there are no rows in it", "name a file with some")
    section: dict[str, Any] = {"path": builder, "data_files": {"train": data}, **more}
    return _tell(rows, section)


def _read_csv(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        head = file.read(2**16)
        delimiter = max(",;\t|", key=(head.splitlines() or [""])[0].count)
        file.seek(0)
        reader = csv.DictReader(file, delimiter=delimiter)
        rows = [dict(row) for _, row in zip(range(ROWS), reader, strict=False)]
    return rows, {} if delimiter == "," else {"delimiter": delimiter}


def _read_json(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        begin = file.read(1)
        file.seek(0)
        if begin == "[":
            rows = json.load(file)[:ROWS]
        else:
            rows = [json.loads(line) for _, line in zip(range(ROWS), file, strict=False) if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a row is no JSON object")
    return rows, {}


def _read_parquet(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    import pyarrow.parquet as pq

    batches = pq.ParquetFile(path).iter_batches(batch_size=ROWS)
    return next((batch.to_pylist() for batch in batches), []), {}


def _read_text(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        lines = file.read(BYTES).splitlines()
    words = [line for line in lines if line.strip()]
    if words and sum(bool(CONLL.fullmatch(line)) for line in words) > 0.9 * len(words):
        return _conll_rows(lines), {"format": "conll"}
    if any(not line.strip() for line in lines[:-1]):
        parts = "\n".join(lines).split("\n\n")
        return [{"text": part} for part in parts if part.strip()], {"sample_by": "paragraph"}
    return [{"text": line} for line in words], {}


def _conll_rows(lines: Sequence[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    tokens: list[str] = []
    tags: list[str] = []
    for line in (*lines, ""):
        parts = line.split()
        if parts and not parts[0].startswith("-DOCSTART-"):
            tokens.append(parts[0])
            tags.append(parts[-1])
        elif tokens:
            rows.append({"tokens": tokens, "tags": tags})
            tokens, tags = [], []
    return rows


def _tell(rows: list[dict[str, Any]], section: dict[str, Any]) -> Seen:
    columns = list(rows[0])
    lists = [name for name in columns if isinstance(rows[0][name], list)]
    of_words = [name for name in lists if rows[0][name] and isinstance(rows[0][name][0], str)]
    talks = [name for name in lists if rows[0][name] and isinstance(rows[0][name][0], Mapping)]
    count: dict[str, Any] = {"rows": len(rows), "longest": _longest(rows)}
    if section.get("format") == "conll":
        return Seen(task="token-classification", dataset=section, why="CoNLL, a word and its tag a line", **count)
    if section["path"] == "text":
        return Seen(task="causal-lm", dataset=section, why="a text without labels", **count)
    for name in talks:
        if {"role", "content"} & set(rows[0][name][0]) or {"from", "value"} & set(rows[0][name][0]):
            named = {} if name in ("messages", "conversations") else {"messages_column": name}
            return Seen(task="chat", dataset={**section, **named}, why=f"conversations in {name!r}", **count)
    tags = _first(lists, TAGS)
    words = next((name for name in of_words if name != tags), None)
    if tags and words:
        named = {"tokens_column": words, "tags_column": tags}
        why = f"words in {words!r}, tags in {tags!r}"
        return Seen(task="token-classification", dataset={**section, **named}, why=why, **count)
    for prompt, answer in (("prompt", "completion"), ("instruction", "output"), ("instruction", "response")):
        if prompt in columns and answer in columns:
            return Seen(task="chat", dataset=section, why=f"{prompt!r} is answered by {answer!r}", **count)
    texts = [name for name in columns if all(isinstance(row.get(name), str) for row in rows[:50])]
    label = _label(rows, columns)
    text = _first([name for name in texts if name != label], TEXTS) or _longest_column(rows, texts, label)
    if label and text:
        counts = dict(sorted(Counter(str(row[label]) for row in rows).items(), key=lambda one: -one[1]))
        named = {"text_column": text, "label_column": label}
        return Seen(task="text-classification", dataset={**section, **named}, counts=counts,
                    why=f"a text in {text!r}, its class in {label!r}", **count)  # fmt: skip
    if text and len(columns) == 1:
        named = {} if text == "text" else {"text_column": text}
        return Seen(task="causal-lm", dataset={**section, **named}, why="texts without labels", **count)
    return Seen(task=None, dataset=section, why=f"its columns are {', '.join(map(str, columns))}", **count)


def _first(columns: Sequence[str], known: Sequence[str]) -> str | None:
    return next((name for word in known for name in columns if str(name).lower() == word), None)


def _label(rows: list[dict[str, Any]], columns: Sequence[str]) -> str | None:
    """A column of that name, else the only one of few values that repeat."""
    found = []
    for name in columns:
        values = [row.get(name) for row in rows]
        if not all(isinstance(value, str | int | bool) and len(str(value)) < 60 for value in values):
            continue
        kinds = len(set(values))
        if 2 <= kinds <= min(MOST_CLASSES, max(2, len(rows) // 2)):
            found.append(name)
    return _first(found, LABELS) or (found[0] if len(found) == 1 and len(columns) <= 3 else None)


def _longest_column(rows: list[dict[str, Any]], texts: Sequence[str], label: str | None) -> str | None:
    sizes = {name: sum(len(row[name]) for row in rows[:50]) for name in texts if name != label}
    return max(sizes, key=lambda name: sizes[name]) if sizes else None


def _longest(rows: list[dict[str, Any]]) -> int:
    return max(len(json.dumps(row, ensure_ascii=False, default=str).encode()) for row in rows)


# the recipe ----------------------------------------------------------------------------------------------------------


def _choose_batch(seen: Seen, model: str, target: Path, gpu: str | None) -> tuple[int, str]:
    """(rows per device, what to say): the largest of BATCHES that plan says fits; of a CPU a small one."""
    if gpu is None:
        return CPU_BATCH, ""
    from hf_recipes.commands.plan import command as plan

    draft = target.with_name(f"{target.name}.part")
    try:
        put(draft, recipe_text(seen, model, target.stem, BATCHES[0], gpu, ""))
        for batch in BATCHES:
            section = "SFTConfig" if seen.task == "chat" else "TrainingArguments"
            override = f"{section}.per_device_train_batch_size={batch}"
            _, fits = plan(str(draft), [override], gpu=gpu, with_advice=False, read_data=False)
            if fits:
                return batch, f"{gpu}: {batch} rows of {_length(seen)} tokens fit, by plan"
    except RecipeError as problem:
        return CPU_BATCH, f"warning: not planned: {problem.errors[0].message}"
    finally:
        draft.unlink(missing_ok=True)
    return 1, f"warning: plan says that {model} does not fit {gpu} even with one row: name a smaller one with --model"


def _length(seen: Seen) -> int:
    """Tokens of a row: a power of two that holds the longest row looked at, the task's usual length at most."""
    most, length = LENGTHS[str(seen.task)], 32
    while length < most and length * BYTES_PER_TOKEN < seen.longest:
        length *= 2
    return most if seen.task == "causal-lm" else min(length, most)


def recipe_text(seen: Seen, model: str, name: str, batch: int, gpu: str | None, data: str) -> str:
    """The recipe as YAML with comments."""
    chat = seen.task == "chat"
    trainer = "SFTConfig" if chat else "TrainingArguments"
    rate = "2e-4" if chat else "5e-5"
    lines = [
        f"# {seen.task} on {data or 'data'}: {seen.why}. Written by hf-recipes init.",
        f"# Run:      hf-recipes run {name}.yaml",
        f"# Plan:     hf-recipes plan {name}.yaml" + (f" --gpu {gpu}" if gpu else ""),
        f"task: {seen.task}",
        "model:",
        f"  pretrained_model_name_or_path: {as_yaml(model)}   # a Hub id or a folder",
        "dataset:",
        *(f"  {key}: {as_yaml(value)}" for key, value in seen.dataset.items()),
        "  test_size: 0.1                     # rows that are split off for validation; or name a validation file",
    ]
    if not chat:
        lines.append(f"  max_length: {_length(seen)}                    # tokens; longer rows are cut")
    if chat:
        lines += ["LoraConfig:                          # an adapter is trained, not the whole model",
                  "  r: 16", "  lora_alpha: 32", "  target_modules: all-linear"]  # fmt: skip
    lines += [
        f"{trainer}:",
        f"  output_dir: runs/{name}",
        "  num_train_epochs: 3",
        f"  per_device_train_batch_size: {batch}",
        f"  gradient_accumulation_steps: {max(1, STEP // batch)}    # {batch} x {max(1, STEP // batch)} rows a step",
        f"  learning_rate: {rate}",
        "  warmup_steps: 0.1                  # below 1: a share of all steps",
        "  logging_steps: 10",
        "  eval_on_start: true                # so that the improvement shows",
        "  eval_strategy: epoch",
        "  save_strategy: epoch",
        "  save_total_limit: 1",
        "  report_to: none",
    ]
    if chat:
        lines.append(f"  max_length: {_length(seen)}                   # tokens; longer rows are cut")
    return "\n".join(lines) + "\n"
