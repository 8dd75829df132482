"""The graded tasks, a file each, which registers its task."""
