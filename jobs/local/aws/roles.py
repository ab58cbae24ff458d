"""Roles of IAM: a program names one that its account has, so one that is asked for exists and trusts SageMaker."""

import json

from fastmaker.local import names

TRUST = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}],
}


def ensure(form: dict[str, list[str]]) -> None:
    """Make the role that a request for GetRole names, unless moto has it; leave other requests alone."""
    if form.get("Action", [])[:1] != ["GetRole"] or not form.get("RoleName"):
        return
    name = form["RoleName"][0]
    from moto.iam.models import iam_backends  # after the environment: moto reads it

    backend = iam_backends[names.ACCOUNT]["aws"]
    if name not in {role.name for role in backend.get_roles()}:
        backend.create_role(name, json.dumps(TRUST), "/", None, "", [], "3600")
