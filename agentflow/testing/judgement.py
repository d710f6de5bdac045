"""What survived a simulation against what the sequential run says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from agentflow.api.memory_codec import decode_value
from agentflow.core.delta import Table
from agentflow.state.memory import MemoryStorage
from agentflow.testing.oracle import Expected
from agentflow.testing.paid_service import LUCK_PATH
from agentflow.testing.program import FIRED, Op


class Outcome(msgspec.Struct, frozen=True):
    """What survived.

    Attributes:
        storage: Keyed state.
        outputs: Visible outputs by role of the sink, in publish order.
    """

    storage: MemoryStorage
    outputs: Mapping[str, list[bytes]]


def judge(outcome: Outcome, expected: Expected) -> list[str]:
    """Return every difference, one text each."""
    outputs = [msgspec.json.decode(value) for value in outcome.outputs["sink"]]
    told = [output for output in outputs if "timer" in output]
    fired = [str(output["timer"]) for output in told]
    return [
        *_judge_outputs([output for output in outputs if "timer" not in output], expected),
        *_judge_timers(fired, outcome.storage, expected),
        *_judge_watermarks(told, expected),
        *_judge_memory(outcome.storage, fired, expected),
        *_judge_dead_letters(outcome.outputs["dead-letter"], expected),
        *_judge_rest(outcome.storage),
    ]


def _by_key(outputs: Iterable[dict[str, Any]]) -> dict[bytes, list[dict[str, Any]]]:
    found: dict[bytes, list[dict[str, Any]]] = {}
    for output in outputs:
        found.setdefault(msgspec.json.encode(output["k"]), []).append(output)
    return found


def _judge_outputs(outputs: list[dict[str, Any]], expected: Expected) -> list[str]:
    found, wanted = _by_key(outputs), _by_key(expected.outputs)
    return [
        f"outputs of key {key.decode()}: {found.get(key)} instead of {wanted.get(key)}"
        for key in sorted(found | wanted)
        if found.get(key) != wanted.get(key)
    ]


def _judge_timers(fired: list[str], storage: MemoryStorage, expected: Expected) -> list[str]:
    """Every timer fires once, or is still set: clock timers, and event timers set behind the last watermark.

    A run that waited for a retry lets watermarks pass; when the last one has passed, nothing makes its timers due before the
    job runs again. No other event timer may be left.
    """
    still_set = [name for rows in storage.table(Table.TIMERS).values() for name in rows]
    found = Counter([*fired, *still_set])
    wanted = Counter([*(name for name, _ in expected.clock_timers), *(timer.name for timer in expected.event_timers)])
    violations = [] if found == wanted else [f"timers fired or set: {found} instead of {wanted}"]
    late = {timer.name for timer in expected.event_timers if timer.key in expected.troubled}
    left = [name for name in still_set if name.startswith(Op.EVENT_TIMER.value) and name not in late]
    return [*violations, f"event timers that never fired: {left}"] if left else violations


def _judge_watermarks(told: list[dict[str, Any]], expected: Expected) -> list[str]:
    """An event timer that fires before an input up to its time has come was fired by a watermark that came too early.

    Keys of which a run waited for a retry are left out: such a run holds no watermark.
    """
    wanted = {timer.name: timer.inputs_before for timer in expected.event_timers if timer.key not in expected.troubled}
    return [
        f"watermark too early: {output['timer']} fired behind {output['before']} inputs instead of {wanted[output['timer']]}"
        for output in told
        if output["before"] != wanted.get(output["timer"], output["before"])
    ]


def _judge_memory(storage: MemoryStorage, fired: list[str], expected: Expected) -> list[str]:
    wanted = {slot: dict(values) for slot, values in expected.memory.items()}
    last = max((operator for operator, _ in wanted), default=0)
    for name, key in [*expected.clock_timers, *((timer.name, timer.key) for timer in expected.event_timers)]:
        if name in fired:
            values = wanted.setdefault((last, key), {})
            values[FIRED] = values.get(FIRED, 0) + 1
    wanted = {slot: _known(values, expected.perhaps) for slot, values in wanted.items()}
    found = {
        slot: _known({path: decode_value(value) for path, value in rows.items()}, expected.perhaps)
        for slot, rows in storage.table(Table.MEMORY).items()
    }
    found, wanted = ({slot: values for slot, values in every.items() if values} for every in (found, wanted))
    return [
        f"memory of key {msgspec.msgpack.decode(slot[1])!r} of operator {slot[0]}: {found.get(slot)} "
        f"instead of {wanted.get(slot)}"
        for slot in sorted(found | wanted)
        if found.get(slot) != wanted.get(slot)
    ]


def _known(values: dict[str, Any], perhaps: set[str]) -> dict[str, Any]:
    """Leave out what was drawn, and what may be there or not."""
    return {path: value for path, value in values.items() if path != LUCK_PATH and path not in perhaps}


def _judge_dead_letters(letters: list[bytes], expected: Expected) -> list[str]:
    documents = [msgspec.json.decode(letter) for letter in letters]
    found = Counter((d["source-position"], d.get("task", ""), d["error-type"]) for d in documents)
    wanted = Counter(expected.dead)
    return [] if found == wanted else [f"dead letters: {found} instead of {wanted}"]


def _judge_rest(storage: MemoryStorage) -> list[str]:
    violations = []
    if runs := [name for rows in storage.table(Table.RUNS).values() for name in rows]:
        violations.append(f"unfinished runs: {runs}")
    if steps := [name for rows in storage.table(Table.STEPS).values() for name in rows]:
        violations.append(f"records of steps of ended runs: {steps}")
    if storage.prepared is not None:
        violations.append(f"checkpoint {storage.prepared.checkpoint} is decided and not completed")
    return violations
