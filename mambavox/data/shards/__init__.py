"""Corpora in tars (WebDataset): packed, indexed, and read without opening a file for each recording."""
