"""The server's S3 keeps what it holds, through SIGKILL as well."""

import io
import os
import threading

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, EndpointConnectionError, HTTPClientError
from helpers.front import client_of, kill_server

from fastmaker.local import aws

pytestmark = pytest.mark.server
HERE = {"LocationConstraint": "us-west-2"}


def put_everything(s3):
    """Objects of every kind in the buckets `plain`, `versions` and `empty`."""
    for name in ("plain", "versions", "empty", "deleted"):
        s3.create_bucket(Bucket=name, CreateBucketConfiguration=HERE)
    s3.delete_bucket(Bucket="deleted")
    s3.put_bucket_tagging(Bucket="empty", Tagging={"TagSet": [{"Key": "k", "Value": "v"}]})
    s3.put_bucket_cors(
        Bucket="empty", CORSConfiguration={"CORSRules": [{"AllowedMethods": ["GET"], "AllowedOrigins": ["*"]}]}
    )
    s3.put_object(Bucket="plain", Key="a b/ü+%.txt", Body=b"text", Metadata={"Foo_bar": "x"}, ContentType="text/x")
    s3.put_object(Bucket="plain", Key="tagged", Body=b"", Tagging="a=b")
    s3.put_object(Bucket="plain", Key="replaced", Body=b"first")
    s3.put_object(Bucket="plain", Key="replaced", Body=b"second", StorageClass="STANDARD_IA")
    s3.put_object(Bucket="plain", Key="gone", Body=b"x")
    s3.put_object(Bucket="plain", Key="gone too", Body=b"x")
    s3.delete_object(Bucket="plain", Key="gone")
    s3.delete_objects(Bucket="plain", Delete={"Objects": [{"Key": "gone too"}]})
    s3.upload_fileobj(io.BytesIO(bytes(range(256)) * 2**16), "plain", "in parts")
    s3.copy_object(Bucket="plain", Key="copied", CopySource="plain/replaced")
    s3.put_bucket_versioning(Bucket="versions", VersioningConfiguration={"Status": "Enabled"})
    for text in (b"1", b"2"):
        s3.put_object(Bucket="versions", Key="v", Body=text)
    s3.put_object(Bucket="versions", Key="marked", Body=b"x")
    s3.delete_object(Bucket="versions", Key="marked")
    s3.put_object_tagging(Bucket="versions", Key="v", Tagging={"TagSet": [{"Key": "late", "Value": "tag"}]})


def everything(s3):
    """What S3 holds, as its answers tell."""
    found = {}
    for bucket in (bucket["Name"] for bucket in s3.list_buckets()["Buckets"]):
        for ask in ("get_bucket_tagging", "get_bucket_cors", "get_bucket_versioning", "list_object_versions"):
            try:
                found[bucket, ask] = getattr(s3, ask)(Bucket=bucket)
            except ClientError as error:
                found[bucket, ask] = {"error": error.response["Error"]["Code"]}
            found[bucket, ask].pop("ResponseMetadata", None)
        for version in found[bucket, "list_object_versions"].get("Versions", ()):
            which = {"Bucket": bucket, "Key": version["Key"], "VersionId": version["VersionId"]}
            if which["VersionId"] == "null":  # moto does not take it
                del which["VersionId"]
            head, tags = s3.head_object(**which), s3.get_object_tagging(**which)
            head.pop("ResponseMetadata"), tags.pop("ResponseMetadata")
            found[bucket, version["Key"], version["VersionId"]] = (head, tags, s3.get_object(**which)["Body"].read())
    return found


def parts_are_parts_of_the_whole(s3, whole):
    which = {"Bucket": "plain", "Key": "in parts"}
    for asked, first, end in (("5-9", 5, 10), ("16000000-", 16_000_000, None), ("0-99999999", 0, None)):
        answer = s3.get_object(**which, Range=f"bytes={asked}")
        assert answer["Body"].read() == whole[first:end]
        assert answer["ContentRange"].endswith(f"/{len(whole)}")
    with pytest.raises(ClientError, match="InvalidRange"):
        s3.get_object(**which, Range="bytes=99999999-")
    s3.download_fileobj("plain", "in parts", stream := io.BytesIO())
    assert stream.getvalue() == whole


def test_nothing_is_lost_when_the_server_is_killed(tmp_path):
    with aws.running(tmp_path) as environment:
        s3 = client_of(environment, "s3")
        put_everything(s3)
        before = everything(s3)
        parts_are_parts_of_the_whole(s3, before["plain", "in parts", "null"][2])
        kill_server()
    assert ("plain", "in parts", "null") in before
    assert {name for name, _, *_ in before} >= {"plain", "versions", "empty"}
    with aws.running(tmp_path) as again:
        assert again == environment
        assert everything(s3) == before
        s3.put_object(Bucket="plain", Key="replaced", Body=b"third")
        assert s3.get_object(Bucket="plain", Key="replaced")["Body"].read() == b"third"
    values = list((tmp_path / "aws" / "s3" / "plain").glob("*.value"))
    assert len(values) == sum(1 for key in before if key[0] == "plain" and len(key) == 3)


@pytest.mark.slow
def test_what_was_answered_is_there_after_a_kill_amid_writes(tmp_path):
    """Whatever was put with success has one of its values, whole, and no file is left over."""
    done: dict[str, int] = {}

    def write(s3, name):
        for number in range(10_000):
            try:
                s3.put_object(Bucket="letters", Key=name, Body=str(number).encode() * 1000)
            except (EndpointConnectionError, HTTPClientError, ClientError):
                return
            done[name] = number

    with aws.running(tmp_path) as environment:
        s3 = client_of(environment, "s3", config=Config(retries={"total_max_attempts": 1}))
        s3.create_bucket(Bucket="letters", CreateBucketConfiguration=HERE)
        threads = [threading.Thread(target=write, args=(s3, f"key{n}")) for n in range(4)]
        for thread in threads:
            thread.start()
        while len(done) < 4 or min(done.values()) < 10:
            threading.Event().wait(0.02)
        kill_server()
        for thread in threads:
            thread.join()
    with aws.running(tmp_path) as environment:
        s3 = client_of(environment, "s3")
        for name, number in done.items():
            body = s3.get_object(Bucket="letters", Key=name)["Body"].read()
            assert body in (str(number).encode() * 1000, str(number + 1).encode() * 1000)
        assert len(list((tmp_path / "aws" / "s3" / "letters").glob("*.value"))) == 4


def test_a_damaged_object_is_named_in_the_log_and_stops_no_other(tmp_path):
    with aws.running(tmp_path) as environment:
        s3 = client_of(environment, "s3")
        s3.create_bucket(Bucket="letters", CreateBucketConfiguration=HERE)
        for name in ("whole", "broken"):
            s3.put_object(Bucket="letters", Key=name, Body=name.encode())
    folder = tmp_path / "aws" / "s3" / "letters"
    damaged = next(file for file in folder.glob("*.state") if b"broken" in file.read_bytes())
    damaged.write_bytes(damaged.read_bytes()[:-10])
    with aws.running(tmp_path) as environment:
        assert s3.get_object(Bucket="letters", Key="whole")["Body"].read() == b"whole"
        with pytest.raises(ClientError, match="NoSuchKey"):
            s3.get_object(Bucket="letters", Key="broken")
    assert str(damaged) in (tmp_path / "aws" / "server.log").read_text()
    assert len(os.listdir(folder)) == 5
