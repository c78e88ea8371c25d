"""What only generation uses: one token at a time, packed weights, the draw of the next token."""
