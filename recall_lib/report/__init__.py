"""What a day came to, as one HTML page."""
