"""Five steps per workflow on DBOS over SQLite: `dbos_steps.py DIRECTORY rate|step WORKFLOWS default|wal`.

Its system database is SQLite with the library's own settings; ``wal`` switches the file to write-ahead logging before.
"""

import asyncio
import itertools
import json
import sqlite3
import sys
import time
from statistics import median

from dbos import DBOS

IN_FLIGHT = 200
STEPS = 5
RESULT = "r" * 200
ENTERED: dict[int, list[float]] = {}


@DBOS.step()
async def step(workflow: int, number: int) -> str:  # noqa: ARG001 (the arguments of the step)
    """Return what a model would."""
    ENTERED.setdefault(workflow, []).append(time.perf_counter())
    return RESULT


@DBOS.workflow()
async def steps(workflow: int) -> int:
    """Call five steps."""
    for number in range(STEPS):
        await step(workflow, number)
    return workflow


async def main() -> None:
    directory, mode, workflows, journal = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    database = f"{directory}/dbos.sqlite"
    if journal == "wal":
        with sqlite3.connect(database) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
    DBOS(config={"name": "bench", "system_database_url": f"sqlite:///{database}", "run_admin_server": False})
    DBOS.launch()
    gate = asyncio.Semaphore(IN_FLIGHT if mode == "rate" else 1)

    async def one(number: int) -> None:
        async with gate:
            handle = await DBOS.start_workflow_async(steps, number)
            assert await handle.get_result() == number

    began = time.perf_counter()
    if mode == "rate":
        await asyncio.gather(*(one(number) for number in range(workflows)))
        said = STEPS * workflows / (time.perf_counter() - began)
    else:
        for number in range(workflows):
            await one(number)
        gaps = [b - a for times in ENTERED.values() for a, b in itertools.pairwise(times)]
        said = median(gaps) * 1e3
    assert len(ENTERED) == workflows
    print(json.dumps(said), flush=True)
    DBOS.destroy()


if __name__ == "__main__":
    asyncio.run(main())
