"""Rules about several GPUs, trackers and the Hub."""

import pytest


def test_topology_belongs_into_the_accelerate_file(ask):
    """transformers 5.23 trainer.py:475 and :478; A recipe's fsdp overrides the file's values in silence."""
    assert ask("fsdp: true\ndeepspeed: ds.json")[0] == [
        "5: fsdp says how a run is spread over GPUs, which belongs into the accelerate file; "
        "leave it out and launch with --config_file accelerate_configs/fsdp2.yaml",
        "6: deepspeed says how a run is spread over GPUs, which belongs into the accelerate file; "
        "leave it out and launch with --config_file accelerate_configs/deepspeed_zero3.yaml",
    ]
    assert ask("fsdp: false")[0] == []


def test_report_to_null_is_refused(ask, arguments):
    """transformers 5.23 training_args.py:1601: report_to None becomes [None]."""
    assert ask("report_to: null")[0] == ["5: report_to: null is not 'none' to upstream; write report_to: none"]
    from transformers.integrations import get_reporting_integration_callbacks

    assert arguments(report_to=None).report_to == [None]
    with pytest.raises(ValueError, match="None is not supported"):
        get_reporting_integration_callbacks([None])


def test_pushing_without_a_name_and_with_another_strategy_is_warned_about(ask):
    """transformers 5.23 trainer.py:4253 names the repository after output_dir."""
    assert ask("push_to_hub: true\nhub_strategy: checkpoint")[1] == [
        "5: push_to_hub without hub_model_id: the repository is called 'a', after output_dir; "
        "write hub_model_id: <user>/<name>",
        "6: hub_strategy: checkpoint has no effect: checkpoints stay in output_dir; "
        "leave it out: the finished model is pushed once, after training",
    ]
    assert ask("push_to_hub: true\nhub_model_id: me/a\nhub_strategy: every_save")[1] == []
