"""Attempts in processes of their own: what an author's code breaks there, it breaks alone.

| process  | what it does                                                            | file                       |
|----------|-------------------------------------------------------------------------|----------------------------|
| worker   | claims, leases and records; hands an attempt to a child, and ends it    | pool.py, handle.py         |
| nursery  | has imported the engine and nothing of an author's; forks, reaps, kills | nursery.py                 |
| child    | imports the authors' modules, and runs one attempt at a time            | child.py, run.py, link.py  |

The worker asks its nursery in requests.py, over nursery_handle.py. Worker and child talk in frames.py, and share a
board.py. What an attempt leaves in its child is found by residue.py, and on its event loop by loop.py; what it changes
there is undone by surroundings.py. A child is never a fork of the running worker, and holds nothing of it: no
connection, no lock, no listening socket.
"""
