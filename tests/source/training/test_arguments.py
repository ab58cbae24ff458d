"""The parser of the entry point: pure, in groups, with an explanation for every argument."""

import os
import re

import pytest

from fastmaker import networks
from fastmaker.training import arguments
from fastmaker.training.arguments import augmentation, data, parse_args


@pytest.fixture(autouse=True)
def no_container(monkeypatch):
    """None of the training container's variables are set."""
    for name in os.environ:
        if name.startswith("SM_"):
            monkeypatch.delenv(name)


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


@pytest.mark.parametrize(
    ("channels", "unused"),
    [("train extra", ["extra"]), ("train code", ["code"]), ("train code sm_drivers extra", ["extra"])],
)
def test_a_channel_of_data_that_is_not_used_is_named(monkeypatch, channels, unused):
    for name in channels.split():
        monkeypatch.setenv(f"SM_CHANNEL_{name.upper()}", f"/data/{name}")
    args = arguments.parse_args(["--model-dir", "model", "--output-data-dir", "report"])
    assert data.channel_notes(args) == [f"the channel {name} is not used" for name in unused]


def test_the_help_lists_every_argument_in_a_group_with_an_explanation(capsys):
    with pytest.raises(SystemExit):
        arguments.parse_args(["--help"])
    printed = capsys.readouterr().out
    groups = re.findall(r"^(\S.*):$", printed, re.MULTILINE)
    assert groups[1:] == [
        "model and task",
        "segmentation (only with --task segmentation)",
        "data",
        "augmentation",
        "loss and balance of classes",
        "training",
        "directories (set by SageMaker in a container)",
        "checkpoints",
        "processes",
        "report",
    ]
    parser = arguments.get_parser()
    ungrouped, *grouped = parser._action_groups[1:]
    assert [action.dest for action in ungrouped._group_actions] == ["help"]
    for group in grouped:
        assert all(action.help and action.option_strings[0] in printed for action in group._group_actions)


@pytest.mark.parametrize("words", [["--batch_size", "16"], ["--batch_size=16"], ["--batch-size", "16"]])
def test_a_name_may_have_underscores_as_hyperparameters_of_examples_have(words):
    assert parse_args(["--train", "images_of_mine", *words]).batch_size == 16
    assert parse_args(["--train", "images_of_mine", *words]).train == "images_of_mine"


def test_each_option_is_of_the_run_or_said_not_to_be():
    args = parse_args(["--train", "images"])
    assert set(arguments.NOT_OF_THE_RUN) <= set(vars(args)), "a name that is no option"
    assert arguments.of_the_run(args).keys() == vars(args).keys() - set(arguments.NOT_OF_THE_RUN)


# Defaults and checks


def test_the_defaults_fine_tune_a_resnet34():
    args = parse_args(["--train", "images"])
    assert (args.task, args.arch, args.epochs, args.batch_size) == ("classification", "resnet34", 5, 64)
    assert (args.image_size, args.image_mode, args.resize_method) == ((224, 224), "RGB", "crop")
    assert (args.pretrained, args.augment, args.lr) == (True, True, 0.002)
    assert (args.valid_pct, args.seed, args.check_only) == (0.2, 42, False)


def test_from_scratch_the_learning_rate_is_lower():
    assert parse_args(["--train", "images", "--arch", "resnet18", "--pretrained", "false"]).lr == 0.001


def test_the_defaults_of_a_convnet_suit_small_gray_images():
    args = parse_args(["--train", "images", "--arch", "convnet"])
    assert (args.image_size, args.image_mode) == ((28, 28), "L")
    assert (args.pretrained, args.augment, args.lr) == (False, False, 0.005)


EVERY = (
    "--train t --valid v --arch convnet --epochs 2 --batch-size 3 --lr 0.1 --image-size 20x30 --image-mode RGB"
    " --resize-method pad --augment true --valid-pct 0.5 --seed 7 --workers 1 --model-dir m --output-data-dir o"
    " --check-only yes --label-regex (.) --checkpoint-dir c --checkpoint-minutes 1.5"
    " --processes 2 --dist-backend gloo --timeout 9 --tta 3"
)


def test_what_is_given_overrides_every_default():
    args = parse_args(EVERY.split())
    expected = {
        "task": "classification",
        "arch": "convnet",
        "epochs": 2,
        "batch_size": 3,
        "lr": 0.1,
        "image_size": (20, 30),
        "image_mode": "RGB",
        "resize_method": "pad",
        "pretrained": False,
        "augment": True,
        **dict.fromkeys(("resume_from", "void_code", "threshold", "y_range")),
        **dict.fromkeys(("mask_scale", "labels_csv", "label_columns", "label_delimiter")),
        "label_regex": "(.)",
        "self_attention": False,
        "mask_size": "model",
        "valid_pct": 0.5,
        "seed": 7,
        "workers": 1,
        "train": "t",
        "valid": "v",
        "model_dir": "m",
        "output_data_dir": "o",
        "checkpoint_dir": "c",
        "checkpoint_minutes": 1.5,
        "processes": 2,
        "dist_backend": "gloo",
        "timeout": 9.0,
        "check_only": True,
        **dict.fromkeys(("labels_csv", "label_columns", "label_delimiter")),
        **(augmentation.KNOBS | {"erase": 0.0, "pad_mode": "reflection"}),
        **dict.fromkeys(("item_size", "min_scale", "ratio", "mixup", "cutmix", "label_smoothing", "focal")),
        **{"class_weights": "none", "weighted_sampling": False},
        "tta": 3,
        "precision": "auto",
    }
    assert {name: vars(args)[name] for name in expected} == expected


@pytest.mark.parametrize(("train", "valid"), [("TRAIN", "VALID"), ("TRAINING", "VALIDATION")])
def test_the_directories_come_from_the_container(monkeypatch, train, valid):
    monkeypatch.setenv(f"SM_CHANNEL_{train}", "/in/train")
    monkeypatch.setenv(f"SM_CHANNEL_{valid}", "/in/valid")
    monkeypatch.setenv("SM_MODEL_DIR", "/out/model")
    monkeypatch.setenv("SM_OUTPUT_DATA_DIR", "/out/data")
    args = parse_args([])
    assert (args.train, args.valid) == ("/in/train", "/in/valid")
    assert (args.model_dir, args.output_data_dir) == ("/out/model", "/out/data")


@pytest.mark.parametrize("words", [["-1,1"], ["-1, 1"], ["[-1.0, 1.0]"]])
def test_a_value_may_begin_with_a_minus_sign(words):
    args = parse_args(["--train", "images", "--task", "points", "--y-range", *words, "--epochs", "3"])
    assert (args.y_range, args.epochs) == ((-1.0, 1.0), 3)


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("batch_size", "[32]", 32),
        ("lr", "[0.01]", 0.01),
        ("lr", '["find"]', "find"),
        ("arch", '["resnet18"]', "resnet18"),
        ("augment", "[false]", False),
        ("image_size", "[64]", (64, 64)),
        ("image_size", "[64, 48]", (64, 48)),
        ("label_columns", '["breed"]', ("breed",)),
    ],
)
def test_a_list_of_one_value_is_that_value(option, text, value):
    args = parse_args(["--train", "images", "--pretrained", "false", f"--{option}", text])
    assert getattr(args, option) == value


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("True", True), ("1", True), ("False", False), ("no", False)]
)
def test_flags_are_read_as_hyperparameters_write_them(text, value):
    assert parse_args(["--train", "images", "--augment", text]).augment is value


@pytest.mark.parametrize("arch", networks.ARCHITECTURES)
def test_every_architecture_is_accepted(arch):
    assert parse_args(["--train", "images", "--arch", arch]).arch == arch


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("--task detection", "argument --task: invalid choice: 'detection' (choose from"),
        ("--task segmentation --arch convnet", "--arch 'convnet' has no U-Net; expected one of resnet18, resnet34"),
        ("--task segmentation --label-regex (.)", "--label-regex is not for segmentation"),
        ("--task multilabel --void-code 1", "--void-code is not for multilabel"),
        ("--threshold 0.4", "--threshold is not for classification"),
        ("--task multilabel --y-range 0,1", "--y-range is not for multilabel"),
        ("--task points --y-range 1,0", "argument --y-range: '1,0': 1 is not below 0"),
        ("--task points --y-range 1", "argument --y-range: '1' is not LOW,HIGH, two numbers"),
        ("--void-code 0", "--void-code is not for classification"),
        ("--self-attention false", "--self-attention is not for classification"),
        ("--mask-size model", "--mask-size is not for classification"),
        ("--arch resnet19", "--arch 'resnet19': "),
        ("--epochs 0", "argument --epochs: 0 is not above 0"),
        ("--epochs 1.5", "argument --epochs: invalid int value: '1.5'"),
        ("--batch-size -4", "argument --batch-size: -4 is not above 0"),
        ("--batch-size 1", "--batch-size 1: batch norms need two images"),
        ("--lr 0", "argument --lr: 0 is not above 0"),
        ("--lr fast", "argument --lr: invalid float value: 'fast'"),
        ("--lr nan", "argument --lr: "),
        ("--lr inf", "argument --lr: "),
        ("--image-size 0", "argument --image-size: '0' is neither"),
        ("--image-size 32x0", "argument --image-size: '32x0' is neither"),
        ("--image-size 0x32", "argument --image-size: '0x32' is neither"),
        ("--image-size 28x", "argument --image-size: '28x' is neither"),
        ("--image-size 2.5", "argument --image-size: '2.5' is neither"),
        ("--image-mode RGBA", "argument --image-mode: invalid choice: 'RGBA'"),
        ("--resize-method stretch", "argument --resize-method: invalid choice: 'stretch'"),
        (
            "--pretrained maybe",
            "--pretrained maybe: found no file of weights; expected true, false, a file, or a folder",
        ),
        ("--resume-from nowhere", "--resume-from nowhere: there is no such file or folder"),
        (
            "--resume-from . --pretrained true",
            "--resume-from starts from the weights of a model; leave --pretrained out",
        ),
        ("--arch convnet --pretrained true", "--pretrained true: there are no pretrained weights for convnet"),
        ("--label-regex (cat", "--label-regex '(cat' is not a regular expression"),
        ("--label-regex cat", "--label-regex 'cat' has no group"),
        ("--valid-pct 0", "argument --valid-pct: 0 is not between 0 and 1"),
        ("--valid-pct 1", "argument --valid-pct: 1 is not between 0 and 1"),
        ("--valid-pct nan", "argument --valid-pct: nan is not between 0 and 1"),
        ("--seed -1", "argument --seed: "),
        ("--seed x", "argument --seed: invalid int value: 'x'"),
        ("--workers -1", "argument --workers: "),
        ("--tta -1", "argument --tta: "),
        ("--tta 2 --task segmentation --arch resnet18", "--tta is not for segmentation: its answers move with the"),
        ("--tta 2 --augment false", "--tta averages over augmented images, and --augment is false"),
        ("--tta 2 --arch convnet", "--tta averages over augmented images, and --augment is false"),
        ("--colour blue", "unrecognized arguments: --colour blue"),
    ],
)
def test_a_wrong_argument_ends_with_status_2_and_one_reason(capsys, arguments, reason):
    with pytest.raises(SystemExit) as end:
        parse_args(["--train", "images", *arguments.split()])
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"entry_point.py: error: {reason}")


def test_without_data_the_arguments_say_so(capsys):
    with pytest.raises(SystemExit) as end:
        parse_args([])
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("--train DIRECTORY is missing, and so is SM_CHANNEL_TRAIN")
