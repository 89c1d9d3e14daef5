"""The roles of a conversation, and the names that data sets give them. Imports neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from hf_recipes.common.text import nearest

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT_ROLES = {  # names of ShareGPT, LLaMA-Factory and axolotl
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "function_response"), "tool"),
    **{"system": "system", "developer": "developer", "function_call": "assistant"},
}
USUAL = {  # to suggest, not to read: whose texts are learned is for the recipe to say
    **SHAREGPT_ROLES,
    **dict.fromkeys(("customer", "client", "person", "prompter", "asker", "questioner", "seeker", "caller"), "user"),
    **dict.fromkeys(("patient", "student", "visitor", "guest", "buyer", "usr", "enduser", "player"), "user"),
    **dict.fromkeys(("question", "query", "input", "instruction", "prompt", "request"), "user"),
    **dict.fromkeys(("bot", "chatbot", "ai", "agent", "llm", "claude", "gemini", "llama", "robot"), "assistant"),
    **dict.fromkeys(("helper", "advisor", "expert", "doctor", "therapist", "teacher", "tutor", "support"), "assistant"),
    **dict.fromkeys(("answer", "response", "output", "completion", "reply", "seller", "supporter"), "assistant"),
    **dict.fromkeys(("sys", "systemprompt", "systemmessage", "context"), "system"),
    **dict.fromkeys(("ipython", "tools", "tooloutput", "toolresult", "toolresponse", "environment"), "tool"),
}


def usual_role(name: str) -> str:
    """The role that has this name elsewhere, or one spelled like it; "" where none has."""
    plain = "".join(letter for letter in name.lower() if letter.isalnum())
    names = {"".join(letter for letter in known if letter.isalnum()): role for known, role in USUAL.items()}
    return names.get(plain) or names.get(nearest(plain, names, cutoff=0.8), "")


def guess_roles(names: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    """Name -> role, for each of a conversation's names that is not `known` and no role, in their order.

    A name that nobody uses is the assistant's where it follows the user or a tool, and else the user's.
    """
    found: dict[str, str] = {}
    before = ""
    for name in names:
        role = known.get(name, name)
        if role not in ROLES:
            role = found.get(name) or usual_role(name) or ("assistant" if before in ("user", "tool") else "user")
            found[name] = role
        before = before if role in ("system", "developer") else role
    return found


def as_mapping(roles: Mapping[str, str]) -> str:
    """As a recipe writes it on one line."""
    return "{" + ", ".join(f"{_plain(name)}: {role}" for name, role in roles.items()) + "}"


def _plain(name: str) -> str:
    word = name.replace("_", "").isalnum() and not name[0].isdigit()
    return name if word and name.lower() not in ("null", "true", "false", "yes", "no", "on", "off") else f'"{name}"'


def names_of(messages: Iterable[object]) -> list[str]:
    """The names of the roles in a conversation, as they stand there."""
    named = (message.get("role", message.get("from")) for message in messages if isinstance(message, Mapping))
    return [name for name in named if isinstance(name, str)]
