"""Options of augmentation, loss and balance that cannot be honoured are refused before anything starts."""

import inspect

import pytest
from fastai.vision.all import RandomResizedCrop, aug_transforms

from fastmaker.training import arguments
from fastmaker.training.arguments import augmentation

REFUSED = {
    "--augment false --max-rotate 5": "--max-rotate changes the augmentation, and there is none",
    "--augment false --erase 0.5": "--erase changes the augmentation",
    "--augment false --pad-mode zeros": "--pad-mode changes the augmentation",
    "--arch convnet --flip false": "--flip changes the augmentation",
    "--augment false --item-size 300": "--item-size changes the augmentation",
    "--min-zoom 1.2": "--min-zoom 1.2 is above --max-zoom 1.1",
    "--flip false --flip-vert true": "--flip-vert true needs --flip true",
    "--item-size 300 --flip false --max-rotate 0 --max-warp 0 --max-zoom 1": "--item-size needs --min-scale",
    "--item-size 300 --resize-method random-crop": "both crop",
    "--item-size 200": "--item-size 200x200 is smaller than the images of 224x224 that are cut from it",
    "--item-size 300x200": "--item-size 300x200 is smaller",
    "--item-size 100 --image-size 64 --progressive-sizes 128": "is smaller than the images of 128x128",
    "--min-scale 0.5": "--min-scale needs --item-size",
    "--resize-method random-crop --min-scale 0": "nothing would be left",
    "--ratio 0.5,2": "--ratio needs --resize-method random-crop",
    "--resize-method random-crop --ratio -1,2": "a ratio is above 0",
    "--task segmentation --pad-mode zeros": "--pad-mode zeros is not for segmentation",
    "--task segmentation --mask-size original --item-size 300": "does not go with --item-size",
    "--task segmentation --mask-size original --resize-method random-crop": "does not go with --resize-method",
    "--mixup 0.4 --cutmix 1": "both mix images",
    "--task segmentation --mixup 0.4": "--mixup is not for segmentation",
    "--task points --cutmix 1": "--cutmix is not for points",
    "--task regression --cutmix 1": "--cutmix is not for regression",
    "--task multilabel --mixup 1 --batch-size 1": "give a --batch-size above 1",
    "--mixup 0": "is not above 0",
    "--label-smoothing 1": "is not between 0 and 1",
    "--erase 1.5": "is not from 0 to 1",
    "--max-warp nan": "is not from 0",
    "--max-lighting 1": "is not from 0 to below 1",
    "--label-smoothing 0.1 --focal 2": "are two losses",
    "--class-weights balanced --weighted-sampling true": "both balance the classes",
    "--task multilabel --label-smoothing 0.1": "--label-smoothing is not for multilabel",
    "--task multilabel --focal 2": "--focal is not for multilabel",
    "--task regression --class-weights balanced": "--class-weights is not for regression",
    "--task multilabel --weighted-sampling true": "--weighted-sampling is not for multilabel",
    "--task segmentation --class-weights balanced": "--class-weights is not for segmentation",
}


def parse(words):
    return arguments.parse_args(["--train", "photos", "--pretrained", "false", *words.split()])


@pytest.mark.parametrize(("words", "line"), REFUSED.items())
def test_options_that_do_not_go_together_are_refused_in_one_line(capsys, words, line):
    with pytest.raises(SystemExit):
        parse(words)
    assert line in capsys.readouterr().err.splitlines()[-1]


def test_the_defaults_are_those_of_fastai():
    parameters = inspect.signature(aug_transforms).parameters
    usual = {"do_flip" if name == "flip" else name: value for name, value in augmentation.KNOBS.items()}
    assert usual == {name: parameters[name].default for name in usual}
    args, of_crop = parse("--resize-method random-crop"), inspect.signature(RandomResizedCrop).parameters
    assert (args.min_scale, args.ratio) == tuple(of_crop[name].default for name in ("min_scale", "ratio"))


def test_chosen_options_are_said_in_one_line():
    assert arguments.summary(parse("")) is None
    assert arguments.summary(parse("--max-rotate 10 --resize-method crop")) is None
    assert arguments.summary(parse("--resize-method pad")) == "options: --resize-method pad"
    assert arguments.summary(parse("--task segmentation --resize-method squish")) is None
    assert (
        arguments.summary(parse("--item-size 300 --mixup 0.4 --flip_vert true --class-weights balanced"))
        == "options: --flip-vert true --item-size 300x300 --min-scale 1.0 --mixup 0.4 --class-weights balanced"
    )
