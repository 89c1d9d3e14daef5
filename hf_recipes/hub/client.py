"""huggingface_hub's client made patient but not endless, its errors as one sentence, and tokens kept out of both.

Its own client waits for ever (`timeout=None`, huggingface_hub/utils/_http.py); `create_repo` and the commit try once,
other calls retry six times and sleep as long as a Retry-After says; hf_xet, which carries the large files, goes on for
minutes (measured 2026-11-22, hf_xet 1.8.0: over 200 s on a Hub that answers 500). `patient_client` gives every call of
a push the same limits, and puts the earlier client back afterwards.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hf_recipes.errors import RecipeError
from hf_recipes.hub.model_card import TOKEN_PATTERN

SHORTEST_TOKEN = 8  # characters; a shorter HF_TOKEN is no token, and would be found in every file
# Exceptions of httpx that another try may mend, by name: huggingface_hub 1 uses httpx, 2 uses httpx2.
PASSING = {"TimeoutException", "NetworkError", "RemoteProtocolError", "ProxyError"}
LOGIN = "set HF_TOKEN to a token with write access or run `hf auth login`"


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a push waits for a Hub that does not answer. An upload that moves is never cut off."""

    connect_seconds: float = 5
    answer_seconds: float = 20  # of silence on an open connection
    tries: int = 3  # of the whole push; huggingface_hub's own retries within a call come under trouble_seconds
    first_wait_seconds: float = 1  # doubled after each try
    trouble_seconds: float = 45  # from the first failed call, with none answered since, to giving up


class GaveUp(Exception):
    """The Hub has failed for longer than Patience allows. No class that huggingface_hub would retry."""


@contextlib.contextmanager
def patient_client(patience: Patience) -> Iterator[list[tuple[float, str]]]:
    """Every call of huggingface_hub within has time limits, and raises GaveUp once the Hub has failed for too long.

    Yields the calls that failed since the last good answer: (seconds on the monotonic clock, what happened). The
    user's own client (`set_client_factory`: proxies, certificates) stays beneath. What factory was set before has no
    public reader (huggingface_hub 2.4.0): a test holds the private name.
    """
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    earlier = _http._GLOBAL_CLIENT_FACTORY
    trouble: list[tuple[float, str]] = []
    limits = dict.fromkeys(("read", "write", "pool"), patience.answer_seconds) | {"connect": patience.connect_seconds}

    def patient() -> Any:
        client: Any = earlier()
        plain_send = client.send

        def failed(began: float, what: str, waits: int = 0) -> None:
            trouble.append((began, what))
            if time.monotonic() - trouble[0][0] + waits > patience.trouble_seconds:
                raise GaveUp(what + (f", and asks to wait {waits} s" if waits else ""))

        def send(request: Any, **options: Any) -> Any:
            began = time.monotonic()
            # Per request, because model_info and list_repo_tree pass timeout=None past the client's own limits.
            asked = request.extensions.get("timeout") or {}
            request.extensions["timeout"] = {
                kind: limit if asked.get(kind) is None else min(limit, asked[kind]) for kind, limit in limits.items()
            }
            try:
                response = plain_send(request, **options)
            except Exception as error:
                if _names(error) & PASSING:
                    failed(began, _transport(error))
                raise
            if response.status_code >= 500 or response.status_code in (408, 429):
                failed(began, f"answers {response.status_code} {response.reason_phrase}", _asked_wait(response.headers))
            else:
                trouble.clear()
            return response

        client.send = send
        return client

    set_client_factory(patient)
    try:
        with _patient_xet(patience):
            yield trouble
    finally:
        set_client_factory(earlier)


@contextlib.contextmanager
def _patient_xet(patience: Patience) -> Iterator[None]:
    """The same limits for hf_xet: Rust, with its own client, which reads its environment when a session begins.

    A session that began earlier (the base model was downloaded through it) keeps its own limits, so it is ended; so is
    ours. What the user has set stays.
    """
    limits = {
        "HF_XET_CLIENT_CONNECT_TIMEOUT": patience.connect_seconds,
        "HF_XET_CLIENT_READ_TIMEOUT": patience.answer_seconds,
        "HF_XET_CLIENT_RETRY_MAX_DURATION": patience.trouble_seconds,
    }
    ours = {name: f"{max(1, round(seconds))}s" for name, seconds in limits.items()}
    ours["HF_XET_CLIENT_RETRY_MAX_ATTEMPTS"] = str(max(0, patience.tries - 1))
    ours = {name: value for name, value in ours.items() if name not in os.environ}
    end_session = getattr(_xet_module(), "abort_xet_session", lambda: None)
    os.environ.update(ours)
    end_session()
    try:
        yield
    finally:
        end_session()
        for name in ours:
            os.environ.pop(name, None)


def _xet_module() -> Any:
    try:
        from huggingface_hub.utils import _xet
    except ImportError:
        return None
    return _xet


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Our one message instead of huggingface_hub's line for every retry, and no doubt about scores.parquet."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")
            yield
    finally:
        logger.setLevel(level)


def why(error: BaseException, repo_id: str, trouble: list[tuple[float, str]] | None = None) -> tuple[str, str]:
    """An exception of huggingface_hub as (what happened, the words before the command that pushes again)."""
    from huggingface_hub import constants

    hub, later = f"the Hub at {constants.ENDPOINT}", "push later with"
    chain = list(_chain(error))
    if last := gave_up(error):
        return f"{hub} {last}", later
    if trouble:
        return f"{hub} {trouble[-1][1]}", later
    for each in chain:
        status = getattr(getattr(each, "response", None), "status_code", None)
        said = getattr(each, "server_message", None)
        told = f"{status}: {said}" if said else str(status)
        if status == 401:
            return f"{hub} does not accept the token ({told})", f"{LOGIN}, then"
        if status == 403:
            return f"{hub} does not let this token write there ({told})", (
                f"use a token with write access to {repo_id}, then"
            )
        if status == 412:
            return f"{hub} took another commit meanwhile ({told})", "push again with"
        if status is not None:
            return f"{hub} refuses ({told})", later
        if _names(each) & PASSING:
            return f"{hub} {_transport(each)}", later
        if isinstance(each, json.JSONDecodeError):
            return f"what answers at {constants.ENDPOINT} is no Hub: its answer is not JSON", "check HF_ENDPOINT, then"
        if isinstance(each, ValueError) and "metadata in README.md" in str(each):
            return f"{hub} refuses the card: {each}", "mend the front matter of README.md, then"
    if any("xet" in (type(each).__module__ or "").lower() or "xet" in str(each).lower() for each in chain):
        return f"{hub}: the Xet upload failed ({chain[0]})", "push without Xet: set HF_HUB_DISABLE_XET=1, then"
    return f"{type(error).__name__}: {error}", later


def gave_up(error: BaseException) -> GaveUp | None:
    """The GaveUp that an error came from: an upload's thread wraps it in a RuntimeError."""
    return next((each for each in _chain(error) if isinstance(each, GaveUp)), None)


def require_login(repo_id: str, command: str) -> tuple[str, ...]:
    """The tokens of this machine, to look for and to blot out. Raises RecipeError if a push cannot begin."""
    from huggingface_hub import get_token, is_offline_mode

    if is_offline_mode():
        raise RecipeError.at(
            repo_id, "not pushed, because HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set", f"unset it, then: {command}"
        )
    try:
        token = get_token()
    except Exception as error:  # a login that needs the network (HF_OIDC_RESOURCE, an expired browser login)
        raise RecipeError.at(
            repo_id, blot(f"the login to the Hub failed: {error}"), f"{LOGIN}, then: {command}"
        ) from None
    if not token:
        raise RecipeError.at(
            repo_id, "there is no access token of the Hub on this machine", f"{LOGIN}, then: {command}"
        )
    if not re.fullmatch(r"[!-~]+", token):  # no header can carry it, and the error would be httpx's, not ours
        raise RecipeError.at(
            repo_id,
            "what is set as access token holds a space or a character that no token has",
            f"{LOGIN}, then: {command}",
        )
    return tuple({token, *_tokens_of_environment()})


def blot(text: str, tokens: tuple[str, ...] = ()) -> str:
    """text as one line, without tokens (a server may quote what it was sent, and an error what it could not send)."""
    for token in {*tokens, *_tokens_of_environment()}:
        if len(token) >= SHORTEST_TOKEN:
            for form in (token, repr(token)[1:-1], repr(token.encode())[2:-1]):
                text = text.replace(form, "***")
    return " ".join(TOKEN_PATTERN.sub("hf_***", text).split())


def _tokens_of_environment() -> tuple[str, ...]:
    values = (os.environ.get(name, "").strip() for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"))
    return tuple(value for value in values if value)


def _transport(error: BaseException) -> str:
    names = _names(error)
    if "ConnectTimeout" in names:
        return "cannot be reached (no connection in time)"
    if "TimeoutException" in names:
        return "does not answer"
    if "ConnectError" in names:
        return f"cannot be reached ({error})"
    return f"broke the connection ({error})"


def _asked_wait(headers: Any) -> int:
    """Seconds that a 429 or 503 asks to wait: Retry-After, or `t` of the Hub's `ratelimit: "api";r=0;t=55`."""
    found = [
        re.fullmatch(r"\s*(\d+)\s*", headers.get("retry-after", "")),
        re.search(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("ratelimit", "")),
    ]
    return max((int(match[1]) for match in found if match), default=0)


def _names(error: BaseException) -> set[str]:
    return {cls.__name__ for cls in type(error).__mro__}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """error and what it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
