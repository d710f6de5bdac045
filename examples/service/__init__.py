"""An engine inside of a service: FastAPI, aiohttp, and a worker beside an own Kafka consumer."""
