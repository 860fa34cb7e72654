"""What is wrong, why, and what to do about it: the verdicts of `rdzv doctor`, from facts that others gathered (pure)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rdzv.cli.probe import BACKEND, DISTRIBUTION, GROUP
from rdzv.cli.schemas import lacking
from rdzv.cli.snapshot import Node, Snapshot, nodes, unexpected_conditions
from rdzv.env import ENV_METHOD, LIBRARY_PATH, PodEnvironment, RendezvousEnvironmentError, has_no_launcher
from rdzv.resources import MEMBERS, RENDEZVOUS, ROUNDS, STORES, UPGRADE

if TYPE_CHECKING:
    from rdzv.cli.probe import Probe

OK, NOTE, PROBLEM = "ok", "note", "problem"

#: Of its own name there is nothing at the index yet.
_INSTALL = f"pip install the wheel or a checkout of {DISTRIBUTION}"
_ENTRY_POINT = "rdzv.plugin:kubernetes"
_SUBJECT_WIDTH = 12
#: What pods agree on or never meet; the rest may be older than the last edit of the spec.
_IDENTITY = ("PET_RDZV_BACKEND", "PET_RDZV_ENDPOINT", "PET_RDZV_ID")


@dataclass(frozen=True)
class Finding:
    """The outcome of one check. `verdict`: ok, note (may be meant so) or problem; `cause` and `fix` go with the latter two."""

    subject: str
    verdict: str
    text: str
    cause: str = ""
    fix: str = ""


def render(findings: Sequence[Finding]) -> str:
    """The findings as plain text, and their sum in the last line."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.verdict:<8} {finding.subject:<{_SUBJECT_WIDTH}} {finding.text}")
        for word, text in (("cause", finding.cause), ("fix", finding.fix)):
            first, *rest = text.splitlines() or [""]
            if first:
                lines.append(f"{'':<8} {'':<{_SUBJECT_WIDTH}}   {word + ':':<6} {first}")
                lines += [f"{'':<8} {'':<{_SUBJECT_WIDTH}}          {line}" for line in rest]
    problems = sum(finding.verdict == PROBLEM for finding in findings)
    lines.append("No problem found." if not problems else f"{problems} problem{'s' if problems > 1 else ''} found.")
    return "\n".join(lines)


# This machine: Python, the package, torch, the plug-in, the environment.


def check_process(probe: Probe, environ: Mapping[str, str]) -> list[Finding]:
    """Whether torch, in the Python that runs torchrun, has the backend, and if not why.

    Without torch nobody trains here, outside of a pod: then the rest may be missing too.
    """
    subject, where = (
        "python",
        "runs torchrun" if probe.runs_torchrun else "no torchrun on the PATH, so this one was asked",
    )
    if probe.error:
        fix = "repair this Python, or put the torchrun that is meant first on the PATH"
        return [Finding(subject, PROBLEM, f"{probe.command} does not answer", probe.error, fix)]
    found = [Finding(subject, OK, f"{probe.python}, {probe.command} ({where})")]
    trains = bool(probe.torch) or in_pod(environ)
    found.append(_package(probe, environ, trains))
    if probe.torch:
        return [*found, Finding("torch", OK, probe.torch), _plugin(probe), *_broken_handlers(probe, environ)]
    verdict = PROBLEM if in_pod(environ) else NOTE
    fix = "use an image that has torch" if in_pod(environ) else "none, unless training should run on this machine"
    return [*found, Finding("torch", verdict, f"not usable by {probe.command}", probe.torch_error, fix)]


def in_pod(environ: Mapping[str, str]) -> bool:
    """Whether this process runs in a pod."""
    return "KUBERNETES_SERVICE_HOST" in environ


def _package(probe: Probe, environ: Mapping[str, str], trains: bool) -> Finding:
    verdict = PROBLEM if trains else NOTE
    if not probe.package:
        return Finding(
            "package",
            verdict,
            f"{probe.command} can't import rdzv",
            *_why_not_found(probe, environ, probe.package_error),
        )
    if not probe.version:
        cause = f"{probe.package} is on the path, but no {DISTRIBUTION.replace('-', '_')}-*.dist-info is beside it"
        fix = f"{_INSTALL}: the folder rdzv alone has no entry points"
        return Finding("package", verdict, f"rdzv at {probe.package} is not an installed distribution", cause, fix)
    return Finding("package", OK, f"{DISTRIBUTION} {probe.version} at {probe.package}")


def _why_not_found(probe: Probe, environ: Mapping[str, str], error: str) -> tuple[str, str]:
    path = environ.get("PYTHONPATH", "")
    if probe.isolated and path:
        return (
            f"it runs with -I or -E, so PYTHONPATH={path} is ignored",
            f"run torchrun without that flag (python -m torch.distributed.run …), or {_INSTALL} there",
        )
    return error, f"{_INSTALL} into that Python, or put the library's folder on PYTHONPATH"


def _plugin(probe: Probe) -> Finding:
    theirs = [value for value in probe.entry_points if value != _ENTRY_POINT]
    if theirs:
        cause = f"entry point {GROUP}/{BACKEND} is {', '.join(theirs)}: another distribution took the name"
        return Finding("plug-in", PROBLEM, f"backend {BACKEND} is not ours", cause, "uninstall that distribution")
    if probe.registered:
        return Finding("plug-in", OK, f"backend {BACKEND} is registered with torch")
    if probe.plugin_error:
        cause, fix = (
            probe.plugin_error,
            "remove that error: torch reduces it to a warning, and goes on without the backend",
        )
    elif not probe.entry_points:
        cause = f"no installed distribution has entry point {GROUP}/{BACKEND}"
        if probe.package:
            cause += f": the dist-info of {DISTRIBUTION} is not on the path, though rdzv is"
        fix = f"{_INSTALL}, or put on PYTHONPATH the folder that holds both rdzv and its dist-info"
    else:
        cause, fix = f"torch {probe.torch} does not read entry points {GROUP}", "use a newer torch"
    return Finding("plug-in", PROBLEM, f"backend {BACKEND} is not registered with torch", cause, fix)


def _broken_handlers(probe: Probe, environ: Mapping[str, str]) -> list[Finding]:
    """Plug-ins of torch, other than ours, that it could not load: harmful to who was told to use one."""
    meant = environ.get("PET_RDZV_BACKEND")
    fix = "repair or uninstall that distribution: torch reduces this to a warning, and goes on without the backend"
    return [
        Finding("plug-in", PROBLEM if name == meant else NOTE, f"torch could not load backend {name!r}", error, fix)
        for name, error in sorted(probe.broken.items())
    ]


def check_plugins(failed: Mapping[str, str]) -> list[Finding]:
    """Plug-ins of this Python that offer an operator's half and can't be used (`BackendRegistry.failed`)."""
    fix = "repair or uninstall that distribution; rdzv backends lists what each one offers"
    return [
        Finding("plug-in", PROBLEM, f"the operator's half of backend {name!r} is not used", reason, fix)
        for name, reason in sorted(failed.items())
    ]


def check_environment(environ: Mapping[str, str], *, named: bool, library: bool) -> list[Finding]:
    """What torchrun will take from the environment.

    Args:
        environ: the variables.
        named: the user named a Rendezvous: then this process need not have been given one.
        library: the library is mounted at `LIBRARY_PATH`.
    """
    found = [_given(environ, named)]
    found += _contradictions(environ)
    path = environ.get("PYTHONPATH", "")
    if library and LIBRARY_PATH not in [part.rstrip("/") for part in path.split(":")]:
        cause = f"the container's own PYTHONPATH ({path or 'empty'}) replaces the injected one"
        fix = f"set PYTHONPATH={LIBRARY_PATH}:… in the pod's template"
        found.append(Finding("PYTHONPATH", PROBLEM, f"does not lead to {LIBRARY_PATH}", cause, fix))
    else:
        found.append(Finding("PYTHONPATH", OK, path or "not set"))
    return found


def _given(environ: Mapping[str, str], named: bool) -> Finding:
    names = sorted(name for name in environ if name.startswith(("PET_", "RDZV_")))
    if has_no_launcher(environ):
        return _given_directly(environ)
    if "PET_RDZV_BACKEND" not in environ:
        verdict = NOTE if named or not in_pod(environ) else PROBLEM
        others = f"only {', '.join(names)}" if names else "no PET_ or RDZV_ variable is set"
        fix = "in a pod: label it rdzv.dev/rendezvous: NAME when it is created; elsewhere: give torchrun the --rdzv-… flags"
        return Finding("environment", verdict, "this process was given no rendezvous", others, fix)
    try:
        PodEnvironment.parse(environ).handler_config()
    except RendezvousEnvironmentError as error:
        return Finding("environment", PROBLEM, "does not describe a rendezvous", str(error), "set it in the Rendezvous")
    text = " ".join(f"{name}={environ[name]}" for name in names)
    absent = [name for name in ("PET_RDZV_ENDPOINT", "PET_RDZV_ID", "PET_NNODES") if not environ.get(name)]
    if absent:
        cause = f"{', '.join(absent)} not set; there is {text}"
        fix = "don't set PET_RDZV_BACKEND yourself, or set these as well (rdzv env NAME prints them)"
        return Finding("environment", PROBLEM, "describes a rendezvous only in part", cause, fix)
    return Finding("environment", OK, text)


def _given_directly(environ: Mapping[str, str]) -> Finding:
    """Of a pod that runs its training script itself."""
    absent = [name for name in ENV_METHOD if not environ.get(name)]
    if absent:
        text = f'init_process_group("env://") lacks {", ".join(absent)}'
        cause = (
            "a pod's rank is its index, which its controller or the label rdzv.dev/slot gives it before it is created"
        )
        return Finding("environment", PROBLEM, text, cause, "use an Indexed Job or a StatefulSet")
    text = " ".join(f"{name}={environ[name]}" for name in ENV_METHOD)
    return Finding("environment", OK, f'for init_process_group("env://"), without torchrun: {text}')


def _contradictions(environ: Mapping[str, str]) -> list[Finding]:
    """Variables that the user's own ones have replaced, as far as one variable tells of another."""
    pairs = [("PET_NODE_RANK", environ.get("RDZV_SLOT")), ("PET_LOCAL_ADDR", environ.get("RDZV_POD_IP"))]
    if environ.get("PET_RDZV_BACKEND") == BACKEND and environ.get("RDZV_NAME"):
        pairs.append(("PET_RDZV_ENDPOINT", f"{environ.get('RDZV_NAMESPACE', '')}/{environ['RDZV_NAME']}"))
    found = [
        _shadowed(name, environ[name], expected)
        for name, expected in pairs
        if expected and environ.get(name, expected) != expected
    ]
    if environ.get("PET_STANDALONE", "0") not in ("", "0"):
        cause = "torchrun then ignores every other rendezvous setting, and trains alone"
        found.append(Finding("environment", PROBLEM, "PET_STANDALONE is set", cause, "unset PET_STANDALONE"))
    return found


def _shadowed(name: str, value: str, expected: str, verdict: str = PROBLEM) -> Finding:
    cause = "the container's own env or envFrom sets it"
    fix = f"remove {name} from the pod's template"
    return Finding("environment", verdict, f"{name} is {value}, where {expected} is meant", cause, fix)


def check_shadowed(environ: Mapping[str, str], expected: Mapping[str, str]) -> list[Finding]:
    """What differs between this pod's variables and what its Rendezvous says now."""
    found = []
    for name, value in expected.items():
        mine = environ.get(name, value)
        if mine == value:
            continue
        if name == "PET_RDZV_ID":
            cause = "the Rendezvous was deleted and made again since this pod started"
            fix = "delete this pod, so that its controller makes it again"
            found.append(Finding("environment", PROBLEM, f"{name} is {mine}, of another Rendezvous", cause, fix))
        elif name in _IDENTITY:
            found.append(_shadowed(name, mine, value))
        else:
            cause = "the container's own env sets it, or the Rendezvous was changed since this pod started"
            fix = f"none if that is meant; else remove {name} from the pod's template, or delete the pod"
            found.append(Finding("environment", NOTE, f"{name} is {mine}, the Rendezvous says {value}", cause, fix))
    return found


# The API server.


def check_crds(served: Sequence[str], with_store: bool) -> Finding:
    """Whether the API server serves our kinds; `served`: the plurals that it does."""
    wanted = [RENDEZVOUS, ROUNDS, MEMBERS, *([STORES] if with_store else [])]
    missing = [resource for resource in wanted if resource.plural not in served]
    if not missing:
        return Finding("CRDs", OK, f"{RENDEZVOUS.group_version} is served: {', '.join(sorted(served))}")
    return Finding(
        "CRDs",
        PROBLEM,
        f"the API server does not serve {', '.join(map(str, missing))}",
        "these CustomResourceDefinitions are not installed",
        "helm install the chart, or: kubectl apply --server-side -f charts/rendezvous-operator/files/crds/",
    )


def check_schemas(document: Mapping[str, Any], written: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Whether the CRDs have all fields that agents write; `document`: the OpenAPI document of our group."""
    cause = "its CustomResourceDefinition is older than this library, so agents that write it are refused"
    found = [(obj["kind"], lacking(document, obj)) for obj in written]
    return [
        Finding("CRDs", PROBLEM, f"{kind} does not have {', '.join(fields)}", cause, UPGRADE)
        for kind, fields in found
        if fields
    ]


def check_permissions(
    who: str, namespace: str, rules: Sequence[Mapping[str, Any]], denied: Sequence[tuple[str, str]], *, agent: bool
) -> Finding:
    """Whether agents that are `who` may do what the backend needs.

    Args:
        who: user name, as the API server says it.
        namespace: of the Rendezvous.
        rules: what is needed, as rules of a Role.
        denied: what is refused, as (verb, resource); `create` only ever belongs to a rule without names.
        agent: training runs as this user (a pod's service account).
    """
    if not denied:
        return Finding("permissions", OK, f"{who} has all that an agent needs in namespace {namespace}")
    verbs: dict[str, list[str]] = {}
    for verb, resource in denied:
        verbs.setdefault(resource, []).append(verb)
    missing = ", ".join(f"{'/'.join(words)} {resource}" for resource, words in verbs.items())
    text = f"{who} may not {missing} in namespace {namespace}"
    if not agent:
        return Finding(
            "permissions", NOTE, text, "agents run as their pod's service account", "run rdzv doctor in the pod"
        )
    lines = [_yaml(rule) for rule in missing_rules(rules, denied)]
    fix = f"add to a Role in namespace {namespace} that is bound to {who}:\n" + "\n".join(lines)
    return Finding("permissions", PROBLEM, text, "no RBAC rule allows it", fix)


def missing_rules(rules: Sequence[Mapping[str, Any]], denied: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """The rules, cut down to what is denied."""
    cut = [
        {**rule, "verbs": [verb for verb in rule["verbs"] if (verb, f"{rule['resources'][0]}") in denied]}
        for rule in rules
    ]
    return [rule for rule in cut if rule["verbs"]]


def _yaml(rule: Mapping[str, Any]) -> str:
    return f"- {json.dumps(rule).replace(chr(34), '')}"


# The Rendezvous and its world.


def check_rendezvous(snapshot: Snapshot, backend: str) -> list[Finding]:
    """Whether there is one, what its conditions say, and whether the operator has looked at it.

    Args:
        snapshot: what was read.
        backend: that of the Rendezvous, also where only the environment names it; empty when nothing does.
    """
    subject, where = "Rendezvous", f"{snapshot.namespace}/{snapshot.name}"
    if "rendezvous" in snapshot.errors:
        return [_unreadable(where, snapshot.errors["rendezvous"], backend)]
    if snapshot.rendezvous is None and snapshot.round is not None:
        cause = "agents meet without one: nobody tells them who is expected, so torch's own timeouts apply"
        return [Finding(subject, NOTE, f"{where} does not exist", cause, "apply one, if that was not meant")]
    if snapshot.rendezvous is None:
        cause = f"namespace {snapshot.namespace} has no Rendezvous of this name"
        return [
            Finding(subject, PROBLEM, f"{where} does not exist", cause, "apply it, or correct the name or --namespace")
        ]
    status = snapshot.status
    if not status.get("conditions"):
        alone = snapshot.backend == BACKEND
        cause = "no operator has looked at it: it does not run, or does not watch this namespace"
        fix = "start the operator" + (
            "; backend kubernetes works without, if pods get their environment otherwise" if alone else ""
        )
        return [Finding(subject, NOTE if alone else PROBLEM, f"{where} has no status", cause, fix)]
    found = [Finding(subject, OK, f"{where}: backend {snapshot.backend}, endpoint {status.get('endpoint', '-')}")]
    generation = int(snapshot.rendezvous["metadata"].get("generation", 1))
    if int(status.get("observedGeneration", generation)) < generation:
        cause = "the operator has not seen the last change of the spec"
        found.append(
            Finding(subject, NOTE, f"the status of {where} is out of date", cause, "see whether the operator runs")
        )
    return [*found, *(_condition(condition) for condition in unexpected_conditions(snapshot))]


def _unreadable(where: str, error: str, backend: str) -> Finding:
    text, refused = f"{where} can't be read", "403 Forbidden" in error
    if backend not in ("", BACKEND):
        fix = "none: pods of this backend need no access; ask from where you have it: rdzv status"
        return Finding("Rendezvous", NOTE, text, "403 Forbidden" if refused else error, fix)
    if refused:
        return Finding("Rendezvous", PROBLEM, text, "403 Forbidden", "add what permissions lacks")
    return Finding("Rendezvous", PROBLEM, text, error, "see the API server's answer")


def _condition(condition: Mapping[str, Any]) -> Finding:
    text = f"{condition['type']} is {condition['status']}: {condition['reason']}"
    return Finding("condition", NOTE if is_harmless(condition) else PROBLEM, text, str(condition.get("message", "")))


def is_harmless(condition: Mapping[str, Any]) -> bool:
    """Whether a condition that is not as it should be is no fault: a world that forms, or has ended well."""
    passing = {"Forming", "FormingAnew", "PodsMissing", "ClosedSucceeded", "Succeeded"}
    return condition["type"] == "Formed" and condition["reason"] in passing


def check_world(snapshot: Snapshot, backend: str) -> list[Finding]:
    """Who is in the world and who is not; nothing where that can't be seen (`backend` as for `check_rendezvous`)."""
    if backend not in ("", BACKEND) or "403 Forbidden" in snapshot.errors.get("rendezvousrounds", ""):
        return []
    lines = nodes(snapshot)
    text = describe_round(snapshot)
    absent = [line for line in lines if line.state not in ("joined", "succeeded")]
    here = [line for line in lines if line.state == "joined"]
    joined = ", ".join(f"{line.pod} (rank {line.rank})" for line in here)
    cause = "; ".join(_absent(line) for line in absent)
    stray = snapshot.round is not None and snapshot.uid and snapshot.round.run_id != snapshot.uid
    found = [Finding("world", NOTE if absent or not here else OK, text + (f": {joined}" if joined else ""), cause)]
    if stray and snapshot.round is not None:
        cause = f"its run is {snapshot.round.run_id}, the Rendezvous is {snapshot.uid}"
        fix = "the next agents replace it; should they run with --rdzv-id, leave that out: only the UID can join"
        found.append(Finding("world", NOTE, "the round is not of this Rendezvous", cause, fix))
    return found


def describe_round(snapshot: Snapshot) -> str:
    """The round in one line."""
    record = snapshot.round
    if record is None:
        refused = snapshot.errors.get("rendezvousrounds")
        return f"the round can't be read: {refused}" if refused else "no round yet: no agent has joined"
    text = f"round {record.round}, {record.phase}"
    if record.closed is not None:
        return f"{text}: {record.closed.reason}, by {record.closed.by}"
    if record.leader is not None and record.size:
        text += (
            f", {record.size} nodes, led by slot {record.leader.slot} at {record.leader.address}:{record.leader.port}"
        )
    if record.want > record.round:
        text += f"; round {record.want} is wanted: {record.want_reason}"
    return text


def _absent(line: Node) -> str:
    return f"{line.pod} {line.state}" + (f" ({line.reason})" if line.reason else "")
