"""One container as processes, or one of Docker's: its /opt/ml tree, environment, toolkit process, log and stop.

The toolkits take SAGEMAKER_BASE_DIR in place of /opt/ml. Any process of the same user finds and ends the processes of a
container: see `processes`.
"""

import contextlib
import fnmatch
import importlib.metadata
import os
import platform
import secrets
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import psutil

from fastmaker import files
from fastmaker.jobs.runtime import server_log
from fastmaker.jobs.runtime.requirements import met
from fastmaker.jobs.storage import objects
from fastmaker.local import archives, docker, processes

# What a container sees of the caller's environment: how to reach programs and hosts, never what to compute.
FORWARDED = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_*", "TZ", "TERM", "LD_LIBRARY_PATH", "DYLD_*"),
    *("*_proxy", "*_PROXY", "SSL_CERT_*", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_*", "AWS_*"),
    *("CUDA_*", "NVIDIA_*", "TORCH_HOME", "FASTAI_HOME", "XDG_CACHE_HOME", "HF_HOME"),
)
# Below the ports that the kernel gives to outgoing connections, so that none is taken between choice and use.
PORTS = range(20000, 32000)
PREFIX = "fastmaker-"  # of the names of temporary folders
TOKEN_FILE = ".fastmaker-container"  # in the container's root and in its temporary folder, with the same content
LOG_TAIL = 16 * 2**20  # bytes of a log that are read for its last lines: a script may print without end


class ContainerError(Exception):
    """A container could not be prepared or started; the message is a FailureReason."""


class Container:
    """Run processes with the directory `root` as /opt/ml; `root`/container.log holds what they print."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log = root / "container.log"
        self.tmp = root / "tmp"
        self._started = processes.Started(root)
        self._server: psutil.Process | None = None  # that was found to accept connections

    def create(self) -> None:
        """Make the tree that the SageMaker platform makes before it starts a container."""
        for folder in ("input/config", "input/data", "model", "output/data"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        self.renew_temporary()

    def renew_temporary(self) -> None:
        """Make an empty temporary folder, in place of the one that there was."""
        self._remove_temporary()
        for path in (self.tmp, self.root / TOKEN_FILE):  # a script may have made it a link
            path.unlink(missing_ok=True)
        token = secrets.token_hex(16)
        temporary = Path(_short_temporary_folder(), _folder_name(token))
        (self.root / TOKEN_FILE).write_text(token)
        self.tmp.symlink_to(temporary)  # first: what is made after it is found though its maker is killed
        temporary.mkdir(mode=0o700)
        (temporary / TOKEN_FILE).write_text(token)

    def environment(self, extra: dict[str, str]) -> dict[str, str]:
        """Return the processes' environment: `extra` over what is forwarded from the caller."""
        env = {k: v for k, v in os.environ.items() if any(fnmatch.fnmatchcase(k, name) for name in FORWARDED)}
        root, tmp = str(self.root), os.path.realpath(self.tmp)
        env |= {processes.TREE_VARIABLE: root, "SAGEMAKER_BASE_DIR": root, "TMPDIR": tmp, "PYTHONUNBUFFERED": "1"}
        # OpenMP's threads spin while they wait: where they share cores with other work, each slows all down by far.
        env["OMP_WAIT_POLICY"] = "PASSIVE"
        overlay = [str(path) for path in self.root.glob("overlay/lib/python*/site-packages")]
        if overlay:
            env["PYTHONPATH"] = os.pathsep.join(overlay)
        # Programs of the environment that runs us come first: the toolkits call `torchserve` by its name.
        env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
        return env | extra

    def install_requirements(self, code_dir: Path, env: dict[str, str], package: bool = False) -> None:
        """Install what `code_dir`/requirements.txt names and this environment lacks, below the container's root.

        With `package` install what `code_dir` holds as well. Raises ContainerError.
        """
        requirements = code_dir / "requirements.txt"
        wanted = ["."] if package else []
        wanted += [] if met(requirements) else ["-r", str(requirements)]
        if not wanted:
            return
        python = str(self.make_overlay() / "python")
        command = [python, "-m", "pip", "install", "--disable-pip-version-check", *wanted]
        with open(self.log, "ab") as log:
            done = subprocess.run(command, cwd=code_dir, env=env, stdout=log, stderr=log)
        if done.returncode:
            what = "the source directory" if package else "requirements.txt"
            raise ContainerError(f"pip could not install {what}: {self.last_line()}")

    def make_overlay(self, programs: Mapping[str, str] = MappingProxyType({})) -> Path:
        """Make an environment of the container's own, which has this one's packages too; return its folder of programs.

        `programs` are modules by the names under which they can be called.
        """
        overlay = self.root / "overlay"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", overlay], check=True)
        site_packages = next(overlay.glob("lib/python*/site-packages"))
        inherited = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        (site_packages / "inherited.pth").write_text("".join(path + "\n" for path in inherited))
        for name, module in programs.items():  # a path after #! could be too long
            program = overlay / "bin" / name
            program.write_text(f'#!/bin/sh\nexec "${{0%/*}}/python" -m {module} "$@"\n')
            program.chmod(0o755)
        return overlay / "bin"

    def start_server(self, command: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start `command` as `start` does, with a log that does not grow without end."""
        return self.start([sys.executable, server_log.__file__, str(self.log), *command], env)

    def start(self, command: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start `command` in a process session of its own, its output going to the log."""
        return self._started.run(command, self.root, env, self.log)

    def processes(self) -> list[psutil.Process]:
        """Return the container's processes that are alive, the one that `start` started first."""
        return self._started.processes()

    def alive(self) -> bool:
        """Return whether what `start` starts is alive, or about to be; its children may outlive it."""
        return self._started.alive()

    def accepts(self, port: int) -> bool:
        """Return whether it is this container that accepts connections at `port`, rather than a program of others."""
        if docker.runs(self.root):  # Docker has the port for the container, or does not start it
            return self.alive()
        if self._server and self._server.is_running() and processes.listens([self._server], port):
            return True
        self._server = processes.listens(self.processes(), port)
        return self._server is not None

    def stop(self, grace_seconds: float) -> None:
        """Send SIGTERM, then SIGKILL to what is left after `grace_seconds`; return when nothing runs."""
        stop_processes(self.processes, grace_seconds)
        docker.remove(self.root)

    def close(self, grace_seconds: float = 0) -> None:
        """Stop the processes and remove the temporary files; logs and results stay."""
        self.stop(grace_seconds)
        self._remove_temporary()

    def _remove_temporary(self) -> None:
        """Remove the temporary folder, but none that the link leads to in its place: a script can change it."""
        with contextlib.suppress(OSError):
            temporary = Path(os.readlink(self.tmp))
            if not temporary.is_absolute() or temporary.is_symlink() or not temporary.name.startswith(PREFIX):
                return
            token, its_own = (_small_file(folder / TOKEN_FILE) for folder in (self.root, temporary))
            if token and token == its_own:
                shutil.rmtree(temporary, ignore_errors=True)
            elif temporary.name == _folder_name(token.decode("ascii", "replace")):
                temporary.rmdir()  # it is empty: its maker was killed before it wrote the token

    def set_log_aside(self) -> None:
        """Keep the log as container.1.log, in place of an earlier one; what is started next has a new log."""
        aside = server_log.aside(self.log)
        with contextlib.suppress(FileNotFoundError):
            self.log.replace(aside)
            server_log.times_of(self.log).replace(server_log.times_of(aside))

    def note(self, line: str) -> None:
        """Add a line to the log, if there is space for it."""
        if self.log.is_file() or not self.log.exists():
            with contextlib.suppress(OSError), open(self.log, "a", encoding="utf-8") as log:
                log.write(line + "\n")

    def note_stand_in(self, image: str | None) -> None:
        """Say in the log what runs in place of an image of AWS."""
        if image:
            version = importlib.metadata.version("torch")
            self.note(f"torch {version} and Python {platform.python_version()} of this machine stand in for {image}")

    def last_line(self) -> str:
        """Return the last line of the log that is not blank."""
        lines = [line.strip() for line in self.log_tail(50).splitlines() if line.strip()]
        return lines[-1] if lines else "the log is empty"

    def log_tail(self, lines: int | None) -> str:
        """Return the last `lines` lines of the log, or all of the last LOG_TAIL bytes; empty if there is no log."""
        if not self.log.is_file():  # a script may have put a pipe there
            return ""
        try:
            with open(self.log, "rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - LOG_TAIL))
                return "\n".join(log.read().decode("utf-8", "replace").splitlines()[-(lines or 0) :])
        except FileNotFoundError:
            return ""


def end_below(directory: Path, depth: int = 1) -> None:
    """End what runs in a directory, then the containers that lie `depth` folders down in it.

    Deeper lie the files of users.
    """
    for level in (0, depth):
        for folder in sorted(directory.glob("*/" * level)) if level else [directory]:
            above = [folder, *folder.parents][:level]
            signs = (folder / name for name in (processes.PROCESS_FILE, TOKEN_FILE))
            if not any(path.is_symlink() for path in above) and any(map(os.path.lexists, signs)):
                Container(folder).close()


def stop_processes(find: Callable[[], list[psutil.Process]], grace_seconds: float) -> None:
    """End the processes that `find` returns until it returns none: by SIGTERM, after `grace_seconds` by SIGKILL."""
    processes.stop(find, grace_seconds)
    processes.reap()


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive into `folder`, as `archives.unpack` does. Raises ContainerError."""
    try:
        archives.unpack(archive, folder)
    except archives.ArchiveError as error:
        raise ContainerError(str(error)) from None


def pack(folder: Path | list[Path], archive: Path) -> None:
    """Write the content of a folder as a .tar.gz, whole or not at all; fast rather than small.

    Several folders are put together; of a name that several have, the first folder's file is taken. Pipes, sockets and
    devices, which `unpack` refuses, stay behind.
    """
    folders = folder if isinstance(folder, list) else [folder]
    archive.parent.mkdir(parents=True, exist_ok=True)
    paths = {path.relative_to(folder): path for folder in reversed(folders) for path in folder.rglob("*")}
    regular = {name: path for name, path in paths.items() if path.is_symlink() or path.is_file() or path.is_dir()}
    with (
        files.atomic(archive) as partial,
        open(partial, "wb") as file,
        tarfile.open(archive, "w:gz", file, compresslevel=1) as tar,
    ):
        for name in sorted(regular):
            tar.add(regular[name], name, recursive=False)


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on, all different; by no seed, which two processes may share."""
    sockets: list[socket.socket] = []
    try:
        while len(sockets) < count:
            candidate = socket.socket()
            try:
                candidate.bind(("127.0.0.1", secrets.choice(PORTS)))
            except OSError:
                candidate.close()
                continue
            sockets.append(candidate)
        return [candidate.getsockname()[1] for candidate in sockets]
    finally:
        for candidate in sockets:
            candidate.close()


def copy_tree(source: Path, target: Path) -> None:
    """Copy a source directory without compiled files, version control and virtual environments.

    Raises ContainerError.
    """
    unwanted = shutil.ignore_patterns("__pycache__", ".git", ".venv")

    def ignore(folder: str, names: list[str]) -> set[str]:
        above = Path(folder).parents[: len(Path(folder).relative_to(source).parts)]
        if os.path.realpath(folder) in map(os.path.realpath, above):
            raise OSError(objects.LOOP)
        return unwanted(folder, names)

    try:
        shutil.copytree(source, target, ignore=ignore, copy_function=_copy_file, dirs_exist_ok=True)
    except shutil.Error as error:  # of several files
        path, _, reason = error.args[0][0]
        raise ContainerError(f"{path} cannot be copied: {reason}") from None


def _copy_file(source: str, target: str) -> None:
    if os.path.exists(source) and not os.path.isfile(source):  # a pipe would be waited for, a device has no end
        raise OSError(objects.SPECIAL)
    shutil.copy2(source, target)


def _folder_name(token: str) -> str:
    return PREFIX + token[:12]


def _short_temporary_folder() -> str:
    """Return a folder for TMPDIR, where TorchServe keeps its sockets: the path of a socket has at most 104 bytes."""
    folder = tempfile.gettempdir()
    return folder if len(folder) <= 60 else "/tmp"


def _small_file(file: Path) -> bytes:
    """Return the bytes of a small regular file, none of anything else."""
    with contextlib.suppress(OSError):
        return files.read_regular(file, 100)
    return b""
