"""Scripts that several tests look at the results of."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def run_once():
    """Run a script of this directory and return its output."""

    def run(script, *arguments, **environment):
        result = subprocess.run(
            [sys.executable, str(HERE / script), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=900,
            env={**os.environ, **environment},
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    return run
