"""The start of every flow that trains: a check that recipe and data fit together, a run, and a task runner."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from flows.data.versions import DataVersions
from flows.errors import InputError
from flows.orchestrator.events import named_server
from flows.registry.repository import repository
from flows.run.gpus import require_gpus
from flows.run.inputs import inputs, version_to_train_on
from flows.run.launch import num_parallel, num_workers
from flows.run.record import recorded
from flows.run.run import Run, inputs_of, sweep_runs
from flows.run.step import parallel_tasks, step
from flows.settings import LOCAL, Settings
from flows.steps.learn import check, find_weights
from flows.workspace import Workspace
from flows.workspace.results import DataFolder
from models.recipe.config import Recipe, digest
from serving.signature import Signature

if TYPE_CHECKING:
    from prefect.task_runners import TaskRunner


@contextmanager
def new_run(workspace: Workspace, recipe: Recipe, *, verb: str) -> Iterator[tuple[Run, TaskRunner[Any]]]:
    """A new run on the selected data version, and the task runner for its trainings.

    Within the block no other run starts and a Prefect server is running. Deliveries may come in: the run has its own copy.

    Raises:
        InputError: weights that the recipe names are not available, recipe and data do not fit together, or data/ was edited
            by hand; nothing was started.
        WorldError: the environment names a server that cannot be used; nothing was started.
    """
    with workspace.lock(verb):
        if named := named_server():
            from flows.orchestrator.server import check_server

            check_server(named)  # within seconds, before the data are verified
        DataVersions(workspace).repair(staging=False)
        sweep_runs(workspace)
        version_to_train_on(DataVersions(workspace), recipe)  # without data, nothing is downloaded
        recipe = find_weights(recipe)
        run = Run(workspace, recipe, id=f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{digest(recipe)[:6]}")
        preview(workspace, recipe, publishes=verb == "retrain")
        run.open(inputs(workspace, recipe))
        with recorded(run.folder, verb):
            from flows.orchestrator.server import orchestrated  # imports Prefect, now that the recipe is known to fit

            with orchestrated(workspace), parallel_tasks(workspace, num_parallel=num_trainings(recipe)) as runner:
                yield run, runner


def num_trainings(recipe: Recipe) -> int:
    """The number of trainings that this machine can run in parallel.

    Raises:
        InputError: a training needs more GPUs than this machine has, and no other machine is to run it.
    """
    settings = Settings()
    workers = max(num_workers(recipe.of(member).train.workers) for member in range(len(recipe.members)))
    if settings.dask in ("", LOCAL):
        require_gpus(workers)
    return num_parallel(settings.parallel, workers=workers)


def preview(workspace: Workspace, recipe: Recipe, *, publishes: bool = True) -> str:
    """The id of the data version that `retrain` would train on, after a check that the recipe fits it.

    publishes: whether a graph is to be published, which then has to take the photos of the current model's clients.

    Raises:
        InputError: it does not, or data/ was edited by hand.
    """
    if publishes:
        check_contract(workspace, recipe)
    data = data_to_train_on(workspace, recipe)
    check(recipe, data)
    return data.name


def check_contract(workspace: Workspace, recipe: Recipe) -> None:
    """Raises InputError if the graph would take photos, or give answers, of another size than the current model."""
    models = repository(workspace)
    if not (configured := models.configured()):
        return
    current = Signature.read(models.path(max(configured)) / "model.onnx")
    for key, ours, theirs in (("input_size", recipe.export.input_size, current.size),
                              ("top_k", recipe.export.top_k, current.k)):  # fmt: skip
        if ours != theirs:
            raise InputError(
                f"export.{key}: {ours}, but model version {max(configured)}, which answers now, has {theirs}, and its clients "
                f"would break; set export.{key}={theirs}, or retrain in another workspace"
            )


def data_to_train_on(workspace: Workspace, recipe: Recipe) -> DataFolder:
    """The verified folder of the selected data version, or of the version before its cleaning if the recipe cleans.

    No rollback changes this folder.

    Raises:
        UnknownVersion: there is no data version yet.
        LocalEdits: data/ was edited by hand.
    """
    versions = DataVersions(workspace)
    versions.check_clean()
    return DataFolder(versions.materialise(version_to_train_on(versions, recipe)))


@step("select data")
def select_data(run: Run) -> DataFolder:
    """The photos and labels that the run starts from, whatever was delivered since its start."""
    return DataFolder(DataVersions(run.workspace).materialise(inputs_of(run.workspace, run.id)["data_version"]))
