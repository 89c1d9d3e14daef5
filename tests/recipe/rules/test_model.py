"""Rules about the model, its adapter, its quantisation and its tokenizer. Upstream behaves as each rule says."""

import inspect
from types import SimpleNamespace

import pytest

from hf_recipes.recipe.rules import all_rules
from hf_recipes.recipe.rules import model as building
from tests.support.rule_recipes import SFT, TRAINER, recipe_of, tiny_gpt2


def test_sampling_at_temperature_zero_is_refused_as_generate_does_at_the_first_evaluation(ask):
    from transformers.generation.logits_process import TemperatureLogitsWarper

    top = "sample_prompts: [a]\nGenerationConfig: {do_sample: true, temperature: 0.0}"
    assert ask(top=top, task="causal-lm")[0] == [
        "8: GenerationConfig.temperature: 0 cannot be sampled at; write do_sample: false, which is what it means"
    ]
    with pytest.raises(ValueError, match="strictly positive float"):
        TemperatureLogitsWarper(0.0)


def test_an_adapter_on_random_weights_is_warned_about_since_its_base_is_saved_nowhere(ask):
    top = "LoraConfig: {target_modules: [c_attn]}\nBpeTrainer: {vocab_size: 500}"
    assert ask(top=top, task="causal-lm", model="{preset: gpt-tiny}")[1] == [
        "7: LoraConfig with model.preset: the adapter is saved without the random weights that it belongs to; "
        "leave LoraConfig out, or start from a pretrained model"
    ]


def test_sections_that_the_task_does_not_use_are_refused(ask):
    assert ask(trainer="SFTConfig")[0] == [
        "4: task text-classification is not trained with SFTConfig; use TrainingArguments"
    ]
    assert ask(top="sample_prompts: [a]\nGenerationConfig: {max_new_tokens: 5}")[0] == [
        "7: task text-classification generates no text: sample_prompts has no effect; leave it out",
        "8: task text-classification generates no text: GenerationConfig has no effect; leave it out",
    ]
    assert ask(top="GenerationConfig: {max_new_tokens: 5}", **TRAINER)[0] == [
        "7: GenerationConfig has no effect: it is for sample_prompts, and there are none; "
        "write sample_prompts, or leave it out"
    ]


def test_the_adapters_task_type_is_the_tasks(ask):
    """peft TaskType: SEQ_CLS trains the classifier beside the adapter, CAUSAL_LM does not."""
    assert ask(top="LoraConfig: {task_type: CAUSAL_LM}")[0] == [
        "7: LoraConfig.task_type: CAUSAL_LM contradicts task: text-classification; leave it out: it is SEQ_CLS"
    ]
    assert ask(top="LoraConfig: {task_type: SEQ_CLS}")[0] == []


def test_a_frozen_adapter_is_refused(ask):
    """peft sets requires_grad to False on an adapter in inference_mode."""
    assert ask(top="LoraConfig: {inference_mode: true}")[0] == [
        "7: LoraConfig.inference_mode: true freezes the adapter: nothing would be trained; leave it out"
    ]
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_gpt2(), LoraConfig(inference_mode=True, target_modules=["c_attn"], fan_in_fan_out=True))
    assert model.get_nb_trainable_parameters()[0] == 0


def test_lora_targets_that_the_architecture_lacks_are_refused_or_warned_about(ask):
    """peft: "Target modules ... not found in the base model" if none is there, and nothing if only some are missing."""
    assert ask(top="LoraConfig: {target_modules: [q_proj, v_proj]}")[0] == [
        "7: LoraConfig.target_modules: a bert has no q_proj, v_proj; it has word_embeddings, position_embeddings, "
        "token_type_embeddings, query, key, value, dense, classifier; or write all-linear"
    ]
    assert ask(top="LoraConfig: {target_modules: [query, vlaue]}") == (
        [],
        ["7: LoraConfig.target_modules: a bert has no vlaue; did you mean 'value'?"],
    )
    for fine in ("[attention.self.query]", "all-linear", "'.*query'"):
        assert ask(top=f"LoraConfig: {{target_modules: {fine}}}") == ([], [])
    assert ask(top="LoraConfig: {target_modules: [whatever]}", model="someone/unknown") == ([], [])
    from peft import LoraConfig, get_peft_model

    with pytest.raises(ValueError, match="not found in the base model"):
        get_peft_model(tiny_gpt2(), LoraConfig(target_modules=["q_proj"]))


TINY = {
    "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
    "intermediate_size": 8, "vocab_size": 16, "max_position_embeddings": 16, "pad_token_id": 0,
}  # fmt: skip


TINY_DISTILBERT = {"n_layers": 1, "dim": 8, "n_heads": 2, "hidden_dim": 8, "vocab_size": 16}


@pytest.mark.parametrize("kind", building.LORA_TARGETS)
def test_the_table_of_lora_targets_is_the_installed_architectures(kind):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, Conv1D
    from transformers import AutoModelForTokenClassification as AutoModelForTokens

    config = AutoConfig.for_model(kind, **(TINY_DISTILBERT if kind == "distilbert" else TINY))
    names = set()
    encoder = kind in ("bert", "distilbert")
    for auto in (AutoModelForSequenceClassification, AutoModelForTokens if not encoder and kind in ("gpt2", "phi") else
                 AutoModelForSequenceClassification if encoder else AutoModelForCausalLM,
                 AutoModelForSequenceClassification if encoder else AutoModelForCausalLM):  # fmt: skip
        with torch.device("meta"):
            model = auto.from_config(config)
        kinds = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
        names |= {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, kinds)}
    assert names == set(building.LORA_TARGETS[kind])


def test_an_adapter_on_the_head_is_refused_under_sfttrainer(ask):
    """trl 1.16 sft_trainer.py:1070: "Applying a PEFT adapter to `lm_head` is not supported"."""
    assert ask(top="LoraConfig: {target_modules: [c_attn, lm_head]}", **SFT)[0] == [
        "7: LoraConfig.target_modules has lm_head, which SFTTrainer reads without its adapter; "
        "take it out, or write modules_to_save: [lm_head]"
    ]
    assert ask(top="LoraConfig: {target_modules: [c_attn, lm_head]}", **TRAINER)[0] == []


def test_quantised_weights_need_an_adapter_and_must_be_there(ask):
    """transformers 5.23 trainer_utils.py:133: "You cannot perform fine-tuning on purely quantized models"."""
    assert ask(top="BitsAndBytesConfig: {load_in_4bit: true}")[0] == [
        "7: BitsAndBytesConfig without LoraConfig: quantised weights cannot be trained; "
        "add LoraConfig (QLoRA), or leave BitsAndBytesConfig out"
    ]
    top = "BitsAndBytesConfig: {load_in_4bit: true}\nLoraConfig: {r: 8}\nBpeTrainer: {vocab_size: 2000}"
    assert ask(top=top, task="causal-lm", model="{preset: gpt-tiny}")[0] == [
        "7: BitsAndBytesConfig with model.preset: a model from scratch has no weights to quantise; leave it out"
    ]
    from transformers.trainer_utils import validate_quantization_for_training

    with pytest.raises(ValueError, match="You cannot perform fine-tuning on purely quantized models"):
        validate_quantization_for_training(SimpleNamespace(is_quantized=True))


def test_quantisation_is_of_one_kind(ask):
    """transformers/utils/quantization_config.py: "only one can be used at the same time"."""
    lora = "\nLoraConfig: {r: 8}"
    assert ask(top="BitsAndBytesConfig: {load_in_4bit: true, load_in_8bit: true}" + lora)[0] == [
        "7: BitsAndBytesConfig has load_in_4bit and load_in_8bit; keep one of them"
    ]
    assert ask(top="BitsAndBytesConfig: {bnb_4bit_quant_type: nf4}" + lora)[0] == [
        "7: BitsAndBytesConfig quantises nothing: neither load_in_4bit nor load_in_8bit is true; "
        "write load_in_4bit: true"
    ]
    assert ask(top="BitsAndBytesConfig: {load_in_8bit: true, bnb_4bit_quant_type: nf4}" + lora)[0] == [
        "7: BitsAndBytesConfig.bnb_4bit_quant_type has no effect with load_in_8bit; "
        "leave it out, or write load_in_4bit: true"
    ]
    assert ask(top="BitsAndBytesConfig: {load_in_4bit: true, llm_int8_threshold: 5.0}" + lora)[0] == [
        "7: BitsAndBytesConfig.llm_int8_threshold has no effect with load_in_4bit; "
        "leave it out, or write load_in_8bit: true"
    ]
    from transformers import BitsAndBytesConfig

    names = set(inspect.signature(BitsAndBytesConfig).parameters)
    assert {*building.ONLY_4BIT, *building.ONLY_8BIT} <= names
    with pytest.raises(ValueError, match="only one can be used at the same time"):
        BitsAndBytesConfig(load_in_4bit=True, load_in_8bit=True)


def test_a_trained_tokenizer_is_only_for_a_model_from_scratch(ask):
    assert ask(top="BpeTrainer: {vocab_size: 2000}\ntokenizer: {pretrained_model_name_or_path: gpt2}")[0] == [
        "7: BpeTrainer with a pretrained model: its embeddings belong to its own tokenizer's tokens; "
        "leave it out, or start from scratch with model.preset or model.config",
        "7: BpeTrainer trains a tokenizer, and one is given (8); keep one of BpeTrainer and tokenizer",
    ]
    assert ask(top="BpeTrainer: {vocab_size: 256}", task="causal-lm", model="{preset: gpt-tiny}")[0] == [
        "7: BpeTrainer.vocab_size: 256 leaves no room beside 256 bytes and the end token; write some thousands"
    ]


def test_rows_longer_than_the_models_positions_are_refused(ask):
    """A table of positions has an end: an IndexError on the CPU, a crash of the card on CUDA."""
    top = "dataset: {path: json, data_files: a.jsonl, max_length: 513}"
    error = (
        "dataset.max_length: 513 tokens are more than the model's 512 positions; set dataset.max_length: 512 or less"
    )
    assert ask(top=top)[0] == [f"7: {error}"]
    assert ask("max_length: 1025", **SFT)[0] == [
        "5: SFTConfig.max_length: 1025 tokens are more than the model's 1024 positions; "
        "set SFTConfig.max_length: 1024 or less"
    ]
    scratch = {**SFT, "model": "{preset: gpt-tiny, n_positions: 64}"}
    assert ask("max_length: 65", "BpeTrainer: {vocab_size: 2000}", **scratch)[0] == [
        "5: SFTConfig.max_length: 65 tokens are more than the model's 64 positions; "
        "set SFTConfig.max_length: 64 or less"
    ]
    import torch

    with pytest.raises(IndexError):
        tiny_gpt2()(torch.zeros(1, 17, dtype=torch.long))


def test_an_adapter_with_a_learning_rate_for_full_fine_tuning_is_warned_about():
    warnings = all_rules.warnings(recipe_of({"SFTConfig": {}, "LoraConfig": {"r": 8}}))
    assert [str(warning) for warning in warnings] == [
        "a.yaml: LoraConfig with SFTConfig's default learning_rate (2e-05), which is for full fine-tuning; "
        "state learning_rate; 2e-4 is usual for LoRA"
    ]
