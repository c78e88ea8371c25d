"""Attention: `attention` in any floating type, `attention_mma` in 16 bits on the tensor cores."""
