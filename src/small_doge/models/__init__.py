"""The model families, in Hugging Face shape."""
