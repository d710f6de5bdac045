"""A process that writes an event log without end, for the test that kills it: event_log_victim.py DIRECTORY FIRST

It says each number that the system has, in a line of its own.
"""

from __future__ import annotations

import sys
import time

from agentflow.observability.event_log_buffer import BufferedTarget, Chunk
from agentflow.observability.event_log_files import LogFiles
from agentflow.runtime.settings import EventLogSettings, RetentionSettings, RotationSettings
from agentflow.testing.conformance.record_target import record

IN_CHUNK = 50


def write_on(directory: str, first: int) -> None:
    settings = EventLogSettings(
        dir=directory, rotation=RotationSettings(size_bytes=2**20), retention=RetentionSettings(files=None)
    )
    target = BufferedTarget(LogFiles("job", settings), 2**24, 0.002, lambda what, fields: None)
    number, said = first, 0
    while True:
        lines = [record(one) for one in range(number, number + IN_CHUNK)]
        target.add(Chunk(0, lines, [], IN_CHUNK))
        number += IN_CHUNK
        if target.counts.written > said:
            said = target.counts.written
            sys.stdout.write(f"{first + said - 1}\n")
            sys.stdout.flush()
        if number - first - said > 20_000:
            time.sleep(0.001)  # let the target catch up: dropping is not what is tested


if __name__ == "__main__":
    write_on(sys.argv[1], int(sys.argv[2]))
