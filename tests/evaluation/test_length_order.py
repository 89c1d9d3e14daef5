"""An evaluation reads rows of like length together, and nobody can tell by its results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset

from hf_recipes.evaluation.compute_metrics import (
    RecordingMetrics,
    classification_compute_metrics,
    keep_logits,
    tags_and_rows,
    token_compute_metrics,
)
from hf_recipes.evaluation.length_order import longest_first, put_back, row_lengths
from hf_recipes.training.overrides import trainer_class

ROWS, LABELS = 37, ("a", "b", "c")


def rows(tags: bool) -> Dataset:
    draw = np.random.default_rng(0)
    ids = [draw.integers(3, 50, size=draw.integers(2, 30)).tolist() for _ in range(ROWS)]
    labels = [[int(token) % 3 for token in row] if tags else len(row) % 3 for row in ids]
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def evaluate(kind: type[Any], folder: Path, *, tags: bool, **arguments: Any) -> tuple[Any, RecordingMetrics, list[int]]:
    """(metrics, what compute_metrics saw, width of each batch)"""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    auto = transformers.BertForTokenClassification if tags else transformers.BertForSequenceClassification
    words = {f"w{number}": number for number in range(50)}
    from tokenizers import Tokenizer, models

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w2")), pad_token="w0"
    )
    collator = transformers.DataCollatorForTokenClassification if tags else transformers.DataCollatorWithPadding
    compute = token_compute_metrics if tags else classification_compute_metrics
    recorded = RecordingMetrics(compute=compute(["accuracy"], LABELS))
    given = {"per_device_eval_batch_size": 5, "use_cpu": True, "report_to": "none", "disable_tqdm": True, **arguments}
    model = auto(config)
    widths: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    trainer = kind(
        model=model,
        args=transformers.TrainingArguments(output_dir=str(folder), **given),
        eval_dataset=rows(tags),
        data_collator=collator(tokenizer),
        processing_class=tokenizer,
        compute_metrics=recorded,
        preprocess_logits_for_metrics=tags_and_rows if tags else keep_logits,
    )
    found = trainer.evaluate()
    again = trainer.predict(rows(tags))
    predictions = again.predictions if isinstance(again.predictions, tuple) else (again.predictions,)
    seen = recorded.last.predictions if isinstance(recorded.last.predictions, tuple) else (recorded.last.predictions,)
    for one, other in zip(predictions, seen, strict=True):
        assert np.array_equal(one, other)  # what predict returns is in the data's order, too
    return found, recorded, widths


@pytest.mark.parametrize("tags", [False, True])
@pytest.mark.parametrize("arguments", [{}, {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}])
def test_metrics_and_every_row_are_upstreams_from_fewer_padded_tokens(
    folder: Path, tags: bool, arguments: dict[str, Any]
) -> None:
    plain, theirs, wide = evaluate(transformers.Trainer, folder, tags=tags)
    found, ours, narrow = evaluate(trainer_class(transformers.Trainer), folder, tags=tags, **arguments)
    assert sum(narrow) < 0.8 * sum(wide) and narrow[0] == max(wide)
    for name in ("eval_loss", "eval_accuracy"):
        assert found[name] == pytest.approx(plain[name], rel=1e-6)
    assert np.array_equal(ours.last.label_ids, theirs.last.label_ids)
    if tags:
        real = theirs.last.label_ids != -100
        assert np.array_equal(ours.last.predictions[0][real], theirs.last.predictions[0][real])
        np.testing.assert_allclose(ours.last.predictions[1], theirs.last.predictions[1], rtol=1e-5)
    else:
        np.testing.assert_allclose(ours.last.predictions, theirs.last.predictions, rtol=1e-4, atol=1e-6)


def test_the_order_is_longest_first_and_rows_of_one_length_stay_where_they_are() -> None:
    data = Dataset.from_dict({"input_ids": [[1], [1, 2], [3], [1, 2, 3], [4, 5]]})
    assert longest_first(data) == [3, 1, 4, 0, 2]
    assert longest_first(data.select([3, 1, 4])) is None  # nothing would change
    assert longest_first(data.select([4, 2, 3, 0])) == [2, 0, 1, 3]  # as the selection numbers them
    assert row_lengths(Dataset.from_dict({"text": ["a"]})) is None
    assert longest_first([{"input_ids": [1]}]) is None


def test_nested_results_are_put_back_and_what_is_no_row_is_left() -> None:
    order = [2, 0, 1]
    seen = np.array([[20.0], [0.0], [10.0]])
    found = put_back((seen, {"other": seen[:, 0]}, None, np.zeros(2)), order)
    assert found[0][:, 0].tolist() == [0.0, 10.0, 20.0] and found[1]["other"].tolist() == [0.0, 10.0, 20.0]
    assert found[2] is None and found[3].shape == (2,)
