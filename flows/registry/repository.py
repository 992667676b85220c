"""The Triton model repository of a workspace."""

from __future__ import annotations

from flows.settings import Settings
from flows.workspace import Workspace
from serving.repository.repository import ModelRepository


def repository(workspace: Workspace) -> ModelRepository:
    """The model repository of a workspace, for the server that the settings describe."""
    settings = Settings()
    return ModelRepository(
        workspace.repository, instances=settings.triton_instances or None, accelerator=settings.accelerator()
    )
