"""A Pub/Sub for tests: Google's own gRPC interface, served to unmodified clients, with faults to inject."""

from ops.harness.pubsub_fake.control import Remote, pubsub_process
from ops.harness.pubsub_fake.faults import Delay, DropAcks, Duplicate, Fail, Fault, LoseReply, Reorder, Stall
from ops.harness.pubsub_fake.server import FakePubSub

__all__ = [
    "Delay",
    "DropAcks",
    "Duplicate",
    "Fail",
    "FakePubSub",
    "Fault",
    "LoseReply",
    "Remote",
    "Reorder",
    "Stall",
    "pubsub_process",
]
