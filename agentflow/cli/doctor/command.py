"""`agentflow doctor`: is this machine ready for the job, and is the job ready for its brokers?"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from typing import TYPE_CHECKING

from agentflow.cli.output import EXIT_DONE, EXIT_PROBLEMS_FOUND, EXIT_WRONG_USE, is_colored, print_json

if TYPE_CHECKING:
    from agentflow.cli.doctor.findings import Outcome


def doctor(chosen: argparse.Namespace) -> int:
    """Make all checks, print what they found, and return the exit status that says it."""
    from agentflow.cli.doctor.job_checks import read_subject
    from agentflow.cli.doctor.report import text_of
    from agentflow.cli.doctor.running import run_checks
    from agentflow.cli.doctor.table import CHECKS
    from agentflow.environment.openers import new_event_loop
    from agentflow.observability.logs import configure_logs

    configure_logs(format="console", level="error", stream=sys.stderr)  # of user code that is imported, or replayed
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it logs each attempt; what they mean is a finding
    subject = read_subject(chosen.config, chosen.profile, chosen.settings)
    with contextlib.redirect_stdout(sys.stderr):  # what modules print while they are imported is no finding
        outcomes = run_checks(CHECKS, subject, new_event_loop)
    if chosen.json:
        print_json([row for outcome in outcomes for row in outcome.rows()])
    else:
        print(text_of(outcomes, is_colored=is_colored(sys.stdout)))
    status = _status(outcomes, is_readable=subject.job_file is not None, is_strict=chosen.strict)
    if any(outcome.is_late for outcome in outcomes):
        sys.stdout.flush()
        os._exit(status)  # what hangs may have threads of its own, for which the interpreter would wait
    return status


def _status(outcomes: list[Outcome], *, is_readable: bool, is_strict: bool) -> int:
    from agentflow.cli.doctor.findings import Result

    if not is_readable:
        return EXIT_WRONG_USE
    bad = (Result.ERROR, Result.WARNING) if is_strict else (Result.ERROR,)
    return EXIT_PROBLEMS_FOUND if any(outcome.result in bad for outcome in outcomes) else EXIT_DONE
