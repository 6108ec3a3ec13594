"""From a Bridge action to safe joint targets: semantics, gate, kinematics. Pure numpy and scipy."""
