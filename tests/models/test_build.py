"""A recipe to a tokenizer, a config and a model: what is trained, in which dtype, and what cannot be loaded."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_recipes.catalog.presets import PRESETS
from hf_recipes.common.device import Device
from hf_recipes.errors import RecipeError
from hf_recipes.models import build
from hf_recipes.models.config import build_config, longest_input
from hf_recipes.models.tokenizer import build_tokenizer
from hf_recipes.pipeline.run import run
from hf_recipes.recipe.defaults import choose
from hf_recipes.recipe.read import read_recipe
from hf_recipes.recipe.recipe import Recipe
from tests.support.tiny_models import SHAPE, TEXTS, bpe, save_bert, save_llama, write_rows

CPU = Device(kind="cpu", name="a CPU", bf16=True)
LLAMA = "model: {pretrained_model_name_or_path: ./model"
TRAINING = "{output_dir: out, max_steps: 2, per_device_train_batch_size: 2, learning_rate: 1e-2, logging_steps: 1}"
Write = Callable[..., str]


@pytest.fixture
def data(folder: Path) -> None:
    """Four tasks' rows, ./model (a Llama in fp32) and its tokenizer."""
    save_llama(folder / "model", bpe())
    texts = [f"{TEXTS[i % 4]} {i}" for i in range(12)]
    write_rows(folder / "texts.jsonl", [{"text": t, "label": ("no", "yes")[i % 2]} for i, t in enumerate(texts)])
    write_rows(folder / "chat.jsonl", [{"prompt": t, "completion": " it is a good day"} for t in texts])
    tags = [["B-X" if word in ("sea", "house") else "O" for word in text.split()] for text in texts]
    write_rows(folder / "words.jsonl", [{"tokens": t.split(), "tags": g} for t, g in zip(texts, tags, strict=True)])


FILES = {
    "causal-lm": "texts.jsonl, max_length: 16",
    "chat": "chat.jsonl",
    "text-classification": "texts.jsonl",
    "token-classification": "words.jsonl",
}


def text_of(task: str, model: str = LLAMA + "}", more: str = "", section: str = "") -> str:
    section = section or ("SFTConfig" if task == "chat" else "TrainingArguments")
    files = FILES[task]
    if section == "SFTConfig":
        files = files.partition(",")[0]
    parts = files.partition(",")
    rest = f",{parts[2]}" if parts[2] else ""
    dataset = f"dataset: {{path: json, data_files: {parts[0]}{rest}, test_size: 4}}"
    return f"task: {task}\n{model}\n{dataset}\n{section}: {TRAINING}\n{more}\n"


def built(recipe: Recipe, fields: dict | None = None) -> tuple[Any, list[str]]:
    lines: list[str] = []
    recipe, _ = choose(recipe, CPU)
    config, tokenizer = build_config(recipe), build_tokenizer(recipe, None, lines.append)
    return build.build_model(recipe, config, tokenizer, fields or {}, lines.append), lines


# adapters -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", list(FILES))
@pytest.mark.parametrize(
    "lora", ["{r: 4, target_modules: all-linear}", "{r: 4, use_dora: true, target_modules: [q_proj, v_proj]}"]
)
def test_lora_and_dora_train_on_every_task_and_a_classifiers_head_beside_them(
    data: None, write_recipe: Write, task: str, lora: str
) -> None:
    record = json.loads(run(write_recipe(text_of(task, more=f"LoraConfig: {lora}"))).read_text())
    assert record["status"] == "finished" and record["model"]["adapter"]
    kinds = {"text-classification": "SEQ_CLS", "token-classification": "TOKEN_CLS"}
    config = json.loads(Path("out/adapter_config.json").read_text())
    assert config["task_type"] == kinds.get(task, "CAUSAL_LM")
    assert f"LoraConfig.task_type: {config['task_type']} (task: {task})" in record["choices"]
    tensors = load_file("out/adapter_model.safetensors")
    assert all(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)  # begins as 0: it was trained
    assert any("magnitude" in name for name in tensors) == ("dora" in lora)
    head = [name for name in tensors if "score.weight" in name]
    assert len(head) == (task in kinds)


@pytest.mark.parametrize(
    ("task", "quantized"),
    [
        ("chat", "{load_in_4bit: true, bnb_4bit_use_double_quant: true}"),
        ("chat", "{load_in_8bit: true}"),
        ("causal-lm", "{load_in_4bit: true}"),
        ("text-classification", "{load_in_4bit: true}"),
        ("token-classification", "{load_in_4bit: true}"),
        ("text-classification", "{load_in_8bit: true}"),
    ],
)
def test_qlora_trains_on_a_cpu_with_either_trainer(data: None, write_recipe: Write, task: str, quantized: str) -> None:
    more = f"LoraConfig: {{r: 4, target_modules: all-linear}}\nBitsAndBytesConfig: {quantized}"
    record = json.loads(run(write_recipe(text_of(task, more=more))).read_text())
    assert record["status"] == "finished"
    chosen = " ".join(record["choices"])
    if "4bit" in quantized:
        assert "BitsAndBytesConfig.bnb_4bit_quant_type: nf4 (bitsandbytes' own default is fp4)" in chosen
        assert "BitsAndBytesConfig.bnb_4bit_compute_dtype: float32 (the fast one on this cpu)" in chosen
    tensors = load_file("out/adapter_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert any(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)
    assert any("score.weight" in name for name in tensors) == (task not in ("chat", "causal-lm"))


def test_an_evaluation_in_between_does_not_change_what_quantized_training_learns(
    data: None, write_recipe: Write
) -> None:
    # bitsandbytes 0.50.2 nn/modules.py:617: on a CPU with AVX512-BF16 an evaluation repacks the weights for a kernel
    # without a backward; adapters below would get no gradient from then on
    more = "LoraConfig: {r: 4, target_modules: all-linear, lora_dropout: 0.0}\nBitsAndBytesConfig: {load_in_4bit: true}"
    path = write_recipe(text_of("causal-lm", more=more))
    norms = []
    for evaluated in ("false", "true"):
        record = run(path, [f"TrainingArguments.eval_on_start={evaluated}"])
        history = json.loads(record.read_text())["log_history"]
        norms.append([entry["grad_norm"] for entry in history if "grad_norm" in entry])
    assert norms[0] == pytest.approx(norms[1], rel=1e-5) and norms[0][0] > 0


def test_the_base_is_really_quantized_and_its_new_head_is_not(data: None, write_recipe: Write) -> None:
    from bitsandbytes.nn import Linear4bit

    more = "LoraConfig: {r: 4, target_modules: all-linear}\nBitsAndBytesConfig: {load_in_4bit: true}"
    model, _ = built(read_recipe(write_recipe(text_of("token-classification", more=more))), {"num_labels": 2})
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert isinstance(layer.base_layer, Linear4bit) and layer.base_layer.weight.quant_type == "nf4"
    head = model.base_model.model.score.modules_to_save["default"]
    assert type(head) is torch.nn.Linear and head.weight.requires_grad


def test_a_new_layer_of_the_head_is_trained_and_not_left_random(folder: Path, write_recipe: Write) -> None:
    save_bert(folder / "model", bpe(), "distilbert")
    recipe = read_recipe(write_recipe(text_of("text-classification", more="LoraConfig: {target_modules: [q_lin]}")))
    model, lines = built(recipe, {"num_labels": 2})
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad and "lora" not in name}
    assert {name.split(".")[2] for name in trained} == {"classifier", "pre_classifier"}
    assert lines == [
        "newly initialized, not pretrained: classifier.bias, classifier.weight, pre_classifier.bias and 1 more",
        "fully trained, besides the adapter: pre_classifier (new, not pretrained)",
    ]


def test_weights_that_the_model_has_no_place_for_are_a_line_and_upstream_prints_no_table(
    folder: Path, write_recipe: Write, caplog: pytest.LogCaptureFixture
) -> None:
    import transformers

    save_bert(folder / "model", bpe(), "distilbert")
    transformers.AutoModelForMaskedLM.from_pretrained("model").save_pretrained("model")
    logger = logging.getLogger("transformers")
    caplog.clear()
    logger.addHandler(caplog.handler)
    try:
        _, lines = built(read_recipe(write_recipe(text_of("text-classification"))), {"num_labels": 2})
    finally:
        logger.removeHandler(caplog.handler)
    assert any(line.startswith("in the checkpoint, and not in this model: vocab_") for line in lines)
    assert "LOAD REPORT" not in caplog.text


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (
            "[qury, valu]",
            "LoraConfig.target_modules: MobileBertForSequenceClassification has no qury, valu; did you mean 'query'? "
            "it has classifier, dense, embedding_transformation, key, query, value; or write all-linear",
        ),
        (
            "foo.*",
            "peft rejects it: No modules were targeted for adaptation. This might be caused by a combination of "
            "mismatched target modules and excluded modules. Please check your `target_modules` and `exclude_modules` "
            "configuration. You may also have only targeted modules that are marked to be saved (`modules_to_save`).; "
            "it has classifier, dense, embedding_transformation, key, query, value; or write all-linear",
        ),
    ],
)
def test_targets_that_match_nothing_are_reported_with_the_nearest_name(
    folder: Path, write_recipe: Write, targets: str, expected: str
) -> None:
    fields = {"intra_bottleneck_size": 64, "embedding_size": 64, "true_hidden_size": 64, "num_feedforward_networks": 1}
    save_bert(folder / "model", bpe(), "mobilebert", **fields)  # an architecture that `check` has no table of
    recipe = read_recipe(
        write_recipe(text_of("text-classification", more=f"LoraConfig: {{target_modules: {targets}}}"))
    )
    with pytest.raises(RecipeError) as raised:
        built(recipe, {"num_labels": 2})
    assert str(raised.value) == f"recipe.yaml:5: {expected}"


def test_one_missing_target_of_two_is_reported_and_left_out(folder: Path, write_recipe: Write) -> None:
    save_llama(folder / "model", bpe())
    more = "LoraConfig: {target_modules: [q_proj, query]}"
    _, lines = built(read_recipe(write_recipe(text_of("chat", more=more))))
    assert lines[-1] == "LoraConfig.target_modules: LlamaForCausalLM has no query: left out"


# dtype and attention ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "dtype", "line"),
    [
        ("", torch.float32, "model.dtype: float32 (none is stated; from_pretrained would take the checkpoint's)"),
        (", dtype: bfloat16", torch.bfloat16, None),
        (", dtype: float32", torch.float32, None),
        (", dtype: auto", torch.bfloat16, None),
    ],
)
def test_a_bf16_checkpoint_is_loaded_as_the_recipe_says(
    folder: Path, write_recipe: Write, arguments: str, dtype: Any, line: str | None
) -> None:
    save_llama(folder / "model", bpe(), dtype="bfloat16")
    recipe = read_recipe(write_recipe(text_of("causal-lm", LLAMA + arguments + "}")))
    assert built(recipe)[0].dtype == dtype
    assert [one for one in choose(recipe, CPU)[1] if one.startswith("model.dtype")] == ([line] if line else [])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("model", [LLAMA, "model: {config: {model_type: gpt2, n_layer: 1, n_head: 2, n_embd: 8}"])
def test_attention_is_what_the_recipe_says(data: None, write_recipe: Write, attention: str, model: str) -> None:
    more = "" if model == LLAMA else "tokenizer: {pretrained_model_name_or_path: ./model}"
    text = text_of("causal-lm", f"{model}, attn_implementation: {attention}}}", more)
    assert built(read_recipe(write_recipe(text)))[0].config._attn_implementation == attention


def test_flash_attention_that_is_not_installed_is_reported_before_anything_is_written(
    data: None, write_recipe: Write
) -> None:
    text = text_of("causal-lm", LLAMA + ", attn_implementation: flash_attention_2}")
    with pytest.raises(RecipeError) as raised:
        run(write_recipe(text))
    lines = str(raised.value).splitlines()
    assert lines[0] == (
        "recipe.yaml:2: attn_implementation: flash_attention_2 needs flash-attn, which is not installed here; "
        "pip install flash-attn"
    )
    assert not Path("out").exists()


# from scratch -------------------------------------------------------------------------------------------------------


def test_a_presets_vocabulary_and_its_ends_follow_the_tokenizer(data: None, write_recipe: Write) -> None:
    more = "tokenizer: {pretrained_model_name_or_path: ./model}"
    text = text_of("causal-lm", "model: {preset: gpt-tiny, n_layer: 1, n_embd: 32, n_inner: 64, n_head: 2}", more)
    model, _ = built(read_recipe(write_recipe(text)))
    tokenizer = bpe()
    assert model.config.vocab_size == len(tokenizer) == model.get_input_embeddings().weight.shape[0]
    assert (model.config.eos_token_id, model.config.bos_token_id) == (tokenizer.eos_token_id, tokenizer.bos_token_id)
    assert (model.config.n_layer, model.config.resid_pdrop) == (1, 0.1)  # the recipe's field, and the preset's


def test_gemma_270m_has_its_published_size(write_recipe: Write) -> None:
    from transformers import AutoModelForCausalLM

    config = build_config(
        read_recipe(write_recipe(text_of("causal-lm", "model: {preset: gemma-270m}", "BpeTrainer: {vocab_size: 9999}")))
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert build.parameter_counts(model) == (268_098_176, 268_098_176)
    assert PRESETS["gemma-270m"].parameters == 268_098_176


@pytest.mark.parametrize("where", ["./shape", "./shape/config.json"])
def test_a_config_may_be_a_folder_or_its_file(folder: Path, write_recipe: Write, where: str) -> None:
    (folder / "shape").mkdir()
    config = {"model_type": "llama", "torch_dtype": "bfloat16", **SHAPE}
    (folder / "shape" / "config.json").write_text(json.dumps(config))
    text = text_of("causal-lm", f"model: {{config: {where}, num_hidden_layers: 1}}", "BpeTrainer: {vocab_size: 300}")
    config = build_config(read_recipe(write_recipe(text)))
    assert (config.model_type, config.hidden_size, config.num_hidden_layers) == ("llama", 64, 1)


def test_two_runs_of_a_recipe_begin_with_the_same_weights_and_another_seed_with_others(
    data: None, write_recipe: Write
) -> None:
    more = "tokenizer: {pretrained_model_name_or_path: ./model}"
    path = write_recipe(
        text_of("causal-lm", "model: {config: {model_type: gpt2, n_layer: 1, n_head: 2, n_embd: 8}}", more)
    )
    first, same, other = (
        built(read_recipe(path, [f"TrainingArguments.seed={seed}"]))[0].transformer.wte.weight for seed in (1, 1, 2)
    )
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_the_embedding_grows_with_the_tokenizer(folder: Path, write_recipe: Write) -> None:
    save_llama(folder / "model", bpe())
    tokenizer = bpe()
    tokenizer.add_tokens(["<new>", "<newer>"])
    tokenizer.save_pretrained(folder / "tokenizer")
    more = "tokenizer: {pretrained_model_name_or_path: ./tokenizer}"
    model, lines = built(read_recipe(write_recipe(text_of("causal-lm", more=more))))
    rows = len(bpe())
    assert model.get_input_embeddings().weight.shape[0] == rows + 2
    assert lines[-1] == f"embedding: {rows} -> {rows + 2} rows, as many as the tokenizer has tokens"


def test_a_tokenizer_trained_on_the_rows_is_the_same_every_time_and_goes_round(
    folder: Path, write_recipe: Write
) -> None:
    from datasets import Dataset

    model = "model: {config: {model_type: gpt2}}"
    recipe = read_recipe(write_recipe(text_of("causal-lm", model, "BpeTrainer: {vocab_size: 300}")))
    rows, lines = Dataset.from_list([{"text": text, "label": "x"} for text in TEXTS]), []
    tokenizer, again = (build_tokenizer(recipe, rows, lines.append) for _ in range(2))
    assert tokenizer.get_vocab() == again.get_vocab() and len(tokenizer) == 300
    for text in ("  naïve 😀\n日本", *TEXTS):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert lines[0] == "tokenizer: byte-level BPE trained on the train split, 300 tokens"


def test_a_tokenizer_cannot_be_trained_on_token_ids(folder: Path, write_recipe: Write) -> None:
    from datasets import Dataset

    model = "model: {config: {model_type: gpt2}}"
    recipe = read_recipe(write_recipe(text_of("causal-lm", model, "BpeTrainer: {vocab_size: 300}")))
    with pytest.raises(RecipeError) as raised:
        build_tokenizer(recipe, Dataset.from_list([{"input_ids": [1, 2]}]), print)
    assert str(raised.value) == (
        "recipe.yaml:5: the rows hold token ids, not text to train a tokenizer on; "
        "name the tokenizer that wrote them in the tokenizer section"
    )


def test_a_tokenizer_is_trained_on_the_texts_and_not_on_their_labels(folder: Path, write_recipe: Write) -> None:
    from datasets import Dataset

    model = "model: {config: {model_type: bert}}"
    recipe = read_recipe(write_recipe(text_of("text-classification", model, "BpeTrainer: {vocab_size: 300}")))
    rows = Dataset.from_list([{"text": "ab", "label": "zzzz"}] * 9)
    vocabulary = build_tokenizer(recipe, rows, print).get_vocab()
    assert "ab" in vocabulary and "zz" not in vocabulary
    with pytest.raises(RecipeError) as raised:
        build_tokenizer(recipe, Dataset.from_list([{"prose": "ab", "label": 1}]), print)
    assert str(raised.value) == (
        "recipe.yaml:3: the data has no column 'text' (it has prose, label); name it with dataset.text_column"
    )


def test_a_misspelled_module_to_save_is_refused_where_peft_leaves_it_out(data: None, write_recipe: Write) -> None:
    lora = "LoraConfig: {target_modules: [q_proj], modules_to_save: [lm_heda]}"
    with pytest.raises(RecipeError) as raised:
        built(read_recipe(write_recipe(text_of("causal-lm", more=lora))))
    assert str(raised.value) == (
        "recipe.yaml:5: LoraConfig.modules_to_save: LlamaForCausalLM has no 'lm_heda'; did you mean 'lm_head'?"
    )


def test_a_model_of_images_is_refused(data: None, write_recipe: Write) -> None:
    with pytest.raises(RecipeError) as raised:
        run(
            write_recipe(
                text_of("text-classification", "model: {config: {model_type: vit}}", "BpeTrainer: {vocab_size: 300}")
            )
        )
    assert str(raised.value) == (
        "recipe.yaml:2: no model can be built from this config: ViTConfig has no vocabulary, so it cannot read text; "
        "use an architecture that AutoModelForSequenceClassification knows"
    )


def test_robertas_positions_begin_behind_its_padding() -> None:
    from transformers import AutoConfig

    assert longest_input(AutoConfig.for_model("roberta", max_position_embeddings=514)) == 512
    assert longest_input(AutoConfig.for_model("bert")) == 512
    assert longest_input(AutoConfig.for_model("gpt2", n_positions=64)) == 64
    assert longest_input(AutoConfig.for_model("bloom")) is None


# chat templates -----------------------------------------------------------------------------------------------------


def test_a_chat_template_and_an_end_token_of_the_recipe_are_taken(data: None, write_recipe: Write) -> None:
    Path("mine.jinja").write_text("{{ messages[0]['content'] }}")
    path = write_recipe(text_of("chat"))
    overrides = ["SFTConfig.chat_template_path=mine.jinja", "SFTConfig.eos_token=<|im_end|>"]
    tokenizer = build_tokenizer(read_recipe(path, overrides), None, print)
    assert (tokenizer.chat_template, tokenizer.eos_token) == ("{{ messages[0]['content'] }}", "<|im_end|>")
    lines: list[str] = []
    build_tokenizer(read_recipe(path), None, lines.append)
    assert lines == [
        "chat template: a plain built-in one ('user:\\n...'), since the tokenizer has none",
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "SFTConfig.chat_template_path=no.jinja",
            "chat template 'no.jinja' cannot be read (No such file or directory)",
        ),
        (
            "SFTConfig.chat_template_path=./model",
            "'./model' is not a template file; give a .jinja file; a tokenizer folder goes into the tokenizer section",
        ),
        ("SFTConfig.eos_token=</s>", "'</s>' is not in the tokenizer's vocabulary"),
    ],
)
def test_a_missing_chat_template_or_end_token_is_reported(
    data: None, write_recipe: Write, override: str, expected: str
) -> None:
    with pytest.raises(RecipeError) as raised:
        build_tokenizer(read_recipe(write_recipe(text_of("chat")), [override]), None, print)
    assert str(raised.value) == f"argument '{override}': {expected}"
