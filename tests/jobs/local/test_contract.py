"""What we rely on inside the SDK and the toolkits: an upgrade that changes it fails here, with a sentence."""

import inspect
import json
import os
import subprocess
import sys
import textwrap

import boto3
import jsonschema
import pytest
import sagemaker.session
from sagemaker.local import LocalSession
from sagemaker.session import Session

from fastmaker.local import ProcessSession


def test_the_serving_toolkit_still_has_what_the_launcher_replaces():
    from sagemaker_pytorch_serving_container import torchserve

    assert torchserve.TS_CONFIG_FILE.startswith("/etc")
    assert callable(torchserve._retrieve_ts_server_process)
    assert list(inspect.signature(torchserve.start_torchserve).parameters) == ["handler_service"]


def test_the_inference_toolkit_decodes_the_types_in_a_list_that_can_be_emptied():
    from sagemaker_inference import content_types

    assert isinstance(content_types.UTF8_TYPES, list)


def test_the_inference_toolkit_still_has_what_answers_each_request_of_a_list_alone():
    """The entry point replaces `transform`, and enters the context of one request as that of all functions."""
    from sagemaker_inference.transformer import Transformer
    from ts.context import Context

    assert list(inspect.signature(Transformer.transform).parameters) == ["self", "data", "context"]
    assert list(inspect.signature(Transformer.handle_error).parameters) == ["context", "inference_exception", "trace"]
    assert "self._context" in inspect.getsource(Transformer._run_handler_function)
    assert "context.request_processor[0]" in inspect.getsource(Transformer.transform)
    assert isinstance(Context.request_processor, property)


def test_the_inference_toolkit_still_has_what_tells_whose_functions_it_calls(monkeypatch, tmp_path):
    """The entry point computes the requests of a list in one batch if all of them are its own."""
    from sagemaker_inference import environment, utils
    from sagemaker_inference.transformer import Transformer

    (tmp_path / "of_contract.py").write_text("def input_fn(body, kind): ...\ndef model_fn(folder): return folder\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SAGEMAKER_PROGRAM", "of_contract.py")
    transformer = Transformer()
    transformer.validate_and_initialize("folder")
    assert transformer._model == "folder"
    assert transformer._input_fn.__module__ == "of_contract"
    assert transformer._predict_fn.__name__ == "default_predict_fn"
    assert transformer._output_fn.__name__ == "default_output_fn"
    assert transformer._transform_fn == transformer._default_transform_fn
    assert transformer._environment.default_accept == environment.Environment().default_accept == "application/json"
    assert utils.retrieve_content_type_header({"content-type": "image/png"}) == "image/png"


def test_the_inference_toolkit_keeps_the_status_of_its_own_errors_alone():
    from sagemaker_inference.errors import BaseInferenceToolkitError

    from fastmaker.serving.errors import RequestError

    assert list(inspect.signature(BaseInferenceToolkitError).parameters) == ["status_code", "message", "phrase"]
    assert issubclass(RequestError, BaseInferenceToolkitError)


def test_both_toolkits_take_the_base_directory_from_the_environment(tmp_path):
    program = "from {} import environment; print(environment.base_dir)"
    for toolkit in ("sagemaker_inference", "sagemaker_training"):
        env = {**os.environ, "SAGEMAKER_BASE_DIR": str(tmp_path)}
        command = [sys.executable, "-c", program.format(toolkit)]
        assert subprocess.run(command, env=env, capture_output=True, text=True).stdout.strip() == str(tmp_path)


def test_the_session_overrides_methods_that_the_sdk_still_has():
    for name in ("default_bucket", "expand_role", "get_caller_identity_arn", "account_id", "wait_for_endpoint"):
        assert hasattr(Session, name), name
    for name in ("_get_account_id_if_default_bucket", "logs_for_job", "wait_for_job", "describe_training_job"):
        assert hasattr(Session, name), name
    assert callable(sagemaker.session._check_job_status)
    assert "s3_endpoint_url" in inspect.signature(LocalSession).parameters


def test_the_sdk_uses_the_bucket_that_a_session_on_aws_was_given():
    session = Session(boto3.Session(region_name="us-east-1"))
    session._default_bucket = "found"
    assert session.default_bucket() == "found"
    assert sagemaker.session.NOTEBOOK_METADATA_FILE.startswith("/opt/ml")


def test_the_sdk_finds_that_telemetry_is_off(home):
    from sagemaker.config import validate_sagemaker_config
    from sagemaker.config.config_schema import TELEMETRY_OPT_OUT_PATH
    from sagemaker.utils import resolve_value_from_config

    session = ProcessSession(home=home)
    validate_sagemaker_config(session.sagemaker_config)
    assert resolve_value_from_config(None, TELEMETRY_OPT_OUT_PATH, False, session) is True


def test_the_sdk_still_validates_its_configuration_through_the_name_that_is_wrapped(home):
    import sagemaker.utils

    assert "validate_sagemaker_config(" in inspect.getsource(sagemaker.utils.get_sagemaker_config_value)
    assert sagemaker.utils.validate_sagemaker_config.__wrapped__ is sagemaker.config.validate_sagemaker_config
    session = ProcessSession(home=home)
    session.sagemaker_config["SageMaker"]["PythonSDK"]["Nonsense"] = 1
    with pytest.raises(jsonschema.ValidationError):
        sagemaker.utils.validate_sagemaker_config(session.sagemaker_config)


def test_a_directory_of_the_serving_toolkit_is_found_without_importing_torch():
    program = (
        "import importlib.util, sys; from sagemaker_pytorch_serving_container import torchserve;"
        "print(importlib.util.find_spec('sagemaker_pytorch_serving_container.handler_service').origin);"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip().endswith("handler_service.py"), done.stderr


def test_the_sdk_still_adds_checkpoints_and_spot_instances_through_the_method_that_is_wrapped():
    from sagemaker.estimator import _TrainingJob

    assert "_add_spot_checkpoint_args(local_mode, estimator, train_args)" in inspect.getsource(_TrainingJob)
    wrapped = _TrainingJob._add_spot_checkpoint_args.__wrapped__
    assert list(inspect.signature(wrapped).parameters) == ["local_mode", "estimator", "train_args"]


def test_the_sdk_still_asks_whether_torchrun_may_start_a_script_through_the_function_that_is_wrapped(home):
    import sagemaker.pytorch.estimator as estimators

    wrapped = estimators.validate_distribution.__wrapped__
    assert (wrapped.__module__, hasattr(wrapped, "__wrapped__")) == ("sagemaker.fw_utils", False)
    assert list(inspect.signature(wrapped).parameters)[-1] == "kwargs"
    assert 'kwargs.get("instance_type")' in inspect.getsource(wrapped)

    def validate(version, **arguments):
        enabled = {"torch_distributed": {"enabled": True}}
        arguments = {"entry_point": "train.py", "sagemaker_session": ProcessSession(home=home), **arguments}
        return estimators.validate_distribution(enabled, None, "pytorch", version, "py312", None, arguments)

    assert validate("2.8.0", instance_type="local") == {"torch_distributed": {"enabled": True}}
    with pytest.raises(ValueError, match="supported framework versions"):
        validate("1.5", instance_type="local")
    with pytest.raises(ValueError, match="only for GPU and Trainium"):
        validate("2.8.0", instance_type="ml.c5.xlarge")
    with pytest.raises(ValueError, match="only for GPU and Trainium"):
        validate("2.8.0", instance_type="local", sagemaker_session=None)


def parameters(function):
    return list(inspect.signature(getattr(function, "__wrapped__", function)).parameters)


def test_the_sdk_still_packs_and_uploads_code_through_the_functions_that_are_wrapped():
    import sagemaker.estimator
    from sagemaker import fw_utils, model, utils

    base, framework = sagemaker.estimator.EstimatorBase, sagemaker.estimator.Framework
    assert parameters(base._stage_user_code_in_s3) == ["self"]
    assert parameters(base._prepare_for_training) == ["self", "job_name"]
    assert 'not self.source_dir.lower().startswith("s3://")' in inspect.getsource(
        base._prepare_for_training.__wrapped__
    )
    assert parameters(framework._model_source_dir) == parameters(framework._model_entry_point) == ["self"]
    assert parameters(model.Model._upload_code) == ["self", "key_prefix", "repack"]
    names = ["session", "bucket", "s3_key_prefix", "script", "directory", "dependencies", "kms_key", "s3_resource"]
    assert parameters(fw_utils.tar_and_upload_dir)[:8] == names
    assert "s3_resource.Object(bucket, key).upload_file(" in inspect.getsource(fw_utils.tar_and_upload_dir)
    assert parameters(utils.repack_model)[-1] == "kms_key"
    assert "shutil.move(tmp_model_path, repacked_model_uri" in inspect.getsource(utils._save_model)


def test_the_training_toolkit_still_installs_and_reads_through_the_functions_that_the_launcher_replaces():
    from sagemaker_training import modules, process

    assert parameters(modules.install) == parameters(modules.install_requirements) == ["path", "capture_error"]
    assert "await stream.read(buf_size)" in inspect.getsource(process.watch)
    assert "watch(proc.stdout, processes_per_host" in inspect.getsource(process.run_async)
    assert "stderr=stderr" in inspect.getsource(process.create)


# Prints what the SDK refuses to a LocalSession, and how often it validates a configuration that is looked up 3 times.
SDK_ALONE = """
import json
from sagemaker.config.config_schema import TELEMETRY_OPT_OUT_PATH
from sagemaker.config import config as sdk_config
from sagemaker.estimator import _TrainingJob
from sagemaker.local import LocalSession
from sagemaker.pytorch import PyTorch
from sagemaker.utils import resolve_value_from_config
import boto3, jsonschema

CONFIG = {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}}

def estimator(session, **arguments):
    role = "arn:aws:iam::000000000000:role/x"
    return PyTorch("train.py", role=role, framework_version="2.8.0", py_version="py312", instance_type="local",
                   instance_count=1, sagemaker_session=session, **arguments)

def train_arguments(session, **arguments):
    job = estimator(session, **arguments)
    job._current_job_name, job._hyperparameters = "job", {}
    _TrainingJob._add_spot_checkpoint_args(session.local_mode, job, added := {})
    return sorted(added)

def attempt(function, *arguments, **keywords):
    try:
        return repr(function(*arguments, **keywords) and "accepted")
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def validations(session):
    calls, validate = [], jsonschema.validate
    sdk_config.jsonschema.validate = lambda *arguments: calls.append(validate(*arguments))
    for _ in range(3):
        resolve_value_from_config(None, TELEMETRY_OPT_OUT_PATH, False, session)
    sdk_config.jsonschema.validate = validate
    return len(calls)

def code(session):
    session.config = {"local": {"local_code": True}}
    job = estimator(session)
    job._prepare_for_training("job")
    return [job.source_dir, job.output_path, str(job._model_source_dir()).partition("://")[0]]

def behaviour(session):
    return {
        "code": code(session),
        "spot": attempt(train_arguments, session, use_spot_instances=True, max_wait=90000),
        "checkpoint_s3_uri": attempt(train_arguments, session, checkpoint_s3_uri="s3://bucket/x"),
        "checkpoint_local_path": attempt(train_arguments, session, checkpoint_local_path="/opt/ml/x"),
        "torchrun": attempt(estimator, session, distribution={"torch_distributed": {"enabled": True}}),
        "validations": validations(session),
    }

def plain():
    return LocalSession(boto3.Session(region_name="us-west-2"), sagemaker_config=CONFIG)
"""


def test_a_plain_local_session_keeps_the_sdks_behaviour_beside_ours(home, tmp_path):
    program = SDK_ALONE + textwrap.dedent(
        f"""
        before = behaviour(plain())
        from fastmaker.local import ProcessSession
        imported = behaviour(plain())
        ours = behaviour(ProcessSession(home={str(home)!r}, sagemaker_config=CONFIG))
        print(json.dumps([before, imported, ours, behaviour(plain())]))
        """
    )
    (tmp_path / "train.py").touch()
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, imported, ours, after = json.loads(done.stdout.splitlines()[-1])
    assert before == imported == after
    assert before.pop("validations") == 3
    assert ours.pop("validations") <= 1
    assert before.pop("code") == ["", "", ""]
    assert ours.pop("code") == [None, f"file://{home}/training-jobs", "file"]
    assert set(ours.values()) == {"'accepted'"}
    assert "Spot training is not supported in local mode" in before["spot"]
    assert "checkpoint_s3_uri is not supported in local mode" in before["checkpoint_s3_uri"]
    assert "checkpoint_local_path is not supported in local mode" in before["checkpoint_local_path"]
    assert "only for GPU and Trainium" in before["torchrun"]


def test_the_sdk_still_reads_a_jobs_metrics_through_the_client_that_is_replaced():
    from sagemaker.analytics import TrainingJobAnalytics

    assert "self._cloudwatch.get_metric_statistics(**request)" in inspect.getsource(TrainingJobAnalytics)
    assert "sagemaker_session" in inspect.signature(TrainingJobAnalytics.__init__.__wrapped__).parameters


def test_botocore_still_takes_parameters_and_an_answer_from_events():
    from botocore.client import BaseClient

    assert "'provide-client-params.{service_id}.{operation_name}'" in inspect.getsource(BaseClient._emit_api_params)
    source = inspect.getsource(BaseClient._make_api_call)
    assert "'before-call.{service_id}.{operation_name}'" in source
    assert "http, parsed_response = event_response" in source


def test_the_training_toolkit_still_takes_the_port_of_a_meeting_from_what_the_launcher_sets():
    from sagemaker_pytorch_container import training
    from sagemaker_training import torch_distributed

    assert training.MASTER_PORT == torch_distributed.MASTER_PORT == "7777"
    assert "os.environ['MASTER_PORT'] = MASTER_PORT" in inspect.getsource(training)


def test_the_training_toolkit_still_asks_for_requirements_through_the_function_that_the_image_replaces():
    from sagemaker_training import entry_point

    assert "and modules.has_requirements(path)" in inspect.getsource(entry_point.install)
