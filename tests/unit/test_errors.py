"""Every error has one base, and its second base decides the exit code."""

from __future__ import annotations

import importlib
import inspect

import pytest

from contract import CleanShelfError
from flows.errors import FlowError, GateRefused
from models.errors import ModelError
from serving.errors import RepositoryError, ServingError

FAMILIES = (FlowError, ModelError, ServingError, RepositoryError)


@pytest.mark.parametrize("module", ["flows.errors", "models.errors", "serving.errors", "pixels.errors"])
def test_every_error_has_the_common_base_and_one_exit_code(module: str) -> None:
    found = [error for _, error in inspect.getmembers(importlib.import_module(module), inspect.isclass)
             if issubclass(error, Exception) and error.__module__ == module]  # fmt: skip
    assert found
    for error in found:
        assert issubclass(error, CleanShelfError), error
        if error not in (*FAMILIES, GateRefused):
            assert issubclass(error, ValueError) != issubclass(error, RuntimeError), error
