"""The members of `agentflow worker --processes N` do not get into each other's way."""

from __future__ import annotations

import argparse
import itertools

from agentflow.cli.config_file import load_job_file
from agentflow.cli.supervisor import _command

JOB = """\
job: shop
agent: agents:Shop
source: {kafka: {topics: [orders]}}
sink: {kafka: {topic: out}}
state: {dir: state}
admin: {port: 9464}
metrics: {file: out/metrics.json}
kafka: {instance-id: a}
"""


def test_each_member_has_its_own_name_port_and_file_of_metrics(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    chosen = argparse.Namespace(
        config=str(path), settings=[], profile=None, log_format=None, log_level=None, no_uvloop=False
    )
    command = _command(chosen, load_job_file(str(path), variables={}), 2)
    settings = [value for flag, value in itertools.pairwise(command) if flag == "--set"]
    assert settings == ["kafka.instance-id=a-2", "admin.port=9466", "metrics.file=out/metrics-2.json"]
