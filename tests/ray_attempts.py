"""Retrainings as Ray tasks, in a process of their own: Ray reads its environment when it is imported, and no test may
depend on which of them was first.

    python ray_attempts.py SETTINGS.json TRIGGER [CPUS]

The settings are plain ones (`stream_vae.settings.to_plain`). Prints how the attempt ended, as JSON; with CPUS, what it
says while it waits for a place that wants so many, and after it was stopped.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from stream_vae.learning.attempt import Ended, RayAttempt
from stream_vae.runtime.cluster import joined
from stream_vae.settings import Settings, from_plain, to_plain

TIMEOUT_S = 300


def attempted(settings: Settings, folder: Path, trigger: str, cpus: float | None = None) -> list[Any]:
    """Let a task of a Ray of its own retrain; give how it ended, and with `cpus` what became of one with no place."""
    file = folder / "settings.json"
    file.write_text(json.dumps(to_plain(settings)), encoding="utf-8")
    run = [sys.executable, __file__, str(file), trigger, *([] if cpus is None else [str(cpus)])]
    result = subprocess.run(run, capture_output=True, text=True, timeout=TIMEOUT_S + 60, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def _document(ended: Ended | None) -> dict[str, Any]:
    if ended is None:
        return {"waiting": True}
    if ended.error is not None:
        return {"error": type(ended.error).__name__, "message": str(ended.error)}
    return {"found": ended.found}


def main() -> None:
    """Do what the arguments say."""
    settings = from_plain(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    with joined(None, cpus=1) as ray:
        attempt = RayAttempt(ray, settings, sys.argv[2])
        deadline = time.monotonic() + TIMEOUT_S
        while (ended := attempt.poll()) is None and time.monotonic() < deadline:
            time.sleep(0.1)
        print(json.dumps(_document(ended), default=str), flush=True)
        if len(sys.argv) > 3:
            large = settings.retrain.model_copy(update={"cpus": float(sys.argv[3])})
            waiting = RayAttempt(ray, settings.model_copy(update={"retrain": large}), "hand")
            print(json.dumps(_document(waiting.poll())), flush=True)
            waiting.stop()
            print(json.dumps(_document(waiting.poll())), flush=True)


if __name__ == "__main__":
    main()
