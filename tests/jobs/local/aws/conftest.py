"""AWS on this machine, for the tests of this folder."""

import os
from functools import partial

import pytest
from helpers.front import client_of


@pytest.fixture(scope="session")
def clients(front):
    """clients(service) -> boto3's client of it, which has the server's key and no other configuration."""
    return partial(client_of, front)


@pytest.fixture
def environ(front):
    """The environment of a program that is to find the server."""
    return {**os.environ, **front}
