"""Five nodes per thread on LangGraph with its SQLite checkpointer, durability="sync": `langgraph_steps.py DIRECTORY rate|step THREADS -`."""

import asyncio
import itertools
import json
import sys
import time
from statistics import median
from typing import Any, TypedDict

from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph

IN_FLIGHT = 200
STEPS = 5
RESULT = "r" * 200
ENTERED: dict[int, list[float]] = {}


class State(TypedDict):
    """Of one thread."""

    thread: int
    results: list[str]


async def step(state: State) -> dict[str, Any]:
    """Return what a model would."""
    ENTERED.setdefault(state["thread"], []).append(time.perf_counter())
    return {"results": [*state["results"], RESULT]}


async def main() -> None:
    directory, mode, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    graph = StateGraph(State)
    names = [f"step{number}" for number in range(STEPS)]
    for name in names:
        graph.add_node(name, step)
    for before, after in zip([START, *names], [*names, END], strict=True):
        graph.add_edge(before, after)
    async with AsyncSqliteSaver.from_conn_string(f"{directory}/langgraph.sqlite") as saver:
        compiled = graph.compile(checkpointer=saver)
        gate = asyncio.Semaphore(IN_FLIGHT if mode == "rate" else 1)

        async def one(number: int) -> None:
            async with gate:
                config = {"configurable": {"thread_id": str(number)}}
                state = await compiled.ainvoke({"thread": number, "results": []}, config, durability="sync")
                assert len(state["results"]) == STEPS

        began = time.perf_counter()
        if mode == "rate":
            await asyncio.gather(*(one(number) for number in range(threads)))
            said = STEPS * threads / (time.perf_counter() - began)
        else:
            for number in range(threads):
                await one(number)
            gaps = [b - a for times in ENTERED.values() for a, b in itertools.pairwise(times)]
            said = median(gaps) * 1e3
    assert len(ENTERED) == threads
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
