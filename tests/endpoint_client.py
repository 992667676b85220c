"""A workspace's endpoint, and a client that sends requests to it without a pause, for switches under load."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from flows.endpoint.server import endpoint, stop_endpoint
from flows.registry.repository import repository
from flows.workspace import Workspace
from models.data.manifest import read_manifest
from serving import Recognizer
from serving.access import Access


@contextmanager
def running_endpoint(workspace: Workspace) -> Iterator[Access]:
    """Runs the workspace's endpoint on free ports for the duration of the block."""
    try:
        with endpoint(workspace) as access:
            yield access
    finally:
        stop_endpoint(workspace)


class RepeatingClient:
    """Client that recognises one photo repeatedly in a thread, for the duration of the block.

    Attributes:
        versions: model version of each answer, in the order of the answers.
        errors: errors of the requests that failed.
    """

    def __init__(self, workspace: Workspace, access: Access) -> None:
        self.versions: list[int] = []
        self.errors: list[Exception] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(workspace, access))

    def _run(self, workspace: Workspace, access: Access) -> None:
        manifest = read_manifest(workspace.data)
        photo = manifest.read_photo(0)
        with Recognizer(access, labels=repository(workspace).labels) as recognizer:
            while not self._stopping.is_set():
                try:
                    self.versions.append(recognizer.recognise([photo])[0].model_version or 0)
                except Exception as error:
                    self.errors.append(error)

    def __enter__(self) -> RepeatingClient:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def wait_for_answers(self, count: int) -> None:
        """Waits for `count` further answers, or for an error."""
        wanted = len(self.versions) + count
        while len(self.versions) < wanted and not self.errors:
            self._stopping.wait(0.01)
