"""A push, checked by what the Hub received: real HTTP against the double in hub_double.py."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import ModelCard

from hf_recipes.errors import RecipeError
from hf_recipes.hub.push import format_push_command, push
from hf_recipes.hub.pushed_files import files_to_push, lost_weight_errors, token_errors
from tests.support.hub_double import TOKEN, HubDouble, Trouble

QUICK = "Patience(answer_seconds=20, tries=2, first_wait_seconds=0.1, trouble_seconds=1.3)"
HASTY = QUICK.replace("20", "0.5")  # for a Hub that never answers; too short for a busy machine otherwise
WRITE = "use a token with write access"
PICKLE = re.compile(rb"\x80[\x02-\x05].*\.\Z|PK\x03\x04", re.S)


def clean_environment(home: Path, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
    return {**kept, "HF_HOME": str(home), "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **more}


IMPORTS = (
    "import json, sys, time; from pathlib import Path\nfrom hf_recipes.errors import RecipeError\n"
    "from hf_recipes.hub.push import *\nfrom hf_recipes.hub.pushed_files import *\n"
    "from hf_recipes.hub.client import Patience\n"
)
# Runs each line of its input as code, as `client` does, and prints a line of JSON for it.
SERVE = """
import contextlib, io
for line in sys.stdin:
    started, printed = time.monotonic(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        exec(json.loads(line))
    print(json.dumps({**out, "seconds": time.monotonic() - started, "printed": printed.getvalue()}), flush=True)
"""


def client(code: str, home: Path, limit: float = 60, **environment: str) -> dict:
    """Runs code in a process of its own, which sets `out`; with what it printed, what it took, and no traceback."""
    code = (
        f"{IMPORTS}started = time.monotonic()\n{code}\n"
        "out['seconds'] = time.monotonic() - started\nprint(json.dumps(out))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=clean_environment(home, **environment),
        timeout=limit,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return {**json.loads(done.stdout.splitlines()[-1]), "printed": done.stdout + done.stderr}


def after_training(run: Path, patience: str = QUICK, **options: object) -> str:
    arguments = "".join(f", {key}={value!r}" for key, value in options.items())
    return (
        f"o = push_after_training(Path({str(run)!r}), patience={patience}{arguments})\n"
        "out = {'pushed': o.pushed, 'message': str(o), 'command': o.command, 'why': o.why, "
        "'unchanged': o.result and o.result.unchanged, 'files': o.result and o.result.files, "
        "'url': o.result and o.result.url}"
    )


def safetensors(metadata: dict[str, str]) -> bytes:
    head = {"__metadata__": metadata, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    header = json.dumps(head).encode()
    return struct.pack("<Q", len(header)) + header + b"\0\0\0\0"


def small_run(folder: Path, **section: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(safetensors({"format": "pt"}))
    (folder / "config.json").write_text('{"model_type": "gpt2"}\n')
    (folder / "training_args.bin").write_bytes(b"\x80\x04K\x01.")
    record = {
        "schema": 1,
        "status": "finished",
        "task": "causal-lm",
        "recipe": {"sections": {"TrainingArguments": section}},
    }
    (folder / "record.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return small_run(tmp_path / "mood")


@pytest.fixture
def long_client(module_client: tuple[HubDouble, Callable[[str], dict]]) -> tuple[HubDouble, Callable[[str], dict]]:
    """`module_client`, its hub without an earlier test's trouble."""
    module_client[0].trouble.clear()
    return module_client


@pytest.fixture(scope="module")
def module_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HubDouble, Callable[[str], dict]]]:
    """A hub, and a function that runs code in one client process of it, one call after another."""
    home = tmp_path_factory.mktemp("home")
    with (
        HubDouble() as hub,
        subprocess.Popen(
            [sys.executable, "-c", IMPORTS + SERVE],
            env=clean_environment(home, **hub.environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None

        def call(code: str) -> dict:
            process.stdin.write(json.dumps(code) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield hub, call
        process.stdin.close()


@pytest.fixture(scope="module")
def pushed_pair(tmp_path_factory: pytest.TempPathFactory):
    """The hub, the folder and the findings of push_and_load.py: a model and an adapter, through LFS."""
    where = tmp_path_factory.mktemp("hub")
    with HubDouble(lfs=True) as hub:
        script = Path(__file__).resolve().parents[1] / "support/push_and_load.py"
        done = subprocess.run(
            [sys.executable, str(script), str(where)],
            capture_output=True,
            text=True,
            timeout=240,
            env=clean_environment(where / "home", **hub.environment),
            check=False,
        )
        assert done.returncode == 0, done.stderr
        yield hub, where, {**json.loads(done.stdout.splitlines()[-1]), "printed": done.stdout + done.stderr}


# --- what arrives ----------------------------------------------------------------------------------------------------


def test_a_pushed_model_and_adapter_load_back_by_the_code_in_the_model_card_with_equal_logits(pushed_pair):
    _, _, found = pushed_pair
    assert found["pushed"] == [True, True], found["messages"]
    assert found["base equal"]
    assert found["adapter equal"]
    assert found["adapter does something"]
    assert found["tokens"] == [1, 4, 6, 9]


def test_only_model_tokenizer_model_card_record_and_recipe_arrive(pushed_pair):
    hub, _, _ = pushed_pair
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    about = {".gitattributes", "README.md", "record.json", "recipe.yaml"}
    assert set(hub.repos["user/tiny-base"].files()) == about | tokenizer | {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    assert set(hub.repos["user/tiny-lora"].files()) == about | tokenizer | {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_the_model_card_on_the_hub_names_f1_and_perplexity(pushed_pair):
    hub, _, _ = pushed_pair
    card = ModelCard(hub.repos["user/tiny-lora"].files()["README.md"].decode())
    assert {one.metric_type: one.metric_value for one in card.data.eval_results} == {"f1": 0.9467, "perplexity": 31.5}
    assert (card.data.library_name, card.data.base_model) == ("peft", "user/tiny-base")


def test_no_token_and_no_pickle_reaches_the_hub_the_run_folder_or_the_terminal(pushed_pair):
    hub, where, found = pushed_pair
    assert hub.received
    for content in hub.received:
        assert TOKEN.encode() not in content
        assert not PICKLE.match(content), content[:40]
    bearer = 0
    for seen in hub.requests:
        assert TOKEN.encode() not in seen.body
        assert TOKEN not in seen.path
        rest = {key: value for key, value in seen.headers.items() if key != "authorization"}
        assert TOKEN not in str(rest)
        bearer += seen.headers.get("authorization") == f"Bearer {TOKEN}"
        if seen.method == "PUT":  # storage has its own signature in the URL
            assert "authorization" not in seen.headers
    assert bearer > 5
    files = [path for path in (where / "runs").rglob("*") if path.is_file()]
    assert len(files) > 30
    for path in files:
        assert TOKEN.encode() not in path.read_bytes(), path
    assert TOKEN not in found["printed"]


def test_a_second_push_sends_only_what_changed(pushed_pair):
    hub, where, _ = pushed_pair
    folder, home = where / "runs" / "tiny-base", where / "home"
    before = (hub.count("PUT "), hub.count(r"POST .*/commit/"), len(hub.received))
    out = client(after_training(folder), home, **hub.environment)
    assert out["unchanged"]
    commit = hub.repos["user/tiny-base"].branches["main"][:8]
    assert out["message"] == (
        f"unchanged on the Hub: {hub.url}/user/tiny-base (8 files, commit {commit}, sizes and checksums checked)"
    )
    assert (hub.count("PUT "), hub.count(r"POST .*/commit/"), len(hub.received)) == before
    card = folder / "README.md"
    card.write_text(card.read_text() + "\nOne more line.\n")
    assert client(after_training(folder), home, **hub.environment)["unchanged"] is False
    assert hub.received[before[2] :] == [card.read_bytes()]


def test_a_client_with_default_xet_settings_pushes(run: Path, tmp_path: Path):
    with HubDouble() as hub:
        out = client(after_training(run, repo_id="org/mood"), tmp_path, **hub.environment)
        files = hub.repos["org/mood"].files()
    assert out["message"].startswith(f"pushed: {hub.url}/org/mood (4 files, commit ")
    assert out["message"].endswith(", sizes and checksums checked)")
    assert out["files"] == ["README.md", "config.json", "model.safetensors", "record.json"]
    assert files["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert b'model_id = "org/mood"' in files["README.md"]  # the card was missing, and was made from the record


def test_private_and_revision_are_those_asked_for(run: Path, tmp_path: Path):
    code = (
        f"out = {{'lines': [push_command({str(run)!r}, 'org/secret', True), push_command({str(run)!r}, 'open')]}}\n"
        f"push(Path({str(run)!r}), repo_id='open', revision='try-2')"
    )
    with HubDouble() as hub:
        client(code, tmp_path, **hub.environment)
        assert hub.repos["org/secret"].private
        assert not hub.repos["user/open"].private
        assert sorted(hub.repos["user/open"].branches) == ["main", "try-2"]
        created = [json.loads(seen.body) for seen in hub.requests if seen.path == "/api/repos/create"]
        assert [asked.get("visibility") for asked in created] == ["private", None, None]  # None: the Hub decides


def test_the_recipe_in_the_record_gives_the_repository_and_its_settings(tmp_path: Path):
    run = small_run(tmp_path / "x", hub_model_id="org/named", hub_private_repo=True, hub_revision="v2")
    with HubDouble() as hub:
        out = client(f"out = {{'lines': push_command({str(run)!r})}}", tmp_path, **hub.environment)
        assert out["lines"].startswith(f"pushed: {hub.url}/org/named (4 files, commit ")
        assert hub.repos["org/named"].private
        assert "model.safetensors" in hub.repos["org/named"].files("v2")
        assert "model.safetensors" not in hub.repos["org/named"].files("main")


def test_a_public_repository_gets_nothing_when_a_private_one_was_asked_for(run: Path, tmp_path: Path):
    with HubDouble() as hub:
        client(after_training(run, repo_id="org/mood"), tmp_path, **hub.environment)
        sent = len(hub.received)
        out = client(after_training(run, repo_id="org/mood", private=True), tmp_path, **hub.environment)
        assert len(hub.received) == sent
    assert out["why"] == (
        "org/mood: is public on the Hub, but a private repository was asked for; nothing was uploaded; make "
        f"it private in its settings or name another repository, then: hf-recipes push {run} --repo org/mood --private"
    )


def test_a_model_is_not_put_under_an_adapter_that_is_there(run: Path, tmp_path: Path):
    with HubDouble() as hub:
        (run / "adapter_config.json").write_text("{}")
        assert client(after_training(run), tmp_path, **hub.environment)["pushed"]
        (run / "adapter_config.json").unlink()
        out = client(after_training(run), tmp_path, **hub.environment)
    assert out["why"].startswith(
        "user/mood: contains an adapter (adapter_config.json), which from_pretrained would apply "
        "to this model; nothing was uploaded; delete the adapter there or name another"
    )


def test_a_file_that_differs_on_the_hub_is_reported_file_by_file(run: Path, tmp_path: Path):
    for lfs in (False, True):
        with HubDouble(lfs=lfs) as hub:
            client(after_training(run), tmp_path, **hub.environment)
            repo = hub.repos["user/mood"]
            files = dict(repo.commits[repo.branches["main"]])
            files["model.safetensors"] = (files["model.safetensors"][0][:-1] + b"\1", lfs)
            files["config.json"] = (b"{}", False)
            del files["record.json"]
            repo.commit("main", files)
            code = (
                f"run = Path({str(run)!r})\nfaults = verify_push(run, files_to_push(run), repo_id='user/mood')\n"
                "out = {'faults': list(map(str, faults))}"
            )
            assert client(code, tmp_path, **hub.environment)["faults"] == [
                f"user/mood/config.json: has 2 bytes on the Hub and 23 bytes in {run}; push again",
                f"user/mood/model.safetensors: differs between the Hub and {run}; push again",
                "user/mood/record.json: did not arrive; push again",
            ]


# --- a Hub that does not do it ---------------------------------------------------------------------------------------


def not_pushed(run: Path, why: str) -> str:
    command = format_push_command(run, "user/mood")
    return f"not pushed to the Hub; the run itself is complete in {run}\nuser/mood: {why}: {command}"


def timeless(message: str) -> str:
    return re.sub(r" \(tried 2 times in \d+ s\)", "", message)


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


# --- what is refused before anything is sent -------------------------------------------------------------------------


def test_without_a_token_the_message_says_how_to_log_in(run: Path, tmp_path: Path):
    with HubDouble() as hub:
        out = client(after_training(run, repo_id="user/mood"), tmp_path, HF_ENDPOINT=hub.url)
        assert hub.requests == []
    assert out["message"] == not_pushed(
        run,
        "there is no Hub access token on this machine; set HF_TOKEN to a "
        "token with write access or run `hf auth login`, then",
    )


def test_offline_mode_says_so_at_once(run: Path, tmp_path: Path):
    with HubDouble() as hub:
        out = client(after_training(run, repo_id="user/mood"), tmp_path, **{**hub.environment, "HF_HUB_OFFLINE": "1"})
        assert hub.requests == []
    assert out["message"] == not_pushed(
        run, "not pushed, because HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set; unset it, then"
    )
    assert out["seconds"] < 10


def test_a_login_stored_by_hf_auth_login_is_used_and_searched_for_in_the_files(run: Path, tmp_path: Path):
    stored = "stored-token-of-another-shape"
    (tmp_path / "token").write_text(stored + "\n")
    with HubDouble(token=stored) as hub:
        assert client(after_training(run), tmp_path, HF_ENDPOINT=hub.url)["pushed"]
        (run / "recipe.yaml").write_text(f"task: chat\nnote: {stored}\n")
        out = client(after_training(run, repo_id="user/mood"), tmp_path, HF_ENDPOINT=hub.url)
    assert out["why"] == (
        f"{run}/recipe.yaml:2: contains a Hub access token; nothing was uploaded; remove it from the file, and revoke "
        f"it if others could read it, then: hf-recipes push {run} --repo user/mood"
    )


def test_a_token_in_any_file_stops_the_push_and_names_the_files(run: Path, tmp_path: Path):
    (run / "recipe.yaml").write_text(f"task: chat\nSFTConfig:\n  hub_token: {TOKEN}\n")
    (run / "model.safetensors").write_bytes(safetensors({"format": "pt", "note": TOKEN}))
    pq.write_table(
        pa.table({"text": ["a", "b " * 500 + TOKEN]}),
        run / "scores.parquet",
        compression="gzip",
        write_statistics=False,
    )
    assert TOKEN.encode() not in (run / "scores.parquet").read_bytes()  # it is there, compressed
    with HubDouble() as hub:
        out = client(after_training(run), tmp_path, **{**hub.environment, "HF_TOKEN": "another-token"})
        assert hub.requests == []
    assert [line.split(": contains")[0] for line in out["why"].splitlines()] == [
        f"{run}/model.safetensors",
        f"{run}/recipe.yaml:3",
        f"{run}/scores.parquet",
    ]
    assert TOKEN not in out["printed"]


def test_a_pickle_under_an_allowed_name_is_refused(run: Path):
    (run / "tokenizer.model").write_bytes(b"\x80\x04K\x01.")
    (run / "vocab.json").write_bytes(b"PK\x03\x04")
    (run / "adapter_model.safetensors").write_bytes(b"\x80\x04K\x01.")
    assert list(map(str, token_errors(run, files_to_push(run)))) == [
        f"{run}/adapter_model.safetensors: is not a safetensors file; save it again",
        f"{run}/tokenizer.model: is a pickle under another name; delete it",
        f"{run}/vocab.json: is a pickle under another name; delete it",
    ]


def test_text_that_is_not_utf_8_and_weights_that_are_not_finite_are_refused_whatever_the_record_says(run: Path):
    (run / "README.md").write_bytes("Model".encode("utf-16"))
    files = files_to_push(run)
    assert list(map(str, token_errors(run, files))) == [f"{run}/README.md: is not UTF-8 text; save it as UTF-8"]
    assert lost_weight_errors(run, files) == []
    weights = run / "model.safetensors"
    weights.write_bytes(safetensors({"format": "pt"})[:-4] + struct.pack("<f", float("nan")))
    assert list(map(str, lost_weight_errors(run, files))) == [
        f"{weights}: 1 weights are not finite; nothing was uploaded; train it again, or push another run"
    ]


def test_a_token_that_no_header_can_carry_is_refused_and_not_shown(run: Path, tmp_path: Path):
    tokens = ["hf_abc\x01not-to-be-seen", "hf_abc\u00e9not-to-be-seen", "hf_abc not-to-be-seen"]
    code = (
        f"import os\nout = {{'lines': []}}\nfor token in {tokens!r}:\n    os.environ['HF_TOKEN'] = token\n"
        f"    text = push_after_training(Path({str(run)!r}), repo_id='user/mood').message\n"
        "    assert 'not-to-be-seen' not in text\n    out['lines'].append(text)"
    )
    with HubDouble() as hub:
        out = client(code, tmp_path, HF_ENDPOINT=hub.url)
        assert hub.requests == []
    assert out["lines"] == 3 * [
        not_pushed(
            run,
            "the Hub access token contains a space or a character that no token has; set HF_TOKEN to a token with "
            "write access or run `hf auth login`, then",
        )
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda run: (run / "model.safetensors").unlink(),
            "{run}: contains no model and no adapter (model.safetensors, adapter_model.safetensors); push a run "
            "that has finished, or a folder that save_pretrained wrote",
        ),
        (
            lambda run: (run / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model.safetensors"}}'
            ),
            "{run}/model.safetensors.index.json: names model-00001-of-00002.safetensors, which is missing; "
            "save the model again",
        ),
        (
            lambda run: (run / "record.json").write_text("[]"),
            "{run}/record.json: is no record of a run; restore the file, or give a run's folder",
        ),
        (
            lambda run: run.rename(run.with_name("elsewhere")),
            "{run}: is not a run folder; give the folder that a run wrote (its output_dir)",
        ),
        (
            lambda run: (run / "README.md").mkdir(),
            "{run}/README.md: Is a directory; fix it, then: hf-recipes push {run} --repo user/mood",
        ),
    ],
    ids=["no model", "missing shard", "broken record", "no folder", "no card can be written"],
)
def test_a_folder_that_cannot_be_pushed_is_refused_with_the_reason(run: Path, make, message: str):
    make(run)
    with pytest.raises(RecipeError) as caught:
        push(run, repo_id="user/mood")
    assert str(caught.value) == message.format(run=run)


def test_a_name_that_no_repository_can_have_is_refused(run: Path):
    with pytest.raises(RecipeError) as caught:
        push(run, repo_id="user/a b")
    assert re.fullmatch(r"'user/a b': is not a repository name: .+; name one with --repo ORG/NAME", str(caught.value))


def test_importing_the_hub_is_fast_and_imports_no_torch():
    started = time.monotonic()
    code = "import sys, hf_recipes.hub.push; assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert time.monotonic() - started < 20


# --- names of this machine -------------------------------------------------------------------------------------------


def adapter_of_local_base(folder: Path, home: Path) -> Path:
    """An adapter whose base model, data and tokenizer are in somebody's folder, as a run would write it."""
    base, train = str(home / "base"), str(home / "train.jsonl")
    folder.mkdir(parents=True)
    sections = {
        "model": {"pretrained_model_name_or_path": base},
        "tokenizer": {"pretrained_model_name_or_path": base},
        "dataset": {"path": "json", "data_files": {"train": train, "validation": "alice-private/val.jsonl"}},
        "LoraConfig": {"r": 4},
        "TrainingArguments": {"output_dir": str(folder)},
    }
    text = "task: text-classification\nmodel:\n  pretrained_model_name_or_path: " + base + f"\n# {train}\n"
    record = {
        "schema": 1,
        "status": "finished",
        "task": "text-classification",
        "recipe": {"sections": sections, "text": text},
        "model": {"name": base, "source": "local", "adapter": True},
        "notes": [f"{train}: 3 rows were cut", "/srv/alice-private/x/y.txt"],
    }
    (folder / "record.json").write_text(json.dumps(record))
    (folder / "recipe.yaml").write_text(text)
    (folder / "adapter_model.safetensors").write_bytes(safetensors({"format": "pt"}))
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "peft_type": "LORA"}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"name_or_path": base, "chat_template": "{{ '/no/such/path' }}"})
    )
    return folder


def test_what_is_pushed_has_no_path_of_this_machine_and_the_run_stays_as_it_is(long_client, tmp_path: Path):
    hub, call = long_client
    run = adapter_of_local_base(tmp_path / "out", tmp_path / "alice-private")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    found = call(f"out = {{'line': push_command({str(run)!r}, 'user/paths')}}")
    files = hub.repos["user/paths"].files()
    assert [name for name, content in files.items() if b"alice" in content or str(tmp_path).encode() in content] == []
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "base"
    assert "`base` (a local folder)" in files["README.md"].decode() and b"base_model:" not in files["README.md"]
    assert json.loads(files["record.json"])["recipe"]["sections"]["dataset"]["data_files"]["train"] == "train.jsonl"
    assert "/no/such/path" in json.loads(files["tokenizer_config.json"])["chat_template"]  # the model's own text
    assert found["line"].splitlines()[0].endswith("sizes and checksums checked)")
    assert found["line"].splitlines()[1] == (
        "warning: adapter_config.json: the base model 'base' is a folder of this machine: nobody else can load this "
        "adapter; push again with --base-model ORG/NAME, its Hub id"
    )
    assert before == {path.name: path.read_bytes() for path in run.iterdir() if path.name in before}


def test_the_base_model_is_named_by_its_hub_id_where_it_is_given(long_client, tmp_path: Path):
    hub, call = long_client
    run = adapter_of_local_base(tmp_path / "out", tmp_path / "alice-private")
    found = call(f"out = {{'line': push_command({str(run)!r}, 'user/named', base_model='org/base')}}")
    assert "warning" not in found["line"]
    files = hub.repos["user/named"].files()
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "org/base"
    assert ModelCard(files["README.md"].decode()).data.base_model == "org/base"
    assert [name for name, content in files.items() if b"alice" in content] == []
    wrong = call(
        f"try: push_command({str(run)!r}, 'user/named', base_model='a/b/c')\n"
        "except RecipeError as error: out = {'line': str(error)}"
    )
    assert wrong["line"].startswith("argument '--base-model': it is no id of the Hub")


def test_a_link_that_leads_out_of_the_run_folder_is_refused_and_one_inside_is_sent(long_client, run: Path):
    hub, call = long_client
    (run.parent / "secret.txt").write_text("of somebody else")
    (run / "vocab.txt").symlink_to("../secret.txt")
    with pytest.raises(RecipeError) as caught:
        files_to_push(run)
    assert str(caught.value) == (
        f"{run}/vocab.txt: is a symbolic link that leads out of the run folder; nothing was uploaded; "
        "put the file itself there, or remove the link"
    )
    (run / "vocab.txt").unlink()
    (run / "own.txt").write_text("a\n")
    (run / "vocab.txt").symlink_to("own.txt")
    (run.parent / "link").symlink_to(run)
    call(f"push(Path({str(run.parent / 'link')!r}), repo_id='user/link')\nout = {{}}")
    assert hub.repos["user/link"].files()["vocab.txt"] == b"a\n"


def test_an_adapter_is_not_pushed_over_a_full_model(long_client, run: Path, tmp_path: Path):
    hub, call = long_client
    adapter = adapter_of_local_base(tmp_path / "adapter", tmp_path / "home")
    call(f"push(Path({str(run)!r}), repo_id='user/full')\nout = {{}}")
    found = call(
        f"try: push(Path({str(adapter)!r}), repo_id='user/full')\n"
        "except RecipeError as error: out = {'line': str(error)}"
    )
    assert found["line"].startswith(
        "user/full: contains a full model (model.safetensors), which from_pretrained would load in this adapter's "
        "place; nothing was uploaded"
    )
    assert "adapter_config.json" not in hub.repos["user/full"].files()


@pytest.mark.parametrize(
    "secret",
    [
        "hf_oauth_" + "eyJ" + "Q" * 40 + "." + "Q" * 10,
        "api_org_" + "Q" * 34,
        "hf_\\u0051" + "Q" * 33,
        "wandb_api_key=" + "0123456789abcdef" * 2 + "01234567",
        "sk-ant-api03-" + "A1" * 40,
    ],
)
def test_other_secrets_are_found_in_every_kind_of_file(run: Path, secret: str):
    (run / "README.md").write_text(f"# mood\n{secret}\n")
    (run / "tokenizer.json").write_text(f'{{"a": "{secret}"}}')
    (run / "model.safetensors").write_bytes(safetensors({"note": secret.encode().decode("unicode_escape")}))
    found = [str(error).partition(": contains")[0] for error in token_errors(run, files_to_push(run))]
    assert found == [f"{run}/README.md:2", f"{run}/model.safetensors", f"{run}/tokenizer.json:1"]
