"""The key that all certificates follow from: in a Secret of the operator's own namespace, the only one that it reads."""

from __future__ import annotations

import base64
import binascii
import secrets
import threading
from collections.abc import Mapping

from rdzv.control.certificates import PERIOD, Authority
from rdzv.control.transport import Transport, resource_of
from rdzv.kube.api import ApiError, Conflict
from rdzv.objects import Object

#: Where it is, as NAMESPACE/NAME, and after how many seconds certificates are renewed instead of `PERIOD`.
PLACE, RENEWAL = "RDZV_ROOT_SECRET", "RDZV_CERTIFICATE_SECONDS"
_FILE = "root.key"
_SECRETS = resource_of("v1", "Secret")


class RootKey:
    """Reads the key when it is first needed, and makes it if there is none. Thread-safe."""

    def __init__(self, api: Transport, environ: Mapping[str, str]) -> None:
        self._api = api
        self._namespace, _, self._name = environ.get(PLACE, "").partition("/")
        self.period = float(environ.get(RENEWAL) or PERIOD)
        self._lock = threading.Lock()
        self._authority: Authority | None = None

    def authority(self) -> Authority:
        """Who signs.

        Raises:
            ApiError: the key can't be read or made.
        """
        with self._lock:
            if self._authority is None:
                self._authority = Authority(self._read_or_make(), self.period)
            return self._authority

    def _read_or_make(self) -> bytes:
        if not self._name:
            text = f"this operator makes no certificates, since its environment lacks {PLACE}: use its chart, or set spec.etcd.tls: false"
            raise ApiError(None, text)
        found = self._api.look(_SECRETS, self._namespace, self._name)
        if found is None:
            try:
                return self._key(self._api.client.create(_SECRETS, self._namespace, self._new()))
            except Conflict:  # Another operator was faster.
                found = self._api.look(_SECRETS, self._namespace, self._name)
        return self._key(found or {})

    def _new(self) -> Object:
        key = base64.b64encode(secrets.token_bytes(32)).decode()
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "Opaque",
            "metadata": {"name": self._name, "namespace": self._namespace},
            "data": {_FILE: key},
        }

    def _key(self, secret: Object) -> bytes:
        try:
            found = base64.b64decode((secret.get("data") or {}).get(_FILE, ""), validate=True)
        except binascii.Error:
            found = b""
        if len(found) < 32:
            text = f"Secret {self._namespace}/{self._name} has no {_FILE} of at least 32 bytes: delete it, and it is made anew"
            raise ApiError(None, text)
        return found
