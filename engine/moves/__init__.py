"""The moves: every way in which a job changes its holder or its state. One file for each move.

| move    | from → to                                    | who         | file        |
|---------|----------------------------------------------|-------------|-------------|
| enqueue | new → waiting or ready                        | web, caller | enqueue.py  |
| publish | ready → published                            | relay       | publish.py  |
| claim   | ready, published → leased                    | worker      | claim.py    |
| finish  | leased → gone, with a result                 | worker      | finish.py   |
| release | leased → waiting (retry, snooze) or ready    | worker      | release.py  |
| promote | waiting → ready                              | maintenance | promote.py  |
| lapse   | leased → ready, or FAILED at the last crash  | maintenance | lapse.py    |
| cancel  | waiting, ready, published → gone, CANCELLED  | web, CLI    | cancel.py   |
| redrive | FAILED, CANCELLED → ready                    | web, CLI    | redrive.py  |

Each move is one statement where possible, and safe in a caller's transaction. The statement that changes a state also
writes the audit row, with `seq` = the row's new `version`.
"""

from engine.moves.cancel import cancel
from engine.moves.claim import claim, claim_named, claim_published, claim_suspects
from engine.moves.enqueue import enqueue, enqueue_group, enqueue_many
from engine.moves.finish import Ending, finish, recorded
from engine.moves.lapse import lapse
from engine.moves.promote import promote
from engine.moves.redrive import redrive
from engine.moves.release import Release, release, take_back

__all__ = [
    "Ending",
    "Release",
    "cancel",
    "claim",
    "claim_named",
    "claim_published",
    "claim_suspects",
    "enqueue",
    "enqueue_group",
    "enqueue_many",
    "finish",
    "lapse",
    "promote",
    "recorded",
    "redrive",
    "release",
    "take_back",
]
