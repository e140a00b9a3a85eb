"""Subject: attention variants in a decoder of one fixed shape."""
