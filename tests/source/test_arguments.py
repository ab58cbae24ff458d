"""The parser of the entry point: pure, in groups, with an explanation for every argument."""

import re

import pytest

from fastmaker.training import arguments


def test_the_parser_depends_on_nothing_around_it(tmp_path, monkeypatch):
    before = vars(arguments.get_parser().parse_args([]))
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path))
    for name in ("SM_CHANNEL_TRAIN", "SM_CHANNEL_VALID", "SM_MODEL_DIR", "SM_OUTPUT_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    assert vars(arguments.get_parser().parse_args([])) == before


def test_the_directories_are_those_of_the_container_unless_they_are_given(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path))
    monkeypatch.delenv("SM_CHANNEL_TRAIN", raising=False)
    for name in ("SM_CHANNEL_TRAINING", "SM_CHANNEL_VALIDATION", "SM_MODEL_DIR", "SM_OUTPUT_DATA_DIR"):
        monkeypatch.setenv(name, name.lower())
    monkeypatch.delenv("SM_CHANNEL_VALID", raising=False)
    args = arguments.parse_args(["--arch", "convnet", "--output-data-dir", "report"])
    assert (args.train, args.valid) == ("sm_channel_training", "sm_channel_validation")
    assert (args.model_dir, args.output_data_dir) == ("sm_model_dir", "report")
    assert args.checkpoint_dir == str(tmp_path / "checkpoints")


def test_the_help_lists_every_argument_in_a_group_with_an_explanation(capsys):
    with pytest.raises(SystemExit):
        arguments.parse_args(["--help"])
    printed = capsys.readouterr().out
    groups = re.findall(r"^(\S.*):$", printed, re.MULTILINE)
    assert groups[1:] == [
        "model and task",
        "training",
        "data",
        "segmentation (only with --task segmentation)",
        "directories (set by SageMaker in a container)",
        "checkpoints",
        "distributed training",
    ]
    parser = arguments.get_parser()
    ungrouped, *grouped = parser._action_groups[1:]
    assert [action.dest for action in ungrouped._group_actions] == ["help"]
    for group in grouped:
        assert all(action.help and action.option_strings[0] in printed for action in group._group_actions)
