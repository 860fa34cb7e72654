"""Typed access to JSON objects that others wrote, and changed copies of records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from reprlib import repr as brief
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import replace as replace  # noqa: PLC0414 - so that mypy checks the names of the fields
else:

    def replace(record: Any, /, **changes: Any) -> Any:
        """`dataclasses.replace` for records without `__post_init__`, many times faster.

        An agent's state has some thirty fields and is replaced a dozen times while a round forms: through `__init__` that
        was a seventh of the processor time that an agent spends on it.
        """
        copy = object.__new__(type(record))
        copy.__dict__.update(record.__dict__)
        copy.__dict__.update(changes)
        fields = record.__dataclass_fields__
        if len(copy.__dict__) > len(fields):
            # What a record keeps beside its fields (`cached_property`) follows from them, and they may be others now.
            for name in copy.__dict__.keys() - fields.keys():
                del copy.__dict__[name]
        return copy


_ADDRESS_LENGTH = 64
"""An IPv6 address has up to 45 characters; a zone may follow."""
_VERSION_LENGTH = 20
"""Digits of a number of 64 bits."""
_MAX_NUMBER = float(1 << 53)


def shown(value: object) -> str:
    """A value in an error's text: short, whatever it is."""
    return brief(value)[:80]


def _is_unicode(text: str) -> bool:
    # JSON can hold halves of surrogate pairs, which are no characters and which nothing can encode.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Fields:
    """One JSON object. Every error is a ValueError that begins with the path of the field."""

    def __init__(self, parent: Mapping[str, Any], name: str) -> None:
        data = parent.get(name.rpartition(".")[2])
        self.name = name
        if data is None:
            data = {}
        if not isinstance(data, Mapping):
            raise ValueError(f"{name}: not an object: {shown(data)}")
        self.data: Mapping[str, Any] = data

    def text(self, name: str, required: bool = False, most: int | None = None) -> str:
        """A string of at most `most` characters, "" when absent and not required."""
        value = self.data.get(name, "")
        if not isinstance(value, str) or (required and not value):
            raise ValueError(f"{self.name}.{name}: {'missing' if value == '' else f'not a string: {shown(value)}'}")
        if not _is_unicode(value):
            raise ValueError(f"{self.name}.{name}: not text: {shown(value)}")
        if most is not None and len(value) > most:
            raise ValueError(f"{self.name}.{name}: longer than {most} characters: {shown(value)}")
        return value

    def address(self, name: str) -> str:
        """The IP address of one machine, as a literal: nothing is looked up where it is used."""
        value = self.text(name, required=True, most=_ADDRESS_LENGTH)
        try:
            address = ip_address(value)
        except ValueError:
            raise ValueError(f"{self.name}.{name}: not an IP address: {shown(value)}") from None
        if address.is_unspecified or address.is_multicast:
            raise ValueError(f"{self.name}.{name}: not the address of one machine: {shown(value)}")
        return value

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """One of these strings."""
        value = self.text(name, required=True)
        if value not in choices:
            raise ValueError(f"{self.name}.{name}: {shown(value)} is not one of {', '.join(choices)}")
        return value

    def integer(self, name: str, default: int = 0, below: int = 1 << 53) -> int:
        """A whole number in 0 .. below - 1."""
        value = self.data.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < below:
            raise ValueError(f"{self.name}.{name}: not a number in 0 .. {below - 1}: {shown(value)}")
        return value

    def flag(self, name: str) -> bool:
        """true or false; false when absent."""
        value = self.data.get(name, False)
        if not isinstance(value, bool):
            raise ValueError(f"{self.name}.{name}: not true or false: {shown(value)}")
        return value

    def number(self, name: str) -> float:
        """A number from 0 up, and finite."""
        value = self.data.get(name, 0)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < _MAX_NUMBER:
            raise ValueError(f"{self.name}.{name}: not a number from 0 up: {shown(value)}")
        return float(value)

    def version(self, name: str) -> int:
        """A resourceVersion as a number; 0 when absent."""
        value = self.text(name) or "0"
        # isdigit() alone also admits digits that int() refuses, such as superscripts.
        if not (value.isascii() and value.isdigit() and len(value) <= _VERSION_LENGTH):
            raise ValueError(f"{self.name}.{name}: not a resourceVersion: {shown(value)}")
        return int(value)

    def names(self, name: str) -> frozenset[str]:
        """A list of strings, as a set."""
        return frozenset(self.texts(name))

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        value = self.data.get(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) and _is_unicode(item) for item in value):
            raise ValueError(f"{self.name}.{name}: not a list of strings")
        return tuple(value)

    def child(self, name: str) -> Fields | None:
        """An object in this one, None when absent."""
        return None if self.data.get(name) is None else Fields(self.data, f"{self.name}.{name}")

    def children(self, name: str) -> list[Fields]:
        """A list of objects."""
        value = self.data.get(name, [])
        if not isinstance(value, list):
            raise ValueError(f"{self.name}.{name}: not a list")
        return [Fields({name: item}, f"{self.name}.{name}") for item in value]
