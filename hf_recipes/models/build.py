"""A recipe to a tokenizer, a config and a model: pretrained or from scratch, with LoRA, DoRA or quantised.

Nothing of a Hub repository's code is run: `trust_remote_code` stays False and weights are safetensors or nothing.
"""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hf_recipes.catalog.presets import PRESETS
from hf_recipes.data.load import first_line
from hf_recipes.data.prepared import TASKS
from hf_recipes.data.row_checks import refuse_weights
from hf_recipes.data.splits import column
from hf_recipes.errors import RecipeError, fault

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.recipe.recipe import Recipe

END_TOKEN = "<|endoftext|>"  # of tokenizers trained here; GPT-2's word for it
SOURCES = ("pretrained_model_name_or_path", "preset", "config")
LABEL_WORDS = ("label_column", "tags_column")  # columns that no tokenizer is trained on
# Architectures whose table of positions begins behind the padding token's id: RoBERTa reads 512 tokens with 514 rows.
OFFSET_POSITIONS = ("camembert", "data2vec-text", "longformer", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl")


def from_scratch(recipe: Recipe) -> bool:
    """Whether the weights start random (a preset or a config) rather than pretrained."""
    return "pretrained_model_name_or_path" not in recipe.section("model")


def model_name(recipe: Recipe) -> str:
    """The pretrained name, else the preset, else the config's model_type: for records and cards."""
    model = recipe.section("model")
    config = model.get("config")
    kind = config.get("model_type", "config") if isinstance(config, Mapping) else config
    return str(model.get("pretrained_model_name_or_path") or model.get("preset") or kind)


def build_tokenizer(recipe: Recipe, train: Dataset | None, say: Callable[[str], None]) -> Any:
    """The `tokenizer` section's, else one trained on the train split (BpeTrainer), else the model's own."""
    if "BpeTrainer" in recipe.sections:
        if train is None:
            raise fault(recipe.place("BpeTrainer"), "a tokenizer is trained on text: there is no train split")
        tokenizer = _train_tokenizer(recipe, train)
        say(f"tokenizer: byte-level BPE trained on the train split, {len(tokenizer)} tokens")
    else:
        tokenizer = _load_tokenizer(recipe)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise fault(recipe.place("tokenizer"), "the tokenizer has neither a pad nor an end token", "set pad_token")
        tokenizer.pad_token = tokenizer.eos_token
        say(f"pad token: {tokenizer.eos_token!r}, the end token (the tokenizer has none; labels mask padding by place)")
    if recipe.task == "chat":
        _chat_template(recipe, tokenizer, say)
    return tokenizer


def _chat_template(recipe: Recipe, tokenizer: Any, say: Callable[[str], None]) -> None:
    from hf_recipes.data.chat import PLAIN_TEMPLATE

    path = recipe.training.get("chat_template_path")
    if path is not None:
        if not str(path).endswith((".jinja", ".j2")):
            mend = "give a .jinja file; a tokenizer folder goes into the tokenizer section"
            raise fault(recipe.place("SFTConfig.chat_template_path"), f"{path!r} is no template file", mend)
        try:
            with open(path, encoding="utf-8") as text:
                tokenizer.chat_template = text.read()
        except OSError as problem:
            what = f"chat template {path!r} cannot be read ({problem.strerror})"
            raise fault(recipe.place("SFTConfig.chat_template_path"), what) from None
    eos = recipe.training.get("eos_token")
    if eos is not None:
        if eos not in tokenizer.get_vocab():
            raise fault(recipe.place("SFTConfig.eos_token"), f"{eos!r} is not in the tokenizer's vocabulary")
        tokenizer.eos_token = eos
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_TEMPLATE
        say("chat template: a plain one of ours ('user:\\n...'), since the tokenizer brings none")


def _load_tokenizer(recipe: Recipe) -> Any:
    from transformers import AutoTokenizer

    words = dict(recipe.section("tokenizer"))
    model = recipe.section("model")
    name = words.pop("pretrained_model_name_or_path", model.get("pretrained_model_name_or_path"))
    where = recipe.place("tokenizer" if recipe.section("tokenizer") else "model.pretrained_model_name_or_path")
    if name is None:
        raise fault(recipe.place("model"), "a model from scratch needs a tokenizer", "add tokenizer or BpeTrainer")
    if "gguf_file" in model and "gguf_file" not in words and not recipe.section("tokenizer"):
        words["gguf_file"] = model["gguf_file"]
    try:
        return AutoTokenizer.from_pretrained(name, **words)
    except (OSError, ValueError, TypeError) as problem:
        raise unloadable(where, "tokenizer", name, problem) from problem


def unloadable(where: str, what: str, name: Any, problem: Exception) -> RecipeError:
    """One message for a name that from_pretrained cannot load: a folder that is missing, a Hub out of reach."""
    name = str(name)
    if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not os.path.exists(name):
        folder = os.path.dirname(name.rstrip("/"))
        others = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
        near = difflib.get_close_matches(os.path.basename(name.rstrip("/")), others, n=1)
        mend = "paths are relative to the working directory"
        if near:
            mend = f"did you mean {os.path.join(folder, near[0])!r}?"
        return fault(where, f"there is no {what} folder {name!r} here", mend)
    files = ("tokenizer.json", "tokenizer_config.json") if what == "tokenizer" else ("config.json",)
    if os.path.isdir(name) and not any(os.path.isfile(os.path.join(name, file)) for file in files):
        mend = "name another one in the tokenizer section" if what == "tokenizer" else "is it a model's folder?"
        return fault(where, f"the folder {name!r} has no {what} ({files[0]} is not there)", mend)
    if type(problem).__name__ == "SafetensorError":
        mend = "the file is not whole: copy or download it again"
    elif "unexpected keyword argument" in str(problem):
        mend = f"take that word out of the {what} section"
    elif os.path.isdir(name):
        mend = f"is it a folder that save_pretrained of a {what} wrote?"
    else:
        mend = "check the name; offline, only a local folder or a model already in the Hub cache loads"
    return fault(where, f"the {what} {name!r} cannot be loaded: {first_line(problem)}", mend)


def _train_tokenizer(recipe: Recipe, train: Dataset) -> Any:
    """Byte-level BPE as GPT-2's, trained on the task's text; deterministic for the same rows."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = dict(recipe.section("BpeTrainer"))
    special = list(dict.fromkeys([END_TOKEN, *words.pop("special_tokens", [])]))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    words.setdefault("initial_alphabet", pre_tokenizers.ByteLevel.alphabet())
    words.setdefault("show_progress", False)
    if next(_texts(recipe, train), None) is None:
        mend = "name the tokenizer that wrote them in the tokenizer section"
        raise fault(recipe.place("BpeTrainer"), "the rows hold no text to train a tokenizer on, but token ids", mend)
    try:
        trainer = trainers.BpeTrainer(special_tokens=special, **words)
    except (TypeError, ValueError, OverflowError) as problem:
        raise fault(recipe.place("BpeTrainer"), f"tokenizers refuses: {first_line(problem)}") from problem
    tokenizer.train_from_iterator(_texts(recipe, train), trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_TOKEN,
        eos_token=END_TOKEN,
        pad_token=END_TOKEN,
        unk_token=END_TOKEN,
        clean_up_tokenization_spaces=False,
    )


def _texts(recipe: Recipe, train: Dataset) -> Iterator[str]:
    """Every text in the train split, whatever its shape (a text, a list of words, a list of messages)."""
    words = {word: default for word, default in TASKS[recipe.task].columns.items() if word not in LABEL_WORDS}
    named = [recipe.get(f"dataset.{word}", default) for word, default in words.items()]
    columns = [name for name in named if name in train.column_names]
    if not columns:
        word, default = next(iter(words.items()))
        column(recipe, train, word, default)  # raises: says which columns there are
    for batch in train.select_columns(columns).iter(1000):
        for values in batch.values():
            yield from _strings(values)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings(list(value.values()))
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def build_config(recipe: Recipe) -> Any:
    """The model's config with the recipe's fields, before any weight is touched."""
    from transformers import AutoConfig

    model = recipe.section("model")
    if "pretrained_model_name_or_path" in model:
        name = model["pretrained_model_name_or_path"]
        words = {k: model[k] for k in ("revision", "subfolder", "cache_dir", "gguf_file") if k in model}
        try:
            return AutoConfig.from_pretrained(name, **words)
        except (OSError, ValueError) as problem:
            raise unloadable(recipe.place("model.pretrained_model_name_or_path"), "model", name, problem) from problem
    if "preset" in model:
        fields = dict(PRESETS[model["preset"]].config)
    elif isinstance(model["config"], Mapping):
        fields = dict(model["config"])
    else:
        try:
            fields = AutoConfig.from_pretrained(model["config"]).to_dict()
        except (OSError, ValueError) as problem:
            raise unloadable(recipe.place("model.config"), "config", model["config"], problem) from problem
    fields.update(config_fields(recipe))
    try:
        return AutoConfig.for_model(fields.pop("model_type"), **fields)
    except (ValueError, TypeError, KeyError) as problem:
        raise fault(recipe.place("model"), f"no model can be made of this config: {problem}") from problem


def config_fields(recipe: Recipe) -> dict[str, Any]:
    """Keys of the `model` section that are fields of the model's config, when it starts from scratch."""
    loading = {"dtype", "attn_implementation", "revision", "trust_remote_code", "low_cpu_mem_usage", "device_map"}
    return {k: v for k, v in recipe.section("model").items() if k not in SOURCES and k not in loading}


def longest_input(config: Any) -> int | None:
    """Positions that the model has, or None where positions are not a table of fixed size."""
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    return positions - (text.pad_token_id or 0) - 1 if text.model_type in OFFSET_POSITIONS else positions


def build_model(
    recipe: Recipe, config: Any, tokenizer: Any, fields: Mapping[str, Any], say: Callable[[str], None]
) -> Any:
    """The model that Trainer gets: weights loaded or drawn (seeded), adapter put on. `fields` are what the data decides
    (num_labels, ...). Raises RecipeError for weights that do not load."""
    import torch
    import transformers

    from hf_recipes.evaluation.exact import fix_loss_type

    auto = getattr(transformers, TASKS[recipe.task].auto_class)
    words = {k: v for k, v in recipe.section("model").items() if k not in SOURCES}
    words["dtype"] = getattr(torch, words["dtype"]) if words.get("dtype", "auto") != "auto" else "auto"
    stated = recipe.get("model.num_labels")
    if stated is not None and stated != fields.get("num_labels", stated):
        what = f"model.num_labels is {stated}, and the train split has {fields['num_labels']} labels"
        raise fault(recipe.place("model.num_labels"), what, "leave it out")
    for name in ("problem_type", "id2label", "label2id"):
        stated = recipe.get(f"model.{name}")
        if stated is not None and name in fields and stated != fields[name]:
            what = (
                f"model.{name} is decided by the data here ({TASKS[recipe.task].name}), and the recipe says otherwise"
            )
            raise fault(recipe.place(f"model.{name}"), what, "leave it out")
    transformers.set_seed(recipe.training.get("seed", 42))
    if not from_scratch(recipe):
        model, new = _pretrained(recipe, auto, recipe.section("model")[SOURCES[0]], {**words, **fields}, say)
        refuse_weights(recipe, model, new, say)
    elif recipe.section("BitsAndBytesConfig"):  # a smoke run's: weights are quantised when they are loaded
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            _fresh(recipe, auto, config, tokenizer, fields, words).save_pretrained(folder)
            model, new = _pretrained(recipe, auto, folder, words, say)
    else:
        model, new = _fresh(recipe, auto, config, tokenizer, fields, words), []
    _fit_vocabulary(recipe, model, tokenizer, say)
    line = fix_loss_type(model)
    if line:
        say(line)
    return _adapted(recipe, model, new, say) if "LoraConfig" in recipe.sections else model


def _adapted(recipe: Recipe, model: Any, new: list[str], say: Callable[[str], None]) -> Any:
    """The model with its adapter; `new` are the names of weights that no checkpoint gave. Raises RecipeError where
    there is nothing to adapt."""
    from peft import LoraConfig, get_peft_model

    words = dict(recipe.section("LoraConfig"))
    targets = words.get("target_modules")
    named = targets if isinstance(targets, list) else []
    parts = [name for name, _ in model.named_modules()]
    strange = [t for t in named if not any(name == t or name.endswith(f".{t}") for name in parts)]
    where = recipe.place("LoraConfig.target_modules")
    if strange:
        what = f"LoraConfig.target_modules: {type(model).__name__} has no {', '.join(strange)}"
        if strange == named:
            raise fault(where, what, _adaptable(model, strange[0]))
        say(f"{what}: left out")
    # peft trains a new `classifier` or `score` itself; another new layer of the head would stay random and frozen.
    parts_of_head = {name.rpartition(".")[0] for name in new if not {"classifier", "score"} & set(name.split("."))}
    if parts_of_head and not TASKS[recipe.task].generates:
        words["modules_to_save"] = sorted({*(words.get("modules_to_save") or ()), *parts_of_head})
        say(f"trained whole, beside the adapter: {', '.join(sorted(parts_of_head))} (new, not pretrained)")
    for name in words.get("modules_to_save") or ():  # peft trains those that it finds, and says nothing of the rest
        if not any(part == name or part.endswith(f".{name}") for part in parts):
            what = f"LoraConfig.modules_to_save: {type(model).__name__} has no {name!r}"
            names = sorted({part.rpartition(".")[2] for part in parts if part} - {str(i) for i in range(1000)})
            near = difflib.get_close_matches(name, names, n=1)
            mend = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names)}"
            raise fault(recipe.place("LoraConfig.modules_to_save"), what, mend)
    try:
        model = get_peft_model(model, LoraConfig(**words))
    except (ValueError, TypeError) as problem:
        told = str(problem)  # peft's table has not this architecture, or a pattern fits nothing
        if targets is None or "No modules" in told or "not found" in told:
            raise fault(where, f"peft refuses: {first_line(problem)}", _adaptable(model, str(targets))) from problem
        raise fault(recipe.place("LoraConfig"), f"peft refuses: {first_line(problem)}") from problem
    if "BitsAndBytesConfig" in recipe.sections:
        # Trainer does this itself only for models that it does not know to be wrapped (transformers#42489).
        model.enable_input_require_grads()
    return model


def _adaptable(model: Any, near_to: str) -> str:
    """The names that an adapter could take, the nearest first."""
    kinds = ("Linear", "Conv1D", "Linear4bit", "Linear8bitLt")
    names = sorted({n.rpartition(".")[2] for n, part in model.named_modules() if type(part).__name__ in kinds})
    near = difflib.get_close_matches(near_to, names, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"it has {', '.join(names)}; or write all-linear"


def _fresh(recipe: Recipe, auto: Any, config: Any, tokenizer: Any, fields: Mapping[str, Any], words: dict) -> Any:
    import torch

    if getattr(config.get_text_config(), "vocab_size", None) is None:
        what = f"no model can be made of this config: {type(config).__name__} has no vocabulary, so it reads no text"
        raise fault(recipe.place("model"), what, f"take an architecture that {auto.__name__} knows")
    if config.get_text_config().vocab_size != len(tokenizer):
        config.get_text_config().vocab_size = len(tokenizer)  # a preset's vocabulary follows the tokenizer
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(tokenizer, name) is not None:
            setattr(config, name, getattr(tokenizer, name))
    for name, value in fields.items():
        setattr(config, name, value)
    dtype = torch.float32 if words["dtype"] == "auto" else words["dtype"]
    attention = {"attn_implementation": words["attn_implementation"]} if "attn_implementation" in words else {}
    try:
        return auto.from_config(config, dtype=dtype, **attention)
    except (ValueError, ImportError) as problem:
        raise fault(recipe.place("model"), f"no model can be made of this config: {problem}") from problem


def _pretrained(recipe: Recipe, auto: Any, name: str, words: dict[str, Any], say: Callable[[str], None]) -> Any:
    """(model, names of its weights that the checkpoint has not)."""
    from safetensors import SafetensorError

    if recipe.section("BitsAndBytesConfig"):
        from transformers import BitsAndBytesConfig

        words["quantization_config"] = BitsAndBytesConfig(**recipe.section("BitsAndBytesConfig"))
        words.setdefault("device_map", _one_device(recipe))
    where = recipe.place(f"model.{SOURCES[0]}")
    try:
        model, info = auto.from_pretrained(name, output_loading_info=True, **words)
    except (OSError, ValueError, TypeError, ImportError, RuntimeError, SafetensorError) as problem:
        if "ignore_mismatched_sizes" in str(problem):
            what = f"the model {name!r} has weights of other shapes than its config with this recipe's fields"
            mend = "for a head with new labels write model.ignore_mismatched_sizes: true"
            raise fault(where, what, mend) from problem
        raise unloadable(where, "model", name, problem) from problem
    for part in model.modules():
        # bitsandbytes 0.50.2 nn/modules.py:617: on such a CPU an evaluation repacks 4-bit weights for a kernel without
        # a backward, and the training that goes on after it gets no gradient through them.
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False
    fresh = sorted(info["missing_keys"])
    if fresh:
        more = f" and {len(fresh) - 3} more" if len(fresh) > 3 else ""
        say(f"newly initialised, not pretrained: {', '.join(fresh[:3])}{more}")
    return model, fresh


def _one_device(recipe: Recipe) -> dict[str, Any]:
    """Quantised weights are placed at loading: the whole model on this rank's device."""
    import torch

    if recipe.training.get("use_cpu") or not torch.cuda.is_available():
        return {"": "mps" if torch.backends.mps.is_available() and not recipe.training.get("use_cpu") else "cpu"}
    return {"": int(os.environ.get("LOCAL_RANK", "0"))}


def _fit_vocabulary(recipe: Recipe, model: Any, tokenizer: Any, say: Callable[[str], None]) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        if "LoraConfig" in recipe.sections:
            what = f"the tokenizer has {len(tokenizer)} tokens, the model's embedding {rows} rows"
            raise fault(recipe.place("tokenizer"), what, "take the model's own tokenizer: an adapter adds no rows")
        model.resize_token_embeddings(len(tokenizer))
        say(f"embedding: {rows} -> {len(tokenizer)} rows, as many as the tokenizer has tokens")
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def parameter_counts(model: Any) -> tuple[int, int]:
    """(all, trainable) parameters; a quantised weight counts what it stands for, a tied one once."""
    if hasattr(model, "get_nb_trainable_parameters"):
        trainable, total = model.get_nb_trainable_parameters()
        return int(total), int(trainable)
    total = sum(p.numel() for p in model.parameters())
    return total, sum(p.numel() for p in model.parameters() if p.requires_grad)
