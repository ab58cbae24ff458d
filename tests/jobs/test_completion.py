"""``fastmaker completion``: the shells offer every command and its arguments."""

import shutil
import subprocess

import pytest

from fastmaker.jobs import __main__, completion

OFFERED = """
source {script}
COMP_WORDS=(fastmaker {words}) COMP_CWORD={last}
_shtab_fastmaker
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture
def script(tmp_path, capsys):
    """script(shell) -> the file with what the command prints for it."""

    def write(shell: str):
        assert completion.main(completion.parse_args([shell])) == 0
        (tmp_path / shell).write_text(capsys.readouterr().out)
        return tmp_path / shell

    return write


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("''", set(__main__.COMMANDS)),
        ("train --inst", {"--instance-type", "--instance-count"}),
        ("deploy --backend ''", {"process", "docker", "aws"}),
        ("manifest ''", {"build", "check"}),
        ("package onnx --out", {"--output"}),
        ("completion ''", {"bash", "zsh"}),
    ],
)
def test_bash_offers_commands_and_their_arguments(script, words, offered):
    program = OFFERED.format(script=script("bash"), words=words, last=len(words.split()))
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) >= offered


def test_the_script_for_zsh_names_every_command(script):
    text = script("zsh").read_text()
    assert text.startswith("#compdef fastmaker")
    assert all(f"{name}:" in text for name in __main__.COMMANDS)
    if zsh := shutil.which("zsh"):
        assert subprocess.run([zsh, "-n", script("zsh")]).returncode == 0


def test_each_command_has_the_parser_that_its_name_says():
    for name, parser in __main__.get_parsers().items():
        assert parser.prog == f"fastmaker {name}"
