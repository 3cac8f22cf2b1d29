"""Explain a lack of memory, disk space, processes or room for a name in one sentence."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from genlab.errors import GenlabError, TrainingError, is_full
from genlab.training import interrupts
from genlab.training.interrupts import Stopped

_UNWRITABLE = (errno.EROFS, errno.EIO)
# torch reports most of these only as text: its CPU allocator, CUDA, cuDNN, cuBLAS.
_NO_MEMORY = re.compile(
    r"can't allocate memory|CUDA out of memory|CUDA error: out of memory|STATUS_ALLOC_FAILED"
)
#: Limits of the system on a process: what it lacks, the texts that tell it, and the remedy.
_LIMITS = (
    (
        "no more files can be opened",
        ("Too many open files",),
        "raise the limit with `ulimit -n`, to 1024 or more",
    ),
    (
        "no more processes or threads can be started",
        ("Resource temporarily unavailable", "can't start new thread"),
        "raise the limit with `ulimit -u`, or set OMP_NUM_THREADS=1 and data.num_workers=0",
    ),
)
_ASKED_FOR = re.compile(r"allocate ([\d.]+) (\w+)")


@contextmanager
def explained() -> Iterator[None]:
    """Raise `TrainingError` instead of an error that is due to a lack of memory or disk space.

    Also where a part of the run calls `sys.exit`, which would end the other jobs of a multirun.
    """
    try:
        yield
    except GenlabError:
        raise
    except SystemExit as end:
        if isinstance(end.__cause__, Stopped) or interrupts.is_handled_elsewhere():
            raise
        raise TrainingError(
            f"a part of this run called sys.exit({end.code!r}): raise an exception that says why"
        ) from end
    except Exception as error:
        sentence = explanation(error)
        if sentence is None:
            raise
        raise TrainingError(sentence) from error


def explanation(error: BaseException) -> str | None:
    """Return the explanation if the error or its cause is such a lack; None otherwise."""
    cause: BaseException | None = error
    while cause is not None:
        if (sentence := _explanation(cause)) is not None:
            return sentence
        cause = cause.__cause__ or cause.__context__
    return None


def _explanation(error: BaseException) -> str | None:
    if isinstance(error, OSError) and (is_full(error) or error.errno in _UNWRITABLE):
        at = f" at {error.filename}" if error.filename else ""
        remedy = (
            "make room, or move runs_dir to where there is some"
            if is_full(error)
            else "make the disk of runs_dir writable"
        )
        return (
            f"nothing more can be written{at} ({error.strerror}): {remedy}; what was written is "
            "whole, and the same command, without overwrite=true, goes on from the last checkpoint"
        )
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return (
            f"a path begins with {str(error.filename)[:60]!r} and is too long: give a shorter one"
        )
    if isinstance(error, OSError | ImportError | RuntimeError):
        for what, texts, remedy in _LIMITS:
            if told := next((text for text in texts if text in str(error)), None):
                return f"{what} ({told}): {remedy}"
    kinds = {kind.__name__ for kind in type(error).__mro__}  # of torch, which is not imported here
    lacks_memory = (
        {"MemoryError", "OutOfMemoryError"} & kinds
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)))
    )
    if lacks_memory:
        where = "on the GPU" if re.search("CUDA|CUBLAS|CUDNN", str(error)) else "on this machine"
        found = _ASKED_FOR.search(str(error))
        asked = f" when {_size(*found.groups())} were asked for" if found else ""
        return (
            f"out of memory {where}{asked}: lower data.batch_size, data.eval_batch_size if it was "
            "in a validation or in the test, or the size of the network (model.net)"
        )
    return None


def _size(number: str, unit: str) -> str:
    return f"{float(number) / 2**30:.2g} GiB" if unit == "bytes" else f"{number} {unit}"
