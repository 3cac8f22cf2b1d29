"""Query SLURM about the job that this process belongs to."""

from __future__ import annotations

import os
import subprocess

#: Seconds, as submitit waits for its `scontrol requeue`; a busy controller answers late.
_SECONDS = 60


def is_being_preempted() -> bool:
    """Return whether the job is being preempted and has a grace time to end.

    SLURM requeues only jobs that it had to kill, not those that end within the grace time: such a
    job must requeue itself. Returns False outside of SLURM, if SLURM gives no answer, and if it has
    already requeued the job, as it does without a grace time.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return False
    try:
        answer = subprocess.run(
            ["scontrol", "--oneliner", "show", "job", job],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    fields = dict(word.partition("=")[::2] for word in answer.stdout.split())
    is_there = fields.get("JobState") == "RUNNING"
    return is_there and fields.get("PreemptTime", "None") != "None"
