"""The schema that `ast` reads is held to the installed classes: drift of upstream fails here, not in a user's run."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import inspect
import json
import subprocess
import sys
import textwrap

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from hf_recipes.catalog.model_shapes import READ_BY_GETATTR
from hf_recipes.catalog.presets import PRESETS, SHAPES
from hf_recipes.recipe.schema import installed, packages, static_source
from hf_recipes.recipe.schema.corrections import CORRECTIONS, LIMITS, NOT_IN_A_FILE
from hf_recipes.recipe.schema.fields import Field, Limits
from hf_recipes.recipe.schema.from_source import documented, from_entry
from hf_recipes.recipe.schema.json_schema import json_schema
from hf_recipes.recipe.schema.own_keys import DATASET, MODEL, OPEN_SECTIONS, SECTIONS, SPLIT_KEYS, TOP


def upstream_class(section):
    import peft
    import tokenizers.trainers
    import transformers
    import trl

    for module in (transformers, trl, peft, tokenizers.trainers):
        if hasattr(module, section):
            return getattr(module, section)
    raise AssertionError(section)


@pytest.mark.parametrize("section", ["TrainingArguments", "SFTConfig", "LoraConfig"])
def test_every_field_of_the_installed_dataclass_is_known_with_its_default(section):
    real = {f.name: f for f in dataclasses.fields(upstream_class(section)) if f.init}
    read = installed.fields(section)
    assert set(read) == set(real)
    for name, field in real.items():
        if read[name].has_default:
            default = field.default_factory() if field.default is dataclasses.MISSING else field.default
            assert read[name].default == default, name
    unknown = {name for name in read if not read[name].has_default}
    # optim's default is computed from the version of torch, the other is an object
    assert unknown <= {"optim", "runtime_config"}


@pytest.mark.parametrize("section", ["BitsAndBytesConfig", "EarlyStoppingCallback"])
def test_every_parameter_of_an_init_is_known_with_its_default(section):
    parameters = inspect.signature(upstream_class(section).__init__).parameters
    named = {n: p for n, p in parameters.items() if n != "self" and p.kind is not inspect.Parameter.VAR_KEYWORD}
    read = installed.fields(section)
    assert set(read) == set(named)
    assert {n: f.default for n, f in read.items()} == {n: p.default for n, p in named.items()}


def test_every_word_of_generation_config_is_known():
    real = {name for name in vars(upstream_class("GenerationConfig")()) if not name.startswith("_")}
    assert real <= set(installed.fields("GenerationConfig"))


def test_every_word_of_bpe_trainer_is_taken_by_the_installed_one():
    words = installed.fields("BpeTrainer")
    assert {"vocab_size", "min_frequency", "special_tokens", "limit_alphabet", "max_token_length"} <= set(words)
    given = {name: field.default for name, field in words.items() if field.has_default and field.default is not None}
    trainer = upstream_class("BpeTrainer")(**given)
    assert trainer.vocab_size == words["vocab_size"].default == 30000
    assert trainer.min_frequency == words["min_frequency"].default


def test_the_words_of_from_pretrained_and_load_dataset_are_those_of_their_signatures():
    import datasets
    import transformers

    def named(function):
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return {
            n for n, p in inspect.signature(function).parameters.items() if p.kind in kinds and n not in ("self", "cls")
        }

    model = named(transformers.PreTrainedModel.from_pretrained) - set(NOT_IN_A_FILE["model"])
    assert model <= set(installed.fields("model"))
    assert {"dtype", "attn_implementation", "device_map", "gguf_file", "subfolder"} <= set(installed.fields("model"))
    tokenizer = named(transformers.PreTrainedTokenizerBase.from_pretrained)
    assert tokenizer <= set(installed.fields("tokenizer"))
    assert {"pad_token", "padding_side", "model_max_length", "chat_template"} <= set(installed.fields("tokenizer"))
    assert set(SPLIT_KEYS) <= named(datasets.Dataset.train_test_split)  # the others are not used
    data = named(datasets.load_dataset) | set(SPLIT_KEYS)
    assert data - set(NOT_IN_A_FILE["dataset"]) | set(DATASET) == set(installed.fields("dataset"))


@pytest.mark.parametrize("builder", ["json", "csv", "text", "parquet", "arrow", "imagefolder"])
def test_the_fields_of_a_builder_are_those_of_its_config(builder):
    import datasets

    module = importlib.import_module(f"datasets.packaged_modules.{builder}.{builder}")
    classes = [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, datasets.DatasetBuilder)]
    own = next(c for c in classes if c.__module__ == module.__name__)
    assert set(installed.builder_fields(builder)) == {f.name for f in dataclasses.fields(own.BUILDER_CONFIG_CLASS)}


@pytest.mark.parametrize("model_type", ["gpt2", "bert", "llama", "gemma3_text", "phi", "distilbert"])
def test_the_fields_of_a_models_config_are_those_of_the_installed_class(model_type):
    from transformers import CONFIG_MAPPING

    real = {f.name for f in dataclasses.fields(CONFIG_MAPPING[model_type])}
    aliases = set(CONFIG_MAPPING[model_type].attribute_map)
    read = set(installed.config_fields(model_type))
    assert real | aliases <= read
    extra = read - real - aliases
    assert extra <= {"num_labels", "model_type", "rope_theta", "rope_scaling", "attn_implementation"}
    assert installed.config_class(model_type) == CONFIG_MAPPING[model_type].__name__


def test_an_unknown_model_type_has_no_fields():
    assert installed.config_fields("gpt-2") is None
    assert installed.builder_fields("jsonl") is None


@pytest.mark.parametrize("name", [*PRESETS, *SHAPES])
def test_every_key_of_our_presets_and_shapes_is_a_field_of_its_config(name):
    config = dict((PRESETS.get(name) or SHAPES[name]).config)
    read = READ_BY_GETATTR.get(config["model_type"], set())
    assert set(config) - read <= set(installed.config_fields(config["model_type"]))


def test_choices_are_the_values_of_the_installed_enums():
    from transformers import trainer_utils, training_args
    from transformers.debug_utils import DebugOption

    words = installed.fields("TrainingArguments")
    for name, enum in {
        "lr_scheduler_type": trainer_utils.SchedulerType,
        "optim": training_args.OptimizerNames,
        "eval_strategy": trainer_utils.IntervalStrategy,
        "logging_strategy": trainer_utils.IntervalStrategy,
        "save_strategy": trainer_utils.SaveStrategy,
        "hub_strategy": trainer_utils.HubStrategy,
        "debug": DebugOption,
    }.items():
        assert words[name].choices == tuple(member.value for member in enum), name
        assert installed.fields("SFTConfig")[name].choices == words[name].choices
    from peft import TaskType

    assert installed.fields("LoraConfig")["task_type"].choices == tuple(member.value for member in TaskType)


def test_choices_that_upstream_names_elsewhere_are_still_those():
    import transformers
    import trl
    from datasets import DownloadMode, VerificationMode
    from transformers import training_args
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
    from transformers.modeling_utils import AttentionInterface

    words = installed.fields("SFTConfig")
    real = {f.name: f.metadata for f in dataclasses.fields(trl.SFTConfig)}
    for name in ("packing_strategy", "loss_type", "truncation_mode", "train_sampling_strategy", "ddp_backend"):
        assert list(words[name].choices) == list(real[name]["choices"]), name
    assert set(words["log_level"].choices) == set(training_args.trainer_log_levels)
    assert set(words["report_to"].choices) == {"none", "all", *INTEGRATION_TO_CALLBACK}
    for choice in words["include_num_input_tokens_seen"].choices:
        assert f"`{choice}`" in real["include_num_input_tokens_seen"]["help"]
    for choice in words["include_for_metrics"].choices:
        assert repr(choice) in real["include_for_metrics"]["help"]
    dataset = installed.fields("dataset")
    assert dataset["download_mode"].choices == tuple(member.value for member in DownloadMode)
    assert set(dataset["verification_mode"].choices) == {member.value for member in VerificationMode}
    assert set(installed.fields("model")["attn_implementation"].choices) == {
        "eager",
        *AttentionInterface._global_mapping,
    }
    for name in ("bnb_4bit_compute_dtype", "bnb_4bit_quant_storage"):
        for choice in installed.fields("BitsAndBytesConfig")[name].choices:
            assert transformers.BitsAndBytesConfig(**{name: choice})
    with pytest.raises(ValueError, match="bnb_4bit_quant_storage"):
        transformers.BitsAndBytesConfig(bnb_4bit_quant_storage="uint9")
    import bitsandbytes.functional

    source = inspect.getsource(bitsandbytes.functional)
    assert all(
        f'"{choice}"' in source for choice in installed.fields("BitsAndBytesConfig")["bnb_4bit_quant_type"].choices
    )


def test_a_word_of_text_cannot_be_misspelled_in_sample_by():
    assert installed.builder_fields("text")["sample_by"].choices == ("line", "paragraph", "document")


@pytest.mark.parametrize("table", [CORRECTIONS, LIMITS], ids=["CORRECTIONS", "LIMITS"])
def test_every_row_of_our_tables_names_a_field_that_exists(table):
    for section, rows in table.items():
        if section == "config":
            known = (
                set(installed.config_fields("gpt2"))
                | set(installed.config_fields("bert"))
                | set(installed.config_fields("llama"))
            )
        elif section == "dataset":
            builders = [set(installed.builder_fields(b)) for b in ("json", "text")]
            known = set(installed.fields("dataset")).union(*builders)
        else:
            known = set(installed.fields(section))
        assert set(rows) <= known, section


def test_every_default_of_upstream_lies_in_our_limits_and_choices():
    for section in SECTIONS:
        for name, field in installed.fields(section).items():
            if not field.has_default or field.default is None:
                continue
            value = field.default
            if field.limits and isinstance(value, int | float) and not isinstance(value, bool):
                assert field.limits.hold(value), (section, name)
            if field.choices and isinstance(value, str) and name != "debug":
                assert value in field.choices, (section, name)
            if field.kinds:
                kind = type(value).__name__
                assert kind in field.kinds or (kind == "int" and "float" in field.kinds), (section, name)


def test_annotations_that_lie_are_put_right():
    words = installed.fields("TrainingArguments")
    assert words["resume_from_checkpoint"].kinds == ("bool", "str")
    assert words["lr_scheduler_kwargs"].kinds == ("dict",)
    assert words["learning_rate"].kinds == ("float",)
    assert words["learning_rate"].limits == Limits(least=0)
    assert installed.fields("SFTConfig")["learning_rate"].default == 2e-5
    assert installed.fields("SFTConfig")["max_length"].optional
    assert installed.fields("LoraConfig")["target_modules"].items == ("str",)
    assert installed.fields("LoraConfig")["init_lora_weights"].open_choices == r"pissa_niter_\d+"


def test_a_deprecated_word_is_marked():
    assert installed.fields("TrainingArguments")["gradient_checkpointing"].deprecated
    assert installed.fields("SFTConfig")["gradient_checkpointing"].deprecated
    assert not installed.fields("TrainingArguments")["activation_checkpointing"].deprecated


def test_our_own_words_each_have_a_help():
    for word in [*TOP.values(), *MODEL.values(), *DATASET.values()]:
        assert word.ours and word.help.endswith(".") and word.kinds, word.name


def test_the_versions_are_the_installed_ones():
    found = installed.versions()
    assert {"transformers", "trl", "peft", "datasets", "tokenizers"} <= set(found)
    for package, version in found.items():
        assert version == importlib.metadata.version(package)


def test_the_json_schema_completes_and_marks_what_the_reader_does():
    made = json.loads(json.dumps(json_schema()))
    assert made["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert made["additionalProperties"] is False
    assert set(made["properties"]) == {*TOP, *SECTIONS, "train_despite", "resume_despite"}
    assert "causal-lm" in made["properties"]["task"]["enum"]
    for name in SECTIONS:
        section = made["properties"][name]
        old_or_foreign = set(section["properties"]) - set(installed.fields(name))
        marked = [section["properties"][key] for key in old_or_foreign]
        assert all(one.get("deprecated") or one.get("not") == {} for one in marked)
        assert section["additionalProperties"] is (name in OPEN_SECTIONS)
    arguments = made["properties"]["TrainingArguments"]["properties"]
    batch = arguments["per_device_train_batch_size"]
    assert batch == {
        "type": "integer",
        "minimum": 1,
        "description": "The batch size per device for training.",
        "default": 8,
    }
    assert arguments["lr_scheduler_type"]["enum"][0] == "linear"
    assert arguments["learning_rate"]["minimum"] == 0
    assert arguments["save_total_limit"]["anyOf"] == [{"type": "integer", "minimum": 1}, {"type": "null"}]
    assert arguments["max_steps"]["anyOf"] == [{"minimum": 1}, {"enum": [-1]}]
    assert arguments["gradient_checkpointing"]["deprecated"] is True
    assert made["not"] == {"required": ["TrainingArguments", "SFTConfig"]}


EDITED = {
    "task": "chat",
    "model": {"pretrained_model_name_or_path": "gpt2", "torch_dtype": "float32", "num_labels": 2, "rope_theta": 1.0},
    "dataset": {"path": "json"},
    "SFTConfig": {"evaluation_strategy": "epoch", "optim": "adamw_hf", "max_seq_length": 64, "warmup_ratio": 0.1},
    "metrics": ["perplexity"],
    "resume_despite": ["recipe"],
}


def test_an_editor_marks_what_check_refuses_and_strikes_out_what_it_translates(root):
    made = Draft202012Validator(json_schema())
    readme = (root / "README.md").read_text(encoding="utf-8").partition("```yaml\n")[2].partition("```")[0]
    samples = [readme, *(path.read_text(encoding="utf-8") for path in (root / "recipes").glob("*.yaml"))]
    for text in samples:
        assert list(made.iter_errors(YAML(typ="safe", pure=True).load(text))) == []
    assert list(made.iter_errors(EDITED)) == []
    for section, key in (("model", "base_model"), ("model", "flash_attn"), ("dataset", "val_set_size"), ("", "lora_r")):
        wrong = {**EDITED, **({section: {**EDITED[section], key: 1}} if section else {key: 1})}
        assert len(list(made.iter_errors(wrong))) == 1
    assert len(list(made.iter_errors({**EDITED, "metrics": ["f2"]}))) == 1


def test_every_type_of_the_json_schema_is_one_of_json():
    kinds = {"boolean", "integer", "number", "string", "array", "object", "null"}

    def walk(node):
        if isinstance(node, dict):
            if "type" in node and isinstance(node["type"], str | list) and "properties" not in node:
                given = node["type"] if isinstance(node["type"], list) else [node["type"]]
                assert set(given) <= kinds, node
            for key, inner in node.items():
                if key not in ("default", "enum"):
                    walk(inner)
        elif isinstance(node, list):
            for inner in node:
                walk(inner)

    walk({name: value for name, value in json_schema()["properties"].items() if name != "task"})


def test_the_schema_is_read_without_importing_anything_heavy():
    code = """
        import sys
        from hf_recipes.recipe.schema import installed as schema, own_keys
        from hf_recipes.recipe.schema.json_schema import json_schema
        for section in own_keys.SECTIONS:
            schema.fields(section)
        json_schema(), schema.config_fields("llama"), schema.builder_fields("json")
        heavy = {"torch", "transformers", "trl", "peft", "datasets", "tokenizers", "numpy", "importlib.metadata"}
        print(sorted(heavy & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# the reader of sources, on sources that are harder than today's -------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes a package `upstream_double` with one module and makes it importable; returns the writer."""
    folder = tmp_path / "upstream_double"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    caches = (packages.package_folder, packages._text)

    def write(source):
        for cached in caches:
            cached.cache_clear()
        (folder / "m.py").write_text(textwrap.dedent(source))

    yield write
    for cached in caches:
        cached.cache_clear()


def test_text_at_column_0_inside_a_docstring_does_not_cut_the_class_short(package):
    package('''
        class A:
            """Help.
        def looks_like_an_end():
            """
            first: int = 1
            def method(self):
                pass
            second: int = 2
        after = 1
    ''')
    names = [n.target.id for n in static_source.class_body("upstream_double", "m.py", "A") if hasattr(n, "target")]
    assert names == ["first", "second"]


def test_a_class_under_an_if_and_the_last_of_several_functions_are_found(package):
    package("""
        if True:
            class A:
                x: int = 1

        def f(a): ...
        def f(b): ...
        class B:
            def f(self, c): ...
    """)
    assert [n.target.id for n in static_source.class_body("upstream_double", "m.py", "A")] == ["x"]
    assert [a.arg for a in static_source.statement("upstream_double", "m.py", "f").args.args] == ["b"]
    assert [a.arg for a in static_source.statement("upstream_double", "m.py", "B.f").args.args] == ["self", "c"]


def test_a_name_or_a_file_that_a_version_does_not_have_gives_nothing(package):
    package("x = 1")
    assert static_source.statement("upstream_double", "m.py", "Nothing") is None
    assert static_source.class_body("upstream_double", "gone.py", "A") == []
    assert static_source.enum_values("upstream_double", "m.py", "x") == ()


def test_a_type_in_a_docstring_becomes_kinds():
    entries = documented(
        "Args:\n"
        "    stop (`str or list[str]`, *optional*): A string\n        or several.\n"
        "    size (`int`, *optional*, defaults to `None`):\n        A size.\n"
        "    mode (`SomeEnum`, *optional*): A mode.\n"
    )
    assert entries["stop"] == ("`str or list[str]`, *optional*", "A string or several.")
    assert from_entry("stop", entries["stop"]).kinds == ("str", "list")
    assert from_entry("stop", entries["stop"]).items == ("str",)
    assert from_entry("size", entries["size"]).kinds == ("int",)
    assert from_entry("mode", entries["mode"]).kinds == ()
    assert from_entry("other", None) == Field(name="other", optional=True)
