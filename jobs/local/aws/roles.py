"""Roles of IAM: a program names one that its account has, so one that is asked for exists and trusts SageMaker."""

import json
from urllib.parse import parse_qs

from fastmaker.local import names

TRUST = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}],
}


def ensure(body: bytes) -> None:
    """Make the role that a request for GetRole names, unless moto has it; leave other requests alone."""
    form = {name: values[0] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}
    if form.get("Action") != "GetRole" or not form.get("RoleName"):
        return
    from moto.iam.models import iam_backends  # after the environment: moto reads it

    backend = iam_backends[names.ACCOUNT]["aws"]
    if form["RoleName"] not in {role.name for role in backend.get_roles()}:
        backend.create_role(form["RoleName"], json.dumps(TRUST), "/", None, "", [], "3600")
