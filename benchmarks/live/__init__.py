"""Streams on which promises are tested: `ponder.Live`, fixed thresholds, BARGAIN's rule and B-PAC's rule."""
