"""What `operator/main.py` decides by itself."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterable
from types import ModuleType

import click
import kopf
import pytest
from support.operator_process import ROOT


@pytest.fixture(scope="module")
def main() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rdzv_operator_main", ROOT / "operator/main.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def served(main: ModuleType, *given: str) -> list[str | None]:
    with click.Context(click.Command("run")) as context:
        context.params["namespaces"] = given
        found: list[str | None] = main.namespaces()
        return found


def test_only_the_namespaces_that_kopf_was_told_are_read(main: ModuleType) -> None:
    assert served(main) == [None]
    assert main.namespaces() == [None], "not started by kopf's command line"
    assert served(main, "team-a", "team-b", "team-a") == ["team-a", "team-b"]


@pytest.mark.parametrize("pattern", ["team-*", "!team-a", "a,b", "team-?"])
def test_patterns_of_namespaces_are_refused_by_name(main: ModuleType, pattern: str) -> None:
    with pytest.raises(ValueError, match="patterns are not supported"):
        served(main, pattern)


def test_kopf_never_gives_up_and_its_pauses_are_short(main: ModuleType) -> None:
    settings = kopf.OperatorSettings()
    main.configure(settings)
    backoffs = settings.networking.error_backoffs
    assert isinstance(backoffs, Iterable)
    for _ in range(2):
        pauses = list(itertools.islice(iter(backoffs), 1000))
        assert len(pauses) == 1000
        assert max(pauses) <= 5
    assert settings.process.ultimate_exiting_timeout == main.EXIT


def test_a_silent_watch_of_kopfs_is_given_up_soon_after_it_should_have_ended(main: ModuleType) -> None:
    settings = kopf.OperatorSettings()
    main.configure(settings)
    watching = settings.watching
    assert isinstance(watching.server_timeout, int), "the API server refuses 10.0"
    assert watching.client_timeout is not None
    assert watching.server_timeout < watching.client_timeout <= 15
    # tests/contract/test_operator_watches.py has what becomes of kopf when both run out.
    assert watching.inactivity_timeout == main.NEVER
