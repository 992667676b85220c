"""Photos that a browser sends: limits, and refusals in words that a shop understands."""

from __future__ import annotations

from pathlib import PurePath

from fastapi import UploadFile

from flows.errors import InputError

MAX_PHOTO_BYTES = 20 * 1024 * 1024
MOST = 100  # photos of one request
HEIC = (
    b"heic",
    b"heix",
    b"hevc",
    b"heim",
    b"heis",
    b"mif1",
    b"msf1",
    b"avif",
)  # kinds of ISO media files that are pictures
SENDABLE = "send it as JPEG or PNG"


def check_count(photos: list[UploadFile]) -> None:
    """Raises InputError if there are more photos than one request may have."""
    if len(photos) > MOST:
        raise InputError(f"{len(photos)} photos at once; send at most {MOST}")


def read(photo: UploadFile) -> bytes:
    """Bytes of a photo, or its first MAX_PHOTO_BYTES + 1 if it is larger."""
    return photo.file.read(MAX_PHOTO_BYTES + 1)


def name_of(photo: UploadFile) -> str:
    """Name of the sent file without folders, at most 200 characters, for messages."""
    return PurePath((photo.filename or "photo").replace("\\", "/")).name[:200]


def refusal(photo: bytes) -> str:
    """Reason why the bytes are not looked at as a photo; "" if they may be one."""
    if not photo:
        return "the file is empty; choose another"
    if len(photo) > MAX_PHOTO_BYTES:
        return f"it has more than {MAX_PHOTO_BYTES // 1024**2} MB; send a smaller copy"
    start = photo[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if photo[4:8] == b"ftyp":
        if photo[8:12].lower() not in HEIC:
            return f"it is a film, not a photo; take a picture of the product, and {SENDABLE}"
        return (
            "it is in the format HEIC or AVIF, which cannot be read here; save it as JPEG, or set the phone to take JPEG "
            "(on an iPhone: Settings, Camera, Formats, Most Compatible)"
        )
    if start.startswith((b"<svg", b"<?xml", b"<!doctype svg")):
        return f"it is a drawing (SVG), not a photo; {SENDABLE}"
    if start.startswith(b"%pdf"):
        return f"it is a PDF, not a photo; {SENDABLE}"
    if _is_text(photo[:1024]):
        return f"it is a text, not a photo, whatever its name says; {SENDABLE}"
    return ""


def _is_text(start: bytes) -> bool:
    try:
        text = start.decode()
    except UnicodeDecodeError:
        return False
    return all(char.isprintable() or char.isspace() for char in text)
