"""What the tests share: data sets made on the spot, a trained bundle, and the versions in the report's header."""

import atexit
import contextlib
import ctypes
import gc
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
# A shell that starts the tests in the background has them ignore SIGINT, and whatever they start inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What an account, a container or a network sets is not for the tests: credentials, channels, an /opt/ml, a proxy.
OF_THE_USER = ("AWS_", "SAGEMAKER_", "SM_", "FASTMAKER_HOME", "FASTMAKER_ENGINE", "TS_")
for name in [name for name in os.environ if name.startswith(OF_THE_USER)]:
    del os.environ[name]
EMPTY = tempfile.mkdtemp(prefix="fastmaker-tests-")  # some toolkits make folders there
atexit.register(shutil.rmtree, EMPTY, ignore_errors=True)
os.environ |= {
    "AWS_CONFIG_FILE": f"{EMPTY}/none",
    "AWS_SHARED_CREDENTIALS_FILE": f"{EMPTY}/none",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1", "localhost"])),
    "SAGEMAKER_BASE_DIR": EMPTY,
    "OMP_NUM_THREADS": "1",  # more gain nothing for small networks, and on a busy machine slow each other down
}

# `make test-fast` leaves out tests with these markers, of which two are given by fixtures that a test uses.
SLOWER = {"browser", "docker", "learner", "openvino", "server", "slow", "training", "triton", "versions"}
BY_FIXTURE = {
    "server": {
        "aws",
        "digits_predictor",
        "digits_server",
        "front",
        "gate",
        "home",
        "package",
        "run",
        "scenes_server",
        "session",
    },
    "training": {"scenes_bundle", "scenes_learner"},
}

ID_LENGTH = 80  # of a whole id, which is of several values
VALUE_LENGTH = 32


def pytest_make_parametrize_id(val, argname):
    """Return the part of a test's id that stands for a text, bytes or a pattern: printable ASCII, and short.

    Equal ids get a number from pytest, as do values of any other type that have no name. So two collections name the
    same tests, which pytest-xdist asks of its workers.
    """
    text = val.pattern if isinstance(val, re.Pattern) else val
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    if not isinstance(text, str):
        return None
    words = re.sub(r"[^!-~]+", " ", text).strip()  # each run of spaces, controls and letters beyond ASCII
    return words[:VALUE_LENGTH].strip() or (argname if text else "")


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their markers
def pytest_collection_modifyitems(items):
    """Refuse ids that differ from run to run, or that no terminal or report can hold; mark the tests that are fast.

    Files of fast tests alone come last, so that the processes of a run end together.
    """
    for item in items:
        name = item.nodeid.partition("::")[2]
        if not name.isascii() or not name.isprintable() or len(name.partition("[")[2]) > ID_LENGTH:
            expected = f"expected an id of printable ASCII, {ID_LENGTH} characters at most"
            raise pytest.UsageError(f"{item.nodeid!r}: {expected}")
        for marker, fixtures in BY_FIXTURE.items():
            if fixtures & set(item.fixturenames):
                item.add_marker(marker)
        if not SLOWER & {mark.name for mark in item.iter_markers()}:
            item.add_marker("fast")
    slower = {item.path for item in items if not item.get_closest_marker("fast")}
    items.sort(key=lambda item: item.path not in slower)


def pytest_collection_finish(session):
    """End the run with one line where its tests need a Docker engine and none answers."""
    needed = any(item.get_closest_marker("docker") for item in session.items)
    if needed and not session.config.option.collectonly and (reason := why_no_engine()):
        start = "start one (as root: dockerd, or systemctl start docker)"
        pytest.exit(f"the tests marked docker need a Docker engine; {start}: {reason}", 1)


def why_no_engine() -> str | None:
    """Return why no Docker engine answers, None if one does."""
    try:
        done = subprocess.run(["docker", "version"], capture_output=True, text=True)
    except FileNotFoundError:
        return "there is no docker command"
    return done.stderr.strip().rpartition("\n")[2] if done.returncode else None


def pytest_report_header():
    installed = []
    for name in ("torch", "torchvision", "fastai", "sagemaker", "torchserve"):
        with contextlib.suppress(metadata.PackageNotFoundError):  # test_versions.py's environments do without the SDK
            installed.append(f"{name} {metadata.version(name)}")
    return "versions: " + ", ".join(installed)


@pytest.fixture(autouse=True, scope="module")
def memory_is_given_back():
    """After each file: Learners go in cycles, and the C library keeps what they had, gigabytes in a long process."""
    yield
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """scikit-learn's digits: 1,797 gray 8x8 PNGs in the class folders 0 to 9."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("data") / "digits"
    source = load_digits()
    for number, (image, label) in enumerate(zip(source.images, source.target, strict=True)):
        file = folder / str(label) / f"{number:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(file)
    return folder


@pytest.fixture(scope="session")
def few(digits, tmp_path_factory) -> Path:
    """160 of the digits, of which 30 validate: an epoch takes a fraction of a second."""
    folder = tmp_path_factory.mktemp("few")
    for label in sorted(os.listdir(digits)):
        (folder / label).mkdir()
        for file in sorted((digits / label).iterdir())[:16]:
            (folder / label / file.name).symlink_to(file)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """36 colour JPEGs of many sizes and aspect ratios: red stripes, green checks and blue rings, all noisy."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    random = np.random.default_rng(7)
    for number in range(36):
        label = ("checks", "rings", "stripes")[number % 3]
        height, width = random.integers(40, 140, 2)
        y, x = np.mgrid[:height, :width]
        pattern = {"checks": (x // 8 + y // 8) % 2, "rings": np.hypot(x - 50, y - 50) // 6 % 2, "stripes": x // 6 % 2}
        pixels = random.integers(0, 90, (height, width, 3))
        pixels[..., ("stripes", "checks", "rings").index(label)] += (150 * pattern[label]).astype(int)
        file = folder / label / f"{number:02}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(file, quality=90)
    return folder


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """15 noisy 56x40 scenes with a mask each, in CAMVID_TINY's layout: boxes and discs on ground, the top rows void."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    random = np.random.default_rng(11)
    y, x = np.mgrid[:40, :56]
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    (folder / "codes.txt").write_text("ground\nbox\ndisc\nVoid\n")
    for number in range(15):
        row, column = random.integers(12, 30, 2)
        mask = np.where((abs(y - row) < 8) & (abs(x - column) < 9), 1, 0)
        mask[np.hypot(y - 20, x - 45) < 8] = 2
        mask[:4] = 3
        pixels = random.integers(0, 90, (40, 56, 3)) + np.array([[0, 0, 0], [140, 0, 0], [0, 120, 40], [9, 9, 9]])[mask]
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{number:02}.png")
        Image.fromarray(mask.astype(np.uint8)).save(folder / "labels" / f"{number:02}_P.png")
    return folder


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real images; tests that use it carry the marker `data`."""
    folder = Path(os.environ.get("FASTMAKER_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real images: {folder} is missing; FASTMAKER_TEST_DATA names the folder")
    return folder


@pytest.fixture(scope="session")
def digits_learner(digits):
    """A convnet that saw the digits for one epoch, with its fastai DataLoaders."""
    from fastai.vision.all import set_seed

    from fastmaker.training import data, learner
    from fastmaker.training.arguments import parse_args

    set_seed(1, reproducible=True)
    samples = data.read(digits)
    dls = data.dataloaders(samples, "L", (28, 28), "crop", batch_size=64, augment=False, workers=0)
    learn = learner.create(dls, samples, parse_args(["--train", "digits", "--arch", "convnet"]), pretrained=False)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, 0.005)
    return learn


@pytest.fixture(scope="session")
def digits_bundle(digits_learner, tmp_path_factory) -> Path:
    """The bundle of `digits_learner`. Shared: copy it before you change it."""
    from fastmaker import save_bundle

    folder = tmp_path_factory.mktemp("bundle") / "digits"
    save_bundle(digits_learner, folder, {"accuracy": 0.9})
    return folder


@pytest.fixture(scope="session")
def scenes_learner(scenes):
    """A U-Net that saw the scenes for three epochs."""
    from fastai.vision.all import set_seed

    from fastmaker.training import data, learner, mask_data
    from fastmaker.training.arguments import parse_args

    set_seed(1, reproducible=True)
    samples = mask_data.read(scenes)
    dls = data.dataloaders(samples, "RGB", (40, 56), "squish", batch_size=4, augment=False, workers=0)
    arguments = "--train scenes --task segmentation --arch resnet18 --image-size 40x56"
    args = parse_args(arguments.split())
    learn = learner.create(dls, samples, args, pretrained=False)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(3, 0.003)
    return learn


@pytest.fixture(scope="session")
def scenes_bundle(scenes_learner, tmp_path_factory) -> Path:
    """The bundle of `scenes_learner`. Shared: copy it before you change it."""
    from fastmaker import save_bundle

    folder = tmp_path_factory.mktemp("bundle") / "scenes"
    save_bundle(scenes_learner, folder, {"pixel_accuracy": 0.9})
    return folder


@pytest.fixture(scope="session")
def entry_point():
    """The module source/entry_point.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("entry_point_of_tests", ROOT / "source" / "entry_point.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def server_files(tmp_path_factory) -> Path:
    """The files of a Triton server, which is installed for this run."""
    from helpers import environments, triton_server

    with environments.needed_by("triton"):
        return triton_server.install(tmp_path_factory.mktemp("triton") / "environment")
