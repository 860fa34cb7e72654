"""Operator halves that others wrote: loaded, called and checked so that their mistakes stay theirs.

A plug-in may raise anything and return anything, on every pass. What comes of it is one `BackendError` with reason `PluginFailed` and a
text that names the plug-in, of a few hundred characters.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rdzv.backends import Backend, BackendError, Certificate, Condition, Host, Provision, World

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from rdzv.backends import Observer, Provisioner
    from rdzv.observed import Observed
    from rdzv.spec import Rendezvous

PLUGIN_FAILED = "PluginFailed"

#: Characters of what a plug-in's error says that are repeated.
MAX_TEXT = 300
#: Objects that one provision may ask for, and bytes of all it says: a Rendezvous has a handful, and etcd takes 1.5 MiB an object.
MAX_OBJECTS, MAX_BYTES = 64, 1_000_000

#: A condition's `reason`, as the API server wants it.
_REASON = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]{0,98}[A-Za-z0-9_])?")

#: `sys.exit()` while a plug-in is imported must not end the operator either.
ERRORS = (Exception, SystemExit)


class PluginError(Exception):
    """What is wrong with a plug-in, in words."""


def describe(error: BaseException) -> str:
    """An error in one line of bounded length, whatever its text is."""
    if isinstance(error, PluginError):
        return str(error)
    try:
        text = str(error)
    except ERRORS:
        text = "(its text can't be read)"
    words = " ".join("".join(char if char.isprintable() else " " for char in text[: 4 * MAX_TEXT]).split())
    return f"{type(error).__name__}: {words}"[:MAX_TEXT].rstrip(": ")


def origin(entry: EntryPoint) -> str:
    """The distribution that an entry point is of, with its version."""
    dist = entry.dist
    return f"{dist.name} {dist.version}" if dist is not None else entry.value


def load(entry: EntryPoint) -> Backend | Provisioner:
    """Imports an entry point and asks it for its backend, or for the provisioner alone.

    Raises:
        PluginError: it returned neither, or a function that can't be called with one Rendezvous.
        Exception: whatever the plug-in raises.
    """
    factory = entry.load()
    if not callable(factory):
        raise PluginError(f"{entry.value} is no function: an entry point leads to one without arguments")
    _check_arguments(factory, 0, f"{entry.value}, which takes no arguments")
    found = factory()
    if isinstance(found, Backend):
        if found.name != entry.name:
            raise PluginError(f"{entry.value} returned backend {found.name!r} for the name {entry.name!r}")
        for half, count in (("provision", 1), ("create_handler", 1), ("observe", 4)):
            _check_arguments(getattr(found, half), count, half)
        return found
    _check_arguments(found, 1, "provision(rendezvous)")
    provisioner: Provisioner = found
    return provisioner


def _check_arguments(function: Any, count: int, what: str) -> None:
    if not callable(function):
        raise PluginError(f"{what} should be a function, and is of type {type(function).__name__}"[:MAX_TEXT])
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # Some built-in functions have none to show.
    try:
        signature.bind(*[None] * count)
    except TypeError as error:
        raise PluginError(
            f"wrong signature of {what}: it is called with {count} arguments: {error}"[:MAX_TEXT]
        ) from None


def provision(provisioner: Provisioner, source: str, rendezvous: Rendezvous) -> Provision:
    """Calls a plug-in's provisioner and checks what it returns.

    Raises:
        BackendError: the backend refuses the spec, or it failed (reason `PluginFailed`).
    """
    try:
        return _checked(provisioner(rendezvous))
    except BackendError as error:
        if isinstance(error.reason, str) and _REASON.fullmatch(error.reason):
            raise BackendError(error.reason, describe(error).removeprefix(f"{type(error).__name__}: ")) from error
        raise failed(
            rendezvous.backend, source, "provision", PluginError("its BackendError has no usable reason")
        ) from error
    except ERRORS as error:
        raise failed(rendezvous.backend, source, "provision", error) from error


def observe(
    observer: Observer,
    source: str,
    rendezvous: Rendezvous,
    observed: Observed,
    previous: Mapping[str, Any],
    now: float,
) -> World:
    """Calls a plug-in's observer.

    Raises:
        BackendError: it failed.
    """
    try:
        world = observer(rendezvous, observed, previous, now)
        if not isinstance(world, World) or not isinstance(world.formed, Condition):
            raise PluginError(f"it returned {type(world).__name__}, not a World")
        if world.formed.type != "Formed" or world.formed.status not in ("True", "False", "Unknown"):
            raise PluginError("World.formed is no condition Formed with status True, False or Unknown")
        if not _REASON.fullmatch(world.formed.reason):
            raise PluginError("the reason of World.formed is no CamelCase word")
        _check_json(dict(world.status), "World.status")
    except ERRORS as error:
        raise failed(rendezvous.backend, source, "observe", error) from error
    return world


def failed(backend: str, source: str, half: str, error: BaseException) -> BackendError:
    """The refusal that a plug-in's failure comes to."""
    return BackendError(PLUGIN_FAILED, f"backend {backend!r} of plug-in {source}: {half} failed: {describe(error)}")


def _checked(found: Any) -> Provision:
    if not isinstance(found, Provision):
        raise PluginError(f"it returned {type(found).__name__}, not a Provision")
    _check(isinstance(found.endpoint, str), "Provision.endpoint is no text")
    for name, mapping in (("env", found.env), ("config", found.config)):
        _check(isinstance(mapping, Mapping), f"Provision.{name} is no mapping")
        text = all(isinstance(part, str) for pair in mapping.items() for part in pair)
        _check(text, f"Provision.{name} has a key or a value that is no text")
    _check(found.host is None or isinstance(found.host, Host), "Provision.host is no Host")
    _check(found.server is None or isinstance(found.server, str), "Provision.server is no name")
    _check(
        isinstance(found.certificates, Sequence)
        and len(found.certificates) <= MAX_OBJECTS
        and all(_is_certificate(each) for each in found.certificates),
        f"Provision.certificates is no list of at most {MAX_OBJECTS} Certificates of texts",
    )
    for name, items in (("objects", found.objects), ("rules", found.rules)):
        _check(
            isinstance(items, Sequence) and len(items) <= MAX_OBJECTS,
            f"Provision.{name} is no list of at most {MAX_OBJECTS}",
        )
        _check(all(isinstance(item, Mapping) for item in items), f"Provision.{name} has an element that is no mapping")
    for obj in found.objects:
        named = isinstance(obj.get("metadata"), Mapping) and isinstance(obj["metadata"].get("name"), str)
        _check(named and all(isinstance(obj.get(key), str) for key in ("apiVersion", "kind")),
               "Provision.objects has one without apiVersion, kind or metadata.name")  # fmt: skip
    _check_json([found.endpoint, [*found.objects], [*found.rules], dict(found.env), dict(found.config)], "Provision")
    return found


def _is_certificate(found: Any) -> bool:
    if not isinstance(found, Certificate) or not isinstance(found.hosts, Sequence):
        return False
    return all(isinstance(text, str) for text in (found.secret, found.authority, found.prefix, *found.hosts))


def _check_json(value: Any, what: str) -> None:
    size = len(json.dumps(value, allow_nan=False))
    _check(size <= MAX_BYTES, f"{what} is of {size} bytes, more than {MAX_BYTES}")


def _check(right: bool, otherwise: str) -> None:
    if not right:
        raise PluginError(otherwise)
