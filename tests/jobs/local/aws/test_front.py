"""``fastmaker aws``: who is answered, what is refused, and the command."""

import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from urllib.parse import urlsplit

import boto3
import pytest
import urllib3
from botocore.config import Config
from botocore.exceptions import ClientError
from helpers import PATIENCE
from helpers.front import JSON, POOL, sagemaker, send, signed

from fastmaker.local import arguments, aws, boto
from fastmaker.local.aws import command as aws_command
from fastmaker.local.aws import settings, signatures

pytestmark = pytest.mark.server
MODEL = boto.service_model("sagemaker")
ROLE = "arn:aws:iam::000000000000:role/r"
IMAGE = "763104351884.dkr.ecr.us-west-2.amazonaws.com/pytorch-training:2.6.0-cpu-py312"
FORM = "application/x-www-form-urlencoded"
# What each protocol sends, and how it tells an error: by what the body must hold.
KINDS = {
    "json": ("sagemaker", "POST", "/", b"{}", {"X-Amz-Target": "SageMaker.ListModels", "Content-Type": JSON}, "__type"),
    "logs": ("logs", "POST", "/", b"{}", {"X-Amz-Target": "Logs_20140328.DescribeLogGroups"}, "__type"),
    "ecr": ("ecr", "POST", "/", b"{}", {"X-Amz-Target": "AmazonEC2ContainerRegistry_V20150921.X"}, "__type"),
    "rest-json": ("sagemaker", "POST", "/endpoints/e/invocations", b"x", {"Content-Type": "text/x"}, "__type"),
    "query": (
        "sts",
        "POST",
        "/",
        b"Action=GetCallerIdentity&Version=2011-06-15",
        {"Content-Type": FORM},
        "<ErrorResponse",
    ),
    "rest-xml": ("s3", "GET", "/", b"", {}, "<Error>"),
    "object": ("s3", "PUT", "/bucket/key", b"x", {}, "<Error>"),
}


def refused(answer, kind):
    """The request had a 403 in the form of its protocol."""
    assert answer.status == 403, answer.data
    assert KINDS[kind][-1] in answer.data.decode()
    if KINDS[kind][-1] == "__type":
        assert answer.headers["x-amzn-ErrorType"] == json.loads(answer.data)["__type"]


def changed_signature(headers):
    text = headers["Authorization"]
    return {**headers, "Authorization": text[:-1] + ("0" if text[-1] != "0" else "1")}


STRANGERS = {
    "unsigned": lambda env, args: {k: v for k, v in signed(env, *args).items() if k != "Authorization"},
    "wrong secret": lambda env, args: signed(env, *args, secret="x" * 40),
    "wrong key": lambda env, args: signed({**env, "AWS_ACCESS_KEY_ID": "AKIA" + "A" * 16}, *args),
    "forged host": lambda env, args: {**signed(env, *args), "Host": "attacker.example"},
    "rebound host": lambda env, args: {
        **signed(env, *args),
        "Host": f"attacker.example:{urlsplit(env['AWS_ENDPOINT_URL']).port}",
    },
    "no host": lambda env, args: {**signed(env, *args), "Host": ""},
    "changed": lambda env, args: changed_signature(signed(env, *args)),
    "version 2": lambda env, args: {**signed(env, *args), "Authorization": "AWS AKIAAAAAAAAAAAAAAAAA:c2lnbmF0dXJl"},
    "nonsense": lambda env, args: {**signed(env, *args), "Authorization": "AWS4-HMAC-SHA256 Credential=\xe9, x"},
    "other region": lambda env, args: {
        **signed(env, *args),
        "Authorization": signed(env, *args)["Authorization"].replace("us-west-2", "../../etc"),
    },
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_stranger_gets_403_in_the_form_of_the_protocol(front, stranger, kind):
    service, method, path, body, headers, _ = KINDS[kind]
    refused(send(front, method, path, body, STRANGERS[stranger](front, (service, method, path, body, headers))), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_requests_are_answered_with_the_key(front, kind):
    service, method, path, body, headers, _ = KINDS[kind]
    assert send(front, method, path, body, signed(front, service, method, path, body, headers)).status != 403


@pytest.mark.parametrize(
    "path", ["/moto-api/reset", "//moto-api/data.json", "/moto-api/", "/latest/meta-data/iam", "/latest/api/token"]
)
def test_motos_own_pages_are_no_services(front, path):
    for service in ("s3", "iam"):
        answer = send(front, "POST", path, b"", signed(front, service, "POST", path))
        assert answer.status == 403


def test_a_changed_body_or_path_or_query_is_refused(front):
    _, method, path, body, headers, _ = KINDS["json"]
    given = signed(front, "sagemaker", method, path, body, headers)
    refused(send(front, method, path, b'{"MaxResults": 1}', given), "json")
    refused(send(front, method, "/?x=1", body, given), "json")
    refused(send(front, method, path, body, {**given, "X-Amz-Target": "SageMaker.ListTags"}), "json")
    given = signed(front, "s3", "GET", "/a")
    refused(send(front, "GET", "/b", b"", given), "rest-xml")


@pytest.mark.parametrize(
    ("service", "minutes", "fine"),
    [("sagemaker", 4, True), ("sagemaker", 6, False), ("sagemaker", -6, False), ("s3", 14, True), ("s3", 16, False)],
)
def test_a_clock_may_be_off_as_far_as_on_aws(service, minutes, fine):
    key = signatures.Key("AKIA", "secret")
    environment = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ACCESS_KEY_ID": "AKIA",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    headers = signed({**environment, "AWS_DEFAULT_REGION": "us-west-2"}, service, "GET", "/a%20b?x=1&a=%2F")
    received = signatures.Received("GET", "/a%20b?x=1&a=%2F", {name.lower(): value for name, value in headers.items()})
    moment = datetime.now(timezone.utc) + timedelta(minutes=minutes)
    with contextlib.nullcontext() if fine else pytest.raises(signatures.Refused, match="was signed at"):
        signatures.check(received, signatures.claim(received), b"", key, moment)


@pytest.mark.parametrize("version", ["s3", "s3v4"])
def test_a_presigned_url_is_good_until_it_expires_and_for_nothing_else(clients, version):
    s3 = clients("s3", config=Config(signature_version=version))
    bucket = {"Bucket": f"presigned-{version}"}
    clients("s3").create_bucket(**bucket, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    put = s3.generate_presigned_url("put_object", {**bucket, "Key": "a b/é"}, ExpiresIn=60)
    assert POOL.request("PUT", put, body=b"text").status == 200
    get = s3.generate_presigned_url("get_object", {**bucket, "Key": "a b/é"}, ExpiresIn=60)
    assert POOL.request("GET", get).data == b"text"
    assert POOL.request("DELETE", get).status == 403
    assert POOL.request("GET", get.replace("a%20b", "another")).status == 403
    assert POOL.request("GET", re.sub(r"(Expires=\d+)", r"\g<1>1", get)).status == 403
    old = s3.generate_presigned_url("get_object", {**bucket, "Key": "a b/é"}, ExpiresIn=-1)
    assert POOL.request("GET", old).status == 403


def test_a_body_that_is_too_long_is_refused_before_it_is_read(front):
    body, headers = b"x", {"X-Amz-Target": "SageMaker.ListModels", "Content-Type": JSON}
    headers = signed(front, "sagemaker", "POST", "/", body, headers)
    answer = send(front, "POST", "/", body, {**headers, "Content-Length": str(2**40)})
    assert (answer.status, json.loads(answer.data)["__type"]) == (413, "EntityTooLarge")


def test_the_key_is_for_this_user_alone_and_stays(front_home, front):
    folder = front_home / settings.FOLDER
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / settings.SETTINGS).stat().st_mode) == 0o600
    assert aws.environment(front_home) == front


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_another_user_does_not_learn_the_key(front_home, front):
    script = "import os, sys; os.setuid(65534); open(sys.argv[1])"
    file = str(front_home / settings.FOLDER / settings.SETTINGS)
    done = subprocess.run([sys.executable, "-c", script, file], capture_output=True, text=True)
    assert "PermissionError" in done.stderr


# What the engine has not, and what its operations do not take.


@pytest.mark.parametrize(
    "operation", ["Search", *sorted(set(MODEL.operation_names) - arguments.SAGEMAKER.keys())[::25]]
)
def test_an_operation_that_this_machine_has_not_is_refused_by_its_name(front, operation):
    status, answer = sagemaker(front, operation, b"{}")
    assert (status, answer["__type"]) == (400, "ValidationException")
    assert answer["message"].startswith(f"{operation} needs AWS")


REFUSED = {
    "no JSON": ("CreateModel", b"{", "no JSON"),
    "a list": ("CreateModel", b"[]", "no JSON object"),
    "deep": ("CreateModel", b'{"a":' * 5000 + b"1" + b"}" * 5000, ""),
    "bytes": ("ListModels", b"\xff\xfe", "no JSON"),
    "local": ("CreateTrainingJob", {"ResourceConfig": {"InstanceType": "local"}}, "Member must satisfy enum value set"),
    "typo": ("CreateTrainingJob", {"ResourceConfig": {"InstanceType": "ml.m5.xlarg"}}, "'ml.m5.xlarg' at"),
    "file": ("CreateTrainingJob", {"OutputDataConfig": {"S3OutputPath": "file:///tmp"}}, "regular expression pattern"),
    "image": (
        "CreateTrainingJob",
        {"AlgorithmSpecification": {"TrainingImage": "1.dkr.ecr/xgboost:1.7"}},
        "xgboost:1.7",
    ),
    "entry": (
        "CreateTrainingJob",
        {"AlgorithmSpecification": {"TrainingImageConfig": {"TrainingRepositoryAccessMode": "Vpc"}}},
        "AlgorithmSpecification.TrainingImageConfig needs AWS",
    ),
}
TRAINING = {
    "TrainingJobName": "job",
    "AlgorithmSpecification": {"TrainingImage": IMAGE, "TrainingInputMode": "File"},
    "RoleArn": ROLE,
    "OutputDataConfig": {"S3OutputPath": "s3://bucket/out"},
    "ResourceConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 1},
    "StoppingCondition": {"MaxRuntimeInSeconds": 600},
    "HyperParameters": {"sagemaker_program": "train.py", "sagemaker_submit_directory": "s3://bucket/source.tar.gz"},
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_aws_or_this_machine_does_not_take_is_refused_by_name(front, case):
    operation, body, words = REFUSED[case]
    if isinstance(body, dict):
        merged = {
            key: {**value, **body.get(key, {})} if isinstance(value, dict) else value for key, value in TRAINING.items()
        }
        body = json.dumps(merged).encode()
    status, answer = sagemaker(front, operation, body)
    assert (status, answer["__type"]) == (400, "ValidationException")
    assert words in answer["message"]


# Other services.


def test_every_action_is_allowed_says_the_simulation_of_a_policy(clients):
    actions = ["s3:GetObject", "sagemaker:CreateTrainingJob"]
    found = clients("iam").simulate_principal_policy(PolicySourceArn=ROLE, ActionNames=actions)["EvaluationResults"]
    assert [(one["EvalActionName"], one["EvalDecision"]) for one in found] == [(name, "allowed") for name in actions]


@pytest.mark.parametrize(("made", "service"), [(False, "sagemaker.amazonaws.com"), (True, "lambda.amazonaws.com")])
def test_a_role_that_is_asked_for_exists_and_one_that_was_made_is_as_it_was(clients, made, service):
    iam, name = clients("iam"), f"role-{made}"
    if made:
        statement = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps({"Statement": [statement]}))
    for _ in range(2):
        trust = iam.get_role(RoleName=name)["Role"]["AssumeRolePolicyDocument"]
        assert trust["Statement"][0]["Principal"] == {"Service": service}


STATEMENT = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*"}
POLICY = json.dumps({"Version": "2012-10-17", "Statement": [STATEMENT]})


@pytest.mark.parametrize(
    ("action", "arguments"),
    [
        ("attach_role_policy", {"PolicyArn": "arn:aws:iam::aws:policy/AmazonSageMakerFullAccess"}),
        ("put_role_policy", {"PolicyName": "p", "PolicyDocument": POLICY}),
        ("list_attached_role_policies", {}),
        ("list_role_policies", {}),
        ("tag_role", {"Tags": [{"Key": "a", "Value": "b"}]}),
    ],
)
def test_a_role_can_be_named_that_this_client_has_not_made(clients, action, arguments):
    getattr(clients("iam"), action)(RoleName=f"of-{action}", **arguments)


@pytest.mark.parametrize(
    ("action", "arguments"),
    [
        ("assume_role", {"RoleArn": "arn:aws:iam::111122223333:role/path/deploy", "RoleSessionName": "ci"}),
        ("get_session_token", {}),
        ("get_federation_token", {"Name": "someone"}),
    ],
)
def test_who_has_assumed_a_role_is_answered(front, clients, action, arguments):
    given = getattr(clients("sts"), action)(**arguments)["Credentials"]
    session = boto3.Session(
        given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"], front["AWS_DEFAULT_REGION"]
    )
    for service, call in (("sagemaker", "list_models"), ("s3", "list_buckets")):
        getattr(session.client(service, endpoint_url=front["AWS_ENDPOINT_URL"]), call)()


def test_a_program_is_a_role_as_in_a_notebook_of_sagemakers(clients):
    assert ":assumed-role/" in clients("sts").get_caller_identity()["Arn"]


def test_a_scalable_target_is_shown(clients):
    scaling = clients("application-autoscaling")
    target = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": "endpoint/e/variant/v",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }
    scaling.register_scalable_target(**target, MinCapacity=1, MaxCapacity=3)
    (found,) = scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
    assert (found["MinCapacity"], found["MaxCapacity"]) == (1, 3)


def test_what_the_runtime_has_not_is_refused_by_its_name(clients):
    with pytest.raises(ClientError, match=r"ValidationError.*InvokeEndpointWithResponseStream needs AWS"):
        clients("sagemaker-runtime").invoke_endpoint_with_response_stream(EndpointName="e", Body=b"x")


# The command.


def command(*words):
    return [sys.executable, "-m", "fastmaker.jobs", "aws", *words]


def test_a_command_runs_in_the_environment_and_its_status_is_returned(front_home, environ, front):
    """The server of the home runs already, and goes on."""
    script = (
        "import boto3, os, sys; boto3.client('s3').list_buckets(); sys.exit('AWS_ENDPOINT_URL_S3' in os.environ or 43)"
    )
    env = {**os.environ, "FASTMAKER_HOME": str(front_home), "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"}
    done = subprocess.run(command("--", sys.executable, "-c", script), env=env, capture_output=True, text=True)
    assert done.returncode == 43, done.stderr
    assert subprocess.run(command("--", "no-such-command"), env=env, capture_output=True).returncode == 127
    with contextlib.suppress(urllib3.exceptions.HTTPError):
        assert send(front, "GET", "/").status == 403


def test_a_port_that_another_program_has_is_one_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        env = {**os.environ, "FASTMAKER_HOME": str(tmp_path)}
        done = subprocess.run(command("--port", str(port)), env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"port {port} cannot be had (Address already in use); --port gives another" in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["python"], "what is to be run comes after --"),
        (["--hold", "-1"], "expected 0 or more seconds"),
    ],
)
def test_bad_usage_is_one_line(words, told, capsys):
    with pytest.raises(SystemExit):
        aws_command.parse_args(words)
    assert told in capsys.readouterr().err


def test_it_prints_what_to_set_and_runs_until_ctrl_c(tmp_path):
    env = {**os.environ, "FASTMAKER_HOME": str(tmp_path), "AWS_SESSION_TOKEN": "of another account"}
    with subprocess.Popen(command(), env=env, stdout=subprocess.PIPE, text=True) as server:
        try:
            lines = [server.stdout.readline().strip() for _ in range(8)]
            assert lines[0] == "unset AWS_SESSION_TOKEN"
            told = dict(line.removeprefix("export ").split("=", 1) for line in lines[1:])
            assert told == aws.environment(tmp_path)
            assert send(told, "GET", "/", b"", signed(told, "s3", "GET", "/")).status == 200
            server.send_signal(signal.SIGINT)
            assert server.wait(PATIENCE) == 0
        finally:
            server.kill()
    with pytest.raises(urllib3.exceptions.HTTPError):
        send(told, "GET", "/")
