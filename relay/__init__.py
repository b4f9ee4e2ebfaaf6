"""The relay process: does maintenance in both modes.

In pubsub mode the relay also publishes the outbox; in Postgres mode it also runs jobs as a worker does.
"""
