"""Rules of classifiers: problem_type, threshold, class_weights, pairs of texts, CoNLL."""

from __future__ import annotations

import pytest

from tests.support.recipe_files import changed, errors_of


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            {"line14": "metrics: [f1]\nthreshold: 0.3"},
            [
                "recipe.yaml:15: threshold has no effect: it decides which of several labels a text has; write "
                "model.problem_type: multi_label_classification, or leave it out"
            ],
        ),
        (
            {"line14": "threshold: 1.5"},
            ["recipe.yaml:14: threshold is 1.5; it must be above 0 and below 1"],
        ),
        (
            {"line14": "class_weights: ballanced"},
            ["recipe.yaml:14: class_weights is 'ballanced'; did you mean 'balanced'?"],
        ),
        (
            {"line3": "  pretrained_model_name_or_path: b\n  problem_type: regression", "line14": "metrics: [f1]"},
            ["recipe.yaml:15: task text-classification has no metric 'f1'; it has mse, pearsonr, spearmanr"],
        ),
        (
            {"line7": "  text_column: [premise, hypothesis]"},
            [
                "recipe.yaml:7: dataset.text_column names 2 columns; it must be one; write text_column: premise, and "
                "text_pair_column: hypothesis for pairs of texts"
            ],
        ),
        (
            {"line8": "  format: conll"},
            [
                "recipe.yaml:8: dataset.format: conll holds tagged words, which task text-classification does not "
                "read; leave it out, or write task: token-classification"
            ],
        ),
        (
            {
                "line3": "  pretrained_model_name_or_path: b\n  problem_type: regression",
                "line11": "  label_smoothing_factor: 0.1",
                "line14": "class_weights: balanced",
            },
            [
                "recipe.yaml:12: label_smoothing_factor has no effect: regression is not trained by cross-entropy; "
                "leave it out",
                "recipe.yaml:15: class_weights has no effect: text-regression has no classes; leave it out",
            ],
        ),
    ],
)
def test_keys_of_classifiers_that_have_no_effect_are_refused(write_recipe, lines: dict, expected: list) -> None:
    assert errors_of(write_recipe(changed(**lines))) == expected
