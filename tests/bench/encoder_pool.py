"""What the encoder pool costs beside encoding in the worker: the same stamps, in one run, on one Ray.

    python tests/bench/encoder_pool.py [--seconds 5] [--json OUT]

One, two and four client actors send batches of stamps as workers do, to one encoder actor; each client also encodes the
same batches for itself, in turn. CPU time is that of the processes, user and system, theirs and the encoder's.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
from networks import make_release
from rich.console import Console
from rich.table import Table
from stream_vae.model.store import ReleaseStore
from stream_vae.runtime.encoder_actor import EncoderActor
from stream_vae.runtime.encoder_pool import Pool
from stream_vae.runtime.remote import RemoteEncoder
from stream_vae.settings import EncoderSettings
from stream_vae.stages.encode import Encoder

BATCHES = (64, 128, 512)
CLIENTS = (1, 2, 4)
SECTION = EncoderSettings(actors=1)


class Client:
    """Encodes batches for a while, through the pool or for itself."""

    def __init__(self, store: str, encoder: RemoteEncoder) -> None:
        release = ReleaseStore(store).load()
        self._ways = {
            "pool": Encoder(release, Pool([encoder], 0, SECTION, 60).open(release)),
            "itself": Encoder(release),
        }

    def encode(self, way: str, batch: int, seconds: float) -> dict[str, float]:
        """Encode for so long; give stamps, and CPU seconds."""
        stamps = np.random.default_rng(0).uniform(-1, 1, (batch, 21, 21, 1)).astype(np.float32)
        encoder, done = self._ways[way], 0
        cpu, until = time.process_time(), time.monotonic() + seconds
        while time.monotonic() < until:
            encoder.run(stamps)
            done += batch
        return {"stamps": done, "cpu_s": time.process_time() - cpu}


class Timed(EncoderActor):
    """Says what CPU time it took."""

    async def cpu_s(self) -> float:
        """CPU seconds of the process."""
        return time.process_time()


def measure(clients: list[Any], encoder: Any, way: str, batch: int, seconds: float) -> dict[str, float]:
    before = ray.get(encoder.cpu_s.remote())
    runs = ray.get([client.encode.remote(way, batch, seconds) for client in clients])
    there = ray.get(encoder.cpu_s.remote()) - before
    stamps = sum(run["stamps"] for run in runs)
    return {
        "stamps_a_second": stamps / seconds,
        "client_us": 1e6 * sum(run["cpu_s"] for run in runs) / stamps,
        "encoder_us": 1e6 * there / stamps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    # Actors find this file's classes where they found them here.
    path = {"env_vars": {"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}}
    own = {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "logging_level": "ERROR"}
    ray.init(address="local", num_cpus=8, runtime_env=path, **own)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        store = str(Path(name) / "store")
        make_release(Path(store), Path(name) / "new", 1)
        actor = ray.remote(Timed).options(num_cpus=1).remote("bench", SECTION, store, 30)
        for count in CLIENTS:
            make = ray.remote(Client).options(num_cpus=1)
            clients = [make.remote(store, RemoteEncoder(actor)) for _ in range(count)]
            for batch in BATCHES:
                for way in ("pool", "itself"):
                    measure(clients, actor, way, batch, 0.5)
                    rows.append(
                        {"clients": count, "batch": batch, "way": way}
                        | measure(clients, actor, way, batch, options.seconds)
                    )
            for client in clients:
                ray.kill(client)
    show(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("clients", "batch", "way", "stamps/s", "client us/stamp", "encoder us/stamp")
    for row in rows:
        rates = f"{row['stamps_a_second']:,.0f}", f"{row['client_us']:.1f}", f"{row['encoder_us']:.1f}"
        table.add_row(str(row["clients"]), str(row["batch"]), str(row["way"]), *rates)
    Console().print(table)


if __name__ == "__main__":
    main()
