"""Cannot be imported."""

raise ImportError("a library that this plug-in wants is not there")
