"""Training of a generative model by its name into a folder, and use of the model in such a folder."""
