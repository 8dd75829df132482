"""Does risk control keep its promise, and what does the promise cost? A simulation."""
