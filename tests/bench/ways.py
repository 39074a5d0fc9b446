"""One process of the benchmark: ``ways.py JOB.json`` runs one way and prints what it measured as JSON.

The ways share Kafka's options, the release and the input; each module beside this one has the function `run`;
`exactly_once` is stream_vae again, with transactions.
"""

import json
import os
import sys
from pathlib import Path


def main() -> None:
    # Before any import that starts threads: they inherit the core.
    document = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if document["core"] is not None:
        os.sched_setaffinity(0, {document["core"]})
    import way_floor
    import way_stream_vae
    import way_usual
    from job import Job

    ours = way_stream_vae.run
    ways = {"stream_vae": ours, "exactly_once": ours, "usual": way_usual.run, "floor": way_floor.run}
    job = Job.read(Path(sys.argv[1]))
    print(json.dumps(ways[job.way](job)))


if __name__ == "__main__":
    main()
