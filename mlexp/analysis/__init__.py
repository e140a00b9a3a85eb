"""The reading wing: turns records into tables, figures and verdicts; never imports torch."""
