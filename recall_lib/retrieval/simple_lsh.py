"""SIMPLE-LSH (Neyshabur & Srebro, ICML 2015): inner-product order as cosine order, for search that knows only angles.

With m the largest item norm, an item v gets one more coordinate that brings every item to the same norm, and a user u
gets a 0 there: the cosine of the two is <u, v> / (|u| m), which ranks a user's items as the inner product does.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


def unit_items(items: Floats) -> npt.NDArray[np.float32]:
    """[v / m ; sqrt(1 - |v / m|^2)]: items [n, d] on the unit sphere, float32 [n, d + 1]."""
    scaled = items.astype(np.float64) / _largest_norm(items)
    return _append(scaled, np.sqrt(np.maximum(0, 1 - (scaled**2).sum(axis=1))))


def precise_items(items: Floats) -> npt.NDArray[np.float32]:
    """[v ; sqrt(m^2 - |v|^2)]: items [n, d] on the sphere of radius m, their own coordinates untouched, float32 [n, d + 1]."""
    exact = items.astype(np.float64)
    return _append(exact, np.sqrt(np.maximum(0, _largest_norm(items) ** 2 - (exact**2).sum(axis=1))))


def users(vectors: Floats) -> npt.NDArray[np.float32]:
    """[u / |u| ; 0]: users [B, d], float32 [B, d + 1]; a zero vector stays zero."""
    exact = vectors.astype(np.float64)
    norm = np.linalg.norm(exact, axis=1, keepdims=True)
    return _append(exact / np.where(norm > 0, norm, 1), np.zeros(len(vectors)))


def _largest_norm(items: Floats) -> float:
    """m; 1 where every item is zero, which leaves them all alike."""
    return float(np.linalg.norm(items.astype(np.float64), axis=1).max(initial=0)) or 1.0


def _append(vectors: npt.NDArray[np.float64], last: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    return np.concatenate([vectors, last[:, None]], axis=1).astype(np.float32)
