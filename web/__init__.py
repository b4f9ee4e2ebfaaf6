"""The HTTP API: aiohttp routes and OpenAPI from one list of operations, over the engine's moves and queries."""
