"""How slots and fingerprints are written: a world of thousands fits in one small object (pure)."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache

MAX_SLOTS = 4096
"""Slots are 0 .. MAX_SLOTS-1; bounds the size of a Round (bitmap 684 characters, fingerprints 16 KiB at most).

To raise it: the bounds of `slots`, `checks`, `size` and every `slot` in the three CRDs, `maxItems` of the roster's lists, `spec.nodes`
(whose maximum is not bounded by it today), and the size of the Round and the roster, which each agent and each watch reads. Above all
fingerprints of more bits (docs/adr/0010, "What bounds a world").
"""
_FINGERPRINT_BYTES = 3


@lru_cache(maxsize=4 * MAX_SLOTS)
def fingerprint(salt: int, incarnation: str) -> str:
    """24 bits of an incarnation as six hexadecimal digits. `salt` is chosen so that no two members of a round share one."""
    key = salt.to_bytes(8, "big")
    return hashlib.blake2b(incarnation.encode(), digest_size=_FINGERPRINT_BYTES, key=key).hexdigest()


def salted_fingerprints(incarnations: Sequence[str]) -> tuple[int, tuple[str, ...]]:
    """The smallest salt under which these incarnations have different fingerprints, and those fingerprints.

    Raises ValueError when two incarnations are the same.
    """
    if len(set(incarnations)) != len(incarnations):
        raise ValueError("two members of one incarnation")
    salt = 0
    while True:
        fingerprints = tuple(fingerprint(salt, incarnation) for incarnation in incarnations)
        if len(set(fingerprints)) == len(fingerprints):
            return salt, fingerprints
        salt += 1


def encode_slots(slots: Iterable[int]) -> str:
    """Base64 of a bitmap: slot s is bit s % 8 (least significant first) of byte s // 8, no trailing zero bytes.

    Raises ValueError for a slot that is not in 0 .. MAX_SLOTS-1: the bitmap of a large one would take all memory.
    """
    bits = 0
    for slot in slots:
        if not 0 <= slot < MAX_SLOTS:
            raise ValueError(f"slot {slot} is not in 0 .. {MAX_SLOTS - 1}")
        bits |= 1 << slot
    return base64.b64encode(bits.to_bytes((bits.bit_length() + 7) // 8, "little")).decode()


def decode_slots(text: str, field: str = "spec.slots") -> tuple[int, ...]:
    """The set slots in ascending order. Raises ValueError naming `field`."""
    data = _decode(text, field)
    if len(data) * 8 > MAX_SLOTS:
        raise ValueError(f"{field}: more than {MAX_SLOTS} slots")
    bits = bin(int.from_bytes(data, "little"))[:1:-1]  # Without "0b", the least significant first.
    return tuple(slot for slot, bit in enumerate(bits) if bit == "1")


def encode_fingerprints(fingerprints: Sequence[str]) -> str:
    """Base64 of the fingerprints one after the other."""
    return base64.b64encode(bytes.fromhex("".join(fingerprints))).decode()


def decode_fingerprints(text: str) -> tuple[str, ...]:
    """Fingerprints from base64. Raises ValueError naming `spec.checks`."""
    data = _decode(text, "spec.checks")
    if len(data) % _FINGERPRINT_BYTES or len(data) > MAX_SLOTS * _FINGERPRINT_BYTES:
        raise ValueError(
            f"spec.checks: {len(data)} bytes is not {_FINGERPRINT_BYTES} for each of at most {MAX_SLOTS} members"
        )
    return tuple(data.hex(" ", -_FINGERPRINT_BYTES).split())


def _decode(text: str, field: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{field}: not base64: {error}") from None
