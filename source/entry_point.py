"""The one entry point of the managed PyTorch containers: training, and the four functions of serving.

    python source/entry_point.py --train DATA_DIR --model-dir MODEL_DIR --arch resnet34 --epochs 3

In a training container the arguments come as hyperparameters and the directories from SM_* variables; in a serving
container the toolkit calls `model_fn` once in each worker, then `input_fn`, `predict_fn` and `output_fn` for each
request (https://sagemaker.readthedocs.io/en/v2/frameworks/pytorch/using_pytorch.html).
"""

import sys

from fastmaker import preprocess
from fastmaker.serving import wire


def main(argv=None):
    from fastmaker.training import arguments, run

    return run.main(arguments.parse_args(argv))


def model_fn(model_dir, context):
    """The bundle in `model_dir` as a `models.Model`, on this worker's GPU if it has one."""
    import torch

    from fastmaker.serving import models

    gpu = context.system_properties.get("gpu_id") if torch.cuda.is_available() else None
    torch.set_num_threads(models.threads_per_worker())
    model = models.load(model_dir, "cpu" if gpu is None else f"cuda:{gpu}")
    _decode_text_here()
    return model


def input_fn(body, content_type, context=None):
    """A request body as `wire.Images`. Raises a `wire.RequestError`, which is answered with its status."""
    headers = context.get_all_request_header(0) if context else {}
    return wire.decode(body, content_type, wire.header(headers, wire.CUSTOM_ATTRIBUTES))


def predict_fn(request, model):
    """`wire.Images` -> `wire.Answer`."""
    try:
        return wire.Answer(model.predict(request.images, request.mask_size), request.single)
    except preprocess.ImageError as error:
        raise wire.BadRequest(str(error)) from None


def output_fn(answer, accept):
    """The answer's bytes and their content type. Raises `wire.NotAcceptable`."""
    return wire.check_response_size(*wire.encode(answer, accept))


def _decode_text_here():
    """Let `content` decode text: the toolkit does it before input_fn, and answers bytes that are not UTF-8 with 500."""
    from sagemaker_inference import content_types

    content_types.UTF8_TYPES.clear()


if __name__ == "__main__":
    sys.exit(main())
