"""Importing the SageMaker SDK: without its remarks, and no slower than it has to be."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator

# The SDK says at each call that version 3 exists; these commands are written for version 2.
os.environ.setdefault("SAGEMAKER_SUPPRESS_V2_WARNING", "1")
# Its remarks about configuration files that are not there would go to stdout, among the answers; botocore's about where
# each client's credentials and endpoint come from bury the rest.
for noisy in ("sagemaker.config", "botocore"):
    logging.getLogger(noisy).setLevel(logging.WARNING)


@contextlib.contextmanager
def without_iri_grammar() -> Iterator[None]:
    """Keep jsonschema, which the SDK imports, from compiling the grammar of IRIs, where Jupyter has brought one.

    It takes a second, as long as the SDK itself, and none of the SDK's schemas holds an IRI.
    """
    name = "rfc3987_syntax"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # an import of it fails, as where it is not installed
    try:
        yield
    finally:
        del sys.modules[name]
