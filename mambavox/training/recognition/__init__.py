"""CTC training: recordings with transcripts to a run folder that `mambavox transcribe` loads."""
