"""agentflow: durable, exactly-once, keyed stream processing for AI agents."""
