"""Readers of the files of CLUE and FewCLUE, one for each framing."""
