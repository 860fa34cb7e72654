"""The command `rdzv`, also as `kubectl rdzv` and, in a pod that only has the library, `python -m rdzv`."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import rdzv
from rdzv.cli import backends, check, conformance, inquiry, picture, probe
from rdzv.cli.doctor import PROBLEM, Finding, is_harmless, render
from rdzv.cli.examination import examine, target
from rdzv.cli.snapshot import Snapshot, take, unexpected_conditions
from rdzv.kube import config as kube_config
from rdzv.kube.api import ApiError, NotFound
from rdzv.kube.client import Client
from rdzv.kube.config import ConfigError
from rdzv.registry import backend_registry
from rdzv.resources import RENDEZVOUS

__all__ = ["main", "parser"]

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_KINDS = {"pod": "pod", "pods": "pod", "po": "pod", "rdzv": "rendezvous", "rendezvous": "rendezvous"}
#: Between two looks of `status --watch`.
_LOOK_SECONDS = 2.0

#: This command in a message; not one that is to be run elsewhere.
_ADVICE = re.compile(r"(?<!-m )(?:kubectl )?\brdzv (?=(?:doctor|explain|status|check|env|backends)\b)")

Run = Callable[[argparse.Namespace, Mapping[str, str]], int]


class CommandError(Exception):
    """What a user is told instead of an answer: object, cause and fix in one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns its exit status: 0, 1 for a problem or an error, 2 for wrong usage."""
    options = parser().parse_args(arguments)
    try:
        status: int = options.run(options, os.environ)
    except (CommandError, inquiry.NothingSuchError, ApiError, ConfigError) as error:
        print(f"rdzv: {_as_called(' '.join(str(error).split()))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Python would say so again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


# What can be asked. docs/cli.md is made from it.


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    top = argparse.ArgumentParser(
        prog=_program(), description="Look at a Rendezvous, and find out what is wrong with it.",
        epilog="The API server is the one of $KUBECONFIG, of the pod this runs in, or of ~/.kube/config.",
    )  # fmt: skip
    top.add_argument("--version", action="version", version=f"rdzv {rdzv.__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Run, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        added.set_defaults(run=run)
        return added

    _explain_options(
        command("explain", _explain, "why a pod, or a Rendezvous, does not do what it should; exit status 1 if so")
    )
    text = (
        "who is in the world, who is missing, and what is not as it should be (then exit status 1, for one Rendezvous)"
    )
    _status_options(command("status", _status, text))
    _check_options(command("check", _check, "whether an installation serves a namespace; exit status 0 if it does"))
    doctor = command(
        "doctor", _doctor, "check everything that training needs here; exit status 1 if something is wrong"
    )
    doctor.add_argument(
        "name", metavar="NAME", nargs="?", type=_name, help="name of the Rendezvous (default: this pod's)"
    )
    _namespace_option(doctor)
    env = command("env", _env, "the variables that pods get, as lines for a shell")
    env.add_argument("name", metavar="NAME", type=_name, help="name of the Rendezvous")
    _namespace_option(env)
    text = "the backends that this Python knows, and where they come from; exit status 1 if one is broken"
    command("backends", _backends, text).add_argument(
        "-o", "--output", choices=["table", "json"], default="table", help="how to print them"
    )
    text = "test whether a backend keeps the contract that torchrun relies on; exit status 1 if not"
    conformance.add_arguments(command("conformance", conformance.run, text))
    return top


def _explain_options(explain: argparse.ArgumentParser) -> None:
    explain.add_argument(
        "subject", metavar="POD", nargs="?", type=_subject,
        help="name of a pod, or rdzv/NAME for a Rendezvous (default: this pod's Rendezvous, else all of the namespace)",
    )  # fmt: skip
    _namespace_option(explain)


def _status_options(status: argparse.ArgumentParser) -> None:
    text = "name of the Rendezvous (default: this pod's, else all of the namespace)"
    status.add_argument("name", metavar="NAME", nargs="?", type=_name, help=text)
    _namespace_option(status)
    status.add_argument("-A", "--all-namespaces", action="store_true", help="list those of all namespaces")
    status.add_argument("-o", "--output", choices=["text", "json", "yaml"], default="text", help="how to print it")
    status.add_argument("-w", "--watch", action="store_true", help="go on, and print it again whenever it changes")


def _check_options(options: argparse.ArgumentParser) -> None:
    _namespace_option(options)
    options.add_argument("--wait", action="store_true", help="until it does, or the time is up")
    options.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS", help="of --wait (default: 120)")


def _namespace_option(command: argparse.ArgumentParser) -> None:
    text = "its namespace (default: that of the pod or of the kubeconfig's context)"
    command.add_argument("-n", "--namespace", type=_name, help=text)


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name of a Kubernetes object")
    return text


def _subject(text: str) -> tuple[str, str]:
    """Kind (empty: either) and name."""
    kind, slash, name = text.rpartition("/")
    if slash and kind not in _KINDS:
        raise argparse.ArgumentTypeError(f"{text!r}: write POD, pod/POD or rdzv/NAME")
    return _KINDS[kind] if slash else "", _name(name)


# Commands.


def _explain(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    with _client(environ) as client:
        namespace, meant = target(environ, options.namespace, None, client.config.namespace)
        kind, name = options.subject or ("rendezvous", meant)
        if name is not None:
            return _report(inquiry.explain_name(client, namespace, kind, name))
        found = inquiry.explain_namespace(client, namespace)
        if not found:
            raise CommandError(
                f"namespace {namespace} has no Rendezvous. Apply one, or correct --namespace (kubectl get rendezvous -A "
                "lists all)"
            )
        return _report(found)


def _doctor(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    return _report(examine(environ, options.namespace, options.name))


def _check(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    with _client(environ) as client:
        namespace = options.namespace or client.config.namespace
        return _report(check.check_until(client, namespace, options.timeout if options.wait else 0.0))


def _status(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    with _client(environ) as client:
        namespace, name = target(environ, options.namespace, options.name, client.config.namespace)
        name = options.name if options.all_namespaces else name
        where = None if options.all_namespaces and name is None else namespace
        shown = ""
        while True:
            text, status = _look(client, where, name, namespace, options.output)
            if text != shown:
                shown = text
                _print(f"{picture.CLEAR}{text}" if options.watch and _on_a_terminal() else text)
            if not options.watch:
                return status
            time.sleep(_LOOK_SECONDS)


def _look(client: Client, where: str | None, name: str | None, namespace: str, output: str) -> tuple[str, int]:
    """What to print of one Rendezvous, or of all, and the exit status."""
    if name is None:
        items = client.list(RENDEZVOUS, where)["items"]
        if output != "text":
            return picture.dump(items, output), 0
        nothing = "no Rendezvous" + (f" in namespace {where}" if where is not None else "")
        return (picture.overview(items, namespaces=where is None) if items else nothing), 0
    shown = take(client, namespace, name)
    if "rendezvous" in shown.errors:
        raise CommandError(shown.errors["rendezvous"])
    if shown.rendezvous is None and shown.round is None:
        raise CommandError(
            f"Rendezvous {namespace}/{name}: does not exist. Apply it, or correct the name or --namespace "
            f"(kubectl get rendezvous -A lists all)"
        )
    text = picture.picture(shown) if output == "text" else picture.dump(picture.as_data(shown), output)
    return text, int(is_troubled(shown))


def is_troubled(shown: Snapshot) -> bool:
    """Whether something of it is not as it should be. A world that forms is no trouble."""
    return any(not is_harmless(condition) for condition in unexpected_conditions(shown))


def _env(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    with _client(environ) as client:
        namespace, name = target(environ, options.namespace, options.name, client.config.namespace)
        try:
            config_map = client.get(inquiry.CONFIG_MAPS, namespace, f"rdzv-{name}")
        except NotFound:
            raise CommandError(
                f"ConfigMap {namespace}/rdzv-{options.name}: does not exist. The operator makes it for each Rendezvous: "
                f"see rdzv status -n {namespace} {options.name}"
            ) from None
    print(exports(config_map.get("data") or {}))
    return 0


def _backends(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    lines = backends.collect(backend_registry(), probe.look(environ))
    header, *rows = backends.rows(lines)
    _print(backends.as_json(lines) if options.output == "json" else picture.table(header, rows))
    return int(any(line.broken for line in lines))


@contextmanager
def _client(environ: Mapping[str, str]) -> Iterator[Client]:
    client = Client(kube_config.load(environ))
    try:
        yield client
    finally:
        client.close()


# What they print.


def _report(findings: Sequence[Finding]) -> int:
    _print(_as_called(render(findings)))
    return int(any(finding.verdict == PROBLEM for finding in findings))


def _print(text: str) -> None:
    print(picture.highlighted(text) if _on_a_terminal() else text, flush=True)


def _program() -> str:
    """What the user types to get here: also in messages, so that what they advise can be typed."""
    name = os.path.basename(sys.argv[0])
    return "kubectl rdzv" if name.startswith("kubectl-") else "python -m rdzv" if name == "__main__.py" else "rdzv"


def _as_called(text: str) -> str:
    return _ADVICE.sub(f"{_program()} ", text)


def _on_a_terminal() -> bool:
    """Whether somebody looks who wants colours (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def exports(data: Mapping[str, str]) -> str:
    """Variables as lines that a POSIX shell reads."""
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in sorted(data.items()))


if __name__ == "__main__":
    sys.exit(main())
