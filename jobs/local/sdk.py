"""Everything that is changed in the SageMaker Python SDK, for this package's own sessions alone.

The SDK has no setting for four things, so four of its functions are wrapped when this module is imported. Each
wrapper acts on an `OwnSession`, or on a configuration that `opt_out_of_telemetry` returned, and hands every other call
to the SDK's function as it came: a plain ``Session`` or ``LocalSession`` in the same process behaves as without us.
"""

import copy
import functools
import inspect
import json
import sys
from collections.abc import Callable
from typing import Any

import sagemaker.analytics
import sagemaker.estimator
import sagemaker.fw_utils
import sagemaker.utils

OPT_OUT = {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}}


class Interrupted(KeyboardInterrupt, Exception):
    """Ctrl-C where the SDK would swallow it: its fit returns in a ``finally``, from which an Exception gets out."""


class OwnSession:
    """Mark a session as one that the wrappers below act on."""

    cloudwatch_client: Any


class OwnConfig(dict[str, Any]):
    """Hold the SDK's configuration of an own session, which is validated again only when it has changed."""


def opt_out_of_telemetry(sagemaker_config: dict[str, Any] | None) -> OwnConfig:
    """Return a copy of the SDK's configuration in which its telemetry is off.

    The SDK reports each call to AWS, with the account's number, unless its configuration says not to.
    """
    return OwnConfig(_merge(sagemaker_config or {}, OPT_OUT))


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of `base` with the values of `over` put in at every depth."""
    merged = copy.deepcopy(base)
    for key, value in over.items():
        inner = merged.get(key, {})
        merged[key] = _merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def _validate_once(validate: Callable[[Any], None]) -> Callable[[Any], None]:
    """Wrap the validation of a configuration, which takes 60 ms and runs at each look-up: 20 times a deployment."""
    valid = set()

    @functools.wraps(validate)
    def validate_sagemaker_config(sagemaker_config: Any = None) -> None:
        if not isinstance(sagemaker_config, OwnConfig):
            return validate(sagemaker_config)
        key = json.dumps(sagemaker_config, sort_keys=True, default=str)
        if key not in valid:
            validate(sagemaker_config)
            valid.add(key)
        return None

    return validate_sagemaker_config


def _allow_checkpoints(add_arguments: Callable[..., None]) -> Any:
    """Wrap what refuses checkpoints and spot instances to every local session: an own session takes both."""

    @functools.wraps(add_arguments)
    def _add_spot_checkpoint_args(cls: type, local_mode: bool, estimator: Any, train_args: dict[str, Any]) -> None:
        refuse = local_mode and not isinstance(estimator.sagemaker_session, OwnSession)
        add_arguments(refuse, estimator, train_args)

    return classmethod(_add_spot_checkpoint_args)


def _allow_torchrun(validate: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap what lets torchrun start scripts on GPU types alone: in an own session it does so on ``local`` as well."""

    @functools.wraps(validate)
    def validate_distribution(distribution: dict[str, Any], *arguments: Any) -> Any:
        *others, kwargs = arguments  # what the estimator was given
        own = isinstance(kwargs.get("sagemaker_session"), OwnSession)
        if own and kwargs.get("instance_type") == "local" and "smdistributed" not in distribution:
            kwargs = {**kwargs, "instance_type": "local_gpu"}
        return validate(distribution, *others, kwargs)

    return validate_distribution


def _read_metrics_here(create: Callable[..., None]) -> Callable[..., None]:
    """Wrap what makes a job's analytics, which ask CloudWatch for its metrics: an own session has them itself."""

    @functools.wraps(create)
    def __init__(self: Any, *arguments: Any, **kwargs: Any) -> None:
        create(self, *arguments, **kwargs)
        session = inspect.signature(create).bind(self, *arguments, **kwargs).arguments.get("sagemaker_session")
        if isinstance(session, OwnSession):
            self._cloudwatch = session.cloudwatch_client

    return __init__


WRAPPERS: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
    (sagemaker.utils, "validate_sagemaker_config", _validate_once),
    (sagemaker.estimator._TrainingJob, "_add_spot_checkpoint_args", _allow_checkpoints),
    (sagemaker.fw_utils, "validate_distribution", _allow_torchrun),
    (sagemaker.analytics.TrainingJobAnalytics, "__init__", _read_metrics_here),
)
# The estimator takes fw_utils' function along when it is imported; most commands do not, and its import takes a while.
if estimator := sys.modules.get("sagemaker.pytorch.estimator"):
    WRAPPERS += ((estimator, "validate_distribution", _allow_torchrun),)
for owner, name, wrap in WRAPPERS:
    setattr(owner, name, wrap(getattr(owner, name)))
