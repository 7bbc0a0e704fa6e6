"""Training of sentence models: texts to rows of tokens, the stages of RoFormer-Sim, and the command that runs them."""
