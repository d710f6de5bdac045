"""One agent with a model: it reads reviews, scores them, and tells the shipping manager about damaged parcels.

    python -m examples.agents.review_analysis [--model openai:gpt-5-mini]

An input becomes a `ChatRequestEvent`; the built-in actions ask the model and call its tools; the answer comes back as a
`ChatResponseEvent`, read as a `ReviewAnalysis`. Each call is a durable step: after a crash, none that was answered is made again.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from agentflow import (
    Agent,
    AgentsExecutionEnvironment,
    ChatMessage,
    ChatRequestEvent,
    ChatResponseEvent,
    Event,
    EventType,
    InputEvent,
    MessageRole,
    OutputEvent,
    Prompt,
    ResourceType,
    RunnerContext,
    action,
    prompt,
    tool,
)
from examples.agents.models import ChosenModel, model_from_command_line, run_example
from examples.quickstart.review_agent import ProductReview

REVIEWS = Path(__file__).parents[1] / "data" / "product_reviews.jsonl"
PRODUCTS = ("pan-saltire", "babycam-owl")
REVIEWS_PER_PRODUCT = 8


class ReviewAnalysis(msgspec.Struct):
    """What the model has to answer.

    Attributes:
        score: How satisfied the customer is: 1 to 5.
        reasons: What the customer is not satisfied with, in a word or two each; empty: nothing.
    """

    score: int
    reasons: list[str]


class ReviewAnalysisAgent(Agent):
    """Scores reviews."""

    def __init__(self, model: ChosenModel) -> None:
        # An agent whose model is always the same declares it as its prompt: `@chat_model_setup`.
        setup = model.setup(prompt="review_analysis_prompt", tools=["notify_shipping_manager"])
        self.add_resource("review_analysis_model", ResourceType.CHAT_MODEL, setup)

    @prompt
    @staticmethod
    def review_analysis_prompt() -> Prompt:
        """Return what the model is told before each review."""
        return Prompt.from_text(
            "You analyse reviews of products. Given one review as JSON, score from 1 to 5 how satisfied the customer is, and name the "
            "reasons for dissatisfaction, in a word or two each. If the parcel was damaged or late, call notify_shipping_manager first."
        )

    @tool
    @staticmethod
    def notify_shipping_manager(review_id: str, complaint: str) -> str:
        """Tell the shipping manager about a parcel that was damaged or late.

        Args:
            review_id: The review that says so.
            complaint: What went wrong.
        """
        print(f"  to the shipping manager: {review_id}: {complaint}")
        return f"The shipping manager knows about {review_id}."

    @action(EventType.InputEvent, input=ProductReview)
    def process_input(event: InputEvent[ProductReview], ctx: RunnerContext) -> None:
        """Ask the model about a review."""
        review = event.input
        ctx.sensory_memory.set("review_id", review.review_id)  # of this run: the answer comes as another event
        text = msgspec.json.encode(review).decode()
        request = ChatRequestEvent(
            "review_analysis_model", [ChatMessage(MessageRole.USER, text)], output_schema=ReviewAnalysis
        )
        ctx.send_event(request)

    @action(EventType.ChatResponseEvent)
    def process_chat_response(event: Event, ctx: RunnerContext) -> None:
        """Send the analysis out."""
        analysis = ChatResponseEvent.from_event(event).output(ReviewAnalysis)
        found = {"product_id": ctx.key, "review_id": ctx.sensory_memory.get("review_id")}
        ctx.send_event(OutputEvent({**found, "score": analysis.score, "reasons": analysis.reasons}))


def read_reviews() -> list[ProductReview]:
    """Return the first reviews of some products, in the order in which they were written."""
    reviews = [msgspec.json.decode(line, type=ProductReview) for line in REVIEWS.read_bytes().splitlines()]
    of_products = [[review for review in reviews if review.product_id == product] for product in PRODUCTS]
    return sorted((one for some in of_products for one in some[:REVIEWS_PER_PRODUCT]), key=lambda review: review.ts)


def main() -> None:
    """Analyse some reviews, and print what came of it."""
    model = model_from_command_line(__doc__, "reviews.yaml")
    env = AgentsExecutionEnvironment.get_execution_environment()
    env.add_resource(*model.resource)
    analyses = env.from_list(read_reviews()).key_by("product_id").apply(ReviewAnalysisAgent(model)).to_list()
    env.execute()
    for one in analyses:
        print(f"{one['review_id']}  {one['product_id']:<12} {'*' * one['score']:<5}  {', '.join(one['reasons'])}")


if __name__ == "__main__":
    run_example(main)
