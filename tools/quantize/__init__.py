"""Search for a bit width for every layer, and what a quantized run needs besides the one training loop."""
