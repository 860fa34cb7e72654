"""`rdzv conformance`: runs the contract that torchrun's agents rely on against any backend that torch's registry resolves."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

import rdzv
from rdzv.cli.conformance_agents import ENDPOINTS, Failed, Lab, NodeError, Target
from rdzv.cli.conformance_checks import CHECKS, PROFILES, Check, skipped
from rdzv.cli.conformance_report import FAILED, PASSED, SKIPPED, Result, report, to_yaml
from rdzv.env import RendezvousEnvironmentError, parse_config


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of the command."""
    command.add_argument("--backend", required=True, metavar="NAME", help="as in torchrun's --rdzv-backend")
    command.add_argument(
        "--endpoint", metavar="TEXT",
        help="as in torchrun's --rdzv-endpoint; {run} in it is replaced by a name of each check's own, {port} by a free port "
             f"(default for {', '.join(ENDPOINTS)}: one on this machine, or in namespace default)",
    )  # fmt: skip
    command.add_argument(
        "--conf",
        default={},
        type=_config,
        metavar="K=V,…",
        help="as in --rdzv-conf; {run} as above, {index} is the node's",
    )
    command.add_argument(
        "--profile",
        default=PROFILES,
        type=_profiles,
        metavar="P,…",
        help=f"which profiles (default: {','.join(PROFILES)})",
    )
    command.add_argument(
        "--server", default="", metavar="TEXT", help="what serves the endpoint, for the report: etcd 3.4.23"
    )
    command.add_argument("-o", "--output", metavar="FILE", help="write the report there, as YAML")


def _config(text: str) -> dict[str, str]:
    try:
        return parse_config(text)
    except RendezvousEnvironmentError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _profiles(text: str) -> list[str]:
    names = text.split(",")
    if not {*names} <= {*PROFILES}:
        raise argparse.ArgumentTypeError(f"{text!r}: write some of {','.join(PROFILES)}")
    return names


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Runs the command. Returns 0 if nothing failed, 1 if something did, 2 if there is nothing to test."""
    del environ  # The nodes inherit it.
    endpoint = options.endpoint or ENDPOINTS.get(options.backend)
    if endpoint is None:
        print(f"rdzv: backend {options.backend} needs --endpoint", file=sys.stderr)
        return 2
    try:
        import torch  # noqa: PLC0415 - who looks at a Rendezvous need not have it
        from torch.distributed.elastic.rendezvous import rendezvous_handler_registry  # noqa: PLC0415
    except ImportError as error:
        print(f"rdzv: this Python has no usable torch: {error}", file=sys.stderr)
        return 2
    known = getattr(rendezvous_handler_registry, "_registry", {options.backend: None})
    if options.backend not in known:
        print(f"rdzv: torch knows no backend {options.backend!r}, only {', '.join(sorted(known))}", file=sys.stderr)
        return 2
    target = Target(options.backend, endpoint, options.conf)
    results = []
    for result in results_of(target, [check for check in CHECKS if check.profile in options.profile]):
        results.append(result)
        print(_line(result), flush=True)
    counts = [sum(result.outcome == outcome for result in results) for outcome in (PASSED, FAILED, SKIPPED)]
    print("{} passed, {} failed, {} skipped.".format(*counts))
    if options.output:
        versions = {"rendezvous-operator": rdzv.__version__, "torch": str(torch.__version__)}
        versions |= {"python": sys.version.split()[0], **({"server": options.server} if options.server else {})}
        date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with open(options.output, "w", encoding="utf-8") as file:
            file.write(to_yaml(report(options.backend, versions, date, results)))
    return int(counts[1] > 0)


def results_of(target: Target, checks: Sequence[Check]) -> Iterator[Result]:
    """Runs the checks one after the other, each with nodes of its own."""
    for check in checks:
        reason = skipped(check, target)
        if reason:
            yield Result(check.profile, check.name, SKIPPED, check.meaning, reason)
            continue
        try:
            with Lab(target) as lab:
                check.run(lab)
        except (Failed, NodeError) as error:
            yield Result(check.profile, check.name, FAILED, check.meaning, _anonymous(str(error), lab))
        else:
            yield Result(check.profile, check.name, PASSED, check.meaning)


def _anonymous(text: str, lab: Lab) -> str:
    """What was seen, without what is of this one run."""
    for own, word in ((lab.endpoint, "ENDPOINT"), (lab.run, "RUN")):
        text = text.replace(own, word)
    return text


def _line(result: Result) -> str:
    line = f"{result.outcome:<8} {result.profile:<8} {result.check}"
    if result.outcome == SKIPPED:
        return f"{line}: {result.text}"
    return line + (f"\n{'':18}seen:  {result.text}\n{'':18}means: {result.meaning}" if result.outcome == FAILED else "")
