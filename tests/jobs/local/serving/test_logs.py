import subprocess
import sys

from fastmaker.local.serving.torchserve import LAUNCHER

# Writes 2,000 numbered lines to a log of which 1,000 bytes are kept.
PROGRAM = """
import importlib.util, os, pathlib, sys, threading, time
spec = importlib.util.spec_from_file_location("launcher", sys.argv[1])
launcher = importlib.util.module_from_spec(spec)
spec.loader.exec_module(launcher)
launcher.LOG_BYTES, launcher.LOG_SECONDS = 1000, 0.01
log = pathlib.Path(os.environ["SAGEMAKER_BASE_DIR"], "container.log")
with open(log, "ab", buffering=0) as file:
    threading.Thread(target=launcher.bound_log, daemon=True).start()
    for number in range(2000):
        file.write(b"%06d\\n" % number)
        time.sleep(0.0005)
    time.sleep(0.5)
    file.write(b"last\\n")
"""


def test_a_servers_log_does_not_grow_without_end(tmp_path):
    env = {"SAGEMAKER_BASE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", PROGRAM, str(LAUNCHER)], env=env, check=True)
    log, before = (tmp_path / name for name in ("container.log", "container.1.log"))
    assert log.read_text().endswith("last\n")
    assert "\0" not in log.read_text()
    assert log.stat().st_size + before.stat().st_size < 2000 * 7
    assert before.stat().st_size >= 1000
