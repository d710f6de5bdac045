"""The quickstart's agent: follow each product's reviews, and say when a product gets worse.

Two actions and one event between them: ``score`` takes a review and updates what is remembered about its product,
``report`` writes one line per review, and one alert each time the product's score drops. Memory belongs to the key of the
job (`product_id`), so products never mix, and it survives restarts. Nothing here looks at a clock or a random number: the
same reviews give the same output, byte for byte.
"""

from __future__ import annotations

import re

import msgspec

from agentflow import Agent, Event, EventType, InputEvent, OutputEvent, RunnerContext, action

WEIGHT = 0.15  # share of the newest review in the running score
REVIEWS_MIN = 6  # a score says little before that many reviews
ALERT_BELOW = 3.2  # stars
ALERT_DROP = 1.2  # stars below the best score so far
RECOVERED_BY = 0.4  # stars above the limit at which an alert ends, so that it does not flutter
REASONS_MAX = 12  # complaints remembered per product

ASPECTS = {
    "battery": r"batter(?:y|ies)|charg(?:e|es|ed|ing)|flat after",
    "app and updates": r"app|update[sd]?|firmware|offline|software|bluetooth|schedules?",
    "shipping": r"shipping|deliver(?:y|ed)|parcel|courier|depot|days late|tracking|arrived",
    "price": r"price|expensive|money|euros?|cost",
    "durability": r"broken?|snapp\w+|peel\w*|fl(?:ak|ick)\w+|rip\w*|torn?|tore|wobbl\w+|warped|worn|loose\w*|hinge|glue\w*|dead|died|crack\w*|coating",
    "leaks": r"leak\w*|drips?|lid|weeps|seal|soaked",
    "support": r"support|customer service|refund|warranty|guarantee|answer\w*|email\w*|mails?",
    "comfort": r"clamp\w*|rubs?|headache|hurts?|sizing|size|blisters?|slid(?:e|es|ing)",
    "taste and smell": r"tastes?|bitter|burnt|stale|smell\w*|sour|cardboard",
    "noise": r"noisy|noise|loud\w*|whine|hiss|creaks?|squeak\w*|crackl\w*|grinds?|beeps?",
}
RULES = {aspect: re.compile(rf"\b(?:{words})\b", re.IGNORECASE) for aspect, words in ASPECTS.items()}


class ProductReview(msgspec.Struct):
    """One line of `examples/data/product_reviews.jsonl`; a line that does not fit is a decode error, not a crash."""

    review_id: str
    product_id: str
    stars: int
    title: str
    text: str
    author: str
    ts: str


def complaints(review: ProductReview) -> list[str]:
    """Return the aspects that an unhappy review mentions, in the order of `ASPECTS`; none for a happy one."""
    if review.stars > 3:
        return []
    text = f"{review.title}. {review.text}"
    return [aspect for aspect, rule in RULES.items() if rule.search(text)]


def most_frequent(reasons: list[str]) -> list[str]:
    """Return the three most frequent reasons, most frequent first, equals by name."""
    return sorted(set(reasons), key=lambda reason: (-reasons.count(reason), reason))[:3]


class ReviewAgent(Agent):
    """Keep a running score per product and report drops."""

    @action(EventType.InputEvent, input=ProductReview)
    def score(event: InputEvent[ProductReview], ctx: RunnerContext) -> None:
        """Remember the review: count, running score, best score, latest complaints."""
        review, memory = event.input, ctx.short_term_memory
        count = memory.update("score.count", lambda n: (n or 0) + 1)
        # A plain mean at first, then exponentially weighted: recent reviews count more.
        weight = max(WEIGHT, 1 / count)
        mean = memory.update("score.mean", lambda m: review.stars if m is None else m + weight * (review.stars - m))
        if count >= REVIEWS_MIN:
            memory.update("score.best", lambda best: max(best or 0.0, mean))
        found = complaints(review)
        if found:
            memory.update("reasons", lambda reasons: [*(reasons or []), *found][-REASONS_MAX:])
        ctx.send_event(Event("scored", {"review_id": review.review_id, "stars": review.stars, "ts": review.ts}))

    @action("scored")
    def report(event: Event, ctx: RunnerContext) -> None:
        """Write the product's score, and an alert once per drop."""
        memory = ctx.short_term_memory
        count, mean = memory.get("score.count"), memory.get("score.mean")
        reasons = most_frequent(memory.get("reasons", []))
        line = {
            "kind": "score",
            "product": ctx.key,
            "review_id": event.attributes["review_id"],
            "stars": event.attributes["stars"],
            "score": round(mean, 2),
            "count": count,
            "reasons": reasons,
        }
        ctx.send_event(OutputEvent(line))

        best = memory.get("score.best", mean)
        limit = max(ALERT_BELOW, best - ALERT_DROP)
        is_alerted = memory.get("alert.active", False)
        if count >= REVIEWS_MIN and mean < limit and not is_alerted:
            memory.set("alert.active", True)
            alert = {
                "kind": "alert",
                "product": ctx.key,
                "score": round(mean, 2),
                "best": round(best, 2),
                "since": event.attributes["ts"],
                "reasons": reasons,
            }
            ctx.send_event(OutputEvent(alert))
        elif is_alerted and mean >= limit + RECOVERED_BY:
            memory.set("alert.active", False)
            memory.set("score.best", mean)  # the next drop is measured from here
