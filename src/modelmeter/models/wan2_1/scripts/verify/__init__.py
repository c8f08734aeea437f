"""Scripts of the Wan2.1 models."""
