"""The entry point trains each task on real images, and an endpoint answers as the Learner does."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.invocations import ask
from helpers.local_mode import deployed
from PIL import Image

from fastmaker import save_bundle
from fastmaker.local.containers import pack
from fastmaker.training import data, mask_data, run
from fastmaker.training.arguments import parse_args
from fastmaker.training.data import Samples
from fastmaker.training.distributed import SINGLE


def of_pets(test_data, task):
    """Photos of pets: their breed; whether cat or dog, and breed; their sizes; where an eighth and the middle lie."""
    files = sorted((test_data / "pets" / "images").glob("*.jpg"))[::8]
    breeds = [file.stem.rpartition("_")[0] for file in files]
    sizes = [Image.open(file).size for file in files]
    labels = {
        "classification": breeds,
        "multilabel": [("cat" if breed[0].isupper() else "dog", breed) for breed in breeds],
        "regression": [(file.stat().st_size / 1e5, w / h) for file, (w, h) in zip(files, sizes, strict=True)],
        "points": [((w / 8, h / 8), (w / 2, h / 2)) for w, h in sizes],
    }
    is_valid = [number % 5 == 0 for number in range(len(files))]
    return Samples("pets", files, labels[task], is_valid, task=task)


def real_samples(test_data, name):
    if name == "digits":
        samples = data.read(test_data / "mnist_idx")
        return dataclasses.replace(
            samples,
            images=samples.images[::100],
            labels=samples.labels[::100],
            is_valid=samples.is_valid[::100],
        )
    return mask_data.read(test_data / "camvid") if name == "segmentation" else of_pets(test_data, name)


def expected_of(task, decoded, numbers, image):
    """What an endpoint's JSON has of a Learner's prediction."""
    numbers = np.asarray(numbers, float)
    if task == "classification":
        return {"label": str(decoded), "probability": numbers.max()}
    if task == "multilabel":
        return {"labels": [str(label) for label in decoded]}
    if task == "regression":
        return {"values": list(map(float, decoded))}
    if task == "points":
        return {"points": ((numbers.reshape(-1, 2) + 1) / 2 * Image.open(image).size).tolist()}
    return {"shape": list(decoded.shape)}


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.server
@pytest.mark.parametrize("name", ["digits", "classification", "multilabel", "regression", "points", "segmentation"])
def test_the_endpoint_of_real_images_answers_as_the_learner_does(session, test_data, tmp_path, name):
    task = "classification" if name == "digits" else name
    network = "--arch convnet" if name == "digits" else "--arch resnet18 --image-size 64 --pretrained false"
    words = f"--train t --task {task} {network} --batch-size 16 --augment true --resize-method squish"
    learn = run._learner(parse_args(words.split()), real_samples(test_data, name), SINGLE, None)
    learn.remove_cb(learn.metric_log)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, 0.003)
        save_bundle(learn, tmp_path / "model")
        items = learn.dls.valid_ds.items[:5]
        expected = [learn.predict(image) for image, _ in items]
    pack(tmp_path / "model", tmp_path / "model.tar.gz")
    with deployed(session, tmp_path / "model.tar.gz") as predictor:
        (server,) = session.sagemaker_client.endpoints.read(predictor.endpoint_name)["servers"]
        place = f"http://127.0.0.1:{server['port']}/invocations"
        for (image, _), (decoded, _, numbers) in zip(items, expected, strict=True):
            body = image.read_bytes() if isinstance(image, Path) else png_of(image)
            status, answer, _ = ask(place, body, "application/x-image", "application/json")
            assert status == 200
            for key, value in expected_of(task, decoded, numbers, image).items():
                found = json.loads(answer)[key]
                assert found == value or np.allclose(found, value, atol=1e-5), (key, found, value)
            status, answer, _ = ask(place, body, "application/x-image", "application/x-npy")
            wanted = decoded if task == "segmentation" else numbers
            assert np.allclose(np.load(io.BytesIO(answer)).ravel(), np.asarray(wanted).ravel(), atol=1e-6)


def png_of(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()
