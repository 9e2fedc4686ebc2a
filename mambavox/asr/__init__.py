"""Speech recognition: transcripts, vocabularies, decoding, scores. Models are reached through transformers alone."""
