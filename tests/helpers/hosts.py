"""Processes that train together as the hosts of a job do."""

import json
import os
import socket
import subprocess
import time

from helpers import PATIENCE

# torch 2.15 warns of torch.jit.script, which fastai calls. Tests count the lines that a host prints.
CLEAN = {**os.environ, "PYTHONWARNINGS": "ignore::FutureWarning:torch.jit._script"}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Hosts:
    """Processes that stand as the hosts of one job do: `commands` has one for each, or None where none starts."""

    def __init__(self, folder, *commands):
        names = [f"algo-{number}" for number in range(1, len(commands) + 1)]
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "SM_HOSTS": json.dumps(names)}
        self.logs = [folder / f"{name}.log" for name in names]
        self.processes = []
        for name, log, command in zip(names, self.logs, commands, strict=True):
            if command:
                env = CLEAN | meeting | {"SM_CURRENT_HOST": name, "SM_NETWORK_INTERFACE_NAME": "lo"}
                with open(log, "w") as output:
                    process = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT)
                self.processes.append(process)

    def wait(self, seconds=PATIENCE):
        """Their exit statuses."""
        end = time.monotonic() + seconds
        try:
            return [process.wait(max(0.0, end - time.monotonic())) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    @property
    def output(self):
        return [log.read_text() for log in self.logs if log.exists()]
