"""Speech recognition with Whisper: transcribed recordings to a run folder that ``mambavox transcribe`` loads."""
