"""Standard output and error whose trouble is not the program's: closed, full, or of few letters."""

from __future__ import annotations

import io
import os
import sys


class _Patient(io.TextIOWrapper):
    """Text that cannot be written any more, as into a closed pipe or a full disk, is dropped."""

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError:
            self._go_on_into_nothing()
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            self._go_on_into_nothing()

    def _go_on_into_nothing(self) -> None:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self.fileno())
        os.close(nothing)


def make_patient() -> None:
    """Let nothing that is printed end the program: `train.py ... | head -1` trains to its end.

    Letters that the terminal's encoding lacks become question marks. Descriptors that were closed
    are opened, since the next file would otherwise take their place and be printed into.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(descriptor, "w", encoding="utf-8", closefd=False))
        elif type(stream) is io.TextIOWrapper and stream is getattr(sys, f"__{name}__"):
            # the one before stays in sys, and so does not close what both write to
            patient = _Patient(
                stream.buffer, stream.encoding, "replace", line_buffering=stream.line_buffering
            )
            setattr(sys, name, patient)
