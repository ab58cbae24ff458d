"""Who has not this machine's key, or leads a client here by another name, gets 403 of every service."""

import json
import os
import re
import subprocess
import sys

import boto3
import pytest
import urllib3
from helpers.front import JSON, POOL, servers, signed

from fastmaker.local import boto
from fastmaker.local.aws import settings

pytestmark = pytest.mark.server
# Services of which each operation is asked; of the others, some.
SERVICES = ("sagemaker", "sagemaker-runtime", "logs", "s3", "sts", "iam", "ecr", "application-autoscaling")
OTHERS = sorted(set(boto3.Session().get_available_services()) - set(SERVICES))[::15]
FORM = "application/x-www-form-urlencoded"


def requests_of(service, some=None):
    """(service, host, method, path, headers, body) of a request for each operation of a service."""
    model = boto.service_model(service)
    host, region = f"{model.endpoint_prefix}.us-west-2.amazonaws.com", model.signing_name
    for name in list(model.operation_names)[:some]:
        http, protocol = model.operation_model(name).http, model.metadata["protocol"]
        path, headers, body = re.sub(r"\{[^}]+\}", "x", http["requestUri"]), {}, b""
        if protocol == "json":
            headers, body = {"X-Amz-Target": f"{model.metadata['targetPrefix']}.{name}", "Content-Type": JSON}, b"{}"
        elif protocol in ("query", "ec2"):
            headers = {"Content-Type": FORM}
            body = f"Action={name}&Version={model.api_version}".encode()
        yield region, host, http["method"], path, headers, body


# What a stranger sends in place of the headers of a request that is signed as it should be.
STRANGERS = {
    "unsigned": lambda environment, args: {"Content-Type": JSON, **args[4]},
    "wrong secret": lambda environment, args: signed(environment, *args, secret="x" * 40),
    "wrong key": lambda environment, args: signed({**environment, "AWS_ACCESS_KEY_ID": "AKIA" + "A" * 16}, *args),
    "forged host": lambda environment, args: {**signed(environment, *args), "Host": "attacker.example"},
    "rebound host": lambda environment, args: {**signed(environment, *args), "Host": "127.0.0.1.nip.io:443"},
}


def answers(front, pool, url_of, step=1):
    """(stranger, request, status) for each operation: strangers take turns."""
    requests = [request for service in SERVICES for request in requests_of(service)]
    requests += [request for service in OTHERS for request in requests_of(service, 1)]
    names = list(STRANGERS)
    for number, (service, host, method, path, headers, body) in enumerate(requests[::step]):
        environment = {**front, "AWS_ENDPOINT_URL": url_of(host)}
        name = names[number % len(names)]
        sent = STRANGERS[name](environment, (service, method, path, body, headers))
        answer = pool.request(method, url_of(host) + path, body=body, headers=sent, redirect=False)
        yield name, (host, path, headers), answer.status


def test_a_stranger_gets_403_for_each_operation_of_each_service(front):
    found = list(answers(front, POOL, lambda host: front["AWS_ENDPOINT_URL"]))
    assert len(found) > 900
    assert [one for one in found if one[2] != 403] == []


@pytest.mark.parametrize("step", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_a_stranger_gets_403_for_each_operation_of_each_service_by_the_proxy(front, proxied, step):
    pool = urllib3.ProxyManager(proxied["HTTPS_PROXY"], ca_certs=proxied["AWS_CA_BUNDLE"], retries=False)
    found = list(answers(front, pool, lambda host: f"https://{host}", step))
    assert len(found) > 900 / step
    assert [one for one in found if one[2] != 403] == []


@pytest.mark.parametrize("host", ["sts.us-west-2.amazonaws.com", "attacker.example", "[::1]", "0.0.0.0", "127.0.0.1"])
def test_the_key_opens_no_port_under_another_hosts_name(front, host):
    """A name that leads to loopback, as in a page whose own name was made to."""
    headers = signed({**front, "AWS_ENDPOINT_URL": f"http://{host}"}, "s3", "GET", "/")
    assert POOL.request("GET", front["AWS_ENDPOINT_URL"], headers={**headers, "Host": host}).status == 403


@pytest.mark.parametrize(
    "host", ["s3.us-east-1.amazonaws.com", "127.0.0.1", "{port}", "sts.us-west-2.amazonaws.com:80"]
)
def test_a_tunnel_answers_for_no_host_but_its_own(front, proxied, host):
    host = host.format(port=front["AWS_ENDPOINT_URL"].removeprefix("http://"))
    pool = urllib3.ProxyManager(proxied["HTTPS_PROXY"], ca_certs=proxied["AWS_CA_BUNDLE"], retries=False)
    headers = signed({**front, "AWS_ENDPOINT_URL": f"https://{host}"}, "s3", "GET", "/")
    answer = pool.request("GET", "https://sts.us-west-2.amazonaws.com/", headers={**headers, "Host": host})
    assert answer.status == 403
    assert b"which the proxy was asked for" in answer.data


# Run as another user: which files of a folder, and which of a process, can be read or written; and what is answered.
AS_ANOTHER_USER = """
import encodings.idna, json, os, ssl, sys
import urllib3
asked = json.load(sys.stdin)
ssl.create_default_context()
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
opened = []
for file in asked["files"]:
    for flags in (os.O_RDONLY, os.O_WRONLY):
        try:
            os.close(os.open(file, flags))
            opened.append(file)
        except PermissionError:
            pass
pool = urllib3.ProxyManager(asked["proxy"], cert_reqs="CERT_NONE", retries=False)
urllib3.disable_warnings()
statuses = [urllib3.request("POST", asked["url"], headers=headers).status for headers in asked["headers"]]
statuses += [pool.request("POST", "https://sts.amazonaws.com", headers=headers).status for headers in asked["headers"]]
print(json.dumps([opened, statuses]))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_another_user_reads_neither_key_nor_certificates_nor_memory_and_is_not_answered(front_home, front, proxied):
    (server,) = servers()
    folder = front_home / settings.FOLDER
    files = [str(file) for file in folder.rglob("*")]
    assert {str(folder / name) for name in (settings.SETTINGS, settings.BUNDLE)} <= set(files)
    files += [f"/proc/{server.pid}/{name}" for name in ("environ", "mem", "fd/0")]
    headers = [{}, {"X-Amz-Target": "SageMaker.ListModels"}, {"Authorization": "AWS4-HMAC-SHA256 Credential=x"}]
    asked = {"files": files, "url": front["AWS_ENDPOINT_URL"], "proxy": proxied["HTTPS_PROXY"], "headers": headers}
    command = [sys.executable, "-c", AS_ANOTHER_USER]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert json.loads(done.stdout) == [[], [403] * 6]
    assert front["AWS_SECRET_ACCESS_KEY"] not in " ".join(server.cmdline())
