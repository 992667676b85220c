"""`cleanshelf mcp`, asked by the official client over stdin and stdout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters
from mcp_types import CallToolResult, ImageContent, TextContent

from flows.review.decisions import Decisions
from flows.review.photos import read_photos
from flows.workspace import Workspace
from tests.cleaned import cleaned_workspace

pytestmark = [pytest.mark.dvc, pytest.mark.anyio]
ROOT = Path(__file__).resolve().parents[2]
ENV = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return cleaned_workspace(tmp_path_factory.mktemp("mcp"))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def asking(shop: Workspace, *options: str) -> AsyncIterator[Client]:
    command = ["-m", "flows.cli", "mcp", "-w", str(shop.root), *options]
    async with Client(StdioServerParameters(command=sys.executable, args=command, env=ENV)) as client:
        yield client


def text(answer: CallToolResult) -> str:
    (content,) = answer.content
    assert isinstance(content, TextContent)
    return content.text


async def test_an_assistant_looks_and_cannot_decide(shop: Workspace) -> None:
    photos = read_photos(shop.data, version="selected")
    async with asking(shop) as client:
        listed, says = (await client.list_tools()).tools, client.instructions or ""
        overview = json.loads(text(await client.call_tool("overview")))
        where = {"version": "selected", "photo": photos.name(0), "size": 96}
        picture = await client.call_tool("photos_version_photo_size", where)
        outside = await client.call_tool("photos_version_photo_size", where | {"photo": "../x"})
        unknown = await client.call_tool("photos_version_photo_size", where | {"photo": "0" * 16})
        missing = await client.call_tool("photos_version_photo_size", where | {"photo": ""})
        refused = await client.call_tool("post_review_decide", {"body": {}})

    assert "started without --decide" in says
    assert all(tool.annotations and tool.annotations.read_only_hint and tool.description for tool in listed)
    assert (overview["data"]["photos"], overview["role"]) == (len(photos), "look")
    assert isinstance(picture.content[0], ImageContent)
    assert (outside.is_error, "nothing at this address" in text(outside)) == (True, True)
    assert (unknown.is_error, "has no photo" in text(unknown)) == (True, True)
    assert (missing.is_error, "address is missing" in text(missing)) == (True, True)
    assert (refused.is_error, "started without --decide" in text(refused)) == (True, True)


async def test_with_the_flag_it_decides_under_its_name_and_never_operates(shop: Workspace) -> None:
    async with asking(shop, "--decide", "--name", "helper") as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
        overview = json.loads(text(await client.call_tool("overview")))
        queue = json.loads(text(await client.call_tool("review_queue", {"limit": 1})))
        photo = queue["photos"][0]["photo"]
        body = {"version": queue["version"], "photos": [photo], "kind": "keep", "seen": queue["seen"]}
        wrong = await client.call_tool("post_review_decide", {"body": body | {"kind": "guess"}})
        done = await client.call_tool("post_review_decide", {"body": body})

    (decision,) = Decisions(shop.state).pending().values()
    assert (wrong.is_error, "body.kind" in text(wrong), done.is_error) == (True, True, False)
    assert (decision.photo, decision.kind, decision.who) == (photo, "keep", "agent helper")
    assert (overview["person"], overview["role"]) == ("agent helper", "decide")
    assert not any("save" in name or name in ("post_runs", "post_endpoint_stop") for name in names)


async def test_a_message_at_the_start_leaves_stdout_to_the_protocol(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flows.cli", "mcp", "-w", str(tmp_path)]
    done = subprocess.run(command, env=ENV, cwd=ROOT, capture_output=True, text=True, check=False, input="")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("cleanshelf: ")


async def test_a_missing_extra_is_one_sentence(shop: Workspace, tmp_path: Path) -> None:
    (tmp_path / "mcp.py").write_text("raise ModuleNotFoundError('gone', name='mcp')\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from flows.cli import main; main()"
    command = [sys.executable, "-c", code, "mcp", "-w", str(shop.root)]
    done = subprocess.run(command, env=ENV, cwd=ROOT, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(
        "cleanshelf: `cleanshelf mcp` needs the extra agents, which is not installed: pip install"
    )
