"""Keys, types and choices of the installed upstream classes, read from their sources without importing them.

It takes most of a second for all of them: schema/installed.py keeps what is read here on disk.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hf_recipes.recipe.schema import static_source
from hf_recipes.recipe.schema.corrections import CONFIG_KEYS, CORRECTIONS, LIMITS, NOT_IN_A_FILE, TOKENIZER_KEYS
from hf_recipes.recipe.schema.fields import Field
from hf_recipes.recipe.schema.from_source import (
    documented,
    from_dataclass,
    from_entry,
    from_signature,
    literal,
    with_help,
)
from hf_recipes.recipe.schema.own_keys import DATASET, MODEL, SPLIT_KEYS
from hf_recipes.recipe.schema.packages import text

_ENUMS = {  # where the enums of upstream's annotations stand
    "SchedulerType": ("transformers", "trainer_utils.py"),
    "IntervalStrategy": ("transformers", "trainer_utils.py"),
    "SaveStrategy": ("transformers", "trainer_utils.py"),
    "HubStrategy": ("transformers", "trainer_utils.py"),
    "OptimizerNames": ("transformers", "training_args.py"),
    "DebugOption": ("transformers", "debug_utils.py"),
    "TaskType": ("peft", "utils/peft_types.py"),
    "PeftType": ("peft", "utils/peft_types.py"),
}
_MAPPINGS = "models/auto/auto_mappings.py"


def _enum(name: str) -> tuple[str, ...] | None:
    return (static_source.enum_values(*_ENUMS[name], name) or None) if name in _ENUMS else None


def read_section(section: str) -> dict[str, Field]:
    """What a section takes, by name. Raises KeyError for a name that is no section, RecipeError without its package."""
    found = _READERS[section]()
    for name in NOT_IN_A_FILE.get(section, {}):
        found.pop(name, None)
    for base in ("TrainingArguments", "SFTConfig") if section == "SFTConfig" else (section,):
        found = _corrected(found, base)
    return found


def _corrected(found: Mapping[str, Field], section: str) -> dict[str, Field]:
    fixes, limits = CORRECTIONS.get(section, {}), LIMITS.get(section, {})
    corrected = dict(found)
    for name in (n for n in found if n in fixes or n in limits):
        more: dict[str, Any] = {**fixes.get(name, {}), **({"limits": limits[name]} if name in limits else {})}
        corrected[name] = replace(found[name], **more)
    return corrected


def _training_arguments() -> dict[str, Field]:
    found = from_dataclass(static_source.class_body("transformers", "training_args.py", "TrainingArguments"), _enum)
    integrations = static_source.table_keys(
        "transformers", "integrations/integration_utils.py", "INTEGRATION_TO_CALLBACK"
    )
    if "report_to" in found and integrations:
        found["report_to"] = replace(found["report_to"], choices=("none", "all", *integrations))
    return found


def _sft_config() -> dict[str, Field]:
    found = _training_arguments()
    for path, name in (("trainer/base_config.py", "_BaseConfig"), ("trainer/sft_config.py", "SFTConfig")):
        for field in from_dataclass(static_source.class_body("trl", path, name), _enum).values():
            old = found.get(field.name)  # a redeclared field keeps the choices that trl's shorter annotation leaves out
            if old is not None:
                choices, deprecated = field.choices or old.choices, field.deprecated or old.deprecated
                field = replace(field, choices=choices, deprecated=deprecated)
            found[field.name] = field
    return found


def _lora_config() -> dict[str, Field]:
    found: dict[str, Field] = {}
    for path, name in (
        ("config.py", "PeftConfigMixin"),
        ("config.py", "PeftConfig"),
        ("tuners/lora/config.py", "LoraConfig"),
    ):
        found |= from_dataclass(static_source.class_body("peft", path, name), _enum)
    return found


def _init_keys(package: str, path: str, name: str) -> dict[str, Field]:
    """Fields of a class's __init__, with the help of the class's docstring."""
    init = static_source.statement(package, path, f"{name}.__init__")
    return with_help(
        from_signature(init, _enum), documented(static_source.docstring(static_source.statement(package, path, name)))
    )


def _bits_and_bytes_config() -> dict[str, Field]:
    return _init_keys("transformers", "utils/quantization_config.py", "BitsAndBytesConfig")


def _early_stopping() -> dict[str, Field]:
    return _init_keys("transformers", "trainer_callback.py", "EarlyStoppingCallback")


def _open_keys(node: ast.stmt | None, entries: Mapping[str, tuple[str, str]]) -> dict[str, Field]:
    """Fields of the names that a function pops from its open keywords."""
    found: dict[str, Field] = {}
    for name, value in static_source.popped(node):
        if not name.startswith("_") and name not in found:
            known, default = literal(value)
            found[name] = replace(from_entry(name, entries.get(name)), has_default=known, default=default)
    return found


def _generation_config() -> dict[str, Field]:
    path, name = "generation/configuration_utils.py", "GenerationConfig"
    init = static_source.statement("transformers", path, f"{name}.__init__")
    return _open_keys(init, documented(static_source.docstring(static_source.statement("transformers", path, name))))


def _model() -> dict[str, Field]:
    node = static_source.statement("transformers", "modeling_utils.py", "PreTrainedModel.from_pretrained")
    entries = documented(static_source.docstring(node))
    found = _open_keys(node, entries) | with_help(from_signature(node, _enum), entries)
    found["code_revision"] = Field(
        name="code_revision", kinds=("str",), optional=True
    )  # AutoModel's, for code of the Hub
    kernels = static_source.table_keys("transformers", "modeling_utils.py", "AttentionInterface._global_mapping")
    if "attn_implementation" in found and kernels:
        found["attn_implementation"] = replace(found["attn_implementation"], choices=("eager", *kernels))
    return found | MODEL


def _tokenizer() -> dict[str, Field]:
    path, name = "tokenization_utils_base.py", "PreTrainedTokenizerBase"
    node = static_source.statement("transformers", path, f"{name}.from_pretrained")
    init = static_source.statement("transformers", path, f"{name}.__init__")
    special = static_source.statement("transformers", path, f"{name}.SPECIAL_TOKENS_ATTRIBUTES")
    _, tokens = literal(special.value if isinstance(special, ast.Assign) else None)
    auto = static_source.statement("transformers", "models/auto/tokenization_auto.py", "AutoTokenizer.from_pretrained")
    entries = documented(static_source.docstring(node))
    found = (
        _open_keys(init, entries)
        | _open_keys(auto, documented(static_source.docstring(auto)))
        | _open_keys(node, entries)
    )
    found |= {t: Field(name=t, kinds=("str",), optional=True) for t in tokens or ()}
    found |= {w: Field(name=w, kinds=kinds, optional=True) for w, kinds in TOKENIZER_KEYS.items()}
    found["code_revision"] = Field(name="code_revision", kinds=("str",), optional=True)
    found["gguf_file"] = Field(name="gguf_file", kinds=("str",), optional=True)
    return found | with_help(from_signature(node, _enum), entries)


def _dataset() -> dict[str, Field]:
    found: dict[str, Field] = {}
    for path, name in (("arrow_dataset.py", "Dataset.train_test_split"), ("load.py", "load_dataset")):
        node = static_source.statement("datasets", path, name)
        fields = with_help(from_signature(node, _enum), documented(static_source.docstring(node)))
        found |= fields if name == "load_dataset" else {key: fields[key] for key in SPLIT_KEYS if key in fields}
    return found | DATASET


def _bpe_trainer() -> dict[str, Field]:
    node = static_source.statement("tokenizers", "trainers/__init__.pyi", "BpeTrainer")
    body = node.body if isinstance(node, ast.ClassDef) else []
    entries = documented(static_source.docstring(node).replace(":obj:", ""))
    new = next((n for n in body if isinstance(n, ast.FunctionDef) and n.name == "__new__"), None)
    found = with_help(from_signature(new, _enum), entries)
    return found or {name: from_entry(name, entry) for name, entry in entries.items()}  # older stubs have no signature


_READERS = {
    "model": _model,
    "tokenizer": _tokenizer,
    "dataset": _dataset,
    "TrainingArguments": _training_arguments,
    "SFTConfig": _sft_config,
    "LoraConfig": _lora_config,
    "BitsAndBytesConfig": _bits_and_bytes_config,
    "BpeTrainer": _bpe_trainer,
    "EarlyStoppingCallback": _early_stopping,
    "GenerationConfig": _generation_config,
}


def read_builder(builder: str) -> dict[str, Field]:
    """Fields of the config of a packaged builder."""
    found = from_dataclass(static_source.class_body("datasets", "builder.py", "BuilderConfig"), _enum)
    path = f"packaged_modules/{builder}/{builder}.py"
    for line in text("datasets", path).splitlines():
        if line.startswith("class ") and "Config(" in line:
            name, base = line[6:].split("(")[0], line.split("(")[1].rstrip("):")
            if base.startswith("folder_based_builder."):
                parent = "packaged_modules/folder_based_builder/folder_based_builder.py"
                found |= from_dataclass(static_source.class_body("datasets", parent, "FolderBasedBuilderConfig"), _enum)
            found |= from_dataclass(static_source.class_body("datasets", path, name), _enum)
    return _corrected(found, "dataset")


def read_model_types() -> dict[str, str]:
    """model_type -> name of its config class."""
    return _pairs(_MAPPINGS, "CONFIG_MAPPING_NAMES") or _pairs(
        "models/auto/configuration_auto.py", "CONFIG_MAPPING_NAMES"
    )


def _pairs(path: str, table: str) -> dict[str, str]:
    """A table of transformers that is written `table = OrderedDict([("key", "value"), ...])`."""
    node = static_source.statement("transformers", path, table)
    call = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
    return dict(literal(call.args[0] if isinstance(call, ast.Call) and call.args else None)[1] or ())


def read_common_config() -> dict[str, Field]:
    """Fields that every model's config has: what is known of a config that lies on the Hub."""
    found = from_dataclass(
        static_source.class_body("transformers", "configuration_utils.py", "PreTrainedConfig"), _enum
    )
    found |= {key: Field(name=key, kinds=kinds, optional=True) for key, kinds in CONFIG_KEYS.items()}
    return _corrected(found, "config")


def read_config(model_type: str, name: str) -> dict[str, Field]:
    """Fields of the config class `name` of a model_type, and the aliases of its attribute_map."""
    folder = _pairs(_MAPPINGS, "SPECIAL_MODEL_TYPE_TO_MODULE_NAME").get(model_type) or model_type.replace("-", "_")
    own = _class_fields(f"models/{folder}/configuration_{folder}.py", name)
    return _corrected({**read_common_config(), **own}, "config")


def _class_fields(path: str, name: str) -> dict[str, Field]:
    node = static_source.statement("transformers", path, name)
    if not isinstance(node, ast.ClassDef):
        return {}
    found: dict[str, Field] = {}
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id != name and "PreTrained" not in base.id:
            found |= _class_fields(path, base.id)  # a parent of the same file
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    found |= from_signature(init, _enum) | from_dataclass(node.body, _enum)  # older configs have a signature instead
    for item in node.body:
        if (
            isinstance(item, ast.Assign)
            and isinstance(item.targets[0], ast.Name)
            and item.targets[0].id == "attribute_map"
        ):
            for alias, real in (literal(item.value)[1] or {}).items():
                found.setdefault(alias, replace(found[real], name=alias) if real in found else Field(name=alias))
    return found
