"""The agents of the Kafka benchmark, as a job file names them."""

from agentflow import Agent, EventType
from benchmarks.workloads import stateful, trivial, waiting

TRIVIAL = Agent("trivial").add_action("act", [EventType.InputEvent], trivial)
STATEFUL = Agent("stateful").add_action("act", [EventType.InputEvent], stateful)
ASYNC = Agent("async").add_action("act", [EventType.InputEvent], waiting)
