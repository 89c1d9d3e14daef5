"""Every recipe of the repository is read, says what it is for, and survives being written and read back."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hf_recipes.recipe.read import read_recipe
from hf_recipes.recipe.recipe import dump_recipe

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
NUMBER = 27

# recipe -> (rows per device, accumulation, processes, the guide's effective batch)
BATCHES = {
    "rtx3070": (64, 2, 1, 128),
    "rtx3070-out-of-memory": (48, 3, 1, 144),
    "gemma-270m-optimized": (16, 64, 1, 1024),
    "gemma-270m-conservative": (16, 64, 1, 1024),
    "gpt-tiny-wikitext2": (32, 1, 1, 32),
    "gpt-small-wikitext103": (32, 1, 1, 32),
    "gpt-small-wikitext103-batch48": (48, 1, 1, 48),
    "gpt-medium-wikitext103": (4, 4, 1, 16),
    "gpt-300m-4xa100": (32, 4, 4, 512),
    "phi2-a10g-high": (8, 4, 1, 32),
    "phi2-a10g-balanced": (4, 8, 1, 32),
    "phi2-a10g-low": (2, 16, 1, 32),
    "phi2-m3-high": (3, 8, 1, 24),
    "phi2-m3-balanced": (2, 16, 1, 32),
    "phi2-m3-low": (2, 16, 1, 32),
    "phi2-m3-safe": (1, 32, 1, 32),
    "phi2-quick-test": (2, 8, 1, 16),
    "phi2-production": (4, 16, 1, 64),
    "phi2-memory-limited": (2, 32, 1, 64),
}


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)  # data paths are relative to the working directory


def named(name: str) -> str:
    return f"recipes/{name}.yaml"


def test_there_are_as_many_recipes_as_the_guides_and_the_quickstarts_need():
    assert len(RECIPES) == NUMBER


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_read_without_a_fault_or_a_doubt(path):
    recipe = read_recipe(named(path.stem))
    warnings = [str(warning) for warning in recipe.warnings]  # on a fresh clone prepare.py has not been run yet
    assert [warning for warning in warnings if "there is no 'runs/assets/" not in warning] == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_opens_with_what_it_is_for_how_to_run_it_and_what_was_measured(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    head = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    assert not re.match(r"# \w+:  ", head[0]), "the first line says what the recipe is for"
    words = ["Run:", "Plan:", "Measured:"]
    found = [line.split()[1] for line in head if len(line.split()) > 1 and line.split()[1] in words]
    assert found == words
    assert named(path.stem) in "\n".join(head)
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_that_is_written_reads_back_equal(path, tmp_path):
    recipe = read_recipe(named(path.stem))
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(recipe), encoding="utf-8")
    assert read_recipe(str(again)).sections == recipe.sections


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_pretrained_weights_come_with_a_stated_dtype_and_runs_go_to_a_folder_of_their_own(path):
    recipe = read_recipe(named(path.stem))
    if "pretrained_model_name_or_path" in recipe.section("model") and not recipe.get("master_weights"):
        assert "dtype" in recipe.section("model")
    assert recipe.training["output_dir"] == f"runs/{path.stem}"


@pytest.mark.parametrize("name", BATCHES)
def test_the_guides_effective_batch_is_kept(name):
    training = read_recipe(named(name)).training
    rows, accumulation, processes, batch = BATCHES[name]
    assert training["per_device_train_batch_size"] == rows
    assert training.get("gradient_accumulation_steps", 1) == accumulation
    assert rows * accumulation * processes == batch


def test_the_rtx3070_guides_old_keys_are_translated_with_their_lines():
    lines = (ROOT / named("rtx3070")).read_text(encoding="utf-8").splitlines()
    recipe = read_recipe(named("rtx3070"))
    for old, new in (("fp16_opt_level: O2", "master_weights: true"), ("warmup_ratio: 0.06", "warmup_steps: 0.06")):
        at = next(i for i, line in enumerate(lines, 1) if line.strip().startswith(old))
        assert [t for t in recipe.translations if t.startswith(f"recipes/rtx3070.yaml:{at}: {old} -> {new}")]
    assert recipe.get("master_weights") is True
    assert recipe.training["warmup_steps"] == 0.06


def test_every_task_has_a_quickstart_whose_own_data_is_there():
    quickstarts = [path.stem for path in RECIPES if path.stem.startswith("quickstart")]
    tasks = {read_recipe(named(name)).task for name in quickstarts}
    assert tasks == {"causal-lm", "chat", "text-classification", "token-classification"}
    for name in quickstarts:
        files = read_recipe(named(name)).get("dataset.data_files")
        flat = [f for part in files.values() for f in (part if isinstance(part, list) else [part])]
        carried = [f for f in flat if not f.startswith("runs/assets/")]
        assert [f for f in carried if not (ROOT / f).is_file()] == []
        assert carried or name == "quickstart-chat"


def test_the_carried_data_is_what_its_readme_says():
    readme = (ROOT / "recipes" / "data" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w/]+\.(?:txt|jsonl))` \| [^|]+ \| `([0-9a-f]{16})` \|", readme, re.M)
    assert len(rows) == 8
    for name, start in rows:
        digest = hashlib.sha256((ROOT / "recipes" / "data" / name).read_bytes()).hexdigest()
        assert digest[:16] == start, name


def texts(folder: str, split: str, column: str) -> set[str]:
    lines = Path(f"recipes/data/{folder}/{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return {str(json.loads(line)[column]).lower() for line in lines}


@pytest.mark.parametrize(("folder", "column"), [("sentiment", "text"), ("names", "tokens")])
def test_no_validation_text_is_in_train(folder, column):
    held_out = texts(folder, "validation", column)
    assert len(held_out) > 490
    assert texts(folder, "train", column) & held_out == set()


def test_the_names_are_what_their_script_makes(tmp_path):
    data = ROOT / "recipes" / "data"
    copy = tmp_path / "data"
    shutil.copytree(data / "austen", copy / "austen")
    for script in ("make_names.py", "names_lists.py"):
        shutil.copyfile(data / script, copy / script)
    subprocess.run([sys.executable, str(copy / "make_names.py")], check=True, capture_output=True)
    for split in ("train", "validation"):
        assert (copy / "names" / f"{split}.jsonl").read_bytes() == (data / "names" / f"{split}.jsonl").read_bytes()


def test_phi2s_template_gives_prompts_that_the_answers_follow_token_by_token():
    import jinja2

    text = (ROOT / read_recipe(named("phi2-a10g-balanced")).training["chat_template_path"]).read_text(encoding="utf-8")
    render = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(text).render
    user = {"role": "user", "content": "Why is the sky blue?"}
    messages = [{"role": "system", "content": "Be brief."}, user, {"role": "assistant", "content": "Rayleigh."}]
    prompt = render(messages=messages[:2], add_generation_prompt=True, eos_token="<end>")
    whole = render(messages=[*messages, user], eos_token="<end>")
    assert prompt == "Be brief.\nInstruct: Why is the sky blue?\nOutput:"
    # no space at the end: BPE joins it to the answer's first word, which would then be masked as part of the prompt
    assert whole == prompt + " Rayleigh.<end>\nInstruct: Why is the sky blue?\n"
