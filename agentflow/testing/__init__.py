"""For tests of agents, connectors and the engine itself: harness, virtual time, faults, simulation.

Conformance suites of the ports are in `agentflow.testing.conformance`.
"""

from __future__ import annotations

from agentflow.testing.faults import Fault, FaultySink, FaultySource, FaultyState, Machine, SimulatedCrash
from agentflow.testing.lives import Lives
from agentflow.testing.operator_harness import OperatorHarness
from agentflow.testing.scripted_models import ScriptedChatModel, ScriptedConnection
from agentflow.testing.simulation import SimulationReport, simulate, simulate_every_point
from agentflow.testing.virtual_time import VirtualClock, VirtualTimeLoop, VirtualTimeStopped

__all__ = [
    "Fault",
    "FaultySink",
    "FaultySource",
    "FaultyState",
    "Lives",
    "Machine",
    "OperatorHarness",
    "ScriptedChatModel",
    "ScriptedConnection",
    "SimulatedCrash",
    "SimulationReport",
    "VirtualClock",
    "VirtualTimeLoop",
    "VirtualTimeStopped",
    "simulate",
    "simulate_every_point",
]
