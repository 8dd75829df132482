"""Fine-tuned classifiers that get exits: the demo of `ponder advise`, and measurements on tasks of real texts."""
