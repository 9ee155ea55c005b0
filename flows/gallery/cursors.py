"""Cursors: the last entry of a page as a short text for an address."""

import base64
import json
from typing import Any

from dreamcore.errors import InvalidInput

__all__ = ["read_cursor", "write_cursor"]


def write_cursor(order: str, key: Any, number: int) -> str:
    """Return the cursor of the page behind an entry.

    Args:
        order: the name of the order of the list.
        key: the key of the entry in that order: text or a number.
        number: tells entries with equal keys apart.
    """
    return base64.urlsafe_b64encode(json.dumps([order, key, number]).encode()).decode().rstrip("=")


def read_cursor(text: str, order: str) -> tuple[Any, int]:
    """Return key and number of the entry that a cursor names.

    Raises:
        InvalidInput: the text is no cursor, or one of a list in another order.
    """
    try:
        found = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except ValueError:
        found = None
    match found:
        case [str(name), str() | int() | float() as key, int(number)] if name == order and abs(number) < 2**31:
            if isinstance(key, str) == (order in _TEXT_KEYS) and (isinstance(key, str) or abs(key) < 2**63):
                return key, number
    raise InvalidInput(f"{text!r} is not a page of this list: open the list from its beginning")


_TEXT_KEYS = ("name", "failures")
