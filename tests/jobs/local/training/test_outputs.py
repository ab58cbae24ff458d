"""A model that is not compressed, the values that a job has printed, and the names of checkpoints."""

import pytest
from botocore.exceptions import ClientError
from helpers.local_mode import estimator
from helpers.shapes import assert_answers_as

from fastmaker.jobs.storage import StorageError
from fastmaker.local.containers import Container
from fastmaker.local.training.checkpoints import Checkpoints


def test_a_model_may_stay_uncompressed_and_its_metrics_are_read_from_its_log(session, write_script, tmp_path):
    source = write_script(
        """
        import os, pathlib, time
        model = pathlib.Path(os.environ["SM_MODEL_DIR"])
        (model / "code").mkdir()
        (model / "code" / "inference.py").write_text("pass")
        (model / "weights").write_text("1")
        pathlib.Path(os.environ["SM_OUTPUT_DATA_DIR"], "report.txt").write_text("a report")
        for epoch in range(3):
            print(f"epoch={epoch} loss={1 / 2 ** epoch} accuracy=none", flush=True); time.sleep(0.1)
        """
    )
    definitions = [{"Name": "loss", "Regex": "loss=([0-9.]+)"}, {"Name": "accuracy", "Regex": "accuracy=(\\\\S+)"}]
    output = {"output_path": f"file://{tmp_path}/output", "disable_output_compression": True}
    job = estimator(session, source, metric_definitions=definitions, **output)
    job.fit()
    name = job.latest_training_job.name
    folder = tmp_path / "output" / name / "output"
    assert session.describe_training_job(name)["ModelArtifacts"]["S3ModelArtifacts"] == f"file://{folder}/model"
    assert job.model_data["S3DataSource"] == {
        "S3Uri": f"file://{folder}/model/",
        "S3DataType": "S3Prefix",
        "CompressionType": "None",
    }
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"model/weights", "model/code/inference.py", "output.tar.gz"}

    data = job.training_job_analytics.dataframe()
    assert list(data["metric_name"]) == ["loss"] * 3
    assert list(data["value"]) == [1.0, 0.5, 0.25]
    assert data["timestamp"].is_monotonic_increasing
    _assert_that_cloudwatch_answers(session, name)


def _assert_that_cloudwatch_answers(session, name):
    cloudwatch = session.cloudwatch_client
    times = {"StartTime": "2026-01-01", "EndTime": "2126-01-01", "Period": 60}
    request = {"Namespace": "/aws/sagemaker/TrainingJobs", "MetricName": "loss", "Statistics": ["Maximum"], **times}
    request["Dimensions"] = [{"Name": "TrainingJobName", "Value": name}]
    answer = cloudwatch.get_metric_statistics(**request)
    assert_answers_as("GetMetricStatistics", answer, "cloudwatch")
    assert [point["Maximum"] for point in answer["Datapoints"]] == [1.0, 0.5, 0.25]
    others = ({"Namespace": "AWS/EC2"}, {"EndTime": "2026-01-02"}, {"MetricName": "epoch"}, {"Dimensions": []})
    for other in others:
        assert cloudwatch.get_metric_statistics(**{**request, **other})["Datapoints"] == []
    with pytest.raises(ClientError, match="Could not find training job"):
        cloudwatch.get_metric_statistics(**{**request, "Dimensions": [{"Name": "TrainingJobName", "Value": "none"}]})
    with pytest.raises(ClientError, match="ListMetrics needs AWS"):
        cloudwatch.list_metrics()


@pytest.mark.parametrize("name", ["../outside", "run/../../outside", "/tmp/outside"])
def test_a_checkpoint_whose_name_leads_out_of_the_folder_is_refused(s3, bucket, tmp_path, name):
    s3.put_object(Bucket=bucket, Key=f"c/{name}", Body=b"x")
    container = Container(tmp_path / "host")
    config = {"S3Uri": f"s3://{bucket}/c", "LocalPath": "/opt//ml/checkpoints"}
    with pytest.raises(StorageError, match="its name leads out of the checkpoints"):
        Checkpoints(config, [container]).restore()
    assert [path.name for path in tmp_path.rglob("*")] == ["host", "checkpoints"]
