"""What a row of training data is, what a training example is made of, and the files that hold rows."""
