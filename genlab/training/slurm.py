"""What SLURM says of the job that this process belongs to."""

from __future__ import annotations

import os
import subprocess

#: As submitit waits for its `scontrol requeue`; a busy controller answers late.
_SECONDS = 60


def is_being_preempted() -> bool:
    """Whether the job's node is taken from it, and the job is given some time to leave.

    A job that ends within this time is over for SLURM, which queues only those again that it had to
    kill: so whoever ends must queue the job himself. False outside of SLURM, where SLURM gives no
    answer, and where it has queued the job already, as it does where there is no such time.
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
