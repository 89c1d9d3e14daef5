"""What hub/test_push.py runs in a process of its own, because huggingface_hub reads HF_ENDPOINT when it is imported.

Makes a tiny GPT-2 and a LoRA adapter on it, each in a run folder beside what must stay there; pushes both; loads both
back from the Hub with the code that the adapter's card gives; prints what it found as one line of JSON.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from hf_recipes.hub.model_card import model_card
from hf_recipes.hub.push import push_after_training
from hf_recipes.record.file import parse_record

MUST_STAY = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin", "notes.txt",
             "trainer_state.json", "runs/events.out.tfevents.1", "checkpoint-2/model.safetensors",
             "checkpoint-2/optimizer.pt", ".env")  # fmt: skip


def run_folder(folder: Path, name: str, task: str, base: str | None) -> Path:
    for stays in MUST_STAY:
        (folder / stays).parent.mkdir(parents=True, exist_ok=True)
        (folder / stays).write_bytes(b"\x80\x04K\x01.")  # a pickle
    section = {"output_dir": f"runs/{name}", "push_to_hub": True, "hub_model_id": f"user/{name}"}
    model = {"pretrained_model_name_or_path": base} if base else {"preset": "gpt-tiny"}
    sections = {"task": task, "model": model, "dataset": {"path": "json"}, "TrainingArguments": section}
    record = {
        "schema": 1, "status": "finished", "task": task, "model": {"adapter": base is not None, "source": "hub"},
        "recipe": {"path": "a.yaml", "text": f"task: {task}\nmodel: {json.dumps(model)}\n", "sections": sections},
        "metrics": {"eval": {"eval_f1": 0.9467, "eval_perplexity": 31.5, "eval_runtime": 1.0}},
    }  # fmt: skip
    (folder / "record.json").write_text(json.dumps(record))
    (folder / "recipe.yaml").write_text(record["recipe"]["text"])
    (folder / "README.md").write_text(model_card(parse_record(record, "record.json")))
    return folder


def main(where: Path) -> None:
    torch.manual_seed(0)
    vocabulary = ["<unk>", "the", "a", "cat", "dog", "sat", "ran", "on", "mat", "."]
    words = {word: number for number, word in enumerate(vocabulary)}
    wordlevel = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    wordlevel.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=wordlevel, unk_token="<unk>", pad_token="<unk>")
    config = GPT2Config(
        vocab_size=len(words), n_layer=2, n_embd=16, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0
    )

    base_run, adapter_run = where / "runs" / "tiny-base", where / "runs" / "tiny lora"
    base = GPT2LMHeadModel(config).eval()
    base.save_pretrained(base_run)
    tokenizer.save_pretrained(base_run)
    pushed = [push_after_training(run_folder(base_run, "tiny-base", "causal-lm", None))]

    loaded = AutoModelForCausalLM.from_pretrained("user/tiny-base").eval()
    ids = AutoTokenizer.from_pretrained("user/tiny-base")("the cat sat on a mat .", return_tensors="pt").input_ids
    adapter = get_peft_model(loaded, LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False)).eval()
    adapter.save_pretrained(adapter_run)
    tokenizer.save_pretrained(adapter_run)
    pushed.append(push_after_training(run_folder(adapter_run, "tiny-lora", "causal-lm", "user/tiny-base")))

    code = re.search(r"```python\n(.*?)```", ModelCard.load("user/tiny-lora").text, re.S)[1]
    names: dict = {}
    exec(code, names)  # what a stranger does with the card
    with torch.no_grad():
        plain, tuned = base(ids).logits, adapter(ids).logits
        found = {
            "messages": [outcome.message for outcome in pushed],
            "pushed": [outcome.pushed for outcome in pushed],
            "base equal": torch.equal(AutoModelForCausalLM.from_pretrained("user/tiny-base").eval()(ids).logits, plain),
            "adapter equal": torch.equal(names["model"].eval()(ids).logits, tuned),
            "adapter does something": not torch.allclose(plain, tuned, atol=1e-3),
            "tokens": names["tokenizer"]("the dog ran .").input_ids,
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
