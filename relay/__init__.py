"""The relay process: does maintenance in both modes.

In pubsub mode the relay also publishes the outbox; in Postgres mode it keeps workers running, in
processes of their own.
"""
