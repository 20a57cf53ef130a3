"""JSON in one line, as Python's `json` writes and reads it, without the modules that `json` imports.

The work is done by the same C code that `json` uses. Where that can't be had, `json` itself does it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["dumps", "dumps_spaced", "loads"]


class _Reading:
    """What `json.JSONDecoder` tells the scanner by default."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int

    def __init__(self) -> None:
        self.memo: dict[str, str] = {}

    @staticmethod
    def parse_constant(name: str) -> float:
        return float({"Infinity": "inf", "-Infinity": "-inf"}.get(name, "nan"))


def _refuse(value: object) -> Any:
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _writer(item: str, key: str) -> Callable[[Any], str]:
    try:
        import _json

        encode = _json.make_encoder(None, _refuse, _json.encode_basestring_ascii, None, key, item, False, False, True)
        if "".join(encode({"a": [1, None, "\u00e9\udc80"]}, 0)) == f'{{"a"{key}[1{item}null{item}"\\u00e9\\udc80"]}}':
            return lambda value: "".join(encode(value, 0))
    except (ImportError, AttributeError, TypeError):
        pass
    import json

    return lambda value: json.dumps(value, separators=(item, key))


def _reader() -> Callable[[str], Any]:
    try:
        import _json

        scan = _json.make_scanner(_Reading())  # type: ignore[arg-type]
        if scan("[1]", 0) != ([1], 3):
            raise TypeError
    except (ImportError, AttributeError, TypeError):
        import json

        return json.loads

    def read(text: str) -> Any:
        start = len(text) - len(text.lstrip(" \t\r\n"))
        try:
            value, end = scan(text, start)
        except StopIteration:
            raise ValueError("not JSON") from None
        if text[end:].strip(" \t\r\n"):
            raise ValueError("something follows the JSON")
        return value

    return read


#: A value of dicts with text as keys, lists, texts, numbers, booleans and None as ASCII; and back. `loads` raises
#: `ValueError` for a text that is no JSON, and RecursionError for one that is nested too deeply.
dumps = _writer(",", ":")
loads = _reader()


def dumps_spaced(value: Any) -> str:
    """As `dumps`, with blanks after commas and colons, for people too."""
    return _writer(", ", ": ")(value)
