"""Do saved steps become saved time? Ratios, measured side by side in one run."""
