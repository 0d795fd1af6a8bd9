"""What of the base predicts the tensors of a run that have no counterpart there: fused, split and transposed weights.

Names and shapes propose (`items.py`), a sample of the elements decides (`nearness.py`): a fine-tune is far nearer to
its own base than to any other weights.
"""
