"""The moves: every way a job changes hands or state after it was enqueued.

| move                  | from → to                                   | who         | where     |
|-----------------------|---------------------------------------------|-------------|-----------|
| publish               | ready → published                           | relay       | publish.py|
| claim                 | ready, published → leased                   | worker      | claim.py  |
| finish                | leased → gone, with a result                | worker      | record.py |
| put_back              | leased → waiting or ready                   | worker      | record.py |
| promote               | waiting → ready                             | maintenance | upkeep.py |
| lapse                 | leased → ready, or FAILED past the limit    | maintenance | upkeep.py |
| cancel                | waiting, ready, published → gone, CANCELLED | web         | owner.py  |
| redrive               | FAILED, CANCELLED → ready                   | web, CLI    | owner.py  |

Each is one statement where it can be, and safe in a caller's transaction. A change of state writes its audit row
in the statement that makes it, with `seq` = the row's new `version`.
"""

from engine.moves.claim import Lane, claim, claim_named, claim_published, lanes_of
from engine.moves.owner import cancel, redrive
from engine.moves.record import Ending, PutBack, finish, put_back, recorded
from engine.moves.upkeep import lapse, promote

__all__ = [
    "Ending",
    "Lane",
    "PutBack",
    "cancel",
    "claim",
    "claim_named",
    "claim_published",
    "finish",
    "lanes_of",
    "lapse",
    "promote",
    "put_back",
    "recorded",
    "redrive",
]
