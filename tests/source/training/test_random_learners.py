"""Learners made by chance: the bundle of each answers as it on real photos, or it is refused by name.

FASTMAKER_RANDOM_LEARNERS=50 FASTMAKER_FIRST_LEARNER=1000 pytest -m slow tests/source/training/test_random_learners.py
"""

import collections
import io
import json
import os
import re
import shutil

import numpy as np
import pytest
from helpers import random_learners

from fastmaker import BundleError, save_bundle
from fastmaker.serving import errors

pytestmark = [pytest.mark.slow, pytest.mark.data]
LEARNERS = int(os.environ.get("FASTMAKER_RANDOM_LEARNERS", "200"))
FIRST = int(os.environ.get("FASTMAKER_FIRST_LEARNER", "0"))
TOLERANCE = 1e-6


class Context:
    """What the serving toolkit hands to the entry point."""

    def __init__(self):
        self.system_properties = {"gpu_id": None}

    def get_all_request_header(self, _):
        return {}


@pytest.fixture(scope="module")
def photos(test_data, tmp_path_factory):
    pets = sorted((test_data / "pets" / "images").glob("*.jpg"))
    ugly = sorted(file for file in (test_data / "ugly_images").iterdir() if file.suffix.lower() not in (".txt", ".md"))
    scenes = sorted((test_data / "camvid" / "images").glob("*.png"))
    return random_learners.Photos(pets[:: len(pets) // 32][:32], ugly, scenes[::11], tmp_path_factory.mktemp("alike"))


def test_a_learner_made_by_chance_is_answered_exactly_or_refused(photos, entry_point, tmp_path, capsys):
    counts, wrong = collections.Counter(), []
    for seed in range(FIRST, FIRST + LEARNERS):
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        try:
            made = random_learners.make(seed, photos)
            with made.learn.no_bar(), made.learn.no_logging():
                made.learn.predict(made.files[0])
        except Exception as error:  # fastai itself does not take the combination
            counts[f"no Learner: {type(error).__name__}"] += 1
            continue
        result = _result(made, entry_point, tmp_path / "model")
        counts[_reason(result)] += 1
        with capsys.disabled():
            print(seed, ", ".join(made.words), "->", result, flush=True)
        if result.startswith("WRONG"):
            wrong.append(f"{seed} {', '.join(made.words)}: {result}")
    with capsys.disabled():
        print(*(f"{n:5} {reason}" for reason, n in counts.most_common()), sep="\n")
    assert not wrong, "\n".join(wrong)
    assert counts["accepted"] > LEARNERS // 4


def _result(made, entry_point, folder) -> str:
    try:
        save_bundle(made.learn, folder)
    except BundleError as error:
        return _refused(error, folder)
    except Exception as error:
        return f"WRONG: save_bundle raises {type(error).__name__}: {error}"
    model = entry_point.model_fn(str(folder), Context())
    asked = 0
    for file in made.files:
        try:
            with made.learn.no_bar(), made.learn.no_logging():
                said, _, numbers = made.learn.predict(file)
        except Exception:
            continue
        try:
            given = _ask(entry_point, model, file)
        except errors.RequestError:  # one line, no answer
            continue
        asked += 1
        if problem := _difference(made.task, said, np.asarray(numbers), *given):
            return f"WRONG: {problem} ({file.name})"
    few = any(word.startswith("RatioResize") for word in made.words)  # which is random for the others
    if asked >= (1 if few else min(20, len(made.files))):
        return "accepted"
    return f"WRONG: {asked} of {len(made.files)} photos answered"


def _refused(error, folder) -> str:
    if folder.exists():
        return f"WRONG: refused, but written: {error}"
    return f"refused: {error}" if len(str(error).splitlines()) == 1 else f"WRONG: refused in several lines: {error}"


def _ask(entry_point, model, file):
    """Return the answer's array and object, by the entry point's functions."""
    request = entry_point.input_fn(file.read_bytes(), "application/x-image")
    bodies = []
    for accept in ("application/x-npy", "application/json"):
        body = entry_point.output_fn(entry_point.predict_fn(request, model), accept)
        bodies.append(body[0] if isinstance(body, tuple) else body)
    return np.load(io.BytesIO(bodies[0]), allow_pickle=False), json.loads(bodies[1])


def _difference(task, said, numbers, array, answer) -> str:
    if task == "segmentation":
        off = int((array.astype(int) != np.asarray(said).astype(int)).sum())
        return f"{off} pixels differ" if off else ""
    off_by = float(np.abs(array.ravel() - numbers.ravel()).max())
    if not off_by <= TOLERANCE:
        return f"off by {off_by:.1e}"
    given = answer.get("labels", answer.get("label"))
    expected = sorted(map(str, said)) if isinstance(given, list) else str(said)
    if given is not None and (sorted(given) if isinstance(given, list) else given) != expected:
        return f"the label is {given}, not {expected}"
    return ""


def _reason(result: str) -> str:
    """Return a result without its names and numbers."""
    return re.sub(r"\(.*?\)|'[^']*'|[\d.]+(e-\d+)?", "*", result)[:100]
