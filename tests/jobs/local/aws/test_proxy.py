"""``fastmaker aws --proxy``: clients that name AWS's hosts in code are answered here, and no other host is reached."""

import contextlib
import io
import os
import socket
import ssl
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import pytest
import urllib3
from botocore.config import Config
from botocore.exceptions import ClientError
from helpers import PATIENCE
from helpers.waiting import wait_until

from fastmaker.local import aws
from fastmaker.local.aws import authority, connections, domains, settings

pytestmark = pytest.mark.server
STS = "sts.us-west-2.amazonaws.com"
HERE = {"LocationConstraint": "us-west-2"}

AWS = [
    STS,
    "sts.amazonaws.com",
    "b.s3.cn-north-1.amazonaws.com.cn",
    "sts.us-gov-west-1.amazonaws.com",
    "s3.eu.amazonaws.eu",
]
AWS += [
    "s3.dualstack.us-west-2.amazonaws.com",
    "sagemaker.us-west-2.api.aws",
    "sts.us-iso-east-1.c2s.ic.gov",
    "a_b.s3.x.api.aws",
]
NOT_AWS = [
    "amazonaws.com",
    "example.com",
    "amazonaws.com.evil.example",
    "evilamazonaws.com",
    "sts.amazonaws.com.",
    "127.0.0.1",
]
NOT_AWS += [
    "",
    ".amazonaws.com",
    "a..amazonaws.com",
    "-.amazonaws.com",
    "aws.amazon.com",
    "x\u0131.amazonaws.com",
    "*.amazonaws.com",
]
NOT_AWS += [
    "a/b.amazonaws.com",
    "a@b.amazonaws.com",
    "a:1.amazonaws.com",
    "x" * 64 + "." * 200 + "amazonaws.com",
    "169.254.169.254",
]


@pytest.mark.parametrize(("host", "told"), [*((host, True) for host in AWS), *((host, False) for host in NOT_AWS)])
def test_a_host_is_awss_by_its_whole_name(host, told):
    assert domains.is_aws(host) is told


@pytest.mark.parametrize(
    ("host", "path"),
    [
        ("s3.us-west-2.amazonaws.com", "/key"),
        ("s3.amazonaws.com", "/key"),
        ("s3-us-west-2.amazonaws.com", "/key"),
        ("s3.dualstack.eu-central-1.amazonaws.com", "/key"),
        ("s3-fips.us-gov-west-1.amazonaws.com", "/key"),
        ("bucket.s3.us-west-2.amazonaws.com", "/bucket/key"),
        ("bucket.s3.amazonaws.com", "/bucket/key"),
        ("bucket.s3-accelerate.dualstack.amazonaws.com", "/bucket/key"),
        ("my.s3.bucket.s3.cn-north-1.amazonaws.com.cn", "/my.s3.bucket/key"),
        ("moto-api.s3.us-west-2.amazonaws.com", "/moto-api/key"),
        ("point-1.s3-accesspoint.us-west-2.amazonaws.com", None),
        ("1.s3-control.us-west-2.amazonaws.com", None),
        ("sts.us-west-2.amazonaws.com", None),
    ],
)
def test_the_bucket_of_a_host_comes_first_in_the_path(host, path):
    assert domains.path_on(host, "/key") == path


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("", []),
        ("example.org,.example.com 10.0.0.0/8", ["example.org", ".example.com", "10.0.0.0/8"]),
        (".amazonaws.com,*.AmazonAWS.com,sts.amazonaws.com,s3.us-west-2.amazonaws.com:443,api.aws,com,*,cn", []),
        ("amazon.com, myamazonaws.com", ["amazon.com", "myamazonaws.com"]),
    ],
)
def test_no_proxy_does_not_lead_to_aws_itself(given, kept):
    assert domains.without_aws(given) == kept


# What clients of AWS's own hosts are answered.


@pytest.fixture(scope="module")
def at_aws(proxied):
    """at_aws(service, region, **options) -> boto3's client of AWS's own host."""
    session = boto3.Session(proxied["AWS_ACCESS_KEY_ID"], proxied["AWS_SECRET_ACCESS_KEY"])

    def client(service, region="us-west-2", config=None, **options):
        config = Config(proxies={"https": proxied["HTTPS_PROXY"]}).merge(config or Config())
        return session.client(service, region, config=config, verify=proxied["AWS_CA_BUNDLE"], **options)

    return client


@pytest.mark.parametrize(
    ("region", "host"),
    [
        ("us-west-2", "sts.us-west-2.amazonaws.com"),
        ("us-east-1", "sts.amazonaws.com"),
        ("cn-north-1", "sts.cn-north-1.amazonaws.com.cn"),
        ("us-gov-west-1", "sts.us-gov-west-1.amazonaws.com"),
    ],
)
def test_code_that_names_a_host_of_aws_is_answered_here(at_aws, region, host):
    assert at_aws("sts", region, endpoint_url=f"https://{host}").get_caller_identity()["Account"] == "000000000000"
    assert urlsplit(at_aws("sts", region).meta.endpoint_url).hostname.startswith("sts.")


def test_the_engine_and_other_services_are_found_by_their_own_names(at_aws):
    assert "EndpointConfigs" in at_aws("sagemaker").list_endpoint_configs()
    runtime = at_aws("sagemaker-runtime", endpoint_url="https://runtime.sagemaker.us-west-2.amazonaws.com")
    with pytest.raises(ClientError, match="Endpoint none of account 000000000000 not found"):
        runtime.invoke_endpoint(EndpointName="none", Body=b"x")
    group = "/aws/sagemaker/TrainingJobs"
    assert at_aws("logs").describe_log_streams(logGroupName=group, logStreamNamePrefix="no-job/")["logStreams"] == []
    assert "Roles" in at_aws("iam").list_roles()


@pytest.mark.parametrize("bucket", ["by-host", "by.path"])
def test_objects_come_and_go_by_the_hosts_of_s3(at_aws, clients, bucket):
    s3, key, data = at_aws("s3"), "a b/é+c", os.urandom(9 * 2**20)
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration=HERE)
    s3.put_object(Bucket=bucket, Key=key, Body=b"text", ContentType="text/plain")
    s3.upload_fileobj(io.BytesIO(data), bucket, "large")  # in parts, with checksums after their bodies
    assert clients("s3").get_object(Bucket=bucket, Key=key)["Body"].read() == b"text"
    s3.download_fileobj(bucket, "large", found := io.BytesIO())
    assert found.getvalue() == data
    assert [one["Key"] for one in s3.list_objects_v2(Bucket=bucket)["Contents"]] == [key, "large"]
    assert s3.get_object(Bucket=bucket, Key=key, Range="bytes=1-2")["Body"].read() == b"ex"
    s3.delete_object(Bucket=bucket, Key="large")
    with pytest.raises(ClientError, match="404"):
        s3.head_object(Bucket=bucket, Key="large")


@pytest.mark.parametrize("version", ["s3", "s3v4"])
def test_a_presigned_url_of_awss_own_host_is_good_for_one_request(at_aws, clients, proxied, version):
    s3, bucket = at_aws("s3", config=Config(signature_version=version)), f"presigned-by-host-{version}"
    clients("s3").create_bucket(Bucket=bucket, CreateBucketConfiguration=HERE)
    clients("s3").put_object(Bucket=bucket, Key="a b", Body=b"text")
    url = s3.generate_presigned_url("get_object", {"Bucket": bucket, "Key": "a b"})
    assert urlsplit(url).hostname.endswith(".amazonaws.com")
    pool = pool_of(proxied)
    assert pool.request("GET", url).data == b"text"
    assert pool.request("GET", url.replace("a%20b", "another")).status == 403
    assert pool.request("GET", url.replace(bucket, "another")).status == 403


def test_hosts_of_s3_that_hold_no_objects_are_refused_by_name(at_aws):
    with pytest.raises(ClientError, match=r"000000000000\.s3-control\.us-west-2\.amazonaws\.com needs AWS"):
        at_aws("s3control").list_access_points(AccountId="000000000000")


# What is refused.


def pool_of(proxied):
    return urllib3.ProxyManager(proxied["HTTPS_PROXY"], ca_certs=proxied["AWS_CA_BUNDLE"], retries=False)


def connection(proxied):
    parts = urlsplit(proxied["HTTPS_PROXY"])
    return socket.create_connection((parts.hostname, parts.port), PATIENCE)


def first_line(proxied, sent):
    """The first line of the proxy's answer to some bytes, empty if it ends the connection."""
    with connection(proxied) as stream:
        stream.sendall(sent)
        return stream.makefile("rb").readline().decode().strip()


NOT_TAKEN = {
    "another host": ("CONNECT example.com:443", "403 example.com is no host of AWS; NO_PROXY names hosts"),
    "like AWS's": ("CONNECT evilamazonaws.com:443", "403 evilamazonaws.com is no host of AWS"),
    "this machine": ("CONNECT 127.0.0.1:443", "403 127.0.0.1 is no host of AWS"),
    "IPv6": ("CONNECT [::1]:443", "403 [::1] is no host of AWS"),
    "another port": (f"CONNECT {STS}:22", "403 a port of AWS is 443, and not 22"),
    "no port": (f"CONNECT {STS}", "403"),
    "no host": ("CONNECT :443", "403"),
    "no CONNECT": ("GET http://sts.amazonaws.com/", "403 this proxy of fastmaker aws takes CONNECT alone"),
    "a path": ("POST /", "403 this proxy of fastmaker aws takes CONNECT alone"),
    "a control character": ("CONNECT \x1b[31m.example:443", "403 ?[31m.example is no host of AWS"),
}


@pytest.mark.parametrize("case", NOT_TAKEN)
def test_what_is_no_host_of_aws_is_refused_by_name(proxied, case):
    line, told = NOT_TAKEN[case]
    assert first_line(proxied, f"{line} HTTP/1.1\r\nHost: x\r\n\r\n".encode()).startswith(f"HTTP/1.1 {told}")


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
def test_clients_of_either_version_of_http_get_a_tunnel(proxied, version):
    assert first_line(proxied, f"CONNECT {STS}:443 {version}\r\n\r\n".encode()) == "HTTP/1.1 200 Connection established"


@contextlib.contextmanager
def tunnel(proxied, host=STS):
    """A connection to a host, before TLS begins."""
    with connection(proxied) as stream:
        stream.sendall(f"CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n".encode())
        while not stream.recv(4096).endswith(b"\r\n\r\n"):
            pass
        yield stream


BAD = {
    "no TLS": b"GET / HTTP/1.1\r\n\r\n",
    "nonsense": os.urandom(100),
    "half a greeting": bytes.fromhex("160301020001"),
    "nothing": b"",
}


@pytest.mark.parametrize("case", BAD)
def test_who_speaks_no_tls_ends_alone_and_without_a_word_in_the_log(front_home, proxied, case):
    log = front_home / settings.FOLDER / settings.LOG
    before = len(log.read_text())
    with tunnel(proxied) as stream:
        stream.sendall(BAD[case])
    assert pool_of(proxied).request("GET", f"https://{STS}/").status == 403
    assert "Traceback" not in log.read_text()[before:]


def test_a_client_that_does_not_trust_the_bundle_is_not_answered(front_home, proxied):
    log = front_home / settings.FOLDER / settings.LOG
    before = len(log.read_text())
    with tunnel(proxied) as stream, pytest.raises(ssl.SSLCertVerificationError):
        ssl.create_default_context().wrap_socket(stream, server_hostname=STS)
    assert "Traceback" not in log.read_text()[before:]


def test_clients_that_say_nothing_do_not_hold_others(clients, front):
    parts, sts = urlsplit(front["AWS_ENDPOINT_URL"]), clients("sts")
    sts.get_caller_identity()  # over a connection that stays
    with contextlib.ExitStack() as stack:
        for _ in range(connections.MAX_CONNECTIONS * 2):
            stack.enter_context(socket.create_connection((parts.hostname, parts.port), PATIENCE))
        clients("sts").get_caller_identity()
        sts.get_caller_identity()


def test_clients_of_the_proxy_that_say_nothing_do_not_hold_others(at_aws, proxied):
    sts = at_aws("sts")
    sts.get_caller_identity()  # over a connection that stays
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connection(proxied)) for _ in range(connections.MAX_CONNECTIONS // 2)]
        silent += [stack.enter_context(tunnel(proxied)) for _ in range(connections.MAX_CONNECTIONS // 2)]
        trust = ssl.create_default_context(cafile=proxied["AWS_CA_BUNDLE"])
        for _ in range(connections.MAX_CONNECTIONS):
            opened = stack.enter_context(tunnel(proxied))
            stream = stack.enter_context(trust.wrap_socket(opened, server_hostname=STS))
            stream.sendall(f"POST / HTTP/1.1\r\nHost: {STS}\r\nContent-Length: 1000000\r\n\r\n".encode())
        at_aws("sts").get_caller_identity()
        sts.get_caller_identity()
        silent[0].settimeout(PATIENCE)
        assert silent[0].recv(1) == b""  # the oldest was ended


# The authority.


@pytest.mark.slow
def test_connections_that_stay_open_do_not_hold_others_either(at_aws):
    """Each of these has sent signed requests: the oldest ends, and its client connects again."""
    found = [at_aws("sts") for _ in range(connections.MAX_CONNECTIONS + 10)]
    for client in [*found, *found[:20]]:
        assert client.get_caller_identity()["Account"] == "000000000000"


def handshake(context, host, bundle):
    """A client that is strict in all of RFC 5280 meets a server with a context."""
    trust = ssl.create_default_context(cafile=bundle)
    trust.verify_flags |= ssl.VERIFY_X509_STRICT
    ends = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trust.wrap_bio(ends[0], ends[1], server_hostname=host)
    server = context.wrap_bio(ends[1], ends[0], server_side=True)
    for side in (client, server) * 3:
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return client.getpeercert()


def test_the_authority_can_sign_for_awss_names_alone(tmp_path):
    made = authority.Authority(tmp_path)
    (tmp_path / "own.pem").write_bytes(made.certificate)
    for host in (
        STS,
        "a.b.c.s3.us-west-2.amazonaws.com",
        "s3.cn-north-1.amazonaws.com.cn",
        "x" * 60 + ".s3.us-west-2.api.aws",
    ):
        assert handshake(made.context(host), host, tmp_path / "own.pem")["subjectAltName"] == (("DNS", host),)
    for host in ("example.com", "evilamazonaws.com", "example.org"):
        with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
            handshake(made.context(host), host, tmp_path / "own.pem")
    assert [file.name for file in tmp_path.iterdir()] == ["own.pem"]  # no key of it


def test_the_bundle_is_for_this_user_alone_holds_no_key_and_what_clients_trust_without_it(front_home, proxied):
    bundle = front_home / settings.FOLDER / settings.BUNDLE
    assert {proxied[name] for name in settings.BUNDLE_VARIABLES} == {str(bundle)}
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o600
    assert "PRIVATE KEY" not in bundle.read_text()
    assert ssl.create_default_context(cafile=bundle).cert_store_stats()["x509_ca"] > 50
    kept = [file for file in (front_home / settings.FOLDER).iterdir() if file.is_file()]
    assert not [file.name for file in kept if b"PRIVATE KEY" in file.read_bytes()]


def test_the_variables_lead_to_the_proxy_and_not_past_it(front_home, proxied, monkeypatch):
    assert proxied["HTTPS_PROXY"] == proxied["https_proxy"]
    monkeypatch.setenv("NO_PROXY", ".amazonaws.com,example.org")
    monkeypatch.setenv("no_proxy", "sts.amazonaws.com")
    found = aws.environment(front_home, proxy=True)
    assert (found["NO_PROXY"], found["no_proxy"]) == ("example.org,127.0.0.1,localhost", "127.0.0.1,localhost")
    found = aws.environment(front_home)
    assert (found["NO_PROXY"], found["no_proxy"]) == (
        ".amazonaws.com,example.org,127.0.0.1",
        "sts.amazonaws.com,127.0.0.1",
    )
    assert not {"HTTPS_PROXY", "AWS_CA_BUNDLE"} & found.keys()


@pytest.mark.slow
def test_the_proxy_ends_with_the_server_and_each_start_has_an_authority_of_its_own(tmp_path):
    certificates = []
    for _ in range(2):
        with aws.running(tmp_path, proxy=True) as environment:
            certificates.append(Path(environment["AWS_CA_BUNDLE"]).read_text().partition("-----END")[0])
        assert not os.path.exists(environment["AWS_CA_BUNDLE"])
        with pytest.raises(ConnectionRefusedError):
            wait_until(lambda: connection(environment))
    assert certificates[0] != certificates[1]
    with aws.running(tmp_path) as environment:
        assert "HTTPS_PROXY" not in environment
        with pytest.raises(aws.Unavailable, match="runs already, without a proxy"), aws.running(tmp_path, proxy=True):
            pass


@pytest.mark.slow
def test_those_that_start_at_once_use_one_server_and_find_it_ready(tmp_path):
    def account(_):
        with aws.running(tmp_path, proxy=True) as environment:
            status = pool_of(environment).request("GET", f"https://{STS}/").status
            done.wait(PATIENCE)  # the server ends with the one that has started it
            return status, environment["AWS_ACCESS_KEY_ID"]

    done = threading.Barrier(3)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(account, range(3)))
    assert {status for status, _ in found} == {403}
    assert len({key for _, key in found}) == 1
