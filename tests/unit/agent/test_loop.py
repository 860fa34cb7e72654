"""The agent's loop: what it runs, in which order, and what can't end it."""

from __future__ import annotations

import logging
import selectors
import socket
import threading
from collections.abc import Iterator

import pytest
from support.clocked_loop import Clock, clocked

from rdzv.agent.loop import Loop


@pytest.fixture
def clock() -> Iterator[Clock]:
    with clocked() as found:
        yield found


def test_timers_run_when_they_are_due_in_the_order_of_their_times(clock: Clock) -> None:
    loop, ran = clock.loop(), list[str]()
    loop.at("late", clock.now + 2, lambda: ran.append("late"))
    loop.at("early", clock.now + 1, lambda: ran.append("early"))
    clock.settle()
    assert ran == []
    clock.now += 5
    loop.turn(0)
    assert ran == ["early", "late"]
    clock.run(5)
    assert ran == ["early", "late"]


def test_a_timer_is_replaced_or_removed_by_its_name(clock: Clock) -> None:
    loop, ran = clock.loop(), list[str]()
    loop.at("a", clock.now + 1, lambda: ran.append("first"))
    loop.at("a", clock.now + 2, lambda: ran.append("second"))
    loop.at("b", clock.now + 1, lambda: ran.append("b"))
    loop.at("b", None, lambda: ran.append("b"))
    clock.run(3)
    assert ran == ["second"]


def test_a_callback_that_fails_is_logged_and_ends_nothing(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    loop, ran = clock.loop(), list[str]()

    def fail() -> None:
        raise RuntimeError("by mistake")

    loop.call(fail)
    loop.call(lambda: ran.append("after it"))
    with caplog.at_level(logging.ERROR):
        clock.settle()
    assert ran == ["after it"]
    assert "by mistake" in caplog.text


def test_a_socket_that_was_forgotten_in_this_turn_is_not_called_also_when_its_number_is_used_again(
    clock: Clock,
) -> None:
    loop, ran = clock.loop(), list[str]()
    readers, writers = zip(*(clock.pair() for _ in range(2)), strict=True)
    successors: list[socket.socket] = []

    def forget_the_other(mine: int) -> None:
        ran.append(f"pipe {mine}")
        other = readers[1 - mine]
        number = other.fileno()
        loop.forget(other)
        successors.extend(clock.pair())
        assert number in [sock.fileno() for sock in successors]
        for sock in successors:
            loop.watch(sock, selectors.EVENT_READ, lambda: ran.append("a successor, which got nothing"))
        readers[mine].recv(1)

    for index, (reader, writer) in enumerate(zip(readers, writers, strict=True)):
        loop.watch(reader, selectors.EVENT_READ, lambda index=index: forget_the_other(index))  # type: ignore[misc]
        writer.send(b"x")
    loop.turn(0)
    assert len(ran) == 1
    assert ran[0].startswith("pipe")


def test_a_call_from_another_thread_wakes_the_loop() -> None:
    loop, called = Loop("rdzv-test"), threading.Event()
    loop.start()
    loop.call(called.set)
    assert called.wait(20)
    timed = threading.Event()
    loop.at("soon", loop.clock() + 0.01, timed.set)
    assert timed.wait(20)
    loop.stop()


def test_stop_closes_what_is_watched_or_paused_and_not_what_was_released(clock: Clock) -> None:
    loop, (watched, paused, released) = clock.loop(), [clock.pair()[0] for _ in range(3)]
    for sock in (watched, paused, released):
        loop.watch(sock, selectors.EVENT_READ, lambda: None)
    loop.pause(paused)
    loop.release(released)
    loop.stop()
    assert (watched.fileno(), paused.fileno()) == (-1, -1)
    assert released.fileno() != -1


def test_a_paused_socket_is_left_alone_until_it_is_watched_again(clock: Clock) -> None:
    loop, ran, (reader, writer) = clock.loop(), list[str](), clock.pair()
    loop.watch(reader, selectors.EVENT_READ, lambda: ran.append("before"))
    loop.pause(reader)
    writer.send(b"x")
    loop.turn(0)
    assert ran == []
    loop.watch(reader, selectors.EVENT_READ, lambda: ran.append("after"))
    loop.turn(0)
    assert ran == ["after"]
