"""The loopback deployment, as a user would run it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "loopback"
REFUSED = (
    *("wrong key", "no certificate", "second key", "second number", "stranger registers", "stranger submits"),
    *("stranger takes up a run", "impostor", "other digest", "lifetime", "raw gradients", "revoked key"),
)


def test_help_makes_no_folder(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert "three SuperNodes" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    not (shutil.which("openssl") and shutil.which("ssh-keygen")), reason="needs openssl, ssh-keygen"
)
def test_the_loopback_deployment_equals_the_simulated_run_and_refuses_who_has_no_business(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path],
        capture_output=True,
        text=True,
        timeout=840,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 rounds equal to the simulated run's" in done.stdout
    assert "its update is in the sum of [0, 1, 2]" in done.stdout
    for what in REFUSED:
        assert f"{what}: refused, exit" in done.stdout, done.stdout
