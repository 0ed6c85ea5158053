"""What holds for all of examples/."""

import subprocess

import pytest

from example import EXAMPLES, NAMES
from gate import BINARY


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_of_an_example_is_accepted_as_it_stands(name):
    checked = subprocess.run([BINARY, "check", "--config", EXAMPLES / name / "sidegate.toml"], capture_output=True, text=True)
    assert (checked.returncode, checked.stdout.splitlines()[:1], checked.stderr) == (0, ["ok"], "")


@pytest.mark.parametrize("name", NAMES)
def test_an_example_has_what_it_takes_and_is_told_in_the_table(name):
    folder = EXAMPLES / name
    assert (folder / "realm.json").is_file() and (folder / "backend").is_dir()
    assert f"| [{name}]({name}/README.md) |" in (EXAMPLES / "README.md").read_text()
    assert len((folder / "README.md").read_text().splitlines()) <= 60, "one screen"
