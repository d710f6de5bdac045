"""The examples of agents, as a person starts them: with a scripted model, and with a provider that is a local server."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentflow.api.resources import ResourceType
from agentflow.runtime.resource_classes import build
from agentflow.runtime.secrets import Secrets
from agentflow.testing.model_server import ModelRequest, ModelServer, Reply, ToolCall
from examples.agents.models import ARGUMENTS, ChosenModel

ROOT = Path(__file__).parents[2]

SHOWN = {
    "review_analysis": """\
  to the shipping manager: r-0018: arrived late, in a damaged box
r-0013  babycam-owl  ***    wrong temperature
r-0014  pan-saltire  *****
r-0015  babycam-owl  ***
r-0018  pan-saltire  **     shipping, dented rim
r-0027  pan-saltire  ***    dented rim
r-0034  pan-saltire  **     uneven bottom
r-0039  pan-saltire  ****   no lid
r-0042  babycam-owl  **     picture lags, one camera at a time
r-0043  babycam-owl  ***    wobbly stand
r-0046  pan-saltire  **     uneven bottom
r-0049  pan-saltire  *****
r-0050  babycam-owl  ***    night mode, alarm
r-0051  babycam-owl  *      alarm
r-0055  pan-saltire  *****
r-0063  babycam-owl  ***    small screen
r-0074  babycam-owl  ****
""",
    "product_suggestions": """\
  to the shipping manager: r-0018: arrived late, in a damaged box
babycam-owl, 2.8 of 5:
  - Make the alarm less sensitive, or let parents set it.
  - Show both cameras of a set at once.
  - Give it a stand that stands.
pan-saltire, 3.5 of 5:
  - Make the bottom flat: oil must not run to the sides.
  - Protect the rim in the box.
  - Offer a lid with the pan.
""",
    "react_with_mcp": """\
A-17: Your pan is on its way to Lisbon.
-: There is no order X-1; is the number right?
A-17, B-4: B-4 will be with you in one day, A-17 takes three.
""",
    "streaming_service": """\
ann: Is the Saltire pan in stock?
  (thinking …)
  (asks the shop: {"product":"pan-saltire"})
Yes, there are three of them.
ann: Can I put it into the oven?
  (thinking …)
Yes, up to 230 degrees. Mind the handle.
""",
    "support_agent": """\
ann: Hello! What have I ordered?
  support: You have ordered A-17 for 39.00, and A-21 for 12.50.
bob: Where is my parcel?
  support: Your order B-4 is on its way.
ann: The pan of A-17 has a dent. I want my money back.
  to be approved: refund {'order_id': 'A-17', 'amount': 39.0}
  39.00 paid back to ann for A-17
  support: I am sorry for that. Your 39.00 are on their way.
ann: Thank you. Which order was that again?
  support: It was A-17.
ann: And tell me a joke.
  support: What did the pan say to the dent? You have left an impression.
ann: Another one!
  support: A colleague will get back to you.
""",
}
IN_ORDER = ("support_agent", "streaming_service")  # the others have keys that do not wait for each other


def command(example: str, *arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", f"examples.agents.{example}", *arguments]


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **variables}


def lines_of(text: str, example: str) -> list[str]:
    lines = [line.rstrip() for line in text.splitlines()]
    return lines if example in IN_ORDER else sorted(lines)


def test_every_example_is_here() -> None:
    files = {path.stem for path in (ROOT / "examples/agents").glob("*.py") if "def main()" in path.read_text()}
    assert files == set(SHOWN)


@pytest.mark.parametrize("example", SHOWN)
def test_example_runs_without_a_key_and_shows_what_it_does(example: str, tmp_path: Path) -> None:
    done = subprocess.run(
        command(example), cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert lines_of(done.stdout, example) == lines_of(SHOWN[example], example)
    assert list(tmp_path.iterdir()) == []


async def test_example_runs_with_a_provider_by_one_flag(tmp_path: Path) -> None:
    async with ModelServer(lambda request: Reply('{"score": 4, "reasons": ["price"]}')) as server:
        example = await asyncio.create_subprocess_exec(
            *command("review_analysis", "--model", "ollama:qwen3"),
            cwd=tmp_path,
            env=environment(OLLAMA_HOST=server.url),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await example.communicate()
        assert example.returncode == 0, err.decode()
        assert out.decode().count("****   price") == 16
        assert {request.model for request in server.requests} == {"qwen3"}


async def test_a_refund_is_approved_by_a_person_in_another_terminal(tmp_path: Path) -> None:
    def answer(request: ModelRequest) -> Reply:
        last = request.messages[-1].text
        if "has a dent" in last:
            return Reply(tool_calls=[ToolCall("refund", {"order_id": "A-17", "amount": 39.0})])
        return Reply(last if "on its way" in last else "Hello.")

    async with ModelServer(answer) as server:
        variables = environment(OLLAMA_HOST=server.url, PYTHONUNBUFFERED="1")
        example = await asyncio.create_subprocess_exec(
            *command("support_agent", "--model", "ollama:qwen3"),
            cwd=tmp_path,
            env=variables,
            stdout=asyncio.subprocess.PIPE,
        )
        assert example.stdout is not None
        shown = []
        async for line in example.stdout:
            shown.append(line.decode().strip())
            if shown[-1].startswith("agentflow inbox approve"):
                words = shown[-1].partition("   ")[0].split()[1:]
                person = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "agentflow", *words, cwd=tmp_path, env=variables
                )
                assert await person.wait() == 0
        assert await example.wait() == 0
    paid = shown.index("39.00 paid back to ann for A-17")
    assert shown[paid + 1] == "support: 39.00 is on its way."


@pytest.mark.parametrize("example", ["review_analysis", "support_agent"])
def test_a_key_that_is_not_set_is_told_in_an_error_without_a_traceback(example: str, tmp_path: Path) -> None:
    done = subprocess.run(
        command(example, "--model", "openai:gpt-5-mini"),
        cwd=tmp_path,
        env={name: value for name, value in environment().items() if name != "OPENAI_API_KEY"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "OPENAI_API_KEY" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_that_nobody_knows_is_refused_with_the_ones_that_are_known(tmp_path: Path) -> None:
    for model in ("gpt-5-mini", "opneai:gpt-5-mini", "openai:"):
        done = subprocess.run(
            command("review_analysis", "--model", model),
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2
        assert "scripted" in done.stderr


@pytest.mark.parametrize("provider", ARGUMENTS)
def test_connection_and_model_of_each_provider_can_be_built(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "DASHSCOPE_API_KEY"):
        monkeypatch.setenv(name, "a-key")
    chosen = ChosenModel(f"{provider}:some-model", "reviews.yaml")
    build("provider", ResourceType.CHAT_MODEL_CONNECTION, chosen.connection, Secrets(), {})
    setup = build("model", ResourceType.CHAT_MODEL, chosen.setup(tools=["find"]), Secrets(), {})
    assert (setup.connection, setup.model, setup.tools) == ("provider", "some-model", ["find"])
