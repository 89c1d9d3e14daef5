"""Rows of a chat data set, in the shapes that people have them, to conversations.

Messages with role and content (OpenAI's, TRL's), ShareGPT's (from, value), prompt and completion, Alpaca's columns, or
any columns through templates in the recipe. Imports neither torch nor transformers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hf_recipes.data.chat_messages import Message, RowError, json_of, messages_of, read_messages, without_null
from hf_recipes.data.splits import find_column
from hf_recipes.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.recipe.recipe import Recipe

Row = Mapping[str, Any]

ALPACA = {"input": ("input", "context"), "output": ("output", "response"), "system": ("system",)}
TEMPLATES = {"system_template": "system", "user_template": "user", "assistant_template": "assistant"}
TEMPLATE_COLUMN = "chat_template_kwargs"
SHAPES = (
    "name them with dataset.messages_column, or dataset.prompt_column and dataset.completion_column, or write "
    "dataset.user_template and dataset.assistant_template"
)


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """`prompt` of the messages (0: none) are the prompt of prompt/completion rows."""

    messages: list[Message]
    prompt: int = 0
    tools: Any = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Prompt and completion as plain texts: no chat template."""

    prompt: str
    completion: str


@dataclass(frozen=True, kw_only=True)
class Head:
    """What decides how a split's rows are read: the names of its columns, and its first row."""

    column_names: list[str]
    first: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class RowReader:
    """How rows become conversations: which columns are read, and the function that reads a row."""

    columns: tuple[str, ...]  # needed in every split
    keys: tuple[str, ...]  # of the `dataset` section, one for each of the columns
    read: Callable[[Row], Conversation | Pair]  # raises RowError
    completion: bool = False  # rows of prompt and completion
    chat: bool = True  # rendered by the chat template: no plain texts
    note: str = ""
    optional: tuple[str, ...] = ()  # read where a split has them
    made_of: tuple[Recipe, Head] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """`read` is made again in another process."""
        return choose_reader, self.made_of or ()

    def check(self, recipe: Recipe, part: Dataset) -> None:
        """Raises DataError for a split without a column that is read."""
        for name, key in zip(self.columns, self.keys, strict=True):
            if key not in TEMPLATES:
                find_column(recipe, part, key, name)
            elif name not in part.column_names:
                raise _no_column(recipe, part, key, name)

    def select(self, part: Dataset) -> Dataset:
        """The columns that are read of a split."""
        return part.select_columns([*self.columns, *(name for name in self.optional if name in part.column_names)])


def choose_reader(recipe: Recipe, train: Dataset | Head) -> RowReader:
    """By the keys of the recipe, else by the columns of the data. Raises DataError for columns of no known shape."""
    if not isinstance(train, Head):
        train = Head(column_names=train.column_names, first=train[0] if train.num_rows else None)
    return replace(_choose(recipe, train), made_of=(recipe, train))


def _choose(recipe: Recipe, train: Head) -> RowReader:
    named, columns = recipe.section("dataset"), train.column_names
    if any(key in named for key in TEMPLATES):
        return _templates(recipe, train)
    if "messages_column" in named:
        return _messages(recipe, train, str(named["messages_column"]))
    if "prompt_column" not in named and "completion_column" not in named:
        if "messages" in columns:
            return _messages(recipe, train, "messages")
        if "conversations" in columns:
            return _messages(recipe, train, "conversations")
        if "instruction" in columns and "prompt" not in columns and _first(columns, ALPACA["output"]):
            return _alpaca(recipe, train)
        if "prompt" not in columns:
            what = f"the data has neither a messages column nor prompt and completion (it has {', '.join(columns)})"
            raise DataError.at(recipe.location("dataset"), what, SHAPES)
    return _prompts(recipe, train)


def _messages(recipe: Recipe, train: Head, column: str) -> RowReader:
    column = find_column(recipe, train, "messages_column", column)
    common = _Common(recipe, train, column)
    note = f"the system prompt is in the column {common.system!r}" if common.system else ""

    def read(row: Row) -> Conversation:
        messages = common.messages(row[column], "messages_column")
        return common.conversation(row, messages)

    return RowReader(columns=(column,), optional=common.columns, keys=("messages_column",), read=read, note=note)


def _prompts(recipe: Recipe, train: Head) -> RowReader:
    prompt = find_column(recipe, train, "prompt_column", "prompt")
    completion = find_column(recipe, train, "completion_column", "completion")
    common = _Common(recipe, train)
    chat = train.first is not None and isinstance(messages_of(train.first[prompt]), list)

    def read(row: Row) -> Conversation | Pair:
        before, after = messages_of(row[prompt]), messages_of(row[completion])
        if isinstance(before, str) and isinstance(after, str) and not chat:
            return Pair(prompt=before, completion=after)
        if isinstance(before, list) and isinstance(after, list) and chat:
            before = common.messages(before, "prompt_column")
            messages = [*before, *common.messages(after, "completion_column")]
            conversation = common.conversation(row, messages)
            added = len(conversation.messages) - len(messages)  # a system message
            return Conversation(
                messages=conversation.messages,
                prompt=len(before) + added,
                tools=conversation.tools,
                arguments=conversation.arguments,
            )
        missing = [name for name, value in ((prompt, before), (completion, after)) if value is None]
        if missing:
            raise RowError(f"no {missing[0]}", f"the column {missing[0]!r} has no text (null)", "remove such rows")
        what = "prompt and completion must be texts in all rows, or lists of messages in all rows"
        raise RowError("prompt", what, "name the columns with dataset.prompt_column and dataset.completion_column")

    return RowReader(
        columns=(prompt, completion),
        keys=("prompt_column", "completion_column"),
        optional=common.columns,
        read=read,
        completion=True,
        chat=chat,
    )


def _alpaca(recipe: Recipe, train: Head) -> RowReader:
    """instruction, input (may be empty) and output, as LLaMA-Factory joins them; `history` holds earlier turns."""
    columns = train.column_names
    more, output = _first(columns, ALPACA["input"]), str(_first(columns, ALPACA["output"]))
    common = _Common(recipe, train, "instruction")

    def read(row: Row) -> Conversation:
        for name in ("instruction", output):
            if not isinstance(row[name], str):
                raise RowError(f"no {name}", f"the column {name!r} has no text", "remove such rows")
        answer = {"role": "assistant", "content": row[output]}
        return common.conversation(row, [*_alpaca_question(row, more), answer])

    used = tuple(name for name in ("instruction", more, output) if name)
    shown = f"rows are read as Alpaca's: {' and '.join(used[:-1])} make the user's message, {output} the answer"
    return RowReader(
        columns=used,
        optional=(*common.columns, "history"),
        keys=("messages_column",) * len(used),
        read=read,
        note=shown,
    )


def _alpaca_question(row: Row, more: str | None) -> list[Message]:
    """The earlier turns and the user's message. `more`: the column of the input."""
    asked = "\n".join(text for text in (row["instruction"], row[more] if more else "") if text)
    earlier = [
        {"role": role, "content": text}
        for turn in row.get("history") or []
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    return [*earlier, {"role": "user", "content": asked}]


def read_question(recipe: Recipe, row: Row) -> list[Message] | None:
    """The messages before the answer of a row that has neither messages nor a prompt, as training reads such rows: by
    the recipe's templates (the only column of user_template may be the row's text), or Alpaca's. None for another.

    Raises RowError for a row without a column that a template reads.
    """
    named = recipe.section("dataset")
    if "user_template" in named:
        found = []
        for key, role in TEMPLATES.items():
            if key == "assistant_template" or key not in named:
                continue
            template, names = _compile(str(named[key]), recipe.location(f"dataset.{key}"))
            if key == "user_template" and len(names) == 1 and not names & set(row) and set(row) == {"text"}:
                row = {**row, **dict.fromkeys(names, row["text"])}
            missing = sorted(names - set(row))
            if missing:
                what = f"has no {missing[0]!r}, which the run's dataset.{key} reads"
                raise RowError(f"no {missing[0]}", what, "give rows with the columns of the training data")
            content = template.render({name: "" if row[name] is None else row[name] for name in names})
            found.append({"role": role, "content": content})
        return [one for one in found if one["role"] != "system" or one["content"]]
    if "messages_column" in named or "prompt_column" in named or not isinstance(row.get("instruction"), str):
        return None
    return _alpaca_question(row, _first(list(row), ALPACA["input"]))


def _templates(recipe: Recipe, train: Head) -> RowReader:
    """Jinja templates of the recipe over the row's columns: `{{ question }}`."""
    parts = []
    used = template_columns(recipe)
    for key, role in TEMPLATES.items():
        source = recipe.get(f"dataset.{key}")
        if source is None:
            continue
        template, names = _compile(str(source), recipe.location(f"dataset.{key}"))
        parts.append((role, template))
        for name in sorted(names - set(train.column_names)):
            raise _no_column(recipe, train, key, name)
    common = _Common(recipe, train, "")

    def read(row: Row) -> Conversation:
        values = {name: "" if row[name] is None else row[name] for name in used}
        messages = [{"role": role, "content": template.render(values)} for role, template in parts]
        return common.conversation(row, [one for one in messages if one["role"] != "system" or one["content"]])

    keys = ("user_template",) * len(used)
    return RowReader(columns=tuple(used), keys=keys, optional=common.columns, read=read)


def _no_column(recipe: Recipe, part: Dataset | Head, key: str, name: str) -> DataError:
    what = f"dataset.{key} reads {name!r}, and the data has no such column (it has {', '.join(part.column_names)})"
    return DataError.at(recipe.location(f"dataset.{key}"), what, "correct the template")


def template_columns(recipe: Recipe) -> list[str]:
    """The columns that the recipe's templates read."""
    found: list[str] = []
    for key in TEMPLATES:
        if (source := recipe.get(f"dataset.{key}")) is not None:
            found += sorted(_compile(str(source), recipe.location(f"dataset.{key}"))[1] - set(found))
    return found


def _compile(source: str, location: str) -> tuple[Any, set[str]]:
    """A template of the recipe, in Jinja's sandbox, and the variables that it reads."""
    from jinja2 import TemplateError, meta
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment()
    try:
        return environment.from_string(source), meta.find_undeclared_variables(environment.parse(source))
    except TemplateError as problem:
        raise DataError.at(location, f"this is no Jinja template: {problem}", "write {{ name_of_a_column }}") from None


class _Common:
    """What every shape of conversation may have beside its messages: tools, arguments of the template, a system
    prompt, other names of the roles."""

    def __init__(self, recipe: Recipe, train: Head, shape: str = "messages") -> None:
        columns = train.column_names

        def optional(key: str, default: str | None) -> str | None:
            if recipe.get(f"dataset.{key}") is not None:
                return find_column(recipe, train, key, "")
            return default if default in columns else None

        self.tools = optional("tools_column", "tools")
        self.system = optional("system_column", "system" if shape in ("conversations", "instruction") else None)
        self.per_row = TEMPLATE_COLUMN if TEMPLATE_COLUMN in columns else None
        self.arguments: Mapping[str, Any] = recipe.get("dataset.chat_template_kwargs") or {}
        self.roles: Mapping[str, str] = recipe.get("dataset.role_names") or {}
        # Arrow gives every mapping of a column the keys of all; JSON files are read so that none is added.
        self.padded = recipe.get("dataset.path") != "json"

    @cached_property
    def columns(self) -> tuple[str, ...]:
        return tuple(name for name in (self.tools, self.system, self.per_row) if name)

    def messages(self, value: Any, key: str) -> list[Message]:
        return read_messages(value, self.roles, self.padded, key)

    def conversation(self, row: Row, messages: list[Message]) -> Conversation:
        system = row.get(self.system) if self.system else None
        if isinstance(system, str) and system.strip() and (not messages or messages[0]["role"] != "system"):
            messages = [{"role": "system", "content": system}, *messages]
        return Conversation(messages=messages, tools=self._tools(row), arguments=self._arguments(row))

    def _arguments(self, row: Row) -> Mapping[str, Any]:
        return join_arguments(self.arguments, row.get(self.per_row)) if self.per_row else self.arguments

    def _tools(self, row: Row) -> Any:
        return read_tools(row.get(self.tools), self.tools, self.padded) if self.tools else None


def join_arguments(common: Mapping[str, Any], value: Any) -> Mapping[str, Any]:
    """The template's arguments of the recipe with those of a row. Raises RowError."""
    given = json_of(value, TEMPLATE_COLUMN)
    if not given:
        return common
    return {**common, **{key: value for key, value in given.items() if value is not None}}


def read_tools(value: Any, column: str, padded: bool) -> Any:
    """The tools of a row; None without any. `padded`: Arrow gave every tool the keys of all. Raises RowError."""
    tools = json_of(value, column)
    if not tools:
        return None
    tools = [json_of(tool, column) for tool in (tools if isinstance(tools, list) else [tools])]
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise RowError("tools", f"the column {column!r} is no list of tools", "give their JSON schemas")
    return [without_null(tool) for tool in tools] if padded else tools


def _first(columns: Iterable[str], names: Iterable[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def refuse_row(reader: RowReader, part: Dataset, split: str, index: int, problem: RowError, location: str) -> DataError:
    """The error of a row, with the number of rows that have the same problem."""
    what = f"row {index} of the {split} split: {problem.what}"
    if problem.kind:
        rows = Counter(_problems(reader, part))[problem.kind]
        what += f" ({rows:,} of {part.num_rows:,} rows)"
        if problem.kind == "shape" and rows < part.num_rows / 2:  # the column is right, and its other rows are read
            return DataError.at(location, what, "correct such rows, or remove them")
    return DataError.at(location, what, problem.fix)


def _problems(reader: RowReader, part: Dataset) -> Iterator[str]:
    for row in reader.select(part):
        try:
            reader.read(row)
        except RowError as problem:
            yield problem.kind


def conversation_texts(recipe: Recipe, train: Dataset) -> Iterator[str]:
    """The texts of every row, for a tokenizer that is trained on them. Rows with a problem are left to `prepare`."""
    reader = choose_reader(recipe, train)
    for row in reader.select(train):
        try:
            found = reader.read(row)
        except RowError:
            continue
        if isinstance(found, Pair):
            yield from (found.prompt, found.completion)
        else:
            yield from (str(message["content"]) for message in found.messages if "content" in message)
