"""One operator of a subtask with what surrounds it."""

from __future__ import annotations

import msgspec

from agentflow.core.operator import Operator
from agentflow.runtime.action_runner import ActionRunner
from agentflow.runtime.codecs import KeyReader
from agentflow.runtime.observation import Observation
from agentflow.runtime.record_reader import RecordReader
from agentflow.runtime.step_runner import StepRunner


class Stage(msgspec.Struct):
    """One operator of the chain with what surrounds it.

    Attributes:
        observation: What observers are shown of it; None: there are none.
        is_terminal: Its outputs go to the sink; else to the next operator.
        reader: Reads the records of the source; None: it is not the first one.
    """

    operator: Operator
    runner: ActionRunner
    keys: KeyReader
    steps: StepRunner | None = None
    observation: Observation | None = None
    is_terminal: bool = True
    reader: RecordReader | None = None
