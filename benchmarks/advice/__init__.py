"""Is the advice right? Its choice and its promise on test texts, and redraws of the whole race."""
