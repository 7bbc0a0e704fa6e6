"""UniVAE: one Transformer that reads a sentence into a few vectors and writes it again from them."""
