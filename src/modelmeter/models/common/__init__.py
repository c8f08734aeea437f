"""Components that several families of models share: text and image encoders, the video VAE."""
