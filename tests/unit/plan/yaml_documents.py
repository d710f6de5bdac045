"""How tests get the problems of a bad YAML document of agents."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from agentflow.plan.file_problems import JobFileError
from agentflow.plan.yaml_agents import load_documents


def problems(text, path="agents.yaml"):
    """Load ``text`` as a file of the current directory and return the problems' texts."""
    Path(path).write_text(textwrap.dedent(text).strip("\n") + "\n")
    with pytest.raises(JobFileError) as caught:
        load_documents(path)
    return list(caught.value.problems)
