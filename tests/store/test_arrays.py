"""What NumPy reads of a vocabulary's files."""

import numpy as np

from recall_lib.store.arrays import item_counts, read_values
from tests.training.synthetic import VALUES, write_vocab


def test_counts_and_values_of_a_vocabulary_in_two_files(tmp_path):
    files = write_vocab(tmp_path, VALUES)
    counts = item_counts(files)
    assert counts.dtype == np.int64
    assert counts.tolist() == [0, 0, *[5] * len(VALUES["item_id"])]
    for feature, values in VALUES.items():
        expected = [{"index": 2 + n, "value": value} for n, value in enumerate(values)]
        assert read_values(files, feature).to_pylist() == expected, feature
