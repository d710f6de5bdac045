"""A process that owns a state directory and comes to a bad end. Started by the tests beside it.

victim.py kill PATH prepare|complete TURNS   kills itself with SIGKILL after TURNS turns of the loop in that phase
victim.py hold PATH                          opens the state, says so, and keeps it until its input ends
victim.py limit PATH BYTES                   prepares 4 MiB under a file size limit, prints the error's name
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
import sys

from agentflow.core.delta import Table
from agentflow.errors import StateError
from agentflow.state.rocksdb import RocksDBKeyedState
from agentflow.testing.conformance.keyed_state import NEW, OLD, STAGED, checkpoint


def open_state(path):
    return RocksDBKeyedState.open(path, job="unit", free_min_bytes=0)


async def kill(path, phase, turns):
    state = open_state(path)
    await checkpoint(state, 1, *OLD)
    if phase == "complete":
        await state.prepare(2, iter(NEW), STAGED)
    work = state.complete() if phase == "complete" else state.prepare(2, iter(NEW), STAGED)

    async def die():
        for _ in range(turns):
            await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGKILL)

    await asyncio.gather(work, die())


async def limit(path, size):
    state = open_state(path)
    await checkpoint(state, 1, *OLD)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    noise = random.Random(1)
    delta = [[(Table.MEMORY, 0, b"%d" % number, "p", noise.randbytes(100_000))] for number in range(40)]
    try:
        await state.prepare(2, iter(delta), {})
    except StateError as error:
        sys.stdout.write(f"{type(error).__name__} {error}\n")
    state.close()


match sys.argv[1:]:
    case ["kill", path, phase, turns]:
        asyncio.run(kill(path, phase, int(turns)))
    case ["hold", path]:
        with contextlib.closing(open_state(path)):
            sys.stdout.write("open\n")
            sys.stdout.flush()
            sys.stdin.read()
    case ["limit", path, size]:
        asyncio.run(limit(path, int(size)))
