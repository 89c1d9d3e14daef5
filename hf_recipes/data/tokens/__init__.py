"""Text to tokens on disk, of any size: tokenized by several processes, cut into rows, found again by what made them."""
