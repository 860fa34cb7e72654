"""Properties that hold at every write and in every accepted world: whatever breaks one raises `Violation`."""

from __future__ import annotations

from unit.protocol.sim_base import Base
from unit.protocol.sim_parts import STEADY, CoordinatorSide, Counted, Process, Violation, place_of

from rdzv.protocol import events as ev
from rdzv.protocol.fields import replace
from rdzv.protocol.member_state import Standing
from rdzv.protocol.records import CLOSED, LIVE, RUNNING, Round


def check_round(sim: Base, record: Round, counted: Counted) -> None:
    if sim.round is not None and sim.round[0].run_id == record.run_id and record.round < sim.round[0].round:
        raise Violation(f"round number goes back from {sim.round[0].round} to {record.round}")
    if record.phase == CLOSED:
        check_closed(sim, record)
        sim.closed.add((record.run_id, record.round))
    if record.phase != RUNNING:
        return
    key = (record.run_id, record.round)
    known = sim.committed.get(key)
    world = (record.slots, record.fingerprints, record.leader)
    if known is not None and (known.slots, known.fingerprints, known.leader) == world:
        return
    # Where nobody is left who knew (every process and every object gone), numbers may begin again.
    witnesses = [p for p in sim.processes() if p.me.run_id == record.run_id and not p.pod.gone]
    latest = max((p.state.known.highest_seen for p in witnesses), default=0)
    if record.round <= latest:
        raise Violation(f"round {record.round} is formed after round {latest}: {known} and {record}")
    if record.leader is None or not sim.scenario.least_ever <= record.size <= sim.scenario.most_ever:
        raise Violation(f"a world of {record.size}")
    strangers = [who for who, (m, _) in counted.items() if m.run_id != record.run_id or m.round_uid != record.uid]
    if strangers:
        raise Violation(f"round {record.round} counts {strangers}, which did not ask this Round")
    endpoint = (record.leader.address, record.leader.port)
    if endpoint in sim.leaders:
        raise Violation(f"rounds {sim.leaders[endpoint]} and {key} share the store {endpoint}")
    sim.leaders[endpoint] = key
    sim.committed[key], sim.counted[key], sim.accepted[key] = record, counted, {}


def check_order(sim: Base, before: Round | None, record: Round, counted: Counted) -> None:
    """Where ranks are to follow sites: who stays keeps its order, whatever was told; of a new world it is as told."""
    sites = sim.roster.sites if sim.roster is not None and sim.roster.run_id == record.run_id else None
    fixed = any(each.index is not None for each, _ in counted.values())
    if sites is None or fixed or record.phase != RUNNING or before is None or before.round == record.round:
        return
    ranked = sorted(counted, key=lambda who: record.rank_of(who) or 0)
    stay = [who for who in ranked if before.phase == RUNNING and before.rank_of(who) is not None]
    if stay != sorted(stay, key=lambda who: before.rank_of(who) or 0):
        raise Violation(f"who stays in round {record.round} is moved: {stay}")
    told = {uid: position for position, site in enumerate(sites) for uid in site.pods}
    places = [
        (told.get(each.pod_uid, len(sites)), place_of(each.claim) if each.claim else -1)
        for each in (counted[who][0] for who in ranked)
    ]
    if not stay and places != sorted(places):
        raise Violation(f"ranks in round {record.round} do not follow the sites: {places}")


def check_closed(sim: Base, record: Round) -> None:
    done = {m.incarnation for _, _, m in sim.member_log if m is not None and m.state == "succeeded"}
    world = sim.counted.get((record.run_id, record.round), {})
    if not set(world) <= done:
        raise Violation(f"closed although {sorted(set(world) - done)} did not succeed")


def check_accept(sim: Base, process: Process, world: ev.Accept) -> None:
    run, me = process.me.run_id, process.me.incarnation
    key = (run, world.round)
    if process.state.standing is Standing.LEAVING:
        raise Violation(f"{me} is leaving and accepts round {world.round}")
    if key not in sim.committed:
        raise Violation(f"{me} accepts a world that was never written: {key}")
    if process.world is not None and world.round <= process.world.round:
        raise Violation(f"{me} goes from round {process.world.round} to {world.round}")
    mine = sim.counted[key].get(me)
    if mine is None:
        raise Violation(f"{me} accepts round {world.round}, which did not count it")
    if world.rank == 0 and world.leader.port != process.store:
        raise Violation(f"{me} is to lead round {world.round} with a store that it has closed")
    request, rv = mine
    acked, acked_rv = process.state.own.acked, process.state.own.acked_rv or 0
    # A late write of the same agent may have followed the one that it knows of: then only its port differs.
    port = request.port if rv <= acked_rv or acked is None else acked.port
    if rv < acked_rv or replace(request, first_rv=0, port=port) != acked:
        raise Violation(f"{me} accepts round {world.round}, which counted {mine}, not {acked} at {acked_rv}")
    others = sim.accepted[key]
    others[me] = world
    ranks = [other.rank for other in others.values()]
    record = sim.committed[key]
    if len(set(ranks)) != len(ranks) or not all(0 <= rank < record.size for rank in ranks):
        raise Violation(f"ranks in round {world.round}: { {who: a.rank for who, a in others.items()} }")
    if world.leader != record.leader or world.size != record.size or record.slots[world.rank] != world.slot:
        raise Violation(f"{me} sees another world of number {world.round}: {world} instead of {record}")


def check_gives_way(sim: Base, process: Process, message: str) -> None:
    """Nobody is evicted from its slot by an agent that came before it, unless it was taken for dead."""
    world = sim.counted.get((process.me.run_id, process.state.accepted), {})
    if "held by another pod" not in message or process.pod.gone or process.me.incarnation not in world:
        return
    if process.me.incarnation in sim.taken_for_dead:
        return
    if process.state.own.first_rv < sim.first_write[process.me.incarnation]:
        return  # What became of its first write it does not know, so it says that it is older than it is.
    pods = {pod.uid: pod for pod in sim.pods}
    latest = max((key for key in sim.committed if key[0] == process.me.run_id), key=lambda key: key[1])
    for who in sim.counted[latest]:
        rival = pods[who.partition("/")[0]]
        if rival.slot == process.pod.slot and sim.first_write[who] < sim.first_write[process.me.incarnation]:
            raise Violation(f"{process.me.incarnation} gives way to {who}, which came before it: {message}")


def check_evicts(sim: Base, process: Process, side: CoordinatorSide, record: Round, counted: Counted) -> None:
    """Nobody in the world who lives, is connected and answers gives way to another agent with its slot."""
    before = process.round[0]
    if before is None or before.phase != RUNNING or record.phase != RUNNING or record.round == before.round:
        return
    claimed = {place_of(member.claim): who for who, (member, _) in counted.items() if member.claim is not None}
    for peer in sim.processes():
        who, pod = peer.me.incarnation, peer.pod
        said = side.members.get(pod.name)
        barred = side.state.barred.get(who)
        if (
            pod.slot is None
            or pod.old
            or before.rank_of(who) is None
            or claimed.get(pod.slot, who) == who
            or who not in side.connected
        ):
            continue
        if said is None or said[0].incarnation != who or said[0].state != LIVE or (barred and not barred.over):
            continue
        if not sim.open_to(peer, side):
            continue  # Its answer does not arrive.
        if not (pod.gone or pod.draining or pod.exited) and sim.now > peer.steady_since + STEADY:
            raise Violation(f"{who} lives and is connected, and gives way to {claimed[pod.slot]}")
