"""The meaning of Pub/Sub's errors."""

from __future__ import annotations

import grpc
import pytest

from engine.pubsub.client import Fault, fault

BY_HAND = {
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.FAILED_PRECONDITION,
}


@pytest.mark.parametrize("code", list(grpc.StatusCode), ids=lambda code: str(code.name))
def test_only_an_invalid_argument_is_the_messages_fault_and_would_set_it_aside(code: grpc.StatusCode) -> None:
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata())
    refused = code is grpc.StatusCode.INVALID_ARGUMENT
    assert (fault(error) is Fault.REFUSED) == refused
    assert (fault(error) is Fault.MISCONFIGURED) == (code in BY_HAND)
