"""Two agents in one job: the first analyses reviews, the second suggests what to improve.

    python -m examples.agents.product_suggestions [--model anthropic:claude-sonnet-5-5]

The outputs of the first agent are the inputs of the second, which remembers the analyses of each product, and asks its model when it has
enough of them. Memory belongs to the key, so products never mix.
"""

from __future__ import annotations

import msgspec

from agentflow import (
    Agent,
    AgentsExecutionEnvironment,
    ChatRequestEvent,
    ChatResponseEvent,
    Event,
    EventType,
    InputEvent,
    OutputEvent,
    Prompt,
    ResourceType,
    RunnerContext,
    action,
    prompt,
)
from examples.agents.models import ChosenModel, model_from_command_line, run_example
from examples.agents.review_analysis import REVIEWS_PER_PRODUCT, ReviewAnalysisAgent, read_reviews


class Analysis(msgspec.Struct):
    """An output of `ReviewAnalysisAgent`."""

    product_id: str
    review_id: str
    score: int
    reasons: list[str]


class Suggestions(msgspec.Struct):
    """What the model has to answer: what to improve, the most urgent first."""

    suggestions: list[str]


class ProductSuggestionAgent(Agent):
    """Collects analyses of a product, and suggests what to improve."""

    def __init__(self, model: ChosenModel) -> None:
        setup = model.setup(prompt="product_suggestion_prompt")
        self.add_resource("product_suggestion_model", ResourceType.CHAT_MODEL, setup)

    @prompt
    @staticmethod
    def product_suggestion_prompt() -> Prompt:
        """Return what the model is told; the placeholders are filled by each request."""
        return Prompt.from_text(
            "You advise the maker of a product. From the scores and the complaints of its customers, suggest at most three improvements, the "
            "most urgent first, in one short sentence each.\nProduct: {product}"
        )

    @action(EventType.InputEvent, input=Analysis)
    def process_input(event: InputEvent[Analysis], ctx: RunnerContext) -> None:
        """Remember an analysis; ask the model when there are enough."""
        analysis, memory = event.input, ctx.short_term_memory
        scores = memory.update("scores", lambda known: [*(known or []), analysis.score])
        reasons = memory.update("reasons", lambda known: [*(known or []), *analysis.reasons])
        if len(scores) < REVIEWS_PER_PRODUCT:
            return
        text = f"Scores: {', '.join(map(str, scores))}\nComplaints: {', '.join(reasons)}"
        request = ChatRequestEvent(
            "product_suggestion_model", [text], prompt_args={"product": ctx.key}, output_schema=Suggestions
        )
        ctx.send_event(request)
        memory.set("mean", sum(scores) / len(scores))
        memory.set("scores", [])
        memory.set("reasons", [])

    @action(EventType.ChatResponseEvent)
    def process_chat_response(event: Event, ctx: RunnerContext) -> None:
        """Send the suggestions out."""
        advice = ChatResponseEvent.from_event(event).output(Suggestions)
        mean = ctx.short_term_memory.get("mean")
        ctx.send_event(OutputEvent({"product_id": ctx.key, "mean": mean, "suggestions": advice.suggestions}))


def main() -> None:
    """Suggest improvements of some products, and print them."""
    model = model_from_command_line(__doc__, "reviews.yaml")
    env = AgentsExecutionEnvironment.get_execution_environment()
    env.add_resource(*model.resource)
    analyses = env.from_list(read_reviews()).key_by("product_id").apply(ReviewAnalysisAgent(model))
    suggestions = analyses.key_by("product_id").apply(ProductSuggestionAgent(model)).to_list()
    env.execute()
    for one in suggestions:
        print(f"{one['product_id']}, {one['mean']:.1f} of 5:")
        for suggestion in one["suggestions"]:
            print(f"  - {suggestion}")


if __name__ == "__main__":
    run_example(main)
