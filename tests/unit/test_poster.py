from __future__ import annotations

from support.builders import pod, pod_object, rendezvous

from rdzv.control.events import OWN_EVENTS, EventToPost, events_for, events_without_rendezvous
from rdzv.control.plan import Plan
from rdzv.control.poster import BURST, LATER, RATE, EventPoster
from rdzv.control.remembered import Remembered

NOW = 1795428000.0


class Events:
    """Takes Events, as the API server does, or refuses them."""

    def __init__(self) -> None:
        self.written: list[EventToPost] = []
        self.refuses = False

    def write(self, event: EventToPost, _now: str) -> bool:
        if not self.refuses:
            self.written.append(event)
        return not self.refuses


def event(number: int) -> EventToPost:
    return EventToPost("v1", "Pod", f"pod-{number}", f"uid-{number}", "team", "Warning", "SettingsShadowed", "text")


def test_an_event_is_written_once() -> None:
    events = Events()
    poster = EventPoster(events.write)
    assert [poster.post([event(1), event(2)], NOW + second) for second in range(3)] == [None] * 3
    assert events.written == [event(1), event(2)]


def test_what_was_refused_is_tried_again_later() -> None:
    events = Events()
    events.refuses = True
    poster = EventPoster(events.write)
    assert poster.post([event(1)], NOW) == LATER
    events.refuses = False
    assert poster.post([event(1)], NOW + LATER) is None
    assert events.written == [event(1)]


def test_too_many_are_spread_over_time_and_none_is_lost() -> None:
    events, wanted = Events(), [event(number) for number in range(int(BURST) * 3)]
    poster = EventPoster(events.write)
    now, later = NOW, poster.post(wanted, NOW)
    assert len(events.written) == BURST
    while later is not None:
        now += later
        later = poster.post(wanted, now)
    assert events.written == wanted
    assert len(wanted) - BURST <= (now - NOW) * RATE


def test_what_is_remembered_is_bounded_and_what_was_asked_for_last_stays() -> None:
    memory = Remembered(limit=3)
    memory.update("abc")
    assert "a" in memory
    memory.update("de")
    assert [item for item in "abcde" if item in memory] == ["a", "d", "e"]


def test_two_thousand_pods_of_a_missing_rendezvous_are_a_few_events_however_they_come() -> None:
    waiting = [pod(pod_object(f"pod-{number:04}")) for number in range(2000)]
    said = {
        event.digest: event
        for count in range(2001)
        for event in events_without_rendezvous("team", "mnsit", waiting[:count])
    }
    assert len(said) == OWN_EVENTS + 4
    assert [each.name for each in said.values()] == ["pod-0000", "pod-0001", "pod-0002", *["mnsit"] * 4]
    assert "more than 1000 pods wait for Rendezvous mnsit" in list(said.values())[-1].message


def test_two_thousand_pods_that_carry_a_flag_are_a_few_events() -> None:
    pods = [pod(pod_object(f"pod-{number:04}", phase="Running")) for number in range(2000)]
    shadowed = {each.name: ["--nnodes in container train"] for each in pods}
    found = events_for(rendezvous(), Plan(), [], pods, shadowed)
    assert [(each.kind, each.name) for each in found] == [
        *(("Pod", f"pod-000{number}") for number in range(OWN_EVENTS)),
        ("Rendezvous", "mnist"),
    ]
    assert "in more than 1000 pods, pod-0000 among them: --nnodes in container train" in found[-1].message
