"""Runs the snippets of docs/tasks/client.md."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from serving.repository.repository import ModelRepository
from serving.server.server import LocalServer
from tests.graphs import LABELS, golden_images, write_versions

ROOT = Path(__file__).parents[2]


@pytest.mark.triton
def test_the_snippets_run(tmp_path: Path, local_server: Callable[..., LocalServer]) -> None:
    repository = ModelRepository(tmp_path / "repository")
    write_versions(repository, tmp_path, 1)
    repository.configure([1])
    (tmp_path / "photos").mkdir()
    for name in ("photo.jpg", "photos/1.jpg", "photos/2.jpg"):
        Image.fromarray(golden_images(1)[0]).save(tmp_path / name)
    (tmp_path / "photos" / "bad.jpg").touch()
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "tasks" / "client.md").read_text(), flags=re.DOTALL)
    assert len(snippets) == 4
    server = local_server(repository.root, tmp_path / "state")
    access = server.start().access
    setup = f"from pathlib import Path\nfrom serving import Access\nSERVER = Access({access.url!r}, token={access.token!r})\n"
    setup += f"GRAPH = {str(repository.path(1) / 'model.onnx')!r}\n"
    try:
        outputs = [
            subprocess.run(
                [sys.executable, "-W", "error", "-c", setup + snippet],
                cwd=tmp_path,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for snippet in snippets
        ]
    finally:
        server.stop()
    assert all(any(label in text for label in LABELS) for text in outputs)
    assert outputs[1].count("product") == 2
    assert "left out: photos/bad.jpg: the file is empty" in outputs[1]
