"""Photos that wait to be ingested: a kill loses none, and the names that people give them follow the rule for labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.labels import KnownLabels
from flows.errors import InputError, UnknownPhoto
from flows.review.inbox import MANIFEST, NOTE, Inbox, Named, product_named
from models.data.records import read_rows

KNOWN = KnownLabels(["Alma Milk 1 l", "Brio Soap"])


def put(inbox: Inbox, photo: bytes, label: str = "Brio Soap") -> Named:
    named = Named.of(photo, label=label, who="Ana", name="shelf.jpg")
    inbox.add(named, photo)
    return named


def test_a_photo_waits_with_its_label_until_it_is_cleared(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    named = put(inbox, b"one")

    assert Inbox(tmp_path).waiting() == [named]
    assert Inbox(tmp_path).photo(named.sha256) == b"one"
    inbox.clear([named])
    assert (inbox.count(), inbox.waiting()) == (0, [])
    assert list(inbox.folder.iterdir()) == []


def test_the_later_label_of_a_photo_holds(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    before = put(inbox, b"one", "Brio Soap")
    after = put(inbox, b"one", "Alma Milk 1 l")

    assert inbox.waiting() == [after]
    inbox.clear([before])
    assert inbox.waiting() == [after], "it was named again while the earlier label was ingested"


def test_a_photo_whose_note_a_kill_prevented_does_not_count(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    named = put(inbox, b"one")
    (inbox.folder / f"{named.sha256}{NOTE}").unlink()

    assert (inbox.count(), inbox.waiting()) == (0, [])
    assert put(inbox, b"one").sha256 == named.sha256
    assert inbox.count() == 1


def test_a_purge_forgets_a_waiting_photo(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    purged, stays = put(inbox, b"one"), put(inbox, b"two")
    inbox.forget([purged.sha256, "0" * 64])

    assert inbox.waiting() == [stays]
    assert not (inbox.folder / purged.sha256).exists()


@pytest.mark.parametrize("label", ["'=sum", "=1+1", "<b>x</b>", 'a "quoted", name', "Zoë's Salt"])
def test_the_manifest_has_labels_to_the_character(tmp_path: Path, label: str) -> None:
    inbox = Inbox(tmp_path)
    named = put(inbox, b"one", label)
    [(_, row)] = read_rows(inbox.manifest([named]), required=("path", "label", "source"))

    assert row == {"path": named.sha256, "label": label, "source": "recognise page"}
    inbox.clear([named])
    assert not (inbox.folder / MANIFEST).exists()


@pytest.mark.parametrize("digest", ["0" * 64, "../../web.people.json", "", "x"])
def test_a_photo_that_does_not_wait_is_named_in_words(tmp_path: Path, digest: str) -> None:
    for act in (Inbox(tmp_path).photo, Inbox(tmp_path).remove):
        with pytest.raises(UnknownPhoto, match="does not wait any more"):
            act(digest)


def test_not_more_photos_wait_than_are_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.review.inbox.MOST", 1)
    put(Inbox(tmp_path), b"one")
    put(Inbox(tmp_path), b"one", "Alma Milk 1 l")
    with pytest.raises(InputError, match="1 photos wait already"):
        put(Inbox(tmp_path), b"two")


@pytest.mark.parametrize(
    ("text", "product"),
    [
        ("Brio Soap", "Brio Soap"),
        ("  Brio\u200b  Soap ", "Brio Soap"),
        ("Dune  Rice", "Dune Rice"),
        ("<b>x</b>", "<b>x</b>"),
    ],
)
def test_a_name_is_a_known_product_or_a_new_one(text: str, product: str) -> None:
    assert product_named(text, KNOWN) == product


def test_a_product_that_only_waits_is_known_too() -> None:
    waiting = KnownLabels(["Dune Rice"])
    assert product_named("Dune Rice", KNOWN, waiting) == "Dune Rice"
    with pytest.raises(InputError, match="'dune rice' and 'Dune Rice' differ only in case"):
        product_named("dune rice", KNOWN, waiting)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is blank"),
        ("x" * 2000, "has 2,000 characters; use at most 500"),
        ("a\x00b", "holds a control character"),
        ("BRIO SOAP", "differ only in case or white space; choose the product"),
    ],
)
def test_other_names_are_refused_in_one_short_sentence(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        product_named(text, KNOWN)
    assert len(str(refused.value)) < 200
