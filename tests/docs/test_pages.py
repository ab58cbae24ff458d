"""The pages: their commands are run or at least parsed as they stand there, and their links lead somewhere."""

import ast
import functools
import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from configparser import ConfigParser

import numpy as np
import pytest
import yaml
from helpers import REPOSITORY
from helpers.pages import blocks, lay_out
from matplotlib import pyplot
from PIL import Image

from fastmaker.jobs import cleanup, deploy
from fastmaker.jobs.__main__ import COMMANDS
from fastmaker.jobs.digits import write_digits
from fastmaker.jobs.packaging import torchserve
from fastmaker.local.containers import free_ports
from fastmaker.serving import models
from fastmaker.training import arguments

DOCS = sorted((REPOSITORY / "docs").rglob("*.md"))
PAGES = [*(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *DOCS]
TEXTS = {str(page.relative_to(REPOSITORY)): page.read_text("utf-8") for page in PAGES}
# What a line in a sh block may begin with; the first five are checked further.
CHECKED = ("fastmaker", "make", "python", "pip", "curl")
UNCHECKED = (".", "cd", "docker", "find", "git", "http", "pre-commit")


def lines():
    """(page, line) for each line in a sh block, without its comment."""
    found = []
    for page, text in TEXTS.items():
        for block in blocks(text, "sh"):
            found += [(page, line) for line in (line.split(" #")[0].strip() for line in block.splitlines()) if line]
    return found


def commands(program):
    """Each command line of the program on the pages, once; of a pipe each part, without where its output goes."""
    parts = [part.split(" > ")[0].strip() for _, line in lines() for part in line.split(" | ")]
    return sorted({part for part in parts if part.split()[0] == program})


def python_blocks():
    return [block for text in TEXTS.values() for block in blocks(text, "python")]


def example(sign, page):
    """The one python block on the page that holds the sign."""
    (found,) = [block for block in blocks(TEXTS[page], "python") if sign in block]
    return found


# The README, the map and the site


def test_the_readme_has_at_most_150_lines():
    assert len(TEXTS["README.md"].splitlines()) <= 150


def test_the_readme_links_to_every_page():
    links = re.findall(r"\]\(([^)#]+)", TEXTS["README.md"])
    assert [page for page in TEXTS if page != "README.md" and page not in links] == []


def test_every_page_of_docs_is_in_the_sites_navigation_and_no_other():
    site = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text("utf-8"))

    def named(entries):
        for entry in entries:
            (value,) = entry.values()
            yield from named(value) if isinstance(value, list) else [value]

    assert sorted(named(site["nav"])) == sorted(str(page.relative_to(REPOSITORY / "docs")) for page in DOCS)


def test_a_page_begins_with_its_title_and_soon_has_a_command_or_code():
    for page in DOCS:
        text = page.read_text("utf-8")
        assert text.startswith("# "), page
        assert "```" in "\n".join(text.splitlines()[:20]), page


# Commands


def test_every_line_of_a_sh_block_begins_with_a_program_that_is_known():
    programs = [(page, part.split()[0]) for page, line in lines() for part in line.split(" | ")]
    assert [pair for pair in programs if pair[1] not in (*CHECKED, *UNCHECKED)] == []


@pytest.mark.parametrize("command", commands("fastmaker"))
def test_a_command_takes_the_arguments_that_a_page_gives_it(command):
    _, name, *words = shlex.split(command)
    if name.startswith("--"):
        done = subprocess.run([sys.executable, "-m", "fastmaker.jobs", name], capture_output=True)
        assert done.returncode == 0
    else:
        importlib.import_module(COMMANDS[name][0]).parse_args(words)


@pytest.mark.parametrize("command", commands("make"))
def test_make_has_the_targets_that_a_page_names(command):
    subprocess.run([*shlex.split(command), "--dry-run"], cwd=REPOSITORY, check=True, capture_output=True)


@pytest.mark.parametrize("command", commands("python"))
def test_a_script_takes_the_arguments_that_a_page_gives_it(command):
    _, script, *words = shlex.split(command)
    if script == "-m" and words[0].startswith("jobs."):
        importlib.import_module(f"fastmaker.{words[0]}").parse_args(words[1:])
    elif script == "-m":
        assert importlib.util.find_spec(words[0])
    elif words == ["--help"]:
        with pytest.raises(SystemExit, match="0"):
            arguments.parse_args(words)
    elif script == "source/entry_point.py":
        arguments.parse_args(words)
    else:
        assert (REPOSITORY / script).is_file()


@pytest.mark.parametrize("command", commands("pip"))
def test_pip_finds_the_extras_that_a_page_names(command):
    setup = ConfigParser()
    setup.read(REPOSITORY / "setup.cfg", "utf-8")
    named = re.findall(r"\[([\w,]+)\]", command)
    assert {name for names in named for name in names.split(",")} <= set(setup["options.extras_require"])


def test_every_extra_on_the_page_of_installation_is_declared():
    setup = ConfigParser()
    setup.read(REPOSITORY / "setup.cfg", "utf-8")
    named = set(re.findall(r"^\| `fastmaker\[(\w+)\]`", TEXTS["docs/installation.md"], re.MULTILINE))
    assert {"train", "local", "aws", "onnx", "triton", "s3", "all"} <= named
    assert named <= set(setup["options.extras_require"])


# Links, paths and messages


def anchors(text):
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_of_a_page_leads_somewhere(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (REPOSITORY / page).parent / path if path else REPOSITORY / page
        if not target.is_file() or (anchor and anchor not in anchors(target.read_text("utf-8"))):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", [page for page in TEXTS if page != "CHANGELOG.md"])
def test_every_file_of_the_repository_that_a_page_names_is_there(page):
    named = re.findall(r"`((?:source|jobs|tests|docs|notebooks|manifests|docker)/[\w./-]*)`", TEXTS[page])
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


@functools.cache
def messages():
    """The texts in the code, each as long as it is constant; AWS's and ours."""
    found = []
    for folder in ("source", "jobs", "docker"):
        for file in (REPOSITORY / folder).rglob("*.py"):
            nodes = ast.walk(ast.parse(file.read_text("utf-8")))
            found += [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return found


def symptoms():
    cells = re.findall(r"^\| ([^|]+) \|", TEXTS["docs/troubleshooting.md"], re.MULTILINE)
    return [text for cell in cells for text in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize("symptom", symptoms())
def test_a_symptom_of_the_troubleshooting_page_is_a_message_of_the_code(symptom):
    parts = [part.strip(" '") for part in symptom.split("…")]
    missing = [part for part in parts if len(part) > 5 and not any(part in message for message in messages())]
    assert missing == []


def test_the_troubleshooting_page_has_at_least_15_symptoms():
    assert len(symptoms()) >= 15


# The reference of commands


def test_the_reference_of_commands_is_what_the_parsers_give(monkeypatch):
    spec = importlib.util.spec_from_file_location("make_reference", REPOSITORY / "docs" / "make_reference.py")
    make_reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_reference)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("SM_MODEL_DIR", "elsewhere")
    expected = make_reference.page()
    assert TEXTS["docs/reference/commands.md"] == expected, "python docs/make_reference.py writes it anew"
    assert all(f"## fastmaker {name}\n" in expected for name in COMMANDS)


# The examples, run


def test_make_digits_writes_the_digits_that_the_pages_name(tmp_path):
    write_digits(tmp_path / "digits")
    code = "\n".join([line for _, line in lines()] + python_blocks())
    named = set(re.findall(r"(?:[ @\"]|file://)(digits/[\w./-]*\w)", code))
    assert {"digits/held-out", "digits/held-out/7", "digits/held-out/7/0240.png"} <= named
    assert [name for name in sorted(named) if not (tmp_path / name).exists()] == []


@pytest.mark.server
def test_the_sdk_example_runs_as_it_stands(few, tmp_path):
    code = example("estimator", "docs/local-mode.md")
    lay_out(few, tmp_path)
    (tmp_path / "source").symlink_to(REPOSITORY / "source")
    env = {**os.environ, "FASTMAKER_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"predictions"') == 2
    assert len(list((tmp_path / "answers").iterdir())) == len(list((few / "7").iterdir()))
    for kind in ("endpoints", "models"):
        assert not list((tmp_path / "home" / kind).iterdir())


def test_the_readmes_sdk_example_is_the_beginning_of_the_one_that_is_run():
    assert example("estimator", "docs/local-mode.md").startswith(example("estimator", "README.md"))


@pytest.mark.server
def test_the_client_example_gets_the_mask_of_the_bundle(scenes, scenes_bundle, tmp_path, monkeypatch):
    code = example("base64_prediction", "docs/endpoint.md")
    monkeypatch.setenv("FASTMAKER_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    pyplot.switch_backend("agg")  # shows nothing
    shutil.copytree(scenes_bundle, "camvid")
    shutil.copy(scenes / "images" / "00.png", "scene.png")
    deploy.main(deploy.parse_args(["--model", "camvid", "--endpoint-name", "camvid"]))
    try:
        exec(code, names := {})
        shown = pyplot.gca().images[0].get_array()
    finally:
        pyplot.close("all")
        cleanup.main(cleanup.parse_args(["--endpoint", "camvid"]))
    [expected] = models.load("camvid").predict([Image.open("scene.png")])
    assert names["mask"].dtype == np.uint8
    assert np.array_equal(names["mask"], expected.array)
    assert np.array_equal(shown, expected.array)


@pytest.mark.server
def test_the_curl_command_gets_an_answer_from_torchserve(few, digits_bundle, tmp_path):
    (command,) = commands("curl")
    lay_out(few, tmp_path)
    archive = tmp_path / "digits.mar"
    torchserve.make_archive(digits_bundle, archive, model_name="digits")
    (port,) = free_ports(1)
    with torchserve.running(archive, "digits", port):
        words = shlex.split(command.replace(":8080/", f":{port}/"))
        done = subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    assert json.loads(done.stdout)["label"] in set("0123456789")


def test_the_learner_example_makes_a_bundle_of_a_notebooks_learner(photos, tmp_path, monkeypatch):
    from fastai.vision.all import ImageDataLoaders, Resize, resnet18, vision_learner

    from fastmaker import bundle

    monkeypatch.chdir(tmp_path)
    dls = ImageDataLoaders.from_folder(photos, valid_pct=0.5, item_tfms=Resize(32), bs=2, num_workers=0)
    exec(example("save_bundle", "docs/from-a-learner.md"), {"learn": vision_learner(dls, resnet18, pretrained=False)})
    assert bundle.load("model")[1].architecture == "resnet18"
    exec(example("load_bundle", "docs/from-a-learner.md"), names := {})
    assert names["model"].info.architecture == "resnet18"


def test_the_example_of_the_base_install_loads_a_bundle_and_answers(few, digits_bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(digits_bundle, "model")
    shutil.copy(next((few / "7").iterdir()), "seven.png")
    exec(example("load_bundle", "docs/installation.md"), {})
    assert capsys.readouterr().out.strip() in set("0123456789")


def test_every_python_example_of_the_pages_is_run_above():
    run = ["README.md", "docs/local-mode.md", "docs/endpoint.md", "docs/from-a-learner.md", "docs/installation.md"]
    run.append("docs/aws-here.md")  # by test_aws_here.py
    assert {page for page, text in TEXTS.items() if blocks(text, "python")} == set(run)
