"""Roles of IAM: a program names one that its account has, so one that is asked for exists and trusts SageMaker.

The program's own identity is a role too, as in a notebook of SageMaker's, whichever role it assumes.
"""

import json
import re

from fastmaker.local import names
from fastmaker.local.aws.signatures import Key

TRUST = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}],
}
MAKING_OR_DELETING = ("CreateRole", "DeleteRole")
OWN = "AmazonSageMaker-DefaultRole"  # the name that the SDK gives one that it makes
USER_OF_MOTO = b":user/moto<"


def ensure(form: dict[str, list[str]]) -> None:
    """Make the role that a request names, unless moto has it or the request is to make or delete it."""
    if form.get("Action", [""])[0] in MAKING_OR_DELETING or not form.get("RoleName"):
        return
    name = form["RoleName"][0]
    from moto.iam.models import iam_backends  # after the environment: moto reads it

    backend = iam_backends[names.ACCOUNT]["aws"]
    if name not in {role.name for role in backend.get_roles()}:
        backend.create_role(name, json.dumps(TRUST), "/", None, "", [], "3600")


def answer_of_sts(body: bytes, key: Key) -> bytes:
    """Return an answer of moto's STS with the credentials that are good here, and the identity of who has them."""
    for member, value in (("AccessKeyId", key.access), ("SecretAccessKey", key.secret)):
        body = re.sub(f"(<{member}>)[^<]*".encode(), rb"\g<1>" + value.encode(), body)
    return body.replace(USER_OF_MOTO, f":assumed-role/{OWN}/fastmaker<".encode())
