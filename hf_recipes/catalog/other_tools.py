"""What the keys of other tools' files mean here. Tables only: `recipe/foreign_keys.py` reads them for `check`,
`recipe/convert.py` for `hf-recipes convert`.

Names and meanings are those of TRL 1.16 (ModelConfig, ScriptArguments, DatasetMixtureConfig), alignment-handbook at
925acdf, axolotl at 067b021 (utils/schemas) and LLaMA-Factory at ff6d4d1 (hparams). Keys that a tool takes over from
TrainingArguments or SFTConfig under their own names are not listed: they are read from the installed classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

TRAINER = "trainer"  # stands for the section of the recipe's trainer
LENGTH = f"{TRAINER}.max_length"  # the key of the length of a row, which is the dataset's beside TrainingArguments


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of another tool: `new` where it stands here, or why nothing is lost without it, or what is lost."""

    new: str = ""  # dotted, from the top of a recipe
    needless: str = ""  # why it can be left out
    lost: str = ""  # why it has no translation


def _table(to: Mapping[str, str], needless: Mapping[str, str], lost: Mapping[str, str]) -> Mapping[str, Key]:
    """{old: Key}; the keys of `needless` and `lost` are reasons, their values names with blanks between."""
    found = {old: Key(new=new) for old, new in to.items()}
    found |= {old: Key(needless=reason) for reason, olds in needless.items() for old in olds.split()}
    found |= {old: Key(lost=reason) for reason, olds in lost.items() for old in olds.split()}
    return MappingProxyType(found)


_LAUNCH = "how a run is spread over GPUs belongs into the accelerate file: accelerate_configs/"
_FASTER = "it changes the speed, not the result"
_CACHE = "rows are prepared once and cached"
_LOADED = "every load does"
_CODE = "code from the Hub is not run: this package loads what transformers has a class for"
_VISION = "images, audio and video are not trained here"
_METHOD = "this method is not offered here"

TRL = _table(
    to={
        "model_name_or_path": "model.pretrained_model_name_or_path",
        "model_revision": "model.revision",
        "torch_dtype": "model.dtype",
        "dtype": "model.dtype",
        "attn_implementation": "model.attn_implementation",
        "tokenizer_name_or_path": "tokenizer.pretrained_model_name_or_path",
        "chat_template": "tokenizer.chat_template",
        "use_peft": "LoraConfig",
        "lora_r": "LoraConfig.r",
        "lora_alpha": "LoraConfig.lora_alpha",
        "lora_dropout": "LoraConfig.lora_dropout",
        "lora_target_modules": "LoraConfig.target_modules",
        "lora_target_parameters": "LoraConfig.target_parameters",
        "lora_modules_to_save": "LoraConfig.modules_to_save",
        "use_rslora": "LoraConfig.use_rslora",
        "use_dora": "LoraConfig.use_dora",
        "load_in_4bit": "BitsAndBytesConfig.load_in_4bit",
        "load_in_8bit": "BitsAndBytesConfig.load_in_8bit",
        "bnb_4bit_quant_type": "BitsAndBytesConfig.bnb_4bit_quant_type",
        "use_bnb_nested_quant": "BitsAndBytesConfig.bnb_4bit_use_double_quant",
        "bnb_4bit_quant_storage": "BitsAndBytesConfig.bnb_4bit_quant_storage",
        "dataset_name": "dataset.path",
        "dataset_config": "dataset.name",
        "dataset_train_split": "dataset.split",
        "dataset_test_split": "dataset.split",
        "dataset_mixture": "dataset.path",
        "dataset_mixer": "dataset.path",
        "dataset_splits": "dataset.split",
        "dataset_text_field": "dataset.text_column",
        "max_seq_length": LENGTH,
    },
    needless={
        "the task decides it": "lora_task_type",
        _CACHE: "dataset_num_proc preprocessing_num_workers dataset_streaming ignore_bias_buffers overwrite_cache",
        "rows are prepared before SFTTrainer gets them": "dataset_kwargs eval_packing",
        _LOADED: "low_cpu_mem_usage",
    },
    lost={
        _CODE: "trust_remote_code",
        _METHOD: "beta max_prompt_length max_completion_length num_generations",
        "a push goes to the main branch": "hub_model_revision",
    },
)

AXOLOTL = _table(
    to={
        "base_model": "model.pretrained_model_name_or_path",
        "revision_of_model": "model.revision",
        "torch_dtype": "model.dtype",
        "attn_implementation": "model.attn_implementation",
        "flash_attention": "model.attn_implementation",
        "sdp_attention": "model.attn_implementation",
        "eager_attention": "model.attn_implementation",
        "flex_attention": "model.attn_implementation",
        "float16": "model.dtype",
        "bfloat16": "model.dtype",
        "num_labels": "model.num_labels",
        "tokenizer_config": "tokenizer.pretrained_model_name_or_path",
        "tokenizer_legacy": "tokenizer.legacy",
        "special_tokens": "tokenizer",
        "chat_template_jinja": "tokenizer.chat_template",
        "adapter": "LoraConfig",
        "lora_r": "LoraConfig.r",
        "lora_alpha": "LoraConfig.lora_alpha",
        "lora_dropout": "LoraConfig.lora_dropout",
        "lora_target_modules": "LoraConfig.target_modules",
        "lora_target_linear": "LoraConfig.target_modules",
        "lora_target_parameters": "LoraConfig.target_parameters",
        "lora_modules_to_save": "LoraConfig.modules_to_save",
        "lora_fan_in_fan_out": "LoraConfig.fan_in_fan_out",
        "peft_use_rslora": "LoraConfig.use_rslora",
        "peft_use_dora": "LoraConfig.use_dora",
        "peft_init_lora_weights": "LoraConfig.init_lora_weights",
        "peft_layers_to_transform": "LoraConfig.layers_to_transform",
        "peft_layers_pattern": "LoraConfig.layers_pattern",
        "load_in_4bit": "BitsAndBytesConfig.load_in_4bit",
        "load_in_8bit": "BitsAndBytesConfig.load_in_8bit",
        "bnb_config_kwargs": "BitsAndBytesConfig",
        "datasets": "dataset.path",
        "pretraining_dataset": "dataset.path",
        "test_datasets": "dataset.split",
        "val_set_size": "dataset.test_size",
        "sequence_len": LENGTH,
        "sample_packing": f"{TRAINER}.packing",
        "micro_batch_size": f"{TRAINER}.per_device_train_batch_size",
        "eval_batch_size": f"{TRAINER}.per_device_eval_batch_size",
        "num_epochs": f"{TRAINER}.num_train_epochs",
        "optimizer": f"{TRAINER}.optim",
        "lr_scheduler": f"{TRAINER}.lr_scheduler_type",
        "cosine_min_lr_ratio": f"{TRAINER}.lr_scheduler_kwargs",
        "adam_eps": f"{TRAINER}.adam_epsilon",
        "evals_per_epoch": f"{TRAINER}.eval_steps",
        "saves_per_epoch": f"{TRAINER}.save_steps",
        "group_by_length": f"{TRAINER}.train_sampling_strategy",
        "plugins": f"{TRAINER}.use_liger_kernel",
        "liger_rope": f"{TRAINER}.liger_kernel_config",
        "liger_rms_norm": f"{TRAINER}.liger_kernel_config",
        "liger_layer_norm": f"{TRAINER}.liger_kernel_config",
        "liger_glu_activation": f"{TRAINER}.liger_kernel_config",
        "wandb_project": f"{TRAINER}.report_to",
        "wandb_name": f"{TRAINER}.run_name",
        "use_wandb": f"{TRAINER}.report_to",
        "use_tensorboard": f"{TRAINER}.report_to",
        "use_mlflow": f"{TRAINER}.report_to",
        "use_swanlab": f"{TRAINER}.report_to",
        "trackio_project_name": f"{TRAINER}.project",
        "trackio_run_name": f"{TRAINER}.run_name",
        "trackio_space_id": f"{TRAINER}.trackio_space_id",
        "early_stopping_patience": "EarlyStoppingCallback.early_stopping_patience",
    },
    needless={
        "the task decides the class": "model_type tokenizer_type cls_model_config",
        "tokenizers are always the fast ones": "tokenizer_use_fast",
        _CACHE: "dataset_prepared_path dataset_processes dataset_num_proc skip_prepare_dataset shuffle_merged_datasets "
        "dataset_keep_in_memory push_dataset_to_hub sample_packing_eff_est sample_packing_seq_len_multiplier "
        "total_num_tokens sample_packing_bin_size sample_packing_group_size sample_packing_sequentially "
        "max_packed_sequence_len eval_table_size remove_unused_columns streaming_multipack_buffer_size",
        "evaluation rows are never packed": "eval_sample_packing",
        "a batch is padded to its longest row, a packed one is full": "pad_to_sequence_len",
        "packed rows never see each other": "pretrain_multipack_attn multipack_real_batches",
        _FASTER: "lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_embedding_kernel flash_attn_cross_entropy "
        "flash_attn_rms_norm flash_attn_fuse_mlp flash_attn_fuse_qkv flash_optimum cut_cross_entropy use_kernels "
        "use_scattermoe use_sonicmoe experts_implementation flex_attn_compile_kwargs fused_attn_kernel tiled_mlp "
        "gemma4_hybrid_attn_impl liger_rms_norm_gated liger_fused_linear_cross_entropy torchdistx_path "
        "experimental_skip_move_to_device use_dsv4_kernels use_glm_dsa_kernels llama4_linearized_experts "
        "s2_attention unsloth_cross_entropy_loss unsloth_lora_mlp unsloth_lora_qkv unsloth_lora_o",
        "the trainer's batch sizes say it": "batch_size",
        "weights are always safetensors": "save_safetensors",
        _LOADED: "low_cpu_mem_usage is_llama_derived_model is_falcon_derived_model is_mistral_derived_model",
        "the stored login is used anyway": "hf_use_auth_token",
        "it is no setting of the training": "strict debug local_rank test_value wandb_mode wandb_run_id",
        "an adapter is what is saved": "merge_lora nvfp4_merge_aware",
        "a run without an adapter trains every weight": "full_finetune",
        "the accelerate file says it": "ddp ddp_bucket_cap_mb ddp_timeout ddp_broadcast_buffers",
    },
    lost={
        _CODE: "trust_remote_code",
        _LAUNCH: "deepspeed fsdp fsdp_config fsdp_version tensor_parallel_size context_parallel_size dp_shard_size "
        "dp_replicate_size expert_parallel_size expert_parallel_num_nvl_bytes expert_parallel_token_capacity "
        "sequence_parallel_degree use_ray ray_num_workers resources_per_worker device_map max_memory",
        _VISION: "processor_type freeze_mm_modules image_size image_resize_algorithm",
        "train from an adapter by `LoraConfig` on the merged model": "lora_model_dir",
        "the tokenizer's own template is used; write tokenizer.chat_template for another one": "chat_template",
        "the end token of the template ends a turn": "eot_tokens",
        "add them to the tokenizer once: tokenizer.add_tokens, then save_pretrained": "tokens "
        "added_tokens_overrides resize_token_embeddings_to_32x shrink_embeddings mean_resizing_embeddings",
        "`disable_guards` and `on_nonfinite` are what guards a run here": "loss_watchdog_threshold "
        "loss_watchdog_patience",
        "`run --resume` resumes from the latest complete checkpoint": "auto_resume_from_checkpoints",
        "set it in the environment: WANDB_ENTITY, WANDB_WATCH, WANDB_LOG_MODEL": "wandb_entity wandb_watch "
        "wandb_log_model",
        "rows that are repeated are reported, not removed": "dataset_exact_deduplication",
        "LoraConfig says what is trained; part of a model without an adapter cannot be": "unfrozen_parameters",
        "the scheduler of the Trainer has no such option": "eta_min cosine_constant_lr_ratio lr_quadratic_warmup "
        "jagged_restart_steps jagged_restart_warmup_steps jagged_restart_anneal_steps",
        "what is trained on is decided by the task: the answers of a chat": "train_on_inputs",
        "the evaluation is that of `metrics`": "eval_causal_lm_metrics do_causal_lm_eval eval_max_new_tokens",
        "the fields of the model's config are keys of `model`": "model_config overrides_of_model_config",
        _METHOD: "qat gptq gptq_groupsize gptq_model_v1 gptq_disable_exllama model_quantization_config "
        "model_quantization_config_kwargs quantize_moe_experts fp8 fp8_enable_fsdp_float8_all_gather diffusion ebft "
        "relora relora_prune_ratio relora_cpu_offload relora_steps lisa_n_layers lisa_step_interval "
        "lisa_layers_attribute peft loraplus_lr_ratio loraplus_lr_embedding llmcompressor use_eaft eaft_alpha eaft_k "
        "curriculum_sampling reinit_weights use_onebitllms dsv4_fp4_grouped_mode streaming min_sample_len "
        "torch_compile_mode noisy_embedding_alpha",
    },
)

LLAMA_FACTORY = _table(
    to={
        "model_name_or_path": "model.pretrained_model_name_or_path",
        "model_revision": "model.revision",
        "flash_attn": "model.attn_implementation",
        "pure_bf16": "model.dtype",
        "tokenizer_name_or_path": "tokenizer.pretrained_model_name_or_path",
        "new_special_tokens": "tokenizer.extra_special_tokens",
        "finetuning_type": "LoraConfig",
        "lora_rank": "LoraConfig.r",
        "lora_alpha": "LoraConfig.lora_alpha",
        "lora_dropout": "LoraConfig.lora_dropout",
        "lora_target": "LoraConfig.target_modules",
        "additional_target": "LoraConfig.modules_to_save",
        "use_rslora": "LoraConfig.use_rslora",
        "use_dora": "LoraConfig.use_dora",
        "pissa_init": "LoraConfig.init_lora_weights",
        "pissa_iter": "LoraConfig.init_lora_weights",
        "quantization_bit": "BitsAndBytesConfig",
        "quantization_type": "BitsAndBytesConfig.bnb_4bit_quant_type",
        "double_quantization": "BitsAndBytesConfig.bnb_4bit_use_double_quant",
        "stage": "task",
        "dataset": "dataset.path",
        "eval_dataset": "dataset.data_files",
        "dataset_dir": "dataset.data_files",
        "max_samples": "dataset.split",
        "val_size": "dataset.test_size",
        "cutoff_len": LENGTH,
        "neat_packing": f"{TRAINER}.packing",
        "enable_liger_kernel": f"{TRAINER}.use_liger_kernel",
        "disable_gradient_checkpointing": f"{TRAINER}.activation_checkpointing",
        "use_reentrant_gc": f"{TRAINER}.activation_checkpointing_kwargs",
    },
    needless={
        _CACHE: "overwrite_cache preprocessing_num_workers preprocessing_batch_size tokenized_path streaming "
        "buffer_size data_shared_file_system",
        "every run's report has the plot": "plot_loss",
        "bitsandbytes quantises": "quantization_method",
        "the tokenizer's own files decide": "use_fast_tokenizer split_special_tokens",
        "embeddings grow with the tokenizer": "resize_vocab",
        _FASTER: "use_unsloth use_unsloth_gc enable_v1_kernels use_v1_kernels",
        _LOADED: "low_cpu_mem_usage",
        "it is no setting of the training": "print_param_status include_effective_tokens_per_second cache_dir",
        "a run always evaluates": "do_predict",
    },
    lost={
        _CODE: "trust_remote_code",
        _LAUNCH: "deepspeed fsdp fsdp_config fsdp_transformer_layer_cls_to_wrap ray_num_workers ray_run_name "
        "resources_per_worker placement_strategy sequence_parallel_size",
        _VISION: "image_max_pixels image_min_pixels video_max_pixels video_min_pixels video_fps video_maxlen "
        "freeze_vision_tower freeze_multi_modal_projector freeze_language_model crop_to_patches",
        "the tokenizer's own template is used; write tokenizer.chat_template for another one": "template "
        "default_system tool_format enable_thinking",
        "what is trained on is decided by the task: the answers of a chat": "train_on_prompt mask_history",
        "one data set is read": "mix_strategy interleave_probs eval_on_each_dataset",
        "train from an adapter by `LoraConfig` on the merged model": "adapter_name_or_path adapter_folder",
        "peft's own tools convert it": "pissa_convert",
        "the evaluation is that of `metrics`": "predict_with_generate compute_accuracy",
        _METHOD: "oft_rank oft_block_size oft_target module_dropout use_galore galore_layerwise galore_target "
        "galore_rank galore_scale galore_update_interval galore_proj_type use_apollo apollo_layerwise apollo_target "
        "apollo_rank apollo_scale apollo_scale_type apollo_update_interval apollo_proj use_badam badam_mode "
        "badam_switch_mode badam_switch_interval badam_verbose use_adam_mini use_muon mixture_of_depths "
        "freeze_trainable_layers freeze_trainable_modules freeze_extra_modules use_llama_pro loraplus_lr_ratio "
        "use_dft_loss use_eaft_loss eaft_alpha use_asft_loss asft_alpha fp8 fp8_backend "
        "fp8_enable_fsdp_float8_all_gather shift_attn rope_scaling moe_aux_loss_coef pref_beta pref_ftx pref_loss "
        "create_new_adapter train_from_scratch neat_packing_method",
    },
)

TOOLS: Mapping[str, Mapping[str, Key]] = MappingProxyType(
    {"TRL": TRL, "axolotl": AXOLOTL, "LLaMA-Factory": LLAMA_FACTORY}
)

# Methods that learn from preferences or rewards, by the name of TRL's config -> TRL's command ("" where it has none).
PREFERENCE_METHODS: Mapping[str, str] = MappingProxyType(
    {
        "DPOConfig": "trl dpo",
        "GRPOConfig": "trl grpo",
        "KTOConfig": "trl kto",
        "RewardConfig": "trl reward",
        "RLOOConfig": "trl rloo",
        "ORPOConfig": "",
        "CPOConfig": "",
        "PPOConfig": "",
        "PRMConfig": "",
        "OnlineDPOConfig": "",
        "XPOConfig": "",
        "NashMDConfig": "",
        "BCOConfig": "",
        "GKDConfig": "",
    }
)
PREFERENCE_COLUMNS = ("chosen", "rejected")  # of data for these methods
