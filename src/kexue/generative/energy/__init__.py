"""Energy-based models: Langevin chains, the buffer they go on from, and the model that learns an energy from them."""
