"""Scripts of the Wan2.2 models."""
