"""Loggers that cost nothing until a line is written."""

from __future__ import annotations

import logging

import pytest

from agentflow.runtime.logs import LazyLogger, take_lines


@pytest.fixture(autouse=True)
def _as_it_was():
    yield
    take_lines(None)


def test_fields_are_made_when_a_line_is_written_and_once(caplog):
    made: list[int] = []

    def fields():
        made.append(1)
        return {"key": "k"}

    logger = LazyLogger("agentflow.agent", fields)
    caplog.set_level("INFO", "agentflow")
    logger.debug("not shown", x=1)
    assert made == []
    logger.info("one")
    logger.warning("two", y=2)
    assert made == [1]
    assert [record.agentflow for record in caplog.records] == [{"key": "k"}, {"key": "k", "y": 2}]


def test_a_logger_can_be_bound_further(caplog):
    caplog.set_level("INFO", "agentflow")
    LazyLogger("agentflow.agent", lambda: {"key": "k"}).bind(order=7).info("%d items", 3)
    (record,) = caplog.records
    assert (record.getMessage(), record.agentflow) == ("3 items  key=k  order=7", {"key": "k", "order": 7})


def test_lines_that_a_command_took_go_to_its_loggers_only(caplog):
    class Taken:
        def __init__(self, name: str, fields: dict[str, object]) -> None:
            self.name, self.fields = name, fields

        def bind(self, **fields: object) -> Taken:
            return Taken(self.name, {**self.fields, **fields})

        def info(self, event: str) -> None:
            written.append((self.name, event, self.fields))

    written: list[object] = []
    take_lines(lambda name: Taken(name, {}), logging.INFO)
    logger = LazyLogger("agentflow.agent", lambda: {"key": "k"})
    logger.debug("not shown")
    logger.info("one")
    assert written == [("agentflow.agent", "one", {"key": "k"})]
    assert caplog.records == []
