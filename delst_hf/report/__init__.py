"""Results drawn and written: figures, tables and one HTML page."""
