"""The programs of the package, to read and to copy: `avssl.recipes`. Each has `command(arguments) -> exit status`."""
