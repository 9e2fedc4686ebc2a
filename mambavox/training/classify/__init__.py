"""Classification: recordings with labels to a run folder that ``mambavox predict`` loads."""
