"""Loaded by schemathesis (SCHEMATHESIS_HOOKS): what it cannot know of this API, and the check of the second owner."""

from __future__ import annotations

import os
import re
from typing import Any
from uuid import uuid4

import schemathesis

from web.wire.idempotency import HEADER, KEY

OTHER = {"Authorization": f"Bearer {os.environ['OTHER_TOKEN']}"}


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """A good key is used once: with another body it would rightly be refused."""
    given = (case.headers or {}).get(HEADER)
    probed = getattr(case.meta.phase.data, "parameter", None) if case.meta else None
    # A case that is changed loses what it was made to probe, such as a token left out.
    if given is not None and KEY.fullmatch(given) and probed != "Authorization":
        case.headers[HEADER] = f"{uuid4()}"


@schemathesis.check
def another_owner_gets_404(_context: Any, response: Any, case: Any) -> None:
    """Whatever succeeds for a job's owner finds no such job for anybody else."""
    if response.status_code < 400 and re.search(r"/job/\{job_id\}", case.path):
        others = case.call(headers=OTHER)
        assert others.status_code == 404, (
            f"{case.method} {case.path} answers another owner {others.status_code}"
        )
