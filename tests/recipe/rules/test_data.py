"""Rules about rows: columns, data loaders, packing. Upstream really behaves as each rule says."""

import pytest

from tests.support.rule_recipes import SFT, tiny_gpt2


def test_prefetching_and_persisting_need_workers(ask, arguments):
    """transformers 5.23 training_args.py:1805; torch/utils/data/dataloader.py refuses the other one at train() only."""
    assert ask("dataloader_prefetch_factor: 2\ndataloader_persistent_workers: true")[0] == [
        "5: dataloader_prefetch_factor needs workers, and dataloader_num_workers is 0; "
        "write dataloader_num_workers: 2, or leave it out",
        "6: dataloader_persistent_workers needs workers, and dataloader_num_workers is 0; "
        "write dataloader_num_workers: 2, or leave it out",
    ]
    assert ask("dataloader_num_workers: 2\ndataloader_prefetch_factor: 2\ndataloader_persistent_workers: true")[0] == []
    with pytest.raises(ValueError, match="--dataloader_prefetch_factor can only be set when"):
        arguments(dataloader_prefetch_factor=2)
    arguments(dataloader_persistent_workers=True)  # accepted here
    from torch.utils.data import DataLoader

    with pytest.raises(ValueError, match="persistent_workers option needs num_workers > 0"):
        DataLoader([1], persistent_workers=True)


def test_a_data_file_that_is_no_name_is_refused(ask):
    top = "dataset:\n  path: json\n  data_files:\n    train: [a.jsonl, 3]\n    validation: null"
    assert ask("seed: 1", top=top)[0] == [
        "11: dataset.data_files.train is 3, not the name of a file; write a path or a pattern",
        "12: dataset.data_files.validation is null, not the name of a file; write a path or a pattern",
    ]


def test_rows_of_one_token_are_refused_for_a_language_model(ask):
    top = "dataset: {path: text, data_files: {train: a.txt}, max_length: 1}"
    assert ask(top=top, task="causal-lm")[0] == [
        "7: dataset.max_length: 1 leaves no token to predict; write a few hundred"
    ]
    assert ask("max_length: 1", task="chat", trainer="SFTConfig")[0] == [
        "5: SFTConfig.max_length: 1 leaves no token to predict; write a few hundred"
    ]
    assert ask(top=top)[0] == []  # a classifier needs one token


def test_columns_of_other_tasks_are_refused(ask):
    top = "dataset: {path: json, data_files: a.jsonl, tokens_column: words, text_column: text}"
    assert ask(top=top)[0] == [
        "7: dataset.tokens_column is not for task text-classification; its columns are text_column, text_pair_column, "
        "label_column"
    ]
    top = "dataset: {path: json, data_files: a.jsonl, messages_column: m, prompt_column: p}"
    assert ask(top=top, task="chat", trainer="SFTConfig", model="gpt2")[0] == [
        "7: dataset.prompt_column has no effect beside dataset.messages_column; keep one of them"
    ]


@pytest.mark.parametrize(
    ("names", "fix"),
    [
        ("user: human, assistant: gpt", "it is reversed: write the name in the data first, role_names: {human: user, "
         "gpt: assistant}"),
        ("bot: Assistant", "write role_names: {bot: assistant}"),
    ],
)  # fmt: skip
def test_names_of_roles_that_lead_to_no_role_are_refused(ask, names, fix):
    top = f"dataset: {{path: json, data_files: a.jsonl, role_names: {{{names}}}}}"
    name, role = names.split(",")[0].split(": ")
    assert ask(top=top, task="chat", trainer="SFTConfig", model="gpt2")[0] == [
        f"7: role_names makes {name!r} of the data {role!r}, which is none of system, developer, user, assistant, "
        f"tool; {fix}"
    ]
    top = "dataset: {path: json, data_files: a.jsonl, role_names: {human: user, system: user}}"
    assert ask(top=top, task="chat", trainer="SFTConfig", model="gpt2")[0] == []


def test_a_second_length_and_streaming_of_other_tasks_are_refused(ask):
    top = "dataset: {path: json, data_files: a.jsonl, max_length: 128, streaming: true}"
    assert ask(top=top, **SFT)[0] == [
        "7: dataset.max_length has no effect beside SFTConfig, which has its own max_length; "
        "write SFTConfig.max_length instead",
        "7: dataset.streaming: true trains causal-lm with TrainingArguments, and chat; leave it out: rows are "
        "stored once as tables on disk, which need not fit in memory",
    ]


def test_a_share_beside_a_validation_file_is_warned_about(ask):
    top = "dataset: {path: json, data_files: {train: a.jsonl, validation: b.jsonl}, test_size: 0.1}"
    assert ask(top=top)[1] == ["7: dataset.test_size has no effect: a validation split is given; leave it out"]
    assert ask(top="dataset: {path: json, data_files: {train: a.jsonl, test: b.jsonl}, test_size: 0.1}")[1] == []


def test_packing_keys_that_trl_refuses_late_are_refused_early(ask, sft):
    """trl 1.16 sft_trainer.py:1001 and :1468."""
    assert ask("packing: true\nmax_length: null", **SFT)[0] == [
        "6: packing: true needs max_length, and it is null; write max_length: 1024"
    ]
    assert ask("padding_free: true", **SFT)[0] == [
        "5: padding_free: true without packing: true ignores max_length; write packing: true, or max_length: null"
    ]
    assert ask("padding_free: true\nmax_length: null", **SFT)[0] == []
    with pytest.raises(ValueError, match="When `padding_free=True` without packing, `max_length` is not enforced"):
        sft(padding_free=True)
    with pytest.raises(ValueError, match="When packing is enabled, `max_length` can't be `None`"):
        sft(packing=True, max_length=None)


def test_assistant_loss_a_second_fused_head_and_an_adapter_on_the_head_are_refused_as_trl_does(ask, sft):
    """trl 1.16 sft_trainer.py:935, :1137 and :1070."""
    assert ask("assistant_only_loss: true", **SFT)[0] == [
        "5: assistant_only_loss: true: task causal-lm has no assistant; leave it out, or write task: chat"
    ]
    with pytest.raises(ValueError, match="the dataset is not conversational"):
        sft(assistant_only_loss=True)
    errors, _ = ask("use_liger_kernel: true\nliger_kernel_config: {fused_linear_cross_entropy: true}", **SFT)
    assert errors == [
        "6: liger_kernel_config.fused_linear_cross_entropy: true: SFTTrainer has a fused head of its own; leave it out"
    ]
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_gpt2(), LoraConfig(target_modules=["lm_head"]))
    with pytest.raises(ValueError, match="Applying a PEFT adapter to `lm_head` is not supported"):
        sft(model)


def test_packed_documents_must_not_see_each_other(ask, tmp_path):
    """transformers/masking_utils.py:876: the block mask is derived only without a cache."""
    assert ask("packing: true\nuse_cache: true", **SFT)[0] == [
        "6: use_cache: true with packing or padding_free: packed documents would see each other; leave use_cache out"
    ]
    chat = {**SFT, "task": "chat"}
    assert ask("packing: true\npacking_strategy: wrapped", **chat)[1] == [
        "6: packing_strategy: wrapped lets a conversation see the one before it in its block; "
        "bfd and bfd_split keep them apart"
    ]
    assert ask("packing: true\npacking_strategy: wrapped", **SFT) == ([], [])
    (tmp_path / "bloom").mkdir()
    (tmp_path / "bloom/config.json").write_text('{"model_type": "bloom"}')
    assert ask("packing: true", **{**SFT, "model": str(tmp_path / "bloom")})[1] == [
        "5: packing: true: bloom models see the documents before theirs in the same row; "
        "leave it out, or take a model that keeps them apart (docs/data.md)"
    ]
    assert ask("packing_strategy: bfd", **SFT)[1] == [
        "5: packing_strategy has no effect: packing is not true; write packing: true, or leave it out"
    ]


def test_keys_about_rows_without_effect_are_warned_about(ask):
    """Rows come to SFTTrainer tokenized and labelled by this package."""
    training = "dataset_text_field: body\nmodel_init_kwargs: {use_cache: false}\ncompletion_only_loss: true"
    training += "\neval_packing: true\ndataset_num_proc: 2"
    assert ask(training, **SFT)[1] == [
        "5: SFTConfig.dataset_text_field has no effect here; write dataset.text_column",
        "6: SFTConfig.model_init_kwargs has no effect here; write its keys into the model section",
        "7: SFTConfig.completion_only_loss has no effect: task causal-lm has no chat; leave it out",
        "8: SFTConfig.eval_packing has no effect here; evaluation rows are never packed",
    ]
    assert ask("label_smoothing_factor: 0.1\nremove_unused_columns: false", **SFT)[1] == [
        "5: label_smoothing_factor makes SFTTrainer run each forward twice; trl 2.0 drops it; leave it out",
        "6: remove_unused_columns: false has no effect: rows hold only what the model takes; leave it out",
    ]
    assert ask("truncation_mode: keep_end", **SFT)[1] == [
        "5: SFTConfig.truncation_mode: keep_end has no effect here: long rows lose their end; leave it out; "
        "trl 2.0 drops it"
    ]
