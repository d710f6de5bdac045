"""What a changelog says of how its job spreads keys over subtasks, without reading it whole.

The checkpoint record of each partition names the rule. It is the last record of a transaction; behind it are marks of commits, markers
of owners, and what was aborted. So each partition is read backwards, window by window, until there is one.

Checkpoints of older versions do not name it. Then the rows tell: a row of a key lies in the partition that the rule gives its key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from agentflow.errors import StateUnavailable
from agentflow.state.changelog_records import CHECKPOINT_KEY, read_checkpoint, row_key
from agentflow.state.kafka_changelog import ends_of

_WINDOW, _WINDOW_GROWTH = 16, 16  # offsets
_ROWS_WINDOW_MAX = 4_096  # rows are looked for no further
_WAIT_MS = 10  # behind the last record there is the mark of its commit, which getmany does not return for

_Span = tuple[int, int]
"""First offset, and the one behind the last."""


class StoredPlacement(msgspec.Struct, frozen=True):
    """What was found.

    Attributes:
        partitioners: Each name that a last checkpoint says.
        rows: Where none says one: rows, as (partition, offset, encoded key).
    """

    partitioners: tuple[str, ...] = ()
    rows: tuple[tuple[int, int, bytes], ...] = ()


async def read_placement(
    topic: str, count: int, client: Mapping[str, Any], new_consumer: Callable[..., Any]
) -> StoredPlacement:
    """Look at the ends of a changelog.

    Args:
        topic: The changelog topic, which exists.
        count: Number of its partitions.
        client: Arguments of aiokafka clients.
        new_consumer: Makes the client.

    Raises:
        StateUnavailable: It cannot be read now.
        StateVersionTooNew: A newer agentflow wrote it.
    """
    reader = new_consumer(
        **client, enable_auto_commit=False, auto_offset_reset="earliest", isolation_level="read_committed"
    )
    try:
        await reader.start()
        partitions = [TopicPartition(topic, number) for number in range(count)]
        reader.assign(partitions)
        return await _look(reader, await ends_of(reader, partitions))
    except KafkaError as error:
        raise StateUnavailable(
            f"the changelog cannot be read: {error!r}",
            where={"topic": topic},
            expected="brokers that answer",
            fix="look at the brokers and the rights of this client, then try again",
        ) from error
    finally:
        await reader.stop()


async def _look(reader: Any, left: dict[TopicPartition, _Span]) -> StoredPlacement:  # noqa: ANN401 (aiokafka has no types)
    """Read backwards until each partition has said something, or one names a rule."""
    last: dict[TopicPartition, str] = {}
    rows: list[tuple[int, int, bytes]] = []
    window = _WINDOW
    while left and not any(last.values()):
        spans = {one: (max(begin, end - window), end) for one, (begin, end) in left.items() if end > begin}
        named: dict[TopicPartition, str] = {}
        for one, record in await _records(reader, spans):
            if record.key == CHECKPOINT_KEY and record.value is not None:
                named[one] = read_checkpoint(record.value).partitioner
            elif key := row_key(record.key):
                rows.append((one.partition, record.offset, key))
        last = named | last  # what is further behind is newer
        wants_rows = not rows and window < _ROWS_WINDOW_MAX
        left = {one: (left[one][0], start) for one, (start, _) in spans.items() if one not in last or wants_rows}
        window *= _WINDOW_GROWTH
    names = tuple(sorted({name for name in last.values() if name}))
    return StoredPlacement(names, () if names else tuple(rows))


async def _records(reader: Any, spans: Mapping[TopicPartition, _Span]) -> list[tuple[TopicPartition, Any]]:  # noqa: ANN401
    for one, (start, _) in spans.items():
        reader.seek(one, start)
    found: list[tuple[TopicPartition, Any]] = []
    unread = list(spans)
    while unread:
        for one, records in (await reader.getmany(*unread, timeout_ms=_WAIT_MS)).items():
            found += [(one, record) for record in records if record.offset < spans[one][1]]
        unread = [one for one in unread if await reader.position(one) < spans[one][1]]
    return found
