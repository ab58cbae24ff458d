"""Becomes the command that a request names for a host: ``python entrypoint_launcher.py COMMAND ...`` with FASTMAKER_*.

FASTMAKER_CONTAINER is shown as /opt/ml, where the command starts, and FASTMAKER_HOSTS are the addresses of the job's
hosts by their names.
"""

import json
import os
import sys
from pathlib import Path

sys.path.pop(0)  # this folder, whose module names are ours alone

from fastmaker.jobs.runtime import mounts, without_serving

NOT_FOUND = 127  # the exit status of shells


def main(command: list[str]) -> int:
    """Become `command`; return an exit status if it cannot be started."""
    temporary, hosts = Path(os.environ["TMPDIR"]), json.loads(os.environ["FASTMAKER_HOSTS"])
    mounts.enter(Path(os.environ["FASTMAKER_CONTAINER"]), hosts, temporary / "hosts")
    for name in ("FASTMAKER_HOSTS", "SAGEMAKER_BASE_DIR"):
        del os.environ[name]
    paths = [without_serving.put_below(temporary), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    os.chdir(mounts.OPT_ML)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"the container's entrypoint {command[0]!r} cannot be started: {error.strerror}")
        return NOT_FOUND


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
