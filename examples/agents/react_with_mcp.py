"""A ReAct agent with the tools of an MCP server: it thinks, calls tools, and answers; no code of its own.

    pip install 'agentflow[mcp]'
    python -m examples.agents.react_with_mcp [--model openai:gpt-5-mini]

The server is `shop_server.py`, started over stdio by its first call. Tools that a model wants in one turn are called at the same time.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from agentflow import (
    AgentsExecutionEnvironment,
    Prompt,
    ReActAgent,
    ResourceDescriptor,
    ResourceName,
    ResourceType,
)
from examples.agents.models import model_from_command_line, run_example

QUESTIONS = [
    {"customer": "ann", "question": "Where is my order A-17?"},
    {"customer": "bob", "question": "Are A-17 and B-4 with us within two days?"},
    {"customer": "eve", "question": "And what about order X-1?"},
]


class Answer(msgspec.Struct):
    """What the model has to answer.

    Attributes:
        text: For the customer, in one sentence.
        orders: Numbers of the orders that it is about, as far as they exist.
    """

    text: str
    orders: list[str]


def main() -> None:
    """Let the agent answer some questions, and print the answers."""
    model = model_from_command_line(__doc__, "shop.yaml")
    env = AgentsExecutionEnvironment.get_execution_environment()
    env.add_resource(*model.resource)
    server = Path(__file__).with_name("shop_server.py")
    env.add_resource(
        "shop",
        ResourceType.MCP_SERVER,
        ResourceDescriptor(ResourceName.MCP_SERVER, command=sys.executable, args=[str(server)]),
    )
    agent = ReActAgent(
        chat_model=model.setup(),
        prompt=Prompt.from_text(
            "You answer customers of a shop. Look at their orders first.\n{customer} asks: {question}"
        ),
        output_schema=Answer,
        tools=["shop"],  # all tools of the server; single ones by their names
        max_turns=6,
    )
    answers = env.from_list(QUESTIONS).key_by("customer").apply(agent).to_list()
    env.execute()
    for answer in answers:
        print(f"{', '.join(answer['orders']) or '-'}: {answer['text']}")


if __name__ == "__main__":
    run_example(main)
