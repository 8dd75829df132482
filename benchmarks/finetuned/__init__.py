"""Fine-tuned classifiers that get exits: the demo on generated reviews, and measurements on tasks of real texts."""
