"""Calls into a client that may hang, in a thread that can be left behind."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds of waiting after which the user is told what is waited for.
PATIENCE = 5.0


class Worker:
    """A daemon thread that runs calls one after another, in the order in which they were given.

    The executors of the standard library are not used, since a process waits for their threads at
    its end.

    Raises:
        RuntimeError: no thread can be started.
    """

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self._began: float | None = None
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def put(self, call: Callable[[], T]) -> Future[T]:
        """Append a call, which runs after those given before."""
        future: Future[T] = Future()
        self._calls.put((call, future))
        return future

    def busy(self) -> float:
        """Return for how many seconds the present call has been running; 0 if there is none."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    def wait(self, future: Future[T], limit: float, purpose: str = "") -> T:
        """Return the result of a call.

        Args:
            future: of the call.
            limit: seconds that the call, and each one before it, may take.
            purpose: is logged once if the wait is long.

        Raises:
            TimeoutError: one of the calls takes longer.
            Exception: the call raised it.
        """
        began = time.monotonic()
        while not concurrent.futures.wait([future], timeout=0.2).done:
            if self.busy() > limit:
                raise TimeoutError(f"no answer within {limit:.0f} s")
            if purpose and time.monotonic() - began > PATIENCE:
                log.warning("%s", purpose)
                purpose = ""
        return future.result()

    def stop(self) -> None:
        """End the thread after the calls that were given."""
        self._calls.put(None)

    def _work(self) -> None:
        while (given := self._calls.get()) is not None:
            call, future = given
            self._began = time.monotonic()
            try:
                future.set_result(call())
            except BaseException as error:  # of concern to the caller alone
                future.set_exception(error)
            self._began = None
