"""A Hub that is down, slow, refuses or half answers: one message, and the run stays complete."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest

from tests.support.hub_client import (
    HASTY,
    QUICK,
    WRITE,
    after_training,
    client,
    not_pushed,
    timeless,
)
from tests.support.hub_double import TOKEN, HubDouble, Trouble


def test_a_hub_that_is_down_costs_a_message_with_the_command_that_pushes_later(run: Path, tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"  # nothing listens there
    patience = QUICK.replace("1.3", "30")  # a refused connection costs no time, and a busy machine may need more
    out = client(after_training(run, patience, repo_id="user/mood"), tmp_path, HF_ENDPOINT=url, HF_TOKEN=TOKEN)
    assert not out["pushed"]
    assert out["command"] == f"hf-recipes push {run} --repo user/mood"
    assert re.search(r" \(tried 2 times in \d+ s\); push later with: ", out["message"])
    assert timeless(out["message"]) == not_pushed(
        run, f"the Hub at {url} cannot be reached ([Errno 111] Connection refused); push later with"
    )
    assert out["printed"].count("\n") == 1  # huggingface_hub's own lines for each retry are kept back


@pytest.mark.parametrize(
    ("trouble", "why"),
    [
        (Trouble(), "answers 500 Internal Server Error; push later with"),
        (Trouble(status=502, body=b"<html>"), "answers 502 Bad Gateway; push later with"),
        (
            Trouble(where="POST /api/validate-yaml", status=503, body=b"<html>"),
            "answers 503 Service Unavailable; push later with",
        ),
        (Trouble(where=".*preupload", status=503), "answers 503 Service Unavailable; push later with"),
        (
            Trouble(status=429, headers={"Retry-After": "3600"}),
            "answers 429 Too Many Requests, and asks to wait 3600 s; push later with",
        ),
        (
            Trouble(where=".*preupload", status=429, headers={"ratelimit": '"api";r=0;t=250'}),
            "answers 429 Too Many Requests, and asks to wait 250 s; push later with",
        ),
        (
            Trouble(status=403),
            f"does not let this token write there (403: planned trouble); {WRITE} to user/mood, then",
        ),
        (
            Trouble(where=".*commit", status=403, body=b'{"error": "read-only token"}'),
            f"does not let this token write there (403: read-only token); {WRITE} to user/mood, then",
        ),
        (
            Trouble(status=401, body=json.dumps({"error": f"who is {TOKEN}?"}).encode()),
            "does not accept the token (401: who is ***?); "
            "set HF_TOKEN to a token with write access or run `hf auth login`, then",
        ),
        (
            Trouble(where="POST .*commit", status=412, body=b"{}"),
            "accepted another commit in the meantime (412); push again with",
        ),
        (Trouble(where="POST .*commit", status=413, body=b"{}"), "refuses (413); push later with"),
        (Trouble(where="POST /api/repos", status=None), "does not answer; push later with"),
        (Trouble(where="GET /api/models", status=None), "does not answer; push later with"),
        (Trouble(where="POST .*preupload", status=None), "does not answer; push later with"),
    ],
    ids=lambda value: None if isinstance(value, str) else f"{value.where[:12]}-{value.status}",
)
def test_a_hub_that_fails_refuses_or_hangs_is_reported_in_one_sentence(run, long_client, trouble, why):
    hub, call = long_client
    hub.trouble[:] = [trouble]
    patience = HASTY if trouble.status is None else QUICK
    out = call(after_training(run, patience, repo_id="user/mood"))
    assert timeless(out["message"]) == not_pushed(run, f"the Hub at {hub.url} {why}")
    assert out["seconds"] < 20
    assert TOKEN not in out["printed"]


def test_a_hub_that_fails_once_is_asked_again(run: Path, tmp_path: Path):
    with HubDouble() as hub:
        hub.trouble += [Trouble(where="POST /api/repos/create", times=1), Trouble(where="POST .*commit", times=1)]
        out = client(
            after_training(run, QUICK.replace("tries=2", "tries=3").replace("1.3", "30")), tmp_path, **hub.environment
        )
        assert out["pushed"]
        assert hub.count("POST .*commit") == 2


def test_a_refusal_is_reported_even_when_an_earlier_call_had_failed(run: Path, tmp_path: Path):
    with HubDouble() as hub:
        hub.trouble += [Trouble(where=".*preupload", times=1), Trouble(where=".*commit", status=403)]
        out = client(after_training(run, repo_id="user/mood"), tmp_path, **hub.environment)
        assert hub.count("POST .*commit") == 1
    assert "does not let this token write there (403: planned trouble)" in out["why"]


def test_a_namespace_of_others_is_refused_with_the_hubs_own_message(run: Path, tmp_path: Path):
    with HubDouble() as hub:
        out = client(after_training(run, repo_id="stranger/mood"), tmp_path, **hub.environment)
    assert out["why"] == (
        f"stranger/mood: the Hub at {hub.url} does not let this token write there (403: You don't have the rights to "
        'create a model under the namespace "stranger"); use a token with write access to stranger/mood, then: '
        f"hf-recipes push {run} --repo stranger/mood"
    )


def test_a_hub_that_stops_answering_after_the_upload_leaves_a_pushed_run_with_a_warning(run: Path, tmp_path: Path):
    with HubDouble() as hub:
        hub.trouble.append(Trouble(where="GET .*/tree/", status=None))
        out = client(after_training(run, HASTY), tmp_path, **hub.environment)
    assert out["pushed"]
    assert out["message"].splitlines()[1] == (
        f"warning: user/mood: pushed, but not checked: the Hub at {hub.url} does not answer"
    )


def test_xet_that_fails_does_not_try_for_minutes_and_names_the_way_around(run: Path, tmp_path: Path):
    # A session that began before the push (as when the base model was downloaded) has Xet's own limits: minutes.
    code = "from huggingface_hub.utils._xet import get_xet_session; get_xet_session()\n" + after_training(run)
    with HubDouble(lfs=True) as hub:
        hub.trouble.append(Trouble(where="GET .*xet-write-token"))
        out = client(code, tmp_path, **{**hub.environment, "HF_HUB_DISABLE_XET": "0"})
        assert hub.count("GET .*xet-write-token") > 0
    assert out["seconds"] < 40  # without the limits: more than 200
    assert out["why"].startswith(f"mood: the Hub at {hub.url}: the Xet upload failed (")
    assert out["why"].endswith(f"push without Xet: set HF_HUB_DISABLE_XET=1, then: hf-recipes push {run} --repo mood")


def test_the_users_client_and_environment_are_as_before_after_a_push(run: Path, tmp_path: Path):
    """Holds the private name by which the earlier client is found (hub/client.py)."""
    code = (
        "import os, httpx2\nfrom huggingface_hub import set_client_factory\n"
        "from huggingface_hub.utils import _http\ndef mine():\n    calls.append(1)\n    return httpx2.Client()\n"
        "calls = []\nset_client_factory(mine)\nwas = dict(os.environ)\n"
        + after_training(run)
        + "\nout |= {'mine': _http._GLOBAL_CLIENT_FACTORY is mine, 'used': len(calls), "
        "'environment': dict(os.environ) == was}"
    )
    with HubDouble() as hub:
        out = client(code, tmp_path, **hub.environment)
    assert (out["pushed"], out["mine"], out["environment"]) == (True, True, True)
    assert out["used"] >= 1
