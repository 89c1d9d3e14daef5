"""One message of a conversation: its role, its content and its tool calls, as OpenAI, ShareGPT and others write them.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

from hf_recipes.catalog.chat_roles import ROLES, SHAREGPT_ROLES, as_mapping, guess_roles, names_of

Message = dict[str, Any]

UNLEARNED = ("weight", "train", "training")  # OpenAI's, axolotl's: 0 or false for an answer that is not learned


class RowError(ValueError):
    """What is wrong with a row, in words that follow its name; `kind` is the same for rows with the same problem (""
    where finding the others would take as long as the rows themselves)."""

    def __init__(self, kind: str, what: str, fix: str) -> None:
        super().__init__(kind, what, fix)  # all of them: it is sent between processes
        self.kind, self.what, self.fix = kind, what, fix

    def __str__(self) -> str:
        return self.what


def read_messages(value: Any, names: Mapping[str, str], padded: bool, key: str) -> list[Message]:
    """The messages of a row: role and content as texts, None of their keys without a value.

    `names` of roles are the recipe's; `padded`: Arrow gave every tool call the keys of all. Raises RowError.
    """
    value = messages_of(value)
    if not isinstance(value, list) or not value:
        what = "has no messages" if value in (None, [], "") else f"has {_kind(value)}, no list of messages"
        raise RowError("shape", what, f"name the column of the messages with dataset.{key}")
    messages = [_read_message(message, i, names, value) for i, message in enumerate(value)]
    if padded:
        for message in messages:
            if "tool_calls" in message:
                message["tool_calls"] = without_null(message["tool_calls"])
    return messages


def _read_message(message: Any, i: int, roles: Mapping[str, str], conversation: list[Any]) -> Message:
    if not isinstance(message, Mapping):
        raise RowError("shape", f"message {i} is {_kind(message)}, not a message", "give a list of {role, content}")
    if len(message) == 2 and message.get("role") in ROLES and isinstance(message.get("content"), str) and not roles:
        return dict(message)  # as most are
    unlearned = next((key for key in UNLEARNED if message.get(key) in (0, False) and message[key] is not None), "")
    if unlearned and message.get("role", message.get("from")) not in ("user", "human", "system", "tool"):
        what = f"message {i} has {unlearned}: {json.dumps(message[unlearned])}, and every answer is learned here"
        fix = f"make it the end of a prompt (columns prompt and completion), or remove {unlearned}"
        raise RowError(f"key {unlearned}", what, fix)
    found = {key: value for key, value in message.items() if value is not None}
    if "role" not in found and "from" in found:
        found = {key: value for key, value in found.items() if key not in ("from", "value")}
        named, content = message["from"], message.get("value")
        role = roles.get(named, SHAREGPT_ROLES.get(named, named)) if isinstance(named, str) else named
        found["role"] = role
        calls = _calls(content) if named == "function_call" else None
        found.update({"tool_calls": calls} if calls else {} if content is None else {"content": content})
    elif "role" not in found:
        keys = ", ".join(map(str, message)) or "no keys"
        what = f"message {i} has no role (it has {keys})"
        raise RowError(f"no role {keys}", what, "give each message role and content, or from and value")
    else:
        named = found["role"]
        found["role"] = roles.get(named, named) if isinstance(named, str) else named
    if found["role"] not in ROLES:
        what = f"message {i} has the role {found['role']!r}, which is none of {', '.join(ROLES)}"
        known = {**(SHAREGPT_ROLES if "role" not in message else {}), **roles}
        guess = guess_roles(names_of(conversation), known)
        fix = "correct it" + (f", or write role_names: {as_mapping(guess)} into the dataset section" if guess else "")
        raise RowError(f"role {found['role']}", what, fix)
    if "content" in found:
        found["content"] = _read_content(found["content"], i)
    elif not found.get("tool_calls") and not found.get("reasoning_content"):
        what = f"message {i} ({found['role']}) has no content"
        raise RowError("content", what, "give it a text, or remove such rows")
    return found


def _read_content(content: Any, i: int) -> str:
    """Content parts are joined: many templates write nothing for a list, or its Python form."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [part if isinstance(part, str) else _part_text(part, i) for part in content]
        return "".join(texts)
    what = f"the content of message {i} is {_kind(content)}, not text"
    raise RowError("content kind", what, "write it as text")


def _part_text(part: Any, i: int) -> str:
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else _kind(part)
    what = f"message {i} has a content part of type {kind!r}: only texts are trained here"
    raise RowError(f"part {kind}", what, "remove such parts, or such rows")


def _calls(content: Any) -> list[dict[str, Any]] | None:
    """ShareGPT's function_call: JSON with name and arguments, or a list of them."""
    try:
        calls = json.loads(content) if isinstance(content, str) else content
    except ValueError:
        return None
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(call, Mapping) and "name" in call for call in calls):
        return None
    return [{"type": "function", "function": dict(call)} for call in calls]


def messages_of(value: Any) -> Any:
    """The list of messages that a column holds as JSON text; every other value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    found = list_of_text(value)
    if found is None:
        return value
    named = bool(found) and all(isinstance(item, dict) and ({"role", "from"} & set(item)) for item in found)
    return found if named else value  # a text in brackets is a text


def list_of_text(text: str) -> list[Any] | None:
    """A list as JSON or as Python writes it (pandas' to_csv does); None for another text."""
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return found if isinstance(found, list) else None
    return None


def json_of(value: Any, column: str) -> Any:
    """A value that the column may hold as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except ValueError as problem:
        raise RowError(f"JSON {column}", f"the column {column!r} is no JSON: {problem}", "correct the row") from None


def without_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: without_null(item) for key, item in value.items() if item is not None}
    return [without_null(item) for item in value] if isinstance(value, list) else value


def _kind(value: Any) -> str:
    names = {"NoneType": "null", "str": "a text", "int": "a number", "float": "a number", "dict": "a mapping"}
    names |= {"list": "a list", "bool": "true or false"}
    return names.get(type(value).__name__, type(value).__name__)
