"""Steps against difficulty: a looped solver on prefix sums and mazes of every size, larger than trained, too."""
