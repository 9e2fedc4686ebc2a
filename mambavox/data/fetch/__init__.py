"""Bring corpora from their own addresses: resumable downloads, checksums, a manifest."""

from mambavox.data.fetch.corpora import SOURCES, CorpusSource, default_folder, get_corpus

__all__ = ["SOURCES", "CorpusSource", "default_folder", "get_corpus"]
