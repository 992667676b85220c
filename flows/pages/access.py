"""People who may use the pages, their roles, and the tokens by which they are recognised.

On the loopback, everyone who reaches the server is the user of this machine. Elsewhere each person has a token; the
server keeps only its hash.
"""

from __future__ import annotations

import getpass
import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote

from fastapi import Depends, Request

from durable import overwrite
from flows.errors import Denied, InputError

NAME = "web.people.json"
COOKIE = "cleanshelf_token"
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
    """

    def __init__(self, state: Path, *, open_to_all: bool) -> None:
        self.path, self.open_to_all = state / NAME, open_to_all

    def invite(self, name: str, role: str) -> str:
        """A new token for a person, who is added or gets another role; the earlier token of the name stops working.

        Raises:
            InputError: the name is blank or too long, or there is no such role.
        """
        if not name.strip() or len(name) > 80 or not name.isprintable():
            raise InputError(f"name {name!r}: give 1 to 80 characters that can be shown")
        if role not in ROLES:
            raise InputError(f"role {role}: choose one of {', '.join(ROLES)}")
        token = secrets.token_urlsafe(32)
        self._write(self._read() | {name.strip(): {"role": role, "sha256": _hash(token)}})
        return token

    def remove(self, name: str) -> None:
        """Makes the token of a person worthless.

        Raises:
            InputError: there is no such person.
        """
        known = self._read()
        if name not in known:
            raise InputError(
                f"{name!r} is not among the people here: {', '.join(sorted(known)) or 'there are none yet'}"
            )
        self._write({other: entry for other, entry in known.items() if other != name})

    def of_token(self, token: str) -> Person | None:
        """The person with this token; None if no person has it."""
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
        return known

    def _write(self, known: dict[str, dict[str, str]]) -> None:
        overwrite(self.path, json.dumps(known, indent=2, ensure_ascii=False).encode())
        self.path.chmod(0o600)


def caller(request: Request) -> Person:
    """The person who sent a request.

    Raises:
        Denied: the server asks for a token, and the request has none, or one that no person has.
    """
    people: People = request.app.state.people
    if people.open_to_all:
        return Person(unquote(request.cookies.get(CALLED, "")).strip()[:80] or user(), OPERATE)
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    token = bearer if scheme.lower() == "bearer" else request.cookies.get(COOKIE, "")
    person = people.of_token(token) if token else None
    if person is None:
        raise Denied("sign in first: open the link that you were sent, or ask for a new one")
    return person


def user() -> str:
    """Name of the user of this machine."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without an entry in passwd
        return "user"


def _with_role(role: str) -> Depends:  # type: ignore[valid-type]  # FastAPI declares it as a function
    def check(person: Annotated[Person, Depends(caller)]) -> Person:
        if not person.may(role):
            raise Denied(
                f"{person.name} may {person.role}, and this asks for the role {role}; ask who operates this server"
            )
        return person

    return Depends(check)


Looks = Annotated[Person, _with_role(LOOK)]  # parameters of routes: the caller, who may look, decide or operate
Decides = Annotated[Person, _with_role(DECIDE)]
Operates = Annotated[Person, _with_role(OPERATE)]


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
