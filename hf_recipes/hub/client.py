"""huggingface_hub's client with time limits, its errors in one sentence, and no token in either.

Its own client waits forever (`timeout=None`, huggingface_hub/utils/_http.py); `create_repo` and the commit try once,
other calls retry six times and sleep as long as a Retry-After asks; hf_xet, which uploads the large files, retries for
minutes (measured 2026-11-22, hf_xet 1.8.0: over 200 s on a Hub that answers 500). `limited_client` gives every call of
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

from hf_recipes.common.secrets import mask_secrets
from hf_recipes.errors import HubError

SHORTEST_TOKEN = 8  # characters; a shorter HF_TOKEN is not a token, and would be found in every file
# Exceptions of httpx after which a retry may succeed, by name: huggingface_hub 1 uses httpx, 2 uses httpx2.
RETRYABLE = {"TimeoutException", "NetworkError", "RemoteProtocolError", "ProxyError"}
LOGIN = "set HF_TOKEN to a token with write access or run `hf auth login`"


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a push waits for a Hub that does not answer. An upload that makes progress is never stopped."""

    connect_seconds: float = 5
    answer_seconds: float = 20  # of silence on an open connection
    tries: int = 3  # of the complete push; trouble_seconds limits huggingface_hub's own retries within a call
    first_wait_seconds: float = 1  # doubled after each try
    trouble_seconds: float = 45  # from the first failed call, if none succeeded since


class HubUnavailableError(Exception):
    """The Hub has failed for longer than Patience allows. Not a class that huggingface_hub would retry."""


@contextlib.contextmanager
def limited_client(patience: Patience) -> Iterator[list[tuple[float, str]]]:
    """Gives every call of huggingface_hub time limits; HubUnavailableError is raised when the Hub failed for too long.

    Yields the calls that failed since the last success: (seconds on the monotonic clock, what happened). The user's
    own client (`set_client_factory`: proxies, certificates) is wrapped. The factory that was set before has no public
    getter (huggingface_hub 2.4.0): a test checks the private name.
    """
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    earlier = _http._GLOBAL_CLIENT_FACTORY
    failures: list[tuple[float, str]] = []
    limits = dict.fromkeys(("read", "write", "pool"), patience.answer_seconds) | {"connect": patience.connect_seconds}

    def make_client() -> Any:
        client: Any = earlier()
        plain_send = client.send

        def record_failure(began: float, what: str, waits: int = 0) -> None:
            failures.append((began, what))
            if time.monotonic() - failures[0][0] + waits > patience.trouble_seconds:
                raise HubUnavailableError(what + (f", and asks to wait {waits} s" if waits else ""))

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
                if _names(error) & RETRYABLE:
                    record_failure(began, _describe_transport_error(error))
                raise
            if response.status_code >= 500 or response.status_code in (408, 429):
                what = f"answers {response.status_code} {response.reason_phrase}"
                record_failure(began, what, _requested_wait(response.headers))
            else:
                failures.clear()
            return response

        client.send = send
        return client

    set_client_factory(make_client)
    try:
        with _limited_xet(patience):
            yield failures
    finally:
        set_client_factory(earlier)


@contextlib.contextmanager
def _limited_xet(patience: Patience) -> Iterator[None]:
    """The same limits for hf_xet: Rust, with its own client, which reads its environment when a session begins.

    A session that began earlier (it downloaded the base model) keeps its own limits, so it is ended; so is ours.
    What the user has set stays.
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
def silence_client() -> Iterator[None]:
    """Hides huggingface_hub's line for every retry and its warning about scores.parquet: one message replaces them."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")
            yield
    finally:
        logger.setLevel(level)


def explain_error(
    error: BaseException, repo_id: str, failures: list[tuple[float, str]] | None = None
) -> tuple[str, str]:
    """An exception of huggingface_hub as (what happened, what to do before the command that pushes again)."""
    from huggingface_hub import constants

    hub, later = f"the Hub at {constants.ENDPOINT}", "push later with"
    chain = list(_chain(error))
    if last := find_unavailable(error):
        return f"{hub} {last}", later
    if failures:
        return f"{hub} {failures[-1][1]}", later
    for each in chain:
        status = getattr(getattr(each, "response", None), "status_code", None)
        message = getattr(each, "server_message", None)
        answer = f"{status}: {message}" if message else str(status)
        if status == 401:
            return f"{hub} does not accept the token ({answer})", f"{LOGIN}, then"
        if status == 403:
            return f"{hub} does not let this token write there ({answer})", (
                f"use a token with write access to {repo_id}, then"
            )
        if status == 412:
            return f"{hub} accepted another commit in the meantime ({answer})", "push again with"
        if status is not None:
            return f"{hub} refuses ({answer})", later
        if _names(each) & RETRYABLE:
            return f"{hub} {_describe_transport_error(each)}", later
        if isinstance(each, json.JSONDecodeError):
            return f"the server at {constants.ENDPOINT} is not a Hub: its answer is not JSON", "check HF_ENDPOINT, then"
        if isinstance(each, ValueError) and "metadata in README.md" in str(each):
            return f"{hub} rejects the model card: {each}", "fix the front matter of README.md, then"
    if any("xet" in (type(each).__module__ or "").lower() or "xet" in str(each).lower() for each in chain):
        return f"{hub}: the Xet upload failed ({chain[0]})", "push without Xet: set HF_HUB_DISABLE_XET=1, then"
    return f"{type(error).__name__}: {error}", later


def find_unavailable(error: BaseException) -> HubUnavailableError | None:
    """The HubUnavailableError that caused an error: an upload's thread wraps it in a RuntimeError."""
    return next((each for each in _chain(error) if isinstance(each, HubUnavailableError)), None)


def require_login(repo_id: str, command: str) -> tuple[str, ...]:
    """The tokens of this machine, to search for and to mask. Raises HubError if a push cannot begin."""
    from huggingface_hub import get_token, is_offline_mode

    if is_offline_mode():
        raise HubError.at(
            repo_id, "not pushed, because HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set", f"unset it, then: {command}"
        )
    try:
        token = get_token()
    except Exception as error:  # a login that needs the network (HF_OIDC_RESOURCE, an expired browser login)
        raise HubError.at(
            repo_id, mask_tokens(f"the login to the Hub failed: {error}"), f"{LOGIN}, then: {command}"
        ) from None
    if not token:
        raise HubError.at(repo_id, "there is no Hub access token on this machine", f"{LOGIN}, then: {command}")
    if not re.fullmatch(r"[!-~]+", token):  # no header can carry it, and the error would be httpx's, not ours
        raise HubError.at(
            repo_id,
            "the Hub access token contains a space or a character that no token has",
            f"{LOGIN}, then: {command}",
        )
    return tuple({token, *_tokens_of_environment()})


def mask_tokens(text: str, tokens: tuple[str, ...] = ()) -> str:
    """`text` as one line, with every token masked: a server may quote a request, and an error its headers."""
    for token in {*tokens, *_tokens_of_environment()}:
        if len(token) >= SHORTEST_TOKEN:
            for form in (token, repr(token)[1:-1], repr(token.encode())[2:-1]):
                text = text.replace(form, "***")
    return " ".join(mask_secrets(text).split())


def _tokens_of_environment() -> tuple[str, ...]:
    values = (os.environ.get(name, "").strip() for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"))
    return tuple(value for value in values if value)


def _describe_transport_error(error: BaseException) -> str:
    names = _names(error)
    if "ConnectTimeout" in names:
        return "cannot be reached (no connection in time)"
    if "TimeoutException" in names:
        return "does not answer"
    if "ConnectError" in names:
        return f"cannot be reached ({error})"
    return f"broke the connection ({error})"


def _requested_wait(headers: Any) -> int:
    """Seconds that a 429 or 503 asks to wait: Retry-After, or `t` of the Hub's `ratelimit: "api";r=0;t=55`."""
    matches = [
        re.fullmatch(r"\s*(\d+)\s*", headers.get("retry-after", "")),
        re.search(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("ratelimit", "")),
    ]
    return max((int(match[1]) for match in matches if match), default=0)


def _names(error: BaseException) -> set[str]:
    return {cls.__name__ for cls in type(error).__mro__}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
