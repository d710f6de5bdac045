"""What the tests of job files share: a good one, and how to get the problems of a bad one."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from agentflow.cli.config_file import load_job_file
from agentflow.plan.file_problems import JobFileError

GOOD = """\
job: reviews
agent: shop.agents:ReviewAgent
key-by: product_id
source: {jsonl: {path: in.jsonl}}
sink: {jsonl: {path: out/}}
state.dir: state/
"""  # six lines: what a test adds begins in line 7


def problems(text, *settings, variables=None, profile=None):
    """Load ``text`` as job.yaml of the current directory and return the problems' texts."""
    Path("job.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(JobFileError) as caught:
        load_job_file("job.yaml", settings=settings, variables=variables or {}, profile=profile)
    return list(caught.value.problems)


def told(text):
    """Return an expected text without the indentation of the test."""
    return textwrap.dedent(text).strip("\n")
