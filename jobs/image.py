"""Build an image of the Dockerfiles, and push it to Amazon ECR, where SageMaker takes it from.

``fastmaker image build [--training | --server ray]``
``fastmaker image push [--training | --server ray]``

All images go to one repository, so that what they share is uploaded once. Region and credentials are those of boto3.
"""

import argparse
import base64
import os
import shlex
import subprocess
import sys
import tempfile
from typing import NamedTuple

from fastmaker.jobs import files
from fastmaker.jobs.cli import arguments, errors, redaction
from fastmaker.local import docker

DEPLOY = "deploy --model JOB --instance-type ml.c5.xlarge"


class Image(NamedTuple):
    name: str  # on this machine
    build: list[str]  # what `docker build` is told
    cli_flags: list[str]  # by which it is asked for here
    use: str  # the command that is next, once it is in ECR


IMAGES = {
    "serving": Image("fastmaker", ["--target", "serving"], [], DEPLOY),
    "training": Image(
        "fastmaker-training",
        ["--target", "training"],
        ["--training"],
        "train --data FOLDER --instance-type ml.g4dn.xlarge",
    ),
    "ray": Image("fastmaker-ray", ["--file", f"{files.ROOT}/docker/ray.Dockerfile"], ["--server", "ray"], DEPLOY),
}
REPOSITORY = "fastmaker"
TAG = {"Key": "fastmaker", "Value": "image"}  # of the repository, by which fastmaker cleanup finds it


def get_parser() -> argparse.ArgumentParser:
    """Return this command's parser."""
    parser = argparse.ArgumentParser(
        prog="fastmaker image",
        description="Build an image that serves, or the one that trains as well, and push it to Amazon ECR.",
        epilog="example: fastmaker image build --training; fastmaker image push --training",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build an image with its Dockerfile")
    build.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE", help="see the Dockerfile")
    build.add_argument("--network", help="of the build's steps, such as host (default: Docker's)")
    build.add_argument("--platform", help="such as linux/amd64, which SageMaker runs (default: this machine's)")
    push = commands.add_parser("push", help="push an image to Amazon ECR")
    push.add_argument("--repository", metavar="NAME[:TAG]", help=f"(default: {REPOSITORY}:serving, :training or :ray)")
    for command in (build, push):
        command.add_argument("--training", action="store_true", help="the image that trains as well")
        command.add_argument(
            "--server",
            choices=arguments.SERVERS,
            default="torchserve",
            help="what serves; the image of ray has neither TorchServe nor Java (default: %(default)s)",
        )
        command.add_argument(
            "--tag",
            help=f"the image's name on this machine (default: {', '.join(image.name for image in IMAGES.values())})",
        )
        command.add_argument("--dry-run", action="store_true", help="print what would be done")
    return parser


def parse_args(argv=None) -> argparse.Namespace:
    """Parse the arguments; `kind` is one of IMAGES, `remote_tag` the image's in ECR."""
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.command == "build" and (bad := [pair for pair in args.build_arg if "=" not in pair]):
        parser.error(f"--build-arg {bad[0]!r}: expected NAME=VALUE")
    if args.training and args.server == "ray":
        parser.error("--training goes without --server ray: the image that trains serves by torchserve")
    args.kind = "training" if args.training else "ray" if args.server == "ray" else "serving"
    args.tag = args.tag or IMAGES[args.kind].name
    if args.command == "push":
        args.repository, _, tag = (args.repository or REPOSITORY).partition(":")
        args.remote_tag = tag or args.kind
    return args


def main(args) -> int:
    """Build or push an image. Raises ValueError, OSError or botocore's errors."""
    {"build": _build, "push": _push}[args.command](args)
    return 0


def _build(args) -> None:
    image = IMAGES[args.kind]
    command = ["docker", "build", *image.build, "--tag", args.tag]
    command += [word for pair in args.build_arg for word in ("--build-arg", pair)]
    command += ["--network", args.network] if args.network else []
    command += ["--platform", args.platform] if args.platform else []
    command.append(str(files.ROOT))
    if args.dry_run:
        print(shlex.join(command))
        return
    if reason := docker.unavailable():
        raise ValueError(reason)
    # With attestations the image would be an index of manifests, which SageMaker does not take.
    _run(command, {"BUILDX_NO_DEFAULT_ATTESTATIONS": "1"})
    print(f"\nimage: {args.tag}, {_size(args.tag)}")
    tag = ["--tag", args.tag] if args.tag != image.name else []
    print(f"next:  fastmaker image {shlex.join(['push', *image.cli_flags, *tag])}")


def _push(args) -> None:
    import boto3

    from fastmaker.jobs.backends.aws import checks

    if reason := docker.missing(args.tag):
        raise ValueError(reason)
    session = boto3.Session()
    if session.region_name is None:
        raise errors.Failure("no AWS region: set AWS_DEFAULT_REGION, or run `aws configure`")
    redaction.own_accounts.add(checks.caller(session)["Account"])
    if args.dry_run:
        print(f"would create the repository {args.repository} in {session.region_name}, unless it is there")
        print(f"would push {args.tag}, {_size(args.tag)}, to it as {args.repository}:{args.remote_tag}")
        return
    ecr = session.client("ecr")
    repository = _repository(ecr, args.repository)
    uri = f"{repository}:{args.remote_tag}"
    with tempfile.TemporaryDirectory() as config:
        environment = {"DOCKER_HOST": _engine(), "DOCKER_CONFIG": config}
        _log_in(ecr, environment)
        _run(["docker", "tag", args.tag, uri])
        _run(["docker", "push", uri], environment)
    print(f"\nimage:  {uri}")
    print(f"digest: {_digest(uri, repository)}")
    print(f"next:   fastmaker {IMAGES[args.kind].use} --image-uri {args.repository}:{args.remote_tag}")


def _repository(ecr, name: str) -> str:
    """Return the URI of the repository, which is made if it is not there."""
    try:
        return ecr.describe_repositories(repositoryNames=[name])["repositories"][0]["repositoryUri"]
    except ecr.exceptions.RepositoryNotFoundException:
        scanning = {"scanOnPush": True}
        made = ecr.create_repository(repositoryName=name, tags=[TAG], imageScanningConfiguration=scanning)
        print(f"created the repository {name}, whose images cost money as long as they are kept")
        print(f"to end: fastmaker cleanup --backend aws --only image/{name} --yes", flush=True)
        return made["repository"]["repositoryUri"]


def _log_in(ecr, environment: dict[str, str]) -> None:
    """Log in where `environment` says; the password, valid for 12 hours, never stands on a command line."""
    authorization = ecr.get_authorization_token()["authorizationData"][0]
    user, _, password = base64.b64decode(authorization["authorizationToken"]).decode().partition(":")
    command = ["docker", "login", "--username", user, "--password-stdin", authorization["proxyEndpoint"]]
    done = subprocess.run(command, env=os.environ | environment, input=password, capture_output=True, text=True)
    if done.returncode:
        raise ChildProcessError(f"docker login failed: {done.stderr.strip()}")


def _engine() -> str:
    """Return the address of the engine that `docker` talks to; our own DOCKER_CONFIG does not hold it."""
    return _output("docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}")


def _digest(uri: str, repository: str) -> str:
    digests = _output("docker", "image", "inspect", "--format", '{{join .RepoDigests "\\n"}}', uri).splitlines()
    return next(digest.partition("@")[2] for digest in digests if digest.startswith(f"{repository}@"))


def _size(image: str) -> str:
    return f"{int(_output('docker', 'image', 'inspect', '--format', '{{.Size}}', image)) / 1e9:.2f} GB"


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ChildProcessError(f"{shlex.join(command[:3])} failed: {done.stderr.strip()}")
    return done.stdout.strip()


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    """Run a command that shows its own progress: as it likes on a terminal, else line by line through our stdout."""
    watched = sys.stdout.isatty()
    streams = {} if watched else {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=os.environ | (environment or {}), **streams) as process:
        for line in () if watched else process.stdout:
            print(line, end="", flush=True)
    if process.returncode:
        raise ChildProcessError(f"{shlex.join(command[:2])} ended with status {process.returncode}")


if __name__ == "__main__":
    errors.run(sys.modules[__name__])
