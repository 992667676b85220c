"""People who may use the pages, their roles, and the tokens by which they are recognised.

On the loopback without TLS, everyone who reaches the server is the user of this machine. Elsewhere each person has a
token of 256 random bits, too many to guess; the server keeps only its hash.
"""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote

from fastapi import Depends, Request

from durable import overwrite
from flows.errors import CorruptObject, Denied, InputError

NAME = "web.people.json"
MAX_NAME = 80
SHA256 = re.compile("[0-9a-f]{64}")
COOKIE = "__Host-cleanshelf"  # with this prefix browsers take it only over HTTPS, from this host, for all paths
CALLED = "cleanshelf_name"  # on the loopback: what the person in front of this browser is called
LOOK, DECIDE, OPERATE = "look", "decide", "operate"
ROLES = (LOOK, DECIDE, OPERATE)  # each may do what the roles before it may


@dataclass(frozen=True)
class Person:
    """Someone who uses the pages."""

    name: str
    role: str

    def may(self, role: str) -> bool:
        """True if this person's role includes `role`."""
        return ROLES.index(self.role) >= ROLES.index(role)


class People:
    """The people in a workspace's folder `state`.

    Args:
        open_to_all: the server is on the loopback, and needs no token.
        role: what everyone may do if it is open to all.
    """

    def __init__(self, state: Path, *, open_to_all: bool, role: str = OPERATE) -> None:
        self.path, self.open_to_all, self.role = state / NAME, open_to_all, role

    def invite(self, name: str, role: str) -> str:
        """A new token for a person, who is added or gets another role; the earlier token of the name stops working.

        Raises:
            InputError: the name is blank or too long, or there is no such role.
        """
        name = name.strip()
        if not is_name(name):
            raise InputError(f"name {name!r}: give 1 to {MAX_NAME} characters that can be shown")
        if role not in ROLES:
            raise InputError(f"role {role}: choose one of {', '.join(ROLES)}")
        token = secrets.token_urlsafe(32)
        with self._changing() as known:
            known[name] = {"role": role, "sha256": _hash(token)}
        return token

    def remove(self, name: str) -> None:
        """Makes the token of a person worthless.

        Raises:
            InputError: there is no such person.
        """
        with self._changing() as known:
            if known.pop(name.strip(), None) is None:
                raise InputError(
                    f"{name!r} is not among the people here: {', '.join(sorted(known)) or 'there are none yet'}"
                )

    def of_token(self, token: str) -> Person | None:
        """The person with this token; None if no person has it.

        Raises:
            CorruptObject: the list of people is damaged.
        """
        given = _hash(token)
        for name, entry in self._read().items():
            if hmac.compare_digest(entry["sha256"], given):
                return Person(name, entry["role"])
        return None

    def _read(self) -> dict[str, dict[str, str]]:
        try:
            known: dict[str, dict[str, str]] = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError:
            known = {"": {}}
        if not isinstance(known, dict) or not all(_is_entry(entry) for entry in known.values()):
            raise CorruptObject(
                f"state/{NAME}: this is not a list of people; restore the file, or delete it and invite everyone again"
            )
        return known

    @contextmanager
    def _changing(self) -> Iterator[dict[str, dict[str, str]]]:
        """The people by name, written when the block ends; one process at a time."""
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            known = self._read()
            yield known
            overwrite(self.path, json.dumps(known, indent=2, ensure_ascii=False).encode(), mode=0o600)
        finally:
            os.close(folder)


def caller(request: Request) -> Person:
    """The person who sent a request.

    Raises:
        Denied: the server asks for a token, and the request has none, or one that no person has.
    """
    people: People = request.app.state.people
    if people.open_to_all:
        called = unquote(request.cookies.get(CALLED, "")).strip()
        return Person(called if is_name(called) else user(), people.role)
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    token = bearer if scheme.lower() == "bearer" else request.cookies.get(COOKIE, "")
    person = people.of_token(token) if token else None
    if person is None:
        raise Denied("sign in first: open the link that you were sent, or ask for a new one")
    return person


def as_author(person: Person) -> dict[str, str]:
    """Variables under which git, and so every record of ours, names this person; none for the user of this machine."""
    if person.name == user():
        return {}
    own = int(os.environ.get("GIT_CONFIG_COUNT") or 0)
    entries = list(enumerate((("user.name", person.name), ("user.email", "")), own))
    keys = {f"GIT_CONFIG_KEY_{number}": key for number, (key, _) in entries}
    values = {f"GIT_CONFIG_VALUE_{number}": value for number, (_, value) in entries}
    return keys | values | {"GIT_CONFIG_COUNT": str(own + len(entries))}


def user() -> str:
    """Name of the user of this machine."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without an entry in passwd
        return "user"


# Dependencies are coroutines: FastAPI gives each one that is not to a thread, which takes longer than the work itself.
async def looks(request: Request) -> Person:
    """The caller of a route that shows something."""
    return _allowed(caller(request), LOOK)


async def decides(request: Request) -> Person:
    """The caller of a route that changes decisions about labels."""
    return _allowed(caller(request), DECIDE)


async def operates(request: Request) -> Person:
    """The caller of a route that changes versions, runs or the endpoint."""
    return _allowed(caller(request), OPERATE)


ROLE_OF: dict[Callable[..., Any] | None, str] = {looks: LOOK, decides: DECIDE, operates: OPERATE}
Looks = Annotated[Person, Depends(looks)]  # parameters of routes: the caller, who may look, decide or operate
Decides = Annotated[Person, Depends(decides)]
Operates = Annotated[Person, Depends(operates)]


def role_needed(route: Any) -> str | None:
    """The role that a route of FastAPI asks for; None if it asks for none."""
    asked = [ROLE_OF[each.call] for each in route.dependant.dependencies if each.call in ROLE_OF]
    return max(asked, key=ROLES.index, default=None)


def is_name(text: str) -> bool:
    """True for 1 to MAX_NAME characters that can be shown."""
    return 0 < len(text) <= MAX_NAME and text.isprintable()


def _allowed(person: Person, role: str) -> Person:
    if person.may(role):
        return person
    raise Denied(f"{person.name} may {person.role}, and this asks for the role {role}; ask who operates this server")


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict) and entry.get("role") in ROLES and bool(SHA256.fullmatch(str(entry.get("sha256", ""))))
    )


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
