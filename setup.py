"""Puts what the jobs read, rather than import, into the wheel: fastmaker/checkout/ holds it as the checkout does."""

import os
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CHECKOUT = ("source", "docker", "jobs/runtime", "Dockerfile", ".dockerignore", "constraints.txt")


def checkout_files() -> list[Path]:
    """The files below CHECKOUT, relative to this folder."""
    found = []
    for place in map(Path, CHECKOUT):
        found += [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    return sorted(path for path in found if "__pycache__" not in path.parts and path.suffix != ".pyc")


class BuildWithCheckout(build_py):
    """setuptools' build_py, and the copy. An editable install needs none: the checkout is there."""

    def run(self):
        super().run()
        for target, source in self._copied().items():
            self.mkpath(os.path.dirname(target))
            self.copy_file(source, target)

    def get_outputs(self, include_bytecode=True):
        return [*super().get_outputs(include_bytecode), *self._copied()]

    def get_output_mapping(self):
        return {**super().get_output_mapping(), **self._copied()}

    def _copied(self) -> dict[str, str]:
        if self.editable_mode:
            return {}
        root = Path(self.build_lib, "fastmaker", "checkout")
        return {str(root / path): str(path) for path in checkout_files()}


setup(cmdclass={"build_py": BuildWithCheckout})
