"""Makes one vector of a text from the vectors of its tokens, which come in chunks.

Pure. Pooling as in Sentence Transformers' `Pooling` module: mean, first token ("CLS") or last token. Shortening keeps the
leading dimensions, which only models trained for it (Matryoshka representations) bear; the length is made 1 afterwards.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from inferwire.v1 import inference_pb2 as pb


class PooledVector:
    """The vector of one text of `num_tokens`. `dimensions` None keeps all."""

    def __init__(
        self, pooling: pb.Pooling, *, num_tokens: int, dimensions: int | None = None, normalize: bool = True
    ) -> None:
        self._pooling = pooling
        self._num_tokens = num_tokens
        self._dimensions = dimensions
        self._normalize = normalize
        self._num_taken = 0
        self._sum: npt.NDArray[np.float64] | None = None

    def __repr__(self) -> str:
        return (
            f"<PooledVector [{pb.Pooling.Name(self._pooling)} | tokens {self._num_taken}/{self._num_tokens}]>"
        )

    def add(self, vectors: npt.NDArray[np.float32]) -> None:
        """Takes the vectors [tokens, width] of the tokens that follow."""
        total = np.zeros(vectors.shape[1]) if self._sum is None else self._sum
        match self._pooling:
            case pb.POOLING_MEAN:
                total = total + vectors.sum(axis=0, dtype=np.float64) / self._num_tokens
            case pb.POOLING_CLS if self._num_taken == 0:
                total = vectors[0].astype(np.float64)
            case pb.POOLING_LAST if self._num_taken + len(vectors) == self._num_tokens:
                total = vectors[-1].astype(np.float64)
        self._sum = total
        self._num_taken += len(vectors)

    def values(self) -> npt.NDArray[np.float32]:
        """Returns the vector [dimensions]. A vector of zeros has no length, and stays as it is."""
        assert self._sum is not None, "asked before any token was taken"
        assert self._num_taken == self._num_tokens, "asked before all tokens were taken"
        values = self._sum[: self._dimensions]
        length = float(np.linalg.norm(values))
        if self._normalize and length > 0:
            values = values / length
        return values.astype(np.float32)
