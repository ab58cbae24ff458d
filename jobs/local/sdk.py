"""Everything that is changed in the SageMaker Python SDK, for this package's own sessions alone.

The SDK has no setting for some things, so a few of its functions are wrapped when this module is imported. Each
wrapper acts on an `OwnSession`, or on a configuration that `opt_out_of_telemetry` returned, and hands every other call
to the SDK's function as it came: a plain ``Session`` or ``LocalSession`` in the same process behaves as without us.

Code is packed by the SDK as for AWS. What it would upload to S3 is kept on this machine, named by file:// URIs, unless
the session or code_location says S3.
"""

import copy
import functools
import inspect
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import sagemaker.analytics
import sagemaker.estimator
import sagemaker.fw_utils
import sagemaker.model
import sagemaker.utils
from sagemaker.fw_utils import UploadedCode

from fastmaker.jobs import storage
from fastmaker.local import archives
from fastmaker.local.containers import unpack

OPT_OUT = {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}}


class Interrupted(KeyboardInterrupt, Exception):
    """Ctrl-C where the SDK would swallow it: its fit returns in a ``finally``, from which an Exception gets out."""


class OwnSession:
    """Mark a session as one that the wrappers below act on."""

    cloudwatch_client: Any
    s3_client: Any

    def code_folder(self) -> Path | None:
        """Return a new folder for code that is uploaded, None if it goes to S3."""
        raise NotImplementedError

    def new_model_archive(self) -> Path:
        """Return where a model is written that is packed anew with its code."""
        raise NotImplementedError

    def default_output_path(self) -> str | None:
        """Return the output_path of an estimator without one, None for the SDK's."""
        raise NotImplementedError


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


def _upload(folder: Path, owner: Any) -> UploadedCode:
    """Pack the code of an estimator or model into `folder`; code that was uploaded before stays where it is."""
    script, source = owner.entry_point, owner.source_dir
    if _is_uploaded(source):
        return UploadedCode(source.replace("s3://", "file://", 1), script)
    bucket = SimpleNamespace(Object=lambda _, key: SimpleNamespace(upload_file=_mover(folder / key)))
    code = sagemaker.fw_utils.tar_and_upload_dir(
        None, "", "source", script, source, owner.dependencies, s3_resource=bucket
    )
    if code.s3_prefix == source:  # in S3 already
        return code
    return UploadedCode(f"file://{folder}/source/sourcedir.tar.gz", code.script_name)


def _mover(target: Path) -> Callable[..., None]:
    def upload_file(file: str, **options: Any) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, target)

    return upload_file


def _keep_training_code(stage: Callable[..., UploadedCode]) -> Callable[..., UploadedCode]:
    """Wrap the upload of an estimator's code."""

    @functools.wraps(stage)
    def _stage_user_code_in_s3(self: Any) -> UploadedCode:
        session = self.sagemaker_session
        folder = session.code_folder() if isinstance(session, OwnSession) and not self.code_location else None
        return _upload(folder, self) if folder else stage(self)

    return _stage_user_code_in_s3


def _prepare_here(prepare: Callable[..., None]) -> Callable[..., None]:
    """Wrap what an estimator does before it trains: outputs have a place here, and code that was uploaded is no folder.

    The SDK takes a source_dir for uploaded code if it begins with s3://.
    """

    @functools.wraps(prepare)
    def _prepare_for_training(self: Any, job_name: str | None = None) -> None:
        session, source = self.sagemaker_session, self.source_dir
        if not isinstance(session, OwnSession):
            return prepare(self, job_name)
        self.output_path = session.default_output_path() if self.output_path is None else self.output_path
        if not _is_uploaded(source):
            return prepare(self, job_name)
        self.source_dir = source.replace("file://", "s3://", 1)
        try:
            return prepare(self, job_name)
        finally:
            self.source_dir = source

    return _prepare_for_training


def _as_uploaded(part: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Wrap what an estimator hands to its model: the code as it was uploaded, as on AWS, rather than as it is now."""

    def wrap(find: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(find)
        def found(self: Any) -> Any:
            code = self.uploaded_code
            own = isinstance(self.sagemaker_session, OwnSession) and code is not None
            return getattr(code, part) if own and _is_uploaded(code.s3_prefix) else find(self)

        return found

    return wrap


def _repack_here(upload: Callable[..., None]) -> Callable[..., None]:
    """Wrap the packing of a model anew with its code: into an archive on this machine, never the user's own."""

    @functools.wraps(upload)
    def _upload_code(self: Any, key_prefix: str, repack: bool = False) -> None:
        session = self.sagemaker_session
        own = isinstance(session, OwnSession) and self.entry_point is not None and not self.bucket
        folder = session.code_folder() if own else None
        if folder is None or (repack and not isinstance(self.model_data, str)):
            return upload(self, key_prefix, repack)
        if not repack:
            self.uploaded_code = _upload(folder, self)
            return None
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            packed = Path(scratch, "repacked.tar.gz")
            model = storage.fetch(storage.uri_of(self.model_data), Path(scratch, "model.tar.gz"), session.s3_client)
            archives.names(model)  # the SDK unpacks it without a limit
            sagemaker.utils.repack_model(
                inference_script=self.entry_point,
                source_directory=_local_source(self.source_dir, Path(scratch), session.s3_client),
                dependencies=self.dependencies,
                model_uri=str(model),
                repacked_model_uri=str(packed),
                sagemaker_session=session,
            )
            archive = session.new_model_archive()
            shutil.move(packed, archive)
        self.repacked_model_data = f"file://{archive}"
        self.uploaded_code = UploadedCode(self.repacked_model_data, os.path.basename(self.entry_point))
        return None

    return _upload_code


def _local_source(source_dir: str | None, scratch: Path, s3: Any) -> str | None:
    """Return a directory with the code of `source_dir`, which may be an archive in S3 or one of `_upload`."""
    if not source_dir or not (source_dir.lower().startswith("s3://") or _is_uploaded(source_dir)):
        return source_dir
    unpack(storage.fetch(source_dir, scratch / "sourcedir.tar.gz", s3), scratch / "source")
    return str(scratch / "source")


def _is_uploaded(source_dir: Any) -> bool:
    """Return whether it is code that `_upload` has packed, or a training job's copy of it."""
    packed = isinstance(source_dir, str) and source_dir.endswith("/sourcedir.tar.gz")
    return packed and source_dir.startswith(("file:///", "s3:///"))


ESTIMATOR = sagemaker.estimator
WRAPPERS: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
    (sagemaker.utils, "validate_sagemaker_config", _validate_once),
    (ESTIMATOR._TrainingJob, "_add_spot_checkpoint_args", _allow_checkpoints),
    (sagemaker.fw_utils, "validate_distribution", _allow_torchrun),
    (sagemaker.analytics.TrainingJobAnalytics, "__init__", _read_metrics_here),
    (ESTIMATOR.EstimatorBase, "_stage_user_code_in_s3", _keep_training_code),
    (ESTIMATOR.EstimatorBase, "_prepare_for_training", _prepare_here),
    (ESTIMATOR.Framework, "_model_source_dir", _as_uploaded("s3_prefix")),
    (ESTIMATOR.Framework, "_model_entry_point", _as_uploaded("script_name")),
    (sagemaker.model.Model, "_upload_code", _repack_here),
)
# The estimator takes fw_utils' function along when it is imported; most commands do not, and its import takes a while.
if estimator := sys.modules.get("sagemaker.pytorch.estimator"):
    WRAPPERS += ((estimator, "validate_distribution", _allow_torchrun),)
for owner, name, wrap in WRAPPERS:
    setattr(owner, name, wrap(getattr(owner, name)))
