"""Speech recognition with CTC: transcribed recordings to a run folder that ``mambavox transcribe`` loads."""
