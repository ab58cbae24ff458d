"""What tests share that is no fixture; setup.cfg's `pythonpath` puts it where `from helpers import ...` finds it."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
