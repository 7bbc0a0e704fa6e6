"""Shuffling files larger than memory; its public names are those of `kexue.corpus`."""
