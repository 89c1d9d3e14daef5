"""A push, checked by what the Hub received: real HTTP against the double in hub_double.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_recipes.errors import RecipeError
from hf_recipes.hub.pushed_files import files_to_push
from tests.support.hub_client import (
    PICKLE,
    after_training,
    clean_environment,
    client,
    safetensors,
    small_run,
)
from tests.support.hub_double import TOKEN, HubDouble


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
