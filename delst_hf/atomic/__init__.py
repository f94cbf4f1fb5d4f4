"""Atomic writes, so that a kill, a full disk or a second run loses nothing: `files`, `locks`, `processes`."""
