"""Who owns which subtask: partitions of the same number of all topics go together, and stay where their state is.

Each member says in its join request which subtasks it holds. The leader gives every member at most its fair share, first of
what it holds, and then the rest in order. So a blip of one worker moves nothing that need not move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata

ASSIGNOR_NAME = "agentflow-sticky"
_VERSION = 0


def assign_subtasks(held: Mapping[str, Iterable[int]], subtasks: Iterable[int]) -> dict[str, list[int]]:
    """Spread subtasks over members; nobody has two more than another.

    Args:
        held: Member → the subtasks whose state it holds.
        subtasks: All subtasks.
    """
    members = sorted(held)
    free = sorted(subtasks)
    least, more = divmod(len(free), len(members))
    assigned: dict[str, list[int]] = {member: [] for member in members}
    # The members that hold most get the larger shares, so that as little as possible moves.
    by_holding = sorted(members, key=lambda member: (-len(set(held[member])), member))
    shares = {member: least + (place < more) for place, member in enumerate(by_holding)}
    for member in by_holding:
        for subtask in sorted(set(held[member]))[: shares[member]]:
            if subtask in free:
                free.remove(subtask)
                assigned[member].append(subtask)
    for member in by_holding:
        while free and len(assigned[member]) < shares[member]:
            assigned[member].append(free.pop(0))
    return {member: sorted(own) for member, own in assigned.items()}


def subtask_assignor(held: Callable[[], list[int]]) -> type[AbstractPartitionAssignor]:
    """Return an assignor class (aiokafka wants a class) for a worker that holds what ``held`` says."""

    class SubtaskAssignor(AbstractPartitionAssignor):  # type: ignore[misc]
        name = ASSIGNOR_NAME

        @classmethod
        def assign(cls, cluster: Any, members: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ANN401 (aiokafka's types)
            topics = sorted({topic for metadata in members.values() for topic in metadata.subscription})
            partitions = {topic: cluster.partitions_for_topic(topic) or set() for topic in topics}
            subtasks = {number for numbers in partitions.values() for number in numbers}
            holding = {member: _decode_held(metadata.user_data) for member, metadata in members.items()}
            return {
                member: ConsumerProtocolMemberAssignment(
                    _VERSION,
                    [(topic, [number for number in own if number in partitions[topic]]) for topic in topics],
                    b"",
                )
                for member, own in assign_subtasks(holding, subtasks).items()
            }

        @classmethod
        def metadata(cls, topics: Iterable[str]) -> Any:  # noqa: ANN401 (aiokafka's types)
            return ConsumerProtocolMemberMetadata(_VERSION, list(topics), msgspec.json.encode(held()))

        @classmethod
        def on_assignment(cls, assignment: Any) -> None:  # noqa: ANN401 (aiokafka's types)
            """Nothing to remember: the worker knows what it holds."""

    return SubtaskAssignor


def _decode_held(user_data: bytes) -> list[int]:
    try:
        return msgspec.json.decode(user_data, type=list[int])
    except msgspec.DecodeError:
        return []
