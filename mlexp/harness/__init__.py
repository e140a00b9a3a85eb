"""The measuring wing: runs cells and measures them."""
