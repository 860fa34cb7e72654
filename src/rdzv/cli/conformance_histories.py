"""Whether what clients saw of a store at once could have happened one after the other (pure): linearizability of two operations.

Times are of one clock, in seconds. Each change has to lead to a value of its own; then the values say the order.
"""

from __future__ import annotations

from collections.abc import Sequence

Add = tuple[float, float, int]
"""When an `add(key, 1)` began and ended, and what it returned."""
Swap = tuple[float, float, str, str, str]
"""When a `compare_set` began and ended, and what it expected, desired and returned; every desired value is used once."""


def wrong_adds(history: Sequence[Add]) -> str:
    """What is wrong with additions of 1 to a counter that began at 0; empty if nothing is."""
    ordered = sorted(history, key=lambda add: add[2])
    values = [value for _, _, value in ordered]
    if values != list(range(1, len(values) + 1)):
        return f"{len(values)} additions of 1 returned {len(set(values))} different values up to {values[-1]}"
    latest = 0.0
    for began, ended, value in ordered:
        if ended < latest:
            return f"the addition that returned {value} had ended before one that returned less began"
        latest = max(latest, began)
    return ""


def wrong_swaps(history: Sequence[Swap], first: str) -> str:
    """What is wrong with compare-and-sets of one key that held `first`; empty if nothing is."""
    won = [swap for swap in history if swap[4] == swap[3]]
    after = {swap[2]: swap for swap in won}
    if len(after) != len(won):
        return "two of them replaced the same value: an update was lost"
    chain, value = [], first
    while value in after:
        chain.append(after.pop(value))
        value = chain[-1][3]
    if after:
        return f"{min(after)!r} was replaced, though the key never held it"
    return _wrong_order(chain) or next(filter(None, (_wrong_answer(swap, first, chain) for swap in history)), "")


def _wrong_order(chain: Sequence[Swap]) -> str:
    latest = 0.0
    for began, ended, _, desired, _ in chain:
        if ended < latest:
            return f"the one that set {desired!r} had ended before an earlier change began"
        latest = max(latest, began)
    return ""


def _wrong_answer(swap: Swap, first: str, chain: Sequence[Swap]) -> str:
    """What is wrong with what one that did not set was told. `chain`: those that did, in order."""
    began, ended, expected, desired, returned = swap
    held = [first, *(won[3] for won in chain)]
    if returned == desired:
        return ""
    if returned == expected:
        return f"the key held {expected!r}, as expected, and was not set"
    if returned not in held:
        return f"{returned!r} was returned, which the key never held"
    number = held.index(returned)
    if number and chain[number - 1][0] > ended:
        return f"{returned!r} was returned before anybody set it"
    if number < len(chain) and chain[number][1] < began:
        return f"{returned!r} was returned after it had been replaced"
    return ""
