"""Equilibrium propagation and backprop on characters: networks with an energy, two-phase rule, exact gradient."""
