"""What is refused before anything is sent: tokens, pickles, broken weights, names."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_recipes.errors import RecipeError
from hf_recipes.hub.push import push
from hf_recipes.hub.pushed_files import files_to_push, lost_weight_errors, token_errors
from tests.support.hub_client import (
    after_training,
    client,
    not_pushed,
    safetensors,
)
from tests.support.hub_double import TOKEN, HubDouble


def test_without_a_token_the_message_says_how_to_log_in(run: Path, tmp_path: Path):
    with HubDouble() as hub:
        out = client(after_training(run, repo_id="user/mood"), tmp_path, HF_ENDPOINT=hub.url)
        assert hub.requests == []
    assert out["message"] == not_pushed(
        run,
        "there is no Hub access token on this machine; set HF_TOKEN to a "
        "token with write access or run `hf auth login`, then",
    )


def test_offline_mode_says_so_and_asks_nothing(run: Path, tmp_path: Path):
    with HubDouble() as hub:
        out = client(after_training(run, repo_id="user/mood"), tmp_path, **{**hub.environment, "HF_HUB_OFFLINE": "1"})
        assert hub.requests == []
    assert out["message"] == not_pushed(
        run, "not pushed, because HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set; unset it, then"
    )


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


def test_importing_the_hub_imports_no_torch():
    code = "import sys, hf_recipes.hub.push; assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


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
