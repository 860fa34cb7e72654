"""How two agents prove to each other, on a connection, that they belong to one Rendezvous. Pure.

Both know the coordinator's key, which stands in the RendezvousRound: only who may read that object can compute a proof.
One line of JSON each, then a plus sign:

    member       {"from": INCARNATION, "to": INCARNATION, "nonce": HEX}
    coordinator  {"nonce": HEX, "proof": HEX}
    member       {"proof": HEX}
    coordinator  +

A proof is the HMAC-SHA256, under the key, of who proves, both names and both nonces: it can't be used on another
connection, by the other side, or for another name. docs/adr/0012-liveness-port.md says why it is done like this.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass

__all__ = ["COORDINATOR", "LINE_LIMIT", "MEMBER", "Exchange", "decode", "encode", "proves"]

LINE_LIMIT = 1024
"""Bytes of a line, more than any of ours has."""
COORDINATOR, MEMBER = "coordinator", "member"
_PURPOSE = "rdzv liveness 1"


@dataclass(frozen=True)
class Exchange:
    """What is said in one handshake: incarnations of the member and of the coordinator, and the nonce of each."""

    sender: str
    target: str
    sender_nonce: str
    target_nonce: str

    def proof(self, key: str, side: str) -> str:
        """What `side` has to send."""
        said = [_PURPOSE, side, self.sender, self.target, self.sender_nonce, self.target_nonce]
        return hmac.new(key.encode(), json.dumps(said).encode(), hashlib.sha256).hexdigest()


def proves(exchange: Exchange, key: str, side: str, given: str) -> bool:
    """Whether `given` is the proof of `side`. Without a key nobody can prove anything."""
    return bool(key) and hmac.compare_digest(exchange.proof(key, side).encode(), given.encode())


def encode(**fields: str) -> bytes:
    """One line."""
    return json.dumps(fields).encode() + b"\n"


def decode(line: bytes, *names: str) -> list[str]:
    """The texts of these names in a line.

    Raises:
        ValueError: the line is not an object that has them.
    """
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError("not a line of JSON") from error
    values = [fields.get(name) for name in names] if isinstance(fields, dict) else []
    texts = [value for value in values if isinstance(value, str) and value]
    if len(texts) != len(names):
        raise ValueError(f"not a line with {', '.join(names)}")
    return texts
