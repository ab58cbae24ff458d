# An image that serves a bundle, or any model with a config.yaml of Ray Serve, on Ray Serve: without TorchServe and Java.
#
#   docker build -f docker/ray.Dockerfile -t fastmaker-ray .
#   docker run --rm -p 127.0.0.1:8080:8080 -v "$PWD/model:/opt/ml/model:ro" fastmaker-ray
#
# Its versions are those of AWS's Ray images. docker/run.py says what it looks for in /opt/ml.

# Any image with Python 3.10 to 3.13, its venv module and certificates.
ARG BASE_IMAGE=python:3.13-slim-trixie
FROM ${BASE_IMAGE}

# torchvision's wheel is built for one torch. PyPI's torch brings CUDA, some gigabytes: PIP_EXTRA_INDEX_URL can name
# PyTorch's index of CPU builds, whose versions end in +cpu.
ARG TORCH_VERSION=2.10.0
ARG TORCHVISION_VERSION=0.25.0
ARG PIP_EXTRA_INDEX_URL

RUN python3 -m venv /opt/venv \
    && useradd --create-home --uid 1000 fastmaker
ENV PATH=/opt/venv/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1
# What compiles for GPUs while a model runs, and Ray for Java, 0.8 GB; what serves has no use for them.
RUN pip install "torch==${TORCH_VERSION}" "torchvision==${TORCHVISION_VERSION}" \
    && pip uninstall --yes cuda-bindings cuda-pathfinder triton \
    && rm -r /opt/venv/lib/python3*/site-packages/torch/include
COPY constraints.txt /opt/fastmaker/
RUN sed --in-place --regexp-extended '/^torch(vision)?=/d' /opt/fastmaker/constraints.txt \
    && pip install --constraint /opt/fastmaker/constraints.txt numpy onnxruntime openvino pillow psutil pyyaml 'ray[serve]' \
    && rm -rf /opt/venv/lib/python3*/site-packages/ray/jars

ENV FASTMAKER_SERVER=ray
COPY docker/run.py /opt/fastmaker/
COPY jobs/runtime/*.py /opt/fastmaker/fastmaker/jobs/runtime/

EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "/opt/fastmaker/run.py", "healthy"]
ENTRYPOINT ["python", "/opt/fastmaker/run.py"]
CMD ["serve"]
LABEL com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true
