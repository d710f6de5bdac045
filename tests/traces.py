"""What a simulated world must be: decided by its seed alone."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
from agentflow.testing.{module} import {simulate}
for seed in range({seeds}):
    report = {simulate}(seed)
    print(report, *report.trace, sep="\\n")
"""


def trace_under_two_hash_seeds(module: str, simulate: str, seeds: int) -> list[str]:
    """Return what the first ``seeds`` seeds do, after checking that another order of sets changes nothing of it."""
    program = PROGRAM.format(module=module, simulate=simulate, seeds=seeds)
    one, other = (
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
        ).stdout.splitlines()
        for hash_seed in ("1", "2")
    )
    assert one == other
    return one
