"""The stateful and the trivial workload on Quix Streams, exactly once: `quix.py BROKERS JOB DIRECTORY ACTION INTERVAL_S`.

A static member and a stable transactional id, so that a restart fences its predecessor as agentflow's does.
"""

import sys
from typing import Any

from quixstreams import Application


def main() -> None:
    brokers, job, directory, action, interval_s = sys.argv[1:]
    app = Application(
        broker_address=brokers,
        consumer_group=job,
        processing_guarantee="exactly-once",
        commit_interval=float(interval_s),
        state_dir=directory,
        auto_offset_reset="earliest",
        consumer_extra_config={"group.instance.id": f"{job}-0"},
        producer_extra_config={"transactional.id": f"{job}-0"},
        loglevel="WARNING",
    )
    source = app.topic(f"{job}-in", value_deserializer="json", key_deserializer="str")
    sink = app.topic(f"{job}-out", value_serializer="json", key_serializer="str")
    stream = app.dataframe(source)
    if action == "stateful":

        def count(value: Any, state: Any) -> dict[str, Any]:
            number = state.get("count", 0) + 1
            state.set("count", number)
            return {"user": value["user"], "count": number}

        stream = stream.apply(count, stateful=True)
    stream.to_topic(sink)
    app.run()


if __name__ == "__main__":
    main()
