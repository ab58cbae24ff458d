"""Names of resources on this machine: the account, the default bucket and ARNs, in AWS's forms."""

ACCOUNT = "000000000000"


def default_bucket(region: str) -> str:
    """Return a name of the SDK's form that no AWS account can own."""
    return f"sagemaker-{region}-{ACCOUNT}"


def arn(region: str, kind: str, name: str) -> str:
    """Return the ARN of a resource of a kind such as ``training-job``; AWS keeps the case of jobs' names alone."""
    return f"arn:aws:sagemaker:{region}:{ACCOUNT}:{kind}/{name if kind.endswith('-job') else name.lower()}"


def is_file_name(name: object) -> bool:
    """Return whether `name` is an entry of a folder itself. The engine's own entries begin with a dot."""
    return isinstance(name, str) and name != "" and not name.startswith(".") and not set("/\0") & set(name)
