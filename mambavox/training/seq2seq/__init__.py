"""Adaptation of Whisper to a language: one run, from transcribed recordings to a run folder."""
