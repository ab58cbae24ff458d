"""Which of AWS's PyTorch images jobs run on; local mode without Docker takes the versions as they come."""

# The newest that SDK v2 knows (https://github.com/aws/deep-learning-containers/blob/master/available_images.md).
TRAINING = {"framework_version": "2.8.0", "py_version": "py312"}
INFERENCE = {"framework_version": "2.6.0", "py_version": "py312"}
# The last of AWS's inference images of PyTorch has had no patches since.
UNPATCHED_SINCE = "2026-06-30"
# What has them: https://aws.github.io/deep-learning-containers/ray/. For GPUs its CUDA needs the driver of this AMI.
RAY_REPOSITORY = "ray"
RAY_GPU_AMI = "al2-ami-sagemaker-inference-gpu-3-1"
# PyTorch 2.8's builds for CUDA 12.8 and 12.9 have no code for V100s any more (its release notes); 2.6's do.
VOLTA_TRAINING = {"framework_version": "2.6.0", "py_version": "py312"}
VOLTA = ("ml.p3.", "ml.p3dn.")
# GPUs that PyTorch's builds have code for since 2.7 (its release notes).
BLACKWELL = ("ml.g7.", "ml.g7e.", "ml.p6-")
