"""The arguments of the commands before deployment: `doctor` and `verify`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from agentflow.cli.argument_types import duration, from_one

AddCommand = Callable[[Any, str, str], argparse.ArgumentParser]
AddJobFile = Callable[[argparse.ArgumentParser], None]

_DOCTOR = """\
Looks at Python and packages, the job file, the agent, state, files, brokers, topics, rights and
the machine, and changes none of them. What is wrong is said with its fix. Errors give exit
status 3, warnings 0, or 3 with --strict; a job file that cannot be read gives 2. What is written:
some fifty appends to a file without a name in the directory of state.dir, to measure its disk.
"""

_VERIFY = """\
Runs a record through the job, from reading it to its output, over state, outputs, topics and a
group of its own, which are removed again. The job's own ones, and its offsets, are not touched.

THE ACTIONS OF THE AGENT RUN FOR REAL: what they call is called, what they send is sent. On a
terminal you are asked before; --yes answers. Where standard input is no terminal nobody is asked.

The record is the first one of the source, which is only read; or --value; or, where there is
neither, one that is made up from the input= type of the agent. Exit status 0: it went through
(also where the agent has no output for it, or waits, which is said); 3: something failed.
"""


def add_check_commands(
    commands: argparse._SubParsersAction[Any], add_command: AddCommand, add_job_file: AddJobFile
) -> None:
    """Add `doctor` and `verify`."""
    doctor = add_command(commands, "doctor", "check everything that a job needs, before it is deployed")
    doctor.description = _DOCTOR
    add_job_file(doctor)
    doctor.add_argument("--strict", action="store_true", help="exit status 3 for warnings too")
    doctor.add_argument("--json", action="store_true", help="print JSON: a list of findings")
    verify = add_command(commands, "verify", "run a record through a job, beside its own state and topics")
    verify.description = _VERIFY
    add_job_file(verify)
    what = verify.add_mutually_exclusive_group()
    what.add_argument(
        "--records",
        type=from_one("number of records"),
        metavar="N",
        help="how many records of the source to take (default: 1)",
    )
    what.add_argument("--value", metavar="JSON", help="take this value instead")
    verify.add_argument("--key", metavar="KEY", help="key of that record, for a job whose key-by is record.key")
    verify.add_argument(
        "--timeout", type=duration, default=60_000, metavar="TIME", help="how long it may take (default: 60s)"
    )
    verify.add_argument("--yes", action="store_true", help="do not ask before actions run")
    verify.add_argument("--json", action="store_true", help="print JSON")
