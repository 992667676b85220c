"""Client that sends requests without a pause, for switches under load."""

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
    """Runs the workspace's endpoint on free ports for the duration of the block."""
    try:
        with endpoint(workspace) as access:
            yield access
    finally:
        stop_endpoint(workspace)


class Asking:
    """Client that recognises a photo again and again in a thread, for the duration of the block."""

    def __init__(self, workspace: Workspace, access: Access) -> None:
        self.answered: list[int] = []
        self.failed: list[Exception] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._ask, args=(workspace, access))

    def _ask(self, workspace: Workspace, access: Access) -> None:
        manifest = read_manifest(workspace.data)
        photo = manifest.read_photo(0)
        with Recognizer(access, labels=repository(workspace).labels) as recognizer:
            while not self._stopping.is_set():
                try:
                    self.answered.append(recognizer.recognise([photo])[0].model_version or 0)
                except Exception as error:
                    self.failed.append(error)

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def wait_for(self, count: int) -> None:
        """Waits for `count` further answers, or a failure."""
        wanted = len(self.answered) + count
        while len(self.answered) < wanted and not self.failed:
            self._stopping.wait(0.01)
