"""Servers of one's own, started from the programs that are installed, and gone afterwards."""
