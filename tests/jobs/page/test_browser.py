"""The page as a person uses it, in a real Chromium."""

import base64
import csv
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import urllib3
from helpers import browser as browsers
from helpers import task_bundles
from helpers.browser import NARROW, WIDE, Tab, png, served
from PIL import Image

from fastmaker.bundle import load_info
from fastmaker.jobs.clients import sources
from fastmaker.jobs.page.corrections import Corrections
from fastmaker.training import run
from fastmaker.training.arguments import parse_args

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = task_bundles.save(tmp_path_factory.mktemp("one") / "model", "classification")
    return sources.Bundle(folder, "digits")


@pytest.fixture(scope="module")
def corrections(tmp_path_factory):
    return tmp_path_factory.mktemp("corrections") / "saved"


@pytest.fixture(scope="module")
def example(few):
    return sorted((few / "7").iterdir())


@pytest.fixture(scope="module")
def url(bundle, corrections, example):
    with served(bundle, example[:6], Corrections(corrections)) as url:
        yield url


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A page of a model of several labels."""
    folder = task_bundles.save(tmp_path_factory.mktemp("several") / "model", "multilabel")
    with served(sources.Bundle(folder, "several")) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    with browsers.chromium() as browser:
        yield browser


@pytest.fixture
def tab(browser, url):
    """A tab; whatever a test does, no error is logged and no other host is asked."""
    tab = Tab(browser, url)
    yield tab
    tab.close()
    assert tab.errors == []
    assert tab.hosts == {url.split("/")[2]}


def raw_of(tab) -> bytes:
    """The raw answer, as the page offers it to be saved."""
    button = tab.page.get_by_role("button", name="The raw answer")
    button.click()
    with tab.page.expect_download() as downloaded:
        tab.page.get_by_text("Download the raw answer").click()
    return Path(downloaded.value.path()).read_bytes()


def test_an_uploaded_image_is_answered_by_its_own_bytes(tab, bundle, example):
    tab.upload(example[0])
    tab.said(f"{example[0].stat().st_size} bytes sent")
    expected = bundle.ask(example[0].read_bytes())
    answer = json.loads(expected)
    tab.said(f"{answer['label']} {answer['probability']:.4f}")
    assert raw_of(tab) == expected
    assert tab.page.locator("#raw").text_content() == expected.decode()


def test_an_example_is_picked(tab, bundle, example):
    tab.page.get_by_role("button", name="Thumbnail 3 of").click()
    tab.said(example[2].name)
    assert raw_of(tab) == bundle.ask(example[2].read_bytes())


def test_an_image_is_pasted(browser, url):
    tab = Tab(browser, url, permissions=["clipboard-read", "clipboard-write"])
    write = """async (data) => {
        const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
        await navigator.clipboard.write([new ClipboardItem({"image/png": new Blob([bytes], {type: "image/png"})})]);
    }"""
    tab.page.evaluate(write, base64.b64encode(png()).decode())
    tab.page.get_by_role("button", name="Paste from clipboard").click()
    tab.said("bytes sent")
    assert tab.errors == []
    tab.close()


def test_a_camera_that_is_refused_leaves_the_page_as_it_was(tab, example):
    tab.page.get_by_role("button", name="Capture from camera").click()
    tab.page.get_by_text("Click to Access Webcam").click()
    tab.page.wait_for_timeout(1000)
    tab.page.get_by_role("button", name="Upload file", exact=True).click()
    tab.upload(example[0])
    tab.said("bytes sent")
    tab.errors.remove("Permission denied")  # the browser's own word


def test_a_camera_takes_a_picture(browser, url):
    tab = Tab(browser, url, permissions=["camera"])
    tab.page.get_by_role("button", name="Capture from camera").click()
    tab.page.get_by_text("Click to Access Webcam").click()
    tab.page.wait_for_function("[...document.querySelectorAll('video')].some(v => v.readyState >= 2 && v.videoWidth)")
    tab.page.get_by_role("button", name="capture photo").click()
    tab.said("bytes sent")
    assert tab.errors == []
    tab.close()


def test_the_slider_moves_the_threshold_of_labels(browser, several, example):
    tab = Tab(browser, several)
    tab.upload(("photo.png", "image/png", png()))
    tab.said("bytes sent")
    slider = tab.page.get_by_role("slider", name="Threshold of labels")
    slider.focus()
    slider.press("Home")
    tab.said(", ".join(task_bundles.LABELS))
    slider.press("End")
    tab.said("no label")
    assert tab.errors == []
    tab.close()


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("broken.png", b"no image", "400: the 8 bytes are not an image that Pillow can read"),
        ("cut.png", png((300, 300))[:200], "400: the image is damaged or truncated"),
        ("empty.png", b"", "400: the body is empty"),
    ],
)
def test_a_broken_image_has_the_endpoints_words(tab, name, data, words):
    tab.upload((name, "image/png", data))
    tab.said(words)


def test_an_image_of_20_mb_is_answered(tab, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2600, 2600, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png", compress_level=0)
    assert (tmp_path / "large.png").stat().st_size > 20e6
    tab.upload(tmp_path / "large.png")
    tab.said(f"{(tmp_path / 'large.png').stat().st_size:,} bytes sent")


def test_two_people_at_once_have_their_own_answers(browser, url, bundle, example):
    first, second = Tab(browser, url), Tab(browser, url)
    first.upload(example[0])
    second.upload(example[1])
    first.said(example[0].name)
    second.said(example[1].name)
    assert raw_of(first) == bundle.ask(example[0].read_bytes())
    assert raw_of(second) == bundle.ask(example[1].read_bytes())
    assert first.page.get_by_text(f"{example[1].name}:").count() == 0
    first.close()
    second.close()


def test_a_zip_gives_a_table_a_sheet_and_a_csv(tab, bundle, example, tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for file in example[:5]:
            archive.write(file, f"folder/{file.name}")
        archive.writestr("folder/broken.png", b"no image")
        archive.writestr("notes.txt", b"no image")
    tab.upload(tmp_path / "images.zip", into="Many images")
    tab.said("6 images, 1 without an answer.")
    tab.said("1 files are left out")
    with tab.page.expect_download() as downloaded:
        tab.page.get_by_text("Download the table as CSV").click()
    with open(downloaded.value.path(), newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["key"] for row in rows] == [*(f"folder/{file.name}" for file in example[:5]), "folder/broken.png"]
    assert [row["label"] for row in rows[:5]] == [json.loads(bundle.ask(f.read_bytes()))["label"] for f in example[:5]]
    assert tab.page.get_by_role("tabpanel").filter(visible=True).locator("img").first.is_visible()


def test_a_correction_is_saved_as_it_was_sent(tab, corrections, example):
    tab.upload(example[3])
    tab.said(example[3].name)
    label = tab.page.get_by_label("It is")
    label.fill("nine")
    label.press("Enter")
    tab.page.get_by_role("button", name="This is wrong").click()
    tab.said("Saved as")
    with open(corrections / "labels.csv", newline="") as stream:
        [row] = [row for row in csv.DictReader(stream) if row["label"] == "nine"]
    assert (corrections / row["image"]).read_bytes() == example[3].read_bytes()


def test_corrections_are_trained_on(corrections, example, tmp_path):
    """By the page's folder, to which another page adds."""
    saved = Corrections(corrections)
    for number, file in enumerate(example[4:16]):
        saved.save(file.read_bytes(), file.name, "classification", ("seven", "nine")[number % 2])
    words = f"--arch convnet --image-size 28 --epochs 1 --batch-size 4 --workers 0 --train {corrections}"
    assert run.main(parse_args([*words.split(), "--model-dir", str(tmp_path), "--output-data-dir", str(tmp_path)])) == 0
    assert set(load_info(tmp_path).labels) >= {"seven", "nine"}


def test_a_shared_page_is_for_those_who_have_the_password_and_for_its_own_host(bundle):
    with served(bundle, auth=("fastmaker", "the password")) as url, urllib3.PoolManager(retries=False) as pool:

        def status(method, path, **options):
            return pool.request(method, url + path, redirect=False, **options).status

        assert status("GET", "config") == 401
        assert status("POST", "login", fields={"username": "fastmaker", "password": "a guess"}) == 400
        assert status("POST", "login", fields={"username": "fastmaker", "password": "the password"}) == 200
        assert status("GET", "", headers={"Host": "example.org"}) == 400


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["desk", "phone"])
def test_nothing_is_wider_than_the_window_and_axe_finds_no_serious_fault(browser, url, example, size):
    from axe_core_python.sync_playwright import Axe

    tab = Tab(browser, url, size)
    tab.upload(example[0])
    tab.said("bytes sent")
    tab.page.get_by_role("button", name="The same without this page").click()
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= size[0]
    faults = [fault for fault in Axe().run(tab.page)["violations"] if fault["impact"] in ("serious", "critical")]
    assert [(fault["id"], [node["html"][:200] for node in fault["nodes"]]) for fault in faults] == []
    tab.close()


CONTROLS = """() => {
    const shown = e => e.checkVisibility({visibilityProperty: true, opacityProperty: true}) && !e.disabled;
    const copies = '.visually-hidden, [aria-hidden=true]';  // of tabs, by which Gradio measures how wide they are
    const found = [...document.querySelectorAll('button, input:not([type=file]), textarea, [role=slider]')];
    const controls = found.filter(e => shown(e) && !e.closest(copies));
    controls.forEach((e, i) => e.dataset.control = i);
    return controls.length;
}"""


def unreached(page) -> list[str]:
    """The controls that the key Tab does not come to, from the top of the page."""
    page.evaluate("document.activeElement.blur()")
    count, reached = page.evaluate(CONTROLS), set()
    for _ in range(2 * count + 20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.dataset.control"))
    html = "n => document.querySelector(`[data-control='${n}']`).outerHTML.slice(0, 200)"
    return [page.evaluate(html, n) for n in map(str, range(count)) if n not in reached]


def test_every_control_is_reached_by_tab(tab, example):
    assert unreached(tab.page) == []
    tab.upload(example[0])
    tab.said("bytes sent")
    assert unreached(tab.page) == []
    tab.page.get_by_role("tab", name="Many images").press("Enter")
    tab.said("There are no images yet.")
    assert unreached(tab.page) == []
