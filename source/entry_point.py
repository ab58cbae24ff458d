"""The entry point of the managed PyTorch containers: training, and the four functions of serving.

    python source/entry_point.py --train DATA_DIR --model-dir MODEL_DIR --arch resnet34 --epochs 3

In a training container, the arguments come from hyperparameters and the directories from SM_* variables. In a serving
container, the toolkit calls `model_fn` once in each worker, and `input_fn`, `predict_fn` and `output_fn` for each
request (https://sagemaker.readthedocs.io/en/v2/frameworks/pytorch/using_pytorch.html).
"""

import sys

from fastmaker.serving.toolkit import input_fn, output_fn, predict_fn

__all__ = ["input_fn", "main", "model_fn", "output_fn", "predict_fn"]


def main(argv=None):
    """Train with the arguments `argv`, and return the exit status."""
    from fastmaker.training import arguments, run

    return run.main(arguments.parse_args(argv))


def model_fn(model_dir, context):
    """Return the bundle in `model_dir` as a `models.Model`, on this worker's GPU if it has one."""
    import torch

    from fastmaker.serving import models, toolkit

    gpu = context.system_properties.get("gpu_id") if torch.cuda.is_available() else None
    torch.set_num_threads(models.threads_per_worker(models.toolkit_workers(), model_dir))
    model = models.load(model_dir, "cpu" if gpu is None else f"cuda:{gpu}")
    toolkit.prepare()
    return model


if __name__ == "__main__":
    sys.exit(main())
