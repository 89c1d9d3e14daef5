"""Every private point of upstream that this package relies on, in one table.

tests/test_upstream_private.py holds each row to the installed version: a signature that changed, or a line of
upstream's source that is gone, fails our build instead of a user's run. Whoever overrides or sets an underscored name
adds a row.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PrivatePoint:
    """One private name, who uses it and why. `signature` and each of `lines` must be found in the installed version."""

    name: str  # "package.module:Class.member"; for an attribute of instances, the class
    used_by: str  # our file
    why: str
    signature: str = ""  # str(inspect.signature(name)); "" for what is no function
    lines: tuple[str, ...] = ()  # text that inspect.getsource(name) holds
    issue: str = ""  # upstream's, if there is one
    until: str = ""  # when the row may go


PRIVATE_POINTS: tuple[PrivatePoint, ...] = (
    PrivatePoint(
        name="transformers.trainer:Trainer._clip_grad_norm",
        used_by="training/overrides.py",
        why="clips the fp32 gradients of the masters; the model's own are fp16 and scaled",
        signature="(self, model)",
        until="Trainer lets an optimizer clip its own gradients without SageMaker",
    ),
    PrivatePoint(
        name="transformers.trainer:Trainer._get_eval_sampler",
        used_by="training/overrides.py",
        why="evaluation in batches of like length; results are put back into the data's order",
        signature="(self, eval_dataset: torch.utils.data.dataset.Dataset) -> torch.utils.data.sampler.Sampler | None",
        until="Trainer sorts an evaluation by length and hands results out in the data's order",
    ),
    PrivatePoint(
        name="transformers.trainer:Trainer._get_grad_norm",
        used_by="training/overrides.py",
        why="the norm that is logged when max_grad_norm is 0 must be the unscaled one too",
        signature="(self, model, grad_norm=None)",
    ),
    PrivatePoint(
        name="transformers.trainer:Trainer._run_epoch",
        used_by="training/overrides.py",
        why="the two above are called once a step, after the last backward and before optimizer.step(); "
        "a skipped step does not advance the learning rate",
        lines=(
            "grad_norm = self._clip_grad_norm(model)",
            "grad_norm = self._get_grad_norm(model, grad_norm=grad_norm)",
            "self.optimizer.step()",
            "if not self.accelerator.optimizer_step_was_skipped:",
            "self._maybe_log_save_evaluate(\n                        self._tr_loss,",
        ),
    ),
    PrivatePoint(
        name="transformers.trainer:Trainer._maybe_log_save_evaluate",
        used_by="training/overrides.py",
        why="_tr_loss is cleared by subtraction, so that one loss that is not finite would make "
        "every later logged loss NaN; log() zeroes it after such a loss. And what a signal leaves undone here is done "
        "first on resumption: it is called once after a step and once after an epoch's last one",
        lines=(
            "tr_loss -= tr_loss",
            "self.log(logs, start_time)",
            "if self.control.should_evaluate:",
            "self.control.should_save = is_new_best_metric",
            "self._save_checkpoint(model, trial)",
        ),
    ),
    PrivatePoint(
        name="accelerate.optimizer:AcceleratedOptimizer",
        used_by="training/master_weights.py",
        why="_is_overflow is what optimizer_step_was_skipped reads; accelerate itself sets it only with its own scaler",
        lines=("self._is_overflow = False", "return self._is_overflow"),
    ),
    PrivatePoint(
        name="transformers.modeling_utils:PreTrainedModel",
        used_by="models/half_precision.py",
        why="the parts of a model which float16 breaks, by upstream's own list",
        lines=("_keep_in_fp32_modules:", "_keep_in_fp32_modules_strict:"),
    ),
    PrivatePoint(
        name="transformers.trainer:Trainer._load_from_checkpoint",
        used_by="training/overrides.py",
        why="on_nonfinite: rollback takes up a checkpoint's weights in the middle of a run",
        signature=("(self, resume_from_checkpoint: str, model: torch.nn.modules.module.Module | None = None) -> None"),
    ),
    PrivatePoint(
        name="transformers.trainer:Trainer._load_optimizer_and_scheduler",
        used_by="training/overrides.py",
        why="replaced where nothing is sharded: upstream's brings back the settings of the run that wrote the "
        "checkpoint, and a file that is no state ends it with a traceback",
        signature="(self, checkpoint: str | None) -> None",
        lines=(
            "os.path.join(checkpoint, OPTIMIZER_NAME), map_location=map_location, weights_only=True",
            "torch.load(os.path.join(checkpoint, SCHEDULER_NAME), weights_only=True)",
        ),
    ),
    PrivatePoint(
        name="transformers.trainer:Trainer._load_scaler",
        used_by="training/overrides.py",
        why="a loss scale in a checkpoint of a run that scales no loss is an AttributeError upstream",
        signature="(self, checkpoint: str | None) -> None",
        lines=("self.accelerator.scaler.load_state_dict(",),
    ),
    PrivatePoint(
        name="transformers.trainer:Trainer._load_rng_state",
        used_by="training/overrides.py",
        why="a resumed run whose seed was changed begins with the new one; work that was due comes after the "
        "checkpoint's random state and before the next step",
        signature="(self, checkpoint: str | None) -> None",
    ),
    PrivatePoint(
        name="transformers.trainer:Trainer._prepare_inputs",
        used_by="training/trainer_members.py",
        why="the forwards that look for the first layer that is not finite",
        signature="(self, inputs: dict[str, torch.Tensor | typing.Any]) -> dict[str, torch.Tensor | typing.Any]",
    ),
    PrivatePoint(
        name="trl.trainer.sft_trainer:SFTTrainer.compute_loss",
        used_by="training/out_of_memory.py",
        why="gathers sums over a micro-batch and keeps their means: pieces are summed before they are gathered",
        lines=("self.accelerator.gather_for_metrics(",),
    ),
    PrivatePoint(
        name="torch.nn.parallel.distributed:DistributedDataParallel.no_sync",
        used_by="training/out_of_memory.py",
        why="require_backward_grad_sync tells whether this backward reduces; require_forward_param_sync is put off "
        "where a forward is made again",
        lines=("self.require_backward_grad_sync = False",),
    ),
    PrivatePoint(
        name="transformers.trainer:Trainer._save",
        used_by="training/overrides.py",
        why="replaced: upstream's writes training_args.bin, a pickle that holds hub_token in clear text",
        signature="(self, output_dir: str | None = None, state_dict: dict | None = None) -> None",
        lines=("torch.save(self.args, os.path.join(output_dir, TRAINING_ARGS_NAME))",),
    ),
    PrivatePoint(
        name="transformers.trainer:Trainer._save_checkpoint",
        used_by="training/overrides.py",
        why="replaced: upstream's writes in place, trainer_state.json last, and a kill leaves a broken folder (#35525)",
        signature=(
            "(self, model: torch.nn.modules.module.Module, trial: 'optuna.Trial | dict[str, Any] | None') -> None"
        ),
        lines=(
            "self.store_flos()",
            "self.save_model(output_dir, _internal_call=True)",
            "self.state.best_model_checkpoint = best_checkpoint_dir",
            "self._save_optimizer_and_scheduler(output_dir)\n            self._save_scaler(output_dir)\n"
            "            # Save RNG state\n            self._save_rng_state(output_dir)",
            "self.state.stateful_callbacks[cb_name] = cb_state",
            "self.state.save_to_json(os.path.join(output_dir, TRAINER_STATE_NAME))",
            "use_mtime=True",
        ),
        until="#35525 is fixed by a write that is complete or not there, with a manifest of hashes",
    ),
    PrivatePoint(
        name="transformers.trainer:Trainer._load_best_model",
        used_by="training/overrides.py",
        why="under FSDP upstream reads its own shards, through a pickle; here each rank reads its part of safetensors",
        signature="(self) -> None",
        lines=("load_result = load_fsdp_model(",),
    ),
    PrivatePoint(
        name="transformers.trainer:Trainer.save_model",
        used_by="training/overrides.py",
        why="under FSDP upstream writes no weights with SHARDED_STATE_DICT",
        lines=('if "FULL_STATE_DICT" in str(self.accelerator.state.fsdp_plugin.state_dict_type):',),
    ),
    PrivatePoint(
        name="torch.distributed.distributed_c10d:_get_default_store",
        used_by="common/rank_watch.py",
        why="ranks write their beats into the launch's own store, which needs no port or folder of ours",
        signature="() -> torch.distributed.distributed_c10d.Store",
    ),
    PrivatePoint(
        name="accelerate.accelerator:Accelerator._prepare_fsdp2",
        used_by="training/fsdp_blocks.py",
        why="an optimizer's weights are found by their addresses: weights on the meta device get one before",
        lines=("p._local_tensor.data_ptr() if isinstance(p, DTensor) else p.data_ptr()",),
    ),
    PrivatePoint(
        name="accelerate.accelerator:Accelerator.prepare",
        used_by="training/overrides.py",
        why="an evaluation without a training under FSDP2 is refused without an optimizer; _models tells if one came",
        lines=("When using FSDP2, a model and optimizer must be passed together to `Accelerator.prepare()`",),
    ),
    PrivatePoint(
        name="accelerate.data_loader:BatchSamplerShard",
        used_by="training/even_ranks.py",
        why="the sampler below is filled up with rows without labels, so that it repeats none",
        lines=("self.batch_sampler = batch_sampler",),
    ),
    PrivatePoint(
        name="torch.distributed.checkpoint.hf_storage:HuggingFaceStorageWriter",
        used_by="checkpoints/sharded.py",
        why="each rank writes its own parts as safetensors, and no metadata file, which would be a pickle",
        lines=("if self.save_distributed and not self.enable_consolidation:",),
    ),
    PrivatePoint(
        name="transformers.trainer:Trainer._save_optimizer_and_scheduler",
        used_by="training/trainer_members.py",
        why="upstream's own writer, into the staging folder",
        signature="(self, output_dir: str) -> None",
    ),
    PrivatePoint(
        name="transformers.trainer:Trainer._save_scaler",
        used_by="training/trainer_members.py",
        why="upstream's own writer, into the staging folder",
        signature="(self, output_dir: str) -> None",
    ),
    PrivatePoint(
        name="transformers.trainer:Trainer._save_rng_state",
        used_by="training/trainer_members.py",
        why="upstream's own writer, into the staging folder",
        signature="(self, output_dir: str) -> None",
        lines=('"rng_state.pth"', 'f"rng_state_{self.args.process_index}.pth"'),
    ),
    PrivatePoint(
        name="transformers.trainer:Trainer._get_output_dir",
        used_by="training/trainer_members.py",
        why="where checkpoints go",
        signature="(self, trial: 'optuna.Trial | dict[str, Any] | None') -> str",
    ),
    PrivatePoint(
        name="transformers.trainer:Trainer._finalize_training",
        used_by="training/overrides.py",
        why="with save_total_limit: 1 it removes checkpoints by rmtree before the model is saved; and progress is due "
        "where no epoch was left to run",
        signature="(self, trial, num_train_samples, start_time)",
        lines=(
            "self.args.save_total_limit == 1",
            "self._total_loss_scalar += self._tr_loss.item()",
            "self.log(metrics)",
        ),
    ),
    PrivatePoint(
        name="transformers.trainer:Trainer._inner_training_loop",
        used_by="training/overrides.py",
        why="_tr_loss, _total_loss_scalar and _globalstep_last_logged start at nought, before the first _run_epoch, "
        "which is overridden: the loader is seeded by epoch, and a run that has all its steps makes none more",
        lines=(
            "self._run_epoch(\n                model=model,\n                epoch=epoch,\n"
            "                train_dataloader=train_dataloader,",
            "self._tr_loss = torch.tensor(0.0, device=args.device)",
            "self._total_loss_scalar = 0.0",
            "self._globalstep_last_logged = self.state.global_step",
        ),
    ),
    PrivatePoint(
        name="transformers.trainer:Trainer._init_training_state",
        used_by="training/overrides.py",
        why="forgets the best checkpoint of a run whose folder was moved, and brings back the logging, evaluation and "
        "saving steps, the batch size and the patience of the run that wrote the checkpoint",
        lines=(
            "self.state.best_model_checkpoint = None",
            "self.state.train_batch_size = self._train_batch_size",
            "self.state.compute_steps(self.args, max_steps)",
            "self._load_callback_state()",
        ),
    ),
    PrivatePoint(
        name="transformers.trainer:Trainer._get_train_sampler",
        used_by="training/overrides.py",
        why="gives the length-grouped sampler no generator, so that a resumed run has another order",
        lines=("return LengthGroupedSampler(",),
    ),
    PrivatePoint(
        name="transformers.trainer_pt_utils:LengthGroupedSampler.__iter__",
        used_by="checkpoints/loop_state.py",
        why="takes its order from `generator`",
        lines=("generator=self.generator",),
    ),
    PrivatePoint(
        name="torch.utils.data.dataloader:_BaseDataLoaderIter.__init__",
        used_by="checkpoints/loop_state.py",
        why="each iteration draws its workers' seed from the loader's generator, else from the global one",
        lines=(".random_(generator=loader.generator)",),
    ),
    PrivatePoint(
        name="transformers.integrations.integration_utils:TensorBoardCallback",
        used_by="training/trackers.py",
        why="a resumed run writes into the folder of its first session, behind what the checkpoint has",
        lines=(
            "self.tb_writer = self._SummaryWriter(log_dir=self.logging_dir)",
            "self.logging_dir = os.path.join(args.output_dir, default_logdir())",
        ),
    ),
    PrivatePoint(
        name="trl.trainer.sft_trainer:SFTTrainer.__init__",
        used_by="training/trainer_members.py",
        why="_metrics and _total_train_tokens are in memory only: a checkpoint's progress.json keeps them",
        lines=('self._metrics = {"train": defaultdict(list)', "self._total_train_tokens = 0"),
    ),
    PrivatePoint(
        name="huggingface_hub.utils._xet:abort_xet_session",
        used_by="hub/client.py",
        signature="()",
        why="ends an upload's Xet session that would retry for minutes; looked up by getattr, done without if absent",
    ),
    PrivatePoint(
        name="torch.utils._foreach_utils:_get_fused_kernels_supported_devices",
        used_by="plan/trace/upstream_patches.py",
        why="fused optimizers run on meta tensors once it names meta",
        signature="() -> list[str]",
    ),
    PrivatePoint(
        name="torch.utils._foreach_utils:_get_foreach_kernels_supported_devices",
        used_by="plan/trace/upstream_patches.py",
        why="foreach is a card's default; on meta it is chosen once this names meta",
        signature="() -> list[str]",
    ),
    PrivatePoint(
        name="torch.optim.optimizer:_default_to_fused_or_foreach",
        used_by="plan/trace/upstream_patches.py",
        why="reads both lists by their names in its own module",
        signature="(params: list[torch.Tensor], differentiable: bool, use_fused: bool = False) -> tuple[bool, bool]",
        lines=("_get_foreach_kernels_supported_devices()",),
    ),
    PrivatePoint(
        name="torch.autograd.graph:_engine_run_backward",
        used_by="plan/trace/autocast.py",
        why="backward without leaving the function mode, which checkpointing's recomputation needs",
        signature=(
            "(t_outputs: collections.abc.Sequence[torch.Tensor | torch.autograd.graph.GradientEdge], *a"
            "rgs: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]"
        ),
    ),
    PrivatePoint(
        name="torch.utils.checkpoint:_get_autocast_kwargs",
        used_by="plan/trace/autocast.py",
        why="asks the three functions that are replaced, by these names",
        signature="(device_type='cuda')",
        lines=(
            "torch.amp.is_autocast_available(device_type)",
            "torch.is_autocast_enabled(device_type)",
            "torch.get_autocast_dtype(device_type)",
        ),
    ),
    PrivatePoint(
        name="torch.utils._python_dispatch:TorchDispatchMode._should_skip_dynamo",
        used_by="plan/trace/tracker.py",
        why="answers no: the guard that it asks for takes a tenth of a trace",
        signature="() -> 'bool'",
    ),
    PrivatePoint(
        name="torch.utils._python_dispatch:_disable_current_modes",
        used_by="plan/trace/upstream_patches.py",
        why="makes a tensor that the tracker does not see: a paged state (and load.py looks at weights unseen)",
        signature="()",
    ),
    PrivatePoint(
        name="transformers.core_model_loading:convert_and_load_state_dict_in_model",
        used_by="plan/trace/load.py",
        why="weights that are quantised as they are read come one after another, in the order of their names",
        lines=(
            "has_on_the_fly_quantization = hf_quantizer is not None and not hf_quantizer.pre_quantized",
            "sorted(state_dict.items(), key=lambda kv: dot_natural_key(kv[0]))",
        ),
    ),
    PrivatePoint(
        name="transformers.modeling_utils:caching_allocator_warmup",
        used_by="plan/trace/load.py",
        why="takes one block of the model's size before the weights, and gives it back",
        lines=("torch.empty(int(byte_count // 2), dtype=torch.float16",),
    ),
    PrivatePoint(
        name="torch.distributed.fsdp._fully_shard._fsdp_param_group:FSDPParamGroup._validate_no_meta_params",
        used_by="plan/trace/fsdp_rank.py",
        why="a rank is traced on meta weights, which it refuses",
        signature="(self)",
    ),
    PrivatePoint(
        name="torch.distributed.fsdp._fully_shard._fully_shard:_get_device_from_mesh",
        used_by="plan/trace/fsdp_rank.py",
        why="the device on which a rank allocates",
        signature="(mesh: torch.distributed.device_mesh.DeviceMesh) -> torch.device",
    ),
    PrivatePoint(
        name="torch.distributed.device_mesh:_get_device_handle",
        used_by="plan/trace/fsdp_rank.py",
        why="FSDP's streams come from it: plan gives streams that count",
        signature="(device_type: str = 'cuda')",
    ),
    PrivatePoint(
        name="accelerate:Accelerator._prepare_fsdp2",
        used_by="plan/trace/fsdp_rank.py",
        why="it finds the optimizer's weights by their addresses, which meta tensors have not; plan finds them by name",
        signature="(self, *args)",
        lines=(
            "self._prepare_one(obj, first_pass=True)",
            "model = fsdp2_apply_ac(self, model)",
            "model = fsdp2_prepare_model(self, model)",
            "fsdp2_switch_optimizer_parameters(obj, mapping)",
        ),
    ),
    PrivatePoint(
        name="torch.testing._internal.distributed.fake_pg:_create_fake_pg",
        used_by="plan/trace/fsdp_rank.py",
        why="a process group of many ranks in one process, whose collectives send nothing",
        signature="(common_opts, backend_opts)",
    ),
    PrivatePoint(
        name="accelerate.state:AcceleratorState._reset_state",
        used_by="plan/trace/upstream_patches.py",
        why="each trace begins with accelerate's state as in a new process",
        signature="(reset_partial_state: 'bool' = False)",
    ),
    PrivatePoint(
        name="accelerate.state:PartialState",
        used_by="plan/trace/upstream_patches.py",
        why="_shared_state holds the device that accelerate takes: meta here",
        lines=("_shared_state", "self.device"),
    ),
    PrivatePoint(
        name="bitsandbytes.functional:get_paged",
        used_by="plan/trace/upstream_patches.py",
        why="paged optimizer states: managed memory that torch's allocator does not count",
        signature="(*shape, dtype=torch.float32, device=device(type='cuda', index=0))",
    ),
    PrivatePoint(
        name="transformers.masking_utils:fast_all",
        used_by="plan/trace/unknown_values.py",
        why="how it asks whether a mask is full: the answer is given to this comparison",
        signature="(tensor: torch.BoolTensor) -> torch.BoolTensor",
        lines=("tensor.sum() == tensor.numel()",),
    ),
    PrivatePoint(
        name="transformers.quantizers.base:HfQuantizer.preprocess_model",
        used_by="plan/trace/meta_model.py",
        why="upstream picks the layers that become 4 bit",
        signature="(self, model: 'PreTrainedModel', dtype=None, **kwargs)",
    ),
    PrivatePoint(
        name="trl.kernels.chunked_logprob:_use_triton",
        used_by="plan/trace/upstream_patches.py",
        why="the fused head takes a card's path on meta tensors",
        signature="(device: 'torch.device') -> 'bool'",
    ),
    PrivatePoint(
        name="trl.trainer.utils:_use_triton",
        used_by="training/plain_head.py",
        why="whether TRL's fused head has a kernel on this device; the trace of a GPU replaces it",
        signature="(device: 'torch.device') -> 'bool'",
    ),
    PrivatePoint(
        name="trl.kernels.chunked_logprob:_addmm_fp32",
        used_by="plan/trace/upstream_patches.py",
        why="writes into its first argument: nothing is allocated on a card",
        signature="(acc: 'torch.Tensor', a: 'torch.Tensor', b: 'torch.Tensor') -> 'None'",
    ),
    PrivatePoint(
        name="trl.kernels.chunked_logprob:ChunkedLogProbFunction",
        used_by="plan/trace/upstream_patches.py",
        why="the kernels that are not launched, by these names",
        lines=(
            "_forward_kernel[(n,)] if _use_triton(device)",
            "triton.cdiv(end - start, _BLOCK_SIZE)",
            "_addmm_fp32(grad_hidden",
        ),
    ),
    PrivatePoint(
        name="trl.trainer.utils:add_fused_lm_head",
        used_by="plan/trace/upstream_patches.py",
        why="asks _use_triton by its name in its own module",
        signature=(
            "(model: transformers.modeling_utils.PreTrainedModel, temperature: float = 1.0, cast_lm_hea"
            "d_to_fp32: bool = False, outputs: tuple[str, ...] = ('log_probs',)) -> None"
        ),
        lines=("compact = _use_triton(hidden_states.device)",),
    ),
    PrivatePoint(
        name="transformers.integrations.flex_attention:compile_friendly_flex_attention",
        used_by="plan/trace/flex_attention.py",
        why="flex attention's compiled kernel: a stand-in with the same outputs",
        signature="(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, training=False, **kwargs) -> "
        "torch.Tensor | tuple[torch.Tensor, torch.Tensor]",
    ),
    PrivatePoint(
        name="transformers.models.longformer.modeling_longformer:LongformerSelfAttention._get_global_attn_indices",
        used_by="plan/trace/longformer.py",
        why="the mask of global attention: its places are counted here",
        lines=("is_index_global_attn.nonzero(as_tuple=True)",),
    ),
    PrivatePoint(
        name="bitsandbytes.autograd._functions:matmul",
        used_by="plan/trace/upstream_patches.py",
        why="products of 8 bit go by the device: MatMul8bitFp on a CPU, also where the tensors are meta ones",
        lines=("MatMul8bitFp.apply(A, B, out, bias, state)", "MatMul8bitLt.apply(A, B, out, bias, state)"),
    ),
    PrivatePoint(
        name="transformers.modeling_flash_attention_utils:lazy_import_flash_attention",
        used_by="plan/trace/flash_attention.py",
        why="gives the flash package's functions: stand-ins with the same outputs, so that it need not be installed",
        lines=("(_flash_fn, _flash_varlen_fn, _flash_with_kvcache_fn, _pad_fn, _unpad_fn),",),
    ),
    PrivatePoint(
        name="transformers.modeling_flash_attention_utils:_lazy_define_process_function",
        used_by="plan/trace/flash_attention.py",
        why="makes upstream's own arguments for the stand-ins",
        lines=("inspect.signature(flash_function)",),
    ),
    PrivatePoint(
        name="transformers.modeling_flash_attention_utils:_pad_input",
        used_by="plan/trace/flash_attention.py",
        why="upstream's own padding after a flash kernel",
        signature="(hidden_states, indices, batch, seqlen)",
    ),
    PrivatePoint(
        name="transformers.modeling_flash_attention_utils:_unpad_input",
        used_by="plan/trace/flash_attention.py",
        why="upstream's own unpadding before a flash kernel",
        signature="(hidden_states, attention_mask, unused_mask=None)",
    ),
    PrivatePoint(
        name="transformers.modeling_utils:PreTrainedModel._flash_attn_can_dispatch",
        used_by="plan/trace/flash_attention.py",
        why="asks whether the flash package is installed",
        signature="(self, flash_attn_version: int, is_init_check: bool = False) -> bool",
        lines=("does not support Flash Attention",),
    ),
    PrivatePoint(
        name="torch.utils.data.dataloader:_MultiProcessingDataLoaderIter._shutdown_workers",
        used_by="common/worker_signals.py",
        why="persistent workers end with the run; as garbage of a cycle they cost 5 seconds each",
        signature="(self) -> 'None'",
    ),
    PrivatePoint(
        name="torch.utils.data.dataloader:DataLoader",
        used_by="common/worker_signals.py",
        why="_iterator holds the persistent workers",
        lines=("self._iterator = self._get_iterator()",),
    ),
    PrivatePoint(
        name="transformers.utils.chat_template_utils:_compile_jinja_template",
        used_by="data/chat_template.py",
        why="the environment in which templates run: calls are put into a template's loops after it is parsed there",
        signature="(chat_template)",
        until="transformers says which text came from which message without {% generation %}",
    ),
    PrivatePoint(
        name="transformers.trainer:Trainer._prepare_for_training",
        used_by="training/overrides.py",
        why="under DeepSpeed a checkpoint is read here, and not by DeepSpeed, which would run what is in a pickle",
        signature="(self, max_steps, train_dataloader, resume_from_checkpoint)",
        lines=("deepspeed_load_checkpoint(", "self.model_wrapped = model"),
    ),
    PrivatePoint(
        name="transformers.integrations.deepspeed:unset_hf_deepspeed_config",
        used_by="models/build.py",
        why="the global that it clears is put back when the model is built without zero.Init",
        lines=("_hf_deepspeed_config_weak_ref = None",),
    ),
)

# What checkpoints/zero.py knows of DeepSpeed's optimizers; looked at where DeepSpeed is installed.
DEEPSPEED_POINTS: tuple[PrivatePoint, ...] = (
    PrivatePoint(
        name="deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer",
        used_by="checkpoints/zero.py",
        why="ZeRO-2: the fp32 masters of this process, flat, and which parameters they are of",
        lines=(
            "self.bit16_groups.append(",
            "self.single_partition_of_fp32_groups.append(weights_partition)",
            "lazy_init_hp_params_optimizer_state(self.bit16_groups[i], self.single_partition_of_fp32_groups[i],",
        ),
    ),
    PrivatePoint(
        name="deepspeed.utils.tensor_fragment:get_hp_fragment_mapping",
        used_by="checkpoints/zero.py",
        why="ZeRO-2: where a parameter's part begins in them, as param._hp_mapping",
        lines=("lp_fragment_address=lp_frag_address", "hp_fragment_address=hp_frag_address", "param_group_index="),
    ),
    PrivatePoint(
        name="deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3",
        used_by="checkpoints/zero.py",
        why="ZeRO-3: the same, by groups of parameters",
        lines=(
            "group_idx, dest_offset, num_elements = self.grad_position[self.get_param_id(param)]",
            "fp32_param = self.fp32_partitioned_groups_flat[group_idx]",
            "self.sub_group_to_group_id[",
            "self.fp16_groups.append(",
        ),
    ),
)
