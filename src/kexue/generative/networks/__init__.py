"""Small networks: multilayer perceptrons, convolutional encoders and decoders, denoisers, a U-Net."""
