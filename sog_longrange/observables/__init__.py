"""What latent charges say about experiments."""
