"""Certificates of the servers that the operator runs: who signs, and what is in the Secrets (pure: a function of one key and the time).

The operator never reads a Secret of a tenant. So nothing is remembered there that it would need: every private key follows from one root
key, the UID of the Rendezvous and the period, and the same bytes come out in any process at any time of a period. An authority is as old
as its Rendezvous; what it signs is good from one period before its own to one after it. A new period's certificates are written while
those of the last one hold, and whoever has either trusts the same authority: nobody has to restart. See docs/adr/0015-certificates.md.

The injection webhook has authorities from the same key, one for each period (docs/adr/0018-webhook-certificates.md).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from rdzv.backends import Certificate
from rdzv.spec import Rendezvous

#: Seconds after which certificates are renewed.
PERIOD = 30 * 24 * 3600.0

#: Order of P-256 (FIPS 186-5): private keys are 1 to one less.
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_BEGIN = datetime(2020, 1, 1, tzinfo=timezone.utc)
#: "No well-defined expiration date" (RFC 5280, 4.1.2.5): the authority goes with its Rendezvous.
_NEVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc)

#: Stands where the UID of a Rendezvous stands in what keys are derived from; no UID is like it.
_WEBHOOK = "webhook"


@dataclass(frozen=True)
class WebhookFiles:
    """What the webhook's Secret holds (its `data`), and whom the API server has to trust for it (PEM, base64: a `caBundle`)."""

    data: Mapping[str, str]
    bundle: str


class Authority:
    """Signs for all Rendezvous, each by an authority of its own. `root`: the key that everything follows from; `period`: in seconds."""

    def __init__(self, root: bytes, period: float = PERIOD) -> None:
        if len(root) < 32:
            raise ValueError("the root key has less than 32 bytes")
        self._root, self._period = root, period

    def secrets(self, rendezvous: Rendezvous, wanted: Sequence[Certificate], now: float) -> list[dict[str, Any]]:
        """The Secrets with these certificates, as children without owner and namespace. `now`: seconds since the epoch."""
        data: dict[str, dict[str, bytes]] = {}
        for certificate in wanted:
            data.setdefault(certificate.secret, {}).update(self._files(rendezvous.uid, certificate, now))
        return [_secret(name, files) for name, files in data.items()]

    def renewal(self, rendezvous: Rendezvous, now: float) -> float:
        """Seconds until the certificates of a Rendezvous are renewed."""
        return (self._number(rendezvous.uid, now) + 1) * self._period - self._offset(rendezvous.uid) - now

    def webhook(self, host: str, now: float) -> WebhookFiles:
        """Of the injection webhook that is reached as `host`. `now`: seconds since the epoch.

        Each period has an authority of its own. The bundle has those of the last period, of this one and of the next, so that whoever
        has what was signed in one of them is trusted.
        """
        number = self._number(_WEBHOOK, now)
        key, authority = (self._private_key(_WEBHOOK, host, what, str(number)) for what in ("server", "authority"))
        serial = self._serial(_WEBHOOK, host, "server", str(number))
        leaf = _leaf(key, (authority, _WEBHOOK_ISSUER), [host], serial, *self._valid(_WEBHOOK, number))
        bundle = b"".join(_pem(self._webhook_authority(host, each)) for each in (number - 1, number, number + 1))
        files = {"ca.crt": bundle, "tls.crt": _pem(leaf), "tls.key": _private_pem(key)}
        return WebhookFiles(_encoded(files), base64.b64encode(bundle).decode())

    def _webhook_authority(self, host: str, number: int) -> x509.Certificate:
        what = (_WEBHOOK, host, "authority", str(number))
        return _authority(
            self._private_key(*what), _WEBHOOK_ISSUER, self._serial(*what), *self._valid(_WEBHOOK, number)
        )

    def _valid(self, uid: str, number: int) -> tuple[datetime, datetime]:
        """From one period before its own to one after it."""
        begin = number * self._period - self._offset(uid)
        return _time(begin - self._period), _time(begin + 2 * self._period)

    def _files(self, uid: str, wanted: Certificate, now: float) -> dict[str, bytes]:
        number = self._number(uid, now)
        authority = self._private_key(uid, wanted.authority)
        key = self._private_key(uid, wanted.authority, wanted.secret, str(number))
        trusted = _authority(authority, _ISSUER, self._serial(uid, wanted.authority), _BEGIN, _NEVER)
        serial = self._serial(uid, wanted.authority, wanted.secret, str(number))
        leaf = _leaf(key, (authority, _ISSUER), wanted.hosts, serial, *self._valid(uid, number))
        return {
            f"{wanted.prefix}ca.crt": _pem(trusted),
            f"{wanted.prefix}tls.crt": _pem(leaf),
            f"{wanted.prefix}tls.key": _private_pem(key),
        }

    def _number(self, uid: str, now: float) -> int:
        return int((now + self._offset(uid)) // self._period)

    def _offset(self, uid: str) -> float:
        """So that not all are renewed at one moment."""
        return self._bytes(uid, "offset")[0] / 256 * self._period

    def _private_key(self, uid: str, *what: str) -> ec.EllipticCurvePrivateKey:
        number = int.from_bytes(self._bytes(uid, "key", *what), "big") % (_ORDER - 1) + 1
        return ec.derive_private_key(number, ec.SECP256R1())

    def _serial(self, uid: str, *what: str) -> int:
        return int.from_bytes(self._bytes(uid, "serial", *what)[:16], "big") + 1

    def _bytes(self, uid: str, *what: str) -> bytes:
        """64 bytes that nobody can tell from chance who has not the root; other ones for other words."""
        message = b"".join(len(word.encode()).to_bytes(4, "big") + word.encode() for word in (uid, *what))
        return hmac.new(self._root, message, hashlib.sha512).digest()


#: No common name in what is signed: etcd takes a user from it, and its gateway refuses clients that have one.
_OURS = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "rendezvous-operator")
_SUBJECT = x509.Name([_OURS])
_ISSUER = x509.Name([_OURS, x509.NameAttribute(NameOID.COMMON_NAME, "authority of one Rendezvous")])
_WEBHOOK_ISSUER = x509.Name([_OURS, x509.NameAttribute(NameOID.COMMON_NAME, "authority of the injection webhook")])


def _authority(
    key: ec.EllipticCurvePrivateKey, name: x509.Name, serial: int, begin: datetime, end: datetime
) -> x509.Certificate:
    builder = _builder(name, name, key.public_key(), serial, begin, end)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return _signed(builder, key, signs=True)


def _leaf(
    key: ec.EllipticCurvePrivateKey,
    authority: tuple[ec.EllipticCurvePrivateKey, x509.Name],
    hosts: Sequence[str],
    serial: int,
    begin: datetime,
    end: datetime,
) -> x509.Certificate:
    builder = _builder(_SUBJECT, authority[1], key.public_key(), serial, begin, end)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    # A server is a client, too: of its peers, and etcd's gateway of etcd.
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if hosts else [])]
    builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
    return _signed(builder, authority[0], signs=False)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    serial: int,
    begin: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer)
    builder = builder.public_key(public).serial_number(serial).not_valid_before(begin).not_valid_after(end)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)


def _signed(
    builder: x509.CertificateBuilder, authority: ec.EllipticCurvePrivateKey, *, signs: bool
) -> x509.Certificate:
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    usage = x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = builder.add_extension(identifier, critical=False).add_extension(usage, critical=True)
    return builder.sign(authority, hashes.SHA256(), ecdsa_deterministic=True)


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), timezone.utc)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _encoded(files: Mapping[str, bytes]) -> dict[str, str]:
    return {file: base64.b64encode(content).decode() for file, content in files.items()}


def _secret(name: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": name},
        "data": _encoded(files),
    }
