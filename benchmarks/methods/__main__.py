"""Train the four methods and what they are compared with, pack every run, and set score against bytes.

    python benchmarks/methods [--only ROW ...] [--checks] [--report]

Each job (a learning rate tried; a row trained on a task) is noted in results.json beside this file as soon as it is
done, and a later call goes on from there; packs are kept in benchmarks/.cache/methods. When all is done, or with
--report, the tables of docs/experiment.md and the figures beside it are written anew. --checks trains what looks for
the reasons of results, most of it longer: an hour more. A GPU is used where there is one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

import job  # noqa: E402
from plan import drop_stale, next_jobs, note_bytes  # noqa: E402
from report import report  # noqa: E402
from rows import all_rows  # noqa: E402

CACHE = Path(os.environ.get("PETLPACK_BENCH_CACHE", HERE.parent / ".cache")) / "methods"
RESULTS = HERE / "results.json"


def read() -> dict[str, Any]:
    """Return what was measured so far."""
    if not RESULTS.exists():
        return {"searches": [], "runs": [], "bytes": []}
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def write(results: dict[str, Any]) -> None:
    """Replace results.json."""
    results["command"] = "python benchmarks/methods"
    results["versions"] = {name: version(name) for name in ("petlpack", "torch", "transformers", "peft", "numpy")}
    results["machine"] = {"python": platform.python_version(), "cores": os.cpu_count(), "device": job.DEVICE}
    lines = json.dumps(results, indent=1, sort_keys=True)
    half_written = RESULTS.with_suffix(".tmp")
    half_written.write_text(lines + "\n", encoding="utf-8")
    half_written.replace(RESULTS)


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="rows to run, by id; all by default")
    parser.add_argument("--checks", action="store_true", help="run the checks, when the rows are done")
    parser.add_argument("--report", action="store_true", help="run nothing; write tables and figures")
    args = parser.parse_args()
    try:
        if not args.report:
            work(args.only, checks=args.checks)
    finally:  # of what is done, also when interrupted
        report(read())


def work(only: list[str] | None, *, checks: bool) -> None:
    """Run jobs, two at a time on a CPU, until none is left."""
    results, started = read(), time.monotonic()
    clock = "check_wall_seconds" if checks else "wall_seconds"
    before = results.get(clock, 0.0)
    chosen = [row for row in all_rows() if bool(row.check) == checks and (only is None or row.id in only)]
    drop_stale(results, all_rows())
    under_way: dict[Future[dict[str, Any]], job.Job] = {}
    with ProcessPoolExecutor(job.WORKERS, mp_context=get_context("spawn")) as pool:
        while True:
            note_bytes(results, chosen, CACHE)
            for one in next_jobs(results, chosen, set(under_way.values())):
                if len(under_way) < job.WORKERS:
                    under_way[pool.submit(job.run, one, CACHE)] = one
            if not under_way:
                break
            finished, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in finished:
                one, record = under_way.pop(future), future.result()
                results["searches" if one.task == "search" else "runs"].append(record)
                results[clock] = round(before + time.monotonic() - started, 1)
                write(results)
                told = (
                    f"{record['dev']:.4f} on held-out rows"
                    if one.task == "search"
                    else ", ".join(f"{score['task']} {score['accuracy']:.4f}" for score in record["scores"])
                )
                minutes = (time.monotonic() - started) / 60
                print(
                    f"{minutes:6.1f} min  {one.row} {one.task} rate {one.rate:g}: {told}", file=sys.stderr, flush=True
                )
    write(results)


if __name__ == "__main__":
    main()
