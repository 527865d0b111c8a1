"""Quantization: from a float Net, a Recipe and perhaps Stats to a quantized Net."""
