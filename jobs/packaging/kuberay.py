"""The RayService manifest of a bundle, by which KubeRay serves it on Kubernetes: HyperPod's EKS, or any other.

https://docs.ray.io/en/latest/cluster/kubernetes/user-guides/rayservice.html
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmaker import bundle
from fastmaker.serving import settings

MODEL_DIR = "/opt/ml/model"  # in each pod, as in AWS's images
IMAGE = "public.ecr.aws/deep-learning-containers/ray:serve-ml-{device}"  # https://aws.github.io/deep-learning-containers/ray/
RAY_VERSION = "2.57.1"
IMPORT_PATH = "fastmaker.serving.ray_serve:app"  # of the application whose replicas are counted here
DEPLOYMENT = "Bundle"
NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")  # RFC 1035, with room for what KubeRay adds
USER = 1000
AGENT_PORT, DASHBOARD_PORT, SERVE_PORT = 52365, 8265, 8000
# Runs in the image itself, which has Python and boto3.
FETCH = """\
import boto3, sys, tarfile
bucket, _, key = sys.argv[1].removeprefix("s3://").partition("/")
archive = sys.argv[2] + "/.model.tar.gz"
boto3.client("s3").download_file(bucket, key, archive)
with tarfile.open(archive) as tar:
    tar.extractall(sys.argv[2], filter="data")
import os; os.remove(archive)
"""


@dataclass(frozen=True)
class Options:
    """What a manifest asks of the cluster."""

    name: str
    model_uri: str | None = None  # an archive in S3, which each pod fetches
    claim: str | None = None  # a PersistentVolumeClaim, whose root is the unpacked bundle; else it is in the image
    image: str | None = None  # by default AWS's
    ray_version: str = RAY_VERSION  # of the image
    pods: int = 2  # that serve, beside the head
    cpus: int = 2  # of each of them
    gpus: int = 0
    memory: str = "4Gi"
    namespace: str | None = None
    service_account: str | None = None  # with a role that may read the archive


# Those that fastmaker package has by the same names.
FIELDS = ("claim", "image", "ray_version", "pods", "cpus", "gpus", "memory", "namespace", "service_account")


def to_yaml(manifest: dict[str, Any]) -> str:
    """Return a manifest as text, in which texts of several lines stand as such."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)

    Dumper.add_representer(str, represent)
    Dumper.ignore_aliases = lambda self, data: True
    text: str = yaml.dump(manifest, Dumper=Dumper, sort_keys=False, width=120)
    return text


def manifest(model_dir: Path, options: Options) -> dict[str, Any]:
    """Return the RayService of the bundle in `model_dir`. Raises ValueError."""
    if not NAME.fullmatch(options.name):
        raise ValueError(
            f"{options.name!r} is no name for a RayService: expected up to 40 lower-case letters, digits and '-', the"
            " first a letter; give it another by --name"
        )
    own = settings.load(model_dir) or settings.Settings()
    threads = 1 if options.gpus else min(own.threads, options.cpus)
    replicas = options.pods * (options.gpus or options.cpus // threads)
    metadata = {"name": options.name, **({"namespace": options.namespace} if options.namespace else {})}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": metadata,
        "spec": {
            "serveConfigV2": _serve_config(model_dir, replicas, threads, options),
            "rayClusterConfig": {
                "rayVersion": options.ray_version,
                "headGroupSpec": {
                    # No replica runs there: a model that needs too much memory does not end the cluster.
                    "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0"},
                    "template": {"spec": _pod("ray-head", options, threads, replicas)},
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "workers",
                        "replicas": options.pods,
                        "minReplicas": options.pods,
                        "maxReplicas": options.pods,
                        "rayStartParams": {},
                        "template": {"spec": _pod("ray-worker", options, threads, replicas)},
                    }
                ],
            },
        },
    }


def _serve_config(model_dir: Path, replicas: int, threads: int, options: Options) -> str:
    """Return the bundle's own config.yaml, with the number of replicas of our application."""
    import yaml

    file = model_dir / bundle.RAY_FILE
    if not file.is_file():
        raise ValueError(f"{model_dir} has no {bundle.RAY_FILE}: an earlier version wrote it. Save the model again")
    configured = yaml.safe_load(file.read_bytes())
    for application in configured["applications"]:
        if application["import_path"] == IMPORT_PATH:
            of_replica = {"num_cpus": threads, "num_gpus": 1 if options.gpus else 0}
            application["deployments"] = [
                {"name": DEPLOYMENT, "num_replicas": replicas, "ray_actor_options": of_replica}
            ]
    text: str = yaml.safe_dump(configured, sort_keys=False)
    return text


def _pod(container: str, options: Options, threads: int, replicas: int) -> dict[str, Any]:
    """Return the specification of the head's pod or of one that serves: as an ordinary user, without privileges."""
    head = container == "ray-head"
    image = options.image or IMAGE.format(device="cuda" if options.gpus else "cpu")
    resources = {"cpu": "1" if head else str(options.cpus), "memory": "4Gi" if head else options.memory}
    if options.gpus and not head:
        resources["nvidia.com/gpu"] = str(options.gpus)
    volumes = _volumes(options)
    mounts = [{"name": volume["name"], "mountPath": MODEL_DIR, "readOnly": True} for volume in volumes]
    unprivileged = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    own = {
        "name": container,
        "image": image,
        "env": [{"name": name, "value": value} for name, value in _environment(threads, replicas).items()],
        "ports": _ports(head),
        "resources": {"requests": resources, "limits": resources},
        "volumeMounts": mounts,
        "securityContext": unprivileged,
        **_probes(head),
    }
    fetch = {
        "name": "model",
        "image": image,
        "command": ["python", "-c", FETCH, str(options.model_uri), MODEL_DIR],
        "volumeMounts": [{"name": "model", "mountPath": MODEL_DIR}],
        "securityContext": unprivileged,
    }
    return {
        **({"serviceAccountName": options.service_account} if options.service_account else {}),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **({"initContainers": [fetch]} if options.model_uri else {}),
        "containers": [own],
        **({"volumes": volumes} if volumes else {}),
    }


def _environment(threads: int, replicas: int) -> dict[str, str]:
    return {
        "PYTHONPATH": f"{MODEL_DIR}/{bundle.CODE_DIR}",
        settings.THREADS: str(threads),
        settings.WORKERS: str(replicas),
        # The user has no entry in the image; torch 2.10 asks for the name when torchvision is imported.
        "HOME": "/tmp",
        "USER": "ray",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _volumes(options: Options) -> list[dict[str, Any]]:
    if options.model_uri:
        return [{"name": "model", "emptyDir": {}}]
    if options.claim:
        return [{"name": "model", "persistentVolumeClaim": {"claimName": options.claim, "readOnly": True}}]
    return []


def _ports(head: bool) -> list[dict[str, Any]]:
    names = {"dashboard": DASHBOARD_PORT, "gcs-server": 6379, "client": 10001} if head else {}
    return [{"name": name, "containerPort": port} for name, port in (names | {"serve": SERVE_PORT}).items()]


def _probes(head: bool) -> dict[str, Any]:
    """Return probes over HTTP: KubeRay's own of pods that serve run wget, which AWS's image lacks.

    A pod that serves is ready when Ray Serve's proxy on it is; the head has none.
    """
    alive = {"path": "/api/healthz", "port": AGENT_PORT}
    ready = alive if head else {"path": "/-/healthz", "port": SERVE_PORT}
    return {
        "livenessProbe": {"httpGet": alive, "initialDelaySeconds": 30, "periodSeconds": 5, "failureThreshold": 120},
        "readinessProbe": {"httpGet": ready, "initialDelaySeconds": 10, "periodSeconds": 5, "timeoutSeconds": 5},
    }
