"""Settings from the environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flows.errors import InputError
from flows.settings import Settings
from tests.command_line import ROOT


def test_the_environment_has_the_last_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLEANSHELF_PARALLEL", "5")
    monkeypatch.setenv("CLEANSHELF_TRITON_ENV", str(tmp_path))
    assert Settings().parallel == 5
    assert Settings().triton_env == tmp_path


def test_settings_load_no_client_of_triton() -> None:
    script = "import sys, flows.settings; print('tritonclient' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("TRITON_LATENCY_MS", "0", "greater than 0"),
        ("TRITON_BATCH", "-1", "greater than or equal to 0"),
        ("TRITON_INSTANCES", "two", "valid integer"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(f"CLEANSHELF_{name}", value)
    with pytest.raises(InputError, match=f"CLEANSHELF_{name}={value}: .*{reason}.*; correct or unset it"):
        Settings()
