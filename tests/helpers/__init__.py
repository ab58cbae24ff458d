"""What tests share that is no fixture; setup.cfg's `pythonpath` puts it where `from helpers import ...` finds it."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# How long a test waits for what is to happen, in seconds: what it tests is never the speed, and a machine may be busy.
PATIENCE = 300
