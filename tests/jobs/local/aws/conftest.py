"""AWS on this machine, for the tests of this folder."""

import os
import shutil
from functools import partial

import pytest
from helpers.front import client_of
from helpers.waiting import nothing_runs_below

from fastmaker.local import aws


@pytest.fixture(scope="session")
def front_home(tmp_path_factory):
    """The FASTMAKER_HOME of the server; nothing may run below it when the tests end."""
    home = tmp_path_factory.mktemp("aws-home")
    yield home
    assert nothing_runs_below(home)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def front(front_home):
    """The variables by which clients find the server, which is one for all tests."""
    with aws.running(front_home, proxy=True):
        yield aws.environment(front_home)


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
