"""The command `rdzv`, also as `kubectl rdzv` and, in a pod that only has the library, `python -m rdzv`."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import rdzv
from rdzv.cli import backends, conformance, probe
from rdzv.cli.doctor import PROBLEM, describe_round, render
from rdzv.cli.examination import examine, target
from rdzv.cli.probe import BACKEND
from rdzv.cli.snapshot import Snapshot, nodes, take, unexpected_conditions
from rdzv.kube import config as kube_config
from rdzv.kube.api import ApiError, NotFound, Resource
from rdzv.kube.client import Client
from rdzv.kube.config import ConfigError
from rdzv.registry import backend_registry
from rdzv.resources import RENDEZVOUS

CONFIG_MAPS = Resource("v1", "configmaps")

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


class CommandError(Exception):
    """What a user is told instead of an answer: object, cause and fix in one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns its exit status: 0, 1 for a problem or an error, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options, os.environ)
    except (CommandError, ApiError, ConfigError) as error:
        print(f"rdzv: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Python would say so again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    prog = "kubectl rdzv" if os.path.basename(sys.argv[0]).startswith("kubectl-") else "rdzv"
    parser = argparse.ArgumentParser(
        prog=prog, description="Look at a Rendezvous, and find out what is wrong with it.",
        epilog="The API server is the one of $KUBECONFIG, of the pod this runs in, or of ~/.kube/config.",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"rdzv {rdzv.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, run, optional, text in (
        ("doctor", _doctor, True, "check everything that training needs here; exit status 1 if something is wrong"),
        ("status", _status, True, "who is in the world, who is missing, and what is not as it should be"),
        ("env", _env, False, "the variables that pods get, as lines for a shell"),
    ):
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.add_argument(
            "name", metavar="NAME", nargs="?" if optional else None, type=_name,
            help="name of the Rendezvous" + (" (default: this pod's; for status: all of the namespace)" if name == "status"
                                             else " (default: this pod's)" if optional else ""),
        )  # fmt: skip
        command.add_argument(
            "-n",
            "--namespace",
            type=_name,
            help="its namespace (default: that of the pod or of the kubeconfig's context)",
        )
        command.set_defaults(run=run)
    text = "the backends that this Python knows, and where they come from; exit status 1 if one is broken"
    command = commands.add_parser("backends", help=text, description=text[0].upper() + text[1:] + ".")
    command.add_argument("-o", "--output", choices=["table", "json"], default="table", help="how to print them")
    command.set_defaults(run=_backends)
    text = "test whether a backend keeps the contract that torchrun relies on; exit status 1 if not"
    command = commands.add_parser("conformance", help=text, description=text[0].upper() + text[1:] + ".")
    conformance.add_arguments(command)
    command.set_defaults(run=conformance.run)
    return parser


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name of a Kubernetes object")
    return text


# Commands.


def _doctor(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    findings = examine(environ, options.namespace, options.name)
    print(render(findings))
    return int(any(finding.verdict == PROBLEM for finding in findings))


def _status(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    client = Client(kube_config.load(environ))
    try:
        namespace, name = target(environ, options.namespace, options.name, client.config.namespace)
        if name is None:
            items = client.list(RENDEZVOUS, namespace)["items"]
            print(overview(items) if items else f"no Rendezvous in namespace {namespace}")
            return 0
        shown = take(client, namespace, name)
    finally:
        client.close()
    if "rendezvous" in shown.errors:
        raise CommandError(shown.errors["rendezvous"])
    if shown.rendezvous is None and shown.round is None:
        raise CommandError(
            f"Rendezvous {namespace}/{name}: does not exist. Apply it, or correct the name or --namespace "
            f"(kubectl get rendezvous -A lists all)"
        )
    print(picture(shown))
    return 0


def _env(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    client = Client(kube_config.load(environ))
    try:
        namespace, name = target(environ, options.namespace, options.name, client.config.namespace)
        config_map = client.get(CONFIG_MAPS, namespace, f"rdzv-{name}")
    except NotFound:
        raise CommandError(
            f"ConfigMap {namespace}/rdzv-{options.name}: does not exist. The operator makes it for each Rendezvous: "
            f"see rdzv status -n {namespace} {options.name}"
        ) from None
    finally:
        client.close()
    print(exports(config_map.get("data") or {}))
    return 0


def _backends(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    lines = backends.collect(backend_registry(), probe.look(environ))
    header, *rows = backends.rows(lines)
    print(backends.as_json(lines) if options.output == "json" else table(header, rows))
    return int(any(line.broken for line in lines))


# What they print.


def exports(data: Mapping[str, str]) -> str:
    """Variables as lines that a POSIX shell reads."""
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in sorted(data.items()))


def overview(items: Sequence[Mapping[str, Any]]) -> str:
    """One line for each Rendezvous."""
    rows = []
    for item in items:
        status = item.get("status") or {}
        ready: Mapping[str, Any] = next((c for c in status.get("conditions") or [] if c["type"] == "Ready"), {})
        rows.append([
            item["metadata"]["name"], item["spec"]["backend"], (status.get("nodes") or {}).get("summary", "-"),
            str(status.get("round", "-")), ready.get("status", "-"), ready.get("reason", "-"),
        ])  # fmt: skip
    return table(["NAME", "BACKEND", "NODES", "ROUND", "READY", "REASON"], rows)


def picture(shown: Snapshot) -> str:
    """One Rendezvous on one screen."""
    status, where = shown.status, f"{shown.namespace}/{shown.name}"
    if shown.rendezvous is None:
        parts = [f"Rendezvous {where} does not exist; its agents meet without one"]
    else:
        counts = status.get("nodes") or {}
        parts = [
            f"Rendezvous {where}: backend {shown.backend}, endpoint {status.get('endpoint', '-')}"
            + (f", nodes {counts['summary']}" if "summary" in counts else "")
        ]
        if not status:
            parts.append("no status: no operator has looked at it")
    if shown.backend in ("", BACKEND):
        parts.append(describe_round(shown))
    lines = nodes(shown)
    if lines:
        rows = [
            [line.pod, _number(line.slot), _number(line.rank), line.state, line.node or "-", line.reason]
            for line in lines
        ]
        parts += ["", table(["POD", "SLOT", "RANK", "STATE", "NODE", "REASON"], rows)]
    wrong = unexpected_conditions(shown)
    if wrong:
        parts += [
            "",
            *(f"{c['type']} is {c['status']}: {c['reason']}: {c.get('message', '')}".rstrip(": ") for c in wrong),
        ]
    unread = [f"not read: {text}" for what, text in sorted(shown.errors.items()) if what != "pods" or not lines]
    return "\n".join([*parts, *([""] if unread else []), *unread])


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as what is in them, the last one as it is."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in [header, *rows]]
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    sys.exit(main())
