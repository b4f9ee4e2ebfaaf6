"""A Pub/Sub for tests: Google's own gRPC interface, served to unmodified clients, with faults to inject."""

from tests.fakes.pubsub.control import Remote, pubsub_process
from tests.fakes.pubsub.faults import Delay, DropAcks, Duplicate, Fail, Fault, LoseReply, Reorder, Stall
from tests.fakes.pubsub.server import FakePubSub

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
