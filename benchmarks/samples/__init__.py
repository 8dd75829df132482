"""What each command prints, run once on a real model, for the pages of the documentation."""
