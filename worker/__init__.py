"""The worker process: runs pipelines until it is stopped.

The life of one attempt, read from top to bottom in `Consumer._run`:

| step         | what happens                                                    | file                        |
|--------------|-----------------------------------------------------------------|-----------------------------|
| claimed      | the row is leased to this worker, `attempt` + 1, and audited    | source.py, subscription.py  |
| running      | the pipeline runs, on the loop or in a thread, in a slot        | execution.py, slots.py      |
| ended        | the outcome is known: returned, raised, out of time, cancelled  | outcome.py                  |
| recorded     | result or release are written, in groups; or with effects, alone| recorder.py, effects.py     |
| acknowledged | the write has committed: counted, logged, held no more          | attempt_metrics.py          |

Beside it: the lease that all attempts share, renewed from a thread (lease.py); what the database shows as leased to
this worker and is not running here (releases.py); what attempts say of their progress (progress.py).
"""
