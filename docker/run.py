"""What the images run: ``serve`` on port 8080 what lies in /opt/ml/model, tell whether that is ``healthy``, ``train``.

A bundle, or any model directory of the PyTorch serving toolkit, is served by the toolkit; one TorchServe archive
(*.mar) by TorchServe alone. In the image of Ray Serve (FASTMAKER_SERVER=ray) it serves a bundle, or any model with a
config.yaml. All answer GET /ping and POST /invocations, the contract of SageMaker's inference containers:
https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
The training toolkit runs the script that /opt/ml/input/config names, as in SageMaker's training containers:
https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo-running-container.html
"""

import json
import os
import pwd
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

MODEL_DIR = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"), "model")
RAY_SERVE = os.environ.get("FASTMAKER_SERVER") == "ray"
PORT = os.environ.get("SAGEMAKER_BIND_TO_PORT", "8080")
USER = "fastmaker"
SETTINGS = {"workers": "SAGEMAKER_MODEL_SERVER_WORKERS", "batch_size": "SAGEMAKER_TS_BATCH_SIZE"}
PROPERTIES = "enable_envvars_config=true\ndisable_token_authorization=true\n"


def serve() -> None:
    """Serve until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # which process 1 would not heed until there is a server
    name_user()
    (serve_by_ray if RAY_SERVE else serve_by_torchserve)()


def serve_by_ray() -> None:
    """Serve the model's application; exit if it has none."""
    if not ((MODEL_DIR / "config.yaml").is_file() or "SM_RAYSERVE_APP" in os.environ):
        sys.exit(
            f"error: expected in {MODEL_DIR} a model with a config.yaml, as bundles have, found: {what_is_there()}"
        )
    follow_settings()
    give_up_root()
    os.environ |= {"FASTMAKER_HOST": "0.0.0.0", "FASTMAKER_PORT": PORT, "FASTMAKER_RAY_PORT": "8000"}

    from fastmaker.jobs.runtime import ray_launcher

    sys.exit(ray_launcher.main())


def serve_by_torchserve() -> None:
    """Serve a model directory of the toolkit, or an archive."""
    archive = find_archive()
    os.environ.setdefault("SAGEMAKER_PROGRAM", "entry_point.py")  # here alone: `train` would put it above the job's own
    follow_settings()
    os.environ["TS_INFERENCE_ADDRESS"] = f"http://0.0.0.0:{PORT}"
    start_all_workers()
    give_up_root()
    os.chdir(tempfile.gettempdir())  # the servers write where they start
    Path(".model_server.pid").unlink(missing_ok=True)  # of before the container was stopped

    from fastmaker.jobs.runtime import torchserve_launcher

    if archive is None:
        torchserve_launcher.main()
    else:
        Path("ts.properties").write_text(PROPERTIES)
        command = [sys.executable, "-m", "ts.model_server", "--start", "--ncs", "--ts-config", "ts.properties"]
        command += ["--model-store", str(MODEL_DIR), "--models", f"model={archive.name}"]
        subprocess.run(command, check=True)
        server = torchserve_launcher.server_process()
        signal.signal(signal.SIGTERM, lambda *_: server.terminate())
        server.wait()


def find_archive() -> Path | None:
    """Return the archive in the model directory, None for one that the toolkit serves; exit if it is neither."""
    archives = sorted(path for path in MODEL_DIR.glob("*.mar") if not path.name.startswith("."))  # as a Mac's ._x.mar
    if len(archives) == 1:
        return archives[0]
    if archives or not (MODEL_DIR / "code").is_dir():
        expected = "a bundle (model.json, model.pth, code) or one .mar"
        sys.exit(f"error: expected in {MODEL_DIR} {expected}, found: {what_is_there()}")
    return None


def what_is_there() -> str:
    """Return the names in the model directory, as a list in a sentence."""
    return ", ".join(sorted(path.name for path in MODEL_DIR.glob("*"))) or "nothing"


def follow_settings() -> None:
    """Set the workers and batches of a bundle's serving.json, where no variable says otherwise.

    Each worker checks the file when it loads the bundle, and says what is wrong with it.
    """
    try:
        settings = json.loads((MODEL_DIR / "serving.json").read_text())
        found = {name: settings[key] for key, name in SETTINGS.items() if key in settings}
    except (OSError, ValueError, TypeError):
        return
    for name, value in found.items():
        # A batch of 1 is the server's own, and any such variable changes the toolkit's timeouts.
        if type(value) is int and value > (name == SETTINGS["batch_size"]):
            os.environ.setdefault(name, str(value))


def start_all_workers() -> None:
    """Have the toolkit start the workers that are asked for: once such a variable is set, it starts one by itself."""
    workers = os.environ.get(SETTINGS["workers"], "")
    if workers.isdigit() and int(workers) and any(name.startswith("SAGEMAKER_TS_") for name in os.environ):
        for name in ("SAGEMAKER_TS_MIN_WORKERS", "SAGEMAKER_TS_MAX_WORKERS"):
            os.environ.setdefault(name, workers)


def name_user() -> None:
    """Name a user whom the image does not know, such as that of `--user 4321`: some versions of torch need a name."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        os.environ.setdefault("USER", USER)


def give_up_root() -> None:
    """Become an ordinary user if that user may read the model: SageMaker starts containers as root."""
    if os.getuid() != 0:
        return
    user = pwd.getpwnam(USER)
    os.setgroups([])
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)
    unreadable = next((path for path in (MODEL_DIR, *MODEL_DIR.rglob("*")) if not may_read(path)), None)
    os.seteuid(0)
    os.setegid(0)
    if unreadable:
        print(f"{USER} may not read {unreadable}: serving as root", flush=True)
        return
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    os.environ["HOME"] = user.pw_dir


def may_read(path: Path) -> bool:
    """Return whether the effective user may read the file or folder."""
    mode = os.R_OK | os.X_OK if path.is_dir() else os.R_OK
    return os.access(path, mode, effective_ids=True)


def healthy() -> None:
    """Exit 0 if every worker has loaded the model."""
    try:
        if RAY_SERVE:  # /ping answers once the application runs
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/ping", timeout=4).close()
            return
        # /ping says 200 before that.
        with urllib.request.urlopen(os.environ["TS_MANAGEMENT_ADDRESS"] + "/models/model", timeout=4) as answer:
            states = [worker["status"] for worker in json.load(answer)[0]["workers"]]
    except OSError as error:
        sys.exit(f"the server does not answer: {error}")
    print(f"workers: {', '.join(states) or 'none'}")
    sys.exit(set(states) != {"READY"})


def train() -> None:
    """Run the training job; SIGTERM is forwarded to its script, which the toolkit does not do."""
    try:
        from sagemaker_pytorch_container import training
        from sagemaker_training import modules, torch_distributed
        from sagemaker_training.cli.train import main
    except ImportError:
        sys.exit("error: this image serves alone; `docker build --target training` makes one that trains as well")
    from fastmaker.jobs.runtime import requirements

    sys.path.pop(0)  # this folder, whose module names are ours alone: scripts are given the toolkit's path
    # pip runs for what is missing alone, so that a job needs no network.
    modules.has_requirements = lambda path: not requirements.met(Path(path, "requirements.txt"))
    if port := os.environ.get("FASTMAKER_MASTER_PORT"):  # where hosts share a machine with those of other jobs
        training.MASTER_PORT = torch_distributed.MASTER_PORT = port
    signal.signal(signal.SIGTERM, stop_training)
    main()


def stop_training(number, frame) -> None:
    """Send SIGTERM to the script, or end if it has not been started."""
    import psutil

    scripts = psutil.Process().children()
    for script in scripts:
        script.terminate()
    if not scripts:
        sys.exit(128 + number)


if __name__ == "__main__":
    commands = {"serve": serve, "healthy": healthy, "train": train}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        sys.exit(f"error: expected one of {', '.join(commands)}, not {' '.join(sys.argv[1:]) or 'nothing'}")
    commands[sys.argv[1]]()
