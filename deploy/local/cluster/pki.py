"""A cluster's certificates and kubeconfigs, made with the openssl command: the standard library cannot sign."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .common import Command, run, write_json

# Without a configuration of our own openssl adds "CA:TRUE" from the system's to every certificate.
CONFIG = "[req]\ndistinguished_name = name\n[name]\n"
DAYS = "365"


@dataclass(frozen=True)
class Pki:
    """The certificate authority in `folder`, and what it has signed, as NAME.crt and NAME.key."""

    folder: Path

    def create(self) -> None:
        """Make the authority (one for all purposes) and the key that signs service account tokens."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.folder / "openssl.cnf").write_text(CONFIG)
        extensions = ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature"]
        self._certificate("ca", "/CN=rendezvous-local-ca", extensions, [])
        key = self.folder / "service-account.key"
        run(["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", key])
        run(["openssl", "pkey", "-in", key, "-pubout", "-out", self.folder / "service-account.pub"])

    def issue(self, name: str, subject: str, hosts: list[str] | None = None) -> None:
        """Issue NAME.crt for a subject such as /O=system:nodes/CN=system:node:node-1; `hosts`: IP:… and DNS:… of a server."""
        extensions = ["basicConstraints=critical,CA:FALSE", "keyUsage=critical,digitalSignature,keyEncipherment"]
        extensions.append("extendedKeyUsage=clientAuth" + (",serverAuth" if hosts else ""))
        if hosts:
            extensions.append("subjectAltName=" + ",".join(hosts))
        self._certificate(name, subject, extensions, ["-CA", self.folder / "ca.crt", "-CAkey", self.folder / "ca.key"])

    def _certificate(self, name: str, subject: str, extensions: list[str], signer: Command) -> None:
        command: Command = ["openssl", "req", "-x509", "-config", self.folder / "openssl.cnf", "-days", DAYS]
        command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", subject, *signer]
        for extension in extensions:
            command += ["-addext", extension]
        run([*command, "-keyout", self.folder / f"{name}.key", "-out", self.folder / f"{name}.crt"])

    def kubeconfig(self, path: Path, name: str, server: str, cluster: str) -> None:
        """Write a kubeconfig (JSON, which is YAML) for the client certificate `name`, everything embedded."""

        def embedded(file: str) -> str:
            return base64.b64encode((self.folder / file).read_bytes()).decode()

        user = {"client-certificate-data": embedded(f"{name}.crt"), "client-key-data": embedded(f"{name}.key")}
        config: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": cluster, "cluster": {"server": server, "certificate-authority-data": embedded("ca.crt")}}
            ],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": name}}],
            "current-context": cluster,
        }
        write_json(path, config, mode=0o600)
