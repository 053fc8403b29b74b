"""Feature extractors, streamed moments and distances between image sets."""
