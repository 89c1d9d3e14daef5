"""A model's folder of a stranger: no code runs, and one message names the file."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hf_recipes.errors import ModelError
from hf_recipes.models.build import build_model
from hf_recipes.models.config import build_config
from hf_recipes.models.tokenizer import build_tokenizer
from hf_recipes.recipe.read import read_recipe
from tests.support.tiny_models import bpe, save_llama

RECIPE = """\
task: causal-lm
model: {pretrained_model_name_or_path: ./m}
dataset: {path: text, data_files: a.txt, max_length: 16}
TrainingArguments: {output_dir: out}
"""
CODE = "import pathlib\npathlib.Path('owned').touch()\nclass Own: pass\n"


class Touch:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("owned",)


PICKLE = pickle.dumps(Touch())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "m"
    save_llama(folder, bpe())
    return folder


@pytest.fixture
def load(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path], object]], str]:
    """Changes a copy of the folder and loads it; returns the error."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(base, "m")
    Path("r.yaml").write_text(RECIPE)

    def run(change: Callable[[Path], object]) -> str:
        change(Path("m"))
        recipe = read_recipe("r.yaml")
        with pytest.raises(ModelError) as caught:
            config = build_config(recipe)
            build_model(recipe, config, build_tokenizer(recipe, None, print), {}, print)
        assert not Path("owned").exists()
        [error] = caught.value.errors
        return str(error).removeprefix("r.yaml:2: ")

    return run


def edit(name: str, **values: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / "own.py").write_text(CODE)
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("config.json", "model"),
        ("model.safetensors", "model"),
        ("tokenizer.json", "model"),
        ("tokenizer_config.json", "model"),
        ("generation_config.json", "model"),
        ("tokenizer.model", "model"),
    ],
)
def test_a_pickle_under_another_name_is_named_and_not_opened(load, name: str, what: str):
    assert load(lambda folder: (folder / name).write_bytes(PICKLE)) == (
        f"the {what} './m' cannot be loaded: ./m/{name} is a pickle; no code of a pickle is run: "
        "use a model that was saved with safetensors and a tokenizer.json"
    )


def test_pickled_weights_that_hold_more_than_tensors_are_named_and_not_opened(load):
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(PICKLE)

    assert load(change).startswith(
        "the model './m' cannot be loaded: ./m/pytorch_model.bin is a pickle, and not one of tensors only; "
    )


def test_weights_of_tensors_only_are_read_by_torch_and_run_nothing(base: Path, tmp_path: Path, monkeypatch):
    from safetensors.torch import load_file

    monkeypatch.chdir(tmp_path)
    shutil.copytree(base, "m")
    Path("r.yaml").write_text(RECIPE)
    torch.save(load_file("m/model.safetensors"), "m/pytorch_model.bin")
    Path("m/model.safetensors").unlink()
    recipe = read_recipe("r.yaml")
    assert build_model(recipe, build_config(recipe), build_tokenizer(recipe, None, print), {}, print) is not None


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (
            edit("config.json", model_type="own", auto_map={"AutoConfig": "own.Own"}),
            "the model './m' cannot be loaded: it needs code of its own (auto_map in ./m/config.json)",
        ),
        (
            edit("tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", None]}),
            "the tokenizer './m' cannot be loaded: it needs code of its own (auto_map in ./m/tokenizer_config.json)",
        ),
    ],
)
def test_code_of_a_folder_is_not_run_and_nobody_is_asked(load, change, where: str):
    assert load(change) == f"{where}; code of a model is not run: use one that transformers has a class for"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"[" * 100_000, "./m/config.json is nested too deeply"),
        ("tokenizer.json", b"[1]", "./m/tokenizer.json is a list, not an object"),
        ("tokenizer_config.json", b"[1]", "./m/tokenizer_config.json is a list, not an object"),
        ("chat_template.jinja", b"caf\xe9", "./m/chat_template.jinja is not UTF-8 text"),
    ],
)
def test_a_file_that_is_no_json_or_text_is_named(load, name: str, content: bytes, message: str):
    assert f"cannot be loaded: {message}; restore that file, or copy the folder again" in load(
        lambda folder: (folder / name).write_bytes(content)
    )


def test_a_fifo_among_the_files_is_named_and_not_opened(load):
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        os.mkfifo(folder / "model.safetensors")

    assert load(change) == (
        "the model './m' cannot be loaded: ./m/model.safetensors is a pipe (FIFO), not a file; replace it"
    )


def test_a_config_that_makes_upstream_fail_in_any_way_is_one_message(load):
    assert "the model './m' cannot be loaded: " in load(edit("config.json", hidden_size="big"))


@pytest.mark.parametrize("problem", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()], ids=["GPU", "CPU"])
def test_memory_that_runs_out_while_a_model_is_loaded_is_not_called_a_wrong_name(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception
):
    from transformers import AutoModelForCausalLM

    def from_pretrained(*_: object, **__: object) -> None:
        raise problem

    monkeypatch.chdir(tmp_path)
    shutil.copytree(base, "m")
    Path("r.yaml").write_text(RECIPE)
    recipe = read_recipe("r.yaml")
    config, tokenizer = build_config(recipe), build_tokenizer(recipe, None, print)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    with pytest.raises(type(problem)):
        build_model(recipe, config, tokenizer, {}, print)
