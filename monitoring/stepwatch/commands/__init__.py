"""One module for each group of commands; each adds its own to the parser."""
