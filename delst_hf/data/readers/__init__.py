"""One file per source format, each with `read_*(path, ...) -> Slide`."""
