"""A matrix of features that is read in blocks, and its files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from genlab.errors import RunDirectoryError
from genlab.runs.files import refuse_foreign, write_atomically
from genlab.runs.reading import read_bytes

Array = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]

#: Rows of a block, which bound the memory that a distance between sets takes.
BLOCK = 2048
#: Rows of a file: what a kill can lose.
CHUNK = 128
_HEADER = 1 << 16


class Rows:
    """A matrix (N, d), of which a block of `BLOCK` rows at most is in memory.

    Args:
        parts: functions that read consecutive parts of the matrix.
        sizes: number of rows of each.
        dims: d.
    """

    def __init__(
        self, parts: Sequence[Callable[[], Array]], sizes: Sequence[int], dims: int
    ) -> None:
        self._parts, self._sizes, self.dims = list(parts), list(sizes), dims

    @classmethod
    def of(cls, matrix: npt.NDArray[np.floating]) -> Rows:
        """Make rows of a matrix (N, d) that is in memory."""
        starts = range(0, len(matrix), BLOCK)
        parts = [lambda s=start: matrix[s : s + BLOCK] for start in starts]
        return cls(parts, [min(BLOCK, len(matrix) - start) for start in starts], matrix.shape[1])

    def __len__(self) -> int:
        return sum(self._sizes)

    def blocks(self) -> Iterator[tuple[slice, Matrix]]:
        """Yield consecutive blocks of at most `BLOCK` rows, and their places."""
        start, rows = 0, 0
        waiting: list[Callable[[], Array]] = []
        for part, size in zip(self._parts, self._sizes, strict=True):
            if waiting and rows + size > BLOCK:
                yield slice(start, start + rows), _joined(waiting)
                start, rows, waiting = start + rows, 0, []
            waiting.append(part)
            rows += size
        if waiting:
            yield slice(start, start + rows), _joined(waiting)

    def take(self, chosen: npt.NDArray[np.integer]) -> Array:
        """Return rows by their numbers, which rise, as a matrix in memory."""
        found = [
            block[chosen[(chosen >= place.start) & (chosen < place.stop)] - place.start]
            for place, block in self.blocks()
        ]
        return np.concatenate(found).astype(np.float32)


def chunks_of(total: int) -> list[range]:
    """Divide the numbers of N rows into those of files."""
    return [range(s, min(total, s + CHUNK)) for s in range(0, total, CHUNK)]


class Chunks:
    """Files of a feature matrix (N, d), each of `CHUNK` rows and written once.

    Args:
        folder: is made when a file is written.
        total: N.
        dims: d.
    """

    def __init__(self, folder: Path, total: int, dims: int) -> None:
        self.folder, self.total, self.dims = folder, total, dims
        self.ranges = chunks_of(total)
        refuse_foreign(folder, deep=False)

    def missing(self) -> list[int]:
        """Return the numbers of the files that are not there, or are torn or damaged."""
        return [i for i in range(len(self.ranges)) if not self._is_whole(i)]

    def _is_whole(self, number: int) -> bool:
        if not self._path(number).exists():
            return False
        try:
            self._read(number)
        except RunDirectoryError:
            return False
        return True

    def fill(
        self,
        rows: Callable[[list[range]], Iterable[Array]],
        advance: Callable[[int], None] = lambda amount: None,
    ) -> None:
        """Write the missing files; `rows` is given what they hold, and makes one after another.

        Args:
            advance: called with the number of rows that are there.

        Raises:
            RunDirectoryError: a file cannot be written.
        """
        numbers = self.missing()
        advance(self.total - sum(len(self.ranges[i]) for i in numbers))
        if not numbers:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            made = rows([self.ranges[i] for i in numbers])
            for number, matrix in zip(numbers, made, strict=True):
                content = np.ascontiguousarray(matrix, dtype=np.float32)
                write_atomically(self._path(number), save({"features": content}))
        except OSError as error:
            raise RunDirectoryError(
                f"{self.folder} cannot be written ({error.strerror}): make room, or make it "
                "writable; what is there is kept, and the same command goes on with it"
            ) from error

    def rows(self) -> Rows:
        """Return the matrix; a block of it is read when it is needed."""
        parts = [lambda i=i: self._read(i) for i in range(len(self.ranges))]
        return Rows(parts, [len(r) for r in self.ranges], self.dims)

    def _path(self, number: int) -> Path:
        # the last file of another total holds another number of rows
        return self.folder / f"{number:06d}-{len(self.ranges[number])}.safetensors"

    def _read(self, number: int) -> Array:
        path, shape = self._path(number), (len(self.ranges[number]), self.dims)
        try:
            found = load(read_bytes(path, 4 * shape[0] * shape[1] + _HEADER)).get("features")
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise RunDirectoryError(f"{path} cannot be read ({error}): remove it") from error
        if found is None or found.shape != shape or found.dtype != np.float32:
            raise RunDirectoryError(f"{path} does not hold features {list(shape)}: remove it")
        if not np.isfinite(found).all():
            raise RunDirectoryError(f"{path} holds values that are not finite: remove it")
        return found


def _joined(parts: Sequence[Callable[[], Array]]) -> Matrix:
    return np.concatenate([part() for part in parts]).astype(np.float64)
