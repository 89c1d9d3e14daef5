"""What the tests of the rules share: a recipe that is asked for its errors, and upstream's own classes."""

import pytest

from hf_recipes.errors import RecipeError
from hf_recipes.recipe.read import read_recipe
from tests.support.rule_recipes import tiny_gpt2


@pytest.fixture
def ask(tmp_path):
    """Writes a recipe and returns (errors, warnings) as lines without the path. Line 5 is the first of `training`."""

    def asked(training="", top="", task="text-classification", trainer="TrainingArguments", model="bert-base-uncased"):
        path = tmp_path / "a.yaml"
        source = model if model.startswith("{") else f"{{pretrained_model_name_or_path: {model}}}"
        dataset = "" if "dataset:" in top else "dataset: {path: json, data_files: {train: a.jsonl}}"
        lines = [f"task: {task}", f"model: {source}", dataset, f"{trainer}:"]
        lines += [f"  {line}" for line in [*training.splitlines(), "output_dir: runs/a", "learning_rate: 1e-4"]]
        path.write_text("\n".join(lines) + f"\n{top}\n")
        try:
            recipe = read_recipe(str(path))
        except RecipeError as error:
            return [str(error).replace(f"{path}:", "") for error in error.errors], None
        return [], [str(warning).replace(f"{path}:", "") for warning in recipe.warnings]

    return asked


@pytest.fixture
def arguments(tmp_path):
    """The real TrainingArguments, on the CPU."""

    def made(**words):
        from transformers import TrainingArguments

        return TrainingArguments(output_dir=str(tmp_path), **{"use_cpu": True, **words})

    return made


@pytest.fixture
def sft(tmp_path):
    """The real SFTTrainer on two rows of tokens."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    words = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1}, unk_token="<eos>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>")
    rows = Dataset.from_dict({"input_ids": [[1, 1, 0]] * 2, "labels": [[1, 1, 0]] * 2})

    def built(model=None, **more):
        base = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "activation_checkpointing": False}
        args = SFTConfig(**base, **more)
        return SFTTrainer(model=model or tiny_gpt2(), args=args, train_dataset=rows, processing_class=tokenizer)

    return built
