"""What every part of the library leans on: trees of tensors, checks of arguments, names, files. Private."""

__all__: list[str] = []
