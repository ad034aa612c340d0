"""The command line as a whole."""

from importlib.metadata import version

import pytest

from flows.cli import main


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"clip-scgi {version('clip-scgi')}\n"
