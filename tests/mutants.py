"""Mutate run directories as a stranger might: every reader only reads, or refuses.

    python tests/mutants.py                      2,000 mutants, some five minutes (make attack)
    python tests/mutants.py --count 100 --first 7000
    python tests/mutants.py --known 99           each known attack, by all readers of its part
    python tests/mutants.py --seed 4711          one of them
    python tests/mutants.py --seed an_alias_bomb:report:sweep

Each mutant is a copy of a trained run with one to three changes, read by one command in a sandbox
(`attack.sandbox`) that notices files written elsewhere, processes, sockets and code. A mutant fails
if anything of that happens, or if the command ends otherwise than with exit code 0, 1 or 2 and one
sentence, hangs, or sends something to the terminal, to a table or to a page that these would obey.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from attack.readers import make_originals
from attack.worker import Mutant, Worker, known_mutants, mutant_of, random_mutant

#: Seconds without a result after which a reader counts as hanging.
SECONDS = 60.0


def work(base: Path, seconds: float) -> None:
    """Read the mutants named in a file; write a line of JSON to the old output for each."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    logging.captureWarnings(True)
    worker = Worker(base, seconds)
    for name in (base / "names").read_text().splitlines():
        print(json.dumps({"begins": name}), file=answers)
        print(json.dumps({"name": name, "found": worker.read(mutant_of(name))}), file=answers)


def answers_of(base: Path, names: Sequence[str], seconds: float) -> Iterator[dict[str, Any]]:
    """Read the mutants in a process of its own, and yield its answers; the last says how it ended.

    Where no alarm reaches the reader, the process is killed.
    """
    (base / "names").write_text("\n".join(names))
    (base / "tmp").mkdir(exist_ok=True)  # else Python keeps to another folder
    with (base / "errors").open("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, __file__, "--worker", str(base), "--seconds", str(seconds)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(base / "tmp")},
        )
        assert process.stdout is not None
        # the first answer comes after the healthy directories have been read
        while select.select([process.stdout], [], [], 2 * seconds + 60)[0]:
            if not (line := process.stdout.readline()):
                break
            yield json.loads(line)
        else:
            process.kill()
        code = process.wait()
        errors.seek(0)
        printed = (base / "printed").read_text(errors="replace")
        yield {"ended": f"with code {code}: {errors.read()[-3000:]} {printed[-1000:]}"}


def attack(base: Path, mutants: Sequence[Mutant], seconds: float = SECONDS) -> dict[str, list[str]]:
    """Read all mutants; return what was wrong with those that fail, by their names.

    That the process ends or hangs is one of these; the next process goes on behind that mutant.
    """
    left = {mutant.name: mutant for mutant in mutants}
    found: dict[str, list[str]] = {}
    while left:
        current = None
        for answer in answers_of(base, list(left), seconds):
            current = answer.get("begins", current)
            if "ended" in answer:
                if current is None and left:
                    raise RuntimeError(f"the worker ended {answer['ended']}")
                if current is not None:
                    found[current] = [f"the process ended {answer['ended']}"]
                    _show(left.pop(current), found[current])
            elif "found" in answer:
                mutant, current = left.pop(answer["name"]), None
                if answer["found"]:
                    found[mutant.name] = answer["found"]
                    _show(mutant, answer["found"])
    return found


def _show(mutant: Mutant, found: Sequence[str]) -> None:
    print(f"{mutant.reader} of a run with {', '.join(mutant.mutations)}:", flush=True)
    for line in found:
        print(f"    {line!r}")
    print(f"    python tests/mutants.py --seed {mutant.name!r}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2000, help="with random changes")
    parser.add_argument("--first", type=int, default=0, help="the first of so many seeds")
    parser.add_argument(
        "--known", type=int, metavar="READERS", help="each mutation alone, by so many readers"
    )
    parser.add_argument("--seed", help="one mutant alone")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that are no hang")
    parser.add_argument("--base", type=Path, help="a folder to keep trained runs and the mutant in")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        work(options.worker, options.seconds)
        return 0
    if options.seed is not None:
        mutants = [mutant_of(options.seed)]
    else:
        mutants = [] if options.known is None else list(known_mutants(options.known))
        mutants += [random_mutant(options.first + i) for i in range(options.count)]
    with tempfile.TemporaryDirectory() as folder:
        base = (options.base or Path(folder)).absolute()
        if not (base / "originals").is_dir():
            make_originals(base)
        found = attack(base, mutants, options.seconds)
    print(json.dumps({"mutants": len(mutants), "failures": len(found)}))
    return len(found) > 0


if __name__ == "__main__":
    sys.exit(main())
