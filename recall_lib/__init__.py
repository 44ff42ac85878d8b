"""Offline candidate generation after YouTubeDNN: Spark samples, Petastorm + Horovod training, FAISS top-N by day."""

__version__ = "0.1.0"
