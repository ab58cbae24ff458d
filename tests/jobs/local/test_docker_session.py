"""Local mode with Docker, on the project's images: what only containers have.

What processes pass, containers pass: the tests marked `containers` run in both kinds of session.
"""

import json
import shutil

import pytest
from botocore.exceptions import ClientError
from helpers.commands import next_command
from helpers.engine import containers_below, docker
from helpers.local_mode import bundle_model, estimator, log_of, start, wait_until

pytestmark = pytest.mark.docker
in_containers = pytest.mark.parametrize("session", ["docker"], indirect=True)


@in_containers
def test_an_endpoint_is_reached_from_this_machine_alone(session, digits_predictor, home):
    (name,) = containers_below(home / "endpoints" / digits_predictor.endpoint_name)
    assert docker("port", name).splitlines()[0].split(" -> ")[1].startswith("127.0.0.1:")
    assert len(docker("port", name).splitlines()) == 1


@in_containers
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
        time.sleep(3600)
        """
    )
    name = start(session, source)
    wait_until(lambda: "asleep" in log_of(session, name))
    session.stop_training_job(name)
    session.wait_for_job(name)
    assert (session.sagemaker_client.training_jobs.directory(name) / "algo-1" / "model" / "last words").exists()


@in_containers
def test_an_image_that_is_not_there_is_refused_before_anything_starts(session, write_script, digits_archive):
    jobs = session.sagemaker_client.training_jobs.names()
    with pytest.raises(ClientError, match=r"no image nobody-made-this on this machine: .*fastmaker image build"):
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


def test_an_image_of_ones_own_serves_by_ray_serve(run, digits_bundle, few, ray_image, tmp_path):
    options = ["--model", str(digits_bundle), "--backend", "docker", "--image-uri", ray_image]
    deployed = run("deploy", "--endpoint-name", "by-ray", *options)
    assert deployed.returncode == 0, deployed.stderr.decode()
    [log] = (tmp_path / "home" / "endpoints").rglob("container.log")
    assert "ray" in log.read_text().lower()
    shutil.copytree(few / "7", tmp_path / "some")
    asked = run("predict", "--endpoint", "by-ray", str(tmp_path / "some"), "--json")
    assert asked.returncode == 0, asked.stderr.decode()
    done = run("transform", "--data", "some", "--output", "answers", *options)
    assert done.returncode == 0, done.stderr.decode()
    answers = {file.name: json.loads(file.read_text()) for file in (tmp_path / "answers").rglob("*.out")}
    assert len(answers) == len(list((few / "7").iterdir()))
    assert run("cleanup", "--all", "--yes").returncode == 0
    assert containers_below(tmp_path / "home") == []
