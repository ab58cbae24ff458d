"""Options of what is done to training images before the network sees them, by fastai's names and defaults."""

import argparse
from typing import Any

from fastmaker.training.arguments import kinds, model

# Parameters of fastai's aug_transforms, each with its default.
KNOBS: dict[str, Any] = {
    "flip": True,
    "flip_vert": False,
    "max_rotate": 10.0,
    "min_zoom": 1.0,
    "max_zoom": 1.1,
    "max_lighting": 0.2,
    "max_warp": 0.2,
    "p_affine": 0.75,
    "p_lighting": 0.75,
}
MOVES = ("flip", "max_rotate", "max_warp", "min_zoom", "max_zoom")  # only these give images the size of the network
MEANINGS = {
    "flip": "mirror half of the images",
    "flip_vert": "with --flip, turn and mirror images in all eight ways",
    "max_rotate": "degrees",
    "min_zoom": "smallest zoom",
    "max_zoom": "largest zoom",
    "max_lighting": "change of brightness and contrast",
    "max_warp": "change of perspective",
    "p_affine": "probability of each of turning, warping and zooming",
    "p_lighting": "probability of a change of brightness or contrast",
}


def add_groups(parser: argparse.ArgumentParser) -> None:
    """Add these options to `parser`."""
    add = parser.add_argument_group("augmentation").add_argument
    add(
        "--augment",
        type=kinds.flag,
        metavar=kinds.BOOL,
        help="augment with fastai's aug_transforms (default: true, convnet false)",
    )
    for name, value in KNOBS.items():
        default = str(value).lower()
        typed: dict[str, Any] = {"type": kinds.flag, "metavar": kinds.BOOL}
        if not isinstance(value, bool):
            typed = {"type": kinds.share if name.startswith("p_") else kinds.from_zero}
        if name == "max_lighting":  # at 1 images would be black or white
            typed = {"type": kinds.below_one}
        if name.endswith("_zoom"):
            typed = {"type": kinds.positive(float)}
        add(_option(name), **typed, help=f"{MEANINGS[name]} (default: {default})")
    add("--pad-mode", choices=("reflection", "border", "zeros"), help="what is beyond an image (default: reflection)")
    add("--erase", type=kinds.share, help="probability of erasing a part of the images of a batch (default: 0)")
    add(
        "--item-size",
        type=kinds.size,
        help="presizing: images get this size, larger than --image-size, before they are augmented (default: none)",
    )
    add(
        "--min-scale",
        type=kinds.share,
        help="smallest part of an image that is cropped, with --item-size (default: 1) or --resize-method random-crop"
        " (default: 0.08)",
    )
    add(
        "--ratio",
        type=kinds.interval,
        metavar="LOW,HIGH",
        help="width over height of what --resize-method random-crop crops (default: 0.75,1.3333)",
    )
    add("--mixup", type=kinds.positive(float), metavar="ALPHA", help="blend pairs of images, by Beta(ALPHA, ALPHA)")
    add("--cutmix", type=kinds.positive(float), metavar="ALPHA", help="paste a part of an image into another")


def defaults(args: argparse.Namespace) -> dict[str, Any]:
    """Return the defaults that depend on other options."""
    random_crop = args.resize_method == "random-crop"
    values: dict[str, Any] = {"augment": augments(args), "pad_mode": "reflection"}
    if augments(args):
        values |= KNOBS | {"erase": 0.0}
    if random_crop or args.item_size:
        values["min_scale"] = 0.08 if random_crop else 1.0
    return values | ({"ratio": (3 / 4, 4 / 3)} if random_crop else {})


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with one line if these options are wrong or do not go together. Called before `defaults`."""
    for problem in (_of_augmentation(args), _of_crops(args), _of_masks(args), _of_mixing(args)):
        if problem:
            parser.error(problem)


def augments(args: argparse.Namespace) -> bool:
    """Return whether images are augmented, as --augment says or the network suggests."""
    return args.arch != "convnet" if args.augment is None else args.augment


def given(args: argparse.Namespace) -> dict[str, Any]:
    """Return those of these options that differ from what fastai does by itself, to print them."""
    usual = {"resize_method": model.resize_method(args), **KNOBS, "pad_mode": "reflection", "erase": 0.0}
    names = (*usual, "item_size", "min_scale", "ratio", "mixup", "cutmix")
    return {name: getattr(args, name) for name in names if getattr(args, name) not in (None, usual.get(name))}


def _of_augmentation(args: argparse.Namespace) -> str | None:
    names = [*KNOBS, "erase", "item_size", *([] if args.resize_method == "pad" else ["pad_mode"])]
    found = next((name for name in names if getattr(args, name) is not None), None)
    if found and not augments(args):
        return f"{_option(found)} changes the augmentation, and there is none; give --augment true or leave it out"
    chosen = {name: value if getattr(args, name) is None else getattr(args, name) for name, value in KNOBS.items()}
    if chosen["min_zoom"] > chosen["max_zoom"]:
        return f"--min-zoom {chosen['min_zoom']} is above --max-zoom {chosen['max_zoom']}"
    if chosen["flip_vert"] and not chosen["flip"]:
        return "--flip-vert true needs --flip true: fastai turns and mirrors images at once"
    still = all(chosen[name] == value for name, value in zip(MOVES, (False, 0, 0, 1, 1), strict=True))
    if args.item_size and args.min_scale in (None, 1.0) and still:
        return "--item-size needs --min-scale, or a flip, a rotation, a warp or a zoom, which give images their size"
    return None


def _of_crops(args: argparse.Namespace) -> str | None:
    random_crop = args.resize_method == "random-crop"
    if random_crop and args.item_size:
        return "--item-size and --resize-method random-crop both crop; give one of them"
    sizes = (*(args.progressive_sizes or ()), args.image_size or model.image_size(args))
    larger = [size for size in sizes if args.item_size and (size[0] > args.item_size[0] or size[1] > args.item_size[1])]
    if larger:
        item, size = ("x".join(map(str, size)) for size in (args.item_size, larger[0]))
        return f"--item-size {item} is smaller than the images of {size} that are cut from it; give a larger one"
    if args.min_scale == 0:
        return "--min-scale 0: nothing would be left of an image"
    if args.min_scale is not None and not (random_crop or args.item_size):
        return "--min-scale needs --item-size or --resize-method random-crop"
    if args.ratio and not random_crop:
        return "--ratio needs --resize-method random-crop"
    if args.ratio and args.ratio[0] <= 0:
        return f"--ratio {args.ratio[0]:g},{args.ratio[1]:g}: a ratio is above 0"
    return None


def _of_masks(args: argparse.Namespace) -> str | None:
    if args.task != "segmentation":
        return None
    if args.pad_mode == "zeros":
        return "--pad-mode zeros is not for segmentation: masks would be padded with the first class"
    if args.mask_size == "original" and (args.item_size or args.resize_method == "random-crop"):
        name = "--item-size" if args.item_size else "--resize-method random-crop"
        return f"--mask-size original does not go with {name}; leave one of them out"
    return None


def _of_mixing(args: argparse.Namespace) -> str | None:
    if args.mixup and args.cutmix:
        return "--mixup and --cutmix both mix images; give one of them"
    tasks = {"mixup": ("classification", "multilabel", "regression"), "cutmix": ("classification", "multilabel")}
    for name, those in tasks.items():
        if getattr(args, name) is not None and args.task not in those:
            return f"--{name} is not for {args.task}"
        if getattr(args, name) is not None and args.batch_size == 1:
            return f"--{name} mixes the images of a batch; give a --batch-size above 1"
    return None


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
