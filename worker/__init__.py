"""The worker process: runs pipelines until it is stopped.

The life of one attempt, read from top to bottom in `Consumer._run`:

| step         | what happens                                                    | file                        |
|--------------|-----------------------------------------------------------------|-----------------------------|
| claimed      | the row is leased to this worker, `attempt` + 1, and audited    | source.py, subscription.py  |
| running      | the pipeline runs, on the loop or in a thread, in a slot        | execution.py, slots.py      |
| ended        | the outcome is known: returned, raised, out of time, cancelled  | outcome.py                  |
| recorded     | the outcome is written, in a group; or alone, with its effects  | recorder.py, effects.py     |
| acknowledged | the write has committed: the attempt is counted and logged      | attempt_metrics.py          |

Beside the attempts: a thread renews the lease that all attempts share (lease.py), and finds out who keeps it from
running (interpreter.py); attempts that the database shows as leased to this worker but that are not running here are
released (releases.py); progress is written (progress.py). Jobs that may have killed a worker run apart (suspects.py).
"""
