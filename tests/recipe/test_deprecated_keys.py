"""The table of old keys against the installed upstream, and what becomes of each key."""

import dataclasses
import inspect
import math

import pytest

from hf_recipes.common.text import as_yaml
from hf_recipes.recipe.deprecated_keys import TRAINING
from tests.support.old_keys import SAMPLES, UPGRADES, V5, refused, translate, upgraded

# Every field that TrainingArguments had in one of 4.40.2, 4.41.2, 4.42.4, 4.43.4, 4.44.2, 4.45.2, 4.46.3, 4.47.1,
# 4.48.3, 4.49.0, 4.50.3, 4.51.3, 4.52.4, 4.53.3, 4.54.1, 4.55.4, 4.56.2, 4.57.6 and has no more in 5.23.0 (read from
# their sources by ast).
GONE = set(
    """
    _n_gpu adafactor dispatch_batches evaluation_strategy fp16_backend fp16_opt_level fsdp_min_num_params
    fsdp_transformer_layer_cls_to_wrap group_by_length half_precision_backend include_inputs_for_metrics
    include_tokens_per_second jit_mode_eval logging_dir mp_parameters no_cuda overwrite_output_dir past_index
    per_gpu_eval_batch_size per_gpu_train_batch_size push_to_hub_model_id push_to_hub_organization push_to_hub_token
    ray_scope save_safetensors split_batches torchdynamo tp_size tpu_metrics_debug tpu_num_cores use_ipex
    use_legacy_prediction_loop use_mps_device warmup_ratio
    """.split()  # noqa: SIM905
)


def fields_of(section):
    """The real class's init fields (or a function's parameters)."""
    if section in TRAINING:
        import transformers
        import trl

        cls = transformers.TrainingArguments if section == "TrainingArguments" else trl.SFTConfig
        return {field.name for field in dataclasses.fields(cls) if field.init}
    if section == "LoraConfig":
        from peft import LoraConfig

        return {field.name for field in dataclasses.fields(LoraConfig)}
    if section == "BitsAndBytesConfig":
        from transformers import BitsAndBytesConfig

        return set(inspect.signature(BitsAndBytesConfig).parameters)
    raise KeyError(section)


def test_every_key_that_transformers_4_40_to_4_57_had_and_5_has_not_is_in_the_table():
    rows = {row.old for row in UPGRADES if row.sections == TRAINING and not row.values}
    assert len(GONE) == 34
    assert set(GONE) - rows == set()
    assert set(GONE) & fields_of("TrainingArguments") == set()


@pytest.mark.parametrize(
    "row", [r for r in UPGRADES if set(r.sections) & {*TRAINING, "LoraConfig"}], ids=lambda r: r.old
)
def test_an_old_key_is_unknown_or_deprecated_upstream_and_every_new_key_exists(row):
    still = {
        "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
        "fsdp",
        "optim",
        "packing_strategy",
        "loss_type",
    }
    for section in row.sections:
        assert (row.old in fields_of(section)) == (row.old in still)
        for new in row.new:
            if new == "master_weights":
                continue  # ours
            home, _, name = new.rpartition(".")
            assert home in ("", ".fsdp_config", ".accelerator_config")
            assert (home.removeprefix(".") or name) in fields_of(section)


def test_the_keys_of_accelerator_config_and_fsdp_config_exist():
    from accelerate.utils import FullyShardedDataParallelPlugin
    from transformers.trainer_pt_utils import AcceleratorConfig

    assert {"split_batches", "dispatch_batches"} <= set(inspect.signature(AcceleratorConfig).parameters)
    plugin = set(inspect.signature(FullyShardedDataParallelPlugin).parameters)
    assert {"min_num_params", "auto_wrap_policy", "reshard_after_forward", "cpu_offload"} <= plugin
    assert "transformer_cls_names_to_wrap" in plugin  # TrainingArguments' transformer_layer_cls_to_wrap


def test_the_optimizer_names_that_are_gone_are_really_gone_and_their_successors_are_there():
    from transformers.training_args import OptimizerNames

    names = {name.value for name in OptimizerNames}
    table = {old: new for row in UPGRADES if row.old == "optim" for old, new in row.values.items()}
    assert table == {"adamw_hf": "adamw_torch", "adamw_apex_fused": "adamw_torch_fused"}
    assert not names & set(table) and set(table.values()) <= names


def test_the_keys_of_the_model_section_are_gone_from_from_pretrained_or_thrown_away_there():
    from transformers import PreTrainedModel

    source = inspect.getsource(PreTrainedModel.from_pretrained)
    thrown_away = ["mirror", "_fast_init", "low_cpu_mem_usage", "from_tf", "from_flax", "offload_state_dict"]
    assert str(thrown_away).replace("'", '"') in source  # modeling_utils.py:4171, "Not used anymore"
    for row in (row for row in UPGRADES if "model" in row.sections):
        if row.old == "torch_dtype":
            assert 'kwargs.pop("torch_dtype", None)  # kept for BC' in source
        elif row.old not in thrown_away:
            assert f'"{row.old}"' not in source
        for new in row.new:
            section, _, name = new.rpartition(".")
            assert name in fields_of("BitsAndBytesConfig") if section else f'"{name}"' in source


def test_load_in_4bit_is_really_refused_by_from_pretrained_today(tmp_path):
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=16, n_positions=8)).save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="unexpected keyword argument 'load_in_4bit'"):
        AutoModelForCausalLM.from_pretrained(tmp_path, load_in_4bit=True)


def test_gradient_checkpointing_really_warns_and_the_new_key_is_silent(tmp_path, recwarn):
    from transformers import TrainingArguments

    with pytest.warns(FutureWarning, match="`gradient_checkpointing` is deprecated and will be removed in v6"):
        TrainingArguments(output_dir=str(tmp_path), gradient_checkpointing=True, use_cpu=True)
    recwarn.clear()
    args = TrainingArguments(output_dir=str(tmp_path), activation_checkpointing=True, use_cpu=True)
    assert args.gradient_checkpointing is True and not [w for w in recwarn if w.category is FutureWarning]


@pytest.mark.parametrize(("key", "value", "expected"), SAMPLES, ids=[f"{k}={v}" for k, v, _ in SAMPLES])
@pytest.mark.parametrize("section", TRAINING)
def test_an_old_key_becomes_what_the_installed_class_takes(section, key, value, expected, tmp_path, monkeypatch):
    new, lines = upgraded(section, **{key: value})
    assert new[section] == expected
    assert len(lines) == 1 and lines[0].startswith(f"a.yaml:3: {key}: {as_yaml(value)} -> ")
    if "fsdp_config" in expected:
        monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")
    import transformers
    import trl

    cls = transformers.TrainingArguments if section == "TrainingArguments" else trl.SFTConfig
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        args = cls(output_dir=str(tmp_path), **{"use_cpu": True, "activation_checkpointing": False, **new[section]})
    for name, wanted in expected.items():
        if not isinstance(wanted, dict) and name not in ("include_num_input_tokens_seen", "debug"):
            assert getattr(args, name) == wanted


def test_every_row_of_the_table_has_a_sample():
    others = {"fp16_opt_level", "push_to_hub_token", "fsdp"}  # below
    assert {row.old for row in UPGRADES if row.sections == TRAINING} == {key for key, _, _ in SAMPLES} | others


def test_a_translation_is_a_line_with_the_location_the_new_form_the_versions_and_the_reason():
    _, lines = upgraded(warmup_ratio=0.06)
    assert lines == [
        "a.yaml:3: warmup_ratio: 0.06 -> warmup_steps: 0.06 "
        "(gone between transformers 4.57 and 5.23; a value below 1 is a share of all steps)"
    ]


def test_new_keys_inherit_the_old_keys_location_and_its_seat_and_the_arguments_are_not_changed():
    sections = {"SFTConfig": {"seed": 1, "gradient_checkpointing_kwargs": {"use_reentrant": False}, "max_steps": 2}}
    places = {"SFTConfig.seed": "a:2", "SFTConfig.gradient_checkpointing_kwargs": "a:3", "SFTConfig.max_steps": "a:5"}
    places["SFTConfig.gradient_checkpointing_kwargs.use_reentrant"] = "a:4"
    new, new_places, _, _ = translate(sections, places)
    assert list(new["SFTConfig"]) == ["seed", "activation_checkpointing_kwargs", "max_steps"]
    assert new_places == {
        "SFTConfig.seed": "a:2",
        "SFTConfig.activation_checkpointing_kwargs": "a:3",
        "SFTConfig.activation_checkpointing_kwargs.use_reentrant": "a:4",
        "SFTConfig.max_steps": "a:5",
    }
    assert "gradient_checkpointing_kwargs" in sections["SFTConfig"] and len(places) == 4


def test_what_only_the_environment_can_set_is_dropped_with_the_line_to_export():
    _, lines = upgraded(logging_dir="logs/a")
    assert lines == [
        f"a.yaml:3: logging_dir: logs/a -> dropped ({V5}; "
        "set it in the environment: export TENSORBOARD_LOGGING_DIR=logs/a)"
    ]


def test_lora_model_and_sft_keys_are_translated_too():
    sections = {
        "model": {
            "torch_dtype": "bfloat16",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "use_flash_attention_2": True,
        },
        "tokenizer": {"use_fast": False},
        "LoraConfig": {"alpha": 32, "dropout": 0.05, "enable_lora": None, "merge_weights": False},
        "SFTConfig": {
            "max_seq_length": 512,
            "use_liger": True,
            "dataset_batch_size": 10,
            "num_of_sequences": 1024,
            "chars_per_token": 3.6,
            "packing_strategy": "bfd-requeue",
            "loss_type": "chunked_nll",
        },
    }
    new, _, lines, errors = translate(sections, {})
    assert not errors and len(lines) == 16
    assert new == {
        "model": {"dtype": "bfloat16", "attn_implementation": "flash_attention_2"},
        "tokenizer": {},
        "LoraConfig": {"lora_alpha": 32, "lora_dropout": 0.05},
        "SFTConfig": {"max_length": 512, "use_liger_kernel": True, "packing_strategy": "bfd_split", "loss_type": "nll"},
        "BitsAndBytesConfig": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    }


def test_the_old_names_of_lora_are_really_refused_by_peft():
    from peft import LoraConfig

    for name in ("alpha", "dropout", "enable_lora", "merge_weights"):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            LoraConfig(**{name: 1})


def test_keys_of_today_and_values_of_a_wrong_type_pass_through_for_the_reader_to_check():
    new, lines = upgraded(optim=["adamw_hf"], learning_rate="x", eval_strategy="no")
    assert (
        new["TrainingArguments"] == {"optim": ["adamw_hf"], "learning_rate": "x", "eval_strategy": "no"} and not lines
    )
    new, lines = upgraded(warmup_ratio="much")
    assert new["TrainingArguments"] == {"warmup_steps": "much"}


@pytest.mark.parametrize("ratio", [0, 0.0, 0.03, 0.06, 0.5, 0.999, 1, 1.0])
@pytest.mark.parametrize("steps", [1, 7, 100, 12345, 1_000_000])
def test_a_ratio_gives_the_same_number_of_steps_as_transformers_4(ratio, steps, tmp_path):
    from transformers import TrainingArguments

    new, _ = upgraded(warmup_ratio=ratio)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **new["TrainingArguments"])
    assert args.get_warmup_steps(steps) == math.ceil(steps * ratio)  # 4.57 training_args.py:2556


def test_warmup_steps_above_zero_wins_over_a_ratio_and_zero_does_not():
    new, lines = upgraded(warmup_steps=100, warmup_ratio=0.06)
    assert new["TrainingArguments"] == {"warmup_steps": 100}
    assert lines == [
        f"a.yaml:4: warmup_ratio: 0.06 -> dropped ({V5}; warmup_steps: 100 wins, as it did in transformers 4)"
    ]
    assert upgraded(warmup_steps=0, warmup_ratio=0.06)[0]["TrainingArguments"] == {"warmup_steps": 0.06}


def test_a_ratio_outside_of_0_to_1_is_refused_as_transformers_4_did():
    new, lines, errors = refused(warmup_ratio=6)
    assert errors == ["a.yaml:3: warmup_ratio must be in [0, 1], got 6; write warmup_steps"]
    assert new["TrainingArguments"] == {} and not lines


def test_o2_becomes_master_weights_and_reports_that_it_did_nothing_in_transformers_4():
    new, lines = upgraded(fp16=True, fp16_opt_level="O2")
    assert new["master_weights"] is True and new["TrainingArguments"] == {"fp16": True}
    assert lines == [
        f"a.yaml:4: fp16_opt_level: O2 -> master_weights: true ({V5}; fp16 weights and gradients, fp32 master weights, "
        "dynamic loss scaling; transformers 4 read it only with half_precision_backend: apex, so fp16: true alone "
        "gives the old run; where the GPU has bf16, bf16: true is recommended)"
    ]


def test_o2_under_apex_was_real_and_is_not_called_inert():
    for backend in ("fp16_backend", "half_precision_backend"):
        new, lines = upgraded(fp16=True, fp16_opt_level="O2", **{backend: "apex"})
        assert new["master_weights"] is True and new["TrainingArguments"] == {"fp16": True}
        assert "the old run" not in lines[0] and len(lines) == 2


def test_o1_is_fp16_itself_o0_is_fp32_and_o3_gets_master_weights_because_its_adam_turns_to_nan():
    new, lines = upgraded(fp16=True, fp16_opt_level="O1")
    assert new == {"task": "causal-lm", "TrainingArguments": {"fp16": True}}
    assert lines[0].endswith("; O1 is what fp16: true does: autocast with loss scaling)")
    new, lines = upgraded(fp16=True, fp16_opt_level="O0")
    assert new == {"task": "causal-lm", "TrainingArguments": {"fp16": False}}
    assert lines[0].startswith(
        f"a.yaml:4: fp16_opt_level: O0 -> fp16: false ({V5}; O0 is pure fp32; transformers 4 read"
    )
    new, lines = upgraded(fp16=True, fp16_opt_level="O3")
    assert new["master_weights"] is True
    assert "; O3 is pure fp16, whose Adam turns to NaN; this is O2: fp16 weights" in lines[0]


def test_an_opt_level_without_fp16_had_no_effect_and_a_child_may_inherit_fp16():
    for arguments in ({}, {"fp16": False}, {"bf16": True}):
        new, lines = upgraded(fp16_opt_level="O2", **arguments)
        assert "master_weights" not in new and lines[0].endswith("(" + V5 + "; without fp16: true it had no effect)")
    new, _ = upgraded(more={"extends": "parent.yaml"}, fp16_opt_level="O2")
    assert new["master_weights"] is True


def test_an_unknown_opt_level_is_refused():
    assert refused(fp16=True, fp16_opt_level="02")[2] == [
        'a.yaml:4: fp16_opt_level is one of O0, O1, O2, O3, not "02"; write fp16: true'
    ]


def test_an_old_and_a_new_key_with_different_values_are_an_error_that_names_both_lines():
    new, lines, errors = refused(evaluation_strategy="steps", eval_strategy="epoch")
    assert errors == [
        "a.yaml:3: evaluation_strategy: steps (gone between transformers 4.50 and 4.51) contradicts "
        "eval_strategy: epoch of a.yaml:4; keep eval_strategy, the name of today"
    ]
    assert new["TrainingArguments"] == {"eval_strategy": "epoch"} and not lines


def test_an_old_and_a_new_key_that_agree_become_one_with_a_line():
    new, lines = upgraded(evaluation_strategy="steps", eval_strategy="steps")
    assert new["TrainingArguments"] == {"eval_strategy": "steps"}
    assert lines == [
        "a.yaml:3: evaluation_strategy: steps -> dropped "
        "(gone between transformers 4.50 and 4.51; a.yaml:4 says eval_strategy: steps already)"
    ]


def test_master_weights_false_contradicts_o2():
    sections = {"task": "chat", "master_weights": False, "SFTConfig": {"fp16": True, "fp16_opt_level": "O2"}}
    places = {"master_weights": "a.yaml:2", "SFTConfig.fp16_opt_level": "a.yaml:5"}
    errors = translate(sections, places)[3]
    assert [str(error) for error in errors] == [
        f"a.yaml:5: fp16_opt_level: O2 ({V5}) contradicts master_weights: false of a.yaml:2; "
        "keep master_weights, the name of today"
    ]


def test_a_key_that_moves_into_a_mapping_which_is_a_file_is_refused():
    _, _, errors = refused(accelerator_config="accelerator.json", split_batches=True)
    assert errors == [
        "a.yaml:4: split_batches (gone between transformers 4.50 and 4.51) belongs into accelerator_config, which is "
        "accelerator.json here; write split_batches: true there"
    ]


def test_fsdp_strings_become_true_and_fsdp_config_and_what_fsdp2_lacks_is_refused():
    new, _ = upgraded(fsdp="full_shard auto_wrap offload")
    assert new["TrainingArguments"] == {
        "fsdp": True,
        "fsdp_config": {"reshard_after_forward": True, "cpu_offload": True},
    }
    assert upgraded(fsdp=["shard_grad_op"])[0]["TrainingArguments"]["fsdp_config"] == {"reshard_after_forward": False}
    assert upgraded(fsdp="")[0]["TrainingArguments"] == {"fsdp": False}
    assert upgraded(fsdp=True)[1] == []
    assert refused(fsdp="hybrid_shard")[2] == [
        "a.yaml:3: fsdp: 'hybrid_shard' is unknown to FSDP2, the only FSDP of transformers 5; "
        "use full_shard or shard_grad_op, best in the accelerate file"
    ]


def test_the_translated_fsdp_is_what_transformers_itself_makes_of_the_string(tmp_path, monkeypatch):
    from transformers import TrainingArguments

    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")
    new, _ = upgraded(fsdp="full_shard auto_wrap offload")
    ours = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **new["TrainingArguments"])
    theirs = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, fsdp="full_shard auto_wrap offload")
    assert ours.fsdp_plugin_args == theirs.fsdp_plugin_args and ours.fsdp is theirs.fsdp is True


def test_tensor_parallelism_and_weights_of_other_frameworks_are_refused_with_the_way_out():
    assert refused(tp_size=2)[2] == [
        "a.yaml:3: tp_size: 2 is gone between transformers 4.51 and 4.52; "
        "put parallelism_config with tp_size into the accelerate file"
    ]
    assert refused("model", from_tf=True)[2] == [
        "a.yaml:3: transformers 5 no longer reads from_tf checkpoints; "
        "convert it once with transformers 4 (from_pretrained(..., from_tf=True), then save_pretrained)"
    ]
    assert upgraded("model", from_tf=False)[0]["model"] == {}


@pytest.mark.parametrize(("section", "key"), [("TrainingArguments", "push_to_hub_token"), ("model", "use_auth_token")])
def test_a_token_is_refused_and_never_repeated(section, key):
    new, lines, errors = refused(section, **{key: "secret"})
    assert errors == [
        "a.yaml:3: a token does not belong in a recipe, which is saved, shared and pushed; "
        "take it out and set the environment variable HF_TOKEN"
    ]
    assert "secret" not in f"{new}{lines}{errors}"


def test_a_hub_id_is_put_together_from_its_old_halves():
    new, lines = upgraded(push_to_hub_model_id="name", push_to_hub_organization="org")
    assert new["TrainingArguments"] == {"hub_model_id": "org/name"} and len(lines) == 2
    new, _ = upgraded(output_dir="runs/bert/", push_to_hub_organization="org")
    assert new["TrainingArguments"] == {"output_dir": "runs/bert/", "hub_model_id": "org/bert"}
