"""Tasks without TensorFlow: described in a small file; their results as tables."""
