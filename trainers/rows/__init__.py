"""What a training example is, and the files that hold them."""
