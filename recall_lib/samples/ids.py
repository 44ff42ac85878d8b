"""The ids that mean the same in every vocabulary (SPEC 2.2). Free of Spark: models and indexes need them too."""

# 0 pads, 1 is unknown; values have ids from 2 on. 0 and 1 are never candidate, negative or result.
PADDING, UNKNOWN, FIRST_INDEX = 0, 1, 2
# The name under which the vocabulary keeps item ids; user features and item features keep theirs.
ITEM_ID = "item_id"
