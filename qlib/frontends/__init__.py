"""From a module to the one graph form that all passes work on."""
