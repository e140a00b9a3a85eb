"""Subject: mazes. Data and oracle, a transformer baseline, PoH-HRM and its ablations, walks. Imports no torch."""
