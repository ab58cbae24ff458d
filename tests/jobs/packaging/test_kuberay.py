"""The manifest by which KubeRay serves a bundle: what stands in it, and the schema and the Ray that take it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import urllib3
import yaml
from helpers.engine import docker
from helpers.local_mode import wait_until
from helpers.task_bundles import save

from fastmaker.jobs import package
from fastmaker.jobs.packaging import kuberay
from fastmaker.jobs.runtime.ray_launcher import SETTINGS
from fastmaker.local.containers import free_ports, pack
from fastmaker.serving import settings

S3 = "s3://amzn-s3-demo-bucket/model.tar.gz"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return save(tmp_path_factory.mktemp("bundle") / "My_Model.1", "regression")


def made(bundle, *words):
    """The manifest that the command writes, beside the bundle."""
    file = bundle.parent / "manifest.yaml"
    words = ["ray", "--kuberay", str(bundle), "--output", str(file), "--force", *words]
    package.main(package.parse_args(words))
    return yaml.safe_load(file.read_text())


def pods(manifest):
    cluster = manifest["spec"]["rayClusterConfig"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def application(manifest):
    [found] = yaml.safe_load(manifest["spec"]["serveConfigV2"])["applications"]
    return found


@pytest.mark.parametrize(
    ("words", "replicas", "of_each", "resources"),
    [
        ([], 4, {"num_cpus": 1, "num_gpus": 0}, {"cpu": "2", "memory": "4Gi"}),
        (["--pods", "3", "--cpus", "8"], 24, {"num_cpus": 1, "num_gpus": 0}, {"cpu": "8", "memory": "4Gi"}),
        (
            ["--gpus", "2", "--memory", "9Gi"],
            4,
            {"num_cpus": 1, "num_gpus": 1},
            {"cpu": "2", "memory": "9Gi", "nvidia.com/gpu": "2"},
        ),
    ],
)
def test_there_is_a_replica_for_each_core_or_gpu_of_the_pods(bundle, words, replicas, of_each, resources):
    manifest = made(bundle, "--claim", "models", *words)
    [deployment] = application(manifest)["deployments"]
    assert (deployment["num_replicas"], deployment["ray_actor_options"]) == (replicas, of_each)
    head, worker = (pod["containers"][0] for pod in pods(manifest))
    assert worker["resources"] == {"requests": resources, "limits": resources}
    assert "nvidia.com/gpu" not in head["resources"]["limits"]
    image = f"public.ecr.aws/deep-learning-containers/ray:serve-ml-{'cuda' if '--gpus' in words else 'cpu'}"
    assert head["image"] == worker["image"] == image


def test_a_tuned_bundle_has_its_threads(bundle, tmp_path):
    tuned = save(tmp_path / "tuned", "regression")
    settings.save(tuned, settings.Settings(workers=2, threads=4))
    manifest = made(tuned, "--claim", "models", "--cpus", "8", "--pods", "1")
    [deployment] = application(manifest)["deployments"]
    assert (deployment["num_replicas"], deployment["ray_actor_options"]["num_cpus"]) == (2, 4)
    assert {"name": "FASTMAKER_THREADS", "value": "4"} in pods(manifest)[1]["containers"][0]["env"]


def test_pods_run_without_privileges_and_are_probed_without_programs(bundle):
    for pod in pods(made(bundle, "--claim", "models")):
        assert pod["securityContext"]["runAsNonRoot"]
        [container] = pod["containers"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert all("httpGet" in container[probe] for probe in ("livenessProbe", "readinessProbe"))


def test_the_model_comes_from_s3_a_volume_or_the_image(bundle, s3, bucket):
    uri = f"s3://{bucket}/m.tar.gz"
    uploaded = made(bundle, "--upload", uri)
    for pod in pods(uploaded) + pods(made_of(uri, bundle)):
        [fetch] = pod["initContainers"]
        assert fetch["command"][3:] == [uri, "/opt/ml/model"]
    claimed, baked = made(bundle, "--claim", "models"), made(bundle, "--image", "own:1")
    assert not any("initContainers" in pod for pod in pods(claimed) + pods(baked))
    assert not any("volumes" in pod for pod in pods(baked))
    volume = pods(claimed)[0]["volumes"][0]["persistentVolumeClaim"]
    assert volume == {"claimName": "models", "readOnly": True}


def made_of(uri, bundle):
    file = bundle.parent / "of-s3.yaml"
    package.main(package.parse_args(["ray", "--kuberay", uri, "--output", str(file), "--name", "m"]))
    return yaml.safe_load(file.read_text())


def test_what_a_pod_runs_to_fetch_the_model_does(bundle, s3, bucket, tmp_path):
    pack(bundle, tmp_path / "m.tar.gz")
    s3.upload_file(str(tmp_path / "m.tar.gz"), bucket, "a/m.tar.gz")
    (tmp_path / "model").mkdir()
    command = [sys.executable, "-c", kuberay.FETCH, f"s3://{bucket}/a/m.tar.gz", str(tmp_path / "model")]
    subprocess.run(command, check=True)
    names = {str(path.relative_to(bundle)) for path in bundle.rglob("*")}
    assert {str(path.relative_to(tmp_path / "model")) for path in (tmp_path / "model").rglob("*")} == names


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "where pods do not find it: give --upload s3://BUCKET/KEY.tar.gz, --claim NAME"),
        (["--upload", "s3://bucket/folder"], "expected s3://BUCKET/KEY.tar.gz"),
        (["--claim", "models", "--name", "No_Name"], "'No_Name' is no name for a RayService"),
    ],
)
def test_what_no_cluster_could_serve_is_refused(bundle, words, says):
    with pytest.raises(ValueError, match=says):
        made(bundle, *words)


def asked(port, body) -> tuple[int, bytes]:
    """The status and the answer of Ray Serve; 0 before it listens."""
    try:
        answer = urllib3.request("POST", f"http://127.0.0.1:{port}/", body=body, retries=False)
    except urllib3.exceptions.HTTPError:
        return 0, b""
    return answer.status, answer.data


@pytest.mark.ray
def test_the_application_of_a_manifest_answers_as_the_entry_point(digits_bundle, pngs, by_the_entry_point, tmp_path):
    """As the head of a cluster gets it, with the variables of its pods; only /opt/ml/model lies elsewhere."""
    manifest = made(digits_bundle, "--claim", "models", "--pods", "1")
    (port,) = free_ports(1)
    configured = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump({**configured, "http_options": {"port": port}}))
    variables = {item["name"]: item["value"] for item in pods(manifest)[1]["containers"][0]["env"]}
    variables["PYTHONPATH"] = variables["PYTHONPATH"].replace(kuberay.MODEL_DIR, str(digits_bundle))
    command = [sys.executable, "-m", "ray.serve.scripts", "run", "serve.yaml"]
    with open(tmp_path / "log", "w") as log:
        env = {**os.environ, **SETTINGS, **variables}
        server = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=log, stderr=log)
    try:
        wait_until(lambda: asked(port, pngs[0])[0] == 200 or server.poll() is not None)
        assert server.poll() is None, (tmp_path / "log").read_text()
        for body in pngs[:5]:
            assert asked(port, body) == (200, by_the_entry_point(digits_bundle, body, None, None)[0])
        assert asked(port, b"damaged")[0] == 415
    finally:
        server.terminate()
        server.wait(60)


@pytest.mark.docker
@pytest.mark.parametrize("number", [0, 1])
def test_a_pod_imports_what_serves_as_a_user_whom_its_image_does_not_know(bundle, ray_image, tmp_path, number):
    pod = pods(made(bundle, "--claim", "models"))[number]
    (tmp_path / "passwd").touch()
    volumes = {"/etc/passwd": tmp_path / "passwd", kuberay.MODEL_DIR: bundle}
    options = [word for inside, file in volumes.items() for word in ("--volume", f"{file}:{inside}:ro")]
    options += [word for it in pod["containers"][0]["env"] for word in ("--env", f"{it['name']}={it['value']}")]
    user = "{runAsUser}:{runAsGroup}".format(**pod["securityContext"])
    program = "import getpass, os, fastmaker.serving.ray_serve; print(os.getuid(), getpass.getuser())"
    command = ["--user", user, "--entrypoint", "python", ray_image, "-c", program]
    assert docker("run", "--rm", *options, *command) == "1000 ray"


@pytest.mark.slow
@pytest.mark.skipif("FASTMAKER_KUBERAY_CRD" not in os.environ, reason="FASTMAKER_KUBERAY_CRD names no file")
@pytest.mark.parametrize("words", [["--upload", S3], ["--claim", "m", "--gpus", "1"], ["--image", "own:1"]])
def test_kuberays_schema_takes_it_and_knows_every_field(bundle, words, monkeypatch):
    monkeypatch.setattr(package.storage, "put", lambda file, uri: None)
    definition = yaml.safe_load(Path(os.environ["FASTMAKER_KUBERAY_CRD"]).read_text())
    [schema] = [of["schema"]["openAPIV3Schema"] for of in definition["spec"]["versions"] if of["name"] == "v1"]
    schema = strict(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    manifest = made(bundle, *words, "--namespace", "n", "--service-account", "s")
    assert [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(manifest)] == []
    manifest["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["container"] = []
    assert list(jsonschema.Draft7Validator(schema).iter_errors(manifest))


def strict(schema):
    """A schema of Kubernetes as JSON Schema, which refuses fields that it does not know; a cluster drops them."""
    text = json.dumps(schema)

    def changed(part):
        if "properties" in part and isinstance(part["properties"], dict) and "additionalProperties" not in part:
            part["additionalProperties"] = bool(part.get("x-kubernetes-preserve-unknown-fields"))
        if part.get("x-kubernetes-int-or-string"):
            part.pop("type", None)
        return part

    return json.loads(text, object_hook=changed)
