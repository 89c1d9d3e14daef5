"""Two learning rates on one file, compared and shown. mypy --strict accepts this file."""

from hf_recipes.api import check, compare, evaluate, predict, run

recipe = {
    "task": "text-classification",
    "model": {"pretrained_model_name_or_path": "distilbert/distilbert-base-uncased"},
    "dataset": {"path": "csv", "data_files": {"train": "reviews.csv"}, "label_column": "stars"},
    "TrainingArguments": {"output_dir": "runs/a", "num_train_epochs": 1},
}
if not check(recipe).ok:
    raise SystemExit(str(check(recipe)))
a = run(recipe)
b = run(recipe, {"TrainingArguments.output_dir": "runs/b", "TrainingArguments.learning_rate": 1e-4})
print(compare(a, b))
best = max(a, b, key=lambda one: one.metrics["f1"])
print(evaluate(best, "other.csv").metrics)
for line in predict(best, ["a film that I liked", "a waste of time"]):
    print(line["label"], line["score"])
