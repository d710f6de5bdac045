"""An engine in a service shows what it does: metrics, traces, event log and log lines, all at once, and gives everything back."""

from __future__ import annotations

import logging
import socket
import threading
import urllib.error
import urllib.request

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agentflow import Agent, ConfigError, Engine, EventType, OutputEvent, Retry, RunFailed
from tests.otlp_receiver import collector

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def shop() -> Agent:
    def charge(amount):
        return {"paid": amount}

    async def pay(event, ctx):
        ctx.logger.info("paying", amount=event.input["amount"])
        ctx.action_metric_group.get_counter("payments").inc()
        if event.input["amount"] < 0:
            raise ValueError("card_token=4111 is declined")
        ctx.send_event(OutputEvent(await ctx.durable_execute_async(charge, event.input["amount"])))

    return Agent("Shop").add_action("pay", [EventType.InputEvent], pay, retry=Retry(attempts=1))


def answer_of(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5) as answer:
        return answer.read().decode()


def scraped(port: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(answer_of(port, "metrics"))
    return {(one.name, tuple(sorted(one.labels.items()))): one.value for family in families for one in family.samples}


def threads_left(before: set[threading.Thread]) -> list[str]:
    """Threads of the engine that do not end."""
    left = [one for one in threading.enumerate() if one.name.startswith("agentflow-") and one not in before]
    for thread in left:
        thread.join(10)
    return [thread.name for thread in left if thread.is_alive()]


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


async def test_a_service_sees_its_engine(tmp_path, port, caplog):
    heard, before = [], set(threading.enumerate())
    caplog.set_level(logging.INFO, logger="agentflow.agent")
    with collector() as seen:
        config = {
            "job": "orders",
            "admin.host": "127.0.0.1",
            "admin.port": port,
            "otlp.endpoint": seen.endpoint,
            "metrics.otlp": True,
            "tracing": {"enabled": True, "sample-ratio": 1.0},
            "event-log.level": "standard",
            "event-log.dir": str(tmp_path / "logs"),
            "redaction.key": True,
        }
        async with Engine(shop(), in_memory=True, config=config, event_listeners=[heard.append]) as engine:
            for amount in range(20):
                headers = {"traceparent": CALLER} if amount == 7 else None
                assert await engine.submit(f"k{amount % 3}", {"amount": amount}, headers=headers) == [{"paid": amount}]
            with pytest.raises(RunFailed):
                await engine.submit("k1", {"amount": -1})
            values = scraped(port)
            assert answer_of(port, "readyz") == "ok\n"
        with pytest.raises(urllib.error.URLError):
            answer_of(port, "livez")

    def value(name, **labels):
        return values[name, tuple(sorted({"job": "orders", **labels}.items()))]

    assert value("agentflow_requests_total", outcome="completed") == 20
    assert value("agentflow_requests_total", outcome="failed") == 1
    assert value("agentflow_requests_open") == 0
    assert value("agentflow_records_in_total") == 21
    assert value("agentflow_action_attempts_total", agent="Shop", action="pay") == 21
    assert value("agentflow_action_duration_seconds_count", agent="Shop", action="pay") == 21
    assert value("agentflow_user_payments_total", agent="Shop", action="pay") == 21
    assert value("agentflow_event_log_records_total", target="file", outcome="dropped") == 0

    assert seen.value("agentflow.requests", outcome="completed") == 20
    assert seen.value("agentflow.event_log.records", target="file", outcome="written") == len(heard)
    runs, attempts = seen.by_name("run Shop"), seen.by_name("action pay")
    assert (len(runs), len(attempts)) == (21, 21)
    assert len([span for span in seen.spans if span.name.startswith("step ")]) == 20
    (continued,) = [run for run in runs if run.trace == CALLER.split("-")[1]]
    assert continued.parent == CALLER.split("-")[2]
    assert {run.resource["service.name"] for run in runs} == {"orders"}

    written = [
        msgspec.json.decode(line) for path in (tmp_path / "logs").iterdir() for line in path.read_bytes().splitlines()
    ]
    assert len([one for one in written if one["eventType"] == EventType.InputEvent]) == 21
    assert sorted(one["eventId"] for one in heard) == sorted(one["eventId"] for one in written)

    lines = [one.agentflow for one in caplog.records if one.name == "agentflow.agent"]
    assert len(lines) == 21
    assert {line["key"] for line in lines} == {"***"}
    assert {line["trace_id"] for line in lines} == {run.trace for run in runs}
    assert not any(b"4111" in body for body in seen.bodies)
    assert not threads_left(before)


async def test_a_port_that_is_taken_lets_nothing_begin(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = {"admin.host": "127.0.0.1", "admin.port": taken.getsockname()[1]}
        engine = Engine(shop(), state_dir=str(tmp_path / "state"), config=config)
        with pytest.raises(ConfigError, match="port"):
            await engine.start()
        await engine.close()
    async with Engine(shop(), state_dir=str(tmp_path / "state"), config=config) as again:
        assert await again.submit("k", {"amount": 1}) == [{"paid": 1}]
