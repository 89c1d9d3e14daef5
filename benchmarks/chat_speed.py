"""How long chat rows take from a file to labelled tokens, against TRL's own preparation of the same rows.

Two kinds of rows: short plain ones (a question and an answer), and conversations of several turns with tools, through
TRL's Qwen3 template. Both sides read the same file with load_dataset and have the same tokenizer; their labels must be
equal. Pairs run one after the other in alternating order; the ratio is of CPU seconds of the process. Writes
benchmarks/results/chat_speed.json.

    python benchmarks/chat_speed.py              # 20,000 rows, 3 pairs
    python benchmarks/chat_speed.py --profile    # and where our time goes
    python benchmarks/chat_speed.py --kind plain # one kind; the other keeps its record
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
RESULT = ROOT / "benchmarks/results/chat_speed.json"
SEED = 0
TEMPLATES = {"plain": "ChatML with {% generation %}", "tools": "TRL's Qwen3"}
TOOL = {
    "type": "function",
    "function": {
        "name": "miles",
        "description": "How far a stop is.",
        "parameters": {"type": "object", "properties": {"stop": {"type": "integer"}}, "required": ["stop"]},
    },
}


def words() -> list[str]:
    """The words of Python's own help: real text that every Python has."""
    from pydoc_data.topics import topics

    return " ".join(topics.values()).split()


def tokenizer(template: str) -> Any:
    """A byte-level BPE of 8,000 tokens, trained on that text."""
    from pydoc_data.topics import topics

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(topics.values(), trainer=trainer)
    found = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    found.chat_template = template
    return found


def plain_rows(count: int) -> list[dict]:
    draw, text = random.Random(SEED), words()

    def some(most: int) -> str:
        start = draw.randrange(len(text) - most)
        return " ".join(text[start : start + draw.randint(3, most)])

    return [
        {"messages": [{"role": "user", "content": some(20)}, {"role": "assistant", "content": some(30)}]}
        for _ in range(count)
    ]


def tool_rows(count: int) -> list[dict]:
    draw, text = random.Random(SEED), words()

    def some(most: int) -> str:
        start = draw.randrange(len(text) - most)
        return " ".join(text[start : start + draw.randint(3, most)])

    rows = []
    for i in range(count):
        call = {"type": "function", "function": {"name": "miles", "arguments": {"stop": i}}}
        talk: list[dict] = [{"role": "system", "content": some(30)}]
        for _ in range(draw.randint(1, 3)):
            talk.append({"role": "user", "content": some(40)})
            talk.append({"role": "assistant", "content": "", "tool_calls": [call]})
            talk.append({"role": "tool", "name": "miles", "content": str(i)})
            talk.append({"role": "assistant", "content": some(60)})
        rows.append({"messages": talk, "tools": [TOOL]})
    return rows


def template_of(name: str) -> str:
    import trl

    if name == "plain":
        return (
            "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
            "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}"
            "{% endgeneration %}{{ '\n' }}{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
        )
    return (Path(trl.__file__).parent / "chat_templates/qwen3.jinja").read_text(encoding="utf-8")


def read(path: Path, cache: str) -> Any:
    import datasets

    return datasets.load_dataset("json", data_files={"train": [str(path)]}, split="train", cache_dir=cache)


def ours(path: Path, tokenizer: Any, folder: Path) -> Callable[[], Any]:
    from hf_recipes.data.chat import prepare
    from hf_recipes.data.splits import Splits
    from hf_recipes.recipe.read import read_recipe

    recipe = folder / "recipe.yaml"
    recipe.write_text(
        "task: chat\nmodel: {pretrained_model_name_or_path: ./model}\n"
        f"dataset: {{path: json, data_files: {path}}}\nSFTConfig: {{output_dir: {folder}/out}}\n"
    )
    found = read_recipe(str(recipe))

    def run() -> Any:
        with tempfile.TemporaryDirectory() as cache:
            rows = read(path, cache)
            # prepare() wants rows to evaluate as well: one, whose cost is negligible.
            return prepare(Splits(train=rows, validation=rows.select([0]), test=None), tokenizer, found, 4096).train

    return run


def theirs(path: Path, tokenizer: Any, folder: Path) -> Callable[[], Any]:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from tests.support.tiny_models import save_llama

    save_llama(folder / "model", tokenizer)
    args = SFTConfig(
        output_dir=str(folder / "out"), use_cpu=True, bf16=False, report_to="none", activation_checkpointing=False,
        assistant_only_loss=True, max_length=4096,
    )  # fmt: skip
    one = Dataset.from_list([json.loads(path.read_text(encoding="utf-8").split("\n", 1)[0])])
    trainer = SFTTrainer(str(folder / "model"), args, train_dataset=one, processing_class=tokenizer)

    def run() -> Any:
        with tempfile.TemporaryDirectory() as cache:
            return trainer._prepare_dataset(read(path, cache), tokenizer, args, False, None, "train")

    return run


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    found = run()
    return time.process_time() - start, found


def main() -> None:
    import datasets

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--kind", choices=["plain", "tools"])
    parser.add_argument("--profile", action="store_true")
    asked = parser.parse_args()
    datasets.disable_caching()
    datasets.disable_progress_bars()
    kinds = {"plain": plain_rows, "tools": tool_rows}
    kinds = {asked.kind: kinds[asked.kind]} if asked.kind else kinds
    found: dict[str, Any] = {}
    for kind, make in kinds.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            path = folder / "rows.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in make(asked.rows)), encoding="utf-8")
            words_of = tokenizer(template_of(kind))
            one, other = ours(path, words_of, folder), theirs(path, words_of, folder)
            pairs = []
            for i in range(asked.pairs):
                order = (one, other) if i % 2 == 0 else (other, one)
                first, second = timed(order[0]), timed(order[1])
                mine, trls = (first, second) if i % 2 == 0 else (second, first)
                same = mine[1]["labels"] == trls[1]["labels"] and mine[1]["input_ids"] == trls[1]["input_ids"]
                assert same, f"{kind}: other labels than TRL's"
                pairs.append({"ours": round(mine[0], 2), "trl": round(trls[0], 2)})
                tokens = sum(map(len, mine[1]["input_ids"]))
                print(kind, pairs[-1], f"{pairs[-1]['trl'] / pairs[-1]['ours']:.2f}", flush=True)
            ratios = [pair["trl"] / pair["ours"] for pair in pairs]
            found[kind] = {"rows": asked.rows, "tokens": tokens, "template": TEMPLATES[kind], "pairs": pairs}
            found[kind] |= {"times_as_fast": round(statistics.median(ratios), 2), "worst": round(min(ratios), 2)}
            found[kind]["date"] = f"{datetime.now(UTC):%Y-%m-%d}"
            if asked.profile:
                found[kind]["profile"] = profile(one)
    if asked.rows == 20_000:
        import transformers
        import trl

        versions = {"datasets": datasets.__version__, "transformers": transformers.__version__, "trl": trl.__version__}
        before = json.loads(RESULT.read_text(encoding="utf-8"))["kinds"] if RESULT.exists() else {}
        record = {"seed": SEED, "versions": versions, "kinds": {**before, **found}}
        RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    else:
        print(json.dumps(found, indent=1))


def profile(run: Callable[[], Any], most: int = 12) -> list[dict[str, Any]]:
    """The functions in which our time is spent, without what they call."""
    profiler = cProfile.Profile(time.process_time)
    profiler.runcall(run)
    entries = pstats.Stats(profiler).stats.items()  # type: ignore[attr-defined]
    total = sum(own for _, (_, _, own, _, _) in entries)
    longest = sorted(entries, key=lambda entry: -entry[1][2])[:most]
    return [
        {"function": f"{Path(file).name}:{name}", "calls": calls, "share": round(own / total, 3)}
        for (file, _, name), (_, calls, own, _, _) in longest
    ]


if __name__ == "__main__":
    main()
