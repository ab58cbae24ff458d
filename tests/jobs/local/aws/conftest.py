"""AWS on this machine, for the tests of this folder."""

import os
from functools import partial

import pytest
from helpers.front import client_of

from fastmaker.local import aws


@pytest.fixture(scope="session")
def proxied(front_home, front):
    """The variables by which clients that name AWS's hosts find the same server, by its proxy."""
    return aws.environment(front_home, proxy=True)


@pytest.fixture(scope="session")
def clients(front):
    """clients(service) -> boto3's client of it, which has the server's key and no other configuration."""
    return partial(client_of, front)


@pytest.fixture
def environ(front):
    """The environment of a program that is to find the server."""
    return {**os.environ, **front}
