"""What brokers say of topics, when they do not know all of it yet."""

from __future__ import annotations

from agentflow.connectors.kafka.topics import known_topics


class YoungCluster:
    """Answers as brokers do that learn one after the other of a topic that was just created."""

    def __init__(self) -> None:
        self.asked = 0

    async def list_topics(self) -> list[str]:
        return ["changelog", "input", "others"]

    async def describe_topics(self, names: list[str]) -> list[dict[str, object]]:
        self.asked += 1
        young = [] if self.asked < 3 else [{"partition": n} for n in range(4)]
        return [{"topic": name, "partitions": young if name == "changelog" else [{"partition": 0}]} for name in names]


async def test_a_topic_that_was_just_created_is_looked_at_again_until_its_partitions_are_known():
    cluster = YoungCluster()
    assert await known_topics(cluster, ["input", "changelog", "missing"]) == {"changelog": 4, "input": 1}
    assert cluster.asked == 3
