"""Exact evaluation for transformers.Trainer and trl.SFTTrainer.

What upstream gives is not the token mean (transformers 5.23: eval_loss is a mean of batch means, and wrong for the last
batch of several processes) and, with compute_metrics, keeps every logit of the evaluation set: 1 GB a row for a
vocabulary of 262k and 1k tokens. Here a causal LM's evaluation keeps two numbers a row, [nll_sum, n_tokens], from
logits that exist for a chunk of tokens only; loss, perplexity and bits per byte (evaluation/compute_metrics.py) are
sums over sums in float64, the same at any batch size and number of processes. Rows come in the data set's order.
Mixture-of-experts' auxiliary losses and label smoothing are training's terms and no part of the evaluated loss.

`ExactEvaluation` needs no Trainer: training/overrides.py calls it, and a test gives it any object with the members of
`EvaluatedTrainer`.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from hf_recipes.evaluation.metrics.functions import IGNORED

logger = logging.getLogger(__name__)

Rows = torch.Tensor  # (B, 2): [sum of negative log-likelihood in nats, predicted tokens]; float64, on MPS float32

LENGTHS = "example_lengths"  # our key in a flattened batch: tokens of each example in it
CHUNK_BYTES = 64 * 2**20  # of float32 logits that exist at one time; four times as many on an accelerator
SHARDED_CHUNKS = 16  # FSDP and ZeRO gather weights at each call: every rank must make the same number of calls
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}  # of the self-check, as a share of the largest logit (tf32!)
TOLERANCE_16_BIT = 2e-2  # also for autocast and quantized weights


def causal_lm(model: nn.Module) -> Any | None:
    """The causal LM in `model` (as is, or in peft's wrapper) whose loss is about the next token; None for others."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    inner: Any = model
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    names = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    known = any(base.__name__ in names for base in type(inner).__mro__)
    return inner if known and (_loss_is_shifted(inner) or _loss_is_unnamed(inner)) else None


def fix_loss_type(model: nn.Module) -> str | None:
    """Give a causal LM whose class name hides its loss (GPT2LMHeadModel) the name of the loss that it uses anyway.

    Without it Trainer 5.23 counts the tokens unshifted, and loss and gradient of GPT-2 come out too small by the share
    of first tokens (0.959 at 24 tokens a row). Upstream's PR #46204 fixed the other classes; this may go when
    `GPT2LMHeadModel(config).loss_type` is no longer None. To be called before the Trainer is built, which reads it.
    Returns the line to print, None where nothing was to be done. Works in place, also inside peft's wrapper.
    """
    inner = causal_lm(model)
    if inner is None or not _loss_is_unnamed(inner):
        return None
    inner.loss_type = "ForCausalLM"
    return (
        f"loss: {type(inner).__name__}.loss_type = ForCausalLM (without it Trainer divides the loss by a wrong number "
        "of tokens: transformers PR #46204)"
    )


def _loss_is_shifted(model: Any) -> bool:
    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

    return LOSS_MAPPING.get(getattr(model, "loss_type", None) or "") is ForCausalLMLoss


def _loss_is_unnamed(model: Any) -> bool:
    """No loss_type, and forward asks for `self.loss_function`, then ForCausalLMLoss (XLM and XLNet have their own)."""
    if getattr(model, "loss_type", "") is not None:
        return False
    forwards = [inspect.unwrap(base.__dict__["forward"]) for base in type(model).__mro__ if "forward" in base.__dict__]
    return any("loss_function" in forward.__code__.co_names for forward in forwards if hasattr(forward, "__code__"))


class EvaluatedTrainer(Protocol):
    """What `ExactEvaluation` reads of a trainer, and the three of its settings that it replaces for a moment."""

    args: Any
    model: Any
    accelerator: Any
    data_collator: Any
    compute_metrics: Any

    @property
    def is_sharded(self) -> bool: ...

    def compute_loss_context_manager(self) -> Any: ...


class ExactEvaluation:
    """For a causal LM with compute_metrics: evaluation data loaders in order, and rows instead of logits.

    `predict` gives (None, rows, tokens), see `Rows`; the loss None leaves eval_loss to compute_metrics
    (`lm_compute_metrics`). Without compute_metrics and for other models it is upstream's. Not for batch_eval_metrics,
    iterable data dispatched to several processes in flattened batches, or DataParallel.
    """

    def __init__(self) -> None:
        self.full_logits_reason: str | None = None  # why chunks are not used; None while they are
        self._chunks_checked = False

    @contextmanager
    def all_rows_in_order(self, trainer: EvaluatedTrainer) -> Iterator[None]:
        """Training's arguments must not reorder or shorten evaluation: upstream applies both of these there, too."""
        args, collator = trainer.args, trainer.data_collator
        strategy, drop_last = args.train_sampling_strategy, args.dataloader_drop_last
        args.train_sampling_strategy, args.dataloader_drop_last = "sequential", False
        if causal_lm(trainer.accelerator.unwrap_model(trainer.model)) is not None:
            trainer.data_collator = WithLengths(inner=collator)
        try:
            yield
        finally:
            args.train_sampling_strategy, args.dataloader_drop_last = strategy, drop_last
            trainer.data_collator = collator

    def predict(
        self, trainer: EvaluatedTrainer, upstream: Callable[[nn.Module, Any], Any], model: nn.Module, inputs: Any
    ) -> tuple[torch.Tensor | None, Any, Any]:
        """`upstream`: its prediction_step of (model, inputs)."""
        inner = causal_lm(trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False))
        inputs = dict(inputs)
        lengths = inputs.pop(LENGTHS, None)
        if inner is None or trainer.compute_metrics is None or inputs.get("labels") is None:
            found: tuple[torch.Tensor | None, Any, Any] = upstream(model, inputs)
            return found
        from accelerate.utils import send_to_device

        inputs = send_to_device(inputs, trainer.args.device)
        labels = _predictable(inputs.pop("labels"), inputs)
        # Replacing forward would make torch.compile start again at each batch; the plain module gives the same numbers.
        model = getattr(model, "_orig_mod", model)
        with torch.no_grad(), trainer.compute_loss_context_manager():
            if self.full_logits_reason is None:
                try:
                    rows = self._rows_by_chunks(trainer, model, inner, inputs, labels, lengths)
                except ChunkingError as reason:
                    self.full_logits_reason = str(reason)
                    logger.warning("evaluation keeps the logits of a whole row at a time: %s", reason)
            if self.full_logits_reason is not None:
                rows = _rows_by_full_logits(model, inner, inputs, labels, lengths, at_once=trainer.is_sharded)
        return None, rows, rows[:, 1].long()

    def _rows_by_chunks(
        self,
        trainer: EvaluatedTrainer,
        model: nn.Module,
        inner: Any,
        inputs: dict[str, Any],
        labels: torch.Tensor,
        lengths: Any,
    ) -> Rows:
        """One forward of the decoder, then the model's own head on a chunk of tokens at a time.

        The work is done inside the model's forward, so that DDP, FSDP and ZeRO around it have their weights in place.
        """
        decoder = inner.get_decoder() if hasattr(inner, "get_decoder") else inner
        parameters = inspect.signature(type(inner).forward).parameters
        if decoder is None or decoder is inner or "logits_to_keep" not in parameters:
            raise ChunkingError(f"{type(inner).__name__} has no decoder apart from its head, or no logits_to_keep")
        checked = self._chunks_checked
        forward = inner.forward

        def rows_instead_of_logits(*args: Any, **kwargs: Any) -> Rows:
            outputs: list[Any] = []
            hook = decoder.register_forward_hook(lambda module, given, output: outputs.append(output))
            try:
                last = forward(*args, **kwargs, logits_to_keep=1)
            finally:
                hook.remove()
            if not outputs or not torch.is_tensor(outputs[-1][0]) or outputs[-1][0].dim() != 3:
                raise ChunkingError(f"{type(decoder).__name__} gives no last hidden state")
            hidden = outputs[-1][0][:, -labels.shape[1] :]  # behind the virtual tokens of prompt learning, if any

            labelled = labels.to(hidden.device)

            def head(tokens: torch.Tensor) -> torch.Tensor:  # (n, H) -> (n, V), scaled and capped as the model does it
                with _replaced_forward(decoder, lambda *_, **__: _with_hidden(outputs[-1], tokens[None])):
                    dummy = torch.zeros(1, len(tokens), dtype=torch.long, device=tokens.device)
                    return _logits(forward(input_ids=dummy, **_accepted(parameters, return_dict=True)))[0]

            if not checked:
                _compare_logits(trainer, head, hidden[:, -1], _logits(last)[:, -1])
            pieces = SHARDED_CHUNKS if trainer.is_sharded else 0
            return _rows(hidden, labelled, head, lengths, pieces=pieces, vocabulary=_logits(last).shape[-1])

        with _replaced_forward(inner, rows_instead_of_logits):
            rows = model(**inputs, **_accepted(parameters, use_cache=False, return_dict=True))
        self._chunks_checked = True
        return rows


def _compare_logits(
    trainer: EvaluatedTrainer,
    head: Callable[[torch.Tensor], torch.Tensor],
    last: torch.Tensor,
    theirs: torch.Tensor,
) -> None:
    """On the first batch: the chunked logits of each row's last position are the model's own."""
    try:
        ours = head(last)
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise ChunkingError(f"the head cannot be called alone ({error})") from error
    weights = {weight.dtype for weight in trainer.model.parameters()}
    plain = trainer.accelerator.mixed_precision == "no" and len(weights) == 1
    share = TOLERANCE.get(weights.pop(), TOLERANCE_16_BIT) if plain else TOLERANCE_16_BIT
    allowed = share * max(1.0, theirs.abs().max().item())
    if ours.shape != theirs.shape or not torch.allclose(
        ours.double(), theirs.double(), rtol=0, atol=allowed, equal_nan=True
    ):
        raise ChunkingError("logits in chunks differ from the model's own")


def _rows_by_full_logits(
    model: nn.Module, inner: Any, inputs: dict[str, Any], labels: torch.Tensor, lengths: Any, *, at_once: bool
) -> Rows:
    """`at_once`: the whole batch in one forward; else a row at a time."""
    parameters = inspect.signature(type(inner).forward).parameters
    size = len(labels) if at_once else 1
    rows = []
    for start in range(0, len(labels), size):
        part = {
            name: value[start : start + size] if _is_batched(value, labels) else value for name, value in inputs.items()
        }
        output = model(**part, **_accepted(parameters, use_cache=False, return_dict=True))
        logits = _logits(output)[:, -labels.shape[1] :]
        rows.append(_rows(logits, labels[start : start + size].to(logits.device), lambda tokens: tokens, lengths))
    return torch.cat(rows)


class ChunkingError(Exception):
    """This model's head cannot be applied to chunks; the message says why."""


@dataclass(frozen=True, kw_only=True)
class WithLengths:
    """A collator that adds the length of each example, where `inner` flattens a batch into one row (padding_free).

    Without it a last batch that several processes fill up with repeated rows would count those twice.
    """

    inner: Callable[[list[Any]], Any]

    def __call__(self, examples: list[Any]) -> Any:
        batch = self.inner(examples)
        ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
        if torch.is_tensor(ids) and ids.shape[0] == 1 < len(examples):
            lengths = [len(example["input_ids"]) for example in examples]
            if ids.shape[1] >= sum(lengths):
                return {**batch, LENGTHS: torch.tensor(lengths)}
        return batch


def _predictable(labels: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
    """(B, S) labels with -100 for what follows padding or another document; upstream's loss counts the former in."""
    labels = labels.clone()
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    if torch.is_tensor(mask) and mask.shape == labels.shape:
        labels[:, 1:][mask[:, :-1] == 0] = IGNORED
    if torch.is_tensor(positions) and positions.shape == labels.shape:
        labels[positions == 0] = IGNORED
    return labels


def _rows(
    states: torch.Tensor,  # (B, S, H) hidden states, or logits with a head that passes them on
    labels: torch.Tensor,  # (B, S), -100 is not predicted
    head: Callable[[torch.Tensor], torch.Tensor],
    lengths: torch.Tensor | None,  # (examples,) if the batch is one flattened row
    *,
    pieces: int = 0,
    vocabulary: int = 0,
) -> Rows:
    exact = torch.float32 if states.device.type == "mps" else torch.float64  # MPS has no float64
    nll = torch.zeros(labels.shape, dtype=exact, device=states.device)  # at the position of the predicted token
    predicted = torch.zeros_like(labels, dtype=torch.bool)
    predicted[:, 1:] = labels[:, 1:] != IGNORED
    if lengths is not None:  # the first token of an example follows another example's last: nothing predicts it
        predicted[0, lengths.cumsum(0).to(labels.device)[:-1]] = False
    tokens, targets = states[:, :-1][predicted[:, 1:]], labels[predicted]
    count = len(tokens)
    if pieces:
        tokens = torch.cat([tokens, tokens.new_zeros(max(0, pieces - count), tokens.shape[-1])])
        targets = torch.cat([targets, targets.new_zeros(max(0, pieces - count))])
    budget = CHUNK_BYTES * (1 if states.device.type == "cpu" else 4)
    pieces = pieces or -(-count * 4 * (vocabulary or states.shape[-1]) // budget) or 1
    if count or len(tokens):
        parts = [
            nn.functional.cross_entropy(head(part).float(), wanted, reduction="none").to(exact)
            for part, wanted in zip(tokens.tensor_split(pieces), targets.tensor_split(pieces), strict=True)
            if len(part)
        ]
        nll[predicted] = torch.cat(parts)[:count]
    grid = torch.stack([nll, predicted.to(exact)], dim=-1)  # (B, S, 2)
    if lengths is None:
        return grid.sum(dim=1)
    return torch.stack([part.sum(dim=0) for part in grid[0, : int(lengths.sum())].split(lengths.tolist())])


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """accelerate, peft and TRL also put a forward on the instance; theirs comes back afterwards."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def _with_hidden(output: Any, hidden: torch.Tensor) -> Any:
    return (hidden,) + tuple(output[1:]) if isinstance(output, tuple) else type(output)(last_hidden_state=hidden)


def _is_batched(value: Any, labels: torch.Tensor) -> bool:
    return torch.is_tensor(value) and value.shape[:1] == labels.shape[:1]


def _logits(output: Any) -> torch.Tensor:
    logits: torch.Tensor = output["logits"] if isinstance(output, Mapping) else output[0]
    return logits


def _accepted(parameters: Mapping[str, inspect.Parameter], **wanted: bool) -> dict[str, bool]:
    """Those of `wanted` that forward takes. (A cache costs memory and lets packed documents see each other.)"""
    anything = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    return {name: value for name, value in wanted.items() if anything or name in parameters}
