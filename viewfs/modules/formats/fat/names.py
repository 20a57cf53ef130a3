"""Names: converting a code page and UTF-16 to the UTF-8 that a view shows; which names count as the same. Pure."""

from __future__ import annotations

import codecs
import encodings.cp437
import encodings.utf_16_le  # noqa: F401  # nothing can be imported once the server is sealed off
from collections.abc import Callable

from viewfs.modules.api.options import Option

__all__ = ["CODEPAGE", "decode_utf16", "fold", "is_name", "mended_name", "short_name", "short_names"]

_BASE, _EXTENSION = 8, 3
_REPLACEMENT = "\ufffd".encode()
#: Bits of byte 12 of an entry, introduced by Windows NT: the base or the extension is in lower case.
_LOWER_BASE, _LOWER_EXTENSION = 0x08, 0x10


def _parse(value: str) -> str:
    name = f"cp{value}" if value.isdigit() else value
    try:
        b"A".decode(name)
        # Check that bytes can be decoded in any order, and that the result can be encoded in UTF-8.
        codecs.lookup(name).decode(bytes(range(256)) + b"\\ud800+2AA-", "replace")[0].encode()
    except (LookupError, ValueError):
        raise ValueError("a code page such as 437, 850 or 932") from None
    return name


#: The codec is imported when the option is parsed, before the server is sealed off.
CODEPAGE: Option[str] = Option(
    "codepage", _parse, "cp437", "that of short names", "N", show=lambda name: name.removeprefix("cp")
)


def decode_utf16(data: bytes) -> bytes:
    """UTF-16 (little-endian) up to the first zero, as UTF-8.

    Half of a surrogate pair is kept (as three bytes that are not valid UTF-8), so that names that differ only in it
    remain different.
    """
    text = data.decode("utf-16-le", "surrogatepass")
    return text.partition("\0")[0].encode("utf-8", "surrogatepass")


def is_name(name: bytes) -> bool:
    """Can a directory of Linux have this name?"""
    return bool(name) and b"/" not in name and b"\0" not in name and name not in (b".", b"..")


def mended_name(name: bytes) -> bytes:
    """The name to show for a file whose name is empty, or one that no directory of Linux can have."""
    if not name:
        return _REPLACEMENT
    if name in (b".", b".."):
        return name.replace(b".", _REPLACEMENT)
    return name.replace(b"/", _REPLACEMENT).replace(b"\0", _REPLACEMENT)


def short_names(codepage: str) -> Callable[[bytes], str]:
    """The function that decodes bytes of the code page."""
    decode = codecs.lookup(codepage).decode

    def text(data: bytes) -> str:
        return decode(data, "replace")[0].replace("\ufffd", "?")

    return text


def short_name(entry: bytes, text: Callable[[bytes], str]) -> tuple[str, str]:
    """The 8.3 name of a directory entry, as it is shown if there is no long one, and as it is stored.

    (vfat.rst, shortname=mixed.) Spaces after the base and the extension are padding; those within belong to the name.
    """
    raw = entry[:11]
    if raw[0] == 0x05:  # stands for 0xE5, which would mark the entry as deleted
        raw = b"\xe5" + raw[1:]
    base = text(raw[:_BASE].partition(b"\0")[0].rstrip(b" "))
    extension = text(raw[_BASE:].partition(b"\0")[0].rstrip(b" "))
    case = entry[12]
    shown_base = base.lower() if case & _LOWER_BASE else base
    shown_extension = extension.lower() if case & _LOWER_EXTENSION else extension
    return (
        f"{shown_base}.{shown_extension}" if extension else shown_base,
        f"{base}.{extension}" if extension else base,
    )


def fold(name: bytes) -> str:
    """A form that is the same for all names that FAT takes for the same: in upper case, without dots at the end.

    Each character is replaced by one character, so “ß” is not “SS”. "" if `name` can't be a name.
    """
    try:
        text = name.decode("utf-8", "surrogatepass").rstrip(".")
    except UnicodeDecodeError:
        return ""
    upper = text.upper()
    if len(upper) == len(text):
        return upper
    return "".join(big if len(big) == 1 else one for one in text for big in (one.upper(),))
