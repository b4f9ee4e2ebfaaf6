"""The relay process: keeps the outbox moving. In Postgres mode it does maintenance and runs jobs as a worker does."""
