"""Groups of commands, each in a module of its own: ``add`` gives a group its parsers."""
