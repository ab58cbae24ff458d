"""The SageMaker SDK reports each call to AWS, with the account's number, unless its configuration says not to."""

import copy

OPTED_OUT = {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}}


def opted_out(sagemaker_config: dict | None) -> dict:
    """A copy of the SDK's configuration in which its telemetry is off."""
    return _merged(sagemaker_config or {}, OPTED_OUT)


def _merged(base: dict, over: dict) -> dict:
    """A copy of `base` with the values of `over` put in at every depth."""
    merged = copy.deepcopy(base)
    for key, value in over.items():
        inner = merged.get(key, {})
        merged[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged
