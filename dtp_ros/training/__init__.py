"""How the shipped tabletop policy was made: demonstrations, losses, the training, the choice of a checkpoint."""
