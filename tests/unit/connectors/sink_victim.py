"""A process that writes epochs to a directory without end, for the test that kills it. Started by the tests beside it.

sink_victim.py KIND DIRECTORY LEDGER

``LEDGER`` stands for keyed state: the decided checkpoint with its staged names, then the completed one, each written
beside and renamed over, so that a kill leaves the old or the new one. Every checkpoint writes lines whose numbers go on
where the last decided checkpoint ended, each with its own checksum. It says ``ready`` when it is recovered.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import zlib
from pathlib import Path

import msgspec

from agentflow.runtime.ports import Staged
from agentflow.testing.conformance.sink import output
from tests.unit.connectors.part_kinds import KINDS

LARGE_LINES = 3_000  # about 6 MiB: such an epoch is written in several pieces, and a copy of it takes time


class Ledger(msgspec.Struct):
    """What keyed state knows: the last decided checkpoint, the number behind its last line, its staged names."""

    checkpoint: int = 0
    next_number: int = 0
    staged: Staged = Staged()
    is_complete: bool = True


def load(path):
    return msgspec.json.decode(path.read_bytes(), type=Ledger) if path.exists() else Ledger()


def store(path, ledger):
    beside = path.with_suffix(".new")
    beside.write_bytes(msgspec.json.encode(ledger))
    beside.replace(path)


def line(number, padding):
    text = f"{number}:{'x' * padding}"
    return msgspec.json.encode({"number": number, "text": text, "crc": zlib.crc32(text.encode())})


async def recover(sink, path):
    """Roll a decided checkpoint forward, as the engine does."""
    ledger = load(path)
    await sink.open(None if ledger.is_complete else (ledger.checkpoint, ledger.staged))
    if not ledger.is_complete:
        await sink.publish(ledger.checkpoint, ledger.staged)
        ledger.is_complete = True
        store(path, ledger)
    return ledger


async def write_on(sink, path):
    ledger = await recover(sink, path)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    numbers = itertools.count(ledger.next_number)
    while True:
        checkpoint = ledger.checkpoint + 1
        count, padding = (LARGE_LINES, 2_000) if checkpoint % 4 == 0 else (checkpoint % 3, 40)
        for number in itertools.islice(numbers, count):
            sink.write(output(line(number, padding)))
        sink.barrier(checkpoint)
        behind = next(numbers)
        is_early = checkpoint % 2 == 0  # a line of the next epoch comes before this one is staged
        if is_early:
            sink.write(output(line(behind, 40)))
        staged = await sink.stage(checkpoint)
        ledger = Ledger(checkpoint, behind, staged, is_complete=False)
        store(path, ledger)
        await sink.publish(checkpoint, staged)
        ledger.is_complete = True
        store(path, ledger)
        if not is_early:
            sink.write(output(line(behind, 40)))


if __name__ == "__main__":
    asyncio.run(write_on(KINDS[sys.argv[1]].new_sink(sys.argv[2]), Path(sys.argv[3])))
