"""Recommending at scale: for files of users (`batch`)."""
