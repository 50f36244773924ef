"""Addresses in, whole and checked files out: HTTP with patience, a cache outside the repository."""
