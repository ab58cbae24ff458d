"""Local mode with Docker, on the project's images: what processes pass, containers pass.

The tests are those of endpoints, training and transform jobs, with another session.
"""

import json
import os
import shutil

import pytest
from botocore.exceptions import ClientError
from engine import docker
from local_mode import bundle_model, deployed, estimator, wait_until
from sagemaker import image_uris

# ruff: noqa: F401, F811
from test_abuse import test_bad_requests_are_refused_and_good_ones_answered_right_by_the_same_workers
from test_endpoints import (
    digit,
    test_a_bad_request_gets_its_status_and_a_first_line_that_says_why,
    test_a_model_that_cannot_load_fails_the_endpoint_with_its_reason,
    test_a_predictor_of_the_sdk_works_unchanged,
    test_a_server_that_died_shows_as_failed,
    test_a_timeout_that_is_set_holds,
    test_an_altered_bundle_fails_the_endpoint_naming_the_file,
    test_an_archive_that_is_none_fails_the_endpoint,
    test_an_endpoint_is_used_and_deleted_from_another_process,
    test_an_entry_point_of_ones_own_is_repacked_and_a_worker_imports_no_fastai,
    test_an_update_brings_the_new_model_and_a_failing_one_keeps_the_old,
    test_several_instances_all_answer_and_all_go,
    test_the_endpoint_gives_the_bits_that_the_bundle_gives,
    test_two_endpoints_at_once_answer_from_their_own_models,
)
from test_job_scripts import next_command, run
from test_training_jobs import (
    data,
    log_of,
    start,
    test_a_job_longer_than_max_run_is_stopped,
    test_a_job_sees_its_own_environment_and_not_the_callers,
    test_a_job_that_is_stopped_at_once_is_stopped,
    test_a_job_whose_own_process_is_killed_is_failed_and_leaves_nothing_running,
    test_a_script_that_is_killed_fails_the_job,
    test_a_script_that_raises_fails_the_job_with_its_reason_and_leaves_no_model,
    test_fit_runs_anybodys_script_with_its_hyperparameters_channels_and_outputs,
)
from test_training_on_hosts import (
    test_a_host_that_fails_ends_the_job_and_is_named,
    test_checkpoints_are_taken_away_while_a_job_runs_and_brought_to_the_next,
    test_hosts_meet_have_their_shards_and_leave_one_model,
    test_two_jobs_of_two_hosts_at_once_do_not_meet_each_other,
)
from test_transform_jobs import (
    echo,
    test_a_bad_manifest_is_refused_in_one_line_before_a_server_starts,
    test_a_container_knows_that_it_serves_a_batch_job,
    test_a_job_that_is_stopped_keeps_what_is_whole_and_leaves_nothing_running,
    test_a_model_that_cannot_be_loaded_fails_the_job_with_its_reason,
    test_json_lines_are_filtered_joined_and_filtered_again,
    test_the_default_call_of_the_sdk_shows_the_logs_and_the_answers_lie_beside_no_partial_file,
)

from fastmaker.local import DockerSession
from fastmaker.local.docker import LABEL

pytestmark = pytest.mark.docker


def containers_below(folder) -> list[str]:
    """The names of containers that belong to a directory below `folder`."""
    listed = docker("ps", "--all", "--filter", f"label={LABEL}", "--format", f'{{{{.Names}}}} {{{{.Label "{LABEL}"}}}}')
    names = dict(line.split(maxsplit=1) for line in listed.splitlines())
    return [name for name, root in names.items() if root.startswith(f"{folder}{os.sep}")]


@pytest.fixture(scope="session")
def session(home, training_image):
    """A session that takes the project's image where the SDK names AWS's; no container is left behind."""
    session = DockerSession(home=home)
    arguments = {"py_version": "py312", "instance_type": "ml.c5.large"}
    versions = {"training": "2.8.0", "inference": "2.6.0"}
    names = [
        image_uris.retrieve("pytorch", session.boto_region_name, version, image_scope=scope, **arguments)
        for scope, version in versions.items()
    ]
    for name in names:
        docker("tag", training_image, name)
    yield session
    for name in names:
        docker("image", "rm", name)
    assert not containers_below(home)


@pytest.fixture(scope="session")
def digits_predictor(session, digits_archive):
    with deployed(session, digits_archive) as predictor:
        yield predictor


def test_an_endpoint_is_reached_from_this_machine_alone(session, digits_predictor, home):
    (name,) = containers_below(home / "endpoints" / digits_predictor.endpoint_name)
    assert docker("port", name).splitlines()[0].split(" -> ")[1].startswith("127.0.0.1:")
    assert len(docker("port", name).splitlines()) == 1


def test_a_container_is_told_to_stop_and_its_script_hears_it(session, write_script):
    """SageMaker's training toolkit does not pass SIGTERM on; the image does."""
    source = write_script(
        """
        import os, signal, sys, time
        def stop(*_):
            open(os.path.join(os.environ["SM_MODEL_DIR"], "last words"), "w").close()
            sys.exit(143)
        signal.signal(signal.SIGTERM, stop)
        print("asleep", flush=True)
        time.sleep(600)
        """
    )
    name = start(session, source)
    wait_until(lambda: "asleep" in log_of(session, name))
    session.stop_training_job(name)
    session.wait_for_job(name)
    assert (session.sagemaker_client.training_jobs.directory(name) / "algo-1" / "model" / "last words").exists()


def test_an_image_that_is_not_there_is_refused_before_anything_starts(session, write_script, digits_archive):
    jobs = session.sagemaker_client.training_jobs.names()
    with pytest.raises(ClientError, match=r"no image nobody-made-this on this machine: .*jobs\.image build"):
        estimator(session, write_script("pass"), image_uri="nobody-made-this").fit()
    with pytest.raises(ClientError, match="no image nobody-made-this on this machine"):
        bundle_model(session, digits_archive, image_uri="nobody-made-this").deploy(1, "local")
    assert session.sagemaker_client.training_jobs.names() == jobs


def test_the_scripts_go_from_a_folder_to_the_answers_of_a_batch_job(run, few, training_image, tmp_path):
    shutil.copytree(few, tmp_path / "digits")
    options = ["--backend", "docker", "--image-uri", training_image]
    trained = run("train", "--data", "digits", "--arch", "convnet", "--epochs", "1", "--job-name", "it", *options)
    assert trained.returncode == 0, trained.stderr.decode()
    assert "valid:accuracy" in trained.stdout.decode()
    assert (tmp_path / "reports" / "it" / "confusion_matrix.png").is_file()

    deployed = run(*next_command(trained), *options)
    assert deployed.returncode == 0, deployed.stderr.decode()
    file = min((few / "7").iterdir())
    asked = run(*next_command(deployed)[:-2], str(file), "--json")
    label = json.loads(asked.stdout)["label"]

    (tmp_path / "digits" / "7" / "broken.png").write_bytes(b"no image")
    names = [f"7/{file.name}", "7/broken.png", f"3/{min((few / '3').iterdir()).name}"]
    (tmp_path / "some.json").write_text(json.dumps([{"prefix": f"file://{tmp_path}/digits/"}, *names]))
    words = ["--model", "it", "--manifest", "some.json", "--output", "answers", "--job-name", "batch"]
    done = run("transform", *words, *options)
    assert done.returncode == 1
    assert "1 of 3 objects failed" in done.stderr.decode()
    assert "7/broken.png: 400" in done.stderr.decode()
    answers = {str(path.relative_to(tmp_path / "answers")) for path in (tmp_path / "answers").rglob("*.out")}
    assert answers == {f"{name}.out" for name in names if "broken" not in name}
    assert json.loads((tmp_path / "answers" / f"{names[0]}.out").read_text())["label"] == label

    shutil.copy(file, tmp_path / "digits" / "7" / "broken.png")
    again = run("transform", "--retry-failed", "batch", "--backend", "docker")
    assert again.returncode == 0, again.stderr.decode()
    assert "transforming 1 of 3 objects" in again.stdout.decode()
    assert json.loads((tmp_path / "answers" / "7" / "broken.png.out").read_text())["label"] == label

    assert len(containers_below(tmp_path / "home" / "endpoints")) == 1
    assert run("cleanup", "--all", "--yes").returncode == 0
    assert containers_below(tmp_path / "home") == []
