"""Docker in place of processes: the command that starts a container of an image, and its removal.

A container belongs to the directory of a `Container`, beside which its name is kept. `docker run` stays in the
foreground as the process of that Container: it forwards the log, SIGTERM and the exit status. A container outlives a
`docker run` that is killed, which `remove` is for.
"""

import os
import shutil
import subprocess
import time
import uuid
from pathlib import Path

from fastmaker.jobs import instance_types

LABEL = "fastmaker"  # of every container; its value is the directory that the container belongs to
PORT = 8080  # that serving containers listen on
RAY_SERVE = "FASTMAKER_SERVER=ray"  # in the environment of the project's image that serves by Ray Serve
FORWARDED = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION")


def unavailable() -> str | None:
    """Return why no container can be started on this machine, or None."""
    if shutil.which("docker") is None:
        return "there is no `docker` command on this machine"
    done = _docker("version", "--format", "{{.Server.Version}}")
    return f"the Docker engine does not answer: {_last_line(done.stderr)}" if done.returncode else None


def missing(image: str) -> str | None:
    """Return why no container of `image` can be started, or None."""
    if reason := unavailable():
        return reason
    if _docker("image", "inspect", image).returncode:
        return f"no image {image} on this machine: `fastmaker image build` makes one, `docker pull` brings one"
    return None


def serves_by_ray(image: str) -> bool:
    """Return whether an image on this machine is the project's own for Ray Serve, or made from it."""
    return RAY_SERVE in _docker("image", "inspect", "--format", '{{join .Config.Env "\\n"}}', image).stdout.splitlines()


def serving_command(root: Path, image: str, instance_type: str, port: int, env: dict[str, str]) -> list[str]:
    """Return the `docker run` of a server for the model in `root`/model, on loopback alone, at `port`."""
    options = ["--publish", f"127.0.0.1:{port}:{PORT}", "--volume", f"{root / 'model'}:/opt/ml/model:ro"]
    return [*_run(root, image, instance_type, env), *options, image, "serve"]


def serving_environment(env: dict[str, str]) -> dict[str, str]:
    """Return `env` with the management API, which lists the workers, on the server's port, as in AWS's images."""
    return {"TS_MANAGEMENT_ADDRESS": f"http://0.0.0.0:{PORT}", **env}


def training_command(
    root: Path, image: str, instance_type: str, hosts: dict[str, str], folders: list[Path], env: dict[str, str]
) -> list[str]:
    """Return the `docker run` of a host of a training job, with `root` as /opt/ml.

    Links in it lead into `folders`, which are mounted at their own paths. Several `hosts`, whose addresses are given by
    their names, meet on loopback. The first process is an init, so that SIGTERM ends the second at any moment.
    """
    volumes = [f"{root}:/opt/ml", *(f"{folder}:{folder}:ro" for folder in folders)]
    options = [word for volume in volumes for word in ("--volume", volume)]
    network = [word for name, address in hosts.items() for word in ("--add-host", f"{name}:{address}")]
    network += ["--network", "host"] if len(hosts) > 1 else []
    return [*_run(root, image, instance_type, env), "--init", "--shm-size", "2g", *network, *options, image, "train"]


def await_start(root: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until the container of `root` runs, or its `docker run` has ended: signals sent earlier are lost."""
    name = _name_file(root).read_text().splitlines()[0]
    while process.poll() is None and _docker("inspect", "--format", "{{.State.Running}}", name).stdout != "true\n":
        time.sleep(0.05)


def environment(env: dict[str, str]) -> dict[str, str]:
    """Return the environment of `docker run` itself: the caller's, with the values that go to the container."""
    return os.environ | env


def runs(root: Path) -> bool:
    """Return whether it is a container of Docker that belongs to `root`."""
    return _name_file(root).exists()


def _name_file(root: Path) -> Path:
    """Return the file with the names of the container of `root` and of its image, which no script can write."""
    return root.with_name(f".{root.name}.docker")


def remove(root: Path) -> None:
    """End the container of `root`, if there is one, and make the caller the owner of what it wrote."""
    try:
        name, image = _name_file(root).read_text().splitlines()
    except FileNotFoundError:
        return
    _docker("rm", "--force", "--volumes", name)
    if os.getuid() != 0:  # containers run as root, as on AWS
        owner, volume = f"{os.getuid()}:{os.getgid()}", f"{root}:/opt/ml"
        _docker("run", "--rm", "--volume", volume, "--entrypoint", "chown", image, "--recursive", owner, "/opt/ml")
    _name_file(root).unlink(missing_ok=True)  # another thread or process may have been as quick


def _run(root: Path, image: str, instance_type: str, env: dict[str, str]) -> list[str]:
    """Return the beginning of a `docker run`, whose container belongs to `root` from now on.

    It names variables without their values: other users can read the command.
    """
    name = f"fastmaker-{uuid.uuid4()}"
    _name_file(root).write_text(f"{name}\n{image}\n")
    forwarded = [*env, *(variable for variable in FORWARDED if variable in os.environ and variable not in env)]
    variables = [word for variable in forwarded for word in ("--env", variable)]
    gpus = ["--gpus", "all"] if instance_types.is_gpu(instance_type) else []
    return [
        shutil.which("docker") or "docker",
        "run",
        "--rm",
        "--log-driver",
        "none",  # what a container prints goes to container.log alone
        "--name",
        name,
        "--label",
        f"{LABEL}={root}",
        *gpus,
        *variables,
    ]


def _docker(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *words], capture_output=True, text=True)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it says nothing"])[-1]
