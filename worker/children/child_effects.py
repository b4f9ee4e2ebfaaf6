"""Effects that a child keeps, as the worker sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.model import Outcome
from worker.children.frames import Commit

if TYPE_CHECKING:
    from worker.children.handle import Child


class ChildEffects:
    """The effects of a completed attempt that its child keeps, until `commit` or the child's end."""

    def __init__(self, child: Child, memory_mb: int | None) -> None:
        self.child = child
        self._memory_mb = memory_mb

    async def __call__(self, _conn: Any) -> None:
        raise TypeError("effects that a child keeps run on the child's own connection")

    async def commit(self, message: Commit) -> Outcome | None:
        """See Child.commit."""
        return await self.child.commit(message)

    @property
    def died(self) -> Outcome:
        return self.child.death(self._memory_mb)
