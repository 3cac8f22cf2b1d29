"""Images drawn from a known Gaussian, for which the optimum of a model can be computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from genlab.data.base import Images, ImageSource, SourceSplit
from genlab.errors import whole
from genlab.protocols import ImageSpec
from genlab.seeding import numpy_generator

Floats = npt.NDArray[np.float64]


class Gaussian(ImageSource):
    """Images x ~ N(mean, covariance), flattened over (C, H, W); float32, `spec.levels` is None.

    Give either `eigenvalues` (D of them; the eigenvectors are then a rotation drawn from `seed`) or
    a full `covariance` (D, D). D = C * H * W of `shape`. All labels are 0.

    Raises:
        ValueError: if both or neither are given, the size is not D, or the matrix is not a
            covariance.
    """

    name = "gaussian"

    def __init__(
        self,
        eigenvalues: Sequence[float] | None = None,
        covariance: Sequence[Sequence[float]] | Floats | None = None,
        shape: Sequence[int] = (1, 2, 4),
        train_images: int = 10_000,
        test_images: int = 2_000,
        mean: float = 0.0,
        seed: int = 0,
    ) -> None:
        if len(shape) != 3:
            raise ValueError(f"shape={list(shape)}: give channels, height and width")
        self._spec = ImageSpec(shape[0], shape[1], shape[2], levels=None, classes=("gaussian",))
        self._images = {
            "train": whole("train_images", train_images, 1),
            "test": whole("test_images", test_images, 1),
        }
        self._seed = seed
        dims = self._spec.dims
        if (eigenvalues is None) == (covariance is None):
            raise ValueError("eigenvalues, covariance: give exactly one of the two")
        if eigenvalues is not None:
            values = np.array(list(eigenvalues), dtype=np.float64)
            if values.shape != (dims,) or not (values >= 0).all() or not np.isfinite(values).all():
                raise ValueError(
                    f"eigenvalues={values.tolist()}: give {dims} finite numbers of at "
                    f"least 0, one for each of the C*H*W pixels of shape {list(shape)}"
                )
            rotation, _ = np.linalg.qr(
                numpy_generator(seed, "gaussian", "rotation").standard_normal((dims, dims))
            )
            self.covariance: Floats = (rotation * values) @ rotation.T
        if covariance is not None:
            matrix = np.array([list(row) for row in covariance], dtype=np.float64)
            if matrix.shape != (dims, dims) or not np.allclose(matrix, matrix.T):
                raise ValueError(
                    f"covariance of shape {list(matrix.shape)}: give a symmetric "
                    f"{dims} x {dims} matrix, one row for each pixel of shape {list(shape)}"
                )
            self.covariance = matrix
        ascending, vectors = np.linalg.eigh(self.covariance)
        if ascending[0] < -1e-9 * max(1.0, ascending[-1]):
            raise ValueError(
                f"covariance has an eigenvalue of {ascending[0]:.3g}: none may be negative"
            )
        self.eigenvalues: Floats = ascending[::-1].clip(min=0.0)
        """(D,), descending."""
        self.mean: Floats = np.full(dims, mean, dtype=np.float64)
        self._root: Floats = vectors[:, ::-1] * np.sqrt(self.eigenvalues)

    @property
    def spec(self) -> ImageSpec:
        return self._spec

    def prepare(self, data_dir: Path) -> None:
        pass

    def load(self, data_dir: Path, split: SourceSplit) -> Images:
        n = self._images[split]
        noise = numpy_generator(self._seed, "gaussian", split).standard_normal((n, self._spec.dims))
        pixels = (self.mean + noise @ self._root.T).astype(np.float32)
        return Images(pixels.reshape(n, *self._spec.shape), np.zeros(n, dtype=np.int64))
