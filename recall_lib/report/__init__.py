"""The report of a day: its facts, and one HTML page of them."""
