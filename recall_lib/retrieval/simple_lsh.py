"""SIMPLE-LSH (Neyshabur & Srebro, ICML 2015): turns the order of inner products into that of cosines, for angular search.

Let m be the largest norm of an item. Each item v gets one more coordinate, which gives all items the same norm. A user u gets
a 0 there. The cosine of the two is then <u, v> / (|u| m), which ranks a user's items like the inner product.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recall_lib.samples.ragged import Float32s, Float64s, Floats


def unit_items(items: Floats) -> Float32s:
    """[v / m ; sqrt(1 - |v / m|^2)]: items [n, d] on the unit sphere, float32 [n, d + 1]."""
    squares = _squares(items)
    largest = _largest(squares)
    return _append(items, np.sqrt(largest), np.sqrt(1 - squares / largest))


def precise_items(items: Floats) -> Float32s:
    """[v ; sqrt(m^2 - |v|^2)]: items [n, d] on the sphere of radius m, with unchanged coordinates, float32 [n, d + 1]."""
    squares = _squares(items)
    return _append(items, 1, np.sqrt(_largest(squares) - squares))


def users(vectors: Floats) -> Float32s:
    """[u / |u| ; 0]: users [B, d], float32 [B, d + 1]; a zero vector stays zero."""
    norm = np.sqrt(_squares(vectors))
    return _append(vectors, np.where(norm > 0, norm, 1)[:, None], np.zeros(len(vectors)))


def _squares(vectors: Floats) -> Float64s:
    """|v|^2 of each row, [n]."""
    return np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)


def _largest(squares: Float64s) -> float:
    """m^2; 1 if every item is zero, so that all stay equal."""
    return float(squares.max(initial=0)) or 1.0


def _append(vectors: Floats, divisor: npt.ArrayLike, last: Float64s) -> Float32s:
    """[v / divisor ; last], computed in float64 without a float64 copy of all vectors."""
    longer = np.empty((vectors.shape[0], vectors.shape[1] + 1), np.float32)
    np.divide(vectors, divisor, out=longer[:, :-1], dtype=np.float64, casting="same_kind")
    longer[:, -1] = last
    return longer
