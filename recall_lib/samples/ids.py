"""The ids that mean the same in every vocabulary (SPEC 2.2). Without Spark, because models and indexes use them too."""

# 0 is padding and 1 is unknown; values have ids from 2 on. 0 and 1 are never a candidate, a negative or a result.
PADDING, UNKNOWN, FIRST_INDEX = 0, 1, 2
# The vocabulary's name for item ids; user features and item features have their own names.
ITEM_ID = "item_id"
IMPRESSIONS = "impressions"  # the name of the sequence of items that a user was shown, whether clicked or not
