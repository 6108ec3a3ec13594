"""A MuJoCo tabletop with a WidowX 250S, and a scripted expert for it."""
