"""Recommending at scale: for files of users (`batch`), over HTTP (`server`), on Ray (`ray_serve`)."""
