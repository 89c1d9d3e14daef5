"""Evaluation is exact: the same loss at any batch size, trainer and number of processes, and no logits pile up."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models

from hf_recipes.errors import RecipeError
from hf_recipes.evaluation.compute_metrics import (
    RecordingMetrics,
    classification_compute_metrics,
    keep_logits,
    lm_compute_metrics,
    tags_and_rows,
    token_compute_metrics,
)
from hf_recipes.evaluation.exact import SHARDED_CHUNKS, _rows, causal_lm, fix_loss_type
from hf_recipes.training.overrides import trainer_class
from tests.support.forks import run_ranks

VOCABULARY = 61
ROWS = 33  # odd, and no multiple of 7 or 32: every last batch is incomplete
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
HEADS = {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": (
        "gpt2",
        {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 1},
    ),
    "llama": ("llama", {**SHAPE, **HEADS}),
    "gemma2": ("gemma2", {**SHAPE, **HEADS, "final_logit_softcapping": 0.5}),
    "gemma3": ("gemma3_text", {**SHAPE, **HEADS, "final_logit_softcapping": 0.5}),
    "cohere": ("cohere", {**SHAPE, **HEADS, "logit_scale": 0.1, "head_dim": 8}),
    "granite": ("granite", {**SHAPE, **HEADS, "logits_scaling": 8.0}),
    "opt": (
        "opt",
        {"vocab_size": VOCABULARY, "hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"word_embed_proj_dim": 8, "max_position_embeddings": 64},
    ),
    "phi": ("phi", {**SHAPE, "num_attention_heads": 2, "pad_token_id": 0}),  # its head has a bias
}


TRAINERS = {
    "Trainer": (trainer_class(transformers.Trainer), transformers.TrainingArguments),
    "SFTTrainer": (trainer_class(trl.SFTTrainer), trl.SFTConfig),
}


def language_model(name: str) -> Any:
    torch.manual_seed(0)
    model_type, words = CONFIGS[name.removesuffix("+lora")]
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(model_type, **words))
    for weight in model.parameters():  # far from uniform, so that a lost cap, scale or bias would show
        torch.nn.init.normal_(weight, std=0.3)
    fix_loss_type(model)
    if name.endswith("+lora"):
        model = get_peft_model(
            model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
        )
    return model.eval()


def documents() -> Dataset:
    rng = np.random.default_rng(0)
    ids = [rng.integers(3, VOCABULARY, size=rng.integers(2, 24)).tolist() for _ in range(ROWS)]
    labels = [[-100 if rng.random() < 0.3 else token for token in row] for row in ids]
    labels[5] = [-100] * len(ids[5])  # a row without anything to predict
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
    )


def build(kind: str, model: Any, folder: str, data: Any = None, **words: Any) -> Any:
    exact_trainer, arguments_class = TRAINERS[kind]
    words = {"per_device_eval_batch_size": 7, "use_cpu": True, "bf16": False, "report_to": "none"} | words
    if kind == "SFTTrainer":
        words = {"activation_checkpointing": False, "max_length": None, "gradient_checkpointing": False} | words
    data = documents() if data is None else data
    return exact_trainer(
        model=model,
        args=arguments_class(output_dir=folder, **words),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer(),
        data_collator=None if kind == "SFTTrainer" else transformers.DataCollatorForSeq2Seq(tokenizer()),
        compute_metrics=RecordingMetrics(compute=lm_compute_metrics(total_bytes=1000)),
    )


def direct(model: Any, data: Dataset) -> np.ndarray:
    """(N, 2) rows from the full logits of one unpadded row at a time, in float64."""
    rows = []
    for ids, labels in zip(data["input_ids"], data["labels"], strict=True):
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
        wanted = torch.tensor(labels[1:])
        kept = wanted != -100
        rows.append([-scores[kept, wanted[kept]].sum().item(), kept.sum().item()])
    return np.array(rows)


def close(found: float, wanted: float) -> bool:
    return math.isclose(found, wanted, rel_tol=1e-6)


def check(metrics: dict[str, float], rows: Any, wanted: np.ndarray) -> None:
    nll, tokens = wanted.sum(axis=0)
    assert close(metrics["eval_loss"], nll / tokens)
    assert close(metrics["eval_perplexity"], math.exp(nll / tokens))
    assert close(metrics["eval_bits_per_byte"], nll / math.log(2) / 1000)
    np.testing.assert_allclose(np.asarray(rows), wanted, rtol=1e-5, atol=1e-6)  # each row in its place


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("size", [1, 7, 32])
def test_perplexity_is_the_same_at_every_batch_size_in_both_trainers(kind: str, size: int, tmp_path: Path) -> None:
    model = language_model("llama")
    trainer = build(kind, model, str(tmp_path), per_device_eval_batch_size=size)
    check(trainer.evaluate(), trainer.compute_metrics.last.predictions, direct(model, documents()))


@pytest.mark.parametrize("name", [*CONFIGS, "llama+lora"])
def test_every_head_is_applied_as_the_model_applies_it(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_recipes.evaluation.exact.CHUNK_BYTES", 10 * VOCABULARY * 4)  # ten tokens at a time
    model = language_model(name)
    wanted = direct(model, documents())
    trainer = build("Trainer", model, str(tmp_path))
    check(trainer.evaluate(), trainer.compute_metrics.last.predictions, wanted)
    assert not [record for record in caplog.records if record.name == "hf_recipes.evaluation.exact"]  # no fall back
    assert "forward" not in causal_lm(model).get_decoder().__dict__  # everything is put back


@pytest.mark.parametrize("words", [{"padding_free": True}, {"packing": True, "max_length": 32}])
def test_perplexity_of_packed_documents_is_that_of_the_documents(words: dict[str, Any], tmp_path: Path) -> None:
    model = language_model("llama")
    nll, tokens = direct(model, documents()).sum(axis=0)
    trainer = build("SFTTrainer", model, str(tmp_path), **words)
    found = trainer.evaluate()
    rows = trainer.compute_metrics.last.predictions
    assert rows[:, 1].sum() == tokens
    assert close(found["eval_loss"], nll / tokens)
    assert len(rows) == len(trainer.eval_dataset) == (ROWS if "padding_free" in words else len(rows))
    if "padding_free" in words:
        check(found, rows, direct(model, documents()))


def test_neither_length_grouping_nor_drop_last_of_training_touches_evaluation(tmp_path: Path) -> None:
    model = language_model("llama")
    words = {"train_sampling_strategy": "group_by_length", "dataloader_drop_last": True}
    trainer = build("Trainer", model, str(tmp_path), **words)
    check(trainer.evaluate(), trainer.compute_metrics.last.predictions, direct(model, documents()))
    found = trainer.predict(documents(), metric_key_prefix="eval")
    check(found.metrics, found.predictions, direct(model, documents()))
    assert (trainer.args.train_sampling_strategy, trainer.args.dataloader_drop_last) == tuple(words.values())


def test_left_padding_is_left_out(tmp_path: Path) -> None:
    model = language_model("llama")
    trainer = build("Trainer", model, str(tmp_path))
    trainer.data_collator.tokenizer.padding_side = "left"
    check(trainer.evaluate(), trainer.compute_metrics.last.predictions, direct(model, documents()))


def test_autocast_is_the_recipes_and_changes_the_loss_only_by_its_rounding(tmp_path: Path) -> None:
    model = language_model("llama")
    nll, tokens = direct(model, documents()).sum(axis=0)
    trainer = build("Trainer", model, str(tmp_path), bf16=True)
    loss = trainer.evaluate()["eval_loss"]
    assert trainer.parts.evaluation.full_logits_reason is None
    assert 1e-7 < abs(loss - nll / tokens) / loss < 2e-2


def test_a_mixture_of_experts_is_evaluated_without_its_auxiliary_loss(tmp_path: Path) -> None:
    torch.manual_seed(0)
    words = {**SHAPE, **HEADS, "num_local_experts": 2, "num_experts_per_tok": 1, "output_router_logits": True}
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model("mixtral", **words)).eval()
    trainer = build("Trainer", model, str(tmp_path))
    check(trainer.evaluate(), trainer.compute_metrics.last.predictions, direct(model, documents()))


class WithoutLogitsToKeep(transformers.LlamaForCausalLM):
    def forward(self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None) -> Any:
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, labels=labels)


class HeadThatSeesTheInput(transformers.LlamaForCausalLM):
    def forward(self, input_ids: Any = None, labels: Any = None, logits_to_keep: int = 0, **words: Any) -> Any:
        output = super().forward(input_ids=input_ids, labels=labels, logits_to_keep=logits_to_keep, **words)
        output.logits = output.logits * (1 + input_ids[:, -output.logits.shape[1] :, None])
        return output


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (WithoutLogitsToKeep, "WithoutLogitsToKeep has no decoder apart from its head, or no logits_to_keep"),
        (HeadThatSeesTheInput, "logits in chunks differ from the model's own"),
    ],
)
def test_a_model_whose_head_cannot_be_chunked_is_still_exact_and_reports_it_once(
    kind: Any, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    model = kind(transformers.LlamaConfig(**SHAPE, **HEADS)).eval()
    trainer = build("Trainer", model, str(tmp_path))
    with caplog.at_level(logging.WARNING, logger="hf_recipes.evaluation.exact"):
        trainer.evaluate()
        check(trainer.evaluate(), trainer.compute_metrics.last.predictions, direct(model, documents()))
    said = [record.getMessage() for record in caplog.records if record.name == "hf_recipes.evaluation.exact"]
    assert said == [f"evaluation keeps the logits of a whole row at a time: {reason}"]


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if torch.is_tensor(made):
            self.elements = max(self.elements, made.numel())
        return made


def test_no_tensor_of_all_logits_is_ever_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary, tokens_at_a_time = 2048, 16
    monkeypatch.setattr("hf_recipes.evaluation.exact.CHUNK_BYTES", tokens_at_a_time * vocabulary * 4)
    config = transformers.LlamaConfig(**{**SHAPE, **HEADS, "hidden_size": 8, "vocab_size": vocabulary})
    trainer = build("Trainer", transformers.LlamaForCausalLM(config), str(tmp_path), per_device_eval_batch_size=8)
    trainer.evaluate()  # the optimizer's and the accelerator's own tensors
    with LargestTensor() as largest:
        trainer.evaluate()
    assert tokens_at_a_time // 2 < largest.elements / vocabulary <= tokens_at_a_time < 8 * 23


@pytest.mark.parametrize("predicted", [0, 5, 40])
def test_every_rank_of_a_sharded_model_calls_the_head_equally_often(predicted: int) -> None:
    """FSDP and ZeRO gather weights at each call: a rank with fewer tokens would leave the others waiting."""
    torch.manual_seed(0)
    states, labels = torch.randn(2, 30, 8), torch.full((2, 30), -100)
    for place in range(predicted):
        labels[place % 2, 1 + place // 2] = place % VOCABULARY
    weight, calls = torch.randn(VOCABULARY, 8), []

    def head(tokens: torch.Tensor) -> torch.Tensor:
        calls.append(len(tokens))
        return tokens @ weight.T

    sharded = _rows(states, labels, head, None, pieces=SHARDED_CHUNKS, vocabulary=VOCABULARY)
    assert len(calls) == SHARDED_CHUNKS
    torch.testing.assert_close(sharded, _rows(states, labels, head, None, vocabulary=VOCABULARY), rtol=1e-6, atol=0)
    assert sharded[:, 1].sum() == predicted


def first_training_loss(fixed: bool, folder: Path) -> tuple[float, float]:
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**CONFIGS["gpt2"][1], embd_pdrop=0, attn_pdrop=0, resid_pdrop=0)
    )
    data = Dataset.from_dict({"input_ids": [list(range(3, 27))] * 4, "labels": [list(range(3, 27))] * 4})
    nll, tokens = direct(model.eval(), data).sum(axis=0)
    if fixed:
        assert fix_loss_type(model) == (
            "loss: GPT2LMHeadModel.loss_type = ForCausalLM (without it Trainer divides the loss by a wrong number of "
            "tokens: transformers PR #46204)"
        )
    words = {"max_steps": 1, "logging_steps": 1, "per_device_train_batch_size": 4}
    trainer = build("Trainer", model, str(folder), data, **words)
    trainer.train()
    return trainer.state.log_history[0]["loss"], nll / tokens


def test_gpt2_is_trained_on_its_true_loss_transformers_pr_46204(tmp_path: Path) -> None:
    found, true = first_training_loss(True, tmp_path)
    assert math.isclose(found, true, rel_tol=1e-5)


def test_the_workaround_for_gpt2s_loss_is_still_needed_transformers_pr_46204(tmp_path: Path) -> None:
    found, true = first_training_loss(False, tmp_path)
    assert math.isclose(found / true, 23 / 24, rel_tol=1e-4)  # equal? then fix_loss_type may go


def test_gpt2_is_evaluated_exactly_with_and_without_its_loss_type(tmp_path: Path) -> None:
    model = language_model("gpt2")
    wanted = direct(model, documents())
    for loss_type in ("ForCausalLM", None):
        model.loss_type = loss_type
        trainer = build("Trainer", model, str(tmp_path))
        check(trainer.evaluate(), trainer.compute_metrics.last.predictions, wanted)


def test_only_causal_models_without_a_loss_type_get_one() -> None:
    assert fix_loss_type(language_model("llama")) is None
    words = {
        "vocab_size": 20,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
    }
    assert fix_loss_type(transformers.BertForSequenceClassification(transformers.BertConfig(**words))) is None
    xlm = transformers.XLMWithLMHeadModel(transformers.XLMConfig(vocab_size=20, emb_dim=8, n_layers=1, n_heads=1))
    assert fix_loss_type(xlm) is None and xlm.loss_type is None and causal_lm(xlm) is None  # its labels are not shifted
    gpt2 = language_model("gpt2")
    gpt2.loss_type = None
    wrapped = get_peft_model(gpt2, LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True))
    assert fix_loss_type(wrapped) is not None and gpt2.loss_type == "ForCausalLM" and fix_loss_type(wrapped) is None


# --- classification --------------------------------------------------------------------------------------------------

NAMES = ("O", "B-NAME", "I-NAME", "B-PLACE", "I-PLACE")


def classifier(kind: str) -> Any:
    torch.manual_seed(0)
    words = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=VOCABULARY, num_labels=len(NAMES), **words)
    auto = {"text": transformers.BertForSequenceClassification, "token": transformers.BertForTokenClassification}
    model = auto[kind](config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


def labelled(kind: str) -> Dataset:
    rng, ids = np.random.default_rng(1), documents()["input_ids"]
    if kind == "text":
        return Dataset.from_dict({"input_ids": ids, "label": rng.integers(0, 3, size=ROWS).tolist()})  # 3, 4 are absent
    tags = [[int(rng.choice([-100, 0, 1, 2, 3])) for _ in row] for row in ids]
    return Dataset.from_dict({"input_ids": ids, "labels": tags})


def build_classifier(kind: str, folder: str, **words: Any) -> Any:
    collators = {
        "text": transformers.DataCollatorWithPadding(tokenizer()),
        "token": transformers.DataCollatorForTokenClassification(tokenizer()),
    }
    make = {
        "text": classification_compute_metrics(["f1", "accuracy"], NAMES),
        "token": token_compute_metrics(["span_f1", "accuracy"], NAMES),
    }
    return trainer_class(transformers.Trainer)(
        model=classifier(kind),
        args=transformers.TrainingArguments(output_dir=folder, use_cpu=True, report_to="none", **words),
        eval_dataset=labelled(kind),
        data_collator=collators[kind],
        compute_metrics=RecordingMetrics(compute=make[kind]),
        preprocess_logits_for_metrics={"text": keep_logits, "token": tags_and_rows}[kind],
    )


def direct_classification(kind: str) -> tuple[float, list[Any], list[Any]]:
    """Mean loss, predictions and references of one unpadded row at a time."""
    model, losses, predicted, gold = classifier(kind), [], [], []
    for row in labelled(kind):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits.reshape(-1, len(NAMES)).double()
        labels = torch.tensor([row["label"]] if kind == "text" else row["labels"])
        kept = labels != -100
        losses += torch.nn.functional.cross_entropy(logits[kept], labels[kept], reduction="none").tolist()
        predicted.append(logits[kept].argmax(-1).tolist())
        gold.append(labels[kept].tolist())
    return float(np.mean(losses)), predicted, gold


def check_classification(kind: str, metrics: dict[str, float]) -> None:
    from seqeval.metrics import f1_score as span_f1
    from sklearn.metrics import f1_score

    loss, predicted, gold = direct_classification(kind)
    assert close(metrics["eval_loss"], loss)
    flat_predicted, flat_gold = np.concatenate(predicted), np.concatenate(gold)
    assert close(metrics["eval_accuracy"], float(np.mean(flat_predicted == flat_gold)))
    if kind == "text":
        assert close(metrics["eval_f1"], f1_score(flat_gold, flat_predicted, average="macro", zero_division=0))
        assert close(metrics["eval_f1_micro"], f1_score(flat_gold, flat_predicted, average="micro"))
    else:
        names = [[[NAMES[tag] for tag in row] for row in rows] for rows in (gold, predicted)]
        assert close(metrics["eval_span_f1"], span_f1(*names))


@pytest.mark.parametrize("kind", ["text", "token"])
@pytest.mark.parametrize("size", [1, 7, 32])
def test_classification_is_exact_at_every_batch_size(kind: str, size: int, tmp_path: Path) -> None:
    trainer = build_classifier(kind, str(tmp_path), per_device_eval_batch_size=size)
    check_classification(kind, trainer.evaluate())


def test_token_classification_keeps_tags_and_not_logits(tmp_path: Path) -> None:
    trainer = build_classifier("token", str(tmp_path))
    trainer.evaluate()
    tags, rows = trainer.compute_metrics.last.predictions
    longest = max(map(len, documents()["input_ids"]))
    assert (tags.shape, tags.dtype, rows.shape) == ((ROWS, longest), np.int64, (ROWS, 2))


def test_a_label_outside_the_models_is_refused_with_its_number() -> None:
    compute = classification_compute_metrics(["f1"], NAMES)
    with pytest.raises(RecipeError) as refused:
        compute(transformers.EvalPrediction(predictions=np.zeros((2, 5)), label_ids=np.array([0, 7])))
    assert str(refused.value) == "evaluation: labels range from 0 to 7, the model has 0 to 4"
    with pytest.raises(RecipeError) as refused:
        compute(transformers.EvalPrediction(predictions=np.zeros((2, 3)), label_ids=np.array([0, 1])))
    assert str(refused.value) == "evaluation: the model has 3 labels, the recipe's data 5"


def test_a_model_that_does_not_predict_the_next_token_is_refused() -> None:
    with pytest.raises(RecipeError) as refused:
        lm_compute_metrics()(transformers.EvalPrediction(predictions=np.zeros((2, 3, 4)), label_ids=np.zeros((2, 3))))
    wanted = "evaluation: the model returns no [nll_sum, n_tokens] rows; is it a causal language model?"
    assert str(refused.value) == wanted


def test_a_data_set_with_nothing_to_predict_is_refused(tmp_path: Path) -> None:
    data = Dataset.from_dict({"input_ids": [[3, 4, 5]], "labels": [[-100, -100, -100]]})
    trainer = build("Trainer", language_model("llama"), str(tmp_path), data)
    with pytest.raises(RecipeError) as refused:
        trainer.evaluate()
    assert (
        str(refused.value) == "metric perplexity: no token is left to score; is the split empty, or every label -100?"
    )


# --- two processes ---------------------------------------------------------------------------------------------------


def cases() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> trainer and its words; sizes leave a last batch that the ranks fill up with repeated rows."""
    found = {f"{kind} {size}": (kind, {"per_device_eval_batch_size": size}) for kind in TRAINERS for size in (1, 7, 32)}
    found["grouped"] = ("Trainer", {"train_sampling_strategy": "group_by_length"})
    found["padding-free"] = ("SFTTrainer", {"padding_free": True, "per_device_eval_batch_size": 4})
    return found


def evaluate_all(folder: Path) -> None:
    """What each of the two processes does; rank 0 writes the metrics and the rows."""
    found: dict[str, Any] = {}
    for name, (kind, words) in cases().items():
        trainer = build(kind, language_model("llama"), str(folder / name), ddp_backend="gloo", **words)
        found[name] = trainer.evaluate(), trainer.compute_metrics.last.predictions.tolist()
    for kind in ("text", "token"):
        trainer = build_classifier(kind, str(folder / kind), per_device_eval_batch_size=7, ddp_backend="gloo")
        found[kind] = trainer.evaluate(), trainer.compute_metrics.last.label_ids.shape[0]
    found["world"] = trainer.args.world_size
    if trainer.args.process_index == 0:
        (folder / "found.json").write_text(json.dumps(found))
    trainer.end()


def test_two_processes_find_what_one_finds_and_count_each_example_once(tmp_path: Path, folder: Path) -> None:
    ended, output = run_ranks(lambda rank: evaluate_all(tmp_path))
    assert ended == 0, output[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found.pop("world") == 2
    for kind in ("text", "token"):
        metrics, rows = found.pop(kind)
        assert rows == ROWS
        check_classification(kind, metrics)
    wanted = direct(language_model("llama"), documents())
    assert set(found) == set(cases())
    for metrics, rows in found.values():
        check(metrics, rows, wanted)
