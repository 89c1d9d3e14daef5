"""Small real models, rows and trainers for the tests of models/half_precision.py and training/master_weights.py."""

import hashlib
import json
import math
import os
from pathlib import Path

import torch
import transformers
from datasets import Dataset
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from hf_recipes.training.master_weights import LossScaling, MasterWeightsStep, prepare_model
from hf_recipes.training.overrides import trainer_class
from hf_recipes.training.trainer_members import TrainerParts

VOCABULARY, LENGTH = 96, 16


def master_trainer(base=Trainer, scaling=None, **words):
    """A trainer with master weights; `words` are the trainer's."""
    return trainer_class(base)(parts=TrainerParts(masters=MasterWeightsStep(scaling)), **words)


def gpt2(dropout=0.0):
    drop = {"attn_pdrop": dropout, "embd_pdrop": dropout, "resid_pdrop": dropout}
    config = GPT2Config(n_layer=2, n_embd=64, n_head=2, vocab_size=VOCABULARY, n_positions=LENGTH, **drop)
    config.bos_token_id = config.eos_token_id = 0
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # else Trainer 5.23 counts one label a row too many
    return model


def llama(dropout=0.0):
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, vocab_size=VOCABULARY, attention_dropout=dropout, tie_word_embeddings=False)
    return LlamaForCausalLM(config)


def bert(dropout=0.0):
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2}
    drop = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return BertForSequenceClassification(
        BertConfig(**sizes, **drop, vocab_size=VOCABULARY, max_position_embeddings=LENGTH)
    )


MODELS = {"gpt2": gpt2, "llama": llama, "bert": bert}


def rows(count, *, classes=False):
    """Rows with something to learn: each token is the one before plus a step; the class says which step."""
    made = []
    for number in range(count):
        step = 1 + number % 2
        ids = [(7 * number + step * position) % VOCABULARY for position in range(LENGTH)]
        made.append({"input_ids": ids, "labels": number % 2 if classes else ids})
    return Dataset.from_list(made)


def arguments(folder, **words):
    words = {"max_steps": 40, "per_device_train_batch_size": 4, "learning_rate": 2e-3, "warmup_steps": 5} | words
    words = {"logging_steps": 1, "save_strategy": "no", "optim": "adamw_torch_fused"} | words
    fixed = {"logging_nan_inf_filter": False, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    return TrainingArguments(output_dir=str(folder), **fixed, **words)


def train(
    name, folder, *, master=True, sft=False, scaling=None, dropout=0.0, resume=None, callbacks=(), data=None, **words
):
    """Trains one of MODELS from seed 0; returns the trainer. `words` are TrainingArguments'."""
    set_seed(0)
    model = MODELS[name](dropout)
    data = rows(64, classes=name == "bert") if data is None else data
    args = arguments(folder, **words)
    base, extra = Trainer, {}
    if sft:
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel
        from trl import SFTConfig, SFTTrainer

        base = SFTTrainer
        config = {"max_length": LENGTH, "dataset_kwargs": {"skip_prepare_dataset": True}, "bf16": False}
        kept = ("output_dir", "max_steps", "per_device_train_batch_size", "learning_rate", "warmup_steps", "optim")
        kept += ("logging_steps", "save_strategy", "logging_nan_inf_filter", "use_cpu", "report_to", "disable_tqdm")
        config |= {word: getattr(args, word) for word in kept} | {"activation_checkpointing": False}
        args = SFTConfig(**config)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel({chr(48 + n): n for n in range(VOCABULARY)}, unk_token="0"))
        )
        tokenizer.pad_token = tokenizer.eos_token = "0"
        extra = {"processing_class": tokenizer}
    if master:
        model = prepare_model(model)
        extra |= {"base": base, "scaling": scaling}
        base = master_trainer
    trainer = base(model=model, args=args, train_dataset=data, callbacks=list(callbacks), **extra)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def logged(trainer, word="loss"):
    return [entry[word] for entry in trainer.state.log_history if "loss" in entry]


def sha256(model):
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Count(TrainerCallback):
    """Counts bytes where all of a step's tensors live: before the update, in the second step."""

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        masters = kwargs["optimizer"].optimizer
        params = list(kwargs["model"].parameters())
        states = {
            t.data_ptr(): t for p in masters.state for t in masters.state[p].values() if isinstance(t, torch.Tensor)
        }
        self.count = {
            "weights": sum(p.nbytes for p in params),
            "gradients of the model": sum(p.grad.nbytes for p in params if p.grad is not None),
            "gradients of the masters": sum(m.grad.nbytes for _, m in masters.pairs),
            "masters": sum(m.nbytes for _, m in masters.pairs),
            "states": sum(t.nbytes for t in states.values()),
        }


class Watch(TrainerCallback):
    """What a step may change: weights, masters, optimizer state, learning rate; taken before and after each update."""

    def __init__(self):
        self.steps = []

    @staticmethod
    def look(model, optimizer, scheduler):
        masters = optimizer.optimizer
        states = [value for _, m in masters.pairs for value in masters.state.get(m, {}).values()]
        tensors = [p.detach().clone() for p in model.parameters()] + [m.detach().clone() for _, m in masters.pairs]
        tensors += [value.clone() if isinstance(value, torch.Tensor) else torch.tensor(value) for value in states]
        return tensors, scheduler.get_last_lr()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.before = self.look(kwargs["model"], kwargs["optimizer"], kwargs["lr_scheduler"])

    def on_step_end(self, args, state, control, **kwargs):
        tensors, rate = self.look(kwargs["model"], kwargs["optimizer"], kwargs["lr_scheduler"])
        same = len(tensors) == len(self.before[0]) and all(map(torch.equal, tensors, self.before[0]))
        self.steps.append("untouched" if same and rate == self.before[1] else "moved")


def ddp_rank(folder):
    """One rank of two (or the only process, with twice the batch): trains, writes its losses, norms and weights' hash.

    At step 3 only the last rank's loss is poisoned: every rank must skip.
    """
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    set_seed(rank)  # ranks begin with other weights: DDP sends rank 0's, and the masters must follow
    model = prepare_model(gpt2())
    words = {"max_steps": 8, "per_device_train_batch_size": 8 // world, "train_sampling_strategy": "sequential"}
    scaling = LossScaling(initial=2.0**10)
    trainer = master_trainer(scaling=scaling, model=model, args=arguments(folder, **words), train_dataset=rows(64))
    assert trainer.args.world_size == world
    compute = trainer.compute_loss

    def compute_loss(*args, **kwargs):
        loss = compute(*args, **kwargs)
        return loss * math.inf if trainer.state.global_step == 3 and rank == world - 1 else loss

    trainer.compute_loss = compute_loss
    trainer.train()
    masters = trainer.parts.masters.optimizer
    words = ("loss", "grad_norm", "loss_scale", "skipped_steps")
    seen = {word: [str(value) for value in logged(trainer, word)] for word in words}
    seen |= {"weights": sha256(trainer.model), "skipped": masters.skipped_steps, "scale": masters.scale}
    seen["masters"] = sha256(nn.ParameterList([master for _, master in masters.pairs]))
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(seen))
