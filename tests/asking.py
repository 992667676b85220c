"""A client that never pauses, for switches under load."""

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
def served(workspace: Workspace) -> Iterator[Access]:
    """Its endpoint, on free ports."""
    try:
        with endpoint(workspace) as access:
            yield access
    finally:
        stop_endpoint(workspace)


class Asking:
    """A client that asks one photo after the other until told to stop."""

    def __init__(self, workspace: Workspace, access: Access) -> None:
        self.answered: list[int] = []
        self.failed: list[Exception] = []
        self._asked = threading.Event()
        self._thread = threading.Thread(target=self._ask, args=(workspace, access))

    def _ask(self, workspace: Workspace, access: Access) -> None:
        manifest = read_manifest(workspace.data)
        photo = manifest.read_photo(0)
        with Recognizer(access, labels=repository(workspace).labels) as recognizer:
            while not self._asked.is_set():
                try:
                    self.answered.append(recognizer.recognise([photo])[0].model_version or 0)
                except Exception as error:
                    self.failed.append(error)

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._asked.set()
        self._thread.join()

    def wait_for(self, count: int) -> None:
        """Until so many more answers came."""
        wanted = len(self.answered) + count
        while len(self.answered) < wanted and not self.failed:
            self._asked.wait(0.01)
