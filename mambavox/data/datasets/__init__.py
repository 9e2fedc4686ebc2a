"""Readers of well-known corpora, one small file each."""
