"""Code that comes from outside Selfloop: how what a config names as `module:Name` is found."""
