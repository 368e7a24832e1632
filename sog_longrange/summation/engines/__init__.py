"""Code that runs the inner loops of the mesh."""
